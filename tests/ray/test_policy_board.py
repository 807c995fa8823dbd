"""The board: exact versions, one start of the student at a time, and a life after death."""

import os
import signal
import time
import urllib.request
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.announcer import Announcer
from actors.health import Word
from actors.policy_board import Look, PolicyBoard
from actors.watchdog import Watchdog

WORD = Word("s", "process 1 on here", "waiting")


def a_board(name: str) -> Any:
    board = PolicyBoard.options(name=name)  # type: ignore[attr-defined]
    return board.remote(keep=2, run=name)


def row(round_index: int) -> dict[str, float]:
    return {"round": float(round_index), "seconds_wait": 1.0, "seconds_update": 3.0}


def weights(value: float) -> dict[str, Any]:
    return {"w": torch.full((3,), value)}


def fetched(board: Any, version: int) -> float:
    (policy,) = ray.get(board.policy.remote(version), timeout=60)
    return float(np.unique(ray.get(policy)["w"]).item())


def process_of(board: Any) -> int:
    return int(ray.get(board.__ray_call__.remote(lambda self: os.getpid())))


def test_rows_are_numbered_and_heard_once() -> None:
    board = a_board("rows")
    ray.get(board.offer.remote("a", WORD, {}, [row(0), row(1)]))
    ray.get(board.offer.remote("a", WORD, {}, [row(1), row(2)]))
    first: Look = ray.get(board.look.remote("", 0))
    assert [r["round"] for r in first.rows] == [0, 1, 2]
    assert first.rows[2]["student_wait_share"] == pytest.approx(0.25)
    assert first.rows[2]["rounds_per_second"] == pytest.approx(0.25)
    ray.get(board.offer.remote("a", WORD, {}, [row(3)]))
    assert [r["round"] for r in ray.get(board.look.remote(first.life, 3)).rows] == [3]


def test_rows_keep_their_order_though_calls_overtake_each_other() -> None:
    board = a_board("ordered")
    with Announcer(ray.get_actor("ordered"), keep=3) as announcer:
        for index in range(20):
            announcer.record(row(index))
        rounds: list[float] = []
        deadline = time.monotonic() + 60
        while len(rounds) < 20 and time.monotonic() < deadline:
            rounds = [r["round"] for r in ray.get(board.look.remote("", 0)).rows]
    assert rounds == list(range(20))


def test_a_new_start_of_the_student_clears_what_the_old_one_offered() -> None:
    """Its weights died with it; a late word of the old one changes nothing."""
    board = a_board("attempts")
    old, new = ray.put({"w": np.zeros(3)}), ray.put({"w": np.ones(3)})
    ray.get(board.offer.remote("old", WORD, {7: [old]}, [row(6)]))
    ray.get(board.offer.remote("new", WORD, {5: [new]}, []))
    ray.get(board.offer.remote("old", WORD, {7: [old]}, [row(7)]))
    assert fetched(board, 5) == 1
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(board.policy.remote(7), timeout=1)
    ray.get(board.offer.remote("new", WORD, {}, [row(6)]))
    assert [r["round"] for r in ray.get(board.look.remote("", 0)).rows] == [6, 6]


def test_a_killed_board_comes_back_with_all_that_matters() -> None:
    """SIGKILL; a teacher that waits, and the driver, go on after the student's next beat."""
    board = a_board("killed")
    handed: list[float] = []
    watchdog = Watchdog(
        board, lambda metrics: handed.append(metrics["round"]), lambda rounds, png: None
    )
    with Announcer(ray.get_actor("killed"), keep=3) as announcer:
        announcer.publish({1: weights(1.0), 2: weights(2.0)})
        announcer.record(row(0))
        announcer.record(row(1))
        deadline = time.monotonic() + 60
        while len(handed) < 2 and time.monotonic() < deadline:
            watchdog.look()
        waiting = board.policy.remote(3)
        os.kill(process_of(board), signal.SIGKILL)
        announcer.record(row(2))
        announcer.publish({3: weights(3.0)})
        assert float(ray.get(ray.get(waiting, timeout=90)[0])["w"][0]) == 3.0
        assert fetched(board, 2) == 2.0
        deadline = time.monotonic() + 60
        while len(handed) < 3 and time.monotonic() < deadline:
            watchdog.look()
            time.sleep(0.2)
    assert handed == [0, 1, 2]


def test_prometheus_serves_what_the_board_records() -> None:
    board = a_board("served")
    extra = {"policy_lag": 1.0, "forwards_teacher_pool": 7.0}
    ray.get(board.offer.remote("a", WORD, {}, [row(41) | extra]))
    node = next(n for n in ray.nodes() if n["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {"round": 41.0, "student_wait_share": 0.25, "policy_lag": 1.0, "queue": 0.0}
    found: dict[str, float] = {}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not found.get("forwards_total"):
        time.sleep(1)
        with urllib.request.urlopen(url, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        for line in lines:
            if line.startswith("ray_collectionlora_") and 'run="served"' in line:
                name = line.split("{")[0].removeprefix("ray_collectionlora_")
                found[name] = float(line.rsplit(" ", 1)[1])
    assert found.items() >= wanted.items()
    assert found["forwards_total"] == 7.0
