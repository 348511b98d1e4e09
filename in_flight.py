"""Bounds the memory that large bodies and replies hold, together in one process."""

import threading
from collections import deque

# Nothing smaller is counted, and nothing smaller ever waits.
LARGE_BYTES = 1024 * 1024
_WAIT_S = 10


class NoRoom(Exception):
    """Others held the memory for too long, or too many wait for it already."""


class InFlight:
    """Gives memory to requests, in the order in which they ask for it.

    The request that goes beyond the limit may have all that it needs; no other is given
    any until it has given that back. If none might go beyond it, several that hold a
    part of what they need would wait for each other."""

    def __init__(self, max_bytes: int, max_waiting: int) -> None:
        """`max_waiting` bounds how many requests wait, because each holds a thread."""
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._held_bytes = 0
        self._beyond: Hold | None = None  # whose memory went beyond the limit last
        self._waiting: deque[Hold] = deque()
        self._changed = threading.Condition()

    def give_back(self, size_bytes: int) -> None:
        with self._changed:
            self._held_bytes -= size_bytes
            self._changed.notify_all()

    def take(self, hold: "Hold", size_bytes: int) -> None:
        """Wait for this much memory. Raises NoRoom, at once if enough others wait."""
        with self._changed:
            may_wait = len(self._waiting) < self._max_waiting
            self._waiting.append(hold)
            try:
                has_room = self._changed.wait_for(
                    lambda: self._is_turn_of(hold), _WAIT_S if may_wait else 0
                )
                if not has_room:
                    raise NoRoom
                self._held_bytes += size_bytes
                self._beyond = hold
            finally:
                self._waiting.remove(hold)
                self._changed.notify_all()

    def _is_turn_of(self, hold: "Hold") -> bool:
        if self._held_bytes > self._max_bytes:
            return self._beyond is hold
        return self._waiting[0] is hold


class Hold:
    """The memory that one request holds, which is none at first."""

    def __init__(self, in_flight: InFlight) -> None:
        self.size_bytes = 0
        self._in_flight = in_flight

    def resize(self, size_bytes: int) -> None:
        """Hold this much, or nothing if that is not large. Raises NoRoom."""
        wanted_bytes = size_bytes if size_bytes > LARGE_BYTES else 0
        more_bytes = wanted_bytes - self.size_bytes
        if more_bytes > 0:
            self._in_flight.take(self, more_bytes)
        elif more_bytes < 0:
            self._in_flight.give_back(-more_bytes)
        self.size_bytes = wanted_bytes

    def release(self) -> None:
        self.resize(0)
