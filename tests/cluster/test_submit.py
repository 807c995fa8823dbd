"""`make submit` is the plain `ray job submit`, and what it uploads is the code alone."""

import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

from tests.cluster.test_manifests import ROOT


def test_make_submit_is_the_plain_command() -> None:
    make = [
        "make",
        "--no-print-directory",
        "--dry-run",
        "--old-file=.venv/.ready",
        "submit",
        "RECIPE=my.yaml",
    ]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    plain = "ray job submit --working-dir . -- python -m pipeline run my.yaml"
    assert " ".join(done.stdout.split()) == f".venv/bin/{plain}"


def test_what_git_ignores_is_not_uploaded(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    checkout, package = tmp_path / "checkout", tmp_path / "package.zip"
    code = {"pipeline/cli.py", "pipeline/miniature/base/model_index.json", "actors/pool.py"}
    private = {
        ".venv/lib/torch.so",
        ".git/objects/ab/cd",
        "runs/demo/bank/bank.yaml",
        "runs/demo/checkpoint.safetensors",
        "pipeline/__pycache__/cli.cpython-311.pyc",
    }
    for name in code | private:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    shutil.copy(ROOT / ".gitignore", checkout)

    def upload(folder: str, excludes: list[str], is_file: bool = False) -> None:
        create_package(folder, package, include_gitignore=True, excludes=excludes)

    environment: dict[str, Any] = {"working_dir": str(checkout)}
    upload_working_dir_if_needed(environment, include_gitignore=True, upload_fn=upload)
    with zipfile.ZipFile(package) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names == code | {".gitignore"}
