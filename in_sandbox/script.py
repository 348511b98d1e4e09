"""What runs in the sandbox, in its kernel: takes a script and its files, reports back.

Its text is sent in the cell of an exec, which makes an `Exec` of its plan: see
code_api/cells.py, which sends the bounds and PYTHON_FILES, too. The cell sets its
`script`, and brings small inputs by `receive`; larger ones lie in the plan's `staging`.
`run` runs the script, once. It reports on the kernel's stdout, one JSON object a line,
each line bounded and flushed, small files included. Nothing but the standard library,
and what Python 3.8 knows.
"""

from __future__ import annotations

import base64
import codecs
import errno
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Lock, Thread
from typing import Any, NamedTuple

Plan = Any  # cells.py makes it, as JSON
Process = Any  # a subprocess.Popen

DATA = "/mnt/data"
MAX_NAMED = 1000  # files that were written and are reported by name
MAX_NAMED_ELSEWHERE = 5  # files that were written where they are not kept
MAX_SEEN_ELSEWHERE = 1000  # of all that lies there
DRAIN_S = 1.0  # how long pipes are read that outlive the script
KILL_ROUNDS = 50
MAX_NAMED_CACHES = 20
# Files in these folders are no results of the script, and there may be very many: they
# are counted in stderr instead. Inputs come back from here, too.
CACHES = (
    ".DS_Store",
    ".git",
    ".hg",
    ".hypothesis",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".next",
    ".nox",
    ".parcel-cache",
    ".pytest_cache",
    ".ruff_cache",
    ".svn",
    ".tox",
    ".venv",
    "__MACOSX",
    "__pycache__",
    "node_modules",
)
# The same for folders right below DATA, where a program took that for its user's home.
HOME_CACHES = (
    ".bun",
    ".cache",
    ".cargo",
    ".conda",
    ".config",
    ".dotnet",
    ".gem",
    ".gradle",
    ".ipython",
    ".java",
    ".jupyter",
    ".keras",
    ".local",
    ".m2",
    ".matplotlib",
    ".npm",
    ".nv",
    ".rustup",
    ".yarn",
)
# Folders in a user's home into which packages put their own files.
OF_PACKAGES = ("R", "go", "nltk_data", "perl5", "scikit_learn_data", "seaborn-data")
# Variables that a notebook sets for itself, and those that put colours into output.
NOTEBOOK = (
    "JPY_",
    "JUPYTER",
    "IPY",
    "PYDEVD",
    "MATPLOTLIBRC",
    "PAGER",
    "GIT_PAGER",
    "CLICOLOR",
    "FORCE_COLOR",
    "TERM",
)
# What a script starts inherits this, in whatever session or process group it is.
MARK = secrets.token_hex(16)
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(NOTEBOOK)
}
ENVIRONMENT.update(
    PYTHONDONTWRITEBYTECODE="1",
    PYTHONUNBUFFERED="1",
    # Of a Python that does not run startup.py; in the others plots.py takes its place.
    MPLBACKEND="Agg",
    # Else plots go into one PDF, which LibreChat does not show.
    R_DEFAULT_DEVICE="png",
    EXEC_MARK=MARK,
)
# The texts of startup.py, plots.py and fonts.py, by the names of the files that they
# become.
PYTHON_FILES: dict[str, str] = {}
# A crash leaves no file `core`, of 50 MB and more, and when memory runs out it is the
# script that ends, not this program.
BEFORE_COMMAND = "ulimit -c 0; { echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null; "
# What a terminal would not show as text: colours and moves of the cursor, titles.
NO_TEXT = re.compile(
    rb"\x00|\x1b(?:"
    rb"\[[0-?]*[ -/]*[@-~]"  # ESC [ 31 m
    rb"|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # ESC ] 0;title BEL
    rb"|[@-Z\\^_])"
)
# A line that is longer is passed on before its end has come.
MAX_LINE_BYTES = 64 * 1024
# What Python's tempfile makes is not meant to be kept.
TEMPORARY = re.compile("tmp[a-z0-9_]{8}")
ONE_LINE_AT_A_TIME = Lock()


