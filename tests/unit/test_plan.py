"""Routing: stateless, with the shares that the recipe asks for."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.distill.noise import generator
from pipeline.distill.schedule import shift_sigma, student_sigmas
from pipeline.plan import BucketCounts, PlanSettings, round_anchors, round_slots

PLAN = PlanSettings(
    seed=3,
    batch=4,
    p_switch=0.5,
    fake_updates=5,
    student_steps=8,
    shift=3.0,
    tau_max=0.75,
    tau_min=0.5,
    ta_fm_batch=6,
    effect_weights=(1.0, 2.0, 5.0),
    samples=(3, 7, 2),
    general=11,
)


def test_any_round_is_addressable_alone() -> None:
    in_order = {r: (round_slots(PLAN, r), round_anchors(PLAN, r)) for r in range(30)}
    for r in (29, 0, 17):
        assert (round_slots(PLAN, r), round_anchors(PLAN, r)) == in_order[r]
    assert len({tuple(slots) for slots, _ in in_order.values()}) == 30
    assert len({tuple(anchors) for _, anchors in in_order.values()}) == 30


def test_ranks_and_seeds_draw_apart_and_the_batch_does_not_matter() -> None:
    assert round_slots(PLAN, 5, rank=1) != round_slots(PLAN, 5, rank=0)
    assert round_slots(replace(PLAN, seed=4), 5) != round_slots(PLAN, 5)
    assert round_slots(replace(PLAN, batch=2), 5) == round_slots(PLAN, 5)[:2]


def test_the_share_of_the_effect_stream() -> None:
    slots = [s for r in range(500) for s in round_slots(PLAN, r)]
    effects = sum(s.effect is not None for s in slots)
    # Four standard deviations of a binomial.
    assert abs(effects - 1000) < 4 * (2000 * 0.25) ** 0.5
    # One draw a slot: rounds mix the streams.
    mixed = sum(len({s.effect is None for s in round_slots(PLAN, r)}) == 2 for r in range(100))
    assert mixed > 70


def test_the_extremes_of_p_switch_need_one_stream_only() -> None:
    all_effects = replace(PLAN, p_switch=1.0, general=0)
    assert all(s.effect is not None for r in range(50) for s in round_slots(all_effects, r))
    all_general = replace(PLAN, p_switch=0.0, effect_weights=(), samples=())
    assert all(s.effect is None for r in range(50) for s in round_slots(all_general, r))
    assert round_anchors(all_general, 0) == []


def test_a_stream_without_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no effects"):
        round_slots(replace(PLAN, p_switch=1.0, effect_weights=(), samples=()), 0)
    with pytest.raises(ValueError, match="no general rows"):
        round_slots(replace(PLAN, p_switch=0.0, general=0), 0)


def _chi_square(found: Counter[int], shares: list[float]) -> float:
    total = found.total()
    return sum((found[i] - total * p) ** 2 / (total * p) for i, p in enumerate(shares))


def test_effects_come_by_their_weights() -> None:
    plan = replace(PLAN, p_switch=1.0)
    shares = [1 / 8, 2 / 8, 5 / 8]
    slots = Counter(
        s.effect for r in range(400) for s in round_slots(plan, r) if s.effect is not None
    )
    anchors = Counter(a.effect for r in range(300) for a in round_anchors(plan, r))
    # The 0.1 % point at two degrees of freedom is 13.8.
    assert _chi_square(slots, shares) < 13.8
    assert _chi_square(anchors, shares) < 13.8
    # And it can tell: equal weights are far off.
    assert _chi_square(slots, [1 / 3] * 3) > 100


def test_a_weight_of_zero_is_never_drawn() -> None:
    plan = replace(PLAN, p_switch=1.0, effect_weights=(1.0, 0.0, 1.0))
    assert {s.effect for r in range(60) for s in round_slots(plan, r)} == {0, 2}


def test_every_index_is_in_range_and_all_are_reached() -> None:
    slots = [s for r in range(300) for s in round_slots(PLAN, r)]
    assert {s.step for s in slots} == set(range(8))
    assert {s.ts_step for s in slots} == {5, 6, 7}
    assert {s.sample for s in slots if s.effect is None} == set(range(11))
    for effect, count in enumerate(PLAN.samples):
        assert {s.sample for s in slots if s.effect == effect} == set(range(count))
    anchors = [a for r in range(100) for a in round_anchors(PLAN, r)]
    assert all(0 <= a.sample < PLAN.samples[a.effect] and 0 < a.t < 1 for a in anchors)


@pytest.mark.parametrize("updates", [1, 5, 8, 11, 16])
def test_fake_steps_are_spread_over_the_schedule(updates: int) -> None:
    plan = replace(PLAN, fake_updates=updates)
    orders = set()
    for r in range(20):
        for slot in round_slots(plan, r):
            assert len(slot.fake_steps) == len(slot.fake_ts) == updates
            times = Counter(slot.fake_steps)
            assert set(times) <= set(range(8))
            assert max(times.values()) - min(times[k] for k in range(8)) <= 1
            orders.add(slot.fake_steps)
    # Not the same order for all.
    assert len(orders) > 4


# Effect 0 is in every bucket, effect 2 in one, and the second has no general rows.
BUCKETS = (BucketCounts((1, 4, 0), 8), BucketCounts((1, 3, 0), 0), BucketCounts((1, 0, 2), 3))
MIXED = replace(PLAN, buckets=BUCKETS)


def test_one_bucket_draws_what_no_buckets_draw() -> None:
    """So the plans of banks of one shape are what they were: written out here once more."""
    one = replace(PLAN, buckets=(BucketCounts(PLAN.samples, PLAN.general),))
    for r in range(40):
        assert round_slots(one, r, 1) == round_slots(PLAN, r, 1)
        assert round_anchors(one, r, 1) == round_anchors(PLAN, r, 1)
        for i, slot in enumerate(round_slots(PLAN, r, 1)):
            rng = generator(PLAN.seed, "plan", r, 1, i)
            effect = None
            if rng.random() < PLAN.p_switch:
                effect = int(rng.choice(3, p=[1 / 8, 2 / 8, 5 / 8]))
            rows = PLAN.general if effect is None else PLAN.samples[effect]
            expected = (effect, int(rng.integers(rows)), int(rng.integers(8)))
            assert (slot.effect, slot.sample, slot.step) == expected


@st.composite
def plans(draw: st.DrawFn) -> PlanSettings:
    """Plans over up to four buckets of up to three effects, each with a sample somewhere."""
    effects = draw(st.integers(1, 3))
    counts = st.tuples(*[st.integers(0, 3)] * effects)
    buckets = draw(st.lists(st.tuples(counts, st.integers(0, 3)), min_size=1, max_size=4))
    samples = tuple(sum(b[0][e] for b in buckets) for e in range(effects))
    if 0 in samples:
        buckets[0] = (tuple(c + 1 for c in buckets[0][0]), buckets[0][1])
        samples = tuple(count + 1 for count in samples)
    general = sum(b[1] for b in buckets)
    weights = draw(st.tuples(*[st.floats(0.1, 10)] * effects))
    p_switch = draw(st.sampled_from([0.3, 0.5, 1.0]) if general else st.just(1.0))
    return replace(
        PLAN,
        seed=draw(st.integers(0, 1000)),
        p_switch=p_switch,
        effect_weights=weights,
        samples=samples,
        general=general,
        buckets=tuple(BucketCounts(c, g) for c, g in buckets),
    )


@settings(max_examples=100, deadline=None)
@given(plan=plans(), r=st.integers(0, 10_000))
def test_a_round_is_of_one_bucket_for_all_workers(plan: PlanSettings, r: int) -> None:
    slots = [slot for rank in (0, 1) for slot in round_slots(plan, r, rank)]
    anchors = [anchor for rank in (0, 1) for anchor in round_anchors(plan, r, rank)]
    for drawn in (slots, anchors):
        assert len({each.bucket for each in drawn}) == 1
    for each in (*slots, *anchors):
        counts = plan.buckets[each.bucket]
        rows = counts.general if each.effect is None else counts.samples[each.effect]
        assert 0 <= each.sample < rows


@pytest.mark.parametrize("p_switch", [0.4, 1.0])
def test_buckets_leave_every_samples_share_as_it_was(p_switch: float) -> None:
    """Stream, effect and sample: each as likely as where there are no buckets."""
    rounds = 4000
    plan = replace(MIXED, batch=1, ta_fm_batch=1, p_switch=p_switch)
    slots = [round_slots(plan, r)[0] for r in range(rounds)]
    anchors = [round_anchors(plan, r)[0] for r in range(rounds)]
    weights, shares = dict(enumerate([1 / 8, 2 / 8, 5 / 8])), {}
    for bucket, counts in enumerate(BUCKETS):
        for effect, count in enumerate(counts.samples):
            for sample in range(count):
                shares[effect, bucket, sample] = weights[effect] / plan.samples[effect]
    of_slots = {place: p_switch * share for place, share in shares.items()}
    if p_switch < 1:
        for bucket, counts in enumerate(BUCKETS):
            for sample in range(counts.general):
                of_slots[None, bucket, sample] = (1 - p_switch) / plan.general
    for drawn, expected in ((slots, of_slots), (anchors, shares)):
        found = Counter((each.effect, each.bucket, each.sample) for each in drawn)
        assert found.keys() == expected.keys()
        statistic = sum(
            (found[place] - rounds * p) ** 2 / (rounds * p) for place, p in expected.items()
        )
        # Mean f, standard deviation sqrt(2 f) at f degrees of freedom: five of them.
        freedom = len(expected) - 1
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_a_step_is_scored_above_the_next_steps_sigma() -> None:
    sigmas = [*student_sigmas(PLAN.student_steps, PLAN.shift), 0.0]
    published = [s for r in range(300) for s in round_slots(PLAN, r)]
    by_step = [s for r in range(300) for s in round_slots(replace(PLAN, score_by_step=True), r)]
    for slot in by_step:
        drawn = [(slot.step, slot.t), *zip(slot.fake_steps, slot.fake_ts, strict=True)]
        assert all(sigmas[k + 1] < t < 1 for k, t in drawn)
    # Nothing else of the plan moves, and the last step keeps its draws.
    for a, b in zip(published, by_step, strict=True):
        assert replace(a, t=0, fake_ts=()) == replace(b, t=0, fake_ts=())
        assert a.t == b.t or a.step < PLAN.student_steps - 1
    # Within its range each is the shifted uniform: half of it lies below the middle.
    last, first = sigmas[1], PLAN.shift
    middle = (last / (first - (first - 1) * last) + 1) / 2
    ts = [t for s in by_step for k, t in zip(s.fake_steps, s.fake_ts, strict=True) if k == 0]
    below = sum(t < shift_sigma(middle, PLAN.shift) for t in ts)
    assert abs(below - len(ts) / 2) < 2 * len(ts) ** 0.5
