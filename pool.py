"""Which sandbox a run gets, and when each sandbox is ended.

A sandbox has a slot from before E2B is asked for it until it is gone there, so that E2B never
counts more than `max_concurrent_runs`. Each sandbox is used once. Kills, and making sandboxes
ahead of their runs, are off the caller's path.

The states of a slot, and the methods of `_Slots` that move it from one to the next:

              take
    free -------------------------------> running ---+
      |                                      ^       |
      | reserve           offer         take |       | end             remove
      +---------> making -------> ready -----+       +-----> ending ---------> free
                    |               |                |         or lost
                    +---------------+----------------+

A caller's thread takes a slot and ends it. A keeper's thread reserves one and offers it, and ends
it when nobody took it. A thread for each kill removes it. `Pool.close` ends all.

What E2B refused to make leaves its slot free as soon as it ends. What was asked for and not
answered is lost: it has its slot, and counts in the budget, until E2B's list has it and it is
killed, or E2B surely has not made it, or its lifetime is over."""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import repeat
from time import monotonic
from typing import Literal

from config import LIFETIME_MARGIN_S, OVERHEAD_S, Config, log
from metrics import KILLS_FAILED, RUNS, SANDBOX_SECONDS, STEP_SECONDS
from run import Run
from sandbox import FAILED, KILL_BUDGET_S, Sandbox, SandboxGone, Unavailable

# Pauses after a kill that failed. After the last, E2B has ended the sandbox itself.
_KILL_AGAIN_AFTER_S = (0.5, 2, math.inf)
# Pauses between looks for a sandbox whose create was not answered. E2B answered some 3 s late.
_SEARCH_AGAIN_AFTER_S = 5
# Of a run's overhead: for what remains to be done after it, on a busy machine too.
_RESERVE_S = 1.5
# A sandbox that waits is renewed this often, and lives LIFETIME_MARGIN_S longer than a run. So
# two renewals may be late, and whoever takes it still has it for a whole run.
_RENEW_AFTER_S = 5
# Pauses between tries to make a sandbox ahead, doubled each time: E2B's free plan allows one
# create a second, and a fault that lasts needs no more than one try a minute.
_FIRST_BACK_OFF_S = 1
_LONGEST_BACK_OFF_S = 60
# The imports of `WARM_IMPORTS` took 0.5 to 2.3 s at E2B, and nobody waits for them.
_PRIMING_LIMIT_S = 15
_IMPORT_CELL = """
def import_ahead():
    import contextlib, importlib
    for name in {names!r}:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
import_ahead()
del import_ahead"""
# What E2B's kernels import with the first figure.
_WITH_MATPLOTLIB = ["matplotlib_inline.backend_inline", "e2b_charts"]
# How soon a keeper sees that a budget is free again at midnight, which nobody tells it.
_LOOK_AGAIN_AFTER_S = 1
RETRY_AFTER_S = 5
_SPENT = (
    "The budget of {:,} sandbox seconds a day is spent. It is reset at midnight UTC."
)
_STOPPING = "This service is being stopped. Try again in a minute."

State = Literal["making", "ready", "running", "ending", "lost"]


def import_cell(modules: str) -> str:
    """Code, for the end of a cell, that imports these and leaves no name behind.

    A module that the template does not have is no failure."""
    if not modules:
        return ""
    names = [name.strip() for name in modules.split(",")]
    with_matplotlib = _WITH_MATPLOTLIB if "matplotlib" in modules else []
    return _IMPORT_CELL.format(names=names + with_matplotlib)


class Full(Exception):
    """Every slot is taken; there may be a free one in RETRY_AFTER_S."""


@dataclass(eq=False)
class _Slot:
    sandbox: Sandbox
    state: State = "making"


