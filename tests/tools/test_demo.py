"""What `make demo` and the Makefile promise to somebody who has just cloned this."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import check
import demo as demo_command
import install
import psutil
import pytest
from local_e2b import LocalE2B

from conftest import E2B_KEY, e2b_at, free_port

pytestmark = pytest.mark.usefixtures("untraced")

ROOT = Path(__file__).parents[2]
DEMO_TIMEOUT_S = 120  # on a loaded machine
Make = Callable[..., "subprocess.CompletedProcess[str]"]
PROXIES = {
    "HTTP_PROXY": "http://proxy.invalid:1",
    "http_proxy": "http://proxy.invalid:1",
}


class Started:
    """A demo that runs, and everything that it has said so far."""

    def __init__(
        self, process: subprocess.Popen[str], temporary: Path, out: Path
    ) -> None:
        self.process = process
        self.temporary = temporary
        self.out = out
        self.table = out.with_stem(f"{out.stem}-table")
        self.said = ""

    def wait_for(self, words: str) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return
        raise AssertionError(f"{words!r} was not said: {self.said}")

    def end(self) -> int:
        if self.process.stdout and not self.process.stdout.closed:
            self.said += self.process.stdout.read()
        return self.process.wait()

    def family(self) -> list[psutil.Process]:
        """Every process of this demo, kernels too: their TMPDIR is in its own."""
        found = []
        for process in psutil.process_iter():
            try:
                folder = process.environ().get("TMPDIR", "")
                is_ours = folder.startswith(str(self.temporary))
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def assert_nothing_is_left(self) -> None:
        assert psutil.wait_procs(self.family(), timeout=10)[1] == []
        assert list(self.temporary.iterdir()) == []


@contextmanager
def demo(tmp_path: Path, *arguments: str, **environ: str) -> Iterator[Started]:
    out = tmp_path / "sine.png"
    command = [sys.executable, str(ROOT / "dev/demo.py"), "--out", str(out), *arguments]
    # Not below tmp_path: the kernels' sockets are
    # in it, and a socket's path is a short one.
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command,
            env={
                **clean_environ(),
                "PORT": str(free_port()),
                "TMPDIR": folder,
                **environ,
            },
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        started = Started(process, Path(folder), out)
        watchdog = threading.Timer(DEMO_TIMEOUT_S, process.terminate)
        watchdog.start()
        try:
            yield started
        finally:
            watchdog.cancel()
            process.terminate()


@pytest.fixture
def drawing_e2b() -> Iterator[LocalE2B]:
    """E2B for a demo with a key: one that has its own address, and real kernels."""
    with LocalE2B() as e2b:
        yield e2b


def key_for(e2b: LocalE2B) -> dict[str, str]:
    return {"E2B_API_KEY": E2B_KEY, **e2b_at(e2b.url)}


def clean_environ() -> dict[str, str]:
    """Without what the person who runs the tests may have set for the service."""
    own = re.compile(
        r"E2B_|PROXY_API_KEY|.*_proxy$|PORT$|HOST$|IMAGE_|MAKE|MFLAGS", re.I
    )
    return {name: value for name, value in os.environ.items() if not own.match(name)}


def test_the_demo_draws_a_sine_wave_whatever_the_proxy_variables_say(
    tmp_path: Path,
) -> None:
    with demo(tmp_path, "--once", **PROXIES) as started:
        assert started.end() == 0, started.said
        assert check.PRINTED in started.said
        for picture in (started.out, started.table):
            assert str(picture) in started.said
            assert picture.read_bytes().startswith(check.PNG)
        assert started.out.read_bytes() != started.table.read_bytes()
        assert "UNISOLATED" in started.said
        started.assert_nothing_is_left()


def test_with_a_key_the_demo_uses_e2b_and_no_stand_in_and_serves_until_ctrl_c(
    tmp_path: Path, drawing_e2b: LocalE2B
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with demo(tmp_path, **key_for(drawing_e2b), PORT=str(port)) as started:
        started.wait_for("Ctrl-C stops it")
        assert url in started.said
        assert "UNISOLATED" not in started.said
        assert started.out.read_bytes().startswith(check.PNG)
        assert check.main(["--url", url, "--out", str(tmp_path / "again.png")]) == 0
        # A sine wave, a file and a table; the second time no table.
        assert drawing_e2b.state()["created"] == 5
        started.process.send_signal(signal.SIGINT)
        assert started.end() == 0, started.said
        started.assert_nothing_is_left()


def test_sigterm_ends_the_demo_while_the_service_starts(
    tmp_path: Path, drawing_e2b: LocalE2B
) -> None:
    with demo(tmp_path, **key_for(drawing_e2b)) as started:
        started.wait_for("E2B_API_KEY is set")
        started.process.send_signal(signal.SIGTERM)
        assert started.end() == 0, started.said
        started.assert_nothing_is_left()


@pytest.fixture
def heeded_hangups() -> Iterator[None]:
    """By what is started here, also when the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded_hangups")
