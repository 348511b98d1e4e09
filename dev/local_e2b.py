"""A stand-in for E2B on one machine, for trying the service out and for its tests.

`python dev/local_e2b.py --port N` serves E2B's control plane and its sandboxes on one loopback port,
to the unmodified SDK: point E2B_API_URL and E2B_SANDBOX_URL both at it. Code runs in real Jupyter
kernels, one per sandbox, WITHOUT ANY ISOLATION: as this user, on this machine.

It answers what E2B's server answers, but for these: each sandbox works in a temporary directory,
which output calls /home/user, while code that spells out a path under /home/user does not find it;
Python, its packages and their line numbers in tracebacks are this machine's; there are no other
languages, no contexts but the default one, no file system or process API, no pausing. Nothing
outlives it but temporary directories, and these only after a SIGKILL.

A script (`LocalE2B(script=...)`, `--script`, PUT /_script) replaces the truth with delays, sizes
and faults. It maps a kind of request ("create", "run", "kill", "timeout", "list", "connect", "get",
"health") to an answer, a list of answers (the last one repeats) or {"mix": [[weight, answer], ...],
"seed": 1}; "api_key" makes every other key a 401. An answer may hold
  delay_s                 seconds before the answer
  status, body, headers   to be sent instead of the true answer
  fault                   any kind: reset, hang, not_found, gone. create: lost_reply (made, then
                          reset). kill: ignored (a 500), hang_alive; `hang` kills, the others only
                          with "really": true. run: cut, no_end, not_json, silent, forever, vanish,
                          drip (after the output below)
  run only: kernel (true: the real thing, after the delay), from_code (the answer is in the code's
  line `# answer: {json}`), delay_after_headers_s, run_s (the time that the run takes), events,
  stdout_bytes in lines of line_bytes, one_line_bytes, pngs of png_bytes, big_png_line_bytes,
  raw (no first and last line), keepalive_s.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import functools
import inspect
import json
import os
import queue
import random
import re
import secrets
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, unquote

import psutil
from aiohttp import web
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

CHUNK_BYTES = 65_536
KEEPALIVE_S = 5.0
KEPT_NEWEST = 1000
ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
RESTART_S = 2.5
# A kernel that dies this soon takes what it said with it, the run's number included, as on E2B.
HELD_BACK_S = 0.05
END = {"type": "end_of_execution"}
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

Answer = dict[str, Any]


# --- the script -------------------------------------------------------------------------------


class Script:
    """What to answer instead of the truth, by kind of request; a kind that is absent is real."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.api_key: str | None = script.get("api_key")
        self._next: dict[str, Iterator[Answer]] = {
            kind: _answers(spec) for kind, spec in script.items() if kind != "api_key"
        }
        unknown = set(self._next) - KINDS
        if unknown:
            raise ValueError(f"no such kind of request: {', '.join(sorted(unknown))}")

    def has(self, kind: str) -> bool:
        return kind in self._next

    def answer(self, kind: str, body: Any) -> Answer | None:
        answers = self._next.get(kind)
        if answers is None:
            return None
        answer = next(answers)
        if answer.get("from_code"):
            code = body.get("code", "") if isinstance(body, dict) else ""
            found = re.search(r"^# answer: (\{.*\})\s*$", code, re.MULTILINE)
            return json.loads(found[1]) if found else {}
        return answer


KINDS = {"create", "run", "kill", "timeout", "list", "connect", "health", "get"}


def _answers(spec: Any) -> Iterator[Answer]:
    """Answer k to request k; the last one of a list repeats forever."""
    if isinstance(spec, dict) and "mix" in spec:
        choose = random.Random(spec.get("seed", 1))
        weights, answers = zip(*spec["mix"], strict=True)
        while True:
            yield choose.choices(answers, weights)[0]
    listed = [spec] if isinstance(spec, dict) else list(spec)
    yield from listed[:-1]
    while True:
        yield listed[-1]


