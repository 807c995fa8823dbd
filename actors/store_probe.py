"""Names a store that died in mid-run while those who write to it are still trying again."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.watchdog import say
from pipeline import mirror, object_store

EVERY_SECONDS = 10.0
# One refusal in a while is what a busy store does.
PATIENCE = 2


@contextmanager
def store_probed(
    folder: Path, say: Callable[[str], None] = say, every: float = EVERY_SECONDS
) -> Iterator[None]:
    """While the block runs, ask the store behind ``folder`` how it is; nothing on a local disk.

    Says once that it is not well, after so many bad answers in a row, and once that it is again.
    """
    remote = mirror.remote_of(folder)
    if remote is None:
        yield
        return
    stop = threading.Event()

    def probe() -> None:
        bad = 0
        while not stop.wait(every):
            trouble = object_store.trouble(remote.bucket, remote.key)
            if trouble is None and bad >= PATIENCE:
                say(f"the store of s3://{remote.bucket}/{remote.key} answers again")
            bad = bad + 1 if trouble else 0
            if trouble and bad == PATIENCE:
                say(trouble)

    prober = threading.Thread(target=probe, daemon=True)
    prober.start()
    try:
        yield
    finally:
        stop.set()
        prober.join()
