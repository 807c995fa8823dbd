"""Where a model's folder is: a path as it is, a bucket's prefix once, a pickle never."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse
from xml.sax.saxutils import escape

import pytest

from pipeline.models.families import QWEN_IMAGE_EDIT, family_of
from pipeline.models.local import CACHE, _from_bucket, absolute, local_model
from pipeline.problems import InputError

INDEX = b'{"_class_name": "QwenImageEditPlusPipeline"}'
OBJECTS = {
    "models/edit/model_index.json": INDEX,
    "models/edit/transformer/weights.safetensors": b"x" * 5000,
    "models/edit/text_encoder/pytorch_model.bin": b"a pickle",
    "models/edit/../../outside.json": b"{}",
    "models/edit-other/model_index.json": b"{}",
}


class Bucket(BaseHTTPRequestHandler):
    """Enough of S3's protocol to list and to get."""

    objects: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        url = urlparse(self.path)
        query = parse_qs(url.query)
        if "list-type" in query:
            entries = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(value)}</Size>"
                f'<ETag>"{hash(value)}"</ETag></Contents>'
                for key, value in self.objects.items()
                if key.startswith(query["prefix"][0])
            )
            content = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}"
            return self._send(200, (content + "</ListBucketResult>").encode(), body)
        key = url.path.removeprefix("/bucket/")
        if body:
            self.asked.append(key)
        if key not in self.objects:
            return self._send(404, b"", body)
        return self._send(200, self.objects[key], body)

    def _send(self, status: int, content: bytes, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Not to the test's output."""


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    Bucket.objects, Bucket.asked = dict(OBJECTS), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    _from_bucket.cache_clear()
    yield Bucket
    server.shutdown()
    server.server_close()
    _from_bucket.cache_clear()


def test_a_path_is_as_it_is(tmp_path: Path) -> None:
    assert local_model(tmp_path) == tmp_path
    assert local_model("models/edit") == Path("models/edit")
    assert absolute("models/edit") == str(Path.cwd() / "models/edit")
    assert absolute("s3://bucket/edit") == "s3://bucket/edit"


def test_a_prefix_comes_once_and_without_pickles(bucket: type[Bucket]) -> None:
    folder = local_model("s3://bucket/models/edit")
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {"model_index.json", "transformer/weights.safetensors"}
    assert (folder / "transformer" / "weights.safetensors").read_bytes() == b"x" * 5000
    assert family_of("s3://bucket/models/edit/") is QWEN_IMAGE_EDIT

    fetched = len(bucket.asked)
    _from_bucket.cache_clear()  # another process of this node
    assert local_model("s3://bucket/models/edit") == folder
    assert len(bucket.asked) == fetched

    bucket.objects["models/edit/transformer/weights.safetensors"] = b"y" * 5000
    _from_bucket.cache_clear()
    again = local_model("s3://bucket/models/edit")
    assert (again / "transformer" / "weights.safetensors").read_bytes() == b"y" * 5000


def test_processes_of_a_node_fetch_once(bucket: type[Bucket]) -> None:
    uncached = _from_bucket.__wrapped__
    threads = [
        threading.Thread(target=uncached, args=("s3://bucket/models/edit",)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.asked.count("models/edit/transformer/weights.safetensors") == 1


def test_half_a_download_is_not_a_model(bucket: type[Bucket]) -> None:
    class Listed(dict[str, bytes]):
        def __contains__(self, key: object) -> bool:
            return super().__contains__(key) and not str(key).endswith("safetensors")

    bucket.objects = Listed(OBJECTS)
    with pytest.raises(InputError, match="the bucket did not give it"):
        local_model("s3://bucket/models/edit")
    bucket.objects = dict(OBJECTS)
    folder = local_model("s3://bucket/models/edit")
    assert (folder / "transformer" / "weights.safetensors").stat().st_size == 5000


def test_wrong_addresses_are_reported(bucket: type[Bucket]) -> None:
    with pytest.raises(InputError, match="no model files there"):
        local_model("s3://bucket/models/nothing")
    with pytest.raises(InputError, match="the Hub did not give it"):
        local_model("hf://not a name")
