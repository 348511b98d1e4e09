"""What runs in the sandbox, in its kernel: takes a script and its files, reports back.

Its text is sent in the first cell of an exec, which makes an `Exec`; `receive` and `send`
carry files in cells of their own when they are large; `run` runs the script, once.
It reports on the kernel's stdout, one JSON object a line, each line bounded and flushed.
Nothing but the standard library, and what Python 3.8 knows. Limits are in the plan.
"""

from __future__ import annotations

import base64
import codecs
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import zlib
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

Plan = Any  # cells.py makes it, as JSON
Process = Any  # a subprocess.Popen

DATA = "/mnt/data"
PIPE_BYTES = 32 * 1024  # read from a pipe at once, a line of the report
CHUNK_BYTES = 96 * 1024  # read from a file at once, a line of the report
DRAIN_S = 1.0  # how long pipes are read that outlive the script
KILL_ROUNDS = 50
SKIPPED_FOLDERS = ("node_modules", "__pycache__")
# What a notebook sets for itself, and what would put colours into output.
NOTEBOOK = (
    *("JPY_", "JUPYTER", "IPY", "PYDEVD", "MATPLOTLIBRC", "PAGER", "GIT_PAGER"),
    *("CLICOLOR", "FORCE_COLOR", "TERM"),
)
# What a script starts inherits this, in whatever session or process group it is.
MARK = secrets.token_hex(16)
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(NOTEBOOK)
}
ENVIRONMENT.update(
    PYTHONPATH=DATA,
    PYTHONDONTWRITEBYTECODE="1",
    PYTHONUNBUFFERED="1",
    MPLBACKEND="Agg",
    EXEC_MARK=MARK,
)
# When memory runs out it is the script that ends, not this program.
OOM_FIRST = "{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null; "
ONE_LINE_AT_A_TIME = Lock()
# ipykernel hashes each cell to name it, unless it has a name: 0.1 s for each MB.
os.environ["IPYKERNEL_CELL_NAME"] = "exec"


def report(**line: Any) -> None:
    text = json.dumps(line, ensure_ascii=False)
    # A name that is not UTF-8 has lone surrogates, which JSON can escape.
    data = text.encode("utf-8", "backslashreplace")
    with ONE_LINE_AT_A_TIME:
        print(data.decode(), flush=True)


def data_files() -> dict[str, os.stat_result]:
    """The regular files below DATA by name; neither hidden ones nor caches, no links."""
    found = {}
    for folder, subfolders, names in os.walk(DATA):
        subfolders[:] = filter(is_shown, subfolders)
        for name in filter(is_shown, names):
            path = os.path.join(folder, name)
            with suppress(OSError):
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    found[os.path.relpath(path, DATA)] = status
    return found


def is_shown(name: str) -> bool:
    return not name.startswith(".") and name not in SKIPPED_FOLDERS


def is_written(status: os.stat_result, before: os.stat_result | None) -> bool:
    """Whether it was written, replaced or touched since; the same bytes count too."""
    for field in ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"):
        if getattr(status, field) != getattr(before, field, None):
            return True
    return False


def marked_processes() -> list[int]:
    found = []
    pids = os.listdir("/proc") if os.path.isdir("/proc") else []
    for pid in filter(str.isdigit, pids):
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
            if MARK.encode() in environ.read():
                found.append(int(pid))
    return found


def kill(process: Process) -> None:
    """Kill its process group, and what has left that."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(KILL_ROUNDS):
        others = marked_processes()
        if not others:
            return
        for pid in others:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def pass_on(pipe: Any, name: str, left_bytes: int) -> None:
    """Report one of the script's streams as text, to its end; count what is too much."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    is_open = True
    while is_open:
        data = os.read(pipe.fileno(), PIPE_BYTES)
        is_open = bool(data)
        kept = data[: max(0, left_bytes)]
        left_bytes -= len(data)
        text = decoder.decode(kept, final=not data)
        if text:
            report(**{name: text})
    if left_bytes < 0:
        report(note=f"{name} was cut: {-left_bytes:,} bytes more were not kept")


