"""What the tests share: E2B's stand-in, and the
service as it is shipped, on a port of its own."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import launch
import pytest
import requests
from builders import is_running, stdout
from launch import free_port
from local_e2b import LocalE2B

if TYPE_CHECKING:
    from sandboxes.pool import Pool

ROOT = Path(__file__).parent
E2B_KEY = "e2b_0123456789abcdef0123456789abcdef01234567"
OK_RUN = {"events": [stdout("ok\n")]}


# So that none of them is what one worker still does when the others have ended.
LONGEST_FILES = (
    "test_code_api_client.py",
    "test_faults.py",
    "test_made_ahead.py",
    "test_kept_sandboxes.py",
    "test_pool.py",
    "test_lost_creates.py",
    "test_attacks.py",
    "test_soak.py",
    "test_code_api_faults.py",
    "test_code_api.py",
    "test_process.py",
    "test_slow_clients.py",
    "test_local_e2b.py",
    "test_hostile_results.py",
    "test_page.py",
    "test_packaging.py",
    "test_replicas.py",
    "test_demo.py",
    "test_sessions.py",
    "test_sandbox.py",
    "test_librechat.py",
    "test_shrinking.py",
    "test_openapi.py",
    "test_stream.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, whatever their names are."""

    def place(item: pytest.Item) -> int:
        name = item.path.name
        return LONGEST_FILES.index(name) if name in LONGEST_FILES else len(items)

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What is skipped in a file for one reason is one line of the summary."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        path, _, reason = report.longrepr
        report.longrepr = (path, 1, reason)
    return report


http = requests.Session()
http.trust_env = False  # nothing here goes through a proxy


def service_modules() -> set[str]:
    """The Python files of the service, as paths in the repository."""
    paths = [*ROOT.glob("*.py")]
    for package in ROOT.glob("*/__init__.py"):
        paths += package.parent.glob("*.py")
    names = {path.relative_to(ROOT).as_posix() for path in paths}
    return {n for n in names if not n.startswith(("test_", "conftest"))}