def test_a_terminal_that_is_closed_in_the_middle_ends_the_demo(tmp_path: Path) -> None:
    with demo(tmp_path) as started:
        started.wait_for("Drawing")
        assert (
            len(started.family()) >= 4
        )  # the demo, the stand-in, gunicorn and its worker
        assert started.process.stdout
        started.process.stdout.close()
        started.process.send_signal(signal.SIGHUP)
        assert started.end() == 0
        started.assert_nothing_is_left()


def test_a_reader_that_goes_away_ends_the_demo(tmp_path: Path) -> None:
    with demo(tmp_path) as started:
        assert started.process.stdout
        started.process.stdout.close()
        assert started.end() == 0
        started.assert_nothing_is_left()


def test_the_demo_ends_in_words_when_the_service_dies(
    tmp_path: Path, drawing_e2b: LocalE2B
) -> None:
    with demo(tmp_path, **key_for(drawing_e2b)) as started:
        started.wait_for("Ctrl-C stops it")
        [service] = [
            each
            for each in psutil.Process(started.process.pid).children()
            if "gunicorn" in each.cmdline()
        ]
        for each in (*service.children(), service):
            each.kill()
        assert started.end() == 1
        assert "The service was ended by signal 9." in started.said
        started.assert_nothing_is_left()


def test_the_demo_passes_on_what_the_service_says_of_its_settings(
    tmp_path: Path,
) -> None:
    with demo(tmp_path, E2B_API_KEY="x", RUN_TIMEOUT_S="soon") as started:
        assert started.end() == 1
        assert "The service ended with exit code" in started.said
        assert "RUN_TIMEOUT_S" in started.said
        assert "soon" in started.said
        started.assert_nothing_is_left()


def test_the_demo_says_when_the_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo(tmp_path, PORT=str(port)) as started:
            assert started.end() == 1
    assert f"port {port} is taken" in started.said
    assert "PORT=" in started.said
    assert "Traceback" not in started.said


@pytest.mark.parametrize("port", [1, 80, 1024, 65535])
def test_the_port_that_the_demo_suggests_is_free_and_open_to_everyone(
    port: int,
) -> None:
    suggested = demo_command._free_port_above(port)
    assert suggested > 1024
    with socket.create_server(("127.0.0.1", suggested)):
        pass


def test_two_demos_at_once_keep_their_files_apart(drawing_e2b: LocalE2B) -> None:
    ports = [free_port(), free_port()]
    ends = (".log", ".png", "-table.png")
    files = [ROOT / f"demo-{port}{end}" for port in ports for end in ends]
    command = [sys.executable, str(ROOT / "dev/demo.py"), "--once"]
    environ = clean_environ() | key_for(drawing_e2b)
    demos = [
        subprocess.Popen(
            command, env=environ | {"PORT": str(port)}, stdout=subprocess.DEVNULL
        )
        for port in ports
    ]
    try:
        assert [demo.wait(DEMO_TIMEOUT_S) for demo in demos] == [0, 0]
        assert [file.stat().st_size > 0 for file in files] == [True] * 6
    finally:
        for demo in demos:
            demo.kill()
        for file in files:
            file.unlink(missing_ok=True)


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1", "3001.0"])
def test_the_demo_says_what_a_port_is(tmp_path: Path, port: str) -> None:
    with demo(tmp_path, PORT=port) as started:
        assert started.end() == 1
    assert f"PORT must be a whole number from 1 to 65535, not {port!r}" in started.said


def test_the_demo_fails_when_the_sine_wave_does_not_come(
    tmp_path: Path, drawing_e2b: LocalE2B
) -> None:
    drawing_e2b.set_script(
        {"create": {"status": 401, "body": {"code": 401, "message": "no"}}}
    )
    with demo(tmp_path, **key_for(drawing_e2b)) as started:
        assert started.end() == 1
        started.assert_nothing_is_left()
    assert "X-Run-Outcome unavailable" in started.said
    assert "the pictures did not come" in started.said
    assert not started.out.exists()


