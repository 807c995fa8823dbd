"""A proxy on loopback before the S3 server that misbehaves as real ones do, by a seeded chance."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("refuse", "slow", "cut", "flip")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"


class Proxy:
    """``chances`` of each fault: answer 503, wait a second, cut the body short, change a bit."""

    def __init__(self, behind: str, chances: Mapping[str, float], seed: int) -> None:
        self.behind = urlsplit(behind).netloc
        self.chances = dict(chances)
        self.done: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._lock = threading.Lock()

    def fault(self) -> str | None:
        """What is to go wrong with the next answer."""
        with self._lock:
            drawn = self._rng.random()
            for name, chance in self.chances.items():
                if drawn < chance:
                    return name
                drawn -= chance
        return None

    def count(self, name: str) -> None:
        with self._lock:
            self.done[name] += 1


@contextmanager
def s3_proxy(behind: str, chances: Mapping[str, float], seed: int = 0) -> Iterator[tuple[str, Any]]:
    """(endpoint, :class:`Proxy`) of a proxy before the server at ``behind``."""
    proxy = Proxy(behind, chances, seed)

    class Handler(_Handler):
        state = proxy

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", proxy
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Proxy

    def handle_any(self) -> None:
        body = self._body()
        fault = self.state.fault()
        if fault == "slow":
            self.state.count("slow")
            time.sleep(1.0)
        if fault == "refuse":
            self.state.count("refuse")
            self._answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        connection = http.client.HTTPConnection(self.state.behind, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        # As it is: http.client would put a second Host and its own encodings in.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP]
        whole = self.command == "GET" and answer.status in (200, 206) and len(content) > 8
        if whole and fault == "cut":
            self.state.count("cut")
            self._answer(answer.status, kept, content, keep=len(content) // 2)
        elif whole and fault == "flip" and not content.startswith(b"<?xml"):
            self.state.count("flip")
            broken = bytearray(content)
            broken[len(broken) // 2] ^= 1
            self._answer(answer.status, kept, bytes(broken))
        else:
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, kept, content, length=length)
        connection.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        keep: int | None = None,
        length: str | None = None,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if keep is None else content[:keep])
        if keep is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


_HOP = {"connection", "content-length", "transfer-encoding", "expect", "keep-alive"}
