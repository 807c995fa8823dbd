"""Many adapters on one base: each sample under its own, and nothing leaks."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.models.adapters import BASE, Adapters, TeacherCache
from pipeline.models.editor import Conditions
from pipeline.models.lora_formats import LoraFile, LoraModule, content_hash, write_lora
from pipeline.models.qwen_image_edit import QwenImageEditor
from pipeline.problems import StorageError
from tests.unit.tiny import (
    CHANNELS,
    COLUMNS,
    MODULES,
    PROMPT,
    ROWS,
    seeded,
    tiny_editor,
    tiny_lora,
)

TOKENS = ROWS * COLUMNS
X, T = seeded((5, TOKENS, CHANNELS), 1), torch.linspace(0.1, 0.9, 5)
SHAPES = [(1, ROWS, COLUMNS)] * 2
CONDITIONS = Conditions(seeded((5, 3, PROMPT), 2), None, seeded((5, TOKENS, CHANNELS), 3), SHAPES)


@pytest.fixture
def editor() -> QwenImageEditor:
    return tiny_editor()


@torch.no_grad()
def velocity(editor: QwenImageEditor) -> Tensor:
    return editor.velocity(X, T, CONDITIONS)


def merged(editor: QwenImageEditor, modules: dict[str, LoraModule]) -> QwenImageEditor:
    """A bare editor with ``alpha / rank * up @ down`` added to its weights."""
    other = copy.deepcopy(editor)
    for name, m in modules.items():
        rank = m.down.shape[0]
        scale = (rank if m.alpha is None else m.alpha) / rank
        with torch.no_grad():
            other.transformer.get_submodule(name).weight += scale * (m.up @ m.down)
    return other


RANKS = {"attn.to_q": 2, "img_mlp.net.2": 5, "txt_mod.1": 1, "attn.to_out.0": 3}
ALPHAS: dict[str, float | None] = {"attn.to_q": 1.0, "img_mlp.net.2": None, "txt_mod.1": 3.5}


def test_ranks_and_alphas_are_a_modules_own(editor: QwenImageEditor) -> None:
    modules = tiny_lora(editor, RANKS, ALPHAS, 0)
    assert len(modules) == 4
    expected = velocity(merged(editor, modules))
    base = velocity(editor)
    adapters = Adapters(editor.transformer)
    adapters.add_file("snow", LoraFile(Path("snow"), modules))
    with adapters.use("snow"):
        assert (velocity(editor) - expected).abs().max() < 1e-5
    assert (base - expected).abs().max() > 0.05


def test_a_trained_adapters_alpha_scales_it(editor: QwenImageEditor) -> None:
    bare = copy.deepcopy(editor)
    adapters = Adapters(editor.transformer)
    adapters.add("student", 4, 6.0, MODULES, seed=1)
    base = velocity(editor)
    with adapters.use("student"):
        # B starts at zero.
        assert torch.equal(velocity(editor), base)
    weights = {
        k: seeded(v.shape, i) / 4 for i, (k, v) in enumerate(adapters.state("student").items())
    }
    adapters.replace("student", weights)
    modules = {
        key.removesuffix(".lora_A"): LoraModule(a, weights[key.replace(".lora_A", ".lora_B")], 6.0)
        for key, a in weights.items()
        if key.endswith("lora_A")
    }
    with adapters.use("student"):
        assert (velocity(editor) - velocity(merged(bare, modules))).abs().max() < 1e-5


def test_the_seed_alone_decides_an_untrained_adapter() -> None:
    states = []
    for noise in (0, 1):
        adapters = Adapters(tiny_editor().transformer)
        torch.manual_seed(noise)
        adapters.add("student", 2, 2.0, MODULES, seed=9)
        adapters.add("fake", 2, 2.0, MODULES, seed=10)
        states.append(adapters.state("student"))
        assert not torch.equal(
            *(next(iter(adapters.state(n).values())) for n in ("student", "fake"))
        )
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_unknown_modules_are_an_error(editor: QwenImageEditor) -> None:
    with pytest.raises(ValueError, match="nothing_such"):
        Adapters(editor.transformer).add("student", 2, 2.0, ["nothing_such"], seed=0)


def test_a_mixed_batch_equals_one_by_one(editor: QwenImageEditor) -> None:
    base = velocity(editor)
    adapters = Adapters(editor.transformer)
    adapters.add_file("snow", LoraFile(Path("snow"), tiny_lora(editor, RANKS, ALPHAS, 0)))
    adapters.add_file("rain", LoraFile(Path("rain"), tiny_lora(editor, {"attn.to_q": 1}, {}, 1)))
    names = ["rain", BASE, "snow", "rain", "snow"]
    with adapters.use(*names):
        mixed = velocity(editor)
    for i, name in enumerate(names):
        with adapters.use(name), torch.no_grad():
            alone = editor.velocity(X[i : i + 1], T[i : i + 1], CONDITIONS.rows([i]))
        assert (mixed[i] - alone[0]).abs().max() < 1e-5
        assert ((mixed[i] - base[i]).abs().max() < 1e-5) == (name == BASE)


def test_a_forward_walks_through_no_more_modules_for_more_adapters(
    editor: QwenImageEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a round costs the more, the more teachers a process holds."""
    adapters = Adapters(editor.transformer)
    adapters.add_file("snow", LoraFile(Path("snow"), tiny_lora(editor, RANKS, ALPHAS, 0)))
    walked: list[str] = []
    named_modules = torch.nn.Module.named_modules

    def counted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for name, part in named_modules(module, *args, **kwargs):
            walked.append(name)
            yield name, part

    def walk() -> int:
        walked.clear()
        with monkeypatch.context() as patched, adapters.use("snow"):
            patched.setattr(torch.nn.Module, "named_modules", counted)
            velocity(editor)
            assert adapters.dtype == torch.float32
        return len(walked)

    before = walk()
    adapters.add_file("rain", LoraFile(Path("rain"), tiny_lora(editor, RANKS, ALPHAS, 1)))
    assert walk() == before


