"""The HTTP API, as a plain ASGI application: it knows nothing of Ray, only how to ask for an edit.

``GET /`` the page, ``GET /api/effects``, ``POST /api/edit``, ``GET /thumbnails/EFFECT``,
``GET /sample``, ``GET /healthz``, ``GET /metrics``.
"""

import asyncio
import io
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.editing.jobs import MAX_EFFECTS, MAX_SEED, EditJob, Order, prepare
from pipeline.editing.student_export import StudentExport
from pipeline.images import read_image
from pipeline.models.geometry import Geometry
from pipeline.problems import InputError
from pipeline.serving.headers import CountAndProtect, content_policy
from pipeline.serving.metrics import CONTENT_TYPE, Metrics
from pipeline.serving.settings import Limits
from pipeline.serving.thumbnails import Thumbnails, encode_thumbnail

PAGE = Path(__file__).with_name("page.html")
FOREVER = {"cache-control": "public, max-age=86400"}


@dataclass(frozen=True)
class Made:
    """An edited picture, how many pictures shared its forwards, and the seconds these took."""

    picture: Image.Image
    batch: int
    seconds: float


EditFunction = Callable[[EditJob], Awaitable[Made]]


class EditQuery(BaseModel):
    """What ``POST /api/edit`` takes beside the photograph in its body."""

    # Whoever sends a prompt, a path or a misspelt name should hear that it does nothing.
    model_config = ConfigDict(extra="forbid")

    effect: Annotated[list[str], Field(min_length=1, max_length=MAX_EFFECTS)]
    order: Order = "together"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None


class Busy(HTTPException):
    """503: too many edits under way."""

    def __init__(self) -> None:
        super().__init__(503, "too many edits under way; try again", {"retry-after": "2"})


class Application:
    """The state behind the routes: a student to ask, limits, counters."""

    def __init__(
        self,
        export: StudentExport,
        geometry: Geometry,
        edit: EditFunction,
        limits: Limits,
        sample: Image.Image,
        cache: Path,
    ) -> None:
        self.export = export
        self.geometry = geometry
        self.edit = edit
        self.limits = limits
        self.metrics = Metrics()
        self.sample = prepare(sample, geometry)
        self.sample_photograph = _encode(_shrunk(sample), "JPEG")
        self.thumbnails = Thumbnails(cache, self.sample, self._picture)
        self.waiting = 0

    async def make(self, job: EditJob) -> Made:
        """The picture of a job, within the limits on time and on how many wait."""
        if self.waiting >= self.limits.waiting:
            raise Busy
        self.waiting += 1
        self.metrics.waiting.set(self.waiting)
        try:
            async with asyncio.timeout(self.limits.edit_seconds):
                made = await self.edit(job)
        except TimeoutError:
            raise HTTPException(504, "the edit took too long; try again") from None
        finally:
            self.waiting -= 1
            self.metrics.waiting.set(self.waiting)
        self.metrics.batch.observe(made.batch)
        for effect in job.effects:
            self.metrics.edits.labels(effect).inc()
        return made

    async def _picture(self, job: EditJob) -> Image.Image:
        return (await self.make(job)).picture

    async def receive(self, request: Request) -> bytes:
        """The body of a request, within the limits on bytes and time."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if not kind.startswith("image/"):
            raise HTTPException(415, "send the photograph itself, as image/jpeg, png, webp or bmp")
        too_large = HTTPException(413, f"more than {self.limits.upload_bytes} bytes")
        claimed = request.headers.get("content-length", "0")
        if not claimed.isdecimal():
            raise HTTPException(400, "content-length is no number")
        # By its digits first: Python refuses to read numbers of thousands of them.
        if len(claimed) > 18 or int(claimed) > self.limits.upload_bytes:
            raise too_large
        content = bytearray()
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > self.limits.upload_bytes:
                        raise too_large
        except TimeoutError:
            raise HTTPException(408, "the photograph came too slowly") from None
        except ClientDisconnect:
            raise HTTPException(400, "the photograph ended before its end") from None
        return bytes(content)

    def open(self, content: bytes) -> Image.Image:
        """A photograph within the limits, scaled to what the model can see."""
        try:
            image = read_image(content, "photograph", self.limits.pixels)
        except InputError as error:
            problem = error.problems[0]
            status = 413 if problem.what.startswith("more than") else 422
            raise HTTPException(status, str(problem)) from None
        return prepare(image, self.geometry)


def build_api(application: Application, ready: Callable[[], Awaitable[bool]]) -> FastAPI:
    """The routes. ``ready``: whether a student answers."""
    api = FastAPI(title="CollectionLoRA", docs_url=None, redoc_url=None)
    export, metrics = application.export, application.metrics
    page = PAGE.read_text(encoding="utf-8")
    api.add_middleware(CountAndProtect, metrics=metrics, policy=content_policy(page))
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _failed)

    @api.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"cache-control": "no-cache"})

    @api.get("/api/effects")
    async def effects() -> dict[str, object]:
        return {
            "effects": list(export.prompts),
            "steps": export.steps,
            "side": application.geometry.sizes.side,
            "square": application.geometry.sizes.square,
            "upload_bytes": application.limits.upload_bytes,
            "pixels": application.limits.pixels,
            "max_seed": MAX_SEED,
        }

    @api.post("/api/edit", response_class=Response)
    async def edit(request: Request, query: Annotated[EditQuery, Query()]) -> Response:
        for problem in export.check_effects(query.effect, "effect"):
            text = f"effect: no such effect; {problem.remedy}"
            raise HTTPException(422, text)
        if application.waiting >= application.limits.waiting:
            raise Busy
        content = await application.receive(request)
        start = time.monotonic()
        image = await asyncio.to_thread(application.open, content)
        seed = secrets.randbelow(MAX_SEED + 1) if query.seed is None else query.seed
        made = await application.make(EditJob(image, tuple(query.effect), seed, query.order))
        png = await asyncio.to_thread(_encode, made.picture, "PNG")
        seconds = time.monotonic() - start
        metrics.seconds.observe(seconds)
        headers = {
            "x-seed": str(seed),
            "x-batch": str(made.batch),
            "server-timing": f"edit;dur={1000 * made.seconds:.0f}, total;dur={1000 * seconds:.0f}",
            "cache-control": "no-store",
        }
        return Response(png, media_type="image/png", headers=headers)

    @api.get("/thumbnails/{effect}", response_class=Response)
    async def thumbnail(effect: str) -> Response:
        if effect == "original":
            content = encode_thumbnail(application.sample, application.sample.size)
        elif effect in export.prompts:
            content = await application.thumbnails.get(effect)
        else:
            raise HTTPException(404, "no such effect")
        return Response(content, media_type="image/webp", headers=FOREVER)

    @api.get("/sample", response_class=Response)
    async def sample() -> Response:
        return Response(application.sample_photograph, media_type="image/jpeg", headers=FOREVER)

    @api.get("/healthz")
    async def healthz() -> JSONResponse:
        well = await ready()
        return JSONResponse({"ready": well, "waiting": application.waiting}, 200 if well else 503)

    @api.get("/metrics", response_class=Response)
    async def all_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return api


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Without the values: they are the visitor's, and may be long.
    said = [f"{'.'.join(map(str, e['loc'][1:]))[:80]}: {e['msg']}" for e in error.errors()[:8]]
    return JSONResponse({"error": "; ".join(said)}, 422)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _shrunk(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((1280, 1280), Image.Resampling.LANCZOS)
    return small


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return buffer.getvalue()
