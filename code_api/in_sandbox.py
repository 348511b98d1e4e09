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
import pwd
import secrets
import selectors
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

DATA = "/mnt/data"
PIPE_BYTES = 32 * 1024  # read from a pipe at once, a line of the report
CHUNK_BYTES = 96 * 1024  # read from a file at once, a line of the report
DRAIN_S = 1.0  # how long pipes are read that outlive the script
POLL_S = 0.05
KILL_ROUNDS = 50
SKIPPED_FOLDERS = ("node_modules", "__pycache__")
# What a notebook sets for itself, and what would put colours into output.
NOTEBOOK = (
    "PAGER",
    "GIT_PAGER",
    "JPY_",
    "JUPYTER",
    "IPY",
    "PYDEVD",
    "CLICOLOR",
    "FORCE_COLOR",
    "TERM",
)
# ipykernel hashes each cell to name it, unless it has a name: 0.1 s for each MB.
os.environ["IPYKERNEL_CELL_NAME"] = "exec"


def report(**line: Any) -> None:
    text = json.dumps(line, ensure_ascii=False)
    # A name that is not UTF-8 has lone surrogates, which JSON can escape.
    print(text.encode("utf-8", "backslashreplace").decode(), flush=True)


def data_files() -> Iterator[tuple[str, os.stat_result]]:
    """The regular files below DATA by name; neither hidden ones nor caches, no links."""
    for folder, subfolders, names in os.walk(DATA):
        subfolders[:] = [name for name in subfolders if is_shown(name)]
        for name in filter(is_shown, names):
            path = os.path.join(folder, name)
            with suppress(OSError):
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    yield os.path.relpath(path, DATA), status


def is_shown(name: str) -> bool:
    return not name.startswith(".") and name not in SKIPPED_FOLDERS


def fingerprint(status: os.stat_result) -> tuple[int, ...]:
    """Differs once a file was written, replaced or touched, with the same bytes too."""
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def sandbox_user() -> pwd.struct_passwd | None:
    """Whom the script runs as: None stands for who runs this."""
    with suppress(KeyError):
        return pwd.getpwnam("user") if os.getuid() == 0 else None
    return None


class Output:
    """One of the script's two streams: passed on as text up to a limit, then counted."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        self._name = name
        self._left_bytes = limit_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes, is_end: bool = False) -> None:
        kept = data[: max(0, self._left_bytes)]
        self._left_bytes -= len(data)
        text = self._decoder.decode(kept, is_end)
        if text:
            report(**{self._name: text})
        if is_end and self._left_bytes < 0:
            report(cut=self._name, bytes=-self._left_bytes)


class Script:
    """The script's process and all that it starts, watched until its end."""

    def __init__(
        self, command: list[str], plan: dict[str, Any], user: pwd.struct_passwd | None
    ) -> None:
        self._user = user
        # What the script starts inherits it, in whatever session or group it is.
        self._mark = secrets.token_hex(16)
        self.timed_out = False
        self._ends_at = time.monotonic() + plan["limit_s"]
        self._process = subprocess.Popen(
            command,
            cwd=DATA,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=self._in_child,
        )
        self._pipes = selectors.DefaultSelector()
        self._register(self._process.stdout, "stdout", plan)
        self._register(self._process.stderr, "stderr", plan)

    def _register(self, pipe: Any, name: str, plan: dict[str, Any]) -> None:
        output = Output(name, plan[name + "_bytes"])
        self._pipes.register(pipe, selectors.EVENT_READ, output)

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(NOTEBOOK)
        }
        kept.pop("MATPLOTLIBRC", None)
        if self._user:
            kept.update(HOME=self._user.pw_dir, USER="user", LOGNAME="user")
        kept.update(
            PYTHONPATH=DATA,
            PYTHONDONTWRITEBYTECODE="1",
            PYTHONUNBUFFERED="1",
            MPLBACKEND="Agg",
            EXEC_MARK=self._mark,
        )
        return kept

    def _in_child(self) -> None:
        # When memory runs out it is the script that ends, not this program.
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        if self._user:
            os.setgroups([])
            os.setgid(self._user.pw_gid)
            os.setuid(self._user.pw_uid)

    def watch(self) -> int:
        """Pass on its output until it ends or is killed. Returns Popen's returncode."""
        while self._process.poll() is None:
            if time.monotonic() > self._ends_at:
                self.timed_out = True
                self._kill()
            self._read_or_wait()
        drained_at = time.monotonic() + DRAIN_S
        while self._pipes.get_map() and time.monotonic() < drained_at:
            self._read_or_wait()
        self._kill()
        for key in list(self._pipes.get_map().values()):
            self._close(key)
        return self._process.wait()

    def _read_or_wait(self) -> None:
        """Read what there is; wait for it, or without pipes for the end, a moment."""
        if not self._pipes.get_map():
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_S)
            return
        for key, _ in self._pipes.select(POLL_S):
            data = os.read(key.fd, PIPE_BYTES)
            if data:
                key.data.add(data)
            else:
                self._close(key)

    def _close(self, key: selectors.SelectorKey) -> None:
        key.data.add(b"", is_end=True)
        self._pipes.unregister(key.fileobj)

    def _kill(self) -> None:
        """Kill its process group, and what has left that."""
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for _ in range(KILL_ROUNDS):
            others = list(self._marked_processes())
            for pid in others:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if not others:
                return
            time.sleep(0.01)

    def _marked_processes(self) -> Iterator[int]:
        pids = os.listdir("/proc") if os.path.isdir("/proc") else []
        for pid in filter(str.isdigit, pids):
            with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
                if self._mark.encode() in environ.read():
                    yield int(pid)


