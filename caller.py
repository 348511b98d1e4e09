"""The value `Caller`: whether the client that asked for a run is still there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock


class Caller:
    """A client that waits for the reply to one request, until it hangs up.

    The worker notices that it has, and says so by `hang_up`, in a thread of its own.
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
        with self._lock:
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
