"""Every block of a round is some worker's, and nobody's twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distill.dealing import Dealing


@given(st.data())
def test_hands_are_a_partition_as_the_stream_deals_it(data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, 8))
    workers = data.draw(st.integers(1, ranks))
    first = data.draw(st.integers(0, 10_000))
    dealing = Dealing(ranks, workers, first)
    # The stream's blocks, one by one to the workers in turn.
    stream = [(r, rank) for r in range(first, first + 9) for rank in range(ranks)]
    dealt: dict[tuple[int, int], list[int]] = {}
    for i, (r, rank) in enumerate(stream):
        dealt.setdefault((r, i % workers), []).append(rank)
    for r in range(first, first + 9):
        hands = [dealing.owned(r, worker) for worker in range(workers)]
        assert hands == [dealt[r, worker] for worker in range(workers)]
        assert sorted(rank for hand in hands for rank in hand) == list(range(ranks))
        assert {len(hand) for hand in hands} <= {ranks // workers, dealing.most}
        # The mean over workers of the weighted sums is the mean over logical ranks.
        assert sum(dealing.weight for hand in hands for _ in hand) / workers == pytest.approx(1)


def test_a_whole_group_owns_one_each_and_weighs_nothing_anew() -> None:
    dealing = Dealing(4, 4, 7)
    assert [dealing.owned(r, 2) for r in range(7, 11)] == [[2]] * 4
    assert (dealing.most, dealing.weight) == (1, 1.0)


@pytest.mark.parametrize("workers", [0, 3])
def test_more_workers_than_logical_ranks_are_refused(workers: int) -> None:
    with pytest.raises(ValueError, match=f"{workers} workers for 2"):
        Dealing(2, workers)
