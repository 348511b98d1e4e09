"""`make demo`: starts the service, has check.py draw a sine wave, serves until Ctrl-C.

Without E2B_API_KEY a stand-in for E2B (local_e2b.py) is started too, and used. PORT and
the other settings are the service's own; it listens on loopback only. Without FILES_DIR
the files of the code interpreter are in a temporary folder. The pictures and the log
have the port in their names. `--once` ends after the pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import launch
from launch import LOOPBACK, ROOT

# The service lets runs finish; after Ctrl-C nobody waits longer than this for them.
STOP_TIMEOUT_S = 10.0
POLL_S = 0.1
LOG_TAIL_LINES = 15
# Below are ports that only root may listen on.
FIRST_FREE_PORT = 1025


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
        if ended := launch.has_ended(self.process):
            raise DemoError(f"{self.name} {ended}.{self.log_tail()}")

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
            process = launch.start(command, environ, output)
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raises Stopped when asked to, DemoError when a child has died."""
        for child in self.children:
            child.check_alive()
        if self.stop.is_set():
            raise Stopped

    def wait_until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            self.check()
            self.stop.wait(POLL_S)

    def wait_until_up(self, child: Child, is_up: Callable[[], bool]) -> None:
        def is_up_and_nothing_else_happened() -> bool:
            self.check()
            return is_up()

        try:
            launch.wait_until(is_up_and_nothing_else_happened, child.process)
        except launch.NotUpError as exc:
            raise DemoError(f"{child.name} {exc}.{child.log_tail()}") from exc

    def stop_children(self) -> None:
        """Last started, first stopped: the service
        needs the stand-in for its last kills."""
        while self.children:
            process = self.children.pop().process
            process.terminate()
            give_up_at = time.monotonic() + STOP_TIMEOUT_S
            while process.poll() is None and time.monotonic() < give_up_at:
                if self.hurry.wait(POLL_S):
                    break
            launch.kill(process)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Start the service and have it draw a sine wave."
    )
    parser.add_argument("--once", action="store_true", help="end after the picture")
    parser.add_argument("--out", type=Path, help="the picture; default: demo-PORT.png")
    options = parser.parse_args(arguments)
    demo = Demo()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # With nohup it lives on when the terminal goes.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, demo.on_signal)
    try:
        # Files would need a folder of the user's, who came to try it.
        with tempfile.TemporaryDirectory(prefix="e2b-proxy-demo-") as files_dir:
            try:
                _run(demo, options.out, files_dir, once=options.once)
            finally:
                demo.stop_children()
    except Stopped:
        demo.say("\nStopping.")
    except DemoError as problem:
        with contextlib.suppress(OSError):
            print(f"\ndemo: {problem}", file=sys.stderr, flush=True)
        return 1
    return 0


def _run(demo: Demo, out: Path | None, files_dir: str, *, once: bool) -> None:
    port = _free_port_from(os.environ.get("PORT") or "3001")
    picture = out.resolve() if out else ROOT / f"demo-{port}.png"
    log = ROOT / f"demo-{port}.log"
    environ = {**os.environ, "HOST": LOOPBACK, "PORT": str(port)}
    if not environ.get("FILES_DIR"):
        environ["FILES_DIR"] = files_dir
    if environ.get("E2B_API_KEY") or environ.get("E2B_API_KEY_FILE"):
        demo.say("E2B_API_KEY is set: code runs in E2B's sandboxes.")
    else:
        demo.say(
            "E2B_API_KEY is not set: a stand-in for E2B runs the code on this machine."
        )
        environ = _start_stand_in(demo, environ)
    url = f"http://{LOOPBACK}:{port}"
    service = demo.start("The service", launch.SERVICE, environ, log)
    demo.wait_until_up(service, lambda: launch.is_healthy(port))
    _check(demo, url, environ, picture)
    if once:
        return
    demo.say(
        f"\nThe service listens at {url}: open that page to try it.\n"
        f"Its log is {log.relative_to(ROOT)}. Ctrl-C stops it."
    )
    demo.wait_until(lambda: False)


def _start_stand_in(demo: Demo, environ: Mapping[str, str]) -> dict[str, str]:
    """Start it; the environment in which the
    service and the SDK use it, and nothing else."""
    port = launch.free_port()
    # A proxy would be asked for loopback addresses too.
    environ = {
        name: value
        for name, value in environ.items()
        if not name.lower().startswith((*launch.PROXY_VARIABLES, "e2b_"))
    }
    stand_in = demo.start(
        "The stand-in", ["dev/local_e2b.py", "--port", str(port)], environ
    )
    demo.wait_until_up(stand_in, lambda: launch.accepts(port))
    url = f"http://{LOOPBACK}:{port}"
    return {
        **environ,
        "E2B_API_KEY": "local",
        "E2B_API_URL": url,
        "E2B_SANDBOX_URL": url,
    }


def _check(demo: Demo, url: str, environ: Mapping[str, str], out: Path) -> None:
    demo.say("Drawing a sine wave, and plotting a table that is uploaded ...\n")
    table = out.with_stem(f"{out.stem}-table")
    outs = ["--out", str(out), "--table-out", str(table)]
    check = demo.start("check.py", ["dev/check.py", "--url", url, *outs], environ)
    demo.children.remove(check)
    try:
        demo.wait_until(lambda: check.process.poll() is not None)
    finally:
        check.process.kill()
        check.process.wait()
    if check.process.returncode:
        raise DemoError(f"the pictures did not come.{demo.children[-1].log_tail()}")


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
            f"PORT={_free_port_above(port)} make demo"
        ) from error


def _free_port_above(port: int) -> int:
    for other in range(max(port + 1, FIRST_FREE_PORT), 65536):
        with contextlib.suppress(OSError), socket.create_server((LOOPBACK, other)):
            return other
    return launch.free_port()


if __name__ == "__main__":
    sys.exit(main())
