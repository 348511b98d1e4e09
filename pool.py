"""The places for sandboxes: each is taken until its sandbox is gone at E2B, as E2B counts it.

Each sandbox is used once. Kills, and making sandboxes ahead, are off the caller's path."""

import math
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from time import monotonic
from typing import Literal

from config import LIFETIME_MARGIN_S, OVERHEAD_S, Config, log
from metrics import KILLS_FAILED, RUNS, SANDBOX_SECONDS, STEP_SECONDS
from run import Run
from sandbox import KILL_BUDGET_S, Sandbox, Unavailable

# After the last try E2B ends the sandbox itself, at the end of its lifetime.
_KILL_AGAIN_AFTER_S = (0.5, 2, math.inf)
_RENEW_AFTER_S = 5
RETRY_AFTER_S = 5
_SPENT = (
    "The budget of {:,} sandbox seconds a day is spent. It is reset at midnight UTC."
)


class Full(Exception):
    """Every place is taken; there may be one in RETRY_AFTER_S."""


@dataclass(eq=False)
class _Place:
    state: Literal["making", "ready", "running", "ending"]  # making: ahead of a run
    sandbox: Sandbox | None = None


class Pool:
    """At most `max_concurrent_runs` sandboxes, up to `warm_sandboxes` of them made ahead."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._changed, self._closing = threading.Condition(), threading.Event()
        self._places: list[_Place] = []  # the oldest first
        self._waiting = 0
        self._spent_s: defaultdict[date, float] = defaultdict(float)
        self._last_run_at = monotonic()
        self._background = ThreadPoolExecutor(
            config.max_concurrent_runs + config.warm_sandboxes
        )
        for _ in range(config.warm_sandboxes):
            self._background.submit(self._keep_one_ready)

    def run(self, code: str, limit_s: int) -> Run:
        """Run `code` once, for `limit_s` at most. Raises Full; other failures are in the Run."""
        run = Run.empty(self._config.max_output_chars)
        try:
            for is_retry in (False, True):
                with self._sandbox(code, limit_s, run, fresh=is_retry) as sandbox:
                    if sandbox.run(code, limit_s, run):
                        break  # else the sandbox was gone, and nothing has run yet
        except Unavailable as exc:
            run.problem = str(exc)
        for step, duration_s in run.durations_s.items():
            STEP_SECONDS.labels(step).observe(duration_s)
        RUNS.labels(run.outcome).inc()
        return run

    @contextmanager
    def _sandbox(
        self, code: str, limit_s: int, run: Run, fresh: bool
    ) -> Iterator[Sandbox]:
        """The one place where a run gets its sandbox, and where that is ended."""
        started = monotonic()
        place = self._take(fresh)
        run.durations_s["queue"] = monotonic() - started
        try:
            sandbox = place.sandbox
            if not sandbox:
                started = monotonic()
                # What is left is for what remains to be done after the run, on a busy machine too.
                budget_s = run.started_at + OVERHEAD_S - 1.5 - started
                sandbox = self._make(place, limit_s, budget_s, code)
                run.durations_s["create"] = monotonic() - started
            yield sandbox
        finally:
            self._end(place)

    def _take(self, fresh: bool) -> _Place:
        with self._changed:
            if self._budget_is_spent():
                raise Unavailable(_SPENT.format(self._config.sandbox_seconds_per_day))
            self._last_run_at = monotonic()
            place = self._free_place(fresh)
            # A place that is about to be free is waited for, by one caller each.
            if not place and self._waiting < self.count("making") + self.count(
                "ending"
            ):
                self._waiting += 1
                place = self._changed.wait_for(
                    lambda: self._free_place(fresh), KILL_BUDGET_S
                )
                self._waiting -= 1
            if not place:
                RUNS.labels("full").inc()
                raise Full
            return place

    def _free_place(self, fresh: bool) -> _Place | None:
        place = next(
            (p for p in self._places if p.state == "ready" and not fresh), None
        )
        if not place and len(self._places) < self._config.max_concurrent_runs:
            place = _Place("running")
            self._places.append(place)
        if place:
            place.state = "running"
            self._changed.notify_all()
        return place

    def _make(
        self, place: _Place, limit_s: int, budget_s: float, code: str = ""
    ) -> Sandbox:
        place.sandbox = Sandbox(self._config, limit_s + LIFETIME_MARGIN_S, budget_s)
        if self._closing.is_set():
            raise Unavailable("This service is being stopped. Try again in a minute.")
        place.sandbox.prime(place.sandbox.created_at + budget_s - monotonic(), code)
        return place.sandbox

    def _end(self, place: _Place, spare: str = "ending") -> None:
        """Kill its sandbox in the background; the place is free once that is gone."""
        with self._changed:
            if place.state in ("ending", spare):
                return
            place.state = "ending"
            if place.sandbox:
                self._background.submit(self._kill, place, place.sandbox)
            else:
                self._places.remove(place)
            self._changed.notify_all()

    def _kill(self, place: _Place, sandbox: Sandbox) -> None:
        for pause_s in _KILL_AGAIN_AFTER_S:
            try:
                with STEP_SECONDS.labels("kill").time():
                    sandbox.kill()
                break
            except Unavailable:
                KILLS_FAILED.inc()
                self._closing.wait(min(pause_s, sandbox.ends_at - monotonic()))
        lived_s = monotonic() - sandbox.created_at
        SANDBOX_SECONDS.inc(lived_s)
        with self._changed:
            self._spent_s[datetime.now(UTC).date()] += lived_s
            self._places.remove(place)
            self._changed.notify_all()

    def count(self, state: str) -> int:
        with self._changed:
            return sum(place.state == state for place in self._places)

    def seconds_spent(self) -> float:
        """Sandbox seconds since midnight UTC, of this process, of those that live included."""
        with self._changed:
            starts = [
                place.sandbox.created_at for place in self._places if place.sandbox
            ]
            alive_s = sum(monotonic() - start for start in starts)
            return self._spent_s[datetime.now(UTC).date()] + alive_s

    def _budget_is_spent(self) -> bool:
        budget_s = self._config.sandbox_seconds_per_day
        return bool(budget_s) and self.seconds_spent() >= budget_s

    def _keep_one_ready(self) -> None:
        """Keep one sandbox ready while runs come, its end put off. Has a thread of its own."""
        back_off_s, lifetime_s = 1.0, self._config.run_timeout_s + LIFETIME_MARGIN_S
        while not self._closing.is_set():
            with self._changed:
                free = (
                    self._config.max_concurrent_runs - len(self._places) - self._waiting
                )
                if free <= 0 or not self._wants_ready():
                    self._changed.wait(1)
                    continue
                place = _Place("making")
                self._places.append(place)
            try:
                sandbox = self._make(place, self._config.run_timeout_s, OVERHEAD_S)
                back_off_s = 1.0
                with self._changed:
                    place.state = "ready" if place.state == "making" else place.state
                    self._changed.notify_all()
                while place.state == "ready" and self._wants_ready():
                    with self._changed:
                        self._changed.wait(_RENEW_AFTER_S)
                    age_s = lifetime_s - (sandbox.ends_at - monotonic())
                    if place.state == "ready" and age_s > _RENEW_AFTER_S:
                        sandbox.renew()
            except Unavailable as exc:
                log.warning("no sandbox could be kept ready: %s", exc)
                self._closing.wait(back_off_s)
                back_off_s = min(2 * back_off_s, 60)
            finally:
                self._end(place, spare="running")

    def _wants_ready(self) -> bool:
        is_in_use = monotonic() - self._last_run_at < self._config.warm_idle_s
        return is_in_use and not self._budget_is_spent()

    def close(self, budget_s: float = 2 * KILL_BUDGET_S) -> None:
        """End every sandbox, and wait for that within the budget."""
        self._closing.set()
        with self._changed:
            for place in [place for place in self._places if place.sandbox]:
                self._end(place)
            self._changed.wait_for(lambda: not self._places, budget_s)
