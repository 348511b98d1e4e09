"""Files by the real SDK, and what of its insides sandboxes/files.py rests on.

What an exec makes of a transfer's faults is in tests/code_api/test_code_api_faults.py.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from local_e2b import LocalE2B

from config import Config
from conftest import E2B_KEY, of_kind, use
from sandboxes.files import Cut, read_file, write_files
from sandboxes.sandbox import Sandbox, SandboxGone, Unavailable

DATA = os.urandom(3_000_000)

pytestmark = pytest.mark.usefixtures("direct")


@pytest.fixture
def e2b(kernels_ahead_e2b: LocalE2B, monkeypatch: pytest.MonkeyPatch) -> LocalE2B:
    return use(kernels_ahead_e2b, monkeypatch)


@pytest.fixture
def sandbox(e2b: LocalE2B) -> Iterator[Sandbox]:
    sandbox = Sandbox(Config(e2b_api_key=E2B_KEY))
    sandbox.create(lifetime_s=60, budget_s=10)
    yield sandbox
    e2b.set_script({})
    sandbox.kill()


def read(sandbox: Sandbox, path: str, limit_s: float = 10) -> bytes:
    pieces: list[bytes] = []
    read_file(sandbox, path, pieces.append, limit_s)
    return b"".join(pieces)


def asked(e2b: LocalE2B, sandbox: Sandbox, kind: str) -> list[dict[str, Any]]:
    return [one for one in of_kind(e2b, kind) if one["sandbox_id"] == sandbox.id]


def test_several_files_are_one_request_and_none_is_none(
    e2b: LocalE2B, sandbox: Sandbox
) -> None:
    contents = {"/mnt/data/a": DATA, "/mnt/data/b/ü c": b"", "/mnt/data/d": b"1"}
    write_files(sandbox, {}, 10)
    write_files(sandbox, {path: io.BytesIO(data) for path, data in contents.items()}, 9)
    assert len(asked(e2b, sandbox, "write")) == 1
    assert {path: read(sandbox, path) for path in contents} == contents


def test_what_is_read_is_not_asked_for_compressed(
    e2b: LocalE2B, sandbox: Sandbox
) -> None:
    """The SDK asks for gzip, which takes 16 times as long.

    When this fails, the client that the SDK reads a stream with has moved."""
    write_files(sandbox, {"/mnt/data/a": io.BytesIO(DATA)}, 10)
    assert read(sandbox, "/mnt/data/a") == DATA
    [request] = asked(e2b, sandbox, "read")
    assert request["headers"]["accept-encoding"] == "identity"


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_after_a_failure_nobody_asks_whether_the_sandbox_lives(
    e2b: LocalE2B, sandbox: Sandbox, fault: str
) -> None:
    """The SDK would, without a limit of ours."""
    write_files(sandbox, {"/mnt/data/a": io.BytesIO(DATA)}, 10)
    e2b.set_script({"write": {"fault": fault}, "read": {"fault": fault}})
    with pytest.raises(Cut):
        write_files(sandbox, {"/mnt/data/b": io.BytesIO(DATA)}, 10)
    with pytest.raises(Unavailable):
        read(sandbox, "/mnt/data/a")
    assert not asked(e2b, sandbox, "health")


def test_a_sandbox_that_is_gone_is_said_so(e2b: LocalE2B, sandbox: Sandbox) -> None:
    e2b.set_script({"write": {"fault": "gone"}})
    with pytest.raises(SandboxGone):
        write_files(sandbox, {"/mnt/data/b": io.BytesIO(DATA)}, 10)


@pytest.mark.parametrize("fault", ["stall", "hang"])
def test_the_limit_is_exact(e2b: LocalE2B, sandbox: Sandbox, fault: str) -> None:
    write_files(sandbox, {"/mnt/data/a": io.BytesIO(DATA)}, 10)
    e2b.set_script({"write": {"fault": fault}, "read": {"fault": fault}})
    for transfer in (
        lambda: write_files(sandbox, {"/mnt/data/b": io.BytesIO(bytes(10**8))}, 1),
        lambda: read(sandbox, "/mnt/data/a", limit_s=1),
    ):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            transfer()
        assert 0.9 < time.monotonic() - started < 1.5


def test_what_takes_the_bytes_may_end_the_transfer(
    e2b: LocalE2B, sandbox: Sandbox
) -> None:
    write_files(sandbox, {"/mnt/data/a": io.BytesIO(DATA)}, 10)

    def take(data: bytes) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        read_file(sandbox, "/mnt/data/a", take, 10)


def test_a_stop_ends_a_read_at_once(e2b: LocalE2B, sandbox: Sandbox) -> None:
    write_files(sandbox, {"/mnt/data/a": io.BytesIO(DATA)}, 10)
    e2b.set_script({"read": {"fault": "stall"}})
    begun = threading.Event()
    errors: list[Exception] = []

    def read_on() -> None:
        try:
            read_file(sandbox, "/mnt/data/a", lambda data: begun.set(), 20)
        except Unavailable as exc:
            errors.append(exc)

    reader = threading.Thread(target=read_on)
    reader.start()
    assert begun.wait(10)
    started = time.monotonic()
    sandbox.stop()
    reader.join()
    assert time.monotonic() - started < 1
    assert errors
