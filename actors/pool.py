"""Run rows through a Ray Data actor pool, with a progress bar."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy
from tqdm import tqdm

from pipeline.config import PoolSettings


def through_pool(
    rows: Sequence[Mapping[str, Any]],
    actor: type,
    arguments: Mapping[str, Any],
    pool: PoolSettings,
    batch: int,
    label: str,
) -> Iterator[dict[str, Any]]:
    """Yield what ``actor(**arguments)(batch of rows)`` gives, batch by batch.

    ``rows`` are cut into blocks of ``batch``, so that an actor always sees the same rows
    together, however many actors there are: Ray Data wants the size of a batch where there are
    GPUs, and then gathers small blocks; of these each is a batch already, but for the last.
    Actors that are killed are started again by Ray Data and their batch is done again.
    """
    if not rows:
        return
    assert all(row.keys() == rows[0].keys() for row in rows), "a table has the first row's columns"
    cuts = range(0, len(rows), batch)
    blocks = [pa.Table.from_pylist([dict(row) for row in rows[i : i + batch]]) for i in cuts]
    dataset = ray.data.from_arrow(blocks).map_batches(
        actor,
        fn_constructor_kwargs=dict(arguments),
        batch_size=batch,
        compute=ActorPoolStrategy(min_size=pool.min, max_size=pool.max),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
        resources=pool.resources,
    )
    with tqdm(total=len(rows), desc=label, unit="row", mininterval=1.0) as bar:
        for done in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            bar.update(len(next(iter(done.values()))))
            yield done
