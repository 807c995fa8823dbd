"""The application in this process, over a student that a test chooses."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
from fastapi import FastAPI
from PIL import Image, ImageOps

from pipeline.editing.jobs import EditJob
from pipeline.editing.student_export import StudentExport
from pipeline.models.families import geometry_of
from pipeline.serving.api import Application, Made, build_api
from pipeline.serving.settings import Limits


class Negative:
    """A student that makes negatives, and remembers what it was asked."""

    def __init__(self) -> None:
        self.jobs: list[EditJob] = []

    async def edit(self, job: EditJob) -> Made:
        self.jobs.append(job)
        return Made(ImageOps.invert(job.image), 1, 0.01)


async def well() -> bool:
    return True


def application(
    export: StudentExport,
    edit: Callable[[EditJob], Awaitable[Made]],
    cache: Path,
    limits: Limits | None = None,
    ready: Callable[[], Awaitable[bool]] = well,
) -> FastAPI:
    """The ASGI application."""
    sample = Image.linear_gradient("L").convert("RGB")
    geometry = geometry_of(export.base)
    return build_api(Application(export, geometry, edit, limits or Limits(), sample, cache), ready)


def client(app: FastAPI) -> httpx2.AsyncClient:
    """A client of it; what the application fails at comes as 500."""
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://app")
