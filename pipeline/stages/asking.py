"""Questions through the ask pool, and the answers on disk: what is asked is what is missing."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import EndpointSettings, PoolSettings
from pipeline.endpoint import Settled, Usage
from pipeline.problems import InputError, Problem

# Rows an actor takes at once, by requests in flight: a slow answer then holds up few.
_ROWS_A_SLOT = 4


@dataclass(frozen=True)
class Asked:
    """One pass over what was missing: its cost, and the questions left without an answer."""

    usage: Usage
    unanswered: dict[str, str]


def ask(
    rows: Sequence[Mapping[str, Any]],
    question: Callable[..., Settled[Any]],
    endpoint: EndpointSettings,
    folder: Path,
    label: str,
) -> Asked:
    """Ask the endpoint about rows (each with its ``key``); answers land in ``folder``.

    Raises:
        InputError: the endpoint refuses these requests (key, model, address).
    """
    from actors.ask_pool import AskActor
    from actors.pool import through_pool

    folder.mkdir(parents=True, exist_ok=True)
    arguments = {
        "endpoint": endpoint.model_dump(),
        "folder": str(folder.resolve()),
        "question": question,
    }
    pool = PoolSettings(min=endpoint.actors, max=endpoint.actors, num_cpus=0.5)
    batch = _ROWS_A_SLOT * endpoint.concurrency
    total, unanswered = Usage(), {}
    for done in through_pool(rows, AskActor, arguments, pool, batch, label):
        columns = (done[name] for name in ("key", "error", "refused", "usage"))
        for key, error, refused, usage in zip(*columns, strict=True):
            if refused:
                what = f"the endpoint refuses requests ({error})"
                remedy = f"check its url and model, and the key in ${endpoint.key_env}"
                raise InputError([Problem(endpoint.url, "", endpoint.model, what, remedy)])
            total = total + Usage(**json.loads(str(usage)))
            if error:
                unanswered[str(key)] = str(error)
    return Asked(total, unanswered)


def answer(folder: Path, key: str) -> Settled[Any] | None:
    """The answer under a key, if there is one. A file that cannot be read is none: asked again."""
    try:
        data = json.loads((folder / f"{key}.json").read_bytes())
        return Settled(data["value"], Usage(**data["usage"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def cost_lines(usage: Usage, questions: int, endpoint: EndpointSettings) -> list[str]:
    """What answers took, for a report: asks, requests, tokens, time, money if prices are given."""
    again = usage.asks - questions
    repeated = usage.requests - usage.asks
    lines = [
        f"{questions} answers by {endpoint.model} took {usage.asks} asks ({again} asked again "
        f"because the answer could not be used) and {usage.requests} requests ({repeated} "
        f"repeated by failures), {usage.tokens_in:,} + {usage.tokens_out:,} tokens, "
        f"{usage.seconds:.0f} s of waiting."
    ]
    price_in, price_out = endpoint.price
    if price_in or price_out:
        dollars = (usage.tokens_in * price_in + usage.tokens_out * price_out) / 1e6
        lines.append(f"At {price_in:g} + {price_out:g} USD a million tokens: {dollars:.2f} USD.")
    return lines
