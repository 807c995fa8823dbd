"""``collectionlora app``: the web application on Ray Serve, until it is stopped."""

import argparse
import os
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.editing.command import add_model_arguments, resolve_device
from pipeline.problems import InputError, Problem
from pipeline.serving.settings import Limits

if TYPE_CHECKING:
    from actors.edit_service import ServiceSettings
    from pipeline.editing.student_export import StudentExport

NAME = "collectionlora"
SAMPLE = Path(__file__).parents[1] / "miniature" / "photographs" / "test" / "chelsea.jpg"
# Serve gives its own proxy seconds, within which a busy small machine does not start it.
SERVE_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "600",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
# Pictures on their way between two processes are all that the object store holds.
OBJECT_STORE_BYTES = 200 * 2**20


def add_app(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    text = "try an exported student's effects in a browser (Ray Serve)"
    command = commands.add_parser(
        "app",
        help=text,
        description=f"{text}. It listens on this machine alone unless --host says otherwise; "
        "it has no accounts, so put a proxy that has some before it where others can reach it.",
        epilog="example: collectionlora app --adapter runs/demo/student --port 8000",
    )
    add_model_arguments(command)
    limits = Limits()
    command.add_argument("--host", default="127.0.0.1", help="address to listen on")
    command.add_argument("--port", type=int, default=8000)
    command.add_argument("--replicas", type=int, default=1, help="processes with a model each")
    command.add_argument("--batch", type=int, default=8, help="pictures that may share a forward")
    command.add_argument(
        "--batch-wait", type=float, default=0.03, metavar="S", help="seconds to wait for others"
    )
    command.add_argument("--threads", type=int, help="of each replica; the machine's cores")
    command.add_argument(
        "--max-bytes", type=int, default=limits.upload_bytes, help="of one photograph"
    )
    command.add_argument("--max-pixels", type=int, default=limits.pixels, help="of one photograph")
    command.add_argument(
        "--timeout", type=float, default=limits.edit_seconds, metavar="S", help="of one edit"
    )
    command.add_argument("--sample", type=Path, default=SAMPLE, help="photograph of the thumbnails")
    command.add_argument("--cache", type=Path, help="folder of the thumbnails; else the user's")
    command.set_defaults(command=run_app)


def run_app(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    from actors.edit_service import ServiceSettings
    from pipeline.editing.student_export import read_export
    from pipeline.images import open_image

    _check(arguments)
    export = read_export(arguments.adapter.resolve(), arguments.base)
    device, dtype = resolve_device(arguments.device, arguments.dtype)
    open_image(arguments.sample)
    limits = Limits(
        upload_bytes=arguments.max_bytes,
        pixels=arguments.max_pixels,
        edit_seconds=arguments.timeout,
    )
    settings = ServiceSettings(
        export=replace(export, base=export.base.resolve()),
        device=device,
        dtype=dtype,
        replicas=arguments.replicas,
        batch=arguments.batch,
        batch_wait=arguments.batch_wait,
        threads=arguments.threads or os.cpu_count() or 1,
        sample=arguments.sample.resolve(),
        cache=thumbnail_folder(arguments.cache or user_cache(), export, arguments.sample, dtype),
        limits=limits,
    )
    _serve(settings, arguments.host, arguments.port)


def thumbnail_folder(root: Path, export: "StudentExport", sample: Path, dtype: str) -> Path:
    """Where the thumbnails of this very student, base and photograph are kept."""
    from pipeline.models.fingerprint import fingerprint
    from pipeline.storage import content_key, sha256_file

    base = fingerprint(str(export.base), "transformer", "vae", "text_encoder")
    made_with = [export.steps, export.shift, export.prompts, dtype]
    key = content_key(sha256_file(export.weights), base, sha256_file(sample), made_with)
    return (root / "thumbnails" / key[:16]).resolve()


def user_cache() -> Path:
    """The user's cache folder, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / NAME


def _check(arguments: argparse.Namespace) -> None:
    """Flags out of range, and a port that is taken: Serve would say so late and at length."""
    problems = [
        Problem(flag, "", value, "out of range", f"give a value from {least:g} up")
        for flag, value, least in (
            ("--replicas", arguments.replicas, 1),
            ("--batch", arguments.batch, 1),
            ("--batch-wait", arguments.batch_wait, 0),
            ("--threads", arguments.threads if arguments.threads is not None else 1, 1),
            ("--max-bytes", arguments.max_bytes, 1),
            ("--max-pixels", arguments.max_pixels, 64),
            ("--timeout", arguments.timeout, 0.001),
        )
        if value < least
    ]
    if not 1 <= arguments.port <= 65535:
        problems.append(Problem("--port", "", arguments.port, "no port", "give 1 to 65535"))
    else:
        try:
            with socket.create_server((arguments.host, arguments.port)):
                pass
        except OSError as error:
            what = f"cannot listen on {arguments.host}: {error.strerror}"
            problems.append(Problem("--port", "", arguments.port, what, "give another"))
    if problems:
        raise InputError(problems)


def _serve(settings: "ServiceSettings", host: str, port: int) -> None:
    import ray
    from ray import serve

    from actors.edit_service import bind, start_http

    for name, value in SERVE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet = {"log_to_driver": bool(os.environ.get("COLLECTIONLORA_ACTOR_LOGS"))}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(namespace=NAME, logging_level="warning", **quiet)
    else:
        # "local": some other cluster of this machine is none of ours.
        ray.init(
            address="local",
            namespace=NAME,
            logging_level="warning",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
    stopped = threading.Event()
    # Ray's own handler of SIGTERM would leave the replicas to end by themselves.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        # Longer than an edit may take, so that it is the application that says what was too long.
        timeout = settings.limits.edit_seconds + settings.limits.read_seconds + 10
        start_http(host, port, timeout)
        serve.run(bind(settings), name=NAME, route_prefix="/")
        print(f"http://{host}:{port}  (Ctrl-C stops it)", flush=True)
        stopped.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
