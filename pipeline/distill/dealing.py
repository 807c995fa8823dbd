"""Who computes what of a round: logical ranks, dealt to the workers that there are.

The plan draws a round's slots for a fixed number of *logical ranks*, so that the method does not
change with the group: a round is always the same slots. The rollout of one (round, logical rank)
is a block of the stream, and a group of W workers (W at most the logical ranks) shares the blocks
out: one each where it is whole, several where nodes are missing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dealing:
    """Blocks in (round, logical rank) order from round ``first`` on, block i to worker i mod W.

    So Ray Data's ``streaming_split`` deals blocks of equal sizes in order. Where the workers do
    not divide the logical ranks, a round is of uneven hands, and turn and turn about the larger.
    """

    ranks: int = 1
    workers: int = 1
    first: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= self.ranks:
            raise ValueError(f"{self.workers} workers for {self.ranks} logical ranks")

    def owned(self, round_index: int, worker: int) -> list[int]:
        """The logical ranks of a round that a worker owns: at least one, in order."""
        before = (round_index - self.first) * self.ranks
        return [rank for rank in range(self.ranks) if (before + rank) % self.workers == worker]

    @property
    def most(self) -> int:
        """Of a round, the blocks of the largest hand."""
        return -(-self.ranks // self.workers)

    @property
    def weight(self) -> float:
        """Of a block's loss in its worker: the workers' mean is then the mean of all blocks."""
        return self.workers / self.ranks
