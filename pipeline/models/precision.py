"""The precision of a transformer, asked with every forward."""

import torch
from torch import nn


def precision_of(transformer: nn.Module) -> torch.dtype:
    """The dtype of its first floating parameter; of a quantised base that of its results.

    What diffusers' ``dtype`` says, which walks every module first: with fifty adapters on a small
    base that took as long as the forward.
    """
    return next(p.dtype for p in transformer.parameters() if p.is_floating_point())