# --- make -----------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(*arguments)` with a venv folder in
    tmp_path/venv; gives the finished process."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", f"VENV={tmp_path / 'venv'}", *arguments],
            cwd=ROOT,
            env=clean_environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    return run


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("goal", ["demo", "test", "lint"])
def test_make_says_when_python_is_missing_or_too_old(
    make: Make, tmp_path: Path, goal: str
) -> None:
    old = program(tmp_path / "python3.9", "exit 1")
    finished = make(goal, f"PYTHON={old} no-such-python")
    assert finished.returncode != 0
    assert f"Python 3.11 or newer is needed; too old: {old}." in finished.stderr
    finished = make(goal, "PYTHON=no-such-python")
    assert finished.returncode != 0
    assert "Python 3.11 or newer is needed and none was found." in finished.stderr


def test_make_says_when_the_venv_module_is_missing(make: Make, tmp_path: Path) -> None:
    bare = program(tmp_path / "python3", 'case "$2" in *venv*) exit 1;; esac')
    finished = make("demo", f"PYTHON={bare}")
    assert finished.returncode != 0
    assert f"No venv module in: {bare}." in finished.stderr
    assert "python3-venv" in finished.stderr


@pytest.mark.parametrize("own", [None, "", "/nonexistent"])
def test_who_has_no_home_gets_one_in_the_venv(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    python = program(tmp_path / "python3", 'echo "It has $HOME."; exit 1')

    def home() -> str:
        [line] = make("demo", f"PYTHON={python}").stdout.splitlines()
        return line

    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == f"It has {tmp_path}."
    if own is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", own)
    assert home() == f"It has {tmp_path / 'venv' / 'home'}."


def test_make_takes_the_first_python_that_will_do_and_tries_again_when_pip_fails(
    make: Make, tmp_path: Path
) -> None:
    old = program(tmp_path / "old", "exit 1")
    venv_python = tmp_path / "venv" / "bin" / "python"
    good = program(
        tmp_path / "good",
        f'if [ "$2" = venv ]; then mkdir -p {venv_python.parent}; '
        f'printf "#!/bin/sh\\necho \\$@; exit 7\\n" > {venv_python};'
        f" chmod +x {venv_python}; fi",
    )
    for _ in range(2):
        finished = make("demo", f"PYTHON={old} {good}")
        assert finished.returncode != 0
        assert "dev/install.py dev/requirements-demo.txt" in finished.stdout


def test_make_installs_again_only_when_the_lock_has_changed_or_python_is_gone(
    make: Make, tmp_path: Path
) -> None:
    python = program(tmp_path / "venv" / "bin" / "python", "exit 0")
    os.utime(python, (0, 0))
    stamp = tmp_path / "venv" / ".installed-for-demo"
    stamp.touch()
    assert "install.py" not in make("-n", "demo").stdout
    os.utime(stamp, (1, 1))
    assert "install.py" in make("-n", "demo").stdout
    stamp.touch()
    python.unlink()
    assert "install.py" in make("-n", "demo").stdout


def test_the_demo_installs_its_own_packages_and_the_tests_all(
    make: Make, tmp_path: Path
) -> None:
    program(tmp_path / "venv" / "bin" / "python", "exit 0")
    in_demo, in_test = make("-n", "demo").stdout, make("-n", "test").stdout
    assert "install.py dev/requirements-demo.txt" in in_demo
    assert "install.py dev/requirements.txt" not in in_demo
    assert "install.py dev/requirements.txt" in in_test


def test_installing_shows_how_far_it_is_and_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pip = "for n in $(seq 40); do echo Collecting a==$n; done; echo Installing all"
    monkeypatch.setattr(sys, "executable", str(program(tmp_path / "python", pip)))
    lock = ROOT / "dev" / "requirements-demo.txt"
    assert install.main(lock) == 0
    said = capfd.readouterr().out
    assert re.search(r"Installing the \d+ packages of .*MB to download", said)
    assert re.search(r"^  20 of \d+\n  40 of \d+\n  All are here", said, re.M)


def test_who_installs_without_a_network_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    python = program(tmp_path / "python", "echo no route >&2; exit 7")
    monkeypatch.setattr(sys, "executable", str(python))
    assert install.main(ROOT / "dev" / "requirements-demo.txt") == 1
    said = capfd.readouterr().err
    assert said.startswith("no route\nThe packages could not be installed;")
