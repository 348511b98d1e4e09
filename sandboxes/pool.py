"""Which sandbox a run gets, and when each sandbox is ended.

A sandbox has a slot from before E2B is asked for it until it is gone
there, so that E2B never counts more than `max_concurrent_runs`. Each
sandbox is used once, or by the calls of one session, one after another.
Kills, and making sandboxes ahead of their runs, are off the caller's path.

The states of a slot, and the methods of `_Slots` that move it from one to the next:

              take                           keep
    free ---------------------------> running -------> idle
      |                              ^       ^ |         |
      | reserve         offer   take |  take | |         | forget
      +---------> making -----> ready        +-|---------+---------> free
                    |             |            |         |
                    +-------------+------------+---------+
                                               | end         remove
                                               +------> ending -----> free
                                                        or lost
A caller's thread takes a slot and ends it, or keeps it for its session's next
call. A keeper's thread reserves one and offers it, and ends it when nobody
took it. A thread of the pool kills it and removes it. A caller who finds none ends the
session that is idle longest, or else, when it needs a new sandbox, one that is
ready. A sandbox that is idle is left to E2B, which ends it: its slot is
forgotten then, and by `Pool.close`, which ends all others.

What E2B refused to make leaves its slot free as soon as it ends. What was asked for and
not answered is lost: it has its slot, and counts in the budget, until E2B's list has it
and it is killed, or E2B surely has not made it, or its lifetime is over."""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from itertools import repeat
from time import monotonic
from typing import Literal

from config import (
    LIFETIME_MARGIN_S,
    OVERHEAD_S,
    Config,
    log,
)
from metrics import KILLS_FAILED, RUNS, SANDBOX_SECONDS, STEP_SECONDS
from run import Run
from sandboxes.sandbox import FAILED, KILL_BUDGET_S, Sandbox, SandboxGone, Unavailable
from texts.cell import MAKE_DATA_FOLDER, Cell

# Pauses after a kill that failed. After the last, E2B has ended the sandbox itself.
_KILL_AGAIN_AFTER_S = (0.5, 2, math.inf)
# Pauses between looks for a sandbox whose create
# was not answered. E2B answered some 3 s late.
_SEARCH_AGAIN_AFTER_S = 5
# Of a run's overhead: for what remains to be done after it, on a busy machine too.
_RESERVE_S = 1.5
# A call that waited for its session's turn has at least so long for its code, or does
# not run: code that is stopped costs the session all it had kept.
_LEAST_RUN_S = 3
# A sandbox that waits is renewed this often, and lives LIFETIME_MARGIN_S longer than a
# run. So two renewals may be late, and whoever takes it still has it for a whole run.
_RENEW_AFTER_S = 5
# Pauses between tries to make a sandbox ahead, doubled each
# time: E2B's free plan allows one create a second, and a
# fault that lasts needs no more than one try a minute.
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
_SESSION_BUSY = "Another call of this conversation is still running. Try again later."
_SESSION_GONE = (
    "What this conversation had kept, its variables and files, is gone; "
    "this run began anew"
)
# So many sessions that ended are known, to tell their next call; 1 MB.
_MARKS_REMEMBERED = 10_000
_STOPPING = "This service is being stopped. Try again in a minute."

State = Literal["making", "ready", "running", "idle", "ending", "lost"]


def import_cell(modules: str) -> str:
    """Code, for the end of a cell, that imports these and leaves no name behind.

    A module that the template does not have is no failure."""
    if not modules:
        return ""
    names = [name.strip() for name in modules.split(",")]
    with_matplotlib = _WITH_MATPLOTLIB if "matplotlib" in modules else []
    return _IMPORT_CELL.format(names=names + with_matplotlib)


def _latest_creation() -> float:
    """Until when what is asked for now may have its sandbox made."""
    return monotonic() + OVERHEAD_S - _RESERVE_S


