"""All commands: help with an example, completion of file names, exit codes 0, 1 and 2."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.cli_runs import completion, leaves
from pipeline.problems import InputError, Problem

COMMANDS = leaves(cli._parser())
NAMES = [command.prog.removeprefix("collectionlora ") for command in COMMANDS]


def test_the_walk_sees_nested_commands() -> None:
    assert {"run", "compare", "promote", "completion", "miniature bank"} <= set(NAMES)


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_help_has_an_example_that_parses(
    command: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    name = command.prog.removeprefix("collectionlora ")
    with pytest.raises(SystemExit) as ended:
        cli.main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert "example: collectionlora " in capsys.readouterr().out
    assert command.epilog is not None
    # Up to what is the shell's.
    words = command.epilog.removeprefix("example: collectionlora ").split(" > ")[0].split()
    assert words[: len(name.split())] == name.split()
    parsed = cli._parser().parse_args(words)
    assert callable(parsed.command)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_option_is_the_inputs_fault(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*name.split(), "--no-such-option"])
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


READERS = [c for c in COMMANDS if any(a.dest == "recipe" for a in c._actions)]


@pytest.mark.parametrize("command", READERS, ids=[c.prog for c in READERS])
def test_a_recipe_that_is_not_there(
    command: argparse.ArgumentParser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = command.prog.removeprefix("collectionlora ").split()
    assert cli.main([*name, str(tmp_path / "absent.yaml")]) == 2
    # That it returned says that nothing was raised; libraries may log what they like.
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert errors and all("absent.yaml" in line for line in errors)


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ends(what: object) -> int:
        def effects(arguments: argparse.Namespace) -> object:
            if isinstance(what, BaseException):
                raise what
            return what

        monkeypatch.setattr(cli, "_effects", effects)
        return cli.main(["miniature", "effects"])

    assert ends(None) == 0
    assert ends(1) == 1
    assert ends(InputError([Problem("f", "x", 1, "wrong", "mend it")])) == 2
    assert "error: f: x: wrong" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        ends(RuntimeError("ours"))


def test_a_crash_of_ours_ends_with_1() -> None:
    code = (
        "import sys\nfrom pipeline import cli\n"
        "def crash(arguments): raise RuntimeError('ours')\n"
        "cli._effects = crash\nsys.argv = ['collectionlora', 'miniature', 'effects']\ncli.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ours" in done.stderr


def test_bash_completes_commands_options_and_files(tmp_path: Path) -> None:
    script = tmp_path / "completion.sh"
    script.write_text(completion(cli._parser(), "bash"))
    (tmp_path / "mine.yaml").touch()

    def completes(*words: str) -> set[str]:
        line = " ".join(words)
        ask = (
            f". {script}; COMP_WORDS=({' '.join(repr(w) for w in words)}); "
            f"COMP_CWORD={len(words) - 1}; COMP_LINE={line!r}; COMP_POINT={len(line)}; "
            '_shtab_collectionlora; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        run = ["bash", "--norc", "-c", ask]
        done = subprocess.run(
            run, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=True
        )
        return set(done.stdout.split())

    assert {"compare", "completion"} <= completes("collectionlora", "comp")
    assert "--against" in completes("collectionlora", "compare", "--ag")
    assert "mine.yaml" in completes("collectionlora", "run", "mi")
    assert "mine.yaml" in completes("collectionlora", "promote", "mi")
    for shell in ("zsh", "tcsh"):
        assert "collectionlora" in completion(cli._parser(), shell)