# --- scripted output --------------------------------------------------------------------------


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _line(event: Any) -> bytes:
    return (
        event.encode() if isinstance(event, str) else json.dumps(event).encode() + b"\n"
    )


@functools.lru_cache(maxsize=16)
def _stdout_line(text_bytes: int, line_bytes: int) -> bytes:
    text = (("x" * (line_bytes - 1) + "\n") * (text_bytes // line_bytes + 1))[
        :text_bytes
    ]
    return _line({"type": "stdout", "text": text, "timestamp": _now()})


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def _png(number: int, size_bytes: int) -> bytes:
    """A PNG of 16 x 16 pixels in a colour of its own, padded with a private chunk."""
    colour = struct.pack(">I", (number * 2_654_435_761) % 2**32)[:3]
    pixels = zlib.compress((b"\0" + colour * 16) * 16)
    head = b"\x89PNG\r\n\x1a\n" + _png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    )
    rest = _png_chunk(b"IDAT", pixels) + _png_chunk(b"IEND", b"")
    padding = size_bytes - len(head) - len(rest) - 12
    if padding > 0:
        head += _png_chunk(b"paDd", random.Random(number).randbytes(padding))
    return head + rest


@functools.lru_cache(maxsize=256)
def _png_line(number: int, size_bytes: int) -> bytes:
    png = base64.b64encode(_png(number, size_bytes)).decode()
    text = "<Figure size 16x16 with 1 Axes>"
    result = {
        "type": "result",
        "text": text,
        "png": png,
        "extra": {},
        "is_main_result": False,
    }
    return _line(result)


def _filled(
    before: bytes, filler: bytes, after: bytes, line_bytes: int
) -> Iterator[bytes]:
    """One line of `line_bytes` bytes (its newline not counted), never whole in memory."""
    missing = line_bytes - len(before) - len(after)
    yield before
    chunk = filler * CHUNK_BYTES
    while missing > 0:
        yield chunk[:missing]
        missing -= CHUNK_BYTES
    yield after + b"\n"


def _scripted_lines(answer: Answer) -> Iterator[bytes]:
    """The lines between number_of_executions and end_of_execution, in chunks of any length."""
    for event in answer.get("events", []):
        yield _line(event)
    missing = answer.get("stdout_bytes", 0)
    line_bytes = answer.get("line_bytes", 80)
    message_bytes = max(CHUNK_BYTES // line_bytes, 1) * line_bytes
    while missing > 0:
        yield _stdout_line(min(missing, message_bytes), line_bytes)
        missing -= message_bytes
    if "one_line_bytes" in answer:
        after = f'", "timestamp": "{_now()}"}}'.encode()
        yield from _filled(
            b'{"type": "stdout", "text": "', b"x", after, answer["one_line_bytes"]
        )
    for number in range(answer.get("pngs", 1 if "png_bytes" in answer else 0)):
        yield _png_line(number, answer.get("png_bytes", 0))
    if "big_png_line_bytes" in answer:
        png = _png(0, 0)
        start = base64.b64encode(png + bytes(-len(png) % 3))
        before = (
            b'{"type": "result", "text": "<Figure size 16x16 with 1 Axes>", "png": "'
            + start
        )
        after = b'", "extra": {}, "is_main_result": false}'
        missing = answer["big_png_line_bytes"] - len(start)
        line_bytes = len(before) + len(after) + missing - missing % 4
        yield from _filled(before, b"A", after, line_bytes)


# --- kernels ----------------------------------------------------------------------------------


def _kernel_process() -> None:
    """What runs in a kernel's process: ipykernel, set up as E2B's startup scripts set it up.

    Its source is handed to `python -c`, so that it starts without this module's imports.
    """
    import contextlib
    import sys
    from typing import Any  # noqa: F401 - the process has no other imports

    import orjson
    from ipykernel.kernelapp import IPKernelApp
    from IPython.core.formatters import BaseFormatter, JSONFormatter
    from IPython.display import display
    from traitlets import ObjectName, Unicode
    from traitlets.config import Config

    class DataFormatter(BaseFormatter):
        format_type = Unicode("e2b/data")
        print_method = ObjectName("_repr_e2b_data_")
        _return_type = (dict, str)

    class ChartFormatter(BaseFormatter):
        format_type = Unicode("e2b/chart")
        print_method = ObjectName("_repr_e2b_chart_")
        _return_type = (dict, str)

        def __call__(self, value: Any) -> Any:
            if not isinstance(value, Figure):
                return super().__call__(value)
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

    config = Config()
    config.InteractiveShell.colors = "NoColor"
    config.HistoryManager.hist_file = ":memory:"
    app = IPKernelApp.instance(config=config)
    app.initialize(["-f", sys.argv[1]])  # type: ignore[no-untyped-call]
    shell: Any = app.shell

    # Only now: ipykernel has made the inline backend the default, which importing pyplot takes up.
    import IPython
    import pandas  # type: ignore[import-untyped]
    from e2b_charts import chart_figure_to_dict  # type: ignore[import-untyped]
    from matplotlib import pyplot  # noqa: F401 - sets the inline backend up
    from matplotlib.figure import Figure
    from PIL import Image, ImageShow

    def columns(frame: pandas.DataFrame) -> dict[Any, Any]:
        def plain(value: Any) -> Any:
            return value.isoformat() if isinstance(value, pandas.Timestamp) else value

        return {
            name: [plain(value) for value in values]
            for name, values in frame.to_dict(orient="list").items()
        }

    formatters = shell.display_formatter.formatters
    for formatter in (DataFormatter, ChartFormatter, CollectionFormatter):
        made = formatter(parent=shell.display_formatter)
        formatters[made.format_type] = made
    formatters["e2b/data"].for_type(pandas.DataFrame, columns)

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
        pandas=pandas,
        orjson=orjson,
        IPython=IPython,
        ip=shell,
        Figure=Figure,
        Image=Image.Image,
    )
    app.start()  # type: ignore[no-untyped-call]