class Stamp(NamedTuple):
    """Another one than before means that the file was written, replaced or touched."""

    inode: int
    size: int
    written_ns: int
    changed_ns: int  # nothing can set it: `cp -p` over another file shows here only


class Link(NamedTuple):
    """A second name of an input."""

    name: str  # the file's
    inode: int  # the link's own, which it keeps when it is renamed


def report(**line: Any) -> None:
    text = json.dumps(line, ensure_ascii=False)
    # A name that is not UTF-8 has lone surrogates, which JSON can escape.
    data = text.encode("utf-8", "backslashreplace")
    with ONE_LINE_AT_A_TIME:
        print(data.decode(), flush=True)


def data_files() -> dict[str, Stamp]:
    """The regular files below DATA by their names, which are paths; no links."""
    found = {}
    folders = [DATA]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found[entry.path[len(DATA) + 1 :]] = Stamp(
                        inode=status.st_ino,
                        size=status.st_size,
                        written_ns=status.st_mtime_ns,
                        changed_ns=status.st_ctime_ns,
                    )
    return found


def path_of_link(inode: int) -> str:
    """Where in DATA a link is now; "" if it is gone."""
    for folder, _, names in os.walk(DATA):
        for name in names:
            path = os.path.join(folder, name)
            with suppress(OSError):
                if os.path.islink(path) and os.lstat(path).st_ino == inode:
                    return path
    return ""


def cache_of(name: str) -> str:
    """The folder, as a path, that keeps a file from coming back; "" if none does."""
    parts = name.split("/")
    if len(parts) > 1 and parts[0] in HOME_CACHES:
        return parts[0]
    for depth, part in enumerate(parts, 1):
        if part in CACHES:
            return "/".join(parts[:depth])
    return ""


def is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def in_order(name: str) -> Any:
    """A key to sort by: plot-10 comes after plot-9, and hidden files come last.

    So where there are too many files, the others are kept."""
    parts = re.split("([0-9]+)", name)
    # Each second part is a number.
    numbers = [(int(digits), digits) for digits in parts[1::2]]
    parts[1::2] = numbers
    return is_hidden(name), parts, name


def marked_processes() -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
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


class PlainLines:
    """Makes of the bytes of a stream what one would read there at the end.

    There are no colours in it, and of a progress bar its last state only."""

    def __init__(self) -> None:
        self._line = b""  # the one that has not ended

    def add(self, data: bytes, is_open: bool) -> bytes:
        """The bytes that can be passed on, now that these have come."""
        ended, newline, self._line = (self._line + data).rpartition(b"\n")
        lines = [plain_line(line) for line in (ended + newline).split(b"\n")]
        self._line = last_state(self._line)
        if not is_open or len(self._line) > MAX_LINE_BYTES:
            lines[-1] += plain_line(self._line)
            self._line = b""
        return b"\n".join(lines)


def plain_line(line: bytes) -> bytes:
    text = NO_TEXT.sub(b"", last_state(line).rstrip(b"\r"))
    # A bar that is taken away at its end is written over with spaces.
    return text if text.strip() or b"\r" not in line else b""


def last_state(line: bytes) -> bytes:
    """A line without what was written over, each time after a carriage return."""
    states = line.rstrip(b"\r")
    written_over = states.rfind(b"\r") + 1
    return line[written_over:]


def pass_on(pipe: Any, name: str, plan: Plan) -> None:
    """Report one of the script's streams as text, to its end; count what is cut.

    stdout is passed on as it is: it may be a file's text."""
    left_bytes = plan["output_bytes"][name]
    piece_bytes = plan["pipe_bytes"]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    lines = PlainLines()
    is_open = True
    while is_open:
        data = os.read(pipe.fileno(), piece_bytes)
        is_open = bool(data)
        if name == "stderr":
            data = lines.add(data, is_open)
        kept = data[: max(0, left_bytes)]
        left_bytes -= len(data)
        for start in range(0, len(kept), piece_bytes):
            piece = kept[start : start + piece_bytes]
            report_text(name, decoder.decode(piece))
    report_text(name, decoder.decode(b"", final=True))
    if left_bytes < 0:
        report(note=f"{name} was cut: {-left_bytes:,} bytes more were not kept")


