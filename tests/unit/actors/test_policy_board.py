"""The board's rules, without a cluster: exact versions, one start of the student at a time."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from actors.health import Word, diagnose
from actors.policy_board import Look, PolicyBoard

WORD = Word("s", "process 1 on here", "waiting", 3)


class Shown:
    """Stands for the gauges, which want Ray."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, float]] = []

    def show(self, row: Mapping[str, float]) -> None:
        self.rows.append(row)


@pytest.fixture
def board() -> Any:
    board = PolicyBoard.__ray_metadata__.modified_class(2, "run")  # type: ignore[attr-defined]
    board._gauges = Shown()
    return board


def row(round_index: int) -> dict[str, float]:
    return {"round": float(round_index), "seconds_wait": 1.0, "seconds_update": 3.0}


def test_rows_are_numbered_heard_once_and_completed(board: Any) -> None:
    async def story() -> None:
        await board.offer("a", WORD, {}, [row(0), row(1)])
        await board.offer("a", WORD, {}, [row(1), row(2)])
        first: Look = await board.look("", 0)
        assert [r["round"] for r in first.rows] == [0, 1, 2]
        assert first.rows[2]["student_wait_share"] == pytest.approx(0.25)
        assert first.rows[2]["rounds_per_second"] == pytest.approx(0.25)
        await board.offer("a", WORD, {}, [row(3)])
        assert [r["round"] for r in (await board.look(first.life, 3)).rows] == [3]
        # Of another life: all of them, whatever the count.
        assert len((await board.look("another", 3)).rows) == 4
        assert [r["round"] for r in board._gauges.rows] == [0, 1, 2, 3]

    asyncio.run(story())


def test_a_policy_is_waited_for_and_old_ones_go(board: Any) -> None:
    async def story() -> None:
        waiting = asyncio.create_task(board.policy(5))
        await board.offer("a", WORD, {4: ["w4"]}, [])
        assert not waiting.done()
        await board.offer("a", WORD, {5: ["w5"]}, [])
        assert await asyncio.wait_for(waiting, 5) == ["w5"]
        await board.offer("a", WORD, {7: ["w7"]}, [])
        assert sorted(board._policies) == [5, 7]

    asyncio.run(story())


def test_a_new_start_of_the_student_clears_what_the_old_one_offered(board: Any) -> None:
    """Its weights died with it, or are of another number of workers; a late word is not heard."""

    async def story() -> None:
        await board.offer("old", WORD, {7: ["old"]}, [row(6)])
        await board.offer("new", WORD, {5: ["new"]}, [])
        await board.offer("old", WORD, {7: ["old"]}, [row(7)])
        assert board._policies == {5: "new"}
        # Its rounds come again, and are handed on again.
        await board.offer("new", WORD, {}, [row(6)])
        assert [r["round"] for r in (await board.look("", 0)).rows] == [6, 6]

    asyncio.run(story())


def test_what_teachers_say_is_their_share_and_the_queue(board: Any) -> None:
    async def story() -> None:
        await board.offer("a", WORD, {}, [])
        for round_index in (3, 4, 5):
            word = Word("t", "process 2 on there", "done", round_index, busy=1.0, wall=4.0)
            await board.heard(word)
        await board.offer("a", WORD, {}, [row(3)])
        look: Look = await board.look("", 0)
        assert look.rows[0]["teacher_busy_share"] == pytest.approx(0.25)
        # Rounds 4 and 5 are made and not yet used.
        assert look.rows[0]["queue"] == 2
        assert look.health.usual_rollout == 1.0
        assert diagnose(look.health) == []
        assert [a.about for a in diagnose(look.health, stall=-1.0)] == ["student silent"]

    asyncio.run(story())
