"""The stand-in's file API answers what E2B's envd does, to the unmodified SDK."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import pytest
import requests
from e2b.exceptions import (
    AuthenticationException,
    FileNotFoundException,
    InvalidArgumentException,
    SandboxException,
)
from e2b.sandbox.filesystem.filesystem import WriteEntry
from e2b_code_interpreter import Sandbox
from local_e2b import LocalE2B

from conftest import E2B_KEY, e2b_at

DATA = os.urandom(700_000)


@pytest.fixture(scope="module")
def sandbox(kernels_ahead_e2b: LocalE2B) -> Iterator[Sandbox]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in e2b_at(kernels_ahead_e2b.url).items():
            patch.setenv(name, value)
        sandbox = Sandbox.create(timeout=60, api_key=E2B_KEY)
        yield sandbox
        sandbox.kill()


def printed(sandbox: Sandbox, code: str) -> str:
    execution = sandbox.run_code(f"import os; print({code})")
    assert not execution.error
    return "".join(execution.logs.stdout)


def ask(
    sandbox: Sandbox, e2b: LocalE2B, method: str = "GET", path: str = "", **more: str
) -> requests.Response:
    headers = {
        "e2b-sandbox-id": sandbox.sandbox_id,
        "x-access-token": str(sandbox._envd_access_token),
        "accept-encoding": "identity",
        **more,
    }
    query = {"path": path, "username": "root"}
    url = f"{e2b.url}/files"
    return requests.request(method, url, params=query, headers=headers, timeout=30)


@pytest.mark.parametrize("is_raw", [False, True])
def test_what_is_written_is_read_by_the_sdk_and_by_the_kernel(
    sandbox: Sandbox, is_raw: bool
) -> None:
    paths = [f"/mnt/data/{is_raw}/a", f"/mnt/data/{is_raw}/b c", f"{is_raw}.txt"]
    contents = [DATA, b"", b"--x\r\n\r\n--"]
    entries = [
        WriteEntry(path=path, data=io.BytesIO(data))
        for path, data in zip(paths, contents, strict=True)
    ]
    written = sandbox.files.write_files(entries, use_octet_stream=is_raw)
    assert [one.path for one in written] == [*paths[:2], f"/home/user/{is_raw}.txt"]
    for path, data in zip(paths, contents, strict=True):
        assert sandbox.files.read(path, format="bytes") == data
    sizes = printed(sandbox, f"[os.path.getsize(path) for path in {paths!r}]")
    assert sizes == f"{[len(data) for data in contents]}\n"


def test_a_file_that_is_there_is_written_over_in_place(sandbox: Sandbox) -> None:
    inodes = []
    for data in (b"long", b"x"):
        sandbox.files.write("/mnt/data/over", data)
        inodes.append(printed(sandbox, "os.stat('/mnt/data/over').st_ino"))
    assert sandbox.files.read("/mnt/data/over") == "x"
    assert inodes[0] == inodes[1]


def test_links_are_followed(sandbox: Sandbox) -> None:
    sandbox.files.write("/mnt/data/target", b"1")
    printed(sandbox, "os.symlink('target', '/mnt/data/link')")
    assert sandbox.files.read("/mnt/data/link") == "1"


def test_what_is_refused(sandbox: Sandbox, kernels_ahead_e2b: LocalE2B) -> None:
    sandbox.files.write("/mnt/data/there", b"1")
    with pytest.raises(InvalidArgumentException, match="path is a directory"):
        sandbox.files.write("/mnt/data", b"1")
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        sandbox.files.read("/mnt/data")
    with pytest.raises(FileNotFoundException):
        sandbox.files.read("/mnt/data/none")
    with pytest.raises(AuthenticationException, match="looking up user"):
        sandbox.files.write("/mnt/data/a", b"1", user="nobody-else")
    wrong_token = {"x-access-token": "wrong"}
    answer = ask(sandbox, kernels_ahead_e2b, path="/mnt/data/there", **wrong_token)
    assert (answer.status_code, answer.json()["code"]) == (401, 401)
    text = {"content-type": "text/plain"}
    answer = ask(sandbox, kernels_ahead_e2b, "POST", "/mnt/data/text", **text)
    assert answer.status_code == 400
    with pytest.raises(SandboxException, match="error writing file"):
        sandbox.files.write("/mnt/data/there/below", b"1")
    other = {"e2b-sandbox-id": "i0123456789"}
    answer = ask(sandbox, kernels_ahead_e2b, path="/mnt/data/there", **other)
    assert answer.status_code == 502


def test_gzip_is_for_those_who_ask_and_ranges_are_served(
    sandbox: Sandbox, kernels_ahead_e2b: LocalE2B
) -> None:
    sandbox.files.write("/mnt/data/zeros", bytes(100_000))
    plain = ask(sandbox, kernels_ahead_e2b, path="/mnt/data/zeros")
    asked = {"accept-encoding": "gzip"}
    packed = ask(sandbox, kernels_ahead_e2b, path="/mnt/data/zeros", **asked)
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert plain.content == packed.content == bytes(100_000)
    wanted = {"range": "bytes=10-19"}
    part = ask(sandbox, kernels_ahead_e2b, path="/mnt/data/zeros", **wanted)
    assert (part.status_code, part.content) == (206, bytes(10))