def _kernel_environment(home: Path, ipython_dir: Path) -> dict[str, str]:
    """An allowlist: neither keys nor proxies nor settings of the parent's reach a kernel."""
    kept = (
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "SYSTEMROOT",
    )
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "HOME": str(home),
        "IPYTHONDIR": str(ipython_dir),
        # Without matplotlib's font cache each kernel would take seconds more to start.
        "XDG_CACHE_HOME": caches,
        "JPY_PARENT_PID": str(os.getpid()),
        "XDG_CONFIG_HOME": str(ipython_dir),
    }


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

    It is started again when it dies, and leaves nothing behind when `stop` has been awaited.
    """

    def __init__(self) -> None:
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
        client.load_connection_info(connection)
        source = inspect.getsource(_kernel_process) + "\n_kernel_process()\n"
        with (root / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", source, str(connection_file)),
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
            # Asked until an answer is heard: what was published before we had subscribed is lost.
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
        """The lines of one run, END included. A caller that goes away interrupts the run."""
        await self._lock.acquire()
        finished = False
        try:
            await self.until_ready()
            first = self._global_envs is None
            if first:
                self._global_envs = dict(sorted(sandbox_envs.items()))
            code = _with_envs(code, sandbox_envs if first else {}, envs)
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
                yield _line(event).replace(str(self.home).encode(), b"/home/user")
        finally:
            task = asyncio.create_task(self._clean_up(envs, interrupt=not finished))
            self._cleanups.add(task)
            task.add_done_callback(self._cleanups.discard)

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
        """After a run: interrupts what still runs, takes `envs` back, lets the next run in."""
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
    """A line of the stream for a message of the kernel's; None for what E2B does not pass on."""
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
    """The code after the lines that E2B puts before it, indented like its first line."""
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


# --- the server -------------------------------------------------------------------------------


