"""The command line: one thin function a command. Exit codes: 0, 1 (ours), 2 (the input's)."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from pipeline.cli_runs import add_compare, add_completion, add_promote
from pipeline.editing.command import add_edit
from pipeline.mirror import readable
from pipeline.problems import InputError, storage_failure
from pipeline.serving.command import add_app

REPORTS = (
    "main",
    "ablation",
    "scale",
    "growth",
    "composition",
    "generality",
    "prompts",
    "deployment",
)
STAGE_HELP = {
    "run": "bring the whole run up to date: every stage, in order",
    "prompts": "write triggers and captions (AOP) to prompts.json",
    "encode": "encode prompts and images once, to Parquet",
    "teach": "train the effect LoRAs that the bank does not bring",
    "targets": "make the teachers' multi-step outputs",
    "distill": "distil the bank into one student LoRA",
    "evaluate": "score base, teachers and student on held-out photographs",
    "export": "write the folder that stock diffusers loads",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    # Each process may use the library's threads for little; actors set their own number.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return int(arguments.command(arguments) or 0)
    except InputError as error:
        for problem in error.problems:
            print(f"error: {readable(str(problem))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        failure = storage_failure(error)
        if failure is None:
            raise
        # On a line of its own, whatever progress bar was being drawn.
        tqdm.write(f"error: {readable(str(failure))}", file=sys.stderr)
        return 1


def run() -> NoReturn:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="collectionlora",
        description="Distil dozens of effect LoRAs and few-step generation into one LoRA, on Ray.",
        epilog="example: collectionlora run pipeline/recipes/demo.yaml",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in STAGE_HELP.items():
        command = _command(commands, name, text, f"{name} pipeline/recipes/demo.yaml --dry-run")
        _add_recipe(command)
        command.add_argument(
            "--dry-run", action="store_true", help="print what would run, its size and its cost"
        )
        command.add_argument(
            "--from",
            dest="start",
            metavar="DIR",
            help="add effects to this finished student: a LoRA file, or another output's export",
        )
        command.set_defaults(command=_stage, stage="export" if name == "run" else name)
    validate = _command(
        commands,
        "validate",
        "find all mistakes of a recipe and its bank before any work",
        "validate pipeline/recipes/demo.yaml",
    )
    _add_recipe(validate)
    validate.set_defaults(command=_validate)
    add = partial(_command, commands)
    add_compare(add)
    add_promote(add)
    bench = _command(
        commands,
        "bench",
        "the evidence: the student against everything one would do instead",
        "bench pipeline/recipes/bench.yaml --report main",
    )
    _add_recipe(bench)
    bench.add_argument("--report", action="append", choices=REPORTS, help="one or more; else all")
    bench.add_argument("--quick", action="store_true", help="minutes, to try it; means nothing")
    bench.add_argument("--redraw", action="store_true", help="tables and figures from their JSON")
    bench.set_defaults(command=_bench)
    _add_init(commands)
    _add_convert(commands)
    add_edit(commands)
    add_app(commands)
    _add_miniature(commands)
    _add_status(commands)
    _add_chaos(commands)
    add_completion(add, _parser)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=text, description=text, epilog=f"example: collectionlora {example}"
    )


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="a recipe, such as pipeline/recipes/demo.yaml")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a field, such as distill.rounds=100; may be given again",
    )


def _add_init(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "init",
        "write a bank and a recipe for a folder of LoRA files and image pairs",
        "init effects --base models/qwen-image-edit-2509",
    )
    command.add_argument("folder", metavar="DIR", type=Path, help="where LoRAs and pairs lie")
    command.add_argument(
        "--base", help="the model's diffusers folder, or its hf:// address; else asked for"
    )
    command.set_defaults(command=_init)


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "convert",
        "write a LoRA in another layout, weights and scales unchanged",
        "convert kohya.safetensors snow.safetensors --to diffusers --base models/qwen-image-edit",
    )
    command.add_argument(
        "source", metavar="IN", type=Path, help="a LoRA file, or a folder with one"
    )
    command.add_argument("out", metavar="OUT", type=Path, help="a new file; for peft, a new folder")
    # The layouts' one list is beside torch, which a command's help must not wait for.
    command.add_argument("--to", required=True, choices=["diffusers", "comfyui", "peft"])
    command.add_argument(
        "--base",
        help="the model's folder or hf:// address, which lora_unet_ keys need; checks the fit",
    )
    command.set_defaults(command=_convert)


def _add_status(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "status",
        "progress and ETA of a run, running or over, from its output folder alone",
        "status runs/demo",
    )
    command.add_argument("run", metavar="RUN", help="a run's output folder, or its recipe")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(command=_status)


def _add_chaos(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "chaos",
        "run twice, once while killing processes at random: is the student the same?",
        "chaos pipeline/recipes/demo.yaml --minutes 20",
    )
    _add_recipe(command)
    command.add_argument("--minutes", type=float, default=10.0, help="of killing (default 10)")
    command.add_argument("--every", type=float, default=20.0, help="mean seconds between kills")
    command.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    command.set_defaults(command=_chaos)


def _add_miniature(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    command = _command(
        commands,
        "miniature",
        "the embedded small editor and its 50 effects",
        "miniature bank runs/demo/bank --effects snow,sepia",
    )
    actions = command.add_subparsers(required=True, metavar="ACTION")
    build = _command(actions, "build", "train the small editor", "miniature build runs/base")
    build.add_argument("folder", type=Path)
    build.add_argument("--seed", type=int, default=0)
    build.set_defaults(command=_build)
    bank = _command(
        actions,
        "bank",
        "write a bank folder as a user's would be",
        "miniature bank runs/demo/bank --effects snow,sepia",
    )
    bank.add_argument("folder", type=Path)
    bank.add_argument("--effects", help="names, comma separated; all 50 if left out")
    bank.add_argument(
        "--variants",
        type=int,
        default=0,
        help="so many besides, up to 149: effects on a half of the picture (default: %(default)s)",
    )
    bank.add_argument("--teach", action="store_true", help="leave the kept teachers out")
    bank.add_argument(
        "--validation",
        action="store_true",
        help="hold out training photographs in place of the test ones, to choose a recipe on",
    )
    bank.add_argument(
        "--alike",
        action="store_true",
        help="teacher prompts that differ in a number alone; the kept teachers stay out",
    )
    bank.add_argument("--pairs", type=int, default=20, help="of each effect (default: %(default)s)")
    bank.add_argument(
        "--sources",
        type=int,
        default=40,
        help="unlabelled photographs, of which teachers make targets (default: %(default)s)",
    )
    bank.add_argument(
        "--varied",
        action="store_true",
        help="unlabelled photographs of other colours and shapes than the eleven of the pairs",
    )
    bank.set_defaults(command=_bank)
    effects = _command(actions, "effects", "list the effects", "miniature effects")
    effects.set_defaults(command=_effects)


def _stage(arguments: argparse.Namespace) -> None:
    from pipeline.validation import validate

    start = [f"grow.start_from={json.dumps(arguments.start)}"] if arguments.start else []
    recipe, bank = validate(arguments.recipe, [*arguments.set, *start], arguments.dry_run)
    if arguments.dry_run:
        from pipeline.dry_run import describe_run

        print(describe_run(recipe, bank, arguments.stage))
        return
    from pipeline.controller import run

    places = run(recipe, bank, arguments.stage)
    for path in places.made():
        print(readable(str(path)))


def _validate(arguments: argparse.Namespace) -> None:
    from pipeline.validation import validate

    recipe, bank = validate(arguments.recipe, arguments.set)
    print(
        f"{arguments.recipe}: good. {len(bank.effects)} effects, {len(bank.pairs)} pairs, "
        f"{len(bank.general)} general rows, {len(bank.test)} held-out photographs, "
        f"{recipe.distill.rounds} rounds, {recipe.cluster.student_group.size}."
    )


def _bench(arguments: argparse.Namespace) -> None:
    from pipeline.stages.evidence_report import INDEX, write_evidence, write_index
    from pipeline.validation import validate

    reports = arguments.report or REPORTS
    if arguments.redraw:
        from pipeline.config import load_recipe
        from pipeline.mirror import local_path

        recipe = load_recipe(arguments.recipe, arguments.set)
        folder = local_path(recipe.output) / "bench"
        for name in reports:
            # All of them means those that there are; one that is asked for must be there.
            if arguments.report or (folder / f"{name}.json").exists():
                write_evidence(folder, name)
                print(folder / f"{name}.md")
        print(write_index(folder))
        return
    from pipeline.stages.bench import QUICK, bench

    quick = [f"{key}={json.dumps(value)}" for key, value in QUICK.items()]
    recipe, bank = validate(arguments.recipe, [*arguments.set, *(quick if arguments.quick else [])])
    folder = bench(recipe, bank, reports)
    for name in reports:
        print(folder / f"{name}.md")
    print(folder / INDEX)


def _init(arguments: argparse.Namespace) -> None:
    from pipeline.onboarding.init import init

    print(init(arguments.folder, arguments.base))


def _convert(arguments: argparse.Namespace) -> None:
    from pipeline.convert import convert

    print(convert(arguments.source, arguments.out, arguments.to, arguments.base))


def _status(arguments: argparse.Namespace) -> None:
    from pipeline.status import describe, read_status

    status = read_status(arguments.run)
    print(status.to_json() if arguments.json else describe(status))


def _chaos(arguments: argparse.Namespace) -> int:
    from pipeline.stages.chaos import chaos, describe
    from pipeline.validation import validate

    recipe, _ = validate(arguments.recipe, arguments.set)
    report = chaos(
        recipe,
        arguments.recipe,
        arguments.set,
        arguments.minutes,
        arguments.seed,
        arguments.every,
    )
    print(describe(report))
    return 0 if report.same else 1


def _build(arguments: argparse.Namespace) -> None:
    from pipeline.miniature.build import build

    build(arguments.folder, arguments.seed)
    print(arguments.folder)


def _bank(arguments: argparse.Namespace) -> None:
    from pipeline.miniature.bank import write_bank
    from pipeline.miniature.effects import EFFECTS

    names = arguments.effects.split(",") if arguments.effects else list(EFFECTS)
    kept = not arguments.teach
    write_bank(
        arguments.folder,
        names,
        pairs=arguments.pairs,
        sources=arguments.sources,
        kept_teachers=kept,
        validation=arguments.validation,
        alike=arguments.alike,
        varied=arguments.varied,
        variants=arguments.variants,
    )
    print(arguments.folder / "bank.yaml")


def _effects(arguments: argparse.Namespace) -> None:
    from pipeline.miniature.effects import EFFECTS, NEW_EFFECTS, VARIANTS

    for name, effect in (EFFECTS | NEW_EFFECTS).items():
        new = "" if name in EFFECTS else " (beyond the fifty: for `distill --from`)"
        print(f"{name:18} {effect.family:9} {effect.prompt}{new}")
    print(f"and {len(VARIANTS)} variants, each on a half of the picture: {', '.join(VARIANTS)}")