class _Slots:
    """The slots, and the seconds that their sandboxes lived.

    All that changes is changed here, under the one lock, and who waits for it is woken."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._changed = threading.Condition()  # its lock is the pool's only one
        self._slots: list[_Slot] = []  # the oldest first; free ones are not in it
        self._waiting = 0  # callers in `take`
        self._ended_s: defaultdict[date, float] = defaultdict(float)

    def take(self, must_be_new: bool) -> _Slot:
        """Return a slot for a run: with a sandbox made ahead, if there is one, or a free one.

        A slot that is about to be ready or free is waited for, by one caller each, for
        KILL_BUDGET_S. Raises Full when there is none; Unavailable when that is E2B's fault."""
        with self._changed:
            slot = self._take_now(must_be_new)
            if not slot and self._waiting < self.count("making", "ending"):
                self._waiting += 1
                slot = self._changed.wait_for(
                    lambda: self._take_now(must_be_new), KILL_BUDGET_S
                )
                self._waiting -= 1
            if slot:
                return slot
            if self.count("lost"):
                raise Unavailable(FAILED)
            RUNS.labels("full").inc()
            raise Full

    def _take_now(self, must_be_new: bool) -> _Slot | None:
        ready = [slot for slot in self._slots if slot.state == "ready"]
        if ready and not must_be_new:
            slot = ready[0]
        elif self._free():
            slot = self._add()
        else:
            return None
        slot.state = "running"
        self._changed.notify_all()  # its keeper makes another one
        return slot

    def _free(self) -> int:
        return self._config.max_concurrent_runs - len(self._slots)

    def _add(self) -> _Slot:
        self._slots.append(_Slot(Sandbox(self._config)))
        return self._slots[-1]

    def reserve(self, is_wanted: Callable[[], bool]) -> _Slot | None:
        """Return a slot for a sandbox made ahead, which no caller is waiting for.

        None, after a change or a second, when there is no such slot or none is wanted."""
        with self._changed:
            if self._free() > self._waiting and is_wanted():
                return self._add()
            self._changed.wait(_LOOK_AGAIN_AFTER_S)
            return None

    def offer(self, slot: _Slot, for_s: float) -> bool:
        """Wait for a caller to take it; False as soon as one did, or `Pool.close` ended it."""
        with self._changed:
            if slot.state == "making":
                slot.state = "ready"
                self._changed.notify_all()
            return not self._changed.wait_for(lambda: slot.state != "ready", for_s)

    def withdraw(self, slot: _Slot) -> bool:
        """As `end`, for one that was made ahead: unless a caller was faster."""
        with self._changed:
            return slot.state != "running" and self.end(slot)

    def end(self, slot: _Slot) -> bool:
        """Whether there may be a sandbox, to be killed now; without one the slot is free."""
        with self._changed:
            if slot.state in ("ending", "lost"):
                return False
            slot.state = "ending" if slot.sandbox.exists else "lost"
            if not slot.sandbox.may_exist:
                self.remove(slot)
            self._changed.notify_all()
            return slot.sandbox.may_exist

    def remove(self, slot: _Slot) -> None:
        """Its sandbox is gone, so that the slot is free."""
        lived_s = slot.sandbox.age_s()
        SANDBOX_SECONDS.inc(lived_s)
        with self._changed:
            self._ended_s[datetime.now(UTC).date()] += lived_s
            self._slots.remove(slot)
            self._changed.notify_all()

    def count(self, *states: State) -> int:
        with self._changed:
            return sum(slot.state in states for slot in self._slots)

    def end_all(self) -> list[_Slot]:
        """End all that have a sandbox; return those whose sandbox has to be killed now."""
        with self._changed:
            slots = list(self._slots)
            return [slot for slot in slots if slot.sandbox.exists and self.end(slot)]

    def seconds_today(self) -> float:
        """Seconds of the sandboxes that ended since midnight UTC, and of those that live."""
        with self._changed:
            living_s = sum(slot.sandbox.age_s() for slot in self._slots)
            return self._ended_s[datetime.now(UTC).date()] + living_s

    def wait_until_all_are_free(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._slots, timeout_s)


