"""The stand-in's Jupyter kernels: one per sandbox, WITHOUT ANY ISOLATION.

They are forked from a process that has imported what they need.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import write_connection_file
from local_e2b_script import END, line_of

RESTARTED = {
    "type": "error",
    "name": "ContextRestarting",
    "value": "Context was restarted",
    "traceback": "",
}
RESULT_FIELDS = {
    "text": "text/plain",
    "html": "text/html",
    "markdown": "text/markdown",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "pdf": "application/pdf",
    "latex": "text/latex",
    "json": "application/json",
    "javascript": "application/javascript",
    "data": "e2b/data",
    "chart": "e2b/chart",
}


_PROGRAM = Path(__file__).with_name("local_e2b_kernel_process.py")


@dataclass(frozen=True)
class KernelSettings:
    """How kernels behave: as at E2B, unless a test says otherwise."""

    # After this much silence of a run a keepalive is sent.
    keepalive_s: float = 5.0
    # A kernel that died is started again after this time.
    restart_s: float = 2.5
    # A kernel that dies this soon takes with it what it said, the run's number
    # included.
    held_back_s: float = 0.05
    # Whether each kernel has a /mnt of its own, where this machine allows that.
    own_mount: bool = True
    # The program that kernels are forked from.
    program: Path = _PROGRAM


AS_AT_E2B = KernelSettings()


def _environment() -> dict[str, str]:
    """An allowlist: neither keys nor proxies nor
    settings of the parent's reach a kernel."""
    kept = ("TZ", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    python_first = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        # A script's python3 has the kernel's packages, as on E2B.
        "PATH": python_first,
        # Not the parent's: of one that is not
        # installed every shell warns, in the output.
        "LC_ALL": "C.UTF-8",
        # Without matplotlib's font cache each kernel would take seconds more to start.
        "XDG_CACHE_HOME": caches,
        "MATPLOTLIBRC": str(Path(__file__).with_name("local_e2b_matplotlibrc")),
        # A kernel whose parent has ended ends.
        "JPY_PARENT_PID": str(os.getpid()),
    }


def _environment_of(root: Path, home: Path) -> dict[str, str]:
    """What is different in each kernel, whose files are all below `root`."""
    ipython_dir = root / "ipython"
    return {
        "HOME": str(home),
        # What a run leaves in there goes with its sandbox.
        "TMPDIR": str(root / "tmp"),
        "IPYTHONDIR": str(ipython_dir),
        "XDG_CONFIG_HOME": str(ipython_dir),
    }


# The shell's arguments: what to mount over /mnt, and the command that is to see it.
_WITH_MOUNT = 'mount --bind "$0" /mnt && exec "$@"'
DATA = "/mnt/data"
# What E2B's server takes as a cell: the most that Jupyter's websocket takes as JSON.
_MAX_CELL_BYTES = 10 * 1024 * 1024


@functools.cache
def own_mount_command() -> tuple[str, ...]:
    """Starts a process whose /mnt is a folder,
    the next argument, that others do not see.

    Empty where this machine does not allow that.
    """
    for options in (("--mount",), ("--mount", "--map-root-user")):
        command = ("unshare", *options, "sh", "-c", _WITH_MOUNT)
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError):
            tried = subprocess.run([*command, folder, "true"], capture_output=True)
            if tried.returncode == 0:
                return command
    return ()


def _refused() -> Iterator[dict[str, Any]]:
    """What E2B's server answers for a cell that is too long."""
    texts = {
        "WebSocketError": "The connections was lost, rerun the code to get the results",
        "UnexpectedEndOfExecution": "Connection to the execution was closed before the"
        " execution was finished",
    }
    for name, text in texts.items():
        yield {"type": "error", "name": name, "value": text, "traceback": ""}
    yield END


class _Execution:
    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.errored = False
        self.settled = asyncio.Event()
        self.accepted_s: float | None = None
        self.lost = False

    def lose(self, held_back_s: float) -> None:
        """What was said just before the kernel died is gone, as on E2B."""
        age_s = time.monotonic() - (self.accepted_s or 0)
        if age_s < held_back_s and not self.settled.is_set():
            self.lost = True
            self.events = asyncio.Queue()
            self.settled.set()

    def put(self, event: dict[str, Any]) -> None:
        self.events.put_nowait(event)
        self.accepted_s = self.accepted_s or time.monotonic()
        if event is END:
            self.settled.set()