class Service:
    """gunicorn with the shipped configuration, and the log that it writes."""

    def __init__(
        self, environ: dict[str, str], command: tuple[str, ...] = ("proxy:app",)
    ) -> None:
        self.port = int(environ.get("PORT") or free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        own = {"E2B_API_KEY": E2B_KEY, "PORT": str(self.port)}
        self.process = launch.start(
            ("-m", "gunicorn", *command),
            launch.clean_environ() | own | environ,
            subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._more:
                self.lines.append(line.decode("utf-8", "replace"))
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def wait_for_log(self, text: str, timeout_s: float = 20, after: int = 0) -> str:
        """Wait for a line with `text`, not among the first `after`; returns it."""

        def found() -> str | None:
            return next((line for line in self.lines[after:] if text in line), None)

        with self._more:
            self._more.wait_for(lambda: found() or self._ended, timeout_s)
            line = found()
        assert line, f"no line with {text!r} in the log:\n{''.join(self.lines)}"
        return line

    def wait_until_ready(self, timeout_s: float = launch.START_TIMEOUT_S) -> None:
        """It listens before its worker has been
        started, which lasts on a busy machine."""
        launch.wait_until(lambda: launch.is_healthy(self.port), self.process, timeout_s)

    def requests_logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if '"request_id"' in line]

    def execute(self, code: str = "1", **fields: Any) -> requests.Response:
        return requests.post(
            f"{self.url}/execute", json={"code": code, **fields}, timeout=100
        )

    def stop(self, timeout_s: float = 20) -> None:
        has_ended = launch.end(self.process, timeout_s)
        self._reader.join()
        if self.process.stdout:
            self.process.stdout.close()
        assert has_ended, "".join(self.lines)


def of_kind(e2b: LocalE2B, kind: str) -> list[dict[str, Any]]:
    """The requests that E2B got, of one kind: "create", "run", "kill" and so on."""
    return [request for request in e2b.state()["requests"] if request["kind"] == kind]


def text_of(response: requests.Response) -> str:
    """The text of a reply of POST /execute."""
    assert response.status_code == 200, response.text
    return str(response.json()[0][0]["text"])


def urls_of(response: requests.Response) -> list[str]:
    return [part["image_url"]["url"] for part in response.json()[1]["content"]]


@pytest.fixture(scope="module")
def untraced() -> Iterator[None]:
    """Processes that are started do not measure
    coverage: a third of a service's start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture
def scripted_e2b() -> Iterator[LocalE2B]:
    """E2B without kernels, for one test: `set_script` says what it answers."""
    with LocalE2B(script={"run": OK_RUN}) as e2b:
        yield e2b


@pytest.fixture(scope="session")
def kernel_e2b() -> Iterator[LocalE2B]:
    """E2B with real Jupyter kernels, for all tests."""
    with LocalE2B() as e2b:
        yield e2b


@pytest.fixture(scope="module")
def real_kernels(kernel_e2b: LocalE2B) -> Iterator[None]:
    """The SDK in this process asks for sandboxes with real kernels."""
    with pytest.MonkeyPatch.context() as patch:
        for name, url in e2b_at(kernel_e2b.url).items():
            patch.setenv(name, url)
        yield


@pytest.fixture(scope="module")
def e2b() -> Iterator[LocalE2B]:
    """E2B for all tests of a file: real kernels, until `set_script` says otherwise."""
    with LocalE2B() as local:
        yield local


@pytest.fixture(scope="module")
def kernels_ahead_e2b() -> Iterator[LocalE2B]:
    """E2B with real kernels, two of them started ahead, for all tests of a file."""
    with LocalE2B(ahead=2) as local:
        yield local


@pytest.fixture
def runs_print_ok(e2b: LocalE2B) -> None:
    """`e2b` answers each run with "ok", until the test says otherwise."""
    e2b.set_script({"run": OK_RUN})


@pytest.fixture(scope="module")
def start_shared(e2b: LocalE2B) -> Iterator[Callable[..., Service]]:
    """`start_shared(**settings)` starts a service against `e2b`, for all tests of a
    file."""
    started: list[Service] = []

    def start(**environ: str) -> Service:
        started.append(Service(e2b_at(e2b.url) | environ))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    http.close()  # or gunicorn would wait for what may still come
    for service in started:
        service.process.terminate()
    for service in started:
        service.stop()


@pytest.fixture(scope="module")
def shared_service(start_shared: Callable[..., Service]) -> Service:
    """The service with default settings, against `e2b`, for all tests of a file."""
    return start_shared()


@pytest.fixture
def checked_service(
    runs_print_ok: None, e2b: LocalE2B, shared_service: Service
) -> Iterator[Service]:
    """`shared_service`, which has no sandbox left after the test, and has not logged
    its key for E2B."""
    at = len(shared_service.lines)
    yield shared_service
    e2b.wait_for(lambda state: state["alive"] == 0, 15)
    assert E2B_KEY not in "".join(shared_service.lines[at:])


@contextmanager
def one_run_under_way(e2b: LocalE2B, service: Service) -> Iterator[None]:
    """The only slot of the service is taken for as long as the block lasts."""
    e2b.wait_for(lambda state: state["alive"] == 0)
    e2b.set_script({"run": {"fault": "silent"}})
    caller = threading.Thread(target=service.execute, kwargs={"timeout": 20})
    caller.start()
    try:
        e2b.wait_for(is_running)
        yield
    finally:
        for sandbox in e2b.state()["sandboxes"]:
            if sandbox["alive"]:
                address = f"{e2b.url}/sandboxes/{sandbox['id']}"
                http.delete(address, headers={"X-API-Key": E2B_KEY}, timeout=30)
        caller.join()


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK in this process goes through no proxy, and only where a test says."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "E2B_DEBUG", "E2B_DOMAIN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def use(e2b: LocalE2B, monkeypatch: pytest.MonkeyPatch) -> LocalE2B:
    """Have the SDK in this process ask this one."""
    for name, url in e2b_at(e2b.url).items():
        monkeypatch.setenv(name, url)
    return e2b


@pytest.fixture
def direct_e2b(
    direct: None, scripted_e2b: LocalE2B, monkeypatch: pytest.MonkeyPatch
) -> LocalE2B:
    """E2B without kernels, which the SDK in this process asks."""
    return use(scripted_e2b, monkeypatch)


@pytest.fixture
def make_pool(direct_e2b: LocalE2B) -> Iterator[Callable[..., Pool]]:
    """Make pools in this process, with these settings; `direct_e2b` is their E2B."""
    from pools import pools_at  # which imports from this module

    with pools_at(direct_e2b) as make:
        yield make


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for the callers of a test."""
    with ThreadPoolExecutor(20) as executor:
        yield executor


def e2b_at(url: str) -> dict[str, str]:
    return {"E2B_API_URL": url, "E2B_SANDBOX_URL": url}


@pytest.fixture
def start_service(scripted_e2b: LocalE2B) -> Iterator[Callable[..., Service]]:
    """`start_service(**settings)` starts a service for one test, against
    `scripted_e2b` unless the settings say otherwise."""
    started: list[Service] = []

    def start(**environ: str) -> Service:
        service = Service(e2b_at(scripted_e2b.url) | environ)
        started.append(service)
        service.wait_until_ready()
        return service

    yield start
    for service in started:
        service.stop()


@pytest.fixture
def default_service(start_service: Callable[..., Service]) -> Service:
    """The service with default settings, against `scripted_e2b`."""
    return start_service()
