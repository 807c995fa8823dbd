"""The commands about finished runs: compare them, promote one; and completion for a shell."""

import argparse
from collections.abc import Callable
from pathlib import Path

AddCommand = Callable[[str, str, str], argparse.ArgumentParser]
# Arguments that name files or folders and are not typed as paths.
_FILES = {"recipe", "runs"}


def add_compare(add: AddCommand) -> None:
    command = add(
        "compare",
        "teachers, students and baselines from MLflow on one HTML page",
        "compare --runs runs/demo runs/other --against runs/demo",
    )
    command.add_argument(
        "--runs", nargs="+", default=[], metavar="RUN", help="output folders, or MLflow addresses"
    )
    command.add_argument("--uri", help="an MLflow store or server, with all of its runs")
    command.add_argument("--experiment", help="one experiment; all of them if left out")
    command.add_argument(
        "--against",
        metavar="RUN",
        help="an earlier student (name, folder, recipe hash or run id): flag what is worse now",
    )
    command.add_argument(
        "--out", type=Path, help="folder for compare.html; left out: compare/ in the first run's"
    )
    command.set_defaults(command=_compare)


def add_promote(add: AddCommand) -> None:
    command = add(
        "promote",
        "make a student the champion of MLflow's model registry, if the recipe's rule holds",
        "promote my.yaml --dry-run",
    )
    command.add_argument("recipe", help="a recipe; its promote section is the rule")
    command.add_argument("--run", help="the student by its MLflow run id; the recipe's if left out")
    command.add_argument("--dry-run", action="store_true", help="judge only, move nothing")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field"
    )
    command.set_defaults(command=_promote)


def add_completion(add: AddCommand, parser: Callable[[], argparse.ArgumentParser]) -> None:
    command = add(
        "completion",
        "print a shell's completion of commands, options and file names",
        'completion bash > ~/.collectionlora; echo ". ~/.collectionlora" >> ~/.bashrc',
    )
    command.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    command.set_defaults(command=lambda arguments: print(completion(parser(), arguments.shell)))


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a whole parser."""
    import shtab

    for command in leaves(parser):
        for action in command._actions:
            if action.type is Path or action.dest in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of all commands that do something."""
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner:
        return [parser]
    return [leaf for a in inner for command in a.choices.values() for leaf in leaves(command)]


def _compare(arguments: argparse.Namespace) -> None:
    from pipeline.comparison.command import compare_runs
    from pipeline.problems import InputError, Problem

    places = [*arguments.runs, *([arguments.uri] if arguments.uri else [])]
    if not places:
        what, remedy = "nothing to compare", "give output folders, or --uri with a store's address"
        raise InputError([Problem("--runs", "", None, what, remedy)])
    first = Path(places[0])
    out = arguments.out or (first / "compare" if first.is_dir() else Path("compare"))
    made = compare_runs(places, arguments.experiment, arguments.against, out)
    for path in made:
        if path.suffix == ".md":
            print(path.read_text())
    for path in made:
        print(path)


def _promote(arguments: argparse.Namespace) -> int:
    from pipeline.config import load_recipe
    from pipeline.promote import promote

    found = promote(load_recipe(arguments.recipe, arguments.set), arguments.run, arguments.dry_run)
    print(found)
    return 0 if found.holds else 1
