"""Chaos: the same run twice, once in peace and once with processes killed at random.

Both begin from nothing in their own output folder, on a two-node Ray cluster of this process's
own. The students must be the same file, and a kill must cost no more than the work since the last
checkpoint and the time in which Ray starts a process again.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from actors.run_place import RunPlace, latest_run
from pipeline import mirror
from pipeline.config import Recipe
from pipeline.mirror import local_path
from pipeline.places import Places
from pipeline.progress import read_progress
from pipeline.stages.killing import Ground, Victim, kill, killing_ground
from pipeline.storage import sha256_file, write_atomic

# A run that ends so often by itself, without a step forward, will not end well.
MOST_FAILURES = 5
_POLL_SECONDS = 0.2
# The second node is away for so long after its raylet was killed.
_AWAY_SECONDS = (1.0, 10.0)


@dataclass
class Kill:
    """One kill: when (seconds of the run), of what, and what it cost.

    round, checkpoint: where the student was, and what it could go back to; redone: rounds that it
    did again; recovered: seconds until it was one round further than before; lost: of these, what
    redoing the rounds does not account for. The last three are None where the next kill came
    before, or outside the distillation.
    """

    at: float
    kind: str
    round: int
    checkpoint: int
    redone: int | None = None
    recovered: float | None = None
    lost: float | None = None


@dataclass
class Outcome:
    """A finished run: its student's sha256, how long it took, and what was done to it."""

    sha256: str
    seconds: float
    kills: list[Kill] = field(default_factory=list)
    restarts: int = 0


@dataclass(frozen=True)
class ChaosReport:
    """The undisturbed run against the disturbed ones."""

    undisturbed: Outcome
    disturbed: list[Outcome]
    seed: int

    @property
    def same(self) -> bool:
        """Whether all students are the same file."""
        return {o.sha256 for o in self.disturbed} == {self.undisturbed.sha256}


class Driver:
    """The run's driver as a process of its own, started again where it does not end well."""

    def __init__(self, recipe: str, overrides: Sequence[str], output: str, address: str) -> None:
        changes = [f"output={output}", "cluster.student_group.max_failures=-1"]
        given = [flag for change in [*overrides, *changes] for flag in ("--set", change)]
        self._command = [sys.executable, "-m", "pipeline", "distill", recipe, *given]
        self._environment = os.environ | {"RAY_ADDRESS": address}
        self.places = Places.of(output)
        # Of a run in S3 too it is on this machine, as what the driver does is.
        self.log = self.places.output / "driver.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start it, for the first time or again."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log
            )
        self.starts += 1

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        assert self._process is not None
        return self._process.poll()

    @property
    def victim(self) -> Victim:
        """The driver itself."""
        assert self._process is not None
        return Victim("driver", self._process.pid)

    def stop(self) -> None:
        """End it, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def round(self) -> int:
        """Rounds done by the history's last line: it falls back when rounds are done again."""
        try:
            lines = self.places.history.read_text().splitlines()
        except OSError:
            return 0
        for line in reversed(lines):
            with suppress(ValueError, KeyError):
                return int(json.loads(line)["round"]) + 1
        return 0

    def checkpoint(self) -> int:
        """The round of the latest checkpoint."""
        progress = read_progress(self.places)
        if progress is not None and progress.run_key:
            return RunPlace(self.places.training, progress.run_key).checkpointed_round()
        # A driver that was started again has not come to its name.
        place: RunPlace | None = latest_run(self.places.training)
        return place.checkpointed_round() if place else 0

    def student(self) -> Path:
        """The finished student."""
        (file,) = self.places.training.glob("*/student.safetensors")
        return file


def run_through(driver: Driver, between: "Killer | None" = None) -> Outcome:
    """Run to the end, with something done to it in between; restarts what was killed.

    Raises:
        RuntimeError: the driver ended by itself, again and again without a step forward.
    """
    began, failures, best = time.monotonic(), 0, -1
    driver.start()
    try:
        while (code := driver.poll()) != 0:
            if code is not None:
                ours = between is not None and between.took_driver()
                failures = 0 if ours or driver.round() > best else failures + 1
                best = max(best, driver.round())
                if failures > MOST_FAILURES:
                    raise RuntimeError(f"the run ended with {code} by itself: see {driver.log}")
                driver.start()
            if between is not None:
                between.step()
            time.sleep(_POLL_SECONDS)
    finally:
        driver.stop()
    if between is not None:
        between.step()
    kills = between.kills if between else []
    sha256 = sha256_file(driver.student())
    return Outcome(sha256, time.monotonic() - began, kills, driver.starts - 1)


