"""Whether the client that asked for a run is still there, and still wants it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock


class Caller:
    """A client that waits for the reply to one request, until it hangs up.

    The worker, or a message of the client, says so by `hang_up`, in another thread.
    Whoever does something for the caller registers what is to be done about it then.
    """

    def __init__(self) -> None:
        self.is_gone = False
        # Held while acts are called: so an act is never called after its `with` ended,
        # when it would stop what is done for somebody else.
        self._lock = Lock()
        self._acts: list[Callable[[], None]] = []

    @property
    def is_worked_for(self) -> bool:
        """Whether anything would be done if they hung up now."""
        return bool(self._acts)

    def hang_up(self) -> None:
        """May be called again: the worker does at each look, until the request ends."""
        with self._lock:
            if self.is_gone:
                return
            self.is_gone = True
            for act in self._acts:
                act()

    @contextmanager
    def on_hang_up(self, act: Callable[[], None]) -> Iterator[None]:
        """Have `act` called once if the caller hangs up in this `with`, or has before.

        It is called in another thread, which others need: it must not wait for anything
        and must not raise."""
        with self._lock:
            self._acts.append(act)
            if self.is_gone:
                act()
        try:
            yield
        finally:
            with self._lock:
                self._acts.remove(act)


class Calls:
    """Calls that are under way, which a message on another connection may cancel.

    Each client numbers its calls from 0 on. So a call is known by its session, too,
    which is a text that nobody else knows."""

    def __init__(self) -> None:
        self._callers: dict[tuple[str, int | str], Caller] = {}

    @contextmanager
    def under_way(
        self, session: str, number: int | str, caller: Caller
    ) -> Iterator[None]:
        """Without a session no message cancels the call."""
        call = (session, number)
        if session:
            self._callers[call] = caller
        try:
            yield
        finally:
            # A client that gives up on a connection may send its call once more.
            if self._callers.get(call) is caller:
                del self._callers[call]

    def cancel(self, session: str, number: int | str) -> None:
        """Does nothing if no such call is under way."""
        caller = self._callers.get((session, number))
        if caller:
            caller.hang_up()
