"""What can be shown of the locks, the image and
the compose file without a Docker engine."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

import install
import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from config import Config
from conftest import free_port, service_modules

pytestmark = pytest.mark.usefixtures("untraced")

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.txt", "dev/requirements-demo.txt", "dev/requirements.txt"]
RUN_AS = 65532
REGISTRY_TIMEOUT_S = 120
BOOT_TIMEOUT_S = 120
TRIES = 3  # of a probe that gives up after 4 s, on a busy machine


# --- the locks ------------------------------------------------------------------------


def pins(lock: str) -> dict[str, set[str]]:
    """`name==version ; marker` and its hashes, of each package in a lock."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / lock).read_text().replace("\\\n", " ").splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            found[requirement] = set(hashes)
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_exact_versions_with_hashes_and_names_no_place(lock: str) -> None:
    for requirement, hashes in pins(lock).items():
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?==[^\s;]+( ; .+)?", requirement)
        assert hashes
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes)
    text = (ROOT / lock).read_text()
    assert not re.search(
        r"https?:|file:|index-url|find-links|trusted-host|^\s*#.*\s/", text, re.M
    )


def test_each_lock_holds_the_one_before_it_as_it_is_locked() -> None:
    def without_extras_and_markers(lock: str) -> dict[str, set[str]]:
        return {
            re.sub(r"\[.*?\]| ; .*", "", pin): hashes
            for pin, hashes in pins(lock).items()
        }

    for smaller, larger in pairwise(map(without_extras_and_markers, LOCKS)):
        assert {pin: larger.get(pin) for pin in smaller} == smaller
        assert len(larger) > len(smaller) > 20


def test_a_lock_pins_a_package_with_the_extras_that_others_ask_of_it() -> None:
    """For `some[extra]>=1` pip before 23.3 takes the
    newest release, not `some==2` of the lock."""
    pinned: dict[str, set[str]] = {}
    for lock in LOCKS:
        for requirement in map(Requirement, pins(lock)):
            pinned.setdefault(requirement.name, set()).update(requirement.extras)
    wanted: dict[str, set[str]] = {}
    for name in pinned:
        for text in requires_of(name):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.setdefault(canonicalize_name(requirement.name), set()).update(
                    requirement.extras
                )
    assert wanted["coverage"] == {"toml"}  # or this test looks at nothing
    missing = {name: extras - pinned[name] for name, extras in wanted.items()}
    assert {name: extras for name, extras in missing.items() if extras} == {}


def test_what_the_service_depends_on_by_its_insides_is_pinned_in_the_sources() -> None:
    wanted = (ROOT / "requirements.in").read_text().split()
    for name in ("e2b", "e2b-code-interpreter", "resvg_py"):
        [pin] = [line for line in wanted if re.match(rf"{name}\b(?!-)", line)]
        assert re.fullmatch(rf"{name}==[0-9.]+", pin)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_lock_installs_from_wheels_on_the_images_python(
    machine: str, tmp_path: Path
) -> None:
    # manylinux of this and every older glibc: Debian bookworm has 2.36.
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(17, 37)]
    platforms.append(f"manylinux2014_{machine}")
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--ignore-installed",
            "--no-deps",
        ]
        + ["--quiet", "--report=-"]
        + ["--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=15"]
        + [
            "--require-hashes",
            "--only-binary=:all:",
            "--target",
            str(tmp_path / "nowhere"),
        ]
        + ["--python-version", ".".join(image_python()), "--implementation=cp"]
        + [f"--platform={platform}" for platform in platforms]
        + ["--requirement", str(ROOT / "requirements.txt")],
        capture_output=True,
        text=True,
        check=False,
        timeout=REGISTRY_TIMEOUT_S,
    )
    if re.search("NewConnectionError|ConnectTimeoutError", finished.stderr):
        pytest.skip(
            "the package registry cannot be reached: wheels were NOT looked for"
        )
    assert finished.returncode == 0, finished.stderr[-2000:]
    report = json.loads(finished.stdout)["install"]
    found = {
        f"{each['metadata']['name']}=={each['metadata']['version']}" for each in report
    }
    normal = {re.sub("[-_.]+", "-", name).lower() for name in found}
    wanted = {re.sub("[-_.]+", "-", pin).lower() for pin in pins("requirements.txt")}
    # Where a marker says so a package may be left out.
    assert {pin for pin in wanted if " ; " not in pin} <= normal
    assert all(each["download_info"]["url"].endswith(".whl") for each in report)


