"""Build the miniature editor from nothing: autoencoder, text encoder, transformer, folder.

``collectionlora miniature build`` runs this; the result is committed under ``miniature/base``
with ``scores.json``. The folder has the ``QwenImageEditPlusPipeline`` layout, so everything
downstream treats it as it would the 20 B model.
"""

import json
import math
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers import QwenImageTransformer2DModel as Transformer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from pipeline.miniature import photographs
from pipeline.miniature.autoencoder import (
    CHANNELS,
    single_frame_convolutions,
    solved_autoencoder,
    train_decoder,
)
from pipeline.miniature.edits import GENERAL_EDITS, apply_edit
from pipeline.miniature.effects import EFFECTS
from pipeline.miniature.pictures import to_image
from pipeline.miniature.textencoder import (
    CONDITION_SIDE,
    HIDDEN,
    new_processor,
    new_text_encoder,
    train_tokenizer,
)
from pipeline.models.editor import Conditions, batch_conditions
from pipeline.models.geometry import SIZES_FILE
from pipeline.models.latents import pack
from pipeline.models.qwen_image_edit import PICTURE, TEMPLATE, QwenImageEditor

SIDE = 64
TOKENS = SIDE // 16
SHAPES = [(1, TOKENS, TOKENS), (1, TOKENS, TOKENS)]


def instruction(
    rng: np.random.Generator, x: NDArray[np.float32]
) -> tuple[str, NDArray[np.float32]]:
    """A random general instruction and its true outcome on ``x``.

    One in ten is empty (for classifier-free guidance), one in five asks for two edits in turn.
    """
    names = list(GENERAL_EDITS)
    wording = []
    for _ in range(2 if rng.random() < 0.2 else 1):
        name = str(rng.choice(names))
        x = apply_edit(name, x, rng)
        wording.append(str(rng.choice(GENERAL_EDITS[name].wordings)))
    return ("" if rng.random() < 0.1 else ", then ".join(wording)), x


def new_transformer() -> Transformer:
    """An untrained transformer: the full-size class, 4 blocks of width 128.

    Modulations and the output start at zero (adaLN-Zero, Peebles and Xie 2023): without it a
    transformer this small spends its budget getting stable.
    """
    transformer = Transformer(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=HIDDEN,
        axes_dims_rope=(8, 12, 12),
    )
    for block in transformer.transformer_blocks:
        for modulation in (block.img_mod[1], block.txt_mod[1]):
            torch.nn.init.zeros_(modulation.weight)
            torch.nn.init.zeros_(modulation.bias)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return transformer


class Pool:
    """Encoded training samples: source and target tokens and prompt states, held in memory."""

    def __init__(self, editor: QwenImageEditor, count: int, seed: int) -> None:
        self.sources, self.targets = torch.empty(2, count, TOKENS**2, 4 * CHANNELS)
        self.embeds: list[Tensor] = []
        for i in tqdm(range(count), "encode the base's samples", mininterval=20):
            rng = np.random.default_rng([seed, i])
            source = photographs.varied(SIDE, rng)
            prompt, target = instruction(rng, source)
            pair = torch.from_numpy(np.stack([source, target])).permute(0, 3, 1, 2) * 2 - 1
            latents = editor.vae.encode(pair.unsqueeze(2)).latent_dist.mode()
            tokens = pack(editor.normalise(latents)[:, :, 0])
            self.sources[i], self.targets[i] = tokens[0], tokens[1]
            self.embeds.append(editor.encode_prompt(prompt, [to_image(source)]))

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Conditions]:
        rows = rng.integers(0, len(self.embeds), size)
        conditions = batch_conditions(
            [self.embeds[i] for i in rows], [self.sources[i] for i in rows], list(SHAPES)
        )
        return self.targets[rows], conditions


def _optimizers(model: Transformer) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the blocks' matrices, AdamW for the rest.

    After 600 steps of batch 32 the loss stood at 0.69 with Muon and at 1.16 with AdamW alone.
    """
    matrices = [p for p in model.transformer_blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0.03, weight_decay=0.0),
        torch.optim.AdamW(others, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def train_transformer(
    editor: QwenImageEditor, pool: Pool, steps: int, batch: int, seed: int
) -> list[float]:
    """Flow matching on the pool; ``editor.transformer`` ends as the trained average."""
    model = editor.transformer.requires_grad_(True).train()
    optimizers = _optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    warmup = 150
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    losses: list[float] = []
    start = time.monotonic()
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        y, conditions = pool.batch(rng, batch)
        noise = torch.from_numpy(rng.standard_normal(y.shape, dtype=np.float32))
        u = torch.from_numpy(rng.random(batch, dtype=np.float32))
        # Half the samples at shift 3: the noisy end decides what the edit is.
        shift = torch.where(torch.arange(batch) % 2 == 0, 3.0, 1.0)
        t = shift * u / (1 + (shift - 1) * u)
        tt = t[:, None, None]
        v = editor.velocity((1 - tt) * y + tt * noise, t, conditions)
        loss = ((v - (noise - y)) ** 2).mean()
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        late = 0.5 * (1 + math.cos(math.pi * step / steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / warmup, max(late, 0.01))
            optimizer.step()
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        losses.append(loss.item())
        if step % 50 == 49:
            left = (time.monotonic() - start) / (step + 1) * (steps - step - 1)
            recent = float(np.mean(losses[-50:]))
            print(f"base {step + 1}/{steps}  loss {recent:.4f}  ETA {left:.0f} s", flush=True)
    model.load_state_dict(average)
    model.requires_grad_(False).eval()
    return losses


@torch.no_grad()
def score_base(editor: QwenImageEditor, crops: int, steps: int, seed: int) -> dict[str, float]:
    """PSNR (dB) of each general edit on held-out photographs: sampled, against the truth."""
    scores: dict[str, float] = {}
    sources = [p for _, p in photographs.crops("test", crops, SIDE, seed)]
    grid = (TOKENS, TOKENS)
    tokens = editor.encode_images([to_image(p) for p in sources])
    sigmas = torch.linspace(1, 0, steps + 1)
    for name, edit in GENERAL_EDITS.items():
        truth = np.stack(
            [apply_edit(name, p, np.random.default_rng([seed, i])) for i, p in enumerate(sources)]
        )
        embeds = [editor.encode_prompt(edit.wordings[0], [to_image(p)]) for p in sources]
        conditions = batch_conditions(embeds, tokens, list(SHAPES))
        x = torch.randn(torch.stack(tokens).shape, generator=torch.Generator().manual_seed(seed))
        for now, after in pairwise(sigmas):
            x = x + (after - now) * editor.velocity(x, now.expand(len(x)), conditions)
        out = editor.decode(x, grid).permute(0, 2, 3, 1).numpy()
        scores[name] = float(-10 * np.log10(((out - truth) ** 2).mean((1, 2, 3))).mean())
    return scores


def save_base(editor: QwenImageEditor, folder: Path) -> None:
    """Write the folder in half precision, in the stock pipeline's layout."""
    half = torch.float16
    editor.transformer.to(half).save_pretrained(folder / "transformer")
    editor.vae.to(half).save_pretrained(folder / "vae")
    editor.text_encoder.to(half).save_pretrained(folder / "text_encoder")
    editor.processor.save_pretrained(folder / "processor")
    editor.processor.tokenizer.save_pretrained(folder / "tokenizer")
    editor.scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "QwenImageEditPlusPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "processor": ["transformers", "Qwen2VLProcessor"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    _shrink(folder)


