"""What LibreChat's read_file sends is answered without a sandbox, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from code_api_client import CodeApi, Ref
from local_e2b import LocalE2B
from local_e2b_kernels import own_mount_command

from conftest import Service, e2b_at, of_kind

pytestmark = pytest.mark.skipif(
    not own_mount_command(), reason="this machine allows no mount namespace"
)
TEXT = "a,b\r\n1,\u00e9\x1b[0m\0\n"


@pytest.fixture(scope="module")
def api(
    start_shared: Callable[..., Service],
    kernels_ahead_e2b: LocalE2B,
    tmp_path_factory: pytest.TempPathFactory,
) -> CodeApi:
    settings = {"FILES_DIR": str(tmp_path_factory.mktemp("files"))}
    return CodeApi(start_shared(**e2b_at(kernels_ahead_e2b.url), **settings))


@pytest.fixture(scope="module")
def ref(api: CodeApi) -> Ref:
    return api.upload("d/my sales.csv", TEXT.encode())


def creates(e2b: LocalE2B) -> int:
    return len(of_kind(e2b, "create"))


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_named_input_is_printed_without_a_sandbox(
    api: CodeApi, kernels_ahead_e2b: LocalE2B, ref: Ref, end: str
) -> None:
    before = creates(kernels_ahead_e2b)
    reply = api.exec(f"cat '/mnt/data/d/my sales.csv'{end}", files=[ref])
    assert creates(kernels_ahead_e2b) == before
    assert reply.pop("session_id")
    in_a_sandbox = api.exec("cat '/mnt/data/d/my sales.csv' ", files=[ref])
    assert creates(kernels_ahead_e2b) == before + 1
    del in_a_sandbox["session_id"]
    assert reply == in_a_sandbox
    assert reply == {"stdout": TEXT, "stderr": "", "files": []}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no end",
        b"\xff\xfe\x00 no text \xc3",
        "\u00e9".encode() * 100_000,  # a character in the middle of a piece
    ],
)
def test_whatever_it_holds_it_reads_as_in_a_sandbox(api: CodeApi, data: bytes) -> None:
    ref = api.upload("a", data)
    given, again = (
        api.exec(code, files=[ref]) for code in ("cat '/mnt/data/a'", "cat /mnt/data/a")
    )
    for reply in (given, again):
        del reply["session_id"]
    assert given == again


def test_ten_mib_are_read_at_once(api: CodeApi, kernels_ahead_e2b: LocalE2B) -> None:
    text = "\u00e9" * 5 * 1024 * 1024
    ref = api.upload("a", text.encode())
    before = creates(kernels_ahead_e2b)
    started = time.monotonic()
    reply = api.exec("cat '/mnt/data/a'", files=[ref])
    assert time.monotonic() - started < 15
    assert reply["stdout"] == text
    assert creates(kernels_ahead_e2b) == before


def test_an_output_is_read_by_its_first_name(
    api: CodeApi, kernels_ahead_e2b: LocalE2B
) -> None:
    [output] = api.exec("echo 1 >'a b.txt'")["files"]
    before = creates(kernels_ahead_e2b)
    mounted = {**output, "name": "a_b-1.txt"}
    for name in ("a b.txt", "a_b-1.txt"):
        reply = api.exec(f"cat '/mnt/data/{name}'", files=[mounted])
        assert reply["stdout"] == "1\n"
    assert creates(kernels_ahead_e2b) == before


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("cat '/mnt/data/d/my sales.csv' | wc -l", "2\n"),
        ("cat '/mnt/data/d/my sales.csv'; echo 1", TEXT + "1\n"),
        ("cat '/mnt/data/d/my sales.csv' '/mnt/data/d/my sales.csv'", TEXT * 2),
        ("cat '/mnt/data/d/my sales.csv'\necho 1", TEXT + "1\n"),
        ("cat 'd/my sales.csv'", TEXT),
        ("cat '/mnt/data/./d/my sales.csv'", TEXT),
        ("cat '/mnt/data/other.csv'", ""),
        ("cat '/etc/hostname' >/dev/null", ""),
    ],
)
def test_any_other_script_has_a_sandbox(
    api: CodeApi, kernels_ahead_e2b: LocalE2B, ref: Ref, code: str, stdout: str
) -> None:
    before = creates(kernels_ahead_e2b)
    assert api.exec(code, files=[ref])["stdout"] == stdout
    assert creates(kernels_ahead_e2b) == before + 1


def test_another_language_has_a_sandbox(
    api: CodeApi, kernels_ahead_e2b: LocalE2B, ref: Ref
) -> None:
    before = creates(kernels_ahead_e2b)
    reply = api.exec("cat '/mnt/data/d/my sales.csv'", "py", files=[ref])
    assert "SyntaxError" in reply["stderr"]
    assert creates(kernels_ahead_e2b) == before + 1


def test_what_else_was_left_out_is_still_said(api: CodeApi, ref: Ref) -> None:
    gone = {**ref, "id": "a" * 21, "name": "gone.csv"}
    reply = api.exec("cat '/mnt/data/d/my sales.csv'", files=[ref, gone])
    assert reply["stdout"] == TEXT
    assert reply["stderr"] == "input gone.csv was left out: it is not there any more\n"


def test_a_file_that_is_gone_is_missing(api: CodeApi, ref: Ref) -> None:
    gone = {**ref, "id": "a" * 21}
    reply = api.exec("cat '/mnt/data/d/my sales.csv'", files=[gone])
    assert reply["stdout"] == ""
    assert "No such file or directory" in reply["stderr"]


def test_an_input_that_is_a_folder_too_is_read_as_in_a_sandbox(api: CodeApi) -> None:
    refs = [api.upload("a", b"file"), api.upload("a/b", b"inside")]
    for name in ("a", "a/b"):
        given = api.exec(f"cat '/mnt/data/{name}'", files=refs)
        again = api.exec(f"cat /mnt/data/{name}", files=refs)
        assert (given["stdout"], given["stderr"]) == (again["stdout"], again["stderr"])
