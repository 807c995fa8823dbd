"""One frozen base, many LoRA adapters on it, through peft's own layers.

Trained adapters have fp32 masters, multiplied at the base's precision; frozen ones are stored at
it. Where both are fp32 that is peft's own forward, bit by bit.

A process loads the base once; student, fake score and teachers are named adapters. peft's
``set_adapter`` walks every module and adapter and toggles ``requires_grad``, which on a small
model costs as much as a forward; here a batch names the adapter of each sample, and the names
reach peft's layers through pre-forward hooks, as ``PeftModel`` passes ``adapter_names`` itself.
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pipeline.mirror import at_hand
from pipeline.models.lora_formats import (
    LoraFile,
    LoraModule,
    content_hash,
    linear_shapes,
    peft_settings,
    read_lora,
)
from pipeline.models.precision import precision_of
from pipeline.models.sharding import own_part
from pipeline.problems import StorageError

BASE = "__base__"  # peft's own name for "no adapter" in a mixed batch


class MasterLinear(nn.Linear):
    """A linear layer without bias whose weight may be wider than what it multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Adapters:
    """The adapters on one transformer, and which of them each sample runs under."""

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.layers: dict[str, LoraLayer] = {}
        # A file's adapter has, within peft, a name of no content: it may become another's.
        self._injected_as: dict[str, str] = {}
        self._injected = 0
        self._selected: tuple[str, ...] = (BASE,)

    def add(
        self,
        name: str,
        rank: int,
        alpha: float,
        modules: Sequence[str],
        seed: int,
        masters: bool = True,
        device: str | None = None,
    ) -> None:
        """Add an untrained adapter (A seeded uniform, B zero) on blocks' layers ending so.

        In fp32, or, without ``masters``, at the base's precision: to run it, not to train it. On
        the layers' device, or on another: beside a base that has no weights yet.

        Raises:
            ValueError: no module of the transformer matches.
        """
        # By whole names: peft would take "proj_out" for the transformer's own last layer, too.
        endings = tuple(f".{module}" for module in modules)
        layers = self.transformer.named_modules()
        names = [name for name, layer in layers if name.endswith(endings) and _linear(layer)]
        if not names:
            raise ValueError(f"no module of the transformer ends in any of {', '.join(modules)}")
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, init_lora_weights=True)
        self._inject(config, name, torch.float32 if masters else self.dtype, device)
        generator = torch.Generator().manual_seed(seed)
        for layer in self._layers_with(name).values():
            down = layer.lora_A[name].weight
            bound = down.shape[1] ** -0.5
            with torch.no_grad():
                down.copy_(torch.rand(down.shape, generator=generator) * 2 * bound - bound)
                layer.lora_B[name].weight.zero_()

    def add_file(self, name: str, lora: LoraFile) -> None:
        """Add a frozen adapter with a file's weights; ranks and alphas may differ by module."""
        settings = peft_settings(lora.modules)
        for patterns in ("rank_pattern", "alpha_pattern"):
            settings[patterns] = _by_value(settings[patterns])
        config = LoraConfig(**settings)
        slot = f"file{self._injected}"
        self._injected += 1
        self._injected_as[name] = slot
        self._inject(config, slot, self.dtype)
        self._copy_in(name, lora.modules)

    def overwrite(self, old: str, name: str, lora: LoraFile) -> None:
        """Let a frozen adapter of the same modules and ranks become another: a copy, no injection.

        A thousand times cheaper than injecting at full size, where peft walks 840 layers.
        """
        self._copy_in(old, lora.modules)
        slot = self._injected_as.pop(old)
        self._injected_as[name] = slot
        for module, weights in lora.modules.items():
            layer, rank = self.layers[module], weights.down.shape[0]
            alpha = rank if weights.alpha is None else weights.alpha
            layer.lora_alpha[slot], layer.scaling[slot] = alpha, alpha / rank

    def replace(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Copy weights (as :meth:`state` gives them) into an adapter, in place."""
        own = self.state(name)
        assert own.keys() == weights.keys(), f"adapter {name!r} has other tensors"
        with torch.no_grad():
            for key, value in weights.items():
                own[key].copy_(own_part(value, own[key]))

    def remove(self, name: str) -> None:
        """Forget an adapter's weights."""
        slot = self._injected_as.pop(name, name)
        for layer in self._layers_with(slot).values():
            # peft would make another adapter active and trained in the place of an active one.
            layer._active_adapter = [BASE]
            layer.delete_adapter(slot)
        getattr(self.transformer, "peft_config", {}).pop(slot, None)

    def slot(self, name: str) -> str:
        """The name that an adapter has within peft's layers."""
        return self._injected_as.get(name, name)

    def state(self, name: str) -> dict[str, Tensor]:
        """An adapter's live tensors, ``<module>.lora_A`` and ``<module>.lora_B``, in order."""
        state: dict[str, Tensor] = {}
        slot = self.slot(name)
        for module, layer in sorted(self._layers_with(slot).items()):
            state[f"{module}.lora_A"] = layer.lora_A[slot].weight
            state[f"{module}.lora_B"] = layer.lora_B[slot].weight
        return state

    def parameters(self, name: str) -> list[nn.Parameter]:
        """An adapter's tensors as parameters, in the order of :meth:`state`."""
        return [p for p in self.state(name).values() if isinstance(p, nn.Parameter)]

    def train_only(self, *names: str) -> None:
        """Let gradients reach the named adapters and nothing else."""
        self.transformer.requires_grad_(False)
        for name in names:
            for parameter in self.parameters(name):
                parameter.requires_grad_(True)

    @contextmanager
    def use(self, *names: str) -> Iterator[None]:
        """Run under one adapter, or under one name a sample (:data:`BASE` for the bare base).

        Outside of any ``use`` the base is bare. A backward pass belongs inside, for gradient
        checkpointing runs the forward again.
        """
        before = self._selected
        self._select(tuple(self.slot(name) for name in names))
        try:
            yield
        finally:
            self._select(before)

    def _select(self, names: tuple[str, ...]) -> None:
        self._selected = names
        one = names[0] if self._is_one() else BASE
        # peft's public setter toggles requires_grad of every adapter of every layer.
        for layer in self.layers.values():
            layer._active_adapter = [one]

    def _is_one(self) -> bool:
        return len(set(self._selected)) == 1

    def _layers_with(self, name: str) -> dict[str, LoraLayer]:
        return {m: layer for m, layer in self.layers.items() if name in layer.lora_A}

    @property
    def dtype(self) -> torch.dtype:
        """The base's precision; of a quantised base that of its results."""
        return precision_of(self.transformer)

    def _inject(
        self, config: LoraConfig, name: str, dtype: torch.dtype, device: str | None = None
    ) -> None:
        # peft's injection selects an adapter and decides anew what is trained: undo both.
        trained = [p for p in self._all_parameters() if p.requires_grad]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            inject_adapter_in_model(config, self.transformer, adapter_name=name)
        for module, layer in self.transformer.named_modules():
            if isinstance(layer, LoraLayer) and module not in self.layers:
                self.layers[module] = layer
                layer.register_forward_pre_hook(self._pass_names, with_kwargs=True)
        for layer in self._layers_with(name).values():
            layer.cast_input_dtype_enabled = False
            for halves in (layer.lora_A, layer.lora_B):
                weight = halves[name].weight.to(dtype)
                if device is not None:
                    weight = torch.empty_like(weight, device=device)
                halves[name] = MasterLinear(
                    weight.shape[1], weight.shape[0], bias=False, device="meta"
                )
                halves[name].weight = nn.Parameter(weight)
        for parameter in self._all_parameters():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self._select(self._selected)

    def _all_parameters(self) -> Iterator[nn.Parameter]:
        for layer in self.layers.values():
            yield from layer.lora_A.parameters()
            yield from layer.lora_B.parameters()

    def _pass_names(
        self, layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        if self._is_one():
            return args, kwargs
        # A transformer with ``zero_cond_t`` modulates each sample twice: at t, then at 0.
        rows = args[0]
        assert isinstance(rows, Tensor)
        times = rows.shape[0] // len(self._selected)
        return args, kwargs | {"adapter_names": list(self._selected) * times}

    def _copy_in(self, name: str, modules: Mapping[str, LoraModule]) -> None:
        slot = self.slot(name)
        with torch.no_grad():
            for module, weights in modules.items():
                layer = self.layers[module]
                # From pinned memory a copy does not wait for the one before.
                layer.lora_A[slot].weight.copy_(weights.down, non_blocking=True)
                layer.lora_B[slot].weight.copy_(weights.up, non_blocking=True)


def _by_value(patterns: Mapping[str, float]) -> dict[str, float]:
    """One regular expression a value: peft tries each pattern on each module.

    840 modules of 840 patterns take it 20 s, beyond what Python's ``re`` keeps compiled.
    """
    names: dict[float, list[str]] = {}
    for pattern, value in patterns.items():
        names.setdefault(value, []).append(pattern)
    return {"|".join(alike): value for value, alike in names.items()}


def _linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, LoraLayer))


