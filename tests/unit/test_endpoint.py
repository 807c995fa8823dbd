"""The endpoint's client against a real server that misbehaves."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.ask_pool import AskActor
from pipeline.captions import CaptionRules, ask_caption, caption_of, caption_row
from pipeline.config import EndpointSettings
from pipeline.endpoint import Endpoint, Pace, RefusedError, UnansweredError, Usage, text_part
from tests.fake_endpoint import fake_endpoint, words_of

MESSAGES = [{"role": "user", "content": [text_part("hello")]}]
EFFECTS = [f"effect{i:02d}" for i in range(40)]


def settings(url: str, **changes: Any) -> EndpointSettings:
    values = {"url": url, "model": "fake", "requests_per_minute": 1e6, "timeout": 10.0} | changes
    return EndpointSettings.model_validate(values)


def good_caption(body: dict[str, Any]) -> str:
    name = words_of(body).split('effect, "')[1].split('"')[0]
    return f"Turns the whole picture into {name} with soft light and grain over it."


def rows(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    Image.new("RGB", (16, 16), "red").save(folder / "a.png")
    Image.new("RGB", (16, 16), "blue").save(folder / "b.png")
    pairs = [([folder / "a.png"], folder / "b.png")]
    return [
        caption_row(f"key-{name}", CaptionRules(name, f"do {name}", ("<t1>",), "en"), "", pairs, 0)
        for name in names
    ]


def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_all_done_each_asked_again_only_as_needed(tmp_path: Path) -> None:
    """A fifth of the requests fail, a fifth talks nonsense: nothing is lost or twice."""
    answers = tmp_path / "answers"
    with fake_endpoint(good_caption, fail=0.2, nonsense=0.2) as fake:
        given = settings(fake.url, timeout=120.0, asks=10, retries=10)
        actor = AskActor(given.model_dump(), str(answers), ask_caption)
        done = actor(batch(rows(tmp_path, EFFECTS)))
    usage = sum((Usage(**json.loads(text)) for text in done["usage"]), Usage())
    assert set(done["error"]) == {""}
    assert not done["refused"].any()
    asked = fake.by_question()
    assert len(asked) == len(EFFECTS)
    # Every question ends with the one good answer that it got, and was not asked after that.
    assert all(each[-1] == "good" and each.count("good") == 1 for each in asked.values())
    assert fake.of("failed") + fake.of("dropped") >= 4 and fake.of("nonsense") >= 4
    assert usage.asks == len(EFFECTS) + fake.of("nonsense") == len(EFFECTS) + len(usage.rejected)
    assert usage.requests == len(fake.log)
    assert usage.tokens_in == 100 * (fake.of("good") + fake.of("nonsense"))
    files = sorted(p.name for p in answers.iterdir())
    assert files == sorted(f"key-{name}.json" for name in EFFECTS), "nothing half-written beside"
    for name in EFFECTS:
        answer = json.loads((answers / f"key-{name}.json").read_bytes())
        assert name in caption_of(answer["value"], CaptionRules(name, f"do {name}", (), "en"))


def test_slow_answers_are_waited_for_and_none_at_all_is_asked_again(tmp_path: Path) -> None:
    """Late is no failure and costs one request; silence is left after the timeout, and repeated."""
    answers, silent = tmp_path / "answers", (2, 5, 6, 21)
    with fake_endpoint(good_caption, fail=0.1, nonsense=0.1, slow=silent, late=0.2) as fake:
        given = settings(fake.url, timeout=6.0, asks=10, retries=10)
        actor = AskActor(given.model_dump(), str(answers), ask_caption)
        done = actor(batch(rows(tmp_path, EFFECTS)))
    usage = sum((Usage(**json.loads(text)) for text in done["usage"]), Usage())
    assert set(done["error"]) == {""}
    assert fake.of("slow") == len(silent) and fake.of("late") >= 4
    for each in fake.by_question().values():
        assert each[-1] in fake.GOOD and sum(outcome in fake.GOOD for outcome in each) == 1
    # Silence and failures repeat the request, within one ask; nonsense takes another ask.
    assert usage.requests == len(fake.log)
    assert usage.asks == len(EFFECTS) + fake.of("nonsense") == len(EFFECTS) + len(usage.rejected)
    assert len(list(answers.iterdir())) == len(EFFECTS)


def test_what_has_no_usable_answer_leaves_no_file(tmp_path: Path) -> None:
    def stubborn(body: dict[str, Any]) -> str:
        return "no" if "effect01" in words_of(body) else good_caption(body)

    answers = tmp_path / "answers"
    with fake_endpoint(stubborn) as fake:
        actor = AskActor(settings(fake.url, asks=3).model_dump(), str(answers), ask_caption)
        done = actor(batch(rows(tmp_path, EFFECTS[:3])))
    assert done["error"].tolist() == ["", "it has 1 words, at least 4 are needed", ""]
    assert json.loads(done["usage"][1])["asks"] == 3
    assert [p.name for p in sorted(answers.iterdir())] == ["key-effect00.json", "key-effect02.json"]


def test_the_model_is_told_what_was_wrong() -> None:
    seen: list[list[dict[str, Any]]] = []

    def once_short(body: dict[str, Any]) -> str:
        seen.append(body["messages"])
        return "no" if len(seen) == 1 else "yes"

    def read(text: str) -> str:
        if text != "yes":
            raise ValueError("it is not a yes")
        return text

    with fake_endpoint(once_short) as fake:
        settled = Endpoint(settings(fake.url)).settle(MESSAGES, read, 10, 0)
    assert settled.usage.rejected == ["it is not a yes"]
    assert [m["role"] for m in seen[1]] == ["user", "assistant", "user"]
    assert "it is not a yes" in seen[1][2]["content"]


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_not_repeated(status: int) -> None:
    with fake_endpoint(lambda body: "", fail=1.0, status=status, seed=1) as fake:
        endpoint = Endpoint(settings(fake.url))
        with pytest.raises(RefusedError, match=f"HTTP {status}"):
            for _ in range(5):  # the fake also drops connections now and then
                endpoint.settle(MESSAGES, str, 10, 0)
    assert fake.of("failed") == 1


def test_an_endpoint_that_is_away_is_given_up_on() -> None:
    with fake_endpoint(lambda body: "x") as fake:
        url = fake.url
    endpoint = Endpoint(settings(url, retries=1, asks=2, timeout=1.0), backoff=0.01)
    with pytest.raises(UnansweredError, match="no answer") as error:
        endpoint.settle(MESSAGES, str, 10, 0)
    assert error.value.usage.requests == 4


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "sk-very-secret-42"
    monkeypatch.setenv("MY_KEY", secret)
    with fake_endpoint(good_caption, nonsense=0.3, fail=0.2) as fake:
        given = settings(fake.url, key_env="MY_KEY")
        actor = AskActor(given.model_dump(), str(tmp_path / "answers"), ask_caption)
        done = actor(batch(rows(tmp_path, EFFECTS[:6])))
    assert all(h["Authorization"] == f"Bearer {secret}" for h in fake.headers)
    said = [*done["error"], *done["usage"], given.model_dump_json(), *capfd.readouterr()]
    said += [path.read_text() for path in (tmp_path / "answers").iterdir()]
    assert not any(secret in text for text in said)


def test_the_pace_is_kept_by_all_threads_together() -> None:
    pace, starts = Pace(per_minute=1200), []

    def start() -> None:
        for _ in range(5):
            pace.wait()
            starts.append(time.monotonic())

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(starts) == 15
    assert max(starts) - min(starts) >= 14 * 0.05 - 0.005


def test_repeated_requests_keep_the_pace_too() -> None:
    with fake_endpoint(lambda body: "x", fail=1.0, seed=3) as fake:
        paced = settings(fake.url, requests_per_minute=240, retries=3, asks=1)
        start = time.monotonic()
        with pytest.raises(UnansweredError):
            Endpoint(paced, backoff=0.0).settle(MESSAGES, str, 10, 0)
        assert len(fake.log) == 4
        assert time.monotonic() - start >= 3 * 0.25 - 0.01