@dataclass(eq=False)
class Sandbox:
    id: str
    metadata: dict[str, str]
    timeout_s: float
    template: str
    envs: dict[str, str]
    access_token: str
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    created_s: float = field(default_factory=time.monotonic)
    deadline_s: float = 0.0
    ended_s: float | None = None
    ended_by: str | None = None
    expiry: asyncio.TimerHandle | None = None
    runs: set[asyncio.Task[Any]] = field(default_factory=set)
    run_count: int = 0
    kernel: Kernel | None = None

    def lived_s(self) -> float:
        return (self.ended_s or time.monotonic()) - self.created_s

    def summary(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "metadata": self.metadata,
            "timeout_s": self.timeout_s,
            "alive": self.ended_by is None,
            "ended_by": self.ended_by,
            "lived_s": round(self.lived_s(), 4),
        }

    def created(self) -> dict[str, Any]:
        return {
            "templateID": self.template,
            "sandboxID": self.id,
            "clientID": "6532622b",
            "envdVersion": "0.5.9",
            "alias": self.template,
            "envdAccessToken": self.access_token,
            "trafficAccessToken": None,
            "domain": None,
        }

    def listed(self) -> dict[str, Any]:
        end_at = self.started_at + timedelta(seconds=self.deadline_s - self.created_s)
        return {
            "templateID": self.template,
            "sandboxID": self.id,
            "clientID": "6532622b",
            "alias": self.template,
            "startedAt": self.started_at.isoformat(),
            "endAt": end_at.isoformat(),
            "cpuCount": 2,
            "memoryMB": 1024,
            "diskSizeMB": 1024,
            "metadata": self.metadata,
            "state": "running",
            "envdVersion": "0.5.9",
        }


def _gone(sandbox_id: str, status: int = 502) -> web.Response:
    message = "The sandbox was not found"
    return web.json_response(
        {"sandboxId": sandbox_id, "message": message, "code": status}, status=status
    )


def _api_error(status: int, message: str) -> web.Response:
    return web.json_response({"code": status, "message": message}, status=status)


async def _hang() -> None:
    await asyncio.Event().wait()


async def _reset(request: web.BaseRequest) -> None:
    """Cuts the connection with a TCP reset; waits for aiohttp to cancel this handler."""
    transport = request.transport
    if transport is not None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await _hang()


