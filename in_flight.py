"""Bounds the memory that large bodies and replies hold, together in one process."""

import threading
from collections import deque

# Nothing smaller is counted, and nothing smaller ever waits.
LARGE_BYTES = 1024 * 1024
_WAIT_S = 10


class NoRoom(Exception):
    """Others held the memory for too long, or too many wait for it already."""


class InFlight:
    """Gives memory to requests, in the order in which they ask for it."""

    def __init__(self, max_bytes: int, max_waiting: int) -> None:
        """`max_waiting` bounds how many requests wait, because each holds a thread."""
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._held_bytes = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    def give_back(self, size_bytes: int) -> None:
        with self._changed:
            self._held_bytes -= size_bytes
            self._changed.notify_all()

    def take(self, size_bytes: int) -> None:
        """Wait for this much memory. Raises NoRoom, at once if enough others wait."""
        with self._changed:
            if len(self._waiting) > self._max_waiting:
                raise NoRoom
            turn = object()
            self._waiting.append(turn)
            try:
                has_room = self._changed.wait_for(
                    lambda: self._waiting[0] is turn and self._fits(size_bytes), _WAIT_S
                )
                if not has_room:
                    raise NoRoom
                self._held_bytes += size_bytes
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()

    def _fits(self, size_bytes: int) -> bool:
        """Whether there is room. A size above the limit fits while nothing is held."""
        is_alone = self._held_bytes == 0
        return is_alone or self._held_bytes + size_bytes <= self._max_bytes


class Hold:
    """The memory that one request holds, which is none at first."""

    def __init__(self, in_flight: InFlight) -> None:
        self.size_bytes = 0
        self._in_flight = in_flight

    def resize(self, size_bytes: int) -> None:
        """Hold this much, or nothing if that is not large. Raises NoRoom.

        To grow, a request first gives back all that it holds, so that no two requests
        wait for each other."""
        wanted_bytes = size_bytes if size_bytes > LARGE_BYTES else 0
        surplus_bytes = self.size_bytes - wanted_bytes
        if surplus_bytes < 0:
            self.release()
            self._in_flight.take(wanted_bytes)
        elif surplus_bytes > 0:
            self._in_flight.give_back(surplus_bytes)
        self.size_bytes = wanted_bytes

    def release(self) -> None:
        if self.size_bytes:
            self._in_flight.give_back(self.size_bytes)
            self.size_bytes = 0
