"""The application on Ray Serve: a front that speaks HTTP, and students that batch edits."""

import asyncio
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle

from pipeline.editing.jobs import EditJob
from pipeline.editing.student_editor import StudentEditor
from pipeline.editing.student_export import StudentExport
from pipeline.images import open_image
from pipeline.models.families import geometry_of
from pipeline.serving.api import Application, Made, build_api
from pipeline.serving.settings import Limits

READY_SECONDS = 5.0
QUEUED = 512
PROXY_SECONDS = 600.0


@dataclass(frozen=True)
class ServiceSettings:
    """How an export is served.

    batch: pictures that may share a forward; batch_wait: seconds to wait for others to join;
    replicas: processes with a model each; threads: torch's, in each; sample, cache: the thumbnails'
    photograph and folder.
    """

    export: StudentExport
    device: str
    dtype: str
    replicas: int
    batch: int
    batch_wait: float
    threads: int
    sample: Path
    cache: Path
    limits: Limits


class Student:
    """One loaded student. Requests of all users and effects that wait together run together."""

    def __init__(self, settings: ServiceSettings) -> None:
        torch.set_num_threads(settings.threads)
        self.editor = StudentEditor(settings.export, settings.device, settings.dtype)
        self.edit.set_max_batch_size(settings.batch)
        self.edit.set_batch_wait_timeout_s(settings.batch_wait)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.05)  # type: ignore[untyped-decorator]
    async def edit(self, jobs: list[EditJob]) -> list[Made]:
        """The pictures of jobs that came at about the same time; callers pass one job each."""
        start = time.monotonic()
        # In a thread, so that this process answers to health checks while it computes.
        pictures = await asyncio.to_thread(self.editor.edit, jobs)
        seconds = time.monotonic() - start
        return [Made(picture, len(jobs), seconds) for picture in pictures]

    async def ready(self) -> bool:
        """That the model is loaded and the process answers."""
        return True


class Front:
    """The HTTP side: checks uploads, makes thumbnails, asks the students."""

    def __init__(self, settings: ServiceSettings, student: DeploymentHandle) -> None:
        self.settings = settings
        self.student = student

    def __serve_build_asgi_app__(self) -> FastAPI:
        settings = self.settings

        async def edit(job: EditJob) -> Made:
            made: Made = await self.student.edit.remote(job)
            return made

        async def ready() -> bool:
            try:
                async with asyncio.timeout(READY_SECONDS):
                    return bool(await self.student.ready.remote())
            except Exception:  # whatever ails the student, the answer is no
                return False

        application = Application(
            settings.export,
            geometry_of(settings.export.base),
            edit,
            settings.limits,
            open_image(settings.sample),
            settings.cache,
        )
        return build_api(application, ready)


def bind(settings: ServiceSettings) -> serve.Application:
    """The application, to be given to ``serve.run``."""
    gpus = 1 if settings.device == "cuda" else 0
    students = serve.deployment(Student).options(
        num_replicas=settings.replicas,
        # Ray's own limit only keeps a batch from filling: how many may wait is the front's to say.
        max_ongoing_requests=max(QUEUED, 2 * settings.batch),
        ray_actor_options={"num_cpus": 0, "num_gpus": gpus},
    )
    front = serve.deployment(serve.ingress()(Front)).options(
        max_ongoing_requests=QUEUED, ray_actor_options={"num_cpus": 0}
    )
    return front.bind(settings, students.bind(settings))


def start_http(host: str, port: int, request_seconds: float | None = None) -> None:
    """Start Serve and wait until it listens; ``request_seconds``: when it gives up on a request.

    Raises:
        TimeoutError: it does not listen after ``PROXY_SECONDS``.
    """
    options = HTTPOptions(host=host, port=port, request_timeout_s=request_seconds)
    try:
        serve.start(http_options=options)
        return
    except TimeoutError:
        # Serve waits for its proxy for a minute, whatever the machine. The proxy goes on starting.
        serve.start(http_options=options)
    end = time.monotonic() + PROXY_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise TimeoutError(f"nothing listens on {host}:{port} yet") from None
            time.sleep(1)
