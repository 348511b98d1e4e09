"""`make bench`: what the service adds to, and takes from, the time that E2B takes.

    python bench.py [--quick] [--e2b [--max-sandbox-seconds 60]]

Compares the service, as shipped, with the bare SDK (`with Sandbox.create() as s: s.run_code(...)`)
against the stand-in for E2B, which answers after fixed delays. The service, the stand-in and what
makes the load are processes of their own. Prints a Markdown table with the target beside each
figure, then what was missed; exits 1 when something was. With --e2b it asks the real E2B
(E2B_API_KEY) as few times as make sense, and judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 40.0
REQUEST_TIMEOUT_S = 60.0
CREATE_S, RUN_S, KILL_S = 0.150, 0.050, 0.060
DELAYS = {
    "create": {"delay_s": CREATE_S},
    "run": {"from_code": True},
    "kill": {"delay_s": KILL_S},
}
NO_DELAYS = {"create": {}, "run": {"from_code": True}, "kill": {}}


@dataclass(frozen=True)
class Scale:
    """How often each thing is done."""

    single: int = 50  # calls of one caller
    crowds: Mapping[int, int] = lambda: None  # type: ignore[assignment]
    cap: int = 100
    long_run_s: float = 2.0
    pictures: int = 10
    undelayed: int = 600
    refusals: int = 20


FULL = Scale(crowds={20: 15, 100: 6})
QUICK = Scale(
    single=3, crowds={4: 2}, cap=8, long_run_s=0.5, pictures=1, undelayed=16, refusals=3
)


# --- processes --------------------------------------------------------------------------------


class BenchError(Exception):
    """What kept the measurement from being made, in one line."""


def environ_for(e2b_url: str | None) -> dict[str, str]:
    """This environment without proxies; with the stand-in's address, nothing of E2B's is left."""
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    environ = {k: v for k, v in os.environ.items() if k.lower() not in proxies}
    environ["E2B_MAX_KEEPALIVE_CONNECTIONS"] = "200"
    if e2b_url:
        environ = {k: v for k, v in environ.items() if k == "PATH" or not k.startswith("E2B_")}
        environ |= {"E2B_API_KEY": "local", "E2B_API_URL": e2b_url, "E2B_SANDBOX_URL": e2b_url}
        environ["E2B_MAX_KEEPALIVE_CONNECTIONS"] = "200"
    return environ
