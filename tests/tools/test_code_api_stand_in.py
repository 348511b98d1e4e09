"""What the stand-in has for the code API: a /mnt/data for each kernel, large cells."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from code_api_client import CodeApi, named
from e2b_code_interpreter import Sandbox
from local_e2b import REMEMBERED_CHARS, LocalE2B
from local_e2b_kernels import KernelSettings, own_mount_command

from conftest import E2B_KEY, Service, e2b_at, http

pytestmark = pytest.mark.usefixtures("untraced")
needs_own_mount = pytest.mark.skipif(
    not own_mount_command(), reason="this machine allows no mount namespace"
)


@pytest.fixture
def create(
    kernels_ahead_e2b: LocalE2B, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Sandbox]]:
    for name, value in {
        **e2b_at(kernels_ahead_e2b.url),
        "E2B_API_KEY": E2B_KEY,
    }.items():
        monkeypatch.setenv(name, value)
    made: list[Sandbox] = []

    def create() -> Sandbox:
        made.append(Sandbox.create(timeout=60))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


def printed(sandbox: Sandbox, code: str) -> str:
    return "".join(sandbox.run_code(code).logs.stdout)


@needs_own_mount
def test_each_kernel_has_a_mnt_of_its_own(create: Callable[[], Sandbox]) -> None:
    with ThreadPoolExecutor() as threads:
        one, two = threads.map(lambda _: create(), range(2))
    write = (
        "import os; os.makedirs('/mnt/data', exist_ok=True); open('/mnt/data/a', 'w')"
    )
    printed(one, write)
    exists = "import os; print(os.path.exists('/mnt/data/a'))"
    assert [printed(each, exists) for each in (one, two)] == ["True\n", "False\n"]
    assert not Path("/mnt/data/a").exists()


def test_its_path_begins_with_its_own_python(create: Callable[[], Sandbox]) -> None:
    path = printed(create(), "import os; print(os.environ['PATH'])")
    assert path.startswith(f"{Path(sys.executable).parent}:")


def test_a_cell_is_taken_up_to_10_mib(create: Callable[[], Sandbox]) -> None:
    sandbox = create()
    printed(sandbox, "pass")  # takes the lines that come before a first cell
    # As JSON, with the quotes around it.
    most = 10 * 1024 * 1024 - 2
    assert not sandbox.run_code("#" + "x" * (most - 1)).error
    errors: list[Any] = []
    sandbox.run_code("#" + "x" * most, on_error=errors.append)
    names = [error.name for error in errors]
    assert names == ["WebSocketError", "UnexpectedEndOfExecution"]
    assert printed(sandbox, "print(1)") == "1\n"


def test_a_body_of_30_mb_is_taken_and_forgotten(kernels_ahead_e2b: LocalE2B) -> None:
    body = {"code": "x" * 30_000_000}
    answer = requests.post(f"{kernels_ahead_e2b.url}/execute", json=body, timeout=30)
    assert answer.status_code == 502
    [request] = [
        one
        for one in kernels_ahead_e2b.state()["requests"]
        if one["kind"] == "run" and one["body"].get("code_chars") == 30_000_000
    ]
    assert len(request["body"]["code"]) == REMEMBERED_CHARS


def test_without_mounts_the_path_is_replaced(tmp_path: Path) -> None:
    with LocalE2B(kernels=KernelSettings(own_mount=False)) as local:
        service = Service(e2b_at(local.url) | {"FILES_DIR": str(tmp_path)})
        try:
            service.wait_until_ready()
            api = CodeApi(service)
            ref = api.upload("a.txt", b"1\n")
            reply = api.exec("pwd; cat /mnt/data/a.txt; cp a.txt b.txt", files=[ref])
            assert (reply["stdout"], reply["stderr"]) == ("/mnt/data\n1\n", "")
            assert api.download(named(reply)["b.txt"]) == b"1\n"
        finally:
            http.close()
            service.stop()
