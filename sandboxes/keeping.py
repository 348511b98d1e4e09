"""Sandboxes that are kept: for the next call of a session, or made ahead for anybody.

Imported only with SESSION_IDLE_S or WARM_SANDBOXES. `KeepingPool` is the pool with that
added: it says which sandboxes are kept, for how long, and what a session is told. What
a caller gets is decided in pool.py.

One thread, the keeper's, looks after all that are kept, and has sandboxes made ahead in
slots that nobody waits for. It never waits for E2B itself."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic

from caller import Caller
from config import Config, log
from run import Run
from sandboxes.pool import CALLER_GONE, Need, Pool, Slot, in_background
from sandboxes.sandbox import Sandbox, SandboxGone, Unavailable
from sandboxes.set_up import set_up_lines
from sandboxes.timing import TIMING, Timing
from texts.cell import Cell

# A call that waited for its session's turn has at least this many seconds for its code,
# or does not run: code that is stopped costs the session all that it had kept.
_LEAST_RUN_S = 3
# How many sessions are remembered (1 MB) as ones that have run. When the sandbox of one
# of them is gone, its next call is told.
_SESSIONS_REMEMBERED = 10_000
_SESSION_BUSY = "Another call of this conversation is still running. Try again later."
_SESSION_GONE = (
    "What this conversation had kept, its variables and files, is gone; "
    "this run began anew"
)
_KERNEL_GONE = (
    "The variables that this conversation had kept are gone, for its Python process "
    "had ended; its files are still there"
)
_IMPORT_CELL = """
def import_ahead():
    import contextlib, importlib
    for name in {names!r}:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
import_ahead()
del import_ahead"""
# What the kernel imports with the first figure.
_WITH_MATPLOTLIB = ["matplotlib_inline.backend_inline"]


@dataclass(frozen=True)
class KeepingTiming(Timing):
    # The budget resets at midnight, and sessions end, without a signal, so the keeper
    # looks this often.
    look_again_after_s: float = 1
    # A sandbox made ahead is renewed this often, and lives `lifetime_margin_s` longer
    # than a run. So two renewals may be late, and whoever takes it still has it for a
    # whole run.
    renew_after_s: float = 5
    # Pauses after a sandbox could not be made ahead, doubled each time: E2B's free plan
    # allows one create a second, and a fault that lasts needs no more than one try a
    # minute.
    first_back_off_s: float = 1
    longest_back_off_s: float = 60
    # The imports of WARM_IMPORTS took 0.5 to 2.3 s at E2B, and nobody waits for them.
    priming_s: float = 15


KEEPING_TIMING = KeepingTiming()


def import_cell(modules: str) -> str:
    """Code, for the end of a cell, that imports these and leaves no name behind.

    A module that the template does not have is no failure."""
    if not modules:
        return ""
    names = [name.strip() for name in modules.split(",")]
    with_matplotlib = _WITH_MATPLOTLIB if "matplotlib" in modules else []
    return _IMPORT_CELL.format(names=names + with_matplotlib)


class _Sessions:
    """Whose turn it is in each session, and which sessions have run here."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._waiting = 0  # calls, in all sessions
        # The calls of each session: one that runs, then those that wait for their turn.
        self._calls_of: dict[str, list[object]] = {}
        # Each has the note that its last caller was to read, but had hung up. The
        # longest ago comes first.
        self._have_run: dict[str, str] = {}

    @contextmanager
    def turn(self, mark: str, timeout_s: float, caller: Caller) -> Iterator[None]:
        """Have a session to oneself, in the order in which its calls came.

        Raises Unavailable when the calls before this one take longer than `timeout_s`,
        or the caller hangs up.
        Each call that waits holds a thread. So when `most_waiting` calls wait already,
        in all sessions, another is refused at once."""
        call = object()
        with caller.on_hang_up(self._wake), self._changed:
            may_wait = self._waiting < self._most_waiting
            calls = self._calls_of.setdefault(mark, [])
            calls.append(call)
            self._waiting += 1
            need_not_wait = self._changed.wait_for(
                lambda: calls[0] is call or caller.is_gone, timeout_s if may_wait else 0
            )
            self._waiting -= 1
        try:
            if caller.is_gone:
                raise Unavailable(CALLER_GONE)
            if not need_not_wait:
                raise Unavailable(_SESSION_BUSY)
            yield
        finally:
            with self._changed:
                calls.remove(call)
                if not calls:
                    del self._calls_of[mark]
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def has_run(self, mark: str) -> bool:
        with self._changed:
            return mark in self._have_run

    def unread_note(self, mark: str) -> str:
        with self._changed:
            return self._have_run.get(mark, "")

    def note_run(self, mark: str, unread_note: str) -> None:
        with self._changed:
            self._have_run.pop(mark, None)
            self._have_run[mark] = unread_note
            if len(self._have_run) > _SESSIONS_REMEMBERED:
                longest_ago = next(iter(self._have_run))
                del self._have_run[longest_ago]


