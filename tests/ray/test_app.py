"""The application on Ray Serve, over real HTTP: batching, load, bad requests, raw bytes."""

import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from ray import serve

from actors.edit_service import ServiceSettings, bind, start_http
from pipeline.serving.command import SAMPLE
from pipeline.serving.settings import Limits
from tests.tiny_export import EFFECTS, write_tiny_export
from tests.unit.serving.bad_requests import EDIT, JPEG, bad_requests, photograph

pytestmark = [pytest.mark.slow, pytest.mark.timeout(800)]
LIMITS = Limits(upload_bytes=30_000, pixels=1_000_000, read_seconds=5.0)
PATIENCE = 120.0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    settings = ServiceSettings(
        export=write_tiny_export(folder / "student"),
        device="cpu",
        dtype="float32",
        replicas=1,
        batch=8,
        batch_wait=3.0,
        threads=2,
        sample=SAMPLE,
        cache=folder / "thumbnails",
        limits=LIMITS,
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start_http("127.0.0.1", port)
    serve.run(bind(settings), name="app", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def post(address: str, effect: str, number: int) -> tuple[httpx2.Response, float]:
    start = time.monotonic()
    answer = httpx2.post(
        f"{address}/api/edit?effect={effect}&seed={number}",
        content=photograph("JPEG", number),
        headers=JPEG,
        timeout=PATIENCE,
    )
    return answer, time.monotonic() - start


def test_eight_users_share_the_forwards(address: str) -> None:
    with ThreadPoolExecutor(8) as users:
        answers = list(users.map(lambda i: post(address, EFFECTS[i], i)[0], range(8)))
    assert [a.status_code for a in answers] == [200] * 8
    assert [a.headers["x-batch"] for a in answers] == ["8"] * 8
    assert len({a.content for a in answers}) == 8
    # And who asks alone waits for nobody for long, and gets the same picture.
    alone, _ = post(address, EFFECTS[3], 3)
    assert alone.headers["x-batch"] == "1"
    assert httpx2.get(f"{address}/thumbnails/neon", timeout=PATIENCE).status_code == 200


def test_eight_at_once_for_a_while(address: str) -> None:
    """Every request of eight busy users is answered; ``-s`` shows how fast."""
    with ThreadPoolExecutor(8) as users:
        rounds = users.map(lambda i: post(address, EFFECTS[i % 8], i), range(80))
        answers = list(rounds)
    assert Counter(a.status_code for a, _ in answers) == {200: 80}
    seconds = [s for _, s in answers]
    batches = [int(a.headers["x-batch"]) for a, _ in answers]
    cuts = statistics.quantiles(seconds, n=20)
    print(f"\np50 {cuts[9]:.2f} s, p95 {cuts[18]:.2f} s, mean batch {statistics.mean(batches):.1f}")
    assert max(batches) == 8


def test_a_thousand_bad_requests_over_http(address: str) -> None:
    statuses: Counter[int] = Counter()
    with httpx2.Client(base_url=address, timeout=PATIENCE) as http:
        for bad in bad_requests(1000, LIMITS.upload_bytes, seed=2):
            body = bad.body if isinstance(bad.body, bytes) else iter(bad.body)
            answer = http.request(bad.method, bad.path, content=body, headers=bad.headers)
            statuses[answer.status_code] += 1
            assert 400 <= answer.status_code < 500, (bad, answer.status_code)
        assert http.get("/healthz").json()["ready"]
    assert statuses.total() == 1000
    assert post(address, "snow", 0)[0].status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /thumbnails/../../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"POST /api/edit?effect=snow HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
        b"Content-Length: 99999999999\r\n\r\nx",
        b"POST /api/edit?effect=snow HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_raw_bytes_are_refused(address: str, raw: bytes) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(raw)
        answer = line.recv(4096)
    status = answer.split(b" ")[1] if answer else b"400"
    assert status.startswith((b"4", b"3")), answer[:200]
    assert b"root:" not in answer
    assert httpx2.get(f"{address}/healthz", timeout=PATIENCE).json()["ready"]


def test_an_address_of_elsewhere_is_answered_from_here(address: str) -> None:
    """Servers must take a whole address in a request (RFC 9112, 3.2.2); ours fetches none."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(
            b"GET http://169.254.169.254/healthz HTTP/1.1\r\nHost: 169.254.169.254\r\n"
            b"Connection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    assert b"200 OK" in answer and b'"ready":true' in answer


def test_a_body_that_never_ends_is_given_up(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = "POST /api/edit?effect=snow HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(f"{head}Content-Length: 1000\r\n\r\nx".encode())
        assert line.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_visitor_who_leaves_costs_the_others_nothing(address: str) -> None:
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{address}{EDIT}", content=photograph("JPEG"), headers=JPEG, timeout=0.3)
    assert post(address, "fog", 1)[0].status_code == 200


def test_what_is_kept_is_only_thumbnails(
    address: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = [p.name for p in tmp_path_factory.getbasetemp().glob("app*/thumbnails/*")]
    assert {Path(name).stem for name in kept} <= set(EFFECTS)
