"""Which sandbox a run gets, and when each sandbox is ended.

A sandbox has a slot from before E2B is asked for it until it is gone there, so that E2B
never counts more than `max_concurrent_runs`. It is used once, and killed off the
caller's path.

The states of a slot, and the methods of `Slots` that move it from one to the next:

              take              end                  remove
    free -----------> running -------> ending, lost --------> free
      |                |   ^             ^    ^
      |           keep |   | take        |    |
      |                v   |     end     |    |
      |                kept -------------+    |
      | reserve        ^                      |
      +-----> making --+----------------------+
                 keep            end

`take` also ends a sandbox that is kept for others, if there is no other way to get a
slot. `leave_to_e2b` frees the slot of a kept sandbox that E2B will end by itself.

With default settings no slot is ever `making` or `kept`. A slot is `making` while its
sandbox is made ahead, before anybody needs it. One that is `kept` waits for the session
whose mark it has, or for anybody if it has none. The code for both is in keeping.py.

If E2B refuses to make a sandbox, its slot is free at once. If E2B does not answer, the
sandbox is `lost`: it has its slot, and counts in the budget, until it is found in E2B's
list and killed, or E2B certainly has not made it, or its lifetime is over."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import partial
from itertools import repeat
from time import monotonic
from typing import Literal

from caller import Caller
from config import Config, log
from metrics import KILLS_FAILED, RUNS, SANDBOX_SECONDS, STEP_SECONDS
from run import Run
from sandboxes.sandbox import FAILED, Sandbox, SandboxGone, Unavailable
from sandboxes.set_up import for_kernel, set_up_lines
from sandboxes.timing import TIMING, Timing
from texts.cell import Cell
from texts.hints import add_hint

RETRY_AFTER_S = 5
_SPENT = (
    "The budget of {:,} sandbox seconds a day is spent. It is reset at midnight UTC."
)
_STOPPING = "This service is being stopped. Try again in a minute."
CALLER_GONE = "The caller has hung up, so the run was stopped."

State = Literal["making", "kept", "running", "ending", "lost", "free"]


class Full(Exception):
    """Every slot is taken; there may be a free one in RETRY_AFTER_S."""


class BudgetSpent(Unavailable):
    """No run may begin before midnight UTC: the day's sandbox seconds are spent."""


@dataclass(frozen=True)
class Need:
    """What a sandbox is needed for.

    With a `mark` it is that session's sandbox; without one it may have been made ahead.
    If it `must_be_new` no sandbox that is kept is taken."""

    limit_s: int  # how long the work takes at most
    mark: str = ""
    caller: Caller = field(default_factory=Caller)
    must_be_new: bool = False
    asked_at: float = field(default_factory=monotonic)


@dataclass(eq=False)
class Slot:
    sandbox: Sandbox
    mark: str
    state: State = "free"


