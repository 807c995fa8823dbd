"""The recipe as text: the published settings for a full-size base, the demo's for a small one."""

from dataclasses import dataclass
from string import Template

from pipeline.onboarding.scalar import scalar

# A base up to this width is edited and trained on CPU cores in minutes.
SMALL_WIDTH = 512

_TEMPLATE = Template("""\
# $name: one few-step LoRA out of the effects in $bank/bank.yaml.
# Written by `collectionlora init`. What is left out has its published value
# (arXiv 2605.25378); `collectionlora run --dry-run` shows what a run takes.
# Paths are relative to the folder that commands are run in.
name: $quoted
bank: $bank
output: $output        # all that is made; a run that is cut goes on from here
model:
  path: $base
  dtype: $dtype
teach:                 # LoRAs for effects that bring pairs alone
  lora: {rank: $teach_rank, alpha: $teach_rank}
  steps: $teach_steps
  batch: $teach_batch
  learning_rate: $teach_rate
targets:               # the teachers' own edits, which the student is anchored to; made once
  sources: $sources          # pictures an effect: its pairs' first, then photographs
  steps: $target_steps
  guidance: $guidance      # what the teachers are used with; 1 is none, and half the cost
  batch: $target_batch
student:
  steps: $student_steps             # forwards an edit
  lora: {rank: $rank, alpha: $rank}
distill:
  rounds: $rounds          # student updates
  batch: $batch
  p_switch: $p_switch        # share of effect slots; the rest: general rows$no_general
$distill
cluster:               # who computes what; every number is a process of its own
$cluster
evaluate:
  truth: pairs         # outputs are held against the teachers' own
  photographs: $photographs
# prompts:             # captions by a vision-language model; without, descriptions are taken
#   endpoint: {url: "http://localhost:8000/v1", model: Qwen/Qwen3-VL-8B-Instruct}
""")

_FULL = {
    "dtype": "bfloat16",
    "teach_rank": "128",
    "teach_steps": "2000",
    "teach_batch": "1",
    "teach_rate": "1.0e-4",
    "sources": "20",
    "target_steps": "40",
    "guidance": "5.0",
    "target_batch": "4",
    "student_steps": "8",
    "rank": "128",
    "rounds": "5000",
    "batch": "1",
    "distill": "  learning_rate: 1.0e-4\n  gradient_checkpointing: true",
    "cluster": (
        "  encoder_pool: {num_gpus: 1}\n"
        "  teacher_pool: {num_gpus: 1}     # rollouts and targets\n"
        "  student_group: {workers: 1, num_gpus: 1}"
    ),
    "photographs": "20",
}
_SMALL = {
    "dtype": "float32",
    "teach_rank": "8",
    "teach_steps": "600",
    "teach_batch": "8",
    "teach_rate": "2.0e-3",
    "sources": "50",
    "target_steps": "20",
    "guidance": "1.5",
    "target_batch": "30",
    "student_steps": "4",
    "rank": "32",
    "rounds": "680",
    "batch": "6",
    "distill": (
        "  fake_updates: 3\n"
        "  learning_rate: 6.0e-3\n"
        "  fake_learning_rate: 4.0e-3\n"
        "  warmup: 10\n"
        "  schedule: cosine\n"
        "  betas: [0.9, 0.98]\n"
        "  ema: 0.98\n"
        "  guidance: 1.0\n"
        "  ta_fm_batch: 32\n"
        "  lag: 1\n"
        "  checkpoint_every: 50"
    ),
    "cluster": (
        "  encoder_pool: {min: 2, max: 2}\n"
        "  teacher_pool: {min: 2, max: 2}\n"
        "  student_group: {workers: 1}"
    ),
    "photographs": "8",
}


@dataclass(frozen=True)
class RecipeAnswers:
    """What a recipe needs to be told: places, and two facts of the bank and the base."""

    name: str
    bank: str
    output: str
    base: str
    width: int
    general: bool


def recipe_text(answers: RecipeAnswers) -> str:
    """recipe.yaml. Without general rows every slot is an effect's: ``p_switch: 1``."""
    small = answers.width <= SMALL_WIDTH
    p_switch = "1.0" if not answers.general else "0.8" if small else "0.5"
    values = _SMALL if small else _FULL
    return _TEMPLATE.substitute(
        values,
        name=answers.name,
        quoted=scalar(answers.name),
        bank=scalar(answers.bank),
        output=scalar(answers.output),
        base=scalar(answers.base),
        p_switch=p_switch,
        no_general="" if answers.general else " (there are none)",
    )
