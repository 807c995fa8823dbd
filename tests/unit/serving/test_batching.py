"""Requests of many users and effects in one forward: Serve's own batching, in this process."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from actors.edit_service import ServiceSettings, Student
from pipeline.editing.student_export import StudentExport
from pipeline.serving.settings import Limits
from tests.tiny_export import EFFECTS, STEPS
from tests.unit.serving.bad_requests import JPEG, photograph
from tests.unit.serving.case import application, client


@pytest.mark.timeout(300)
def test_eight_effects_of_eight_users_are_one_batch(
    tiny_export: StudentExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Serve asks the replica that it is in how many requests may wait there, to warn of too few.
    replica = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=512))
    monkeypatch.setattr(serve, "get_replica_context", lambda: replica)
    settings = ServiceSettings(
        export=tiny_export,
        device="cpu",
        dtype="float32",
        replicas=1,
        batch=8,
        # A full batch does not wait: this is only how long a slow machine may take to fill it.
        batch_wait=20.0,
        threads=1,
        sample=tmp_path,
        cache=tmp_path,
        limits=Limits(),
    )
    student = Student(settings)
    forwards: list[int] = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        forwards.append(len(kwargs["hidden_states"]))

    transformer = student.editor.editor.transformer
    transformer.register_forward_pre_hook(hook, with_kwargs=True)

    async def ask() -> None:
        async with client(application(tiny_export, student.edit, tmp_path)) as http:
            posts = [
                http.post(
                    f"/api/edit?effect={effect}&seed={i}",
                    content=photograph("JPEG", i),
                    headers=JPEG,
                )
                for i, effect in enumerate(EFFECTS)
            ]
            answers = await asyncio.gather(*posts)
            assert [a.status_code for a in answers] == [200] * 8
            assert [a.headers["x-batch"] for a in answers] == ["8"] * 8
            assert len({a.content for a in answers}) == 8
            text = (await http.get("/metrics")).text
            assert 'collectionlora_batch_size_bucket{le="4.0"} 0.0' in text
            assert 'collectionlora_batch_size_bucket{le="8.0"} 8.0' in text

    asyncio.run(ask())
    assert forwards == [8] * STEPS
