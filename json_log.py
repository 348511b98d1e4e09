"""The log's lines: one JSON object each, in which no key ever stands."""

import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime

# A shorter "key" would be found, and hidden, in ordinary words.
_MIN_HIDDEN_CHARS = 8


class JsonFormatter(logging.Formatter):
    """The message, and what was given as `extra={"fields": {...}}`."""

    def __init__(self, keys: Iterable[str]) -> None:
        super().__init__()
        self._keys = [key for key in keys if len(key) >= _MIN_HIDDEN_CHARS]

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
