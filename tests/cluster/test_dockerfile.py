"""What the image installs, as far as it can be told without building it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_image_has_what_recipes_may_ask_for(tmp_path: Path) -> None:
    """The dependencies, and the extra without which ``model.quantize`` is refused."""
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    (command,) = re.findall(
        r"^RUN (python -c .*) > /app/requirements.txt", dockerfile, re.MULTILINE
    )
    command = command.replace("/app", str(ROOT)).replace("python", sys.executable, 1)
    made = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["quantize"]
    assert made.stdout.splitlines() == wanted
    pinned = (ROOT / "cluster/constraints.txt").read_text()
    assert re.search(r"^torchao==", pinned, re.MULTILINE)