def requires_of(name: str) -> list[str]:
    """What a package depends on; nothing where a marker keeps it off this machine."""
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        return []


@pytest.mark.parametrize("lock", LOCKS[1:])
def test_who_waits_is_told_how_much_is_installed(lock: str) -> None:
    size = sum(
        path.stat().st_size
        for name in map(Requirement, pins(lock))
        for path in files_of(name.name)
    )
    _, disk_mb = install.SIZES[Path(lock).name]
    assert 0.6 * disk_mb < size / 1e6 < 1.2 * disk_mb


def files_of(name: str) -> list[Path]:
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        return []
    return [path for path in (Path(file.locate()) for file in files) if path.is_file()]


# --- the image ------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """The instructions and their arguments."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [
        (line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines if line
    ]


def arguments_of(instruction: str) -> list[str]:
    return [arguments for name, arguments in dockerfile() if name == instruction]


def image_python() -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", arguments_of("FROM")[0])[:3])


def files_in_context() -> set[str]:
    """What .dockerignore lets the builder see
    of the files that could be in the image."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    folders = [ROOT, *(path for path in ROOT.iterdir() if path.is_dir())]
    files = {
        path.relative_to(ROOT)
        for folder in folders
        for path in folder.iterdir()
        if path.is_file()
    }
    return {path.as_posix() for path in files if not is_ignored(path, rules)}


def is_ignored(path: Path, rules: list[str]) -> bool:
    """The last rule that matches the path, or a folder that it is in, decides."""
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!").split("/")
        parts = path.parts[: len(pattern)]
        if len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern)):
            ignored = not rule.startswith("!")
    return ignored


def exec_form(arguments: str) -> list[str]:
    command = json.loads(arguments[arguments.index("[") :])
    assert all(isinstance(word, str) for word in command)
    return list(command)


def loaded_modules() -> set[str]:
    """The service's Python files, followed from
    what gunicorn loads: imports and files named."""
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name
        for name in service_modules()
    }
    # One that is named as a file may lie in a package.
    modules |= {Path(name).stem: name for name in modules.values()}
    waiting, found = ["gunicorn.conf.py", "proxy.py"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            waiting.extend(modules[each] for each in names_in(node) if each in modules)
    return found


def names_in(node: ast.AST) -> list[str]:
    """The modules that a piece of code may mean, if they exist."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        package = module.partition(".")[0]
        return [package, module, *(f"{module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value.endswith(".py"):
            return [node.value.removesuffix(".py")]
        # "process.worker.PatientWorker", as gunicorn takes a class
        package = node.value.partition(".")[0]
        return [package, node.value.rpartition(".")[0], node.value]
    return []


def data_files() -> set[str]:
    """Files of the repository, other than Python,
    that the service names in its code."""
    words = {
        node.value
        for name in loaded_modules()
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {
        path.name for path in ROOT.iterdir() if path.is_file() and path.name in words
    } - {name for name in words if name.endswith(".py") or name == ".git"}


def test_the_image_holds_what_the_service_needs_and_nothing_else() -> None:
    assert arguments_of("COPY")[-1] == ". ."
    needed = loaded_modules() | data_files()
    documents = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")}
    assert files_in_context() == needed | documents | {"LICENSE", "requirements.txt"}
    assert {"openapi.json", "index.html", "config.py"} <= needed


def test_all_service_code_is_in_the_image() -> None:
    """Nothing counts as service code that does
    not ship, and nothing ships uncounted."""
    assert service_modules() == loaded_modules()


def test_the_image_is_two_stages_of_one_exact_slim_python() -> None:
    build, final = arguments_of("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm AS build", build)
    assert final == build.removesuffix(" AS build")
    minor = f"python{'.'.join(image_python()[:2])}"
    install, remove, *_ = arguments_of("RUN")
    assert "--require-hashes" in install
    assert "--only-binary :all:" in install
    assert "pip uninstall" in remove
    assert f"/usr/local/lib/{minor}/ensurepip" in remove


def test_the_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    assert arguments_of("USER") == [f"{RUN_AS}:{RUN_AS}"]
    assert arguments_of("EXPOSE") == [str(Config(e2b_api_key="x").port)]
    [env] = arguments_of("ENV")
    assert "HOST=0.0.0.0" in env.split()


@contextmanager
def listening(status: int) -> Iterator[int]:
    """A server that answers each path but /health
    with 404, and says so of nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def probe(port: int) -> int:
    [arguments] = arguments_of("HEALTHCHECK")
    command = exec_form(arguments)
    assert command[0] == "python"
    return subprocess.run(
        [sys.executable, *command[1:]],
        env={"PORT": str(port), "HTTP_PROXY": "http://proxy.invalid:1"},
        capture_output=True,
        check=False,
        timeout=60,
    ).returncode


@pytest.mark.parametrize(
    ("status", "is_healthy"), [(200, True), (503, False), (302, False)]
)
def test_the_images_healthcheck_asks_health_and_nothing_else(
    status: int, is_healthy: bool
) -> None:
    with listening(status) as port:
        assert (probe(port) == 0) is is_healthy


def test_the_images_healthcheck_fails_when_nothing_listens() -> None:
    with socket.socket() as bound_but_deaf:
        bound_but_deaf.bind(("127.0.0.1", 0))
        assert probe(bound_but_deaf.getsockname()[1]) != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start it as another user")
def test_the_images_command_boots_as_another_user_read_only_and_without_home() -> None:
    with tree_of_the_image() as tree:
        port = free_port()
        program, *arguments = exec_form(arguments_of("CMD")[0])
        assert program == "gunicorn"
        command = [*as_another_user(), sys.executable, "-B", "-m", program, *arguments]
        environ = {"E2B_API_KEY": "x", "HOST": "127.0.0.1", "PORT": str(port)}
        with subprocess.Popen(
            command,
            cwd=tree,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            # Whatever happens, the reads below end.
            watchdog = threading.Timer(BOOT_TIMEOUT_S, process.kill)
            watchdog.start()
            lines = process.stdout or iter(())
            output, status, family, uids = b"", None, [], set()
            try:
                for line in lines:
                    output += line
                    if b"Listening at" in line:
                        # Accepted by the kernel now, answered
                        # as soon as the worker is there.
                        status = min(probe(port) for _ in range(TRIES))
                        master = psutil.Process(process.pid)
                        family = [master, *master.children()]
                        uids = {tuple(each.uids()) for each in family}
                        break
            finally:
                process.terminate()
                output += b"".join(lines)
                watchdog.cancel()
    assert status == 0, output.decode()
    assert uids == {(RUN_AS, RUN_AS, RUN_AS)}
    assert len(family) == 2
    assert process.returncode == 0, output.decode()
    assert not re.search(rb"error|warning|denied|read-only|traceback", output, re.I), (
        output
    )


@contextmanager
def tree_of_the_image() -> Iterator[str]:
    """A folder as the image's /app is, from a clone that was made with a umask of 077:
    with what it copies, and after what it does to that."""
    with tempfile.TemporaryDirectory() as tree:
        for name in files_in_context():
            copy = Path(tree, name)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, copy)
            copy.chmod(0o600)
        for folder, _, _ in os.walk(tree):
            Path(folder).chmod(0o700)
        for command in arguments_of("RUN"):
            if " /app" in command:
                subprocess.run(["sh", "-c", command.replace("/app", tree)], check=True)
        yield tree


def not_readable(folder: str | Path) -> list[str]:
    """What of a folder another user than its owner cannot read, or cannot enter."""
    found = []
    for parent, _, names in os.walk(folder):
        for path in (Path(parent), *(Path(parent, name) for name in names)):
            wanted = 0o005 if path.is_dir() else 0o004
            if path.stat().st_mode & wanted != wanted:
                found.append(str(path))
    return found


def test_any_user_can_read_the_image_of_a_clone_that_only_root_could() -> None:
    with tree_of_the_image() as tree:
        assert not_readable(tree) == []


def test_any_user_can_read_what_a_vm_has_of_it_but_for_the_clones_own_settings(
    tmp_path: Path,
) -> None:
    """A token of the clone's address would be in .git/config."""
    if not shutil.which("git"):
        pytest.skip("git is not installed: no clone was made")
    page = (ROOT / "docs/operating.md").read_text("utf-8")
    steps = page.split("```bash\n", 1)[1].split("```", 1)[0].splitlines()
    [first] = [line for line in steps if line.startswith("chmod ")]
    [update] = re.findall(r"&& (chmod [^&`]*)", page.split("## Updating", 1)[1])
    clone = tmp_path / "clone"
    make = (
        "umask 077; git -c safe.directory='*' clone -q --no-hardlinks "
        f"'{ROOT}' '{clone}' && cd '{clone}' && mkdir venv && touch venv/python"
    )
    subprocess.run(["sh", "-c", make], check=True, env={"PATH": os.environ["PATH"]})
    assert len(not_readable(clone)) > 100
    subprocess.run(["sh", "-c", first], cwd=clone, check=True)
    left = [Path(path).relative_to(clone) for path in not_readable(clone)]
    assert Path(".git/config") in left
    assert all(path.parts[0].startswith(".") for path in left)
    (clone / "pulled.py").touch(0o600)
    subprocess.run(["sh", "-c", update], cwd=clone, check=True)
    assert str(clone / "pulled.py") not in not_readable(clone)


def as_another_user() -> list[str]:
    """What to put before a command; skips where that user cannot reach this Python."""
    setpriv = ["setpriv", f"--reuid={RUN_AS}", f"--regid={RUN_AS}", "--clear-groups"]
    # It may read what is in root's home, where
    # the virtual environment may be; never write.
    reader = [
        *setpriv,
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]
    for prefix in (setpriv, reader):
        command = [*prefix, sys.executable, "-c", "import flask"]
        if (
            shutil.which("setpriv")
            and not subprocess.run(command, capture_output=True, check=False).returncode
        ):
            return prefix
    pytest.skip(
        f"no setpriv, or user {RUN_AS} cannot reach this Python: NOT started as the "
        "image"
    )


# --- the repository -------------------------------------------------------------------


def tracked_files() -> list[str]:
    """What is in the repository, or will be with the next commit."""
    if not shutil.which("git"):
        pytest.skip("git is not installed: the repository's files were NOT looked at")
    finished = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        pytest.skip(f"git ls-files: {finished.stderr.strip()}")
    names = [
        name for name in finished.stdout.split("\0") if name and (ROOT / name).is_file()
    ]
    assert "requirements.txt" in names
    return names


def test_no_file_names_a_build_machines_folder_or_a_registry() -> None:
    # In pieces, so that this file holds none of them.
    folders = "|".join(
        f"/{name}/" for name in ("root", "work", "opt", "Users", r"home/(?!user\b)\w+")
    )
    registries = "|".join(
        rf"{a}\.{b}"
        for a, b in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("registry", "npm"),
            ("registry", "yarn"),
        )
    )
    places = re.compile(rf"(?<![\w.])(?:{folders})|{registries}")
    found = {}
    for name in tracked_files():
        text = (ROOT / name).read_bytes().decode("utf-8", "replace")
        if match := places.search(text):
            found[name] = match[0]
    assert found == {}
