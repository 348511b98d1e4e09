"""The log: lines of JSON in which no key ever
stands, written to stdout without waiting for its reader."""

import atexit
import json
import logging
import os
import select
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

# A shorter "key" would be found, and hidden, in ordinary words.
_MIN_HIDDEN_CHARS = 8
# At the end of the process, for a reader that is slow.
_DRAIN_S = 2
_STDOUT = 1
# What a pipe takes without waiting once it is writable at all: `man 7 pipe`.
_PIECE_BYTES = select.PIPE_BUF


class JsonFormatter(logging.Formatter):
    """The message, and what was given as `extra={"fields": {...}}`."""

    def __init__(self, keys: Iterable[str]) -> None:
        super().__init__()
        # As JSON writes them: with \" for a quote.
        self._keys = [
            json.dumps(key)[1:-1] for key in keys if len(key) >= _MIN_HIDDEN_CHARS
        ]

    def format(self, record: logging.LogRecord) -> str:
        now = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": now.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": super().format(record),  # with the traceback of an exception
        }
        text = json.dumps(line | getattr(record, "fields", {}))
        for key in self._keys:
            text = text.replace(key, "[key]")
        return text


class StdoutHandler(logging.Handler):
    """Writes to stdout and never has a caller wait for who reads it.

    Lines for which the pipe has no space, of 64 KiB on Linux, are dropped; a later
    line says how many.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dropped = 0
        atexit.register(self._report_dropped, _DRAIN_S)

    def emit(self, record: logging.LogRecord) -> None:
        self._report_dropped()
        if not _write(self.format(record)):
            self._dropped += 1

    def _report_dropped(self, wait_s: float = 0) -> None:
        if not self._dropped:
            return
        text = f"{self._dropped} lines of this log were dropped: nobody read it"
        record = {"levelname": "WARNING", "msg": text}
        if _write(self.format(logging.makeLogRecord(record)), wait_s):
            self._dropped = 0


def _write(line: str, wait_s: float = 0) -> bool:
    """Write a line, unless nobody has read what was written before."""
    data = f"{line}\n".encode()
    # An error: the reader is gone, and there is nowhere else to say so.
    with suppress(OSError):
        for start in range(0, len(data), _PIECE_BYTES):
            _, is_writable, _ = select.select([], [_STDOUT], [], wait_s)
            if not is_writable:
                return False
            os.write(_STDOUT, data[start : start + _PIECE_BYTES])
    return True