class Pool:
    """At most `max_concurrent_runs` sandboxes, up to `warm_sandboxes` of them made ahead."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._slots = _Slots(config)
        self._closing = threading.Event()
        self._last_taken_at = monotonic()
        self.count = self._slots.count
        self.seconds_spent = self._slots.seconds_today  # of this process
        for _ in range(config.warm_sandboxes):
            threading.Thread(target=self._keep_one_ready).start()

    def run(self, code: str, limit_s: int) -> Run:
        """Run `code` once, for `limit_s` at most. Raises Full; other failures are in the Run."""
        run = Run.empty(self._config.max_output_chars)
        try:
            try:
                self._run_in_a_sandbox(code, limit_s, run)
            except SandboxGone:
                # Nothing has run. Others that were made ahead may be gone as well.
                self._run_in_a_sandbox(code, limit_s, run, must_be_new=True)
        except Unavailable as exc:
            run.problem = str(exc)
        for step, duration_s in run.durations_s.items():
            STEP_SECONDS.labels(step).observe(duration_s)
        RUNS.labels(run.outcome).inc()
        return run

    def _run_in_a_sandbox(
        self, code: str, limit_s: int, run: Run, must_be_new: bool = False
    ) -> None:
        made_by = run.started_at + OVERHEAD_S - _RESERVE_S
        with self.sandbox(limit_s, made_by, run.durations_s, must_be_new) as sandbox:
            if code.lstrip().startswith("%%"):
                sandbox.prime(min(KILL_BUDGET_S, made_by - monotonic()))
            sandbox.run(code, limit_s, run)

    @contextmanager
    def sandbox(
        self,
        limit_s: int,
        made_by: float,
        durations_s: dict[str, float],
        must_be_new: bool = False,
    ) -> Iterator[Sandbox]:
        """Hand out a sandbox for work of `limit_s` seconds, and have it killed afterwards.

        It is one that was made ahead, unless it `must_be_new`; or one that is made now, until
        `made_by` on the clock of monotonic(). How long the steps "queue" and "create" took goes
        into `durations_s`. Raises Full, and Unavailable when E2B fails or the budget is spent."""
        if self._budget_is_spent():
            raise Unavailable(_SPENT.format(self._config.sandbox_seconds_per_day))
        asked_at = monotonic()
        self._last_taken_at = asked_at
        slot = self._slots.take(must_be_new)
        taken_at = monotonic()
        durations_s["queue"] = taken_at - asked_at
        try:
            if slot.sandbox.exists:
                slot.sandbox.live_for_at_least(limit_s)
            else:
                self._make(slot.sandbox, limit_s, made_by)
                durations_s["create"] = monotonic() - taken_at
            yield slot.sandbox
        finally:
            if self._slots.end(slot):
                self._kill_in_background(slot)

    def _make(self, sandbox: Sandbox, limit_s: int, made_by: float) -> None:
        sandbox.create(limit_s + LIFETIME_MARGIN_S, made_by - monotonic())
        # Either `close` saw that the sandbox exists, or this sees that it was called.
        if self._closing.is_set():
            raise Unavailable(_STOPPING)

    def _kill_in_background(self, slot: _Slot) -> None:
        try:
            threading.Thread(target=self._kill, args=(slot,)).start()
        except RuntimeError:  # no thread can be had
            self._kill(slot)

    def _kill(self, slot: _Slot) -> None:
        try:
            self._kill_sandbox(slot.sandbox)
        finally:
            self._slots.remove(slot)

    def _kill_sandbox(self, sandbox: Sandbox) -> None:
        """Try until E2B confirms it, or has ended the sandbox itself."""
        is_last_try = False
        search_again = repeat(_SEARCH_AGAIN_AFTER_S)
        for pause_s in _KILL_AGAIN_AFTER_S if sandbox.exists else search_again:
            try:
                with STEP_SECONDS.labels("kill").time():
                    sandbox.kill()
                return
            except Unavailable:
                if sandbox.exists:
                    KILLS_FAILED.inc()
            if is_last_try or sandbox.left_s() < 0:
                return
            is_last_try = self._closing.wait(min(pause_s, sandbox.left_s()))

    def _keep_one_ready(self) -> None:
        """Keep one sandbox ready while runs come. Has a thread of its own."""
        back_off_s = _FIRST_BACK_OFF_S
        while not self._closing.is_set():
            slot = self._slots.reserve(self._wants_ready)
            if not slot:
                continue
            try:
                self._make_ahead(slot)
                back_off_s = _FIRST_BACK_OFF_S
            except BaseException as exc:  # it logs and goes on, whatever it was
                log.warning("no sandbox could be kept ready: %r", exc)
                self._closing.wait(back_off_s)
                back_off_s = min(2 * back_off_s, _LONGEST_BACK_OFF_S)

    def _make_ahead(self, slot: _Slot) -> None:
        """Make a sandbox, offer it, and put its end off until it is taken or wanted no more.

        Raises Unavailable. The slot is a caller's then, or it is ending."""
        run_timeout_s = self._config.run_timeout_s
        try:
            self._make(slot.sandbox, run_timeout_s, monotonic() + OVERHEAD_S)
            slot.sandbox.prime(_PRIMING_LIMIT_S, import_cell(self._config.warm_imports))
            while self._slots.offer(slot, _RENEW_AFTER_S) and self._wants_ready():
                slot.sandbox.live_for_at_least(run_timeout_s + LIFETIME_MARGIN_S)
        finally:
            if self._slots.withdraw(slot):
                self._kill_in_background(slot)

    def _wants_ready(self) -> bool:
        is_in_use = monotonic() - self._last_taken_at < self._config.warm_idle_s
        return is_in_use and not self._budget_is_spent()

    def _budget_is_spent(self) -> bool:
        budget_s = self._config.sandbox_seconds_per_day
        return 0 < budget_s <= self.seconds_spent()

    def close(self, budget_s: float = 2 * KILL_BUDGET_S) -> None:
        """End every sandbox, and wait for that within the budget."""
        self._closing.set()
        for slot in self._slots.end_all():
            self._kill_in_background(slot)
        self._slots.wait_until_all_are_free(budget_s)
