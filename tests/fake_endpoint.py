"""An OpenAI-compatible endpoint on loopback that fails, dawdles and talks nonsense, by plan."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

NONSENSE = (
    "",
    "asdf qwer zxcv uiop hjkl",
    "I'm sorry, I cannot help with that.",
    "当然,这是一张美丽的照片,有很多细节和颜色。",
    "word " * 200,
    '{"happened": "perhaps", "score": 11}',
    "<html><body>502</body></html>",
)

# Seconds; well within any patience that a test has.
LATE = 0.3

Answer = Callable[[dict[str, Any]], str]


@dataclass
class Fake:
    """A running endpoint: its address, and what it did with each question, in order."""

    # Outcomes with an answer that can be used.
    GOOD: ClassVar = ("good", "late")

    url: str = ""
    log: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def of(self, outcome: str) -> int:
        return sum(done == outcome for _, done in self.log)

    def by_question(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for question, outcome in self.log:
            found.setdefault(question, []).append(outcome)
        return found


def question_of(body: dict[str, Any]) -> str:
    """The same for every repetition of a question; passes of a judge differ by their seed."""
    return f"{body['seed'] // 1000} {json.dumps(body['messages'][0])}"


def words_of(body: dict[str, Any]) -> str:
    """All text of the first message."""
    return " ".join(p["text"] for p in body["messages"][0]["content"] if p["type"] == "text")


@contextmanager
def fake_endpoint(
    answer: Answer,
    fail: float = 0.0,
    nonsense: float = 0.0,
    slow: tuple[int, ...] = (),
    late: float = 0.0,
    status: int = 503,
    seed: int = 0,
) -> Iterator[Fake]:
    """Shares of requests that fail, that get nonsense, and whose good answer is ``late``.

    slow: numbers of requests (the first is 0) that are never answered: the client has to leave.
    """
    fake, rng, lock = Fake(), random.Random(seed), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                outcome = "good"
                if len(fake.log) in slow:
                    outcome = "slow"
                elif (draw := rng.random()) < fail:
                    outcome = "dropped" if rng.random() < 0.3 else "failed"
                elif draw < fail + nonsense:
                    outcome = "nonsense"
                elif draw < fail + nonsense + late:
                    outcome = "late"
                said = rng.choice(NONSENSE)
                fake.log.append((question_of(body), outcome))
                fake.headers.append(dict(self.headers))
            if outcome == "late":
                time.sleep(LATE)
            if outcome == "slow":
                # Until the client has had enough and leaves.
                self.connection.recv(1)
            if outcome in ("slow", "dropped"):
                self.close_connection = True
                return
            if outcome == "failed":
                self.reply(status, {"error": "overloaded"})
                return
            content = said if outcome == "nonsense" else answer(body)
            message = {"message": {"role": "assistant", "content": content}}
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            self.reply(200, {"choices": [message], "usage": usage})

        def reply(self, code: int, data: dict[str, Any]) -> None:
            text = json.dumps(data).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