def watch(process: Process, plan: Plan) -> None:
    """Pass on a script's output until it ends, or is killed at its limit."""
    readers = [
        Thread(
            target=pass_on,
            args=(getattr(process, name), name, plan[name + "_bytes"]),
            daemon=True,
        )
        for name in ("stdout", "stderr")
    ]
    for reader in readers:
        reader.start()
    timed_out = False
    try:
        process.wait(plan["limit_s"])
    except subprocess.TimeoutExpired:
        timed_out = True
        kill(process)
    drained_at = time.monotonic() + DRAIN_S
    for reader in readers:
        left_s = drained_at - time.monotonic()
        reader.join(max(0, left_s))
    kill(process)
    for reader in readers:
        reader.join(DRAIN_S)
    code = process.wait()
    if timed_out:
        report(note=f"stopped after {plan['limit_s']} s, its time limit")
    elif code == -signal.SIGKILL:
        report(note="killed by signal 9, perhaps because memory ran out")
    elif code < 0:
        report(note=f"killed by signal {-code}")
    elif code:
        report(note=f"exit code {code}")
    if timed_out:
        report(ended="timeout")
    else:
        report(ended="error" if code else "ok")


class Exec:
    """One exec, which is all that this sandbox ever runs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._inputs = plan["inputs"]
        self._read_only = plan["read_only"]
        self._written: list[str] = []
        os.makedirs(DATA, exist_ok=True)
        self._folder = tempfile.mkdtemp(prefix="exec-")
        folder = DATA if plan["beside_data"] else self._folder
        name = plan["script_name"]
        if plan["beside_data"]:
            # A hidden one, which is no file of the script's.
            name = f".{secrets.token_hex(8)}-{name}"
        self._script = os.path.join(folder, name)
        with open(self._script, "w", encoding="utf-8", newline="") as script:
            script.write(plan["script"])

    def receive(self, number: int, packed: str) -> None:
        """Append a piece to input `number` of the plan, or to the script (-1)."""
        path = self._script
        if number >= 0:
            path = os.path.join(DATA, self._inputs[number])
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "ab") as file:
                file.write(zlib.decompress(base64.b64decode(packed)))
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            report(
                note=f"input {self._inputs[number]} was left out: it is a folder, too"
            )

    def run(self) -> None:
        """Run the script and report its end, and its files where these are small."""
        earlier = time.time() - 3600  # what is written from now on has another time
        for name in data_files():
            path = os.path.join(DATA, name)
            os.utime(path, (earlier, earlier))
            if name in self._read_only:
                os.chmod(path, 0o444)
        user = self._sandbox_user()
        before = data_files()
        tool = self._plan["tool"]
        try:
            if not shutil.which(tool):
                raise OSError(f"{tool} is not part of this sandbox's template")
            process = self._start(user)
        except (OSError, subprocess.SubprocessError) as exc:
            report(note=f"the script could not be started: {exc}")
            report(ended="error")
            return
        watch(process, self._plan)
        self._report_files(before)

    def _sandbox_user(self) -> list[str]:
        """What has a command run as E2B's user, whose all files are then.

        Nothing where this program is not root's, or may not do that, in a container.
        """
        home = os.path.expanduser("~user")
        if home == "~user" or os.getuid() != 0:
            return []
        chown = ["chown", "-R", "user:", DATA, self._folder]
        cannot_chown = subprocess.call(chown, stderr=subprocess.DEVNULL)
        if cannot_chown or not shutil.which("setpriv"):
            return []
        ENVIRONMENT.update(HOME=home, USER="user", LOGNAME="user")
        return ["setpriv", "--reuid=user", "--regid=user", "--clear-groups"]

    def _start(self, user: list[str]) -> Process:
        plan = self._plan
        command = OOM_FIRST + plan["command"]
        return subprocess.Popen(
            [*user, "sh", "-c", command, self._script, *plan["args"]],
            cwd=DATA,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _report_files(self, before: dict[str, os.stat_result]) -> None:
        """Report what was deleted and written, and what that holds if it is small."""
        plan = self._plan
        after = data_files()
        for name in sorted(before.keys() - after.keys()):
            if name not in self._read_only:
                report(deleted=name)
        sizes: list[int] = []
        for name, status in sorted(after.items()):
            if name in self._read_only or not is_written(status, before.get(name)):
                continue
            if len(sizes) < plan["max_written"]:
                self._written.append(name)
                report(written=name, size=status.st_size)
            sizes.append(status.st_size)
        report(written_files=len(sizes))
        are_few = len(sizes) <= plan["max_files"]
        are_small = sum(sizes) <= plan["small_bytes"]
        if are_few and are_small:
            for number, size in enumerate(sizes):
                self.send(number, 0, size)

    def send(self, number: int, start: int, length: int) -> None:
        """Report a piece of a written file; start and length are in bytes."""
        path = os.path.join(DATA, self._written[number])
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            file.seek(start)
            while length > 0:
                data = file.read(min(CHUNK_BYTES, length))
                if not data:
                    break
                length -= len(data)
                packed = base64.b64encode(zlib.compress(data, 1))
                report(of=number, packed=packed.decode())
