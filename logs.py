"""Logs: one JSON object a line, on stdout."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


class JsonFormatter(logging.Formatter):
    """The message, and what was given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": stamp, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "fields", {}))


def logging_config(level: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`. The level is ours: the SDK's debug lines hold the code."""
    own = {"level": level.upper(), "handlers": ["stdout"], "propagate": False}
    stdout = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"stdout": stdout},
        "root": {"level": "WARNING", "handlers": ["stdout"]},
        "loggers": {"e2b_proxy": own, "gunicorn.error": own},
    }