class TeacherCache:
    """Teacher adapters by content hash: host memory for all seen, a few slots on the device.

    The least recently used adapter leaves its slot when another needs it: one of the same modules
    and ranks if there is one, whose tensors are then overwritten in place.
    """

    def __init__(self, adapters: Adapters, resident: int) -> None:
        if resident < 1:
            raise ValueError(f"adapters_resident must be at least 1, not {resident}")
        self.adapters = adapters
        self.resident = resident
        self.loads = 0
        self.injections = 0
        self._host: dict[str, LoraFile] = {}
        self._slots: OrderedDict[str, None] = OrderedDict()

    def groups(self, keys: Sequence[str | None]) -> list[list[int]]:
        """Rows to score together, each group of no more teachers than there are slots.

        ``keys`` names the teacher of each row, None where that is the base, which needs no slot.
        One group wherever all fit.
        """
        order = {key: i for i, key in enumerate(dict.fromkeys(k for k in keys if k is not None))}
        groups: dict[int, list[int]] = {}
        for row, key in enumerate(keys):
            group = 0 if key is None else order[key] // self.resident
            groups.setdefault(group, []).append(row)
        return list(groups.values())

    def ensure(self, wanted: Mapping[str, Path]) -> None:
        """Make the adapters (content hash to file) resident, all at once usable in one batch.

        Raises:
            ValueError: more adapters than slots, or a bad file.
            StorageError: a file's content is not what its key says.
        """
        if len(wanted) > self.resident:
            raise ValueError(
                f"one batch needs {len(wanted)} teacher adapters but adapters_resident is "
                f"{self.resident}; raise it or lower the batch"
            )
        for key in wanted:
            if key in self._slots:
                self._slots.move_to_end(key)
        for key, path in wanted.items():
            if key not in self._slots:
                self._load(key, self._on_host(key, path), wanted)

    def _load(self, key: str, lora: LoraFile, wanted: Mapping[str, Path]) -> None:
        self.loads += 1
        if len(self._slots) == self.resident:
            free = [old for old in self._slots if old not in wanted]
            alike = [old for old in free if _ranks(self._host[old]) == _ranks(lora)]
            leaving = (alike or free)[0]
            del self._slots[leaving]
            if alike:
                self.adapters.overwrite(leaving, key, lora)
                self._slots[key] = None
                return
            self.adapters.remove(leaving)
        self.injections += 1
        self.adapters.add_file(key, lora)
        self._slots[key] = None

    def _on_host(self, key: str, path: Path) -> LoraFile:
        """An adapter as a slot will have it, in pinned memory where a GPU will fetch it."""
        if key not in self._host:
            path = at_hand(path)
            if content_hash(path) != key:
                what = "damaged, or replaced while the run uses it"
                raise StorageError(f"{path}: {what}; run again")
            lora = read_lora(path, linear_shapes(self.adapters.transformer))
            modules = {name: self._prepared(module) for name, module in lora.modules.items()}
            self._host[key] = replace(lora, modules=modules)
        return self._host[key]

    def _prepared(self, module: LoraModule) -> LoraModule:
        down, up = module.down.to(self.adapters.dtype), module.up.to(self.adapters.dtype)
        if torch.cuda.is_available():
            down, up = down.pin_memory(), up.pin_memory()
        return replace(module, down=down, up=up)


def _ranks(lora: LoraFile) -> dict[str, int]:
    return {name: module.down.shape[0] for name, module in lora.modules.items()}
