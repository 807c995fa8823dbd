"""Routing: stateless, with the shares that the recipe asks for."""

from collections import Counter
from dataclasses import replace

import pytest

from pipeline.plan import PlanSettings, describe, round_anchors, round_slots

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


def test_describe_counts_the_plan() -> None:
    told = describe(replace(PLAN, p_switch=1.0), 20)
    assert told["effect_share"] == 1.0
    assert told["sigmas"] == 8
    assert 2.5 < told["mean_student_step"] < 4.5