def test_the_base_is_untouched(editor: QwenImageEditor) -> None:
    before = {k: v.clone() for k, v in editor.transformer.state_dict().items()}
    base = velocity(editor)
    adapters = Adapters(editor.transformer)
    for i, name in enumerate(("snow", "rain")):
        adapters.add_file(name, LoraFile(Path(name), tiny_lora(editor, RANKS, ALPHAS, i)))
    with adapters.use("snow"):
        assert not torch.equal(velocity(editor), base)
    with adapters.use(*["snow", "rain"] * 2, "rain"):
        velocity(editor)
    with adapters.use(BASE):
        assert torch.equal(velocity(editor), base)
    # Outside of any choice, too.
    assert torch.equal(velocity(editor), base)
    after = {k.replace(".base_layer", ""): v for k, v in editor.transformer.state_dict().items()}
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_a_choice_within_a_choice_gives_way_again(editor: QwenImageEditor) -> None:
    adapters = Adapters(editor.transformer)
    for i, name in enumerate(("snow", "rain")):
        adapters.add_file(name, LoraFile(Path(name), tiny_lora(editor, RANKS, ALPHAS, i)))
    mixed = ["snow", "rain", BASE, "rain", "snow"]

    def under(*names: str) -> Tensor:
        with adapters.use(*names):
            return velocity(editor)

    snow, both = under("snow"), under(*mixed)
    with adapters.use("snow"):
        under("rain")
        assert torch.equal(velocity(editor), snow)
        with adapters.use(*mixed):
            under(BASE)
            assert torch.equal(velocity(editor), both)
        assert torch.equal(velocity(editor), snow)
        # A new adapter does not take over, either.
        adapters.add_file("fog", LoraFile(Path("fog"), tiny_lora(editor, RANKS, ALPHAS, 3)))
        assert torch.equal(velocity(editor), snow)


def _trained(adapters: Adapters) -> set[str]:
    return {n for n, p in adapters.transformer.named_parameters() if p.requires_grad}


