"""The HTTP API, in this process: good requests, bad ones, limits, thumbnails, counters."""

import asyncio
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.editing.jobs import EditJob
from pipeline.editing.student_export import StudentExport
from pipeline.serving.api import Made
from pipeline.serving.settings import Limits
from tests.tiny_export import EFFECTS
from tests.unit.serving.bad_requests import EDIT, JPEG, bad_requests, photograph
from tests.unit.serving.case import Negative, application, client

PNG = {"content-type": "image/png"}


def picture(content: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(Image.open(io.BytesIO(content))).astype(np.int64)


def test_a_photograph_comes_back_edited(tiny_export: StudentExport, tmp_path: Path) -> None:
    student = Negative()

    async def ask() -> None:
        async with client(application(tiny_export, student.edit, tmp_path)) as http:
            sent = photograph("PNG")
            path = "/api/edit?effect=snow&effect=fog&order=in_turn&seed=5"
            answer = await http.post(path, content=sent, headers=PNG)
            assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
            assert np.array_equal(picture(answer.content), 255 - picture(sent))
            assert answer.headers["x-seed"] == "5" and answer.headers["x-batch"] == "1"
            assert answer.headers["server-timing"].startswith("edit;dur=10, total;dur=")
            seeds = {
                (await http.post(EDIT, content=sent, headers=PNG)).headers["x-seed"] for _ in "ab"
            }
            assert len(seeds) == 2, "without a seed each request gets its own"
            counted = (await http.get("/metrics")).text
            assert 'collectionlora_requests_total{route="/api/edit",status="200"} 3.0' in counted
            assert 'collectionlora_edits_total{effect="fog"} 1.0' in counted
            assert "collectionlora_edit_seconds_count 3.0" in counted

    asyncio.run(ask())
    first = student.jobs[0]
    assert (first.effects, first.order, first.seed) == (("snow", "fog"), "in_turn", 5)


def test_headers_have_their_bound(tiny_export: StudentExport, tmp_path: Path) -> None:
    async def ask() -> list[int]:
        async with client(application(tiny_export, Negative().edit, tmp_path)) as http:
            return [
                (await http.get("/", headers={"x": "y" * size})).status_code
                for size in (30_000, 33_000, 200_000)
            ]

    assert asyncio.run(ask()) == [200, 431, 431]


def test_a_thousand_bad_requests_get_4xx_and_leave_it_serving(
    tiny_export: StudentExport, tmp_path: Path
) -> None:
    student = Negative()
    limits = Limits(upload_bytes=30_000, pixels=1_000_000)

    async def ask() -> tuple[Counter[int], list[object]]:
        statuses: Counter[int] = Counter()
        wrong: list[object] = []
        async with client(application(tiny_export, student.edit, tmp_path, limits)) as http:
            for bad in bad_requests(1000, limits.upload_bytes):
                answer = await http.request(
                    bad.method, bad.path, content=bad.content(), headers=bad.headers
                )
                statuses[answer.status_code] += 1
                if not 400 <= answer.status_code < 500 or "root:" in answer.text:
                    wrong.append(
                        f"{bad.method} {bad.path[:80]} {bad.headers}: {answer.status_code}"
                    )
                assert len(answer.content) < 2000, "an answer does not repeat what was sent"
            assert student.jobs == []
            assert (await http.get("/healthz")).json() == {"ready": True, "waiting": 0}
            good = await http.post(EDIT, content=photograph("JPEG"), headers=JPEG)
            assert good.status_code == 200
            assert 'status="404"' in (await http.get("/metrics")).text
        return statuses, wrong

    statuses, wrong = asyncio.run(ask())
    assert wrong == []
    assert statuses.total() == 1000
    # Each kind of refusal was met.
    assert set(statuses) == {404, 405, 413, 415, 422}


def test_nothing_is_written_under_a_visitors_name(
    tiny_export: StudentExport, tmp_path: Path
) -> None:
    async def ask() -> None:
        async with client(application(tiny_export, Negative().edit, tmp_path / "cache")) as http:
            for bad in bad_requests(200, 10**6, seed=1):
                await http.request(bad.method, bad.path, content=bad.content(), headers=bad.headers)

    asyncio.run(ask())
    assert list(tmp_path.iterdir()) == []


def test_a_slow_edit_is_given_up_and_too_many_are_sent_away(
    tiny_export: StudentExport, tmp_path: Path
) -> None:
    async def never(job: EditJob) -> Made:
        await asyncio.sleep(60)
        raise AssertionError

    async def ask() -> None:
        limits = Limits(edit_seconds=0.3, waiting=2)
        async with client(application(tiny_export, never, tmp_path, limits)) as http:
            posts = [http.post(EDIT, content=photograph("JPEG"), headers=JPEG) for _ in range(5)]
            answers = await asyncio.gather(*posts)
            assert Counter(a.status_code for a in answers) == {504: 2, 503: 3}
            busy = next(a for a in answers if a.status_code == 503)
            assert busy.headers["retry-after"] == "2"
            assert (await http.get("/healthz")).json()["waiting"] == 0

    asyncio.run(ask())


def test_a_slow_upload_is_given_up(tiny_export: StudentExport, tmp_path: Path) -> None:
    async def drip() -> object:
        yield b"\xff\xd8"
        await asyncio.sleep(30)

    async def ask() -> None:
        limits = Limits(read_seconds=0.2)
        async with client(application(tiny_export, Negative().edit, tmp_path, limits)) as http:
            answer = await http.post(EDIT, content=drip(), headers=JPEG)
            assert answer.status_code == 408

    asyncio.run(ask())


def test_health_says_when_no_student_answers(tiny_export: StudentExport, tmp_path: Path) -> None:
    async def ill() -> bool:
        return False

    async def ask() -> None:
        app = application(tiny_export, Negative().edit, tmp_path, ready=ill)
        async with client(app) as http:
            assert (await http.get("/healthz")).status_code == 503

    asyncio.run(ask())


def test_thumbnails_are_made_once_and_kept(tiny_export: StudentExport, tmp_path: Path) -> None:
    async def ask() -> None:
        student = Negative()
        async with client(application(tiny_export, student.edit, tmp_path)) as http:
            gets = [http.get(f"/thumbnails/{name}") for name in ("snow", "fog", "snow", "snow")]
            answers = await asyncio.gather(*gets)
            assert [a.status_code for a in answers] == [200] * 4
            assert answers[0].headers["content-type"] == "image/webp"
            assert picture(answers[0].content).shape == (256, 256, 3)
            assert sorted(job.effects for job in student.jobs) == [("fog",), ("snow",)]
        later = Negative()
        async with client(application(tiny_export, later.edit, tmp_path)) as http:
            assert (await http.get("/thumbnails/snow")).content == answers[0].content
            assert (await http.get("/thumbnails/original")).status_code == 200
            assert later.jobs == []

    asyncio.run(ask())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fog.webp", "snow.webp"]


def test_a_thumbnail_that_failed_is_tried_again(tiny_export: StudentExport, tmp_path: Path) -> None:
    failures = [RuntimeError("out of memory")]
    student = Negative()

    async def edit(job: EditJob) -> Made:
        if failures:
            raise failures.pop()
        return await student.edit(job)

    async def ask() -> None:
        async with client(application(tiny_export, edit, tmp_path)) as http:
            assert (await http.get("/thumbnails/snow")).status_code == 500
            assert (await http.get("/thumbnails/snow")).status_code == 200

    asyncio.run(ask())


def test_the_page_loads_nothing_foreign(tiny_export: StudentExport, tmp_path: Path) -> None:
    async def ask() -> None:
        async with client(application(tiny_export, Negative().edit, tmp_path)) as http:
            page = await http.get("/")
            assert page.status_code == 200 and page.text.startswith("<!doctype html>")
            assert "default-src 'none'" in page.headers["content-security-policy"]
            foreign = [w for w in page.text.split('"') if w.startswith(("http:", "https:", "//"))]
            assert foreign == []
            told = (await http.get("/api/effects")).json()
            assert told["effects"] == list(EFFECTS)
            sample = await http.get("/sample")
            assert sample.headers["content-type"] == "image/jpeg"
            assert sample.headers["x-content-type-options"] == "nosniff"

    asyncio.run(ask())


@pytest.mark.parametrize("claimed", ["9" * 5000, "-5", "1e3"])
def test_a_length_that_is_none(tiny_export: StudentExport, tmp_path: Path, claimed: str) -> None:
    async def ask() -> None:
        async with client(application(tiny_export, Negative().edit, tmp_path)) as http:
            headers = JPEG | {"content-length": claimed}
            answer = await http.post(EDIT, content=b"", headers=headers)
            assert answer.status_code in (400, 413)

    asyncio.run(ask())