class Slots:
    """The slots that are not free, and the seconds that their sandboxes lived.

    Each move of a slot is made here, under the one lock, and wakes all who wait. E2B is
    never called here: `kill` is called, without the lock, for each slot that ends."""

    def __init__(
        self, config: Config, timing: Timing, kill: Callable[[Slot], None]
    ) -> None:
        self._config = config
        self._timing = timing
        self._kill = kill
        self._changed = threading.Condition()  # its lock is the pool's only one
        self._slots: list[Slot] = []  # of those that are kept, the longest kept first
        self._waiting = 0  # callers in `take`
        self._ended_s: defaultdict[date, float] = defaultdict(float)
        self._budget_was_spent = False  # when it was looked at last

    def take(self, need: Need) -> Slot:
        """Return a slot for a run; its sandbox may have to be made.

        Waits for a slot for `small_call_s` at most. Raises Full if there is none, and
        Unavailable if that is E2B's fault, or if the caller hangs up."""
        give_up_at = monotonic() + self._timing.small_call_s
        with self._counted_as_waiting(), need.caller.on_hang_up(self.wake):
            while True:
                with self._changed:
                    slot = self._wait_for_slot(need, give_up_at)
                    if slot.state == "running":
                        return slot
                # Without the lock: the kill may be done in this thread.
                self._kill(slot)

    @contextmanager
    def _counted_as_waiting(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1
                self._changed.notify_all()

    def _wait_for_slot(self, need: Need, give_up_at: float) -> Slot:
        while True:
            if need.caller.is_gone:
                raise Unavailable(CALLER_GONE)
            slot = self._assign(need)
            if slot:
                return slot
            if not self._changed.wait(give_up_at - monotonic()):
                raise self._refusal()

    def _assign(self, need: Need) -> Slot | None:
        """Decide what a caller gets, when they come and again after each change.

        If the slot returned is `running` now, it is theirs. If it is `ending` now, they
        have its sandbox killed and come again. If none is returned, they wait for a
        change. Raises Full and Unavailable."""
        kept = self.in_state("kept")
        kept_for_sessions = [slot for slot in kept if slot.mark]
        # There are these cases:
        # 1. A sandbox is kept for their session, or for anybody if they have none: it
        #    is theirs.
        if not need.must_be_new:
            for slot in kept:
                if slot.mark == need.mark:
                    return self._move(slot, "running")
        # 2. A slot is free: it is theirs, and they have a sandbox made.
        if self._free_slots():
            return self._add("running", need.mark)
        # 3. A slot is about to be free or kept for each caller who waits: they wait.
        if self._waiting <= self.count("making", "ending"):
            return None
        # 4. A sandbox is kept for another session: the one kept longest is ended.
        # 5. One is kept for anybody, but they need a new one, or have a session, which
        #    never gets one made ahead: it is ended. It would be in their way for good.
        for_others = kept_for_sessions or kept
        if for_others:
            return self._move(for_others[0], "ending")
        # 6. None of these: they are refused.
        raise self._refusal()

    def _refusal(self) -> Full | Unavailable:
        # With more slots lost than at work, the fault is E2B's.
        if self.count("lost") > self.count("running"):
            return Unavailable(FAILED)
        return Full()

    def _add(self, state: State, mark: str = "") -> Slot:
        slot = Slot(Sandbox(self._config, self._timing), mark)
        self._slots.append(slot)
        return self._move(slot, state)

    def _move(self, slot: Slot, state: State) -> Slot:
        slot.state = state
        self._changed.notify_all()
        return slot

    def reserve(self) -> Slot | None:
        """Return a slot for a sandbox made ahead, if no caller is waiting for it."""
        with self._changed:
            return self._add("making") if self.has_spare() else None

    def has_spare(self) -> bool:
        with self._changed:
            return self._free_slots() > self._waiting

    def _free_slots(self) -> int:
        return self._config.max_concurrent_runs - len(self._slots)

    def keep(self, slot: Slot) -> None:
        """Keep a sandbox that was made ahead, or whose run is over, for the next caller
        with its mark. Does nothing if it was ended meanwhile."""
        with self._changed:
            if slot.state in ("making", "running"):
                self._slots.remove(slot)
                self._slots.append(slot)
                self._move(slot, "kept")

    def end(self, slot: Slot, *states: State) -> None:
        """End a slot, if it is still in one of these states.

        Its sandbox is killed; if none was made, the slot is free at once."""
        with self._changed:
            if slot.state not in states:
                return
            if not slot.sandbox.may_exist:
                self.remove(slot)
                return
            self._move(slot, "ending" if slot.sandbox.exists else "lost")
        self._kill(slot)

    def end_all(self, *states: State) -> None:
        """End all slots in these states that have a sandbox."""
        for slot in self.in_state(*states):
            if slot.sandbox.exists:
                self.end(slot, *states)

    def leave_to_e2b(self, slot: Slot) -> None:
        """Free the slot of a sandbox that E2B ends by itself, if it is still kept."""
        with self._changed:
            if slot.state == "kept":
                self.remove(slot)

    def remove(self, slot: Slot) -> None:
        """Free a slot whose sandbox is gone. Does nothing if it is free already."""
        with self._changed:
            if slot.state == "free":
                return
            lived_s = slot.sandbox.age_s()
            SANDBOX_SECONDS.inc(lived_s)
            self._ended_s[datetime.now(UTC).date()] += lived_s
            self._slots.remove(slot)
            self._move(slot, "free")

    def in_state(self, *states: State) -> list[Slot]:
        with self._changed:
            return [slot for slot in self._slots if slot.state in states]

    def count(self, *states: State) -> int:
        return len(self.in_state(*states))

    def seconds_today(self) -> float:
        """How long sandboxes have lived that are alive, or ended since midnight UTC."""
        with self._changed:
            living_s = sum(slot.sandbox.age_s() for slot in self._slots)
            return self._ended_s[datetime.now(UTC).date()] + living_s

    def budget_is_spent(self) -> bool:
        """Whether no run may begin until midnight UTC, which is logged once."""
        budget_s = self._config.sandbox_seconds_per_day
        is_spent = 0 < budget_s <= self.seconds_today()
        with self._changed:
            is_news = is_spent and not self._budget_was_spent
            self._budget_was_spent = is_spent
        if is_news:
            log.warning("%s No run begins until then.", _SPENT.format(budget_s))
        return is_spent

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `condition` is true, which is looked at now and after each change.

        It is called with the lock."""
        with self._changed:
            self._changed.wait_for(condition, timeout_s)

    def wake(self) -> None:
        """Have all who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def wait_until_all_are_free(self, timeout_s: float) -> None:
        self.wait_for(lambda: not self._slots, timeout_s)


class Pool:
    """At most `max_concurrent_runs` sandboxes, each for one run."""

    def __init__(self, config: Config, timing: Timing = TIMING) -> None:
        self._config = config
        self._timing = timing
        self._slots = Slots(config, timing, self._kill_in_background)
        self._closing = threading.Event()
        # A thread for each slot, so that no kill waits for another. The threads are
        # kept: starting one for each kill took a tenth of the time of 100 callers.
        self._kills = ThreadPoolExecutor(config.max_concurrent_runs)
        self.count = self._slots.count
        self.budget_is_spent = self._slots.budget_is_spent
        self.seconds_spent = self._slots.seconds_today  # of this process

    def warm_ready(self) -> int:
        """How many sandboxes are kept for anybody."""
        return sum(not slot.mark for slot in self._slots.in_state("kept"))

    def idle_sessions(self) -> int:
        """How many sandboxes are kept for the next call of their session."""
        return sum(bool(slot.mark) for slot in self._slots.in_state("kept"))

    def run(
        self, cell: Cell, limit_s: int, mark: str = "", caller: Caller | None = None
    ) -> Run:
        """Run a cell once, for `limit_s` at most, in a sandbox of its own; or, with a
        mark, in its session's. It is stopped when the caller hangs up.

        Raises Full; any other failure is in the Run."""
        run = Run.empty(self._config.run_limits())
        need = Need(limit_s, mark, caller or Caller())
        try:
            self._run(cell, need, run)
        except BudgetSpent as exc:
            run.outcome = "budget"
            run.problem = str(exc)
        except Unavailable as exc:
            run.problem = str(exc)
        except Full:
            RUNS.labels("full").inc()
            raise
        if need.caller.is_gone:
            run.outcome = "cancelled"
            run.problem = CALLER_GONE
        for step, duration_s in run.durations_s.items():
            STEP_SECONDS.labels(step).observe(duration_s)
        RUNS.labels(run.outcome).inc()
        return run

    def _run(self, cell: Cell, need: Need, run: Run) -> None:
        def run_in(sandbox: Sandbox) -> None:
            self._run_in(sandbox, cell, need, run)

        self.use(run_in, need, run.durations_s)

    def _run_in(self, sandbox: Sandbox, cell: Cell, need: Need, run: Run) -> None:
        set_up = ""
        if not sandbox.is_set_up:
            set_up = set_up_lines(self._config.max_image_bytes)
        code = for_kernel(cell, set_up, need.limit_s)
        sandbox.run(code, need.limit_s, run)
        sandbox.is_set_up = bool(set_up) or not run.began_anew
        cell.mend(run, sandbox.id)
        add_hint(run, has_network=self._config.allow_internet)

    def use(
        self, work: Callable[[Sandbox], None], need: Need, durations_s: dict[str, float]
    ) -> None:
        """Do `work` in a sandbox. If that raises SandboxGone, nothing has run, and the
        work is done once more, in a new sandbox."""
        try:
            with self.sandbox(need, durations_s) as sandbox:
                work(sandbox)
        except SandboxGone:
            # Other sandboxes that are kept may be gone as well.
            need = replace(need, must_be_new=True)
            with self.sandbox(need, durations_s) as sandbox:
                work(sandbox)

    @contextmanager
    def sandbox(self, need: Need, durations_s: dict[str, float]) -> Iterator[Sandbox]:
        """Hand out a sandbox, which is released afterwards.

        How long the steps "queue" and "create" took goes into `durations_s`. Raises
        Full, and Unavailable when E2B fails or the budget is spent."""
        if self.budget_is_spent():
            raise BudgetSpent(_SPENT.format(self._config.sandbox_seconds_per_day))
        asked_at = monotonic()
        slot = self._slots.take(need)
        taken_at = monotonic()
        durations_s["queue"] = taken_at - asked_at
        try:
            with need.caller.on_hang_up(partial(self._stop, slot)):
                if not slot.sandbox.exists:
                    self._make(slot.sandbox, need)
                    durations_s["create"] = monotonic() - taken_at
                yield slot.sandbox
        finally:
            self._release(slot, need)

    def _stop(self, slot: Slot) -> None:
        """Stop what is done for a caller who has hung up. Does not wait for it."""
        if not slot.sandbox.exists:
            return  # `_make` looks whether the caller is gone, once it does
        slot.sandbox.stop()
        if not slot.mark:
            # The run's own thread ends it, too, but may have to wait for E2B first.
            with suppress(RuntimeError):  # no thread can be had
                self._kills.submit(self._slots.end, slot, "running")

    def _release(self, slot: Slot, need: Need) -> None:
        self._slots.end(slot, "running")

    def _make(self, sandbox: Sandbox, need: Need) -> None:
        """Have it made. Raises Unavailable; the sandbox may exist all the same."""
        self._create(sandbox, need)
        # Either `close` and `_stop` see that the sandbox exists, or this sees that they
        # were called.
        if self._closing.is_set():
            raise Unavailable(_STOPPING)
        if need.caller.is_gone:
            raise Unavailable(CALLER_GONE)

    def _create(self, sandbox: Sandbox, need: Need) -> None:
        left_s = self._left_to_make_s(need)
        sandbox.create(self._lifetime_s(need), left_s, need.mark)

    def _left_to_make_s(self, need: Need) -> float:
        """The time left to make a sandbox, and for all else that precedes the run."""
        made_by = need.asked_at + self._timing.overhead_s - self._timing.reserve_s
        return made_by - monotonic()

    def _lifetime_s(self, need: Need) -> int:
        return need.limit_s + self._timing.lifetime_margin_s

    def _kill_in_background(self, slot: Slot) -> None:
        in_background(self._kills, self._kill, slot)

    def _kill(self, slot: Slot) -> None:
        try:
            self._kill_sandbox(slot.sandbox)
        finally:
            self._slots.remove(slot)

    def _kill_sandbox(self, sandbox: Sandbox) -> None:
        """Try until E2B confirms the kill, or has ended the sandbox itself."""
        is_last_try = False
        search_again_after_s = repeat(self._timing.search_again_after_s)
        kill_again_after_s = self._timing.kill_again_after_s
        for pause_s in kill_again_after_s if sandbox.exists else search_again_after_s:
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

    def close(self, budget_s: float = 2 * TIMING.small_call_s) -> None:
        """End every sandbox, and wait for that no longer than `budget_s`."""
        self._closing.set()
        self._slots.end_all("making", "kept", "running")
        self._slots.wait_until_all_are_free(budget_s)


def in_background(
    threads: ThreadPoolExecutor, do: Callable[[Slot], None], slot: Slot
) -> None:
    """Have one of the threads do it, or do it in this thread if none can be started.

    In the latter case it is queued as well, so it must be harmless to `do` it twice."""
    try:
        threads.submit(do, slot)
    except RuntimeError:
        do(slot)
