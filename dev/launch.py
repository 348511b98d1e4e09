"""Starts the service as shipped, or another Python program, and waits until it is up.

What the demo, the benchmark, the soak and the tests share: a process in a group of its
own, so that Ctrl-C is for whoever started it, and nothing of it is left when it is
ended. Only what Python itself has is used: `make demo` installs no `requests`.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
SERVICE = ("-m", "gunicorn", "proxy:app")
# A busy machine takes seconds for what takes a quiet one half a second.
START_TIMEOUT_S = 60.0
POLL_S = 0.02
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


class NotUpError(Exception):
    """A process ended, or did not answer in time: in words."""


def free_port() -> int:
    """A port for a process that is started soon.

    Below those that the system gives to connections, any of which could take it until
    then; chosen at random, so that those who start processes at once seldom collide.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server((LOOPBACK, port)):
            return port


def clean_environ(e2b_url: str = "") -> dict[str, str]:
    """This environment, without proxies; with an address, E2B is the stand-in there."""
    unwanted = (*PROXY_VARIABLES, "e2b_") if e2b_url else PROXY_VARIABLES
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().startswith(unwanted)
    }
    if e2b_url:
        environ |= {
            "E2B_API_KEY": "local",
            "E2B_API_URL": e2b_url,
            "E2B_SANDBOX_URL": e2b_url,
        }
    return environ


def start(
    command: Sequence[str], environ: Mapping[str, str], output: IO[bytes] | int | None
) -> subprocess.Popen[bytes]:
    """Start Python with these arguments in the project's folder."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
    )


def has_ended(process: subprocess.Popen[bytes]) -> str:
    """How it ended, in words; "" while it runs."""
    code = process.poll()
    if code is None:
        return ""
    if code < 0:
        return f"was ended by signal {-code}"
    return f"ended with exit code {code}"


def wait_until(
    is_up: Callable[[], bool],
    process: subprocess.Popen[bytes],
    timeout_s: float = START_TIMEOUT_S,
) -> None:
    """Raises NotUpError when the process ends first, or when the time is over."""
    give_up_at = time.monotonic() + timeout_s
    while not is_up():
        if ended := has_ended(process):
            raise NotUpError(ended)
        if time.monotonic() > give_up_at:
            raise NotUpError(f"did not answer within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def accepts(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


def is_healthy(port: int) -> bool:
    """Whether GET /health is answered as the service answers it: 200, and healthy."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=START_TIMEOUT_S)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        reply = connection.getresponse()
        health = json.loads(reply.read())
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    is_object = isinstance(health, dict)
    return reply.status == 200 and is_object and health.get("status") == "healthy"


def end(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """SIGTERM, and SIGKILL for whatever is left; whether the first was enough."""
    process.terminate()
    try:
        process.wait(timeout_s)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End it and its group at once."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