def report_text(name: str, text: str) -> None:
    if text:
        report(**{name: text})


def join(threads: list[Thread]) -> None:
    """Wait until they have ended, for DRAIN_S at most."""
    until = time.monotonic() + DRAIN_S
    for thread in threads:
        left_s = until - time.monotonic()
        thread.join(max(0, left_s))


def watch(process: Process, plan: Plan) -> None:
    """Pass on a script's output, and report its end; at its limit it is killed."""
    limit_s = plan["limit_s"]
    readers = []
    for name in plan["output_bytes"]:
        pipe = getattr(process, name)
        reader = Thread(target=pass_on, args=(pipe, name, plan), daemon=True)
        reader.start()
        readers.append(reader)
    code = None
    try:
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(limit_s)
    except BaseException:  # the caller has hung up, and E2B interrupts the kernel
        kill(process)
        join(readers)
        raise
    if code is None:
        kill(process)
    join(readers)
    kill(process)
    join(readers)
    if code is None:
        report(note=f"Error: stopped after {limit_s} s, its time limit")
        report(ended="timeout")
    elif code:
        report(note=end_note(code))
        report(ended="error")
    else:
        report(ended="ok")


def end_note(code: int) -> str:
    """LibreChat shows an output in red where one of its lines begins so."""
    if code == -signal.SIGKILL:
        return "Error: killed by signal 9, perhaps because memory ran out"
    if code < 0:
        return f"Error: killed by signal {-code}"
    return f"Error: exit code {code}"


def report_caches(files: dict[str, int]) -> None:
    """Report how many files stay behind in each cache, as far as it can be named."""
    caches = sorted(files)
    for cache in caches[:MAX_NAMED_CACHES]:
        report(cache=cache, files=files[cache])
    others = caches[MAX_NAMED_CACHES:]
    if others:
        count = sum(files[cache] for cache in others)
        report(note=f"{len(others):,} caches more: {count:,} files were left out")


# --- inputs ---------------------------------------------------------------------------


def owner() -> tuple[int, int] | None:
    """Whose files all in DATA have to be, if they can be given to another user."""
    with suppress(KeyError):
        if os.getuid() == 0:
            entry = pwd.getpwnam("user")
            return entry.pw_uid, entry.pw_gid
    return None


def give_to_user(name: str, folder: int) -> None:
    ids = owner()
    if ids:
        with suppress(OSError):  # in a container that may not do so
            os.chown(name, *ids, dir_fd=folder, follow_symlinks=False)


def open_folder(parts: list[str]) -> int:
    """Open a folder below DATA, which is made if it is not there.

    Raises OSError, with ENOTDIR or ELOOP where a part is a link or no folder."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    folder = os.open(DATA, flags)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=folder)
                give_to_user(part, folder)
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
    except OSError:
        os.close(folder)
        raise
    return folder


def staged_at(path: str) -> Callable[[int], str]:
    return lambda folder: path


def write_hidden(folder: int, data: bytes) -> str:
    """Write a new file, of a hidden name, which is returned."""
    name = f".{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(name, flags, 0o644, dir_fd=folder)
    with open(descriptor, "wb") as file:
        file.write(data)
    return name


# --- files that are not kept ----------------------------------------------------------


def written_elsewhere(code: str, since_ns: int, own_folder: str) -> list[str]:
    """The paths of files in /tmp and in the user's home that a script has left there.

    There is no file of that name in DATA. Other programs write to /tmp, too: it is
    looked into only if the script names it, and folders there only if it names them."""
    found: list[str] = []
    home = ENVIRONMENT.get("HOME", "")
    if home and not DATA.startswith(home):
        found += new_files(home, since_ns, lambda name: name not in OF_PACKAGES)
    if "/tmp" in code or "gettempdir" in code:  # noqa: S108
        named = set(re.findall(r"[^\s/'\"]+", code))
        own_name = os.path.basename(own_folder)
        found += new_files(
            "/tmp",  # noqa: S108
            since_ns,
            lambda name: name != own_name and name in named,
        )
    kept = {os.path.basename(name) for name in data_files()}
    return [path for path in found if os.path.basename(path) not in kept]


def new_files(
    top: str, since_ns: int, may_enter: Callable[[str], bool]
) -> Iterator[str]:
    """Files below a folder whose names look like a result's, written since then."""
    seen = 0
    for folder, folders, names in os.walk(top):
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and name not in CACHES and may_enter(name)
        ]
        for name in sorted(names):
            path = os.path.join(folder, name)
            seen += 1
            if seen > MAX_SEEN_ELSEWHERE:
                return
            if looks_like_result(name) and was_written(path, since_ns):
                yield path


