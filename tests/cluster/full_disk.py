"""Run as root of a namespace of its own: a recipe whose output's disk fills up in mid-run.

    unshare -rm python -m tests.cluster.full_disk RECIPE OUTPUT ROUND

Mounts a small disk at OUTPUT, runs the recipe, fills the disk once ROUND is done, and when the run
has ended frees it and runs the same recipe again. Prints one JSON object.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from pipeline.stages.distill import History
from pipeline.storage import sha256_file

SIZE, FULL = "64m", "the disk is full; free some space"


def main(recipe: str, output: str, at_round: int) -> None:
    """See the module."""
    place = Path(output)
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", output], check=True)
    command = [sys.executable, "-m", "pipeline", "distill", recipe]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines: list[tuple[float, str]] = []

    def read() -> None:
        assert run.stderr is not None
        lines.extend((time.monotonic(), line) for line in run.stderr)

    reader = threading.Thread(target=read)
    reader.start()
    history = History(place / "history.jsonl")
    while run.poll() is None and len(history.load()) <= at_round:
        time.sleep(0.1)
    ballast = place / "ballast"
    _fill(ballast)
    filled = time.monotonic()
    # What is written now and then takes what others freed meanwhile.
    while run.poll() is None:
        _fill(ballast)
        time.sleep(0.2)
    reader.join()
    said = [at for at, line in lines if FULL in line]
    named, ended = said[0] - filled if said else None, time.monotonic() - filled
    rounds = len(history.load())
    ballast.unlink()
    again = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    students = list((place / "training").glob("*/student.safetensors"))
    found = {
        "code": run.returncode,
        "errors": "".join(line for _, line in lines)[-3000:],
        "rounds": rounds,
        "named": named,
        "ended": ended,
        "code_again": again.returncode,
        "errors_again": again.stderr[-3000:],
        "sha256": [sha256_file(student) for student in students],
    }
    print(json.dumps(found))


def _fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    os.write(file.fileno(), b"x" * size)
            except OSError:
                continue


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