class _Process:
    """A kernel's process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.has_ended = asyncio.Event()

    def interrupt(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """Ends it, its group and its descendants at once."""
        if self.has_ended.is_set():
            return
        descendants = []
        with contextlib.suppress(psutil.Error):
            descendants = psutil.Process(self.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for descendant in descendants:
            with contextlib.suppress(psutil.Error):
                descendant.kill()


class Forks:
    """Starts the processes of kernels, through the one that they are forked from.

    That one is started with the first of them, and ended by `stop`.
    """

    def __init__(self, settings: KernelSettings = AS_AT_E2B) -> None:
        self.settings = settings
        self._starting: deque[asyncio.Future[_Process]] = deque()
        self._running: dict[int, _Process] = {}
        self._parent: asyncio.Task[asyncio.subprocess.Process] | None = None

    @property
    def mount_command(self) -> tuple[str, ...]:
        """See `own_mount_command`; empty also where the settings say so."""
        return own_mount_command() if self.settings.own_mount else ()

    async def start(self, **wanted: Any) -> _Process:
        """Raises RuntimeError when there can be no more kernels."""
        if self._parent is None:
            self._parent = asyncio.create_task(self._start_parent())
        await asyncio.shield(self._parent)
        if self._reader.done():
            raise RuntimeError(self._reader.result())
        started = asyncio.get_running_loop().create_future()
        self._starting.append(started)
        self._requests.write(json.dumps(wanted).encode() + b"\n")
        try:
            return await asyncio.shield(started)
        except asyncio.CancelledError:
            started.add_done_callback(_kill_at_once)
            raise

    async def stop(self) -> None:
        if self._parent is None:
            return
        parent = await self._parent
        self._requests.close()
        await self._reader
        await parent.wait()
        self._log.close()

    async def _start_parent(self) -> asyncio.subprocess.Process:
        command = self.mount_command
        # Something has to be mounted: each kernel mounts its own folder over it.
        mounted = (*command, "/mnt") if command else ()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        parent = await asyncio.create_subprocess_exec(
            *mounted,
            *(sys.executable, "-c", self.settings.program.read_text()),
            env=_environment(),
            cwd="/",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self._requests = cast(asyncio.StreamWriter, parent.stdin)
        reports = cast(asyncio.StreamReader, parent.stdout)
        self._reader = asyncio.create_task(self._read(reports))
        return parent

    async def _read(self, reports: asyncio.StreamReader) -> str:
        """Take in its reports. Returns why there are no more kernels after its end."""
        async for report in reports:
            event, pid = report.split()
            if event == b"started":
                process = self._running[int(pid)] = _Process(int(pid))
                self._starting.popleft().set_result(process)
            else:
                self._running.pop(int(pid)).has_ended.set()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace")[-2000:]
        problem = f"no kernel could be started: {said}"
        for started in self._starting:
            started.set_exception(RuntimeError(problem))
        for process in self._running.values():
            process.has_ended.set()
        return problem


def _kill_at_once(started: asyncio.Future[_Process]) -> None:
    """Nobody waits for it any more."""
    if not started.exception():
        started.result().kill()


class Kernel:
    """A Jupyter kernel in a process group and a temporary directory of its own.

    It is started again when it dies, and leaves
    nothing behind when `stop` has been awaited.
    """

    def __init__(self, forks: Forks) -> None:
        self._forks = forks
        self._settings = forks.settings
        self._lock = asyncio.Lock()
        self._ready = asyncio.Event()
        self.has_folders = asyncio.Event()
        self._execution: _Execution | None = None
        self._process: _Process | None = None
        self._global_envs: dict[str, str] | None = None
        self._cleanups: set[asyncio.Task[None]] = set()
        self._life = asyncio.create_task(self._live())

    async def stop(self) -> None:
        self.kill()
        for task in (*self._cleanups, self._life):
            task.cancel()
        await asyncio.gather(*self._cleanups, self._life, return_exceptions=True)

    def kill(self) -> None:
        if self._process:
            self._process.kill()

    async def _live(self) -> None:
        root = Path(tempfile.mkdtemp(prefix="local-e2b-")).resolve()
        self.home = root / "home" / "user"
        self.home.mkdir(parents=True)
        self._mnt = root / "mnt"
        self._mnt.mkdir()
        self._tmp = root / "tmp"
        self._tmp.mkdir()
        self.has_folders.set()
        try:
            while True:
                await self._one_life(root)
                execution = self._execution
                if execution:
                    execution.lose(self._settings.held_back_s)
                await asyncio.sleep(self._settings.restart_s)
                if self._execution:
                    self._execution.put(RESTARTED)
                    self._execution.put(END)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    async def _one_life(self, root: Path) -> None:
        """From the start of a kernel's process to its end."""
        connection_file = root / "kernel.json"
        for stale in root.glob("kernel*"):
            stale.unlink()
        _, connection = write_connection_file(
            str(connection_file),
            transport="ipc",
            ip=str(root / "kernel"),
            key=secrets.token_hex().encode(),
        )
        self._process = await self._forks.start(
            connection_file=str(connection_file),
            directory=str(self.home),
            mnt=str(self._mnt) if self._forks.mount_command else "",
            environment=_environment_of(root, self.home),
            log=str(root / "log"),
        )
        client = AsyncKernelClient()
        # Without a limit: a queue that is full drops
        # output, and this process may be busy.
        client.context.setsockopt(zmq.RCVHWM, 0)
        client.load_connection_info(connection)
        client.start_channels(stdin=False, hb=False)
        self._client = client
        reader = asyncio.create_task(self._read())
        try:
            await self._process.has_ended.wait()
            if not self._ready.is_set():
                said = (root / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"a kernel ended before it was ready: {said}")
        finally:
            self._ready.clear()
            self.kill()
            await self._process.has_ended.wait()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            client.stop_channels()
            client.context.destroy(linger=0)

    async def _read(self) -> None:
        client = self._client
        while True:
            # Asked until an answer is heard: what was
            # published before we had subscribed is lost.
            client.kernel_info()
            with contextlib.suppress(queue.Empty):
                await client.get_iopub_msg(timeout=0.2)
                break
        self._ready.set()
        while True:
            message = await client.get_iopub_msg()
            execution = self._execution
            parent_id = message["parent_header"].get("msg_id")
            if execution is None or parent_id != execution.message_id:
                continue
            if event := _event(message):
                execution.errored |= event["type"] == "error"
                execution.put(event)
            idle = message["content"].get("execution_state") == "idle"
            if message["msg_type"] == "status" and idle:
                reply = await self._reply(execution.message_id)
                if reply.get("status") == "error" and not execution.errored:
                    execution.put(_error(reply))
                execution.put(END)

    async def _reply(self, message_id: str) -> dict[str, Any]:
        """The shell's reply, which the kernel sends before it says that it is idle."""
        with contextlib.suppress(queue.Empty):
            while True:
                reply = await self._client.get_shell_msg(timeout=5)
                if reply["parent_header"].get("msg_id") == message_id:
                    content: dict[str, Any] = reply["content"]
                    return content
        return {}

    async def execute(
        self, code: str, sandbox_envs: dict[str, str], envs: dict[str, str]
    ) -> AsyncGenerator[bytes, None]:
        """The lines of one run, END included. A
        caller that goes away interrupts the run."""
        await self._lock.acquire()
        finished = False
        try:
            await self.until_ready()
            first = self._global_envs is None
            if first:
                self._global_envs = dict(sorted(sandbox_envs.items()))
            code = _with_envs(code, sandbox_envs if first else {}, envs)
            if len(json.dumps(code)) > _MAX_CELL_BYTES:
                finished = True
                for event in _refused():
                    yield line_of(event)
                return
            if not self._forks.mount_command:
                code = code.replace(DATA, self._own_data())
            execution = self._send(code)
            while not finished:
                try:
                    event = await asyncio.wait_for(
                        execution.events.get(), self._settings.keepalive_s
                    )
                except TimeoutError:
                    event = {"type": "keepalive"}
                if event["type"] == "number_of_executions":
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(
                            execution.settled.wait(), self._settings.held_back_s
                        )
                    if execution.lost:
                        continue
                finished = event is END
                yield self._as_on_e2b(line_of(event))
        finally:
            task = asyncio.create_task(self._clean_up(envs, interrupt=not finished))
            self._cleanups.add(task)
            task.add_done_callback(self._cleanups.discard)

    def place_of(self, path: str) -> Path:
        """Where on this machine one of its paths is, which has no dots in it.

        Raises FileNotFoundError if it is none of those that it has."""
        tops = {"/mnt": self._mnt, "/home/user": self.home}
        tops["/tmp"] = self._tmp  # noqa: S108
        for top, folder in tops.items():
            if path == top or path.startswith(f"{top}/"):
                return folder / path[len(top) + 1 :]
        raise FileNotFoundError(path)

    def _own_data(self) -> str:
        return str(self._mnt / "data")

    def _as_on_e2b(self, line: bytes) -> bytes:
        """Output names the paths that E2B has."""
        line = line.replace(self._own_data().encode(), DATA.encode())
        return line.replace(str(self.home).encode(), b"/home/user")

    async def until_ready(self) -> None:
        """Raises RuntimeError when the kernel could not be started."""
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait({ready, self._life}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._life.done():
            self._life.result()

    def _send(self, code: str, silent: bool = False) -> _Execution:
        message_id = self._client.execute(
            code, silent=silent, store_history=True, allow_stdin=False
        )
        self._execution = _Execution(message_id)
        return self._execution

    async def _clean_up(self, envs: dict[str, str], interrupt: bool) -> None:
        """After a run: interrupts what still runs,
        takes `envs` back, lets the next run in."""
        try:
            if interrupt and self._execution and self._process:
                self._process.interrupt()
                await self._execution.settled.wait()
            if envs:
                code = _without_envs(envs, self._global_envs or {})
                await self._send(code, silent=True).settled.wait()
        finally:
            self._execution = None
            self._lock.release()


def _event(message: dict[str, Any]) -> dict[str, Any] | None:
    """A line of the stream for a message of the
    kernel's; None for what E2B does not pass on."""
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        timestamp = message["header"]["date"].isoformat()
        return {
            "type": content["name"],
            "text": content["text"],
            "timestamp": timestamp,
        }
    if kind in ("display_data", "execute_result"):
        return _result(dict(content["data"]), kind == "execute_result")
    if kind == "error":
        return _error(content)
    if kind == "execute_input":
        return {
            "type": "number_of_executions",
            "execution_count": content["execution_count"],
        }
    return None


def _error(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "error",
        "name": content.get("ename", ""),
        "value": content.get("evalue", ""),
        "traceback": "".join(content.get("traceback", [])),
    }


def _result(data: dict[str, Any], is_main_result: bool) -> dict[str, Any]:
    """The fields that E2B knows, in its order; any other format is left in `extra`."""
    result = {"type": "result"}
    for field_name, mime in RESULT_FIELDS.items():
        value = data.pop(mime, None)
        if value is not None:
            result[field_name] = value
    text = result.get("text", "")
    if text and text[0] in "'\"" and text[-1] == text[0]:
        result["text"] = text[1:-1]
    return {**result, "extra": data, "is_main_result": is_main_result}


def _assignments(envs: dict[str, str]) -> str:
    return "\n".join(
        f"import os; os.environ['{name}'] = '{envs[name]}'" for name in envs
    )


def _with_envs(code: str, sandbox_envs: dict[str, str], envs: dict[str, str]) -> str:
    """The code after the lines that E2B puts
    before it, indented like its first line."""
    if not sandbox_envs and not envs:
        return code
    first_line = next((line for line in code.split("\n") if line.strip()), "")
    indent = first_line[: len(first_line) - len(first_line.lstrip())]
    before = f"{_assignments(dict(sorted(sandbox_envs.items())))}\n{_assignments(envs)}"
    lines = [indent + line if line.strip() else line for line in before.split("\n")]
    return "\n".join([*lines, code])


def _without_envs(envs: dict[str, str], sandbox_envs: dict[str, str]) -> str:
    known = {name: sandbox_envs[name] for name in envs if name in sandbox_envs}
    removals = [
        f"import os; del os.environ['{name}']" for name in envs if name not in known
    ]
    return "\n".join([_assignments(known), *removals])
