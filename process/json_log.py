"""The log: lines of JSON that never contain a key, written by a thread of their own."""

import atexit
import contextlib
import json
import logging
import os
import queue
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from gunicorn import glogging

from config import Config, log

# A shorter "key" would be found, and hidden, in ordinary words.
_MIN_HIDDEN_CHARS = 8
# Half a MB. A burst is shorter; a reader this far behind does not read at all.
_MAX_WAITING_LINES = 1000
# How long the process waits at its end for a slow reader.
_DRAIN_S = 2
_STDOUT_DESCRIPTOR = 1


class JsonFormatter(logging.Formatter):
    """The message, and the fields that were given as `extra={"fields": {...}}`."""

    def __init__(self, keys: Iterable[str]) -> None:
        super().__init__()
        # Keys as JSON writes them, with \" for a quote.
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


class QueuedStdout(logging.Handler):
    """Writes to stdout, and never makes a caller wait for its reader.

    Lines that find the queue full are dropped; a later line says how many.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reset()
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self._drain)

    def _reset(self) -> None:
        """Start empty: a fork lacks the thread, but may have a lock that it held."""
        self._lines: queue.Queue[str] = queue.Queue(_MAX_WAITING_LINES)
        self._dropped = 0  # lines, in all
        self._writer = threading.Thread(target=self._write_lines, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        if not self._writer.ident:
            self._writer.start()
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1

    def _drain(self) -> None:
        """Wait until all lines are written, for a limited time."""
        is_written = self._lines.all_tasks_done
        with is_written:
            is_written.wait_for(lambda: not self._lines.unfinished_tasks, _DRAIN_S)

    def _write_lines(self) -> None:
        reported = 0
        while True:
            _write(self._lines.get())
            dropped = self._dropped
            if dropped > reported:
                text = f"{dropped - reported} lines of this log were dropped"
                record = {"levelname": "WARNING", "msg": f"{text}: nobody read it"}
                _write(self.format(logging.makeLogRecord(record)))
                reported = dropped
            self._lines.task_done()


def _write(line: str) -> None:
    data = f"{line}\n".encode()
    # After an error the reader is gone, and there is nowhere else to say so.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(_STDOUT_DESCRIPTOR, data) :]


# There is one in the process, because gunicorn may set its logger up again.
_STDOUT = QueuedStdout()


class JsonLogger(glogging.Logger):
    """gunicorn's own lines, and ours.

    LOG_LEVEL does not apply to the SDK, because its debug lines hold code."""

    def setup(self, cfg: Any) -> None:
        settings = Config.from_env(os.environ)
        level = settings.log_level.upper()
        keys = (settings.e2b_api_key, settings.proxy_api_key)
        _STDOUT.setFormatter(JsonFormatter(keys))
        logging.basicConfig(handlers=[_STDOUT], level=logging.WARNING, force=True)
        log.setLevel(level)
        self.error_log.setLevel(level)
        self.error_log.propagate = True
