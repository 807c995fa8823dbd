"""Every answer counted, under headers that let a browser do what the page does and no more."""

import base64
import hashlib
import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.metrics import Metrics

# More than any browser sends. Serve's HTTP server has no bound of its own.
HEADER_BYTES = 32 * 2**10


def content_policy(page: str) -> str:
    """A policy under which the page's own inline script and style run, and nothing foreign."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in found)
        return " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


class CountAndProtect:
    """ASGI middleware: counts answers by route and status, adds the headers, refuses huge ones."""

    def __init__(self, app: ASGIApp, metrics: Metrics, policy: str) -> None:
        self.app = app
        self.metrics = metrics
        self.headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self.headers]
                # Only what the application itself named: a path is the visitor's, and endless.
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            refusal = JSONResponse({"error": f"more than {HEADER_BYTES} bytes of headers"}, 431)
            await refusal(scope, receive, counted)
            return
        await self.app(scope, receive, counted)
