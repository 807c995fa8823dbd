"""Checks of the addresses in a recipe: which schemes, and what a cluster's other nodes can see."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import object_store
from pipeline.config import Recipe
from pipeline.mirror import shown
from pipeline.object_store import parse_address
from pipeline.problems import Problem, StorageError

# Stores that MLflow speaks to by itself; its plugins' schemes are code of others.
TRACKING = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
# What pipeline.models.local fetches.
MODELS = ("s3", "hf")


def address_problems(
    file: str, recipe: Recipe, environment: Mapping[str, str] = os.environ
) -> Iterator[Problem]:
    """What is wrong with the recipe's paths as addresses; nothing is read but the bucket's name.

    Raises:
        StorageError: the object store does not answer.
    """
    for field, text in (("bank", recipe.bank), ("output", recipe.output)):
        yield from _place_problems(file, field, text, environment)
    scheme, separator, _ = recipe.model.path.partition("://")
    if separator and scheme not in MODELS:
        what = f"{scheme}:// is not read"
        remedy = "give a folder that every node has, s3://BUCKET/NAME or hf://OWNER/NAME"
        yield Problem(file, "model.path", shown(recipe.model.path), what, remedy)
    if recipe.tracking.uri is not None:
        yield from _tracking_problems(file, recipe.tracking.uri)


def _place_problems(
    file: str, field: str, text: str, environment: Mapping[str, str]
) -> Iterator[Problem]:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        path = Path(rest if separator else text)
        cluster = environment.get("RAY_ADDRESS", "local") not in ("", "local")
        if cluster and not path.is_absolute():
            what = "relative, while RAY_ADDRESS names a cluster, whose nodes start elsewhere"
            remedy = "give an absolute path on a disk that all nodes share, or s3://BUCKET/NAME"
            yield Problem(file, field, text, what, remedy)
        return
    remedy = "give a path, or s3://BUCKET/NAME"
    if scheme != "s3":
        yield Problem(file, field, shown(text), f"{scheme}:// is not read or written", remedy)
        return
    try:
        bucket, key = parse_address(text)
    except ValueError as error:
        yield Problem(file, field, shown(text), str(error), remedy)
        return
    if field == "output" and not key:
        what = "a whole bucket: other things in it would be taken for the run's"
        yield Problem(file, field, text, what, "add a name, s3://BUCKET/NAME")
        return
    try:
        object_store.listing(bucket, f"{key}/.none".lstrip("/"))
    except StorageError as error:
        if "no such bucket" not in str(error):
            raise
        yield Problem(file, field, text, "no such bucket", "create it, or correct the name")


def _tracking_problems(file: str, uri: str) -> Iterator[Problem]:
    scheme = uri.partition("://")[0].partition("+")[0]
    if "://" not in uri or scheme not in TRACKING:
        remedy = f"give one of {', '.join(f'{name}://' for name in TRACKING)}"
        yield Problem(file, "tracking.uri", shown(uri), "no store that is written to", remedy)
    elif urlsplit(uri).password is not None:
        what = "a password in it, which the recipe, MLflow and logs would show"
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSWORD"
        yield Problem(file, "tracking.uri", shown(uri), what, remedy)