class Exec:
    """One exec, which is all that this sandbox ever runs."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._user = sandbox_user()
        os.makedirs(DATA, exist_ok=True)
        self._hand_over(DATA, 0o755)
        folder = tempfile.mkdtemp(prefix="exec-")
        self._hand_over(folder, 0o755)
        name = plan["script_name"]
        if plan["beside_data"]:
            folder = DATA
            name = f".{secrets.token_hex(8)}-{name}"
        self._script = os.path.join(folder, name)
        with open(self._script, "w", encoding="utf-8", newline="") as script:
            script.write(plan["script"])
        self._received: set[str] = set()
        self._written: list[str] = []

    def _hand_over(self, path: str, mode: int) -> None:
        """Make it the script's; where root may not, in a container, it stays root's."""
        os.chmod(path, mode)
        if self._user:
            try:
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
            except OSError:
                self._user = None

    def receive(self, number: int, packed: str) -> None:
        """Append a piece to input `number` of the plan, or to the script (-1)."""
        path = self._script
        if number >= 0:
            name = self._plan["inputs"][number]
            path = os.path.join(DATA, name)
            self._received.add(name)
            self._make_folders(os.path.dirname(name))
        with open(path, "ab") as file:
            file.write(zlib.decompress(base64.b64decode(packed)))

    def _make_folders(self, name: str) -> None:
        path = DATA
        for part in filter(None, name.split("/")):
            path = os.path.join(path, part)
            if not os.path.isdir(path):
                os.mkdir(path)
                self._hand_over(path, 0o755)

    def run(self) -> None:
        """Run the script and report its end, and its files where these are small."""
        self._hand_over(self._script, 0o644)
        earlier = time.time() - 3600  # what is written from now on has another time
        for name in self._received:
            path = os.path.join(DATA, name)
            self._hand_over(path, 0o444 if name in self._plan["read_only"] else 0o644)
            os.utime(path, (earlier, earlier))
        before = {name: fingerprint(status) for name, status in data_files()}
        if self._run_script():
            self._report_files(before)

    def _run_script(self) -> bool:
        """Whether it could be started."""
        plan = self._plan
        if not shutil.which(plan["tool"]):
            report(ended=True, missing=plan["tool"])
            return False
        command = ["sh", "-c", plan["command"], self._script, *plan["args"]]
        try:
            script = Script(command, plan, self._user)
        except (OSError, subprocess.SubprocessError) as exc:
            report(ended=True, not_started=str(exc))
            return False
        code = script.watch()
        report(ended=True, returncode=code, timed_out=script.timed_out)
        return True

    def _report_files(self, before: dict[str, tuple[int, ...]]) -> None:
        """Report what was deleted and written, and what that holds if it is small."""
        for name in sorted(self._received.difference(self._plan["read_only"])):
            if not os.path.lexists(os.path.join(DATA, name)):
                report(deleted=name)
        sizes: list[int] = []
        for name, status in sorted(data_files()):
            if fingerprint(status) == before.get(name):
                continue
            if name in self._plan["read_only"]:
                continue
            if len(sizes) < self._plan["max_written"]:
                self._written.append(name)
                report(written=name, size=status.st_size)
            sizes.append(status.st_size)
        report(written_files=len(sizes))
        is_small = sum(sizes) <= self._plan["small_bytes"]
        if is_small and len(sizes) <= self._plan["max_files"]:
            self.send([number, 0, size] for number, size in enumerate(sizes))

    def send(self, pieces: Iterable[list[int]]) -> None:
        """Report pieces of written files: number, start and length, in bytes."""
        for number, start, length in pieces:
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
