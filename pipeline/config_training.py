"""The recipe's sections about training: LoRAs, teachers, the distillation, and growing."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config_types import (
    Count,
    Decay,
    Guidance,
    Name,
    PathText,
    Positive,
    Rate,
    Section,
    Share,
    Weight,
)

# All the linear layers of a block that the published LoRAs are on.
MODULES = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
    "img_mod.1",
    "txt_mod.1",
)


class LoraSettings(Section):
    """A LoRA's shape; ``alpha / rank`` scales its output."""

    rank: Positive = 128
    alpha: Annotated[float, Field(gt=0, le=4096)] = 128.0
    modules: tuple[str, ...] = Field(default=MODULES, min_length=1, strict=False)


class TeachSettings(Section):
    """How an effect LoRA is trained from its pairs by flow matching; Muon wants rates near 0.02.

    loss_power: 1 is the mean squared error; below 1 each sample weighs less the larger its own
    loss (``losses.tempered``). With many effects in one LoRA, those whose outcome is by chance
    otherwise drown those whose outcome is certain.
    """

    lora: LoraSettings = LoraSettings()
    steps: Positive = 2000
    batch: Positive = 1
    learning_rate: Rate = 1e-4
    optimizer: Literal["adamw", "muon"] = "adamw"
    ema: Decay = 0.0
    cosine: bool = False
    loss_power: Annotated[float, Field(gt=0, le=1)] = 1.0

    def content(self) -> dict[str, object]:
        """What a trained LoRA depends on, less its shape: part of the key it is cached under.

        The plain loss is left out, so that what was trained when there was no other is found.
        """
        plain = {"loss_power"} if self.loss_power == 1 else set()
        return self.model_dump(mode="json", exclude={"lora"} | plain)


class JointSettings(TeachSettings):
    """How one LoRA of many effects is trained.

    general: rows of the general stream a step, on which it is held to the base.
    """

    general: Count = 0

    def content(self) -> dict[str, object]:
        plain = {"general"} if self.general == 0 else set()
        return {key: value for key, value in super().content().items() if key not in plain}


class WarmStartSettings(JointSettings):
    """How a student is brought near its teachers before the first round.

    follow: ``targets``, flow matching on what the teachers made; ``teachers``, the teachers' own
    guided velocity there, which has no part by chance. It takes two more forwards a sample.
    """

    follow: Literal["targets", "teachers"] = "targets"

    def content(self) -> dict[str, object]:
        plain = {"follow"} if self.follow == "targets" else set()
        return {key: value for key, value in super().content().items() if key not in plain}


class LossSettings(Section):
    """Weights of the coarse-to-fine objective (C2F-DO, paper section 3.4)."""

    dmd_bs: Weight = 1.0
    dmd_ts: Weight = 1.0
    ta_fm: Weight = 1.0


class DistillSettings(Section):
    """The distillation: routing, rounds, rates and bounds.

    ``seed`` null takes the recipe's; another one repeats the training on the same teachers and
    targets. ``warm_start``: flow matching on the targets before round 0 (its ``lora`` is the
    student's); null, as published, starts at the bare base. ``fake_schedule`` null takes
    ``schedule``; constant lets the fake score catch up while the student's rate falls.
    ``score_by_step``: score a step's sample, and train the fake score on it, only above the
    sigma of the step after it (``plan.Slot``); off, as published: at any sigma. ``ta_fm_scale``:
    TA-FM lets go of samples whose loss is far above this (``losses.robust``), as those of
    effects whose outcome is by chance are (after a warm start); null, as published: it pulls at
    all alike.
    """

    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    warm_start: WarmStartSettings | None = None
    rounds: Positive = 5000
    batch: Positive = 1
    p_switch: Share = 0.5
    fake_updates: Positive = 5
    learning_rate: Rate = 1e-4
    fake_learning_rate: Rate = 1e-4
    warmup: Count = 0
    schedule: Literal["constant", "cosine"] = "constant"
    fake_schedule: Literal["constant", "cosine"] | None = None
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), strict=False)
    grad_clip: Annotated[float, Field(gt=0)] = 10.0
    ema: Decay = 0.0
    guidance: Guidance = 5.0
    losses: LossSettings = LossSettings()
    tau_max: Share = 0.75
    tau_min: Share = 0.5
    score_by_step: bool = False
    ta_fm_batch: Count = 0
    ta_fm_scale: Annotated[float, Field(gt=0)] | None = None
    lag: Annotated[int, Field(ge=0, le=16)] = 0
    checkpoint_every: Positive = 100
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.tau_min >= self.tau_max:
            raise ValueError(
                f"tau_min {self.tau_min} must be below tau_max {self.tau_max}; "
                "the published pair is 0.5 and 0.75"
            )
        return self


class GrowSettings(Section):
    """Adding effects to a finished student (``distill --from``).

    start_from: an export's folder, or a LoRA file of the student's shape; new_effects: those that
    it does not know yet (null: those that the export's ``effects.json`` lacks); new_share: the
    share of the effect stream that goes to them, while the others are rehearsed; warm_start: flow
    matching on the new effects' targets before round 0, while the student is held to what it was
    on the old ones' (null, as published: none; its ``lora`` is the student's).
    """

    start_from: PathText | None = None
    new_effects: tuple[Name, ...] | None = Field(default=None, min_length=1, strict=False)
    new_share: Share = 0.5
    warm_start: WarmStartSettings | None = None