@dataclass(frozen=True)
class Need:
    """What a sandbox is needed for.

    It is one that was made ahead, unless it `must_be_new`; or one that is made now,
    until `made_by` on the clock of monotonic(). With a `mark` it is that session's."""

    limit_s: int  # how long the work takes at most
    mark: str = ""
    must_be_new: bool = False
    made_by: float = field(default_factory=_latest_creation)


class Full(Exception):
    """Every slot is taken; there may be a free one in RETRY_AFTER_S."""


@dataclass(eq=False)
class _Slot:
    sandbox: Sandbox
    mark: str  # of its session
    state: State = "making"


class _Slots:
    """The slots, and the seconds that their sandboxes lived.

    All that changes is changed here, under the
    one lock, and who waits for it is woken."""

    def __init__(self, config: Config, kill: Callable[[_Slot], None]) -> None:
        self._config = config
        self._kill = kill
        self._changed = threading.Condition()  # its lock is the pool's only one
        self._slots: list[_Slot] = []  # the longest idle first; free ones are not in it
        self._waiting = 0  # callers in `take`
        self._waiting_for_turn = 0  # callers in `turn`
        # The calls of each session: one that runs, then those that wait for their turn.
        self._calls_of: dict[str, list[object]] = {}
        self._marks_ended: dict[str, str] = {}  # by itself, the longest ago first
        self._ended_s: defaultdict[date, float] = defaultdict(float)

    @contextmanager
    def turn(self, mark: str, timeout_s: float) -> Iterator[None]:
        """Have a session to oneself, in the order in which its calls came. Raises
        Unavailable when the calls before this one take longer than `timeout_s`.

        Each call that waits holds a thread. So at most half as many wait, in all
        sessions, as run at once (but one at least), and others are refused now.
        Without a mark there is nothing to wait for."""
        if not mark:
            yield
            return
        call = object()
        with self._changed:
            most_waiting = max(1, self._config.max_concurrent_runs // 2)
            may_wait = self._waiting_for_turn < most_waiting
            calls = self._calls_of.setdefault(mark, [])
            calls.append(call)
            self._waiting_for_turn += 1
            has_turn = self._changed.wait_for(
                lambda: calls[0] is call,
                timeout_s if may_wait else 0,
            )
            self._waiting_for_turn -= 1
        try:
            if not has_turn:
                raise Unavailable(_SESSION_BUSY)
            yield
        finally:
            with self._changed:
                calls.remove(call)
                if not calls:
                    del self._calls_of[mark]
                self._changed.notify_all()

    def take(self, need: Need) -> _Slot:
        """Return a slot for a run: the session's own,
        or with a sandbox made ahead, or a free one.

        When there is none, the session that is idle longest is ended; or else, for a
        caller who needs a new sandbox, one that was made ahead. A slot that is about
        to be ready or free is waited for, by one caller each, for KILL_BUDGET_S.
        Raises Full when there is none; Unavailable when that is E2B's fault."""
        give_up_at = monotonic() + KILL_BUDGET_S
        with self._changed:
            self._waiting += 1
        try:
            while True:
                with self._changed:
                    slot = self._find(need, give_up_at)
                    if slot.state == "running":
                        return slot
                # Without the lock: the kill may be done in this thread.
                self.end(slot, "idle", "ready")
        finally:
            with self._changed:
                self._waiting -= 1

    def _find(self, need: Need, give_up_at: float) -> _Slot:
        """Return a slot that is the caller's now,
        or else one that is to be ended for it."""

        def found() -> _Slot | None:
            return self._take_now(need) or self._to_end(need)

        left_s = give_up_at - monotonic()
        may_wait = self._may_get_one()
        slot = self._changed.wait_for(found, left_s if may_wait else 0)
        if slot:
            return slot
        # With more slots lost than at work, the fault is E2B's.
        if self.count("lost") > self.count("running"):
            raise Unavailable(FAILED)
        RUNS.labels("full").inc()
        raise Full

    def _may_get_one(self) -> bool:
        """Whether a slot is about to be ready or free for each of those who wait."""
        return self._waiting <= self.count("making", "ending")

    def _take_now(self, need: Need) -> _Slot | None:
        wanted = "idle" if need.mark else "ready"
        if not need.must_be_new:
            for slot in self._slots:
                if slot.state == wanted and slot.mark == need.mark:
                    return self._start(slot)
        if self._free():
            return self._start(self._add(need.mark))
        return None

    def _to_end(self, need: Need) -> _Slot | None:
        """Return the one to end for this caller, unless it may wait for one."""
        if self._may_get_one():
            return None
        for slot in self._slots:
            if slot.state == "idle":
                return slot
        # No session takes one made ahead: those would be in its way for good.
        if need.mark or need.must_be_new:
            for slot in self._slots:
                if slot.state == "ready":
                    return slot
        return None

    def _start(self, slot: _Slot) -> _Slot:
        slot.state = "running"
        self._changed.notify_all()  # its keeper makes another one
        return slot

    def keep(self, slot: _Slot) -> None:
        """Its run is over, and its session's next call may take it."""
        with self._changed:
            if slot.state == "running":
                slot.state = "idle"
                self._slots.remove(slot)
                self._slots.append(slot)

    def forget(self, left_s: float) -> None:
        """Leave to E2B the idle sandboxes which it ends within `left_s`."""
        with self._changed:
            for slot in list(self._slots):
                if slot.state == "idle" and slot.sandbox.left_s() < left_s:
                    slot.state = "ending"
                    self._note_end(slot)
                    self.remove(slot)

    def _note_end(self, slot: _Slot) -> None:
        if slot.mark and slot.sandbox.has_run:
            self._marks_ended[slot.mark] = slot.mark
            if len(self._marks_ended) > _MARKS_REMEMBERED:
                longest_ago = next(iter(self._marks_ended))
                del self._marks_ended[longest_ago]

    def has_ended(self, mark: str) -> bool:
        """Whether this session's sandbox is known to be gone; True once for each."""
        with self._changed:
            return self._marks_ended.pop(mark, "") == mark

    def is_ending(self, mark: str) -> bool:
        """Whether E2B may still have a sandbox of this session that is being killed."""
        with self._changed:
            return any(
                slot.mark == mark and slot.state in ("ending", "lost")
                for slot in self._slots
            )

    def _free(self) -> int:
        return self._config.max_concurrent_runs - len(self._slots)

    def _add(self, mark: str = "") -> _Slot:
        slot = _Slot(Sandbox(self._config), mark)
        self._slots.append(slot)
        return slot

    def reserve(self, is_wanted: Callable[[], bool]) -> _Slot | None:
        """Return a slot for a sandbox made ahead, which no caller is waiting for.

        None, after a change or a second, when
        there is no such slot or none is wanted."""
        with self._changed:
            if self._free() > self._waiting and is_wanted():
                return self._add()
            self._changed.wait(_LOOK_AGAIN_AFTER_S)
            return None

    def offer(self, slot: _Slot, for_s: float) -> bool:
        """Wait for a caller to take it; False as
        soon as one did, or `Pool.close` ended it."""
        with self._changed:
            if slot.state == "making":
                slot.state = "ready"
                self._changed.notify_all()
            return not self._changed.wait_for(lambda: slot.state != "ready", for_s)

    def end(self, slot: _Slot, *states: State) -> None:
        """End it, if it is still in one of these states.

        Its sandbox is killed; the slot of one that was never made is free."""
        with self._changed:
            if slot.state not in states:
                return
            slot.state = "ending" if slot.sandbox.exists else "lost"
            self._note_end(slot)
            may_exist = slot.sandbox.may_exist
            if not may_exist:
                self.remove(slot)
            self._changed.notify_all()
        if may_exist:
            self._kill(slot)

    def remove(self, slot: _Slot) -> None:
        """Its sandbox is gone, so that the slot is free, if it was not before."""
        with self._changed:
            if slot not in self._slots:
                return
            lived_s = slot.sandbox.age_s()
            SANDBOX_SECONDS.inc(lived_s)
            self._ended_s[datetime.now(UTC).date()] += lived_s
            self._slots.remove(slot)
            self._changed.notify_all()

    def count(self, *states: State) -> int:
        with self._changed:
            return sum(slot.state in states for slot in self._slots)

    def end_all(self, *states: State) -> None:
        """End those in these states that have a sandbox."""
        with self._changed:
            made = [slot for slot in self._slots if slot.sandbox.exists]
        for slot in made:
            self.end(slot, *states)

    def seconds_today(self) -> float:
        """Seconds of the sandboxes that ended since
        midnight UTC, and of those that live."""
        with self._changed:
            living_s = sum(slot.sandbox.age_s() for slot in self._slots)
            return self._ended_s[datetime.now(UTC).date()] + living_s

    def wait_until_all_are_free(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._slots, timeout_s)


class Pool:
    """At most `max_concurrent_runs` sandboxes,
    up to `warm_sandboxes` of them made ahead."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._slots = _Slots(config, self._kill_in_background)
        self._closing = threading.Event()
        # A thread for each slot at most, made when it is needed and kept: starting one
        # for each kill took a tenth of the time of 100 callers.
        self._background = ThreadPoolExecutor(config.max_concurrent_runs)
        lifetime_s = config.run_timeout_s + LIFETIME_MARGIN_S
        # So that a call in the last idle second has its whole time.
        self._session_lifetime_s = config.session_idle_s + lifetime_s
        self._last_taken_at = monotonic()
        self.count = self._slots.count
        self.seconds_spent = self._slots.seconds_today  # of this process
        for _ in range(config.warm_sandboxes):
            threading.Thread(target=self._keep_one_ready).start()
        if config.session_idle_s:
            threading.Thread(target=self._watch_sessions).start()

    def run(self, cell: Cell, limit_s: int, mark: str = "") -> Run:
        """Run a cell once, for `limit_s` at most, in
        the sandbox of the session with this mark.

        Raises Full; other failures are in the Run."""
        run = cell.new_run(self._config.run_limits())
        asked_at = monotonic()
        try:
            with self._slots.turn(mark, limit_s):
                waited_s = monotonic() - asked_at if mark else 0.0
                left_s = math.ceil(limit_s - waited_s)
                if left_s < min(limit_s, _LEAST_RUN_S):
                    raise Unavailable(_SESSION_BUSY)
                self._run(cell, Need(left_s, mark), run)
        except Unavailable as exc:
            run.problem = str(exc)
        for step, duration_s in run.durations_s.items():
            STEP_SECONDS.labels(step).observe(duration_s)
        RUNS.labels(run.outcome).inc()
        return run

    def _run(self, cell: Cell, need: Need, run: Run) -> None:
        def run_in(sandbox: Sandbox) -> None:
            is_new = need.mark and not sandbox.has_run
            if is_new and self._slots.has_ended(need.mark):
                run.note = _SESSION_GONE
            if cell.is_magic:
                left_s = need.made_by - monotonic()
                sandbox.prime(MAKE_DATA_FOLDER, min(KILL_BUDGET_S, left_s))
            is_first = not sandbox.has_run
            sandbox.run(cell.for_kernel(is_first), need.limit_s, run)
            cell.mend(run, sandbox.id, is_first)

        self.use(run_in, need, run.durations_s)

    def use(
        self,
        work: Callable[[Sandbox], None],
        need: Need,
        durations_s: dict[str, float],
    ) -> None:
        """Do `work` in a `sandbox`; once more, in a
        new one, after SandboxGone: nothing has run."""
        try:
            with self.sandbox(need, durations_s) as sandbox:
                work(sandbox)
        except SandboxGone:
            # Others that were made ahead may be gone as well.
            need = replace(need, must_be_new=True)
            with self.sandbox(need, durations_s) as sandbox:
                work(sandbox)

    @contextmanager
    def sandbox(self, need: Need, durations_s: dict[str, float]) -> Iterator[Sandbox]:
        """Hand out a sandbox, and have it killed afterwards;
        a session's is kept for it if its run ended.

        How long the steps "queue" and "create" took goes into `durations_s`.
        Raises Full, and Unavailable when E2B fails or the budget is spent."""
        if self._budget_is_spent():
            raise Unavailable(_SPENT.format(self._config.sandbox_seconds_per_day))
        asked_at = monotonic()
        self._last_taken_at = asked_at
        slot = self._slots.take(need)
        taken_at = monotonic()
        durations_s["queue"] = taken_at - asked_at
        try:
            if not slot.sandbox.exists:
                self._make(slot.sandbox, need)
                durations_s["create"] = monotonic() - taken_at
            elif slot.sandbox.left_s() < need.limit_s:
                slot.sandbox.live_for_at_least(self._lifetime_s(need))
            yield slot.sandbox
        finally:
            if need.mark and slot.sandbox.is_reusable:
                self._slots.keep(slot)
                self._in_background(self._renew, slot)
                # `close` may have looked for idle ones before this one was.
                if self._closing.is_set():
                    self._slots.forget(math.inf)
            else:
                self._slots.end(slot, "running")

    def _make(self, sandbox: Sandbox, need: Need) -> None:
        mark = need.mark
        lifetime_s = self._lifetime_s(need)
        # A replica of this service, or this one before its restart, may have made it.
        may_be_there = mark and not self._slots.is_ending(mark)
        if not (may_be_there and sandbox.find(mark, lifetime_s)):
            left_s = need.made_by - monotonic()
            sandbox.create(lifetime_s, left_s, mark)
        # Either `close` saw that the sandbox exists, or this sees that it was called.
        if self._closing.is_set():
            raise Unavailable(_STOPPING)

    def _lifetime_s(self, need: Need) -> int:
        if need.mark:
            return self._session_lifetime_s
        return need.limit_s + LIFETIME_MARGIN_S

    def _renew(self, slot: _Slot) -> None:
        """Let an idle session's sandbox live for its whole time from now on."""
        try:
            slot.sandbox.live_for_at_least(self._session_lifetime_s)
        except SandboxGone:
            self._slots.end(slot, "idle")
        except Unavailable:
            pass  # it is logged, and E2B ends it sooner

    def _watch_sessions(self) -> None:
        """Forget idle sessions that are over; end all when the budget is spent."""
        while not self._closing.wait(_LOOK_AGAIN_AFTER_S):
            self._slots.forget(0)
            if self._budget_is_spent():
                self._slots.end_all("idle")

    def _kill_in_background(self, slot: _Slot) -> None:
        self._in_background(self._kill, slot)

    def _in_background(self, do: Callable[[_Slot], None], slot: _Slot) -> None:
        try:
            self._background.submit(do, slot)
        except RuntimeError:  # no thread can be had, or the process ends
            do(slot)  # if another thread becomes free it does so too: no harm

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
        """Make a sandbox, offer it, and put its end
        off until it is taken or wanted no more.

        Raises Unavailable. The slot is a caller's then, or it is ending."""
        made_by = monotonic() + OVERHEAD_S
        need = Need(self._config.run_timeout_s, made_by=made_by)
        imports = import_cell(self._config.warm_imports)
        try:
            self._make(slot.sandbox, need)
            slot.sandbox.prime(MAKE_DATA_FOLDER + imports, _PRIMING_LIMIT_S)
            while self._slots.offer(slot, _RENEW_AFTER_S) and self._wants_ready():
                slot.sandbox.live_for_at_least(self._lifetime_s(need))
        finally:
            self._slots.end(slot, "making", "ready")

    def _wants_ready(self) -> bool:
        is_in_use = monotonic() - self._last_taken_at < self._config.warm_idle_s
        return is_in_use and not self._budget_is_spent()

    def _budget_is_spent(self) -> bool:
        budget_s = self._config.sandbox_seconds_per_day
        return 0 < budget_s <= self.seconds_spent()

    def close(self, budget_s: float = 2 * KILL_BUDGET_S) -> None:
        """End every sandbox but those of idle
        sessions; wait for that within the budget."""
        self._closing.set()
        self._slots.forget(math.inf)
        self._slots.end_all("making", "ready", "running")
        self._slots.wait_until_all_are_free(budget_s)