class _BackOff:
    """The pause after a failure, doubled with each that follows without a success."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s
        self._ends_at = -math.inf

    def is_over(self) -> bool:
        return monotonic() >= self._ends_at

    def note_failure(self) -> None:
        # Several that were begun together fail together: that is one failure.
        if self.is_over():
            self._ends_at = monotonic() + self._next_s
            self._next_s = min(2 * self._next_s, self._longest_s)

    def note_success(self) -> None:
        self._next_s = self._first_s


class KeepingPool(Pool):
    """A pool with sessions, and up to `warm_sandboxes` sandboxes made ahead.

    The calls of a session use one sandbox, one after another. After `session_idle_s`
    without a call, and when this service ends, it is left to E2B, which ends it."""

    _timing: KeepingTiming

    def __init__(
        self,
        config: Config,
        timing: KeepingTiming = KEEPING_TIMING,
        prepare_code: str = "",
    ) -> None:
        """`prepare_code` is run in each sandbox that is made ahead, with its set-up."""
        super().__init__(config, timing)
        self._prepare_code = prepare_code
        # Half as many calls may wait for their turn as run at once, but one at least.
        self.sessions = _Sessions(max(1, config.max_concurrent_runs // 2))
        self._back_off = _BackOff(timing.first_back_off_s, timing.longest_back_off_s)
        self._last_call_at = monotonic()
        # Apart from kills, which would have to wait for a renewal that hangs.
        self._renewals = ThreadPoolExecutor(config.max_concurrent_runs)
        self._renewing: set[Slot] = set()  # of those made ahead
        # The last thing: it uses all of the above.
        threading.Thread(target=self._keep).start()

    # --- the calls of a session

    def _run(self, cell: Cell, need: Need, run: Run) -> None:
        if not need.mark:
            super()._run(cell, need, run)
            return
        with self.sessions.turn(need.mark, need.limit_s, need.caller):
            waited_s = monotonic() - need.asked_at
            left_s = math.ceil(need.limit_s - waited_s)
            if left_s < min(need.limit_s, _LEAST_RUN_S):
                raise Unavailable(_SESSION_BUSY)
            need = replace(need, limit_s=left_s, asked_at=monotonic())
            super()._run(cell, need, run)

    def _run_in(self, sandbox: Sandbox, cell: Cell, need: Need, run: Run) -> None:
        run.note = self.sessions.unread_note(need.mark)
        # This session has run before, and this sandbox has not: something is gone.
        if self.sessions.has_run(need.mark) and not sandbox.has_run:
            run.note = _SESSION_GONE
        try:
            super()._run_in(sandbox, cell, need, run)
            if need.mark and run.began_anew:
                run.note = run.note or _KERNEL_GONE
        finally:
            if need.mark and sandbox.has_run:
                unread_note = run.note if need.caller.is_gone else ""
                self.sessions.note_run(need.mark, unread_note)

    @contextmanager
    def sandbox(self, need: Need, durations_s: dict[str, float]) -> Iterator[Sandbox]:
        """As `Pool.sandbox`, but one that was kept may have to live longer for this.

        So it raises SandboxGone, too, when E2B has it no more."""
        self._last_call_at = monotonic()
        with super().sandbox(need, durations_s) as sandbox:
            if sandbox.left_s() < need.limit_s:
                sandbox.live_for_at_least(self._lifetime_s(need))
            yield sandbox

    def _create(self, sandbox: Sandbox, need: Need) -> None:
        """Adopt the sandbox that a session has at E2B, or else have one made.

        Another replica, or this service before its restart, may have made it. But one
        that is being killed must not be adopted."""
        being_killed = {slot.mark for slot in self._slots.in_state("ending", "lost")}
        may_be_there = need.mark and need.mark not in being_killed
        if may_be_there and sandbox.adopt(need.mark, self._lifetime_s(need)):
            return
        super()._create(sandbox, need)

    def _lifetime_s(self, need: Need) -> int:
        if not need.mark:
            return super()._lifetime_s(need)
        # A call in the last idle second has its whole time.
        longest_run = Need(self._config.run_timeout_s)
        return self._config.session_idle_s + super()._lifetime_s(longest_run)

    def _release(self, slot: Slot, need: Need) -> None:
        """A session's sandbox is kept instead, if its run ended normally, or was
        stopped and its kernel is free."""
        if slot.mark and slot.sandbox.exists and need.caller.is_gone:
            slot.sandbox.settle()
        if not slot.mark or not slot.sandbox.is_reusable:
            super()._release(slot, need)
            return
        self._slots.keep(slot)
        in_background(self._renewals, self._renew, slot)
        # `close` may have looked for those kept before this one was.
        if self._closing.is_set():
            self._leave_sessions_to_e2b()

    def close(self, budget_s: float = 2 * TIMING.small_call_s) -> None:
        """End every sandbox but those kept for sessions; wait within the budget."""
        self._closing.set()
        self._slots.wake()
        self._leave_sessions_to_e2b()
        super().close(budget_s)

    def _leave_sessions_to_e2b(self) -> None:
        for slot in self._slots.in_state("kept"):
            if slot.mark:
                self._slots.leave_to_e2b(slot)

    # --- the keeper

    def _keep(self) -> None:
        """What the keeper's thread does until `close`."""
        while not self._closing.is_set():
            look_again_after_s = self._timing.look_again_after_s
            self._slots.wait_for(self._has_to_act, look_again_after_s)
            if self._wants_one_more():
                self._begin_one_more()
            for slot in self._slots.in_state("kept"):
                self._look_after(slot)

    def _has_to_act(self) -> bool:
        return self._closing.is_set() or self._wants_one_more()

    def _wants_one_more(self) -> bool:
        made_ahead = self.count("making") + self.warm_ready()
        return (
            not self._closing.is_set()
            and made_ahead < self._config.warm_sandboxes
            and self._slots.has_spare()
            and self._back_off.is_over()
            and self._is_in_use()
            and not self.budget_is_spent()
        )

    def _is_in_use(self) -> bool:
        return monotonic() - self._last_call_at < self._config.warm_idle_s

    def _begin_one_more(self) -> None:
        slot = self._slots.reserve()
        if not slot:
            return  # a caller was quicker
        try:
            threading.Thread(target=self._make_ahead, args=[slot]).start()
        except RuntimeError as exc:  # no thread can be had
            self._give_up(slot, exc)

    def _make_ahead(self, slot: Slot) -> None:
        """Make a sandbox, prime it and keep it for anybody. Has a thread of its own."""
        try:
            self._make(slot.sandbox, Need(self._config.run_timeout_s))
            imports = import_cell(self._config.warm_imports)
            set_up = set_up_lines(self._config.max_image_bytes)
            code = set_up + self._prepare_code + imports
            slot.sandbox.prime(code, self._timing.priming_s)
            self._slots.keep(slot)
            self._back_off.note_success()
        except BaseException as exc:  # whatever it was, the slot is not left `making`
            self._give_up(slot, exc)

    def _give_up(self, slot: Slot, exc: BaseException) -> None:
        log.warning("no sandbox could be kept ready: %r", exc)
        self._back_off.note_failure()
        self._slots.end(slot, "making")

    def _look_after(self, slot: Slot) -> None:
        """Decide what becomes of a sandbox that is kept: each second, and oftener."""
        # There are these cases:
        # 1. E2B has ended it, for its lifetime is over.
        if slot.sandbox.left_s() < 0:
            self._slots.leave_to_e2b(slot)
        # 2. The budget is spent: it would cost more.
        elif self.budget_is_spent():
            self._slots.end(slot, "kept")
        # 3. It is a session's: it stays, until its lifetime is over.
        elif slot.mark:
            pass
        # 4. It was made ahead, and no run has come for long.
        elif not self._is_in_use():
            self._slots.end(slot, "kept")
        # 5. It was made ahead, and the time has come to put its end off.
        elif self._is_due(slot) and slot not in self._renewing:
            self._renewing.add(slot)
            in_background(self._renewals, self._renew, slot)

    def _is_due(self, slot: Slot) -> bool:
        whole_life_s = self._lifetime_s(Need(self._config.run_timeout_s))
        return slot.sandbox.left_s() < whole_life_s - self._timing.renew_after_s

    def _renew(self, slot: Slot) -> None:
        """Let one that is kept live for its whole time from now on."""
        need = Need(self._config.run_timeout_s, slot.mark)
        try:
            slot.sandbox.live_for_at_least(self._lifetime_s(need))
        except SandboxGone:
            self._slots.end(slot, "kept")
        except Unavailable:
            pass  # it is logged; E2B ends it sooner, if no later renewal succeeds
        finally:
            self._renewing.discard(slot)
