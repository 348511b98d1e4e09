"""The processes that the bench and the soak start: the service, and E2B's stand-in."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

import launch
import psutil
from answers import ask_once, check_script_taken, health_of, state_of
from launch import LOOPBACK, POLL_S, clean_environ, free_port

STOP_TIMEOUT_S = 40.0
HEALTH_TIMEOUT_S = 5.0
STAND_IN_TIMEOUT_S = 60.0

Job = dict[str, Any]


class BenchError(Exception):
    """What kept a figure from being measured, in one line."""


class Child:
    """A Python process. It ends with its `with` block, and its output is in a file."""

    def __init__(self, *command: str, environ: Mapping[str, str]) -> None:
        self.name = command[0] if command[0] != "-m" else command[1]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in kill
        self.started_at = time.monotonic()
        self.process = launch.start(command, environ, self.log.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log_text(self) -> str:
        # pread leaves the position at which the child writes alone.
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode("utf-8", "replace")

    def wait_until(self, is_up: Callable[[], bool]) -> None:
        try:
            launch.wait_until(is_up, self.process)
        except launch.NotUpError as exc:
            tail = " | ".join(self.log_text().splitlines()[-5:])
            raise BenchError(f"{self.name} {exc}: {tail}") from exc

    def stop(self) -> bool:
        """SIGTERM, and SIGKILL for whatever is left; whether the first was enough."""
        has_ended = launch.end(self.process, STOP_TIMEOUT_S)
        self.log.close()
        return has_ended

    def kill(self) -> None:
        launch.kill(self.process)
        self.log.close()

    def processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def memory_mb(self) -> float:
        """Resident memory of all its processes; what they share is counted in each."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 1e6


class StandIn(Child):
    def __init__(self, script: Job) -> None:
        command = ("dev/local_e2b.py", "--port", "0", "--script", json.dumps(script))
        super().__init__(*command, environ=clean_environ())
        self.wait_until(lambda: "\n" in self.log_text())
        self.port = int(self.log_text().partition(f"{LOOPBACK}:")[2].partition(" ")[0])
        self.url = f"http://{LOOPBACK}:{self.port}"

    def state(self) -> dict[str, Any]:
        return state_of(ask_once(self.port, "GET", "/_state", STAND_IN_TIMEOUT_S))

    def seconds_when_idle(self) -> float:
        """Sandbox seconds, once no sandbox is alive."""
        give_up_at = time.monotonic() + 10
        while (state := self.state())["alive"]:
            if time.monotonic() > give_up_at:
                raise BenchError(f"{state['alive']} sandboxes did not end")
            time.sleep(5 * POLL_S)
        return float(state["sandbox_seconds"])

    def set_script(self, script: Job) -> None:
        body = json.dumps(script).encode()
        path = "/_script"
        check_script_taken(ask_once(self.port, "PUT", path, STAND_IN_TIMEOUT_S, body))


class Service(Child):
    """gunicorn with the shipped configuration."""

    def __init__(self, environ: Mapping[str, str], port: int = 0) -> None:
        self.port = port or free_port()
        environ = {**environ, "HOST": LOOPBACK, "PORT": str(self.port)}
        super().__init__(*launch.SERVICE, environ=environ)
        self.wait_until(lambda: launch.is_healthy(self.port))
        self.start_s = time.monotonic() - self.started_at

    def health(self) -> dict[str, Any]:
        return health_of(ask_once(self.port, "GET", "/health", HEALTH_TIMEOUT_S))


def answered(**answer: Any) -> str:
    """Code that makes the stand-in answer so."""
    return f"# answer: {json.dumps(answer)}"
