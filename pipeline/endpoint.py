"""Asking a vision-language model over HTTP: an OpenAI-compatible endpoint, asked with manners.

Requests that fail (refused connections, timeouts, 408, 429, 5xx) are repeated by urllib3's own
``Retry``, which heeds ``Retry-After``; every attempt keeps to the rate limit. Answers that cannot
be used are asked again with what was wrong with them, a bounded number of times.
"""

import base64
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any, Generic, Self, TypeVar

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from pipeline.config import EndpointSettings

# What a server may answer for a while; other statuses from 400 on will not change.
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
MAX_SIDE = 512

Message = dict[str, Any]
Value = TypeVar("Value")


class RefusedError(Exception):
    """The endpoint will answer no request of this kind: a wrong key, model or address."""


class UnansweredError(Exception):
    """One question got no usable answer; ``usage`` is what it cost all the same."""

    def __init__(self, reason: str, usage: "Usage") -> None:
        super().__init__(reason)
        self.usage = usage


@dataclass
class Usage:
    """What questions cost: asks, HTTP requests (the repeated ones too), tokens and seconds.

    ``rejected``: why answers were not taken, in order.
    """

    asks: int = 0
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    rejected: list[str] = field(default_factory=list)

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(**{name: value + vars(other)[name] for name, value in vars(self).items()})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Settled(Generic[Value]):
    """A usable answer and what it took."""

    value: Value
    usage: Usage


class Pace:
    """At most so many starts a minute, evenly spaced, whichever thread asks."""

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + self._interval
        time.sleep(max(0.0, start - time.monotonic()))


class _PacedRetry(Retry):
    """urllib3's retries; each waits for its turn, as first attempts do."""

    pace: Pace

    def new(self, **kw: Any) -> Self:
        copy = super().new(**kw)
        copy.pace = self.pace
        return copy

    def sleep(self, response: Any = None) -> None:
        super().sleep(response)
        self.pace.wait()


class Endpoint:
    """One process's way to an endpoint; safe to use from its threads.

    The key is read from the environment here and kept in the session's headers alone.
    """

    def __init__(self, settings: EndpointSettings, backoff: float = 0.5) -> None:
        self.settings = settings
        self._pace = Pace(settings.requests_per_minute / settings.actors)
        retry = _PacedRetry(
            total=settings.retries,
            status_forcelist=PASSING,
            allowed_methods=None,
            backoff_factor=backoff,
            backoff_max=60,
            backoff_jitter=backoff,
            retry_after_max=120,
            raise_on_status=False,
        )
        retry.pace = self._pace
        self._session = requests.Session()
        # A proxy or a .netrc of the machine must not send keys or pictures elsewhere.
        self._session.trust_env = False
        for scheme in ("http://", "https://"):
            adapter = HTTPAdapter(max_retries=retry, pool_maxsize=settings.concurrency)
            self._session.mount(scheme, adapter)
        if key := os.environ.get(settings.key_env):
            self._session.headers["Authorization"] = f"Bearer {key}"

    def ask(self, messages: Sequence[Message], max_tokens: int, seed: int, usage: Usage) -> str:
        """The answer's text; ``usage`` is added to.

        Raises:
            RefusedError: a status that repeating will not change.
            ValueError: no answer for now, or one that is no chat completion.
        """
        body = {
            "model": self.settings.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "seed": seed,
        }
        usage.asks += 1
        self._pace.wait()
        start = time.monotonic()
        try:
            url = f"{self.settings.url.rstrip('/')}/chat/completions"
            response = self._session.post(url, json=body, timeout=self.settings.timeout)
        except requests.RequestException as error:
            usage.requests += self.settings.retries + 1
            raise ValueError(f"no answer ({type(error).__name__})") from None
        finally:
            usage.seconds += time.monotonic() - start
        history = response.raw.retries.history if response.raw.retries is not None else ()
        usage.requests += 1 + len(history)
        if response.status_code in PASSING:
            raise ValueError(f"no answer (HTTP {response.status_code})")
        if response.status_code >= 400:
            said = " ".join(response.text.split())[:200]
            raise RefusedError(f"HTTP {response.status_code}: {said}")
        try:
            data = response.json()
            spent = data.get("usage") or {}
            text = data["choices"][0]["message"]["content"]
            usage.tokens_in += int(spent.get("prompt_tokens", 0))
            usage.tokens_out += int(spent.get("completion_tokens", 0))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError("not a chat completion") from None
        if not isinstance(text, str):
            raise ValueError("a chat completion without text")
        return text

    def settle(
        self,
        messages: Sequence[Message],
        read: Callable[[str], Value],
        max_tokens: int,
        seed: int,
    ) -> Settled[Value]:
        """Ask until ``read`` takes the answer; each time it is told what it raised ValueError for.

        Raises:
            RefusedError: as :meth:`ask`.
            UnansweredError: as many asks as the settings allow brought nothing usable.
        """
        usage, talk = Usage(), list(messages)
        for attempt in range(self.settings.asks):
            text = ""
            try:
                text = self.ask(talk, max_tokens, seed + attempt, usage)
                return Settled(read(text), usage)
            except ValueError as error:
                usage.rejected.append(str(error))
            talk = list(messages)
            if text:
                talk.append({"role": "assistant", "content": text[:2000]})
                correction = f"That cannot be used: {usage.rejected[-1]}. Answer again, in full."
                talk.append({"role": "user", "content": correction})
        raise UnansweredError(usage.rejected[-1], usage)


def picture_part(image: Image.Image, side: int = MAX_SIDE) -> dict[str, Any]:
    """An image as a part of a message: scaled to at most ``side`` px, PNG, inline."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def text_part(text: str) -> dict[str, str]:
    """Words as a part of a message."""
    return {"type": "text", "text": text}