class Killer:
    """Kills one process at a time, at random, and measures what it costs."""

    def __init__(
        self, ground: Ground, driver: Driver, rng: random.Random, every: float, until: float
    ) -> None:
        self._ground, self._driver, self._rng = ground, driver, rng
        self._every, self._until = every, until
        self._began = time.monotonic()
        self._next = self._began + self._pause()
        self._renew_at: float | None = None
        self._driver_killed = False
        self._lowest = 0
        self.kills: list[Kill] = []

    def took_driver(self) -> bool:
        """Whether the driver's end was this one's doing; asked once an end."""
        mine, self._driver_killed = self._driver_killed, False
        return mine

    def step(self) -> None:
        """Look; kill if it is time; bring the second node back if it is."""
        now = time.monotonic()
        self._measure(now)
        if self._renew_at is not None and now >= self._renew_at:
            self._ground.renew_second()
            self._renew_at = None
        if now < self._next or now > self._until or self._driver.poll() is not None:
            return
        victims = [*self._ground.workers(), self._driver.victim]
        if self._renew_at is None:
            victims.append(self._ground.second_raylet)
        # By kind first: three teachers are not three times the chance.
        kind = self._rng.choice(sorted({v.kind for v in victims}))
        victim = self._rng.choice([v for v in victims if v.kind == kind])
        self.strike(victim)
        self._next = time.monotonic() + self._pause()

    def strike(self, victim: Victim) -> None:
        """Kill one, and write down where the run was."""
        at = time.monotonic()
        done, saved = self._driver.round(), self._driver.checkpoint()
        kill(victim)
        self.kills.append(Kill(at - self._began, victim.kind, done, saved))
        print(f"{at - self._began:6.1f} s  killed {victim.kind} at round {done}", flush=True)
        self._lowest = done
        self._driver_killed |= victim.kind == "driver"
        if victim.kind == "raylet":
            self._renew_at = at + self._rng.uniform(*_AWAY_SECONDS)

    def _measure(self, now: float) -> None:
        if not self.kills or self.kills[-1].recovered is not None:
            return
        last = self.kills[-1]
        done = self._driver.round()
        self._lowest = min(self._lowest, done)
        if last.round and done > last.round:
            since = now - self._began - last.at
            rows = [json.loads(line) for line in self._tail()]
            each = sum(r["seconds_update"] + r["seconds_wait"] for r in rows) / max(len(rows), 1)
            last.redone = last.round - self._lowest
            last.recovered = since
            last.lost = max(0.0, since - last.redone * each)

    def _tail(self) -> list[str]:
        return self._driver.places.history.read_text().splitlines()[-4:]

    def _pause(self) -> float:
        return self._rng.uniform(0.5, 1.5) * self._every


def chaos(
    recipe: Recipe, path: str, overrides: Sequence[str], minutes: float, seed: int, every: float
) -> ChaosReport:
    """One undisturbed run, then disturbed ones until the minutes are over; the last one ends."""
    folder = f"{_absolute(recipe.output)}/chaos"
    cluster, rng = recipe.cluster, random.Random(seed)
    # A server for real runs is no place for these; bits repeat at one size of the group only.
    workers = cluster.student_group.logical_ranks
    overrides = [*overrides, "tracking.uri=null", f"cluster.student_group.workers={workers}"]
    # The drivers join a cluster, where a relative path means nothing.
    overrides += [f"bank={_absolute(recipe.bank)}"]
    from actors.session import asked_cpus, asked_resources

    with killing_ground(asked_cpus(cluster), asked_resources(cluster)) as ground:
        print("undisturbed run", flush=True)
        peace = run_through(Driver(path, overrides, f"{folder}/undisturbed", ground.address))
        print(f"{peace.sha256[:16]} in {peace.seconds:.0f} s", flush=True)
        until, disturbed = time.monotonic() + 60 * minutes, list[Outcome]()
        while not disturbed or time.monotonic() < until:
            print(f"disturbed run {len(disturbed)}", flush=True)
            output = f"{folder}/disturbed-{len(disturbed)}"
            driver = Driver(path, overrides, output, ground.address)
            killer = Killer(ground, driver, rng, every, until)
            disturbed.append(run_through(driver, killer))
            print(f"{disturbed[-1].sha256[:16]} in {disturbed[-1].seconds:.0f} s", flush=True)
    report = ChaosReport(peace, disturbed, seed)
    text = json.dumps(asdict(report) | {"same": report.same}, indent=1)
    write_atomic(f"{folder}/chaos.json", text.encode())
    return report


def _absolute(place: str) -> str:
    path = local_path(place)
    return mirror.address(path) or str(path.resolve())


def describe(report: ChaosReport) -> str:
    """For a person: some lines."""
    kills = [k for outcome in report.disturbed for k in outcome.kills]
    counts = {kind: sum(k.kind == kind for k in kills) for kind in sorted({k.kind for k in kills})}
    lost = [k.lost for k in kills if k.lost is not None]
    lines = [
        f"{len(kills)} kills (seed {report.seed}): "
        + ", ".join(f"{kind} {count}" for kind, count in counts.items()),
        f"{len(report.disturbed)} disturbed runs, {sum(o.restarts for o in report.disturbed)} "
        f"driver restarts; undisturbed {report.undisturbed.seconds:.0f} s, disturbed "
        + ", ".join(f"{o.seconds:.0f} s" for o in report.disturbed),
    ]
    if lost:
        lines.append(
            f"lost beyond the work since the checkpoint, {len(lost)} kills measured: median "
            f"{sorted(lost)[len(lost) // 2]:.1f} s, most {max(lost):.1f} s"
        )
    verdict = "the same student each time" if report.same else "STUDENTS DIFFER"
    return "\n".join([*lines, f"{verdict}: sha256 {report.undisturbed.sha256}"])
