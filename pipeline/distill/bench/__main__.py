"""The bench on one machine, without Ray, on random weights of the true size.

Each row stands alone: one that runs out of memory or whose attention backend is not installed is
recorded with its error. Of a teacher's 40 steps two are timed.
"""

import argparse
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.distill.bench.cases import Bench, Forwards, Row, TeacherProcess, student_update
from pipeline.distill.bench.measure import Record, machine, matrix_peak
from pipeline.distill.bench.model import FULL, MINI

GPU_BACKENDS = ("native", "_native_cudnn", "_native_flash", "flash", "_flash_3", "sage")
CPU_BACKENDS = ("native", "_native_math")
PARTS = ("update", "teacher", "forwards", "published", "compiled")
# What a full-size run is held against, on a card of 141 GB.
MOST_GIB, MOST_GIB_QUANTIZED = 125.0, 80e9 / 2**30
LEAST_MFU = 0.40
MOST_SWITCH, MOST_OF_ROLLOUT, MOST_OF_PUBLISHED = 0.15, 0.02, 0.4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; returns the exit code."""
    arguments = _parser().parse_args(argv)
    device = torch.device(arguments.device)
    full = arguments.size == "full"
    size = FULL if full else MINI
    out = arguments.out or Path("runs") / "bench" / f"{arguments.size}.json"
    record = Record(out, machine(device) | {"size": arguments.size})
    peak = matrix_peak(device, size.dtype)
    record.about["matrix_peak_tflops"] = peak / 1e12
    print(f"matrix products: {peak / 1e12:.4g} TFLOP/s")
    bench = Bench(size, device, peak, arguments.repeats or (3 if full else 1))
    # What a run is bought by stands first: whoever has the machine for minutes has these rows.
    parts = arguments.parts
    if "update" in parts:
        for quantize in (False, True):
            name = "student update, float8 base" if quantize else "student update"
            record.add(name, lambda q=quantize: student_update(bench, q))  # type: ignore[misc]
    if "teacher" in parts:
        _teacher(record, bench, arguments.scratch)
    if not {"forwards", "published", "compiled"}.isdisjoint(parts):
        _forwards(record, bench, full, parts)
    record.about["bars"] = bars({row["name"]: row for row in record.rows})
    record.write()
    # The bars are of the full size alone.
    for bar in record.about["bars"] if full else ():
        print(bar)
    print(out)
    return 0


def bars(rows: dict[str, Row]) -> list[str]:
    """What a full-size run is held against, with what was found."""

    def found(row: str, key: str) -> float | None:
        value = rows.get(row, {}).get(key)
        return None if value is None else float(value)

    def line(what: str, value: float | None, bound: float, most: bool = True) -> str:
        if value is None:
            return f"{what}: not measured"
        met = value <= bound if most else value >= bound
        sign = "at most" if most else "at least"
        return f"{what}: {value:.4g}, {sign} {bound:.4g}: {'met' if met else 'NOT MET'}"

    def share(a: float | None, b: float | None) -> float | None:
        return None if a is None or not b else a / b

    switch = found("adapter switch", "seconds_from_host")
    update = found("student update", "seconds")
    best = [float(r["mfu"]) for name, r in rows.items() if "train" in name and "mfu" in r]
    return [
        line("student process, GiB", found("student update", "peak_gib"), MOST_GIB),
        line(
            "the same on a float8 base, GiB",
            found("student update, float8 base", "peak_gib"),
            MOST_GIB_QUANTIZED,
        ),
        line("best MFU of forward + backward", max(best, default=None), LEAST_MFU, most=False),
        line("adapter switch from host, s", switch, MOST_SWITCH),
        line("its share of a rollout", share(switch, found("rollout", "seconds")), MOST_OF_ROLLOUT),
        line(
            "student update over the published one",
            share(update, found("published update, emulated", "seconds")),
            MOST_OF_PUBLISHED,
        ),
    ]


def _teacher(record: Record, bench: Bench, scratch: str | None) -> None:
    """The rows of a teacher actor's process."""
    with (
        tempfile.TemporaryDirectory(dir=scratch) as folder,
        _built(record, lambda: TeacherProcess(bench, Path(folder))) as teacher,
    ):
        if teacher is not None:
            record.add("rollout", teacher.rollout)
            record.add("target", teacher.target)
            # Last, for it leaves one more teacher on the card.
            record.add("adapter switch", teacher.switches)


def _forwards(record: Record, bench: Bench, full: bool, parts: Collection[str]) -> None:
    """Rows of one model alone, with a student adapter."""
    with _built(record, lambda: Forwards.of(bench)) as forwards:
        if forwards is None:
            return
        backend = "native"
        if "forwards" in parts:
            backend = _fastest_attention(record, forwards) or backend
            for batch in (2, 3, 4) if full else (2,):
                _both(record, forwards, backend, batch)
        if "published" in parts:
            record.add("published update, emulated", forwards.published)
        if full and "compiled" in parts:
            # One block compiled serves all: the first call of each kind compiles.
            forwards.editor.transformer.compile_repeated_blocks()
            for batch in (1, 2):
                _both(record, forwards, f"{backend} compiled", batch, warmup=3)


def _both(
    record: Record, forwards: Forwards, name: str, batch: int, warmup: int = 1
) -> float | None:
    """A forward's row and a training row; returns the seconds of the latter."""
    found: Row | None = None
    for kind, train in (("forward", False), ("train", True)):
        label = f"{kind}, {name}, batch {batch}"
        found = record.add(label, lambda t=train: forwards.row(batch, t, warmup))  # type: ignore[misc]
    return None if found is None else float(found["seconds"])


def _fastest_attention(record: Record, forwards: Forwards) -> str | None:
    """Rows of every attention backend at batch 1; the one that trains fastest is left set."""
    transformer: Any = forwards.editor.transformer
    seconds: dict[str, float] = {}
    for backend in GPU_BACKENDS if forwards.bench.device.type == "cuda" else CPU_BACKENDS:
        try:
            transformer.set_attention_backend(backend)
        except Exception as error:
            record.fail(f"attention {backend}", error)
            continue
        trained = _both(record, forwards, backend, 1)
        if trained is not None:
            seconds[backend] = trained
    if not seconds:
        return None
    best = min(seconds, key=lambda name: seconds[name])
    transformer.set_attention_backend(best)
    record.about["attention"] = best
    return best


@contextmanager
def _built(record: Record, build: Any) -> Iterator[Any]:
    """What ``build`` gives, or None with the reason on record; freed after the block."""
    held: list[Any] = []

    def first() -> Row:
        held.append(build())
        return {}

    record.add("built", first)
    try:
        yield held.pop() if held else None
    finally:
        held.clear()


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.distill.bench",
        description=__doc__,
        epilog="example: python -m pipeline.distill.bench --size full --out bench_h200.json",
    )
    parser.add_argument("--size", choices=("full", "mini"), default="full")
    parser.add_argument("--out", type=Path, help="the record, JSON (default runs/bench/SIZE.json)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--repeats", type=count, help="timed calls of a row (default 3, mini 1)")
    parser.add_argument("--scratch", help="where 5 GB of adapters go for a while")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    raise SystemExit(main())
