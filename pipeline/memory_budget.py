"""What a process of the student group and one of the teacher pool hold on a card, by part.

Pure arithmetic over sizes, for ``--dry-run``: weights, masters, gradients and moments are exact,
activations an estimate of the largest batch, held against measured bytes in the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.models.sizes import BaseSize

GB = 10**9
CARDS = (24, 40, 48, 80, 96, 141)
# The CUDA context, the libraries' workspaces, and what the allocator cannot hand out.
OVERHEAD = 2 * GB
# Per token and width, what autograd keeps of one block that is computed again in the backward,
# and what a block holds at once without gradients, its adapter's part beside the base's: 19.4 on
# an H200 at full size. (A student process there held 4 % less than is said here, without the
# overhead: gradients and activations are not at their most together.)
KEPT, HELD = 24, 20


@dataclass(frozen=True)
class Load:
    """What a recipe asks of its processes.

    bytes_a_weight: 4 or 2; quantized: the blocks' weights in one byte; lora: parameters of the
    student's adapter (the teachers' are taken to be as large); workers: over which the student
    group is sharded (1: it is not); samples: of the largest student forward with gradients;
    scored: of the largest teacher forward; tokens: of one sample, pictures and prompt; teachers:
    adapters resident at once.
    """

    bytes_a_weight: int
    quantized: bool
    lora: int
    workers: int
    checkpointing: bool
    average: bool
    samples: int
    scored: int
    tokens: int
    teachers: int


@dataclass(frozen=True)
class Budget:
    """Bytes by part, in the order of :data:`PARTS`' printing."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def cards(self) -> list[int]:
        """The cards (GB) that it fits on."""
        return [card for card in CARDS if self.total <= card * GB]


def base_bytes(base: BaseSize, load: Load) -> int:
    """The frozen base; quantised weights have one scale a row, of the base's own precision."""
    if not load.quantized:
        return base.parameters * load.bytes_a_weight
    rest = base.parameters - base.quantisable
    return base.quantisable + (base.rows + rest) * load.bytes_a_weight


def student_budget(base: BaseSize, load: Load) -> Budget:
    """One process of the student group: no text encoder, no autoencoder, no teacher.

    Sharding divides all but the activations, and adds two whole blocks: the one at work and the
    one on its way. A quantised base is not divided.
    """
    share, two_blocks = load.workers, 0
    whole_base = base_bytes(base, load)
    own_base = whole_base if load.quantized else -(-whole_base // share)
    if share > 1:
        gathered = 2 * load.lora * load.bytes_a_weight
        gathered += 0 if load.quantized else whole_base
        two_blocks = 2 * gathered // base.blocks
    fp32 = -(-4 * load.lora // share)
    return Budget(
        {
            "base": own_base,
            "student and fake masters, fp32": 2 * fp32,
            "gradients, fp32, of one at a time": fp32,
            "Adam's moments, fp32": 4 * fp32,
            "the student's average, fp32": fp32 if load.average else 0,
            "two gathered blocks": two_blocks,
            "activations (estimate)": activation_bytes(base, load),
            "overhead": OVERHEAD,
        }
    )


def teacher_budget(base: BaseSize, load: Load) -> Budget:
    """One process of the teacher pool: the base, the policy, and the resident teachers."""
    adapter = load.lora * load.bytes_a_weight
    held = HELD * load.scored * load.tokens * base.width * load.bytes_a_weight
    return Budget(
        {
            "base": base_bytes(base, load),
            "policy": adapter,
            f"teachers, {load.teachers} slots": load.teachers * adapter,
            "activations (estimate)": held,
            "overhead": OVERHEAD,
        }
    )


def activation_bytes(base: BaseSize, load: Load) -> int:
    """What a student forward keeps for its backward.

    With checkpointing each block's input, and one block's insides; without, all blocks' insides.
    """
    one = load.samples * load.tokens * base.width * load.bytes_a_weight
    if load.checkpointing:
        return (base.blocks + KEPT) * one
    return base.blocks * KEPT * one


def describe(name: str, budget: Budget) -> list[str]:
    """A budget as lines of text."""
    lines = [f"memory    {name}: {budget.total / GB:.1f} GB"]
    lines += [
        f"          {size / GB:7.2f} GB  {part}" for part, size in budget.parts.items() if size
    ]
    return [*lines, f"          fits on {_cards(budget.cards())}"]


def _cards(cards: Sequence[int]) -> str:
    if not cards:
        return f"none of {', '.join(map(str, CARDS))} GB: shard, quantize, or a smaller batch"
    return f"cards of {', '.join(map(str, cards))} GB"
