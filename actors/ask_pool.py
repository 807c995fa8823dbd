"""The ask pool: questions to a vision-language endpoint, several in flight, a file an answer."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import EndpointSettings
from pipeline.endpoint import Endpoint, RefusedError, Settled, UnansweredError, Usage
from pipeline.storage import write_atomic

# Settles one row's question; the value goes into the answer's file.
Question = Callable[[Endpoint, Mapping[str, Any]], Settled[Any]]


class AskActor:
    """Settles rows by ``question``; each usable answer is ``folder/<key>.json`` at once and whole.

    Nothing else is written: a question without an answer leaves no file, so that another run
    asks it, and it alone. What comes back is columns ``key``, ``error`` (empty: answered),
    ``refused`` (the endpoint takes no such request; no further row is tried) and ``usage``, JSON.
    """

    def __init__(self, endpoint: dict[str, Any], folder: str, question: Question) -> None:
        settings = EndpointSettings.model_validate(endpoint)
        self.endpoint = Endpoint(settings)
        self.folder = Path(folder)
        self.question = question
        self.refused = ""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        names = list(batch)
        rows = [
            dict(zip(names, values, strict=True))
            for values in zip(*(batch[name] for name in names), strict=True)
        ]
        with ThreadPoolExecutor(self.endpoint.settings.concurrency) as pool:
            outcomes = list(pool.map(self._settle, rows))
        errors, refused, usages = zip(*outcomes, strict=True)
        return {
            "key": np.asarray(batch["key"]),
            "error": np.asarray(errors, dtype=object),
            "refused": np.asarray(refused),
            "usage": np.asarray([json.dumps(usage.to_dict()) for usage in usages], dtype=object),
        }

    def _settle(self, row: Mapping[str, Any]) -> tuple[str, bool, Usage]:
        if self.refused:
            return self.refused, True, Usage()
        try:
            settled = self.question(self.endpoint, row)
        except RefusedError as error:
            self.refused = str(error)
            return self.refused, True, Usage()
        except UnansweredError as error:
            return str(error), False, error.usage
        answer = {"value": settled.value, "usage": settled.usage.to_dict()}
        text = json.dumps(answer, ensure_ascii=False, indent=1) + "\n"
        write_atomic(self.folder / f"{row['key']}.json", text.encode())
        return "", False, settled.usage