def looks_like_result(name: str) -> bool:
    has_ending = "." in name[1:]
    return has_ending and not name.startswith(".") and not TEMPORARY.match(name)


def was_written(path: str, since_ns: int) -> bool:
    with suppress(OSError):
        status = os.lstat(path)
        return stat.S_ISREG(status.st_mode) and status.st_ctime_ns >= since_ns
    return False


def report_elsewhere(paths: list[str]) -> None:
    if not paths:
        return
    named = ", ".join(paths[:MAX_NAMED_ELSEWHERE])
    others = len(paths) - MAX_NAMED_ELSEWHERE
    more = f" and {others:,} more" if others > 0 else ""
    report(note=f"not kept because not in {DATA}: {named}{more}")


# --- Java -----------------------------------------------------------------------------

# Comments, texts and characters of a Java source, in which braces mean nothing. Each
# may lack its end, so that none is looked for again from every quote on.
JAVA_NO_CODE = re.compile(
    r"//[^\n]*"
    r"|/\*.*?(?:\*/|\Z)"
    r'|"""(?:\\.|[^\\])*?(?:"""|\\?\Z)'
    r'|"(?:\\.|[^"\\\n])*"?'
    r"|'(?:\\.|[^'\\\n])*'?",
    re.DOTALL,
)
JAVA_TYPE = re.compile(r"\b(?:class|interface|enum|record)\s+(\w+)")
JAVA_MAIN = re.compile(r"\bvoid\s+main\s*\(")


def has_static_main(before: str) -> bool:
    """Whether what precedes a block of a class is the head of a static `main`."""
    main = JAVA_MAIN.search(before)
    if not main:
        return False
    words = re.split(r"[^\w\s]", before[: main.start()])[-1].split()
    return "static" in words


def with_main_first(source: str) -> str:
    """A Java source whose first class has a `main`, if any class has.

    `java Main.java` runs the first class of the file, which may be a helper. Then a
    class that calls the right one is put before it, on a line that is there already."""
    code = JAVA_NO_CODE.sub(lambda found: " " * len(found[0]), source)
    types: list[str] = []  # the names of those that lie in no other
    has_main: list[str] = []
    starts_at = 0  # after the imports, where the first type begins
    depth = 0
    done = 0
    for brace in re.finditer("[{}]", code):
        before = code[done : brace.start()]
        if depth == 0:
            if not types and ";" in before:
                starts_at = done + before.rfind(";") + 1
            types += JAVA_TYPE.findall(before)[:1]
        elif depth == 1 and types and has_static_main(before):
            has_main.append(types[-1])
        depth += 1 if brace[0] == "{" else -1
        done = brace.end()
    if not has_main or has_main[0] == types[0]:
        return source
    caller = (
        "class StartOfScript { public static void main(String[] args) throws Throwable"
        f" {{ {has_main[0]}.main(args); }} }} "
    )
    return source[:starts_at] + caller + source[starts_at:]


# --- how a script is started ----------------------------------------------------------


