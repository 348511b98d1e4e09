"""The stand-in's Jupyter kernels: one per sandbox, WITHOUT ANY ISOLATION."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
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
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import psutil
import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import write_connection_file
from local_e2b_script import END, line_of

KEEPALIVE_S = 5.0
RESTART_S = 2.5
# A kernel that dies this soon takes what it said
# with it, the run's number included, as on E2B.
HELD_BACK_S = 0.05
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


def _kernel_process() -> None:
    """What runs in a kernel's process: ipykernel,
    set up as E2B's startup scripts set it up.

    Its source is handed to `python -c`, so that it starts without this module's
    imports. Its arguments: the connection file, and "plain" for a kernel without
    pandas and pictures, which takes a third of the time to start.
    """
    import contextlib
    import sys
    from typing import Any  # noqa: F401 - the process has no other imports

    import orjson
    import zmq
    from ipykernel.kernelapp import IPKernelApp
    from IPython.core.formatters import BaseFormatter, JSONFormatter
    from IPython.display import display
    from traitlets import ObjectName, Unicode
    from traitlets.config import Config

    # pandas and matplotlib take seconds to import: as on E2B, that is left to the code.
    class DataFormatter(BaseFormatter):
        format_type = Unicode("e2b/data")
        print_method = ObjectName("_repr_e2b_data_")
        _return_type = (dict, str)

        def __call__(self, value: Any) -> Any:
            pandas = sys.modules.get("pandas")
            if not pandas or not isinstance(value, pandas.DataFrame):
                return super().__call__(value)

            def plain(cell: Any) -> Any:
                return cell.isoformat() if isinstance(cell, pandas.Timestamp) else cell

            columns = value.to_dict(orient="list")
            return {name: [plain(x) for x in cells] for name, cells in columns.items()}

    class ChartFormatter(BaseFormatter):
        format_type = Unicode("e2b/chart")
        print_method = ObjectName("_repr_e2b_chart_")
        _return_type = (dict, str)

        def __call__(self, value: Any) -> Any:
            if "matplotlib" not in sys.modules:
                return super().__call__(value)
            from matplotlib.figure import Figure

            if not isinstance(value, Figure):
                return super().__call__(value)
            from e2b_charts import chart_figure_to_dict  # type: ignore[import-untyped]

            try:
                return chart_figure_to_dict(value)
            except Exception:
                return {}

    class CollectionFormatter(JSONFormatter):
        def __call__(self, value: Any) -> Any:
            if isinstance(value, (list, dict)):
                options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
                with contextlib.suppress(TypeError):
                    return orjson.loads(orjson.dumps(value, option=options)), {
                        "expanded": True
                    }
            return super().__call__(value)

    class KernelApp(IPKernelApp):
        def init_iopub(self, context: Any) -> None:
            # Without a limit: a queue that is full drops output.
            context.setsockopt(zmq.SNDHWM, 0)
            super().init_iopub(context)  # type: ignore[no-untyped-call]

    config = Config()
    config.InteractiveShell.colors = "NoColor"
    config.HistoryManager.hist_file = ":memory:"
    app = KernelApp.instance(config=config)
    app.initialize(["-f", sys.argv[1]])  # type: ignore[no-untyped-call]
    shell: Any = app.shell
    if "plain" in sys.argv[2:]:
        app.start()  # type: ignore[no-untyped-call]
        return

    import IPython
    from PIL import Image, ImageShow

    formatters = shell.display_formatter.formatters
    for formatter in (DataFormatter, ChartFormatter, CollectionFormatter):
        made = formatter(parent=shell.display_formatter)
        formatters[made.format_type] = made

    save_quietly = Image.Image.save

    def save(image: Any, fp: Any, format: Any = None, **params: Any) -> None:
        if isinstance(fp, str):
            display(image)  # type: ignore[no-untyped-call]
        save_quietly(image, fp, format, **params)

    Image.Image.save = save  # type: ignore[assignment]
    # What else can show a picture depends on the machine's programs.
    ImageShow._viewers[:] = [ImageShow.IPythonViewer()]
    # E2B's startup scripts leave these names behind.
    shell.user_ns.update(
        sys=sys,
        IPython=IPython,
        ip=shell,
        Image=Image.Image,
    )
    app.start()  # type: ignore[no-untyped-call]


def _kernel_environment(home: Path, ipython_dir: Path) -> dict[str, str]:
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
        "HOME": str(home),
        "IPYTHONDIR": str(ipython_dir),
        # Without matplotlib's font cache each kernel would take seconds more to start.
        "XDG_CACHE_HOME": caches,
        "JPY_PARENT_PID": str(os.getpid()),
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

    def lose(self) -> None:
        """What was said just before the kernel died is gone, as on E2B."""
        age_s = time.monotonic() - (self.accepted_s or 0)
        if age_s < HELD_BACK_S and not self.settled.is_set():
            self.lost = True
            self.events = asyncio.Queue()
            self.settled.set()

    def put(self, event: dict[str, Any]) -> None:
        self.events.put_nowait(event)
        self.accepted_s = self.accepted_s or time.monotonic()
        if event is END:
            self.settled.set()


class Kernel:
    """A Jupyter kernel in a process group and a temporary directory of its own.

    It is started again when it dies, and leaves
    nothing behind when `stop` has been awaited.
    """

    def __init__(self, is_plain: bool = False) -> None:
        self._arguments = ("plain",) if is_plain else ()
        self._lock = asyncio.Lock()
        self._ready = asyncio.Event()
        self._execution: _Execution | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._global_envs: dict[str, str] | None = None
        self._cleanups: set[asyncio.Task[None]] = set()
        self._life = asyncio.create_task(self._live())

    async def stop(self) -> None:
        self.kill()
        for task in (*self._cleanups, self._life):
            task.cancel()
        await asyncio.gather(*self._cleanups, self._life, return_exceptions=True)

    def kill(self) -> None:
        """Ends the process, its group and its descendants at once."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        descendants = []
        with contextlib.suppress(psutil.Error):
            descendants = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for descendant in descendants:
            with contextlib.suppress(psutil.Error):
                descendant.kill()

    async def _live(self) -> None:
        root = Path(tempfile.mkdtemp(prefix="local-e2b-")).resolve()
        self.home = root / "home" / "user"
        self.home.mkdir(parents=True)
        self._mnt = root / "mnt"
        self._mnt.mkdir()
        try:
            while True:
                await self._one_life(root)
                execution = self._execution
                if execution:
                    execution.lose()
                await asyncio.sleep(RESTART_S)
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
        client = AsyncKernelClient()
        # Without a limit: a queue that is full drops
        # output, and this process may be busy.
        client.context.setsockopt(zmq.RCVHWM, 0)
        client.load_connection_info(connection)
        source = inspect.getsource(_kernel_process) + "\n_kernel_process()\n"
        command = own_mount_command()
        mounted = (*command, str(self._mnt)) if command else ()
        with (root / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *mounted,
                *(sys.executable, "-c", source, str(connection_file), *self._arguments),
                env=_kernel_environment(self.home, root / "ipython"),
                cwd=self.home,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        client.start_channels(stdin=False, hb=False)
        self._client = client
        reader = asyncio.create_task(self._read())
        try:
            await self._process.wait()
            if not self._ready.is_set():
                said = (root / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"a kernel ended before it was ready: {said}")
        finally:
            self._ready.clear()
            self.kill()
            await self._process.wait()
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
            if not own_mount_command():
                code = code.replace(DATA, self._own_data())
            execution = self._send(code)
            while not finished:
                try:
                    event = await asyncio.wait_for(execution.events.get(), KEEPALIVE_S)
                except TimeoutError:
                    event = {"type": "keepalive"}
                if event["type"] == "number_of_executions":
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(execution.settled.wait(), HELD_BACK_S)
                    if execution.lost:
                        continue
                finished = event is END
                yield self._as_on_e2b(line_of(event))
        finally:
            task = asyncio.create_task(self._clean_up(envs, interrupt=not finished))
            self._cleanups.add(task)
            task.add_done_callback(self._cleanups.discard)

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
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGINT)
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