def test_gradients_reach_the_trained_adapter_alone(editor: QwenImageEditor) -> None:
    adapters = Adapters(editor.transformer)
    for seed, name in enumerate(("student", "fake")):
        adapters.add(name, 2, 2.0, MODULES, seed)
        adapters.replace(name, {k: v + 0.1 for k, v in adapters.state(name).items()})
    adapters.train_only("student", "fake")
    trained = _trained(adapters)
    # Teachers come and go in the same process: what is trained stays so.
    adapters.add_file("snow", LoraFile(Path("snow"), tiny_lora(editor, RANKS, ALPHAS, 0)))
    assert _trained(adapters) == trained
    with adapters.use("snow"):
        velocity(editor)
        adapters.remove("snow")
    assert _trained(adapters) == trained
    assert all("student" in name or "fake" in name for name in trained)

    with adapters.use("student"):
        editor.velocity(X, T, CONDITIONS).square().sum().backward()
    reached = {
        n for n, p in editor.transformer.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert reached
    assert all(".student." in name for name in reached)


def test_gradient_checkpointing_gives_the_same_gradients(editor: QwenImageEditor) -> None:
    adapters = Adapters(editor.transformer)
    adapters.add("student", 2, 2.0, MODULES, 0)
    adapters.replace("student", {k: v + 0.1 for k, v in adapters.state("student").items()})
    adapters.train_only("student")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            editor.transformer.enable_gradient_checkpointing()
        with adapters.use("student"):
            editor.velocity(X, T, CONDITIONS).square().sum().backward()
        parameters = adapters.parameters("student")
        gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
        editor.transformer.zero_grad()
    for plain, again in zip(*gradients, strict=True):
        assert (plain is None) == (again is None)
        assert plain is None or torch.allclose(plain, again, rtol=1e-5, atol=1e-6)


def test_replace_writes_in_place(editor: QwenImageEditor) -> None:
    adapters = Adapters(editor.transformer)
    adapters.add("student", 2, 2.0, MODULES, 0)
    live = adapters.state("student")
    pointers = {k: v.data_ptr() for k, v in live.items()}
    new = {k: torch.full_like(v, 0.5) for k, v in live.items()}
    adapters.replace("student", new)
    assert {k: v.data_ptr() for k, v in adapters.state("student").items()} == pointers
    assert all(torch.equal(v, new[k]) for k, v in live.items())
    new[next(iter(new))].zero_()
    assert all((v == 0.5).all() for v in live.values())
    with pytest.raises(AssertionError, match="other tensors"):
        adapters.replace("student", dict(list(new.items())[1:]))


@pytest.fixture
def files(editor: QwenImageEditor, tmp_path: Path) -> dict[str, Path]:
    made = {}
    for i in range(4):
        path = tmp_path / f"{i}.safetensors"
        modules = tiny_lora(editor, {"attn.to_q": i + 1, "img_mod.1": 2}, {"attn.to_q": 2.5}, i)
        write_lora(path, modules, {})
        made[content_hash(path)] = path
    return made


def test_an_evicted_teacher_comes_back_the_same(
    editor: QwenImageEditor, files: dict[str, Path]
) -> None:
    adapters = Adapters(editor.transformer)
    hash0, hash1, hash2, hash3 = files
    cache = TeacherCache(adapters, resident=2)

    def under(name: str) -> Tensor:
        cache.ensure({name: files[name]})
        with adapters.use(name):
            return velocity(editor)

    first = [under(name) for name in files]
    assert cache.loads == 4
    assert torch.equal(under(hash3), first[3])
    assert cache.loads == 4
    assert not adapters.state(hash0)
    # The least recently used goes: hash2 is the older of the two.
    assert torch.equal(under(hash0), first[0])
    assert adapters.state(hash3)
    assert not adapters.state(hash2)
    # From host memory: the file is no longer needed.
    files[hash1].unlink()
    assert torch.equal(under(hash1), first[1])
    assert cache.loads == 6


def test_one_batchs_teachers_are_resident_together(
    editor: QwenImageEditor, files: dict[str, Path]
) -> None:
    adapters = Adapters(editor.transformer)
    hash0, hash1, hash2, hash3 = files
    cache = TeacherCache(adapters, resident=3)

    def ensure(*names: str) -> None:
        cache.ensure({name: files[name] for name in names})

    ensure(hash0, hash1, hash2)
    ensure(hash3, hash0)
    assert all(adapters.state(n) for n in (hash0, hash2, hash3))
    with pytest.raises(ValueError, match="adapters_resident"):
        ensure(*files)
    with pytest.raises(ValueError, match="at least 1"):
        TeacherCache(adapters, resident=0)


def test_a_file_that_is_not_what_its_key_says_is_refused_by_name(
    editor: QwenImageEditor, files: dict[str, Path]
) -> None:
    cache = TeacherCache(Adapters(editor.transformer), resident=2)
    key, path = next(iter(files.items()))
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    with pytest.raises(StorageError, match=f"{path.name}: damaged, or replaced"):
        cache.ensure({key: path})