def new_folder() -> str:
    """A folder for a script, with what each Python that it starts runs first."""
    folder = tempfile.mkdtemp(prefix="exec-")
    os.mkdir(python_folder(folder))
    for name, text in PYTHON_FILES.items():
        path = os.path.join(python_folder(folder), name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return folder


def python_folder(folder: str) -> str:
    return os.path.join(folder, "python")


# Whether the files in DATA have been given to E2B's user.
IS_GIVEN = False


def command_as_user(folder: str) -> list[str]:
    """The prefix that runs a command as E2B's `user`, after giving it all files: those
    of the template once, for whatever comes later is given to it as it comes.

    Empty if this program is not root, or may not do so, in a container. What the
    environment says of the user is true from then on.
    """
    global IS_GIVEN
    home = os.path.expanduser("~user")
    prefix = []
    if home != "~user" and os.getuid() == 0:
        folders = [folder] if IS_GIVEN else [DATA, folder]
        chown = ["chown", "-R", "user:", *folders]
        cannot_chown = subprocess.call(chown, stderr=subprocess.DEVNULL)
        IS_GIVEN = not cannot_chown
        if not cannot_chown and shutil.which("setpriv"):
            ENVIRONMENT.update(HOME=home, USER="user", LOGNAME="user")
            prefix = ["setpriv", "--reuid=user", "--regid=user", "--clear-groups"]
    home = ENVIRONMENT.setdefault("HOME", os.path.expanduser("~"))
    # Where pip puts the programs that a script installs.
    programs = os.path.join(home, ".local", "bin")
    path = ENVIRONMENT.get("PATH", os.defpath)
    if programs not in path.split(":"):
        ENVIRONMENT["PATH"] = f"{programs}:{path}"
    return prefix


def start_command(command: str, user: list[str], *arguments: str) -> list[str]:
    """A command for sh, whose $0 is the first of the arguments."""
    return [*user, "sh", "-c", BEFORE_COMMAND + command, *arguments]


def start(command: list[str], folder: str, stdin: int, **environment: str) -> Process:
    path = f"{python_folder(folder)}:{DATA}"
    return subprocess.Popen(
        command,
        cwd=DATA,
        env={**ENVIRONMENT, "PYTHONPATH": path, **environment},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


class EarlyPython:
    """The command of a Python script, started before there is a script.

    It imports modules and waits for the script's arguments: startup.py does so. Only
    then does Python itself open the script. So all is as in a plain start, but for
    modules that are there already; `fits` says for which scripts that is the same."""

    def __init__(self, command: str, script_name: str, imports: list[str]) -> None:
        os.makedirs(DATA, exist_ok=True)
        self.folder = new_folder()
        self.script_path = os.path.join(self.folder, script_name)
        self._command = command
        self._imports = imports
        user = command_as_user(self.folder)
        self.process = start(
            start_command(command, user, self.script_path),
            self.folder,
            stdin=subprocess.PIPE,
            EXEC_IMPORTS=",".join(imports),
        )

    def fits(self, command: str, script: str) -> bool:
        """Whether this script would run in the same way, and gain by it."""
        names = {name.partition(".")[0] for name in self._imports}
        return (
            command == self._command
            and self.process.poll() is None
            and not names.isdisjoint(re.findall(r"\w+", script))
            # What it changes there may count only before an import.
            and "environ" not in script
            and "putenv" not in script
            and not self._is_any_hidden()
        )

    def _is_any_hidden(self) -> bool:
        """Whether DATA has a module of the name of one that was imported, or settings.

        While it still imports, any module may be of such a name."""
        names = set()
        for entry in os.scandir(DATA):
            stem, ending = os.path.splitext(entry.name)
            if entry.is_dir() or ending in (".py", ".pyc", ".so"):
                names.add(stem.partition(".")[0])
            elif entry.name == "matplotlibrc":
                return True
        if not names:
            return False
        try:
            with open(os.path.join(python_folder(self.folder), "imported")) as file:
                imported = file.read().split()
        except OSError:
            return True
        return not names.isdisjoint(imported)

    def begin(self, arguments: list[str]) -> Process:
        """Let it run its script, which is there now."""
        self.process.stdin.write(json.dumps(arguments).encode())
        self.process.stdin.close()
        return self.process


EARLY: EarlyPython | None = None


def start_early(command: str, script_name: str, imports: list[str]) -> None:
    """Start a Python for the exec that may come."""
    global EARLY
    EARLY = EarlyPython(command, script_name, imports)


class Exec:
    """One exec: all that this sandbox ever runs, unless it is a session's."""

    def __init__(self, plan: Plan) -> None:
        # ipykernel hashes each cell to name it, unless it has a name: 0.1 s for each
        # MB.
        os.environ["IPYKERNEL_CELL_NAME"] = "exec"
        self.script = ""
        self.workspace: Any = None  # a session's: see workspace.py
        self._plan = plan
        self._inputs: set[str] = set()  # their names
        self._links: dict[str, Link] = {}  # by their own names
        # What the script writes has a later time.
        self._inputs_time = time.time() - 3600
        os.makedirs(DATA, exist_ok=True)
        self._folder = new_folder()
        folder = DATA if plan["beside_data"] else self._folder
        name = plan["script_name"]
        if plan["beside_data"]:
            # A hidden one, which `ls` does not show to the script.
            name = f".{secrets.token_hex(8)}-{name}"
        self._script_path = os.path.join(folder, name)

    def _link_other_names(self) -> None:
        """Let inputs be there under the names that scripts gave them, too."""
        for other, name in self._plan["other_names"].items():
            path = os.path.join(DATA, other)
            target = os.path.join(DATA, name)
            with suppress(OSError):  # a part of the name is a file, or it is there
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.symlink(os.path.relpath(target, os.path.dirname(path)), path)
                self._links[other] = Link(name, os.lstat(path).st_ino)

    def _do_to_files_what_was_done_to_links(self, before: dict[str, Stamp]) -> None:
        """Where a script has renamed, removed or replaced a link, it meant the file.

        A file that it has also changed, under its own name, is left as it is."""
        if not self._links:
            return
        after = data_files()
        for other, (name, inode) in self._links.items():
            path = os.path.join(DATA, other)
            target = os.path.join(DATA, name)
            is_unchanged = name in before and after.get(name) == before[name]
            if os.path.islink(path) or not is_unchanged:
                continue
            with suppress(OSError):
                if os.path.isfile(path):
                    os.replace(path, target)
                else:
                    moved_to = path_of_link(inode)
                    if moved_to:
                        os.replace(target, moved_to)
                    else:
                        os.unlink(target)

    def receive(self, name: str, packed: str) -> None:
        """Take an input that comes in the cell."""
        data = zlib.decompress(base64.b64decode(packed))
        self._place(name, lambda folder: write_hidden(folder, data))

    def _take_staged(self) -> None:
        """Take what was put into the sandbox before this cell."""
        for name, path in self._plan["staged_inputs"].items():
            self._place(name, staged_at(path))
        if self._plan["staged_script"]:
            path = self._plan["staged_script"]
            with open(path, encoding="utf-8", newline="") as file:
                self.script = file.read()
        if self._plan["staging"]:
            shutil.rmtree(self._plan["staging"])

    def _place(self, name: str, source_in: Callable[[int], str]) -> None:
        """Move an input to its place.

        `source_in` returns its path now, given an open folder that it may lie in."""
        self._inputs.add(name)
        if self.workspace and not self.workspace.wants(name):
            return
        *folders, last = name.split("/")
        try:
            folder = open_folder(folders)
        except OSError as exc:
            if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            report(note=f"input {name} was left out: a part of its name is no folder")
            return
        try:
            source = source_in(folder)
            times = (self._inputs_time, self._inputs_time)
            os.utime(source, times, dir_fd=folder, follow_symlinks=False)
            give_to_user(source, folder)
            os.replace(source, last, src_dir_fd=folder, dst_dir_fd=folder)
            if self.workspace:
                self.workspace.note_input(name)
        except IsADirectoryError:
            os.unlink(source, dir_fd=folder)
            report(note=f"input {name} was left out: it is a folder, too")
        finally:
            os.close(folder)

    def take_as_code(self, shapes: str) -> None:
        """Have the script be the code that it holds, by the text of shapes.py."""
        names: dict[str, Any] = {"__name__": "exec_shapes"}
        exec(shapes, names)  # noqa: S102
        self.script = names["runnable"](self.script)

    def run(self) -> None:
        """Run the script and report its end, and its files where these are small."""
        self._take_staged()
        if not self.workspace:
            self._run()
            return
        try:
            self._run_in_session()
        except KeyboardInterrupt:
            # The caller has hung up, and E2B has interrupted the kernel. To write the
            # traceback of a cell as long as this one would take seconds.
            return
        finally:
            self.workspace.processes.end()
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):
                os.unlink(self._script_path)

    def _run_in_session(self) -> None:
        """Run the script, or report which inputs it lacks."""
        missing = self.workspace.missing()
        for name in missing:
            report(needed=name)
        self._inputs.update(self._plan["input_names"])
        self.workspace.save()
        if not missing:
            self._run()

    def _run(self) -> None:
        self._link_other_names()
        # The clock of a file system may be some ms late.
        started_ns = time.time_ns() - 20_000_000
        try:
            process, before = self._start()
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            report(note=f"Error: the script could not be started: {exc}")
            report(ended="error")
            return
        watch(process, self._plan)
        if self.workspace:
            self.workspace.processes.end()
        self._do_to_files_what_was_done_to_links(before)
        report_elsewhere(written_elsewhere(self.script, started_ns, self._folder))
        self._report_files(before)

    def _start(self) -> tuple[Process, dict[str, Stamp]]:
        """The script's process, and the files that were there before it."""
        plan = self._plan
        if not shutil.which(plan["tool"]):
            raise OSError(f"{plan['tool']} is not part of this sandbox's template")
        early = EARLY
        if early and not early.fits(plan["command"], self.script):
            kill(early.process)
            early = None
        if early:
            self._folder = early.folder
            self._script_path = early.script_path
        script = self.script
        if plan["tool"] == "java":
            script = with_main_first(script)
        with open(self._script_path, "w", encoding="utf-8", newline="") as file:
            file.write(script)
        user = command_as_user(self._folder)
        before = data_files()
        if early:
            return early.begin(plan["args"]), before
        command = start_command(plan["command"], user, self._script_path, *plan["args"])
        return start(command, self._folder, stdin=subprocess.DEVNULL), before

    def _report_files(self, before: dict[str, Stamp]) -> None:
        """Report what was deleted and written, and what that holds if it is small."""
        after = data_files()
        # What happens to these stays in the sandbox; the script is among them if it
        # lies in DATA.
        read_only = self._plan["read_only"]
        if self.workspace:
            read_only = self.workspace.read_only()
        for name in [*read_only, os.path.relpath(self._script_path, DATA)]:
            before.pop(name, None)
            after.pop(name, None)
        for name in sorted(self._inputs & before.keys() - after.keys()):
            report(deleted=name)
        written = []
        in_caches: dict[str, int] = {}
        for name in sorted(after, key=in_order):
            if after[name] == before.get(name):
                continue
            cache = cache_of(name)
            if cache and name not in self._inputs:
                in_caches[cache] = in_caches.get(cache, 0) + 1
            else:
                written.append(name)
        report_caches(in_caches)
        if self.workspace:
            written = self._kept_apart(written)
        report(written_files=len(written))
        for name in written[:MAX_NAMED]:
            report(written=name, size=after[name].size)
        left_bytes = self._plan["small_bytes"]
        kept = written[: self._plan["max_files"]]
        for name in sorted(kept, key=lambda name: after[name].size):
            left_bytes -= after[name].size
            if left_bytes >= 0:
                self._send(name)

    def _kept_apart(self, written: list[str]) -> list[str]:
        """The files that are returned: not those of a tree that was installed.

        They are noted, for the session's next exec may name them as its inputs."""
        in_folders: dict[str, int] = {}
        for name in written:
            folder, slash, _ = name.partition("/")
            if slash:
                in_folders[folder] = in_folders.get(folder, 0) + 1
        most = self._plan["max_files"]
        trees = {folder for folder, count in in_folders.items() if count > most}
        for folder in sorted(trees)[:MAX_NAMED_CACHES]:
            report(stays=folder, files=in_folders[folder])
        returned = [
            name
            for name in written
            if name.partition("/")[0] not in trees or "/" not in name
        ]
        for name in returned[:MAX_NAMED]:
            self.workspace.note_output(name)
        self.workspace.save()
        return returned

    def _send(self, name: str) -> None:
        """Report a written file's bytes, in several lines."""
        path = os.path.join(DATA, name)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            while True:
                data = file.read(self._plan["chunk_bytes"])
                if not data:
                    return
                compressed = zlib.compress(data, 1)
                packed = base64.b64encode(compressed)
                report(of=name, packed=packed.decode())
