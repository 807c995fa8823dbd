"""The arrows between the packages, the files' sizes and the rooms: by the code's own imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "pyproject.toml",
    "README.md",
    "Makefile",
    "LICENSE",
    "pipeline",
    "actors",
    "cluster",
    "notebooks",
    "tests",
}
# What actors may use of the pipeline: never the stages, the controller or the commands.
FOR_ACTORS = {
    "types",
    "distill",
    "models",
    "storage",
    "mirror",
    "object_store",
    "plan",
    "tensor_store",
    "config",
    "images",
    "evaluation",
    "problems",
    "prompting",
    "miniature",
    "editing",
    "serving",
    "endpoint",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(p): p
    for room in ("pipeline", "actors")
    for p in sorted((ROOT / room).rglob("*.py"))
}


def imports(path: Path) -> set[str]:
    """All names that a file imports, anywhere in it; ``from a import b`` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {name: imports(path) for name, path in SOURCES.items()}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def reached(start: str) -> dict[str, str]:
    """All that a module imports, directly or through the project's own, with who imports it."""
    found: dict[str, str] = {}
    todo = [start]
    while todo:
        module = todo.pop()
        for name in IMPORTS[module]:
            # Importing a module runs its packages' __init__ first.
            parents = [".".join(name.split(".")[: i + 1]) for i in range(name.count(".") + 1)]
            for each in parents:
                if each not in found:
                    found[each] = module
                    if each in SOURCES:
                        todo.append(each)
    return found


PURE = [m for m in SOURCES if within(m, "pipeline.distill") or within(m, "pipeline.models")]


def test_the_walk_sees_what_is_there() -> None:
    assert len(PURE) > 12
    assert "pipeline.distill.schedule" in reached("pipeline.distill.update")
    assert "pipeline.types" in reached("pipeline.distill.rollout")
    # Transitively: the rollout gets safetensors through the adapters.
    assert "safetensors" in reached("pipeline.distill.rollout")
    assert any("ray" in IMPORTS[m] for m in SOURCES if within(m, "actors"))


@pytest.mark.parametrize("module", PURE)
def test_the_mathematics_and_the_models_know_no_ray(module: str) -> None:
    for name, through in reached(module).items():
        assert not within(name, "ray"), f"{module} reaches {name} through {through}"
        for forbidden in ("actors", "pipeline.stages", "pipeline.controller", "pipeline.cli"):
            assert not within(name, forbidden), f"{module} reaches {name} through {through}"


@pytest.mark.parametrize("module", [m for m in SOURCES if within(m, "actors")])
def test_actors_know_no_stages(module: str) -> None:
    for name in IMPORTS[module]:
        if within(name, "pipeline") and name != "pipeline":
            assert name.split(".")[1] in FOR_ACTORS, f"{module} imports {name}"


def test_what_rays_own_processes_read_takes_no_model_to_import() -> None:
    code = "import sys, actors.student_group; print(*{'peft', 'diffusers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (found.stdout.strip(), found.returncode) == ("", 0), found.stderr


def test_no_file_asks_to_be_two() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    lengths = {str(p): len(p.read_text().splitlines()) for p in [*SOURCES.values(), *tests]}
    assert {p: n for p, n in lengths.items() if n > 400} == {}


def test_the_top_level_is_the_fixed_list() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        names = {line.strip('"').split("/")[0] for line in listed.stdout.splitlines()}
    else:
        # A source archive has no git; it has nothing that git ignores, either.
        names = {p.name for p in ROOT.iterdir()} - {"runs", "build"}
    assert names
    assert {n for n in names if not n.startswith(".")} - ROOMS == set()
