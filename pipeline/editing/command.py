"""``collectionlora edit``: files in, edited files and a grid out."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.problems import InputError, Problem

if TYPE_CHECKING:
    from pipeline.editing.files import Edit
    from pipeline.editing.student_export import StudentExport

GRID_FILE = "grid.png"
RECORD_FILE = "edits.json"
DEVICES, DTYPES = ("cpu", "cuda"), ("float32", "bfloat16", "float16")


def add_edit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    from pipeline.editing.jobs import ORDERS

    text = "edit pictures with an exported student: one effect, or two composed"
    command = commands.add_parser(
        "edit",
        help=text,
        description=f"{text}. Pictures are files, folders or globs. Each picture is made with "
        "each --effect and each seed; with --then, that effect is added to each.",
        epilog="example: collectionlora edit --adapter runs/demo/student --effect snow "
        "--then sunset photographs/ --seeds 0,1 --out runs/edits",
    )
    command.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder or glob")
    add_model_arguments(command)
    command.add_argument(
        "--effect", action="append", default=[], metavar="A", help="may be given again; 'all'"
    )
    command.add_argument("--then", metavar="B", help="a second effect, added to the first")
    command.add_argument(
        "--order",
        choices=ORDERS,
        default=ORDERS[0],
        help="with --then: one instruction naming both (together), or B on A's outcome (in_turn)",
    )
    command.add_argument("--seeds", default="0", metavar="N,N", help="one picture a seed")
    command.add_argument("--out", type=Path, help=f"folder for the pictures and {GRID_FILE}")
    command.add_argument("--batch", type=int, default=8, help="pictures a forward")
    command.add_argument("--list", action="store_true", help="the effects, and nothing else")
    command.set_defaults(command=run_edit)


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """What every command that runs an export asks: the export, its base, where it computes."""
    command.add_argument(
        "--adapter", type=Path, required=True, metavar="DIR", help="an export: a student/ folder"
    )
    command.add_argument(
        "--base",
        metavar="BASE",
        help="the base model's folder or hf:// address; else the one that the export names",
    )
    command.add_argument("--device", choices=DEVICES, help="cuda where there is one, else cpu")
    command.add_argument("--dtype", choices=DTYPES, help="bfloat16 on cuda, float32 on cpu")


def run_edit(arguments: argparse.Namespace) -> None:
    """Make the pictures; print the paths of what was made."""
    from pipeline.editing.files import find_images, plan_edits
    from pipeline.editing.student_export import read_export

    export = read_export(arguments.adapter, arguments.base)
    if arguments.list:
        width = max(map(len, export.prompts))
        for name, prompt in export.prompts.items():
            print(f"{name:{width}}  {prompt}")
        return
    problems: list[Problem] = []
    wanted = arguments.effect
    names = list(export.prompts) if wanted == ["all"] else list(dict.fromkeys(wanted))
    if not names:
        problems.append(_flag("--effect", None, "none given", "name one; --list shows them"))
    problems += export.check_effects(names, "--effect")
    if arguments.then is not None:
        problems += export.check_effects([arguments.then], "--then")
    seeds = _seeds(arguments.seeds, problems)
    if arguments.out is None:
        problems.append(_flag("--out", None, "none given", "name a folder for the pictures"))
    elif (taken := _no_folder(arguments.out)) is not None:
        what = f"{taken} is not a folder"
        problems.append(_flag("--out", str(arguments.out), what, "name another folder"))
    if arguments.batch < 1:
        problems.append(_flag("--batch", arguments.batch, "not positive", "give 1 or more"))
    sources = find_images(arguments.images, problems)
    if problems:
        raise InputError(problems)
    combinations = [(name, arguments.then) if arguments.then else (name,) for name in names]
    edits = plan_edits(sources, combinations, seeds, arguments.out)
    _make(arguments, export, edits)


def _make(arguments: argparse.Namespace, export: "StudentExport", edits: Sequence["Edit"]) -> None:
    from tqdm import tqdm

    from pipeline.editing.files import open_all
    from pipeline.editing.grid import grid
    from pipeline.editing.jobs import EditJob, prepare
    from pipeline.editing.student_editor import StudentEditor
    from pipeline.storage import write_atomic

    device, dtype = resolve_device(arguments.device, arguments.dtype)
    editor = StudentEditor(export, device, dtype)
    geometry = editor.editor.geometry
    if geometry.sizes.square:
        print("this base knows square pictures alone: each is cut to its middle", file=sys.stderr)
    unreadable: dict[Path, Problem] = {}
    done: list[Edit] = []
    progress = tqdm(total=len(edits), desc="edit", unit="picture")
    for chunk in _chunks(edits, arguments.batch):
        images = open_all(chunk, unreadable)
        ready = [edit for edit in chunk if edit.source in images]
        jobs = [
            EditJob(prepare(images[e.source], geometry), e.effects, e.seed, arguments.order)
            for e in ready
        ]
        for edit, picture in zip(ready, editor.edit(jobs), strict=True):
            write_atomic(edit.out, picture.save)
        done += ready
        progress.update(len(chunk))
    progress.close()
    if done:
        rows = [
            {"file": e.out.name, "source": str(e.source), "effects": e.effects, "seed": e.seed}
            for e in done
        ]
        record = {"adapter": str(export.folder), "order": arguments.order, "edits": rows}
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        write_atomic(arguments.out / RECORD_FILE, text.encode())
        sheet = grid(done, geometry)
        write_atomic(arguments.out / GRID_FILE, sheet.save)
        for edit in done:
            print(edit.out)
        print(arguments.out / GRID_FILE)
    if unreadable:
        raise InputError(list(unreadable.values()))


def resolve_device(device: str | None, dtype: str | None) -> tuple[str, str]:
    """The device and precision to run on, where they are left open.

    Raises:
        InputError: cuda was asked for and there is none.
    """
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise InputError([_flag("--device", device, "no such device here", "use cpu")])
    device = device or ("cuda" if there else "cpu")
    return device, dtype or ("bfloat16" if device == "cuda" else "float32")


def _seeds(text: str, problems: list[Problem]) -> list[int]:
    from pipeline.editing.jobs import MAX_SEED

    # Python refuses to read numbers of thousands of digits.
    parts = text.split(",")
    seeds = [int(part) if part.isdecimal() and len(part) <= 10 else -1 for part in parts]
    if any(not 0 <= seed <= MAX_SEED for seed in seeds):
        remedy = f"give whole numbers from 0 to {MAX_SEED}, with commas between"
        problems.append(_flag("--seeds", text, "not a list of seeds", remedy))
    return list(dict.fromkeys(seeds))


def _no_folder(path: Path) -> Path | None:
    """What stands in the way of making a folder."""
    there = next((p for p in (path, *path.parents) if p.exists() or p.is_symlink()), None)
    return there if there is not None and not there.is_dir() else None


def _flag(name: str, value: object, what: str, remedy: str) -> Problem:
    return Problem(name, "", value, what, remedy)


def _chunks(edits: Sequence["Edit"], size: int) -> Iterator[Sequence["Edit"]]:
    for start in range(0, len(edits), size):
        yield edits[start : start + size]
