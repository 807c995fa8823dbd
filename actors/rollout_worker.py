"""The rollout half on its frozen base, in this process."""

import torch

from actors.arguments import TeacherPoolArguments
from pipeline.distill.rollout import STUDENT, RolloutWorker
from pipeline.mirror import local_path
from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.families import load_editor
from pipeline.tensor_store import TensorStore
from pipeline.types import Manifest


def rollout_worker(arguments: TeacherPoolArguments) -> RolloutWorker:
    """Build the rollout half in this process."""
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    quantize, device = arguments.quantize, arguments.device
    editor = load_editor(arguments.model, ["transformer"], device, dtype, quantize)
    adapters = Adapters(editor.transformer)
    lora = arguments.rank, arguments.alpha, arguments.modules
    adapters.add(STUDENT, *lora, seed=0, masters=False)
    return RolloutWorker(
        editor=editor,
        adapters=adapters,
        teachers=TeacherCache(adapters, arguments.adapters_resident),
        store=TensorStore([local_path(folder) for folder in arguments.stores]),
        manifest=Manifest.from_dict(arguments.manifest),
        plan=arguments.plan,
        guidance=arguments.guidance,
        simulate=arguments.simulate,
    )