class _Server:
    """All state, in one event loop; `changed` guards it against readers in other threads."""

    def __init__(self, script: dict[str, Any], ahead: int = 0) -> None:
        self.changed = threading.Condition()
        self.ahead = ahead
        self.kernels_ahead: deque[Kernel] = deque()
        self.stops: set[asyncio.Task[None]] = set()
        self.script = Script(script)
        self.sandboxes: dict[str, Sandbox] = {}
        self.newest: deque[Sandbox] = deque(maxlen=KEPT_NEWEST)
        self.requests: deque[dict[str, Any]] = deque(maxlen=KEPT_NEWEST)
        self.by_idempotency_key: dict[str, Sandbox] = {}
        self.counts = {
            "created": 0,
            "killed": 0,
            "expired": 0,
            "kill_requests": 0,
            "max_alive": 0,
        }
        self.ended_seconds = 0.0

    # state

    def state(self) -> dict[str, Any]:
        with self.changed:
            alive_s = sum(sandbox.lived_s() for sandbox in self.sandboxes.values())
            return {
                **self.counts,
                "alive": len(self.sandboxes),
                "sandbox_seconds": round(self.ended_seconds + alive_s, 4),
                "sandboxes": [sandbox.summary() for sandbox in self.newest],
                "requests": [dict(request) for request in self.requests],
            }

    def set_script(self, script: dict[str, Any]) -> None:
        compiled = Script(script)
        with self.changed:
            self.script = compiled

    def _note(self, record: dict[str, Any], **what: Any) -> None:
        with self.changed:
            record.update(what)
            self.changed.notify_all()

    # lives of sandboxes

    def start_sandbox(self, body: Any, idempotency_key: str | None) -> Sandbox:
        if idempotency_key and idempotency_key in self.by_idempotency_key:
            return self.by_idempotency_key[idempotency_key]
        body = body if isinstance(body, dict) else {}
        sandbox = Sandbox(
            id="i" + "".join(secrets.choice(ID_ALPHABET) for _ in range(19)),
            metadata=body.get("metadata") or {},
            timeout_s=body.get("timeout", 300),
            template=body.get("templateID", "code-interpreter-v1"),
            envs=body.get("envVars") or {},
            access_token=secrets.token_hex(16),
        )
        with self.changed:
            self.sandboxes[sandbox.id] = sandbox
            self.newest.append(sandbox)
            if idempotency_key:
                self.by_idempotency_key[idempotency_key] = sandbox
            self.counts["created"] += 1
            self.counts["max_alive"] = max(
                self.counts["max_alive"], len(self.sandboxes)
            )
            self.changed.notify_all()
        self.set_lifetime(sandbox, sandbox.timeout_s)
        if not self.script.has("run"):
            self.start_kernel(sandbox)
        return sandbox

    def keep_ahead(self) -> None:
        while len(self.kernels_ahead) < self.ahead and not self.script.has("run"):
            self.kernels_ahead.append(Kernel())

    def start_kernel(self, sandbox: Sandbox) -> Kernel:
        if sandbox.kernel is None:
            sandbox.kernel = (
                self.kernels_ahead.popleft() if self.kernels_ahead else Kernel()
            )
            self.keep_ahead()
        return sandbox.kernel

    def stop_kernel(self, kernel: Kernel) -> None:
        kernel.kill()
        stop = asyncio.create_task(kernel.stop())
        self.stops.add(stop)
        stop.add_done_callback(self.stops.discard)

    async def stop_everything(self) -> None:
        for sandbox in list(self.sandboxes.values()):
            self.end_sandbox(sandbox, "fault")
        for kernel in self.kernels_ahead:
            self.stop_kernel(kernel)
        await asyncio.gather(*self.stops)

    def set_lifetime(self, sandbox: Sandbox, timeout_s: float) -> None:
        if sandbox.expiry:
            sandbox.expiry.cancel()
        sandbox.timeout_s = timeout_s
        sandbox.deadline_s = time.monotonic() + timeout_s
        loop = asyncio.get_running_loop()
        sandbox.expiry = loop.call_later(
            timeout_s, self.end_sandbox, sandbox, "lifetime"
        )

    def end_sandbox(self, sandbox: Sandbox, ended_by: str) -> None:
        if sandbox.ended_by:
            return
        if sandbox.expiry:
            sandbox.expiry.cancel()
        with self.changed:
            sandbox.ended_by = ended_by
            sandbox.ended_s = time.monotonic()
            self.ended_seconds += sandbox.lived_s()
            del self.sandboxes[sandbox.id]
            if ended_by in ("kill", "lifetime"):
                self.counts["killed" if ended_by == "kill" else "expired"] += 1
            self.changed.notify_all()
        for run in sandbox.runs:
            run.cancel()
        if sandbox.kernel:
            self.stop_kernel(sandbox.kernel)

    # requests

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        method, path = request.method, request.path
        if path == "/_state" and method == "GET":
            return web.json_response(self.state())
        if path == "/_script" and method == "PUT":
            try:
                self.set_script(await request.json())
            except (ValueError, TypeError, AttributeError) as error:
                return _api_error(400, f"not a script: {error}")
            return web.Response(status=204)
        kind, sandbox_id = _kind(
            method, path, request.headers.get("e2b-sandbox-id", "")
        )
        if kind is None:
            return _api_error(404, "no such route")
        text = (await request.read()).decode("utf-8", "replace")
        try:
            body: Any = json.loads(text) if text else None
        except ValueError:
            body = text
        record = {
            "kind": kind,
            "method": method,
            "path": request.path_qs,
            "sandbox_id": sandbox_id,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": body,
            "at_s": time.monotonic(),
            "answer": None,
        }
        with self.changed:
            self.requests.append(record)
            if kind == "kill":
                self.counts["kill_requests"] += 1
            self.changed.notify_all()
        if kind not in ("run", "health"):
            key = request.headers.get("x-api-key")
            if not key or self.script.api_key not in (None, key):
                self._note(record, answer=401)
                return _api_error(401, "Unauthorized, please check your credentials.")
        answer = self.script.answer(kind, body)
        fault = answer.get("fault") if answer else None
        if fault:
            self._note(record, answer=fault)
        if answer and (kind != "run" or not answer.get("delay_after_headers_s")):
            await asyncio.sleep(answer.get("delay_s", 0))
        if kind == "run":
            response = await self._guarded_run(request, sandbox_id, body, answer)
        else:
            response = await self._control(
                request, kind, sandbox_id, body, answer or {}
            )
        if not fault:
            self._note(record, answer=response.status)
        return response

    async def _control(
        self,
        request: web.BaseRequest,
        kind: str,
        sandbox_id: str,
        body: Any,
        answer: Answer,
    ) -> web.StreamResponse:
        fault = answer.get("fault")
        sandbox = self.sandboxes.get(sandbox_id)
        if kind == "kill" and sandbox and answer.get("really", fault == "hang"):
            self.end_sandbox(sandbox, "kill")
        if kind == "create" and fault == "lost_reply":
            self.start_sandbox(body, request.headers.get("idempotency-key"))
            await _reset(request)
        if fault == "reset":
            await _reset(request)
        if fault in ("hang", "hang_alive"):
            await _hang()
        if fault == "ignored":
            return _api_error(500, "Error killing sandbox")
        if fault == "not_found":
            return _api_error(404, f"sandbox {sandbox_id} not found")
        if fault == "gone":
            if sandbox:
                self.end_sandbox(sandbox, "fault")
            return _gone(sandbox_id)
        if fault:
            raise ValueError(f"{kind} has no fault {fault!r}")
        if "status" in answer or "body" in answer:
            return _as_told(answer)
        return self._honest(request, kind, sandbox_id, body)

    def _honest(
        self, request: web.BaseRequest, kind: str, sandbox_id: str, body: Any
    ) -> web.Response:
        if kind == "create":
            created = self.start_sandbox(body, request.headers.get("idempotency-key"))
            return web.json_response(created.created(), status=201)
        if kind == "list":
            # The SDK quotes names and values, and then the query that it makes of them.
            query = parse_qsl(request.query.get("metadata", ""))
            wanted = {unquote(name): unquote(value) for name, value in query}
            return web.json_response(
                [
                    sandbox.listed()
                    for sandbox in self.sandboxes.values()
                    if wanted.items() <= sandbox.metadata.items()
                ]
            )
        sandbox = self.sandboxes.get(sandbox_id)
        if kind == "health":
            return web.Response(status=204) if sandbox else _gone(sandbox_id)
        if sandbox is None:
            return _api_error(404, f"sandbox {sandbox_id} not found")
        if kind == "kill":
            self.end_sandbox(sandbox, "kill")
            return web.Response(status=204)
        timeout_s = body.get("timeout") if isinstance(body, dict) else None
        if kind == "timeout":
            self.set_lifetime(sandbox, timeout_s or 0)
            return web.Response(status=204)
        if kind == "connect":
            if timeout_s and time.monotonic() + timeout_s > sandbox.deadline_s:
                self.set_lifetime(sandbox, timeout_s)
            return web.json_response(sandbox.created())
        return web.json_response(sandbox.listed())

    # runs

    async def _guarded_run(
        self,
        request: web.BaseRequest,
        sandbox_id: str,
        body: Any,
        answer: Answer | None,
    ) -> web.StreamResponse:
        """A run that is cut off when its sandbox ends; `answer` None is the truth."""
        answer = answer or ({"kernel": True} if answer is None else {})
        fault = answer.get("fault")
        if fault == "reset":
            await _reset(request)
        if fault == "hang":
            await _hang()
        if fault == "not_found":
            return _gone(sandbox_id, 404)
        sandbox = self.sandboxes.get(sandbox_id)
        if fault == "gone" and sandbox:
            self.end_sandbox(sandbox, "fault")
            sandbox = None
        if sandbox is None:
            return _gone(sandbox_id)
        if "status" in answer or "body" in answer:
            return _as_told(answer)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        stream.enable_chunked_encoding()
        run = asyncio.ensure_future(self._run(request, stream, sandbox, body, answer))
        sandbox.runs.add(run)
        try:
            await run
        except asyncio.CancelledError:
            if sandbox.ended_by is None:
                raise
            if not stream.prepared:
                return _gone(sandbox_id)
            if request.transport is not None:
                request.transport.abort()
            await _hang()
        finally:
            sandbox.runs.discard(run)
        return stream

    async def _run(
        self,
        request: web.BaseRequest,
        stream: web.StreamResponse,
        sandbox: Sandbox,
        body: Any,
        answer: Answer,
    ) -> None:
        if answer.get("kernel"):
            await self._run_in_kernel(request, stream, sandbox, body)
            return
        fault = answer.get("fault")
        sandbox.run_count += 1
        count = {"type": "number_of_executions", "execution_count": sandbox.run_count}
        pending = b"" if answer.get("raw") else _line(count)
        if answer.get("delay_after_headers_s"):
            await stream.prepare(request)
            await asyncio.sleep(
                answer["delay_after_headers_s"] + answer.get("delay_s", 0)
            )
        if answer.get("run_s"):
            await stream.prepare(request)
            await stream.write(pending)
            pending = b""
            await asyncio.sleep(answer["run_s"])
        await stream.prepare(request)
        for chunk in _scripted_lines(answer):
            pending += chunk
            if len(pending) >= CHUNK_BYTES:
                await stream.write(pending)
                pending = b""
        if fault == "not_json":
            pending += b"<html>this line is not JSON</html>\n"
        elif fault == "cut":
            pending += b'{"type": "stdout", "text": "half a li'
        if not fault and not answer.get("raw"):
            pending += _line(END)
        if pending:
            await stream.write(pending)
        if fault == "cut":
            # What was sent must have been read: a reset throws away what is still under way.
            await asyncio.sleep(0.05)
            await _reset(request)
        elif fault == "vanish":
            await asyncio.sleep(0.05)
            self.end_sandbox(sandbox, "fault")
            await _hang()
        elif fault == "silent":
            await _hang()
        elif fault in ("forever", "drip"):
            interval_s = (
                0.1 if fault == "drip" else answer.get("keepalive_s", KEEPALIVE_S)
            )
            drop = b"x" if fault == "drip" else _line({"type": "keepalive"})
            while True:
                await asyncio.sleep(interval_s)
                await stream.write(drop)
        elif fault not in (None, "no_end", "not_json"):
            raise ValueError(f"run has no fault {fault!r}")
        await stream.write_eof()

    async def _run_in_kernel(
        self,
        request: web.BaseRequest,
        stream: web.StreamResponse,
        sandbox: Sandbox,
        body: Any,
    ) -> None:
        sandbox_envs = {
            **sandbox.envs,
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": sandbox.id,
            "E2B_TEMPLATE_ID": sandbox.template,
        }
        if not isinstance(body, dict) or not isinstance(body.get("code"), str):
            raise web.HTTPUnprocessableEntity(text="code: a string is required")
        if body.get("context_id"):
            raise web.HTTPNotFound(text=f"Context {body['context_id']} not found")
        if (body.get("language") or "python").lower().strip() != "python":
            raise web.HTTPInternalServerError(
                text="local_e2b has kernels for Python only"
            )
        kernel = self.start_kernel(sandbox)
        try:
            await kernel.until_ready()
        except RuntimeError as error:
            raise web.HTTPInternalServerError(text=str(error)) from error
        lines = kernel.execute(body["code"], sandbox_envs, body.get("env_vars") or {})
        await stream.prepare(request)
        async with contextlib.aclosing(lines):
            async for line in lines:
                await stream.write(line)
        await stream.write_eof()