def _shrink(folder: Path) -> None:
    """Store zeros in a byte each and JSON without spaces: the repository keeps this folder.

    The solved encoder leaves whole kernels unused; zero is exact in any precision, and loading
    casts every tensor to the precision asked for.
    """
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {
        name: t if t.any() else t.to(torch.float8_e4m3fn) for name, t in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    for vocabulary in folder.glob("*/tokenizer.json"):
        content = json.loads(vocabulary.read_text(encoding="utf-8"))
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        vocabulary.write_text(text, encoding="utf-8")


def build(
    folder: Path,
    seed: int = 0,
    decoder_steps: int = 1800,
    base_steps: int = 6000,
    pool_size: int = 20000,
) -> None:
    """Train everything and write ``folder``; about half an hour on two cores.

    The transformer first, for it needs the encoder only; then the decoder. A folder that already
    has its transformer goes on with the decoder.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"side": SIDE, "condition_side": CONDITION_SIDE, "square": True}
    (folder / SIZES_FILE).write_text(json.dumps(sizes))
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    losses_file = folder / "losses.json"
    if not losses_file.exists():
        editor = QwenImageEditor(folder, torch.device("cpu"))
        editor.vae = solved_autoencoder(SIDE, seed).requires_grad_(False)
        tokenizer = train_tokenizer(_tokenizer_texts(), vocabulary=1200)
        editor.processor = new_processor(tokenizer)
        editor.text_encoder = new_text_encoder(tokenizer, seed).requires_grad_(False)
        torch.manual_seed(seed)
        editor.transformer = new_transformer()
        with single_frame_convolutions(), torch.no_grad():
            pool = Pool(editor, pool_size, seed)
        losses = train_transformer(editor, pool, base_steps, batch=32, seed=seed)
        save_base(editor, folder)
        losses_file.write_text(json.dumps(losses[:: max(1, base_steps // 200)]))
    # In half precision as it will be used, then back to single.
    editor = QwenImageEditor.load(folder, ["transformer", "vae", "text"])
    editor.vae.requires_grad_(True)
    psnr = train_decoder(editor.vae, decoder_steps, SIDE, seed=seed)
    save_base(editor, folder)
    saved = QwenImageEditor.load(folder, ["transformer", "vae", "text"])
    general = score_base(saved, crops=10, steps=20, seed=seed)
    scores = {
        "seed": seed,
        "autoencoder_psnr_db": {
            "training_pictures": psnr,
            "held_out_photographs": autoencoder_ceiling(saved, crops=40, seed=seed),
        },
        "base_loss": float(np.mean(json.loads(losses_file.read_text())[-10:])),
        "general_edits_psnr_db": general,
        "general_edits_mean_psnr_db": float(np.mean(list(general.values()))),
        "steps": {"decoder": decoder_steps, "base": base_steps, "batch": 32},
    }
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


def autoencoder_ceiling(editor: QwenImageEditor, crops: int, seed: int) -> float:
    """Mean PSNR (dB) of held-out crops through the autoencoder: no edit can be nearer."""
    pictures = [p for _, p in photographs.crops("test", crops, SIDE, seed)]
    tokens = torch.stack(editor.encode_images([to_image(p) for p in pictures]))
    out = editor.decode(tokens, (TOKENS, TOKENS)).permute(0, 2, 3, 1).numpy()
    errors = ((out - np.stack(pictures)) ** 2).mean((1, 2, 3))
    return float(-10 * np.log10(errors).mean())


def _tokenizer_texts() -> list[str]:
    wordings = [w for edit in GENERAL_EDITS.values() for w in edit.wordings]
    template = [TEMPLATE.format(PICTURE.format(1))] * 20
    pairs = [", then ".join(wordings[i : i + 2]) for i in range(len(wordings))]
    # A tokenizer knows the language; the transformer never sees the effects' prompts.
    effects = [text for effect in EFFECTS.values() for text in (effect.prompt, effect.description)]
    return template + wordings + pairs + effects
