"""What the code API survives: E2B's faults at each step, full disks, restarts, lies."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests
from code_api_client import ID, CodeApi, named
from local_e2b import LocalE2B
from local_e2b_kernels import own_mount_command

from conftest import Service, e2b_at, http

needs_own_mount = pytest.mark.skipif(
    not own_mount_command(), reason="this machine allows no mount namespace"
)
REAL = {"kernel": True}
ENDED = {"ended": "ok"}


def reported(*lines: Any, **more: Any) -> dict[str, Any]:
    """A scripted run whose sandbox reports these lines."""
    text = "".join(
        line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines
    )
    return {"events": [{"type": "stdout", "text": text}], **more}


@pytest.fixture(scope="module")
def files_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def code_api_service(start_shared: Callable[..., Service], files_dir: Path) -> Service:
    return start_shared(
        FILES_DIR=str(files_dir), RUN_TIMEOUT_S="2", MAX_CONCURRENT_RUNS="8"
    )


@pytest.fixture(scope="module")
def api(code_api_service: Service) -> CodeApi:
    return CodeApi(code_api_service)


@pytest.fixture
def script(e2b: LocalE2B) -> Iterator[Callable[..., None]]:
    """Say what E2B answers; afterwards every
    sandbox is gone, and E2B is itself again."""

    def set_script(**answers: Any) -> None:
        e2b.set_script(answers)

    yield set_script
    e2b.set_script({})
    e2b.wait_for(lambda state: not state["alive"])


class Counted:
    """How many requests of each kind came to E2B meanwhile."""

    def __init__(self, e2b: LocalE2B) -> None:
        self._e2b = e2b
        self._before = len(e2b.state()["requests"])

    def __call__(self, kind: str) -> int:
        requests_ = self._e2b.state()["requests"][self._before :]
        return sum(request["kind"] == kind for request in requests_)


@pytest.fixture
def count(e2b: LocalE2B) -> Counted:
    return Counted(e2b)


def timed_exec(
    api: CodeApi, code: str, files: Any = ()
) -> tuple[dict[str, Any], float]:
    """The reply, and the seconds that it took."""
    started = time.monotonic()
    return api.exec(code, files=files), time.monotonic() - started


# --- before the script ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("create", "stderr"),
    [
        ({"status": 429, "body": {"code": 429, "message": "secret"}}, "at its limit"),
        ({"status": 500, "body": "secret"}, "E2B failed"),
        (
            {"status": 401, "body": {"code": 401, "message": "secret"}},
            "refused this service's key",
        ),
        ({"fault": "reset"}, "could not be reached"),
    ],
)
def test_a_sandbox_that_cannot_be_made_is_a_line_in_stderr(
    api: CodeApi, script: Callable[..., None], count: Counted, create: Any, stderr: str
) -> None:
    script(create=create, run={})
    reply = api.exec("echo hi")
    assert stderr in reply["stderr"]
    assert "secret" not in reply["stderr"]
    assert (reply["stdout"], reply["files"], count("run")) == ("", [], 0)


def test_a_create_that_hangs_ends_within_the_limit_and_10_s(
    api: CodeApi, script: Callable[..., None]
) -> None:
    script(create={"fault": "hang"})
    reply, took_s = timed_exec(api, "echo hi")
    assert "did not answer in time" in reply["stderr"]
    assert took_s < 13


def test_a_sandbox_gone_before_its_first_cell_is_replaced_once(
    api: CodeApi, script: Callable[..., None], count: Counted
) -> None:
    script(run=[{"fault": "gone"}, reported({"stdout": "hi\n"}, ENDED)])
    assert api.exec("echo hi")["stdout"] == "hi\n"
    assert (count("create"), count("run")) == (2, 2)


def test_two_sandboxes_that_are_gone_are_a_line_in_stderr(
    api: CodeApi, script: Callable[..., None], count: Counted
) -> None:
    script(run={"fault": "gone"})
    reply = api.exec("echo hi")
    assert "the code did not run" in reply["stderr"]
    assert (count("create"), count("run")) == (2, 2)


# --- while files go in ----------------------------------------------------------------

NOT_WRITTEN = "The files could not be put into the sandbox, so the code did not run"
LARGE = os.urandom(3_000_000)
RAN = reported({"stdout": "ran\n"}, ENDED)


@pytest.mark.parametrize(
    "answer",
    [{"fault": fault} for fault in ("cut", "reset", "gone", "not_found")],
    ids=repr,
)
def test_a_write_that_is_cut_is_tried_once_more_in_a_new_sandbox(
    api: CodeApi, script: Callable[..., None], count: Counted, answer: dict[str, Any]
) -> None:
    ref = api.upload("a.bin", LARGE)
    script(write=[answer, {}], run=REAL)
    reply = api.exec("sha256sum <a.bin", files=[ref])
    assert reply["stdout"].split()[0] == hashlib.sha256(LARGE).hexdigest()
    assert reply["stderr"] == ""
    assert (count("create"), count("write"), count("run")) == (2, 2, 1)


def test_a_write_that_is_cut_twice_is_a_line_in_stderr(
    api: CodeApi, script: Callable[..., None], count: Counted
) -> None:
    ref = api.upload("a.bin", LARGE)
    script(write={"fault": "cut"}, run=RAN)
    reply = api.exec("true", files=[ref])
    problem = "the connection failed."
    assert reply["stderr"] == f"Error: {NOT_WRITTEN}: {problem}\n"
    assert (reply["stdout"], reply["files"]) == ("", [])
    assert (count("create"), count("write"), count("run")) == (2, 2, 0)


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (400, "E2B refused their paths."),
        (401, "E2B refused this service."),
        (403, "E2B refused this service."),
        (429, "E2B failed."),
        (500, "E2B failed."),
        (507, "its disk is full."),
    ],
)
def test_a_write_that_is_refused_is_one_line_and_nothing_runs(
    api: CodeApi, script: Callable[..., None], count: Counted, status: int, problem: str
) -> None:
    ref = api.upload("a.bin", LARGE)
    script(write={"status": status, "body": {"message": "secret"}}, run=RAN)
    reply = api.exec("true", files=[ref])
    assert reply["stderr"] == f"Error: {NOT_WRITTEN}: {problem}\n"
    assert (reply["stdout"], reply["files"]) == ("", [])
    assert (count("create"), count("write"), count("run")) == (1, 1, 0)


@pytest.mark.parametrize("body", ["no JSON", "[]", "x" * 3_000_000], ids=len)
def test_a_write_whose_answer_is_none_is_taken_for_cut(
    api: CodeApi, script: Callable[..., None], count: Counted, body: str
) -> None:
    ref = api.upload("a.bin", LARGE)
    script(write=[{"status": 200, "body": body}, {}], run=REAL)
    assert api.exec("wc -c <a.bin", files=[ref])["stdout"] == "3000000\n"
    assert (count("create"), count("write")) == (2, 2)


def test_a_write_that_stalls_ends_at_the_deadline(
    api: CodeApi, script: Callable[..., None], count: Counted
) -> None:
    ref = api.upload("a.bin", os.urandom(9_000_000))
    script(write=[{"fault": "stall"}, {"fault": "hang"}], run=RAN)
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(timed_exec, api, "true", [ref]) for _ in range(2)]:
            reply, took_s = done.result()
            problem = "E2B did not take them in time."
            assert reply["stderr"] == f"Error: {NOT_WRITTEN}: {problem}\n"
            assert 11.8 < took_s < 13.5
    assert (count("create"), count("write"), count("run")) == (2, 2, 0)


def test_a_write_may_take_as_long_as_its_files_are_large(
    api: CodeApi, script: Callable[..., None]
) -> None:
    """13 s, where an exec with small files has 12 s in all."""
    ref = api.upload("a.bin", os.urandom(39_000_000))
    script(write={"bytes_per_s": 3_000_000}, run=REAL)
    reply = api.exec("wc -c <a.bin", files=[ref])
    assert (reply["stdout"], reply["stderr"]) == ("39000000\n", "")


def test_a_sandbox_gone_after_its_write_is_replaced_and_gets_all_files_again(
    api: CodeApi, script: Callable[..., None], count: Counted
) -> None:
    ref = api.upload("a.bin", LARGE)
    script(run=[{"fault": "gone"}, REAL])
    assert api.exec("wc -c <a.bin", files=[ref])["stdout"] == "3000000\n"
    assert (count("create"), count("write"), count("run")) == (2, 2, 2)


def test_an_error_of_the_notebook_is_named(
    api: CodeApi, script: Callable[..., None], count: Counted
) -> None:
    error = {"type": "error", "name": "OSError", "traceback": ""}
    full = {"events": [{**error, "value": "[Errno 28] No space left on device"}]}
    script(run=full)
    stderr = api.exec("true")["stderr"]
    problem = "the sandbox failed: OSError: [Errno 28] No space left on device"
    assert stderr == f"Error: {problem}\n"
    assert count("run") == 1


# --- once the script may have begun ---------------------------------------------------


@pytest.mark.parametrize("fault", ["cut", "vanish", "reset", "no_end", "not_json"])
def test_a_script_that_may_have_begun_is_never_run_again(
    api: CodeApi, script: Callable[..., None], count: Counted, fault: str
) -> None:
    script(run=[reported({"stdout": "begun\n"}, fault=fault), reported(ENDED)])
    reply = api.exec("echo begun; sleep 9")
    assert reply["stdout"] == ("" if fault == "reset" else "begun\n")
    assert reply["stderr"]
    assert (count("create"), count("run")) == (1, 1)


@pytest.mark.parametrize("status", [429, 500])
def test_a_refused_run_is_not_sent_again(
    api: CodeApi, script: Callable[..., None], count: Counted, status: int
) -> None:
    script(run={"status": status, "body": "secret"})
    reply = api.exec("true")
    assert "the code did not run" in reply["stderr"]
    assert "secret" not in reply["stderr"]
    assert count("run") == 1


def test_a_sandbox_that_falls_silent_is_given_up_10_s_after_the_limit(
    api: CodeApi, script: Callable[..., None], count: Counted
) -> None:
    script(run=reported({"stdout": "begun\n"}, fault="silent"))
    reply, took_s = timed_exec(api, "echo begun; sleep 99")
    assert 11 < took_s < 16
    assert reply["stdout"] == "begun\n"
    assert reply["stderr"] == "Error: the sandbox did not answer in time\n"
    assert count("run") == 1


SMALL = b64encode(zlib.compress(b"x")).decode()
WRITTEN = (
    {"written_files": 2},
    {"written": "a.bin", "size": 3_000_000},
    {"written": "b", "size": 1},
)


UNREAD = [{"fault": fault} for fault in ("cut", "reset", "gone", "not_found")]
UNREAD += [{"status": status, "body": "secret"} for status in (400, 401, 404, 500)]
# More, and fewer, bytes than the file has.
UNREAD += [{"status": 200, "body": "x" * size} for size in (3_000_001, 2_999_999)]


def is_short(value: object) -> str:
    return repr(value)[:40]


@pytest.mark.parametrize("answer", UNREAD, ids=is_short)
def test_a_file_that_cannot_be_read_is_left_out_and_the_output_stays(
    api: CodeApi,
    script: Callable[..., None],
    count: Counted,
    files_dir: Path,
    answer: dict[str, Any],
) -> None:
    lines = (*WRITTEN, {"of": "b", "packed": SMALL})
    script(run=[reported({"stdout": "hi\n"}, ENDED, *lines)], read=answer)
    reply = api.exec("echo hi; head -c 3000000 /dev/urandom >a.bin; printf x >b")
    assert reply["stdout"] == "hi\n"
    assert reply["stderr"] == "file a.bin was left out: it did not arrive whole\n"
    assert list(named(reply)) == ["b"]
    assert reply["artifact_delivery"]["status"] == "partial"
    assert (count("create"), count("run"), count("read")) == (1, 1, 1)
    assert not list(files_dir.glob(".*"))


@needs_own_mount
def test_a_read_that_fails_leaves_the_other_files(
    api: CodeApi, script: Callable[..., None], count: Counted
) -> None:
    script(read=[{"fault": "cut"}, {}])
    code = "for name in a b c; do head -c 2000000 /dev/urandom >$name; done; echo >d"
    reply = api.exec(code)
    assert sorted(named(reply)) == ["b", "c", "d"]
    assert reply["stderr"] == "file a was left out: it did not arrive whole\n"
    assert (count("create"), count("read")) == (1, 3)


def test_a_read_that_stalls_ends_at_the_deadline(
    api: CodeApi, script: Callable[..., None]
) -> None:
    script(read=[{"fault": "stall"}, {"fault": "hang"}], run=REAL)
    code = "for name in a b; do head -c 2000000 /dev/urandom >$name; done; echo hi"
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(timed_exec, api, code) for _ in range(2)]:
            reply, took_s = done.result()
            assert 11.8 < took_s < 13.5
            assert (reply["stdout"], reply["files"]) == ("hi\n", [])
            for name in "ab":
                line = f"file {name} was left out: it did not arrive whole\n"
                assert line in reply["stderr"]


@pytest.mark.parametrize("kind", ["write", "read"])
def test_a_caller_who_hangs_up_while_a_file_is_carried_frees_the_sandbox(
    code_api_service: Service,
    api: CodeApi,
    script: Callable[..., None],
    count: Counted,
    e2b: LocalE2B,
    files_dir: Path,
    kind: str,
) -> None:
    ref = api.upload("a.bin", LARGE)
    sessions = set(files_dir.iterdir())
    script(**{kind: {"fault": "stall"}}, run=REAL)
    client = HTTPConnection("127.0.0.1", code_api_service.port)
    body = {"lang": "bash", "code": "cp a.bin b.bin", "files": [ref]}
    json_type = {"Content-Type": "application/json"}
    client.request("POST", "/v1/exec", json.dumps(body), json_type)
    e2b.wait_for(lambda state: count(kind))
    client.close()
    e2b.wait_for(lambda state: not state["alive"], 2)
    code_api_service.wait_for_log('"outcome": "cancelled"')
    assert set(files_dir.iterdir()) == sessions


# --- lies, over the wire --------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        [ENDED, ENDED],
        [ENDED, {"of": "a", "packed": "%%"}, {"written": "a", "size": "x"}],
        ["{" * 10 + "\n"],
        ["{" + "x" * 3_000_000],
        [ENDED, {"written": "a", "size": 0}, {"written": "a", "size": 0}],
    ],
    ids=["two ends", "bad types", "no JSON", "endless", "names"],
)
def test_a_report_that_lies_is_said_so(
    api: CodeApi, script: Callable[..., None], files_dir: Path, lines: list[Any]
) -> None:
    script(run=reported({"stdout": "hi\n"}, *lines))
    reply = api.exec("echo hi")
    assert reply["stdout"] == "hi\n"
    assert "the sandbox's report is wrong" in reply["stderr"]
    assert not list(files_dir.glob(".*"))


def test_a_report_without_an_end_is_said_so(
    api: CodeApi, script: Callable[..., None]
) -> None:
    script(run={"events": []})
    stderr = api.exec("true")["stderr"]
    assert stderr == "Error: the sandbox did not report the script's end\n"


def test_a_huge_report_is_dropped_as_it_comes(
    api: CodeApi, script: Callable[..., None]
) -> None:
    script(run={"one_line_bytes": 50_000_000})
    assert "report" in api.exec("true")["stderr"]


# --- the folder -----------------------------------------------------------------------


@pytest.fixture
def on_a_full_disk(
    e2b: LocalE2B, tmp_path: Path
) -> Iterator[tuple[CodeApi, Service, Path]]:
    """A service that can write no file larger
    than 1 MB, which fails as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        service = Service(e2b_at(e2b.url) | {"FILES_DIR": str(tmp_path)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    service.wait_until_ready()
    yield CodeApi(service), service, tmp_path
    http.close()
    service.stop()


@needs_own_mount
def test_a_full_disk_is_said_and_logged_and_nothing_half_written_stays(
    on_a_full_disk: tuple[CodeApi, Service, Path],
) -> None:
    api, service, folder = on_a_full_disk
    response = api.post("/upload", files={"file": ("a", bytes(1_100_000))})
    assert response.status_code == 500
    assert response.json()["error"] == "storage_failed"
    assert "has to check FILES_DIR" in response.json()["message"]
    reply = api.exec("echo hi; head -c 2000000 /dev/urandom >big; echo 1 >small")
    assert reply["stdout"] == "hi\n"
    assert "This service could not store the files" in reply["stderr"]
    assert "File too large" in reply["stderr"]
    assert "file big was left out: it did not arrive whole\n" in reply["stderr"]
    assert list(named(reply)) == ["small"]
    first = service.wait_for_log("FILES_DIR could not")
    after_first = service.lines.index(first) + 1
    assert service.wait_for_log("FILES_DIR could not", after=after_first)
    [session] = folder.iterdir()
    assert len(list(session.iterdir())) == 2


def test_files_outlive_a_restart(
    start_shared: Callable[..., Service],
    code_api_service: Service,
    api: CodeApi,
    files_dir: Path,
) -> None:
    ref = api.upload("a", b"1")
    left_behind = files_dir / f".{'a' * 21}"
    left_behind.mkdir()
    os.utime(left_behind, (1, 1))
    second = start_shared(FILES_DIR=str(files_dir), RUN_TIMEOUT_S="2")
    assert CodeApi(second).download(ref) == b"1"
    deadline_s = time.monotonic() + 20
    while left_behind.exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not left_behind.exists()


@pytest.mark.skipif(
    os.getuid() != 0, reason="only root can give a folder to another user"
)
def test_files_of_another_user_are_one_warning_and_not_served(
    start_shared: Callable[..., Service],
    code_api_service: Service,
    api: CodeApi,
    tmp_path: Path,
) -> None:
    """As after a change of the container's user."""
    first = CodeApi(start_shared(FILES_DIR=str(tmp_path), RUN_TIMEOUT_S="2"))
    foreign, own = first.upload("a", b"1"), first.upload("b", b"2")
    os.chown(tmp_path / foreign["storage_session_id"], 65534, -1)
    second = start_shared(FILES_DIR=str(tmp_path), RUN_TIMEOUT_S="2")
    second.wait_for_log("1 folders in FILES_DIR belong to another user")
    api = CodeApi(second)
    path = f"{foreign['storage_session_id']}/{foreign['id']}"
    answers = [
        api.probe(foreign),
        http.get(f"{api.url}/download/{path}"),
        http.delete(f"{api.url}/files/{path}"),
    ]
    assert [answer.status_code for answer in answers] == [404, 404, 404]
    reply = api.exec("cat a; cat b", files=[foreign, own])
    assert reply["stdout"] == "2"
    assert "input a was left out: it is not there any more\n" in reply["stderr"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_download_that_has_begun_is_read_to_its_end(api: CodeApi) -> None:
    data = os.urandom(20_000_000)
    ref = api.upload("a", data)
    path = f"{ref['storage_session_id']}/{ref['id']}"
    with requests.get(
        f"{api.url}/download/{path}", stream=True, timeout=30
    ) as response:
        pieces = response.iter_content(65536)
        first = next(pieces)
        assert http.delete(f"{api.url}/files/{path}").status_code == 200
        assert first + b"".join(pieces) == data


def test_a_download_is_counted_as_it_is_sent(
    api: CodeApi, code_api_service: Service
) -> None:
    def counted_bytes() -> int:
        metrics = http.get(f"{code_api_service.url}/metrics").text
        name = "e2b_proxy_download_bytes_total "
        return int(float(metrics.partition(f"\n{name}")[2].partition("\n")[0]))

    def wait_until_counted(size_bytes: int) -> None:
        deadline_s = time.monotonic() + 20
        while counted_bytes() - before < size_bytes and time.monotonic() < deadline_s:
            time.sleep(0.05)

    size_bytes = 60_000_000
    ref = api.upload("a", bytes(size_bytes))
    url = f"{api.url}/download/{ref['storage_session_id']}/{ref['id']}"
    before = counted_bytes()
    head = http.head(url)
    assert head.headers["Content-Length"] == str(size_bytes)
    assert counted_bytes() == before
    with requests.get(url, stream=True, timeout=30) as response:
        assert len(next(response.iter_content(65536))) == 65536
    wait_until_counted(65536)
    # What was read, and what the system's buffers hold.
    assert 65536 <= counted_bytes() - before < size_bytes / 2
    before = counted_bytes()
    assert len(api.download(ref)) == size_bytes
    wait_until_counted(size_bytes)
    assert counted_bytes() == before + size_bytes


def test_an_input_evicted_meanwhile_is_a_line_in_stderr(
    api: CodeApi, script: Callable[..., None], e2b: LocalE2B, files_dir: Path
) -> None:
    ref = api.upload("a", b"1")
    script(create={"delay_s": 1}, run=reported(ENDED))
    replies: list[dict[str, Any]] = []
    before = len(e2b.state()["requests"])
    thread = threading.Thread(
        target=lambda: replies.append(api.exec("cat a", files=[ref]))
    )
    thread.start()
    e2b.wait_for(lambda state: len(state["requests"]) > before)
    path = f"{ref['storage_session_id']}/{ref['id']}"
    assert http.delete(f"{api.url}/files/{path}").status_code == 200
    thread.join()
    assert replies[0]["stderr"] == "input a was left out: it is not there any more\n"


def test_at_the_end_the_folder_holds_sessions_only(
    api: CodeApi, files_dir: Path
) -> None:
    assert all(ID.fullmatch(path.name) for path in files_dir.iterdir())


# --- slow senders ---------------------------------------------------------------------


def send_slowly(
    api: CodeApi, pause_s: float, piece: bytes, for_s: float
) -> tuple[str, float]:
    """Upload in pieces for so long; returns what came of it, and after how long."""
    host, _, port = api.url.removeprefix("http://").removesuffix("/v1").partition(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        head = (
            b"POST /v1/upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"
            b"\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        first = (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        )
        sock.sendall(head + chunked(first))
        try:
            while time.monotonic() - started < for_s:
                sock.sendall(chunked(piece))
                time.sleep(pause_s)
            sock.sendall(chunked(b"\r\n--x--\r\n") + b"0\r\n\r\n")
            answer = sock.recv(100).split(b"\r\n")[0].decode()
        except OSError:
            answer = "cut"
        return answer, time.monotonic() - started


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_a_slow_upload_is_cut_and_an_honest_one_is_not(api: CodeApi) -> None:
    """Both at once."""
    with ThreadPoolExecutor(2) as threads:
        # 32 KiB/s, twice the least rate, for longer than a whole request may take.
        honest = threads.submit(send_slowly, api, 0.5, bytes(16 * 1024), 18)
        slow = threads.submit(send_slowly, api, 2, b"1", 40)
        answer, _ = honest.result()
        _, took_s = slow.result()
    assert answer == "HTTP/1.1 200 OK"
    # Cut after 20 s at the latest, which is seen with the piece after that.
    assert took_s < 25


def test_a_form_of_another_type_is_refused_before_it_is_sent(
    code_api_service: Service,
) -> None:
    """It would be read whole into memory."""
    lines = [
        "POST /v1/upload HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Length: 200000000",
    ]
    # Less than a client may be silent for until it is refused for that.
    with socket.create_connection(("127.0.0.1", code_api_service.port), 10) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = client.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 400")