def _as_told(answer: Answer) -> web.Response:
    body, status = answer.get("body", ""), answer.get("status", 200)
    headers = {name: str(value) for name, value in answer.get("headers", {}).items()}
    if isinstance(body, str):
        return web.Response(text=body, status=status, headers=headers)
    return web.json_response(body, status=status, headers=headers)


def _kind(method: str, path: str, run_sandbox_id: str) -> tuple[str | None, str]:
    """The kind of a request, and the sandbox that it is about ("" for none)."""
    if path == "/execute" and method == "POST":
        return "run", run_sandbox_id
    if path == "/health" and method == "GET":
        return "health", run_sandbox_id
    found = re.fullmatch(
        r"(?:/v2)?/sandboxes(?:/([^/]+)(?:/(connect|timeout))?)?", path
    )
    if not found:
        return None, ""
    sandbox_id, action = found[1] or "", found[2]
    if action:
        return (action, sandbox_id) if method == "POST" else (None, sandbox_id)
    if sandbox_id:
        return {"GET": "get", "DELETE": "kill"}.get(method), sandbox_id
    return {"GET": "list", "POST": "create"}.get(method), ""


@contextlib.asynccontextmanager
async def _serving(server: _Server, port: int) -> AsyncIterator[int]:
    """Listens on loopback; gives the port."""
    runner = web.ServerRunner(
        web.Server(server.handle, handler_cancellation=True, access_log=None),
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
        await site.start()
        server.keep_ahead()
        yield runner.addresses[0][1]
    finally:
        await server.stop_everything()
        await runner.cleanup()


class LocalE2B:
    """The stand-in, in a thread of the calling process, for as long as the `with` block lasts."""

    def __init__(
        self, script: dict[str, Any] | None = None, port: int = 0, ahead: int = 0
    ) -> None:
        self._server = _Server(script or {}, ahead)
        self._port = port
        self.url = ""

    def __enter__(self) -> LocalE2B:
        started = threading.Event()
        failures: list[BaseException] = []
        self._thread = threading.Thread(
            target=self._main, args=(started, failures), name="local-e2b", daemon=True
        )
        self._thread.start()
        started.wait()
        if failures:
            self._thread.join()
            raise failures[0]
        return self

    def _main(self, started: threading.Event, failures: list[BaseException]) -> None:
        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            async with _serving(self._server, self._port) as port:
                self.url = f"http://127.0.0.1:{port}"
                started.set()
                await self._stop.wait()

        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            started.set()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def state(self) -> dict[str, Any]:
        return self._server.state()

    def set_script(self, script: dict[str, Any]) -> None:
        self._server.set_script(script)

    def wait_for(
        self, condition: Callable[[dict[str, Any]], object], timeout_s: float = 30
    ) -> dict[str, Any]:
        """The state once `condition(state)` holds; TimeoutError shows the state that did not."""
        deadline_s = time.monotonic() + timeout_s
        with self._server.changed:
            while not condition(state := self.state()):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._server.changed.wait(left_s):
                    if condition(state := self.state()):
                        return state
                    raise TimeoutError(json.dumps(state, indent=1, default=str))
            return state


BANNER = (
    "local_e2b: http://127.0.0.1:{port} runs the code it is sent UNISOLATED, on this machine and as"
    " this user: for trying out and for tests only (stop with Ctrl-C)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--port", type=int, default=0, help="loopback port; 0 picks a free one"
    )
    parser.add_argument("--script", default="{}", help="JSON, or a file that holds it")
    parser.add_argument(
        "--ahead", type=int, default=1, help="kernels kept started ahead"
    )
    options = parser.parse_args()
    text = options.script
    script = json.loads(
        text if text.lstrip().startswith("{") else Path(text).read_text()
    )

    async def serve() -> None:
        stop = asyncio.Event()
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
        async with _serving(_Server(script, options.ahead), options.port) as port:
            print(BANNER.format(port=port), flush=True)
            await stop.wait()

    try:
        asyncio.run(serve())
    except OSError as error:
        sys.exit(
            f"local_e2b: cannot listen on port {options.port}: {os.strerror(error.errno or 0)}"
        )


if __name__ == "__main__":
    main()
