"""`make demo`: starts the service as shipped, has check.py draw a sine wave, serves until Ctrl-C.

Without E2B_API_KEY a stand-in for E2B (local_e2b.py) is started too, and used. PORT and the other
settings are the service's own; it listens on loopback only. `--once` ends after the picture.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 30.0
# The service lets runs finish; whoever presses Ctrl-C waits no longer than this for them.
STOP_TIMEOUT_S = 10.0
POLL_S = 0.1
LOG_TAIL_LINES = 15


class DemoError(Exception):
    """What went wrong, in words, and what to do about it."""


class Stopped(Exception):
    """Somebody asked for the end: Ctrl-C, SIGTERM, or a terminal that went away."""


@dataclass(frozen=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path | None = None

    def check_alive(self) -> None:
        code = self.process.poll()
        if code is None:
            return
        how = (
            f"was ended by signal {-code}"
            if code < 0
            else f"ended with exit code {code}"
        )
        raise DemoError(f"{self.name} {how}.{self.log_tail()}")

    def log_tail(self) -> str:
        if not self.log:
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f" The end of {self.log}:", *lines])


class Demo:
    """The processes that run, and what signals asked for."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.stop = threading.Event()
        self.hurry = threading.Event()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()

    def say(self, text: str) -> None:
        """Print; a terminal that went away is a reason to stop, never an error."""
        try:
            print(text, flush=True)
        except OSError:
            self.stop.set()
            # What is still in the buffer would raise once more when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def start(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        log: Path | None = None,
    ) -> Child:
        with log.open("wb") if log else contextlib.nullcontext() as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is for this process alone, which stops the others in order.
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def wait(self, happened: Callable[[], bool]) -> None:
        """Return when it has happened; raises Stopped when asked to, DemoError on a dead child."""
        while not happened():
            for child in self.children:
                child.check_alive()
            if self.stop.wait(POLL_S):
                raise Stopped

    def wait_until_up(self, child: Child, is_up: Callable[[], bool]) -> None:
        polls = iter(range(int(START_TIMEOUT_S / POLL_S)))

        def is_up_in_time() -> bool:
            if next(polls, None) is None:
                raise DemoError(
                    f"{child.name} did not answer within {START_TIMEOUT_S:.0f} s.{child.log_tail()}"
                )
            return is_up()

        self.wait(is_up_in_time)

    def stop_children(self) -> None:
        """Last started, first stopped: the service needs the stand-in for its last kills."""
        while self.children:
            process = self.children.pop().process
            process.terminate()
            for _ in range(int(STOP_TIMEOUT_S / POLL_S)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
                    break
                if self.hurry.is_set():
                    break
            # Also what it may have left behind: its process group is its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Start the service and have it draw a sine wave."
    )
    parser.add_argument("--once", action="store_true", help="end after the picture")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "demo.png", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    demo = Demo()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # With nohup it lives on when the terminal goes.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, demo.on_signal)
    try:
        _run(demo, options.out.resolve(), once=options.once)
    except Stopped:
        demo.say("\nStopping.")
    except DemoError as problem:
        with contextlib.suppress(OSError):
            print(f"\ndemo: {problem}", file=sys.stderr, flush=True)
        return 1
    finally:
        demo.stop_children()
    return 0


def _run(demo: Demo, out: Path, *, once: bool) -> None:
    port = _free_port_from(os.environ.get("PORT") or "3001")
    environ = {**os.environ, "HOST": LOOPBACK, "PORT": str(port)}
    if environ.get("E2B_API_KEY") or environ.get("E2B_API_KEY_FILE"):
        demo.say("E2B_API_KEY is set: code runs in E2B's sandboxes.")
    else:
        demo.say(
            "E2B_API_KEY is not set: a stand-in for E2B runs the code on this machine."
        )
        environ = _start_stand_in(demo, environ)
    url = f"http://{LOOPBACK}:{port}"
    log = ROOT / "demo.log"
    service = demo.start("The service", ["-m", "gunicorn", "proxy:app"], environ, log)
    demo.wait_until_up(service, lambda: _health_status(port) == http.HTTPStatus.OK)
    _check(demo, url, environ, out)
    if once:
        return
    demo.say(
        f"\nThe service listens at {url}: open that page to try it. Its log is {log}.\n"
        "Ctrl-C stops it."
    )
    demo.wait(lambda: False)


def _start_stand_in(demo: Demo, environ: Mapping[str, str]) -> dict[str, str]:
    """Start it; the environment in which the service and the SDK use it, and nothing else."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        port = probe.getsockname()[1]
    # A proxy would be asked for loopback addresses too.
    strangers = {"http_proxy", "https_proxy", "all_proxy"}
    environ = {
        name: value
        for name, value in environ.items()
        if name.lower() not in strangers and not name.startswith("E2B_")
    }
    stand_in = demo.start(
        "The stand-in", ["dev/local_e2b.py", "--port", str(port)], environ
    )
    demo.wait_until_up(stand_in, lambda: _accepts(port))
    url = f"http://{LOOPBACK}:{port}"
    return {
        **environ,
        "E2B_API_KEY": "local",
        "E2B_API_URL": url,
        "E2B_SANDBOX_URL": url,
    }


def _check(demo: Demo, url: str, environ: Mapping[str, str], out: Path) -> None:
    demo.say("Drawing a sine wave ...\n")
    check = demo.start(
        "check.py", ["dev/check.py", "--url", url, "--out", str(out)], environ
    )
    demo.children.remove(check)
    try:
        demo.wait(lambda: check.process.poll() is not None)
    finally:
        check.process.kill()
        check.process.wait()
    if check.process.returncode:
        raise DemoError(f"the sine wave did not come.{demo.children[-1].log_tail()}")


def _free_port_from(text: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= port <= 65535:
        raise DemoError(f"PORT must be a whole number from 1 to 65535, not {text!r}.")
    try:
        with socket.create_server((LOOPBACK, port)):
            return port
    except OSError as error:
        reason = (
            "is taken"
            if error.errno == errno.EADDRINUSE
            else f"cannot be used ({error})"
        )
        raise DemoError(
            f"port {port} {reason}. Stop what listens there, or choose another: "
            f"PORT={port % 65535 + 1} make demo"
        ) from error


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


def _health_status(port: int) -> int | None:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
