"""The code API's parts: the store, what a report may not do, what runs in a sandbox."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
import tracemalloc
import zlib
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from local_e2b_kernels import own_mount_command
from werkzeug.exceptions import RequestEntityTooLarge

from code_api.cells import exec_cells, send_cell
from code_api.languages import LANGUAGES
from code_api.names import is_id, name_problem, new_id
from code_api.report import Report
from code_api.request import ExecRequest, parse_exec
from code_api.store import NewSession, NotStored, Store, StoreError
from code_api.upload import take_form
from config import Config

FORM = "multipart/form-data; boundary=x"
PROGRAM = Path(__file__).parents[1] / "code_api" / "in_sandbox.py"
BAD_NAMES = ["", ".", "..", "/a", "a/", "a//b", "a/../b", "a\\b", "a\0b", "a\x7fb"]
BAD_NAMES += ["a\n", "\x85", "a" * 257, "é" * 128, "/".join("abcdefghijk"), "\udcff"]
BAD_NAMES += [None, 3, ["a"]]


# --- names ----------------------------------------------------------------------------


def test_ids_are_random_and_have_21_characters() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(map(is_id, ids))


@pytest.mark.parametrize(
    "value", ["a" * 20, "a" * 22, "a" * 20 + "\n", "a" * 20 + "/", 1]
)
def test_what_is_no_id(value: object) -> None:
    assert not is_id(value)


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_what_is_no_name(name: object) -> None:
    assert name_problem(name)


@pytest.mark.parametrize("name", ["a", "...", "a b/ç", "é" * 127, "-rf", "a'\";$(x)"])
def test_what_is_a_name(name: str) -> None:
    assert not name_problem(name)


# --- the store ------------------------------------------------------------------------


def store_in(folder: Path, **settings: Any) -> Store:
    return Store(folder, Config(**settings))


def add(store: Store, data: bytes = b"1", age_s: float = 0) -> tuple[str, str]:
    """A session with one file: both ids."""
    with store.new_session() as session:
        file = session.new_file("a")
        file.write(data)
        session.publish([file])
    folder = store.find(session.id, file.id).path.parent
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - age_s,) * 2)
    return session.id, file.id


def can_be_found(store: Store, ids: tuple[str, str]) -> bool:
    try:
        return bool(store.find(*ids))
    except NotStored:
        return False


def test_a_session_is_found_only_once_it_is_whole(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    with store.new_session() as session:
        file = session.new_file("a")
        assert not can_be_found(store, (session.id, file.id))
        session.publish([file])
    assert can_be_found(store, (session.id, file.id))


def test_what_was_not_kept_is_not_published(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    with store.new_session() as session:
        session.new_file("a").write(b"half")
        file = session.new_file("b")
        session.publish([file])
    names = {path.name for path in (tmp_path / session.id).iterdir()}
    assert names == {file.id, "index.json"}


def test_what_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), store_in(tmp_path).new_session() as session:
        session.new_file("a")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_whole_is_not_there(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    ids = add(store, b"123")
    store.find(*ids).path.write_bytes(b"12")
    assert not can_be_found(store, ids)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": {}}', "\xff"])
def test_an_index_that_cannot_be_read_is_no_session(tmp_path: Path, text: str) -> None:
    store = store_in(tmp_path)
    ids = add(store)
    (tmp_path / ids[0] / "index.json").write_bytes(text.encode("latin-1"))
    assert not can_be_found(store, ids)


def test_an_open_file_is_read_to_its_end(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    stored = store.find(*add(store))
    with stored.open() as file:
        store.delete(stored.path.parent.name, stored.path.name)
        assert file.read() == b"1"
    with pytest.raises(NotStored):
        stored.open()


def test_old_sessions_are_removed_and_others_are_not(tmp_path: Path) -> None:
    store = store_in(tmp_path, files_ttl_hours=2)
    old, new = add(store, age_s=7300), add(store, age_s=7100)
    store.sweep()
    assert not can_be_found(store, old)
    assert can_be_found(store, new)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_oldest_go_first_when_there_is_too_much(tmp_path: Path) -> None:
    store = store_in(tmp_path, files_total_bytes=25_000)
    sessions = [add(store, bytes(10_000), age_s) for age_s in (10, 30, 20)]
    store.sweep()
    assert [can_be_found(store, ids) for ids in sessions] == [True, False, True]


def form_of(sizes: list[int]) -> bytes:
    """A multipart form (of boundary x) of files with so many bytes each."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    parts = [head + bytes(size) + b"\r\n" for size in sizes]
    return b"".join(parts) + b"--x--\r\n"


@pytest.mark.parametrize("is_batch", [False, True], ids=["upload", "batch"])
def test_a_form_larger_than_all_files_may_be_is_413_and_leaves_nothing(
    tmp_path: Path, is_batch: bool
) -> None:
    """What is being written cannot be evicted: everybody else's files would be."""
    config = Config(files_total_bytes=5_000_000, max_file_bytes=2_000_000)
    store = Store(tmp_path, config)
    good = BytesIO(form_of([1_500_000] * 2))
    _, size = take_form(store, config, good, FORM, is_batch)
    assert size == 3_000_000
    too_large = BytesIO(form_of([1_500_000] * 5))
    with pytest.raises(RequestEntityTooLarge, match="form was not taken"):
        take_form(store, config, too_large, FORM, is_batch)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_process_left_behind_is_removed_and_what_is_written_is_not(
    tmp_path: Path,
) -> None:
    store = store_in(tmp_path)
    for age_s in (0, 4000):
        folder = tmp_path / f".{new_id()}"
        folder.mkdir()
        (folder / "x").write_bytes(b"1")
        for path in (folder / "x", folder):
            os.utime(path, (time.time() - age_s,) * 2)
    (tmp_path / "lost+found").mkdir()
    with store.new_session() as session:
        file = session.new_file("a")
        store.sweep()
        session.publish([file])
    # One of the two, what is no session of ours, and the one that was written.
    assert len(list(tmp_path.iterdir())) == 3


def test_two_processes_may_remove_the_same_session(tmp_path: Path) -> None:
    store = store_in(tmp_path, files_ttl_hours=1)
    for _ in range(20):
        add(store, age_s=4000)
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from config import Config;"
            " from code_api.store import Store;"
            " Store(Path(sys.argv[1]), Config(files_ttl_hours=1)).sweep()",
            str(tmp_path),
        ],
        cwd=PROGRAM.parents[1],
    ) as other:
        store.sweep()
    assert other.returncode == 0
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_an_error_in_words(tmp_path: Path) -> None:
    store = store_in(tmp_path / "gone")
    expected = pytest.raises(StoreError, match="has to check FILES_DIR")
    with expected, store.new_session() as session:
        session.new_file("a")


# --- the report of a sandbox that lies ------------------------------------------------


def line(**fields: Any) -> str:
    return json.dumps(fields) + "\n"


def chunk(name: str, data: bytes) -> str:
    return line(of=name, packed=b64encode(zlib.compress(data)).decode())


def report_in(session: NewSession, max_file_bytes: int) -> Report:
    request = ExecRequest("py", LANGUAGES["py"], code="", args=[], limit_s=1)
    return Report(request, session, max_file_bytes)


ENDED = line(ended="ok")
LIES = {
    "two ends": ENDED + ENDED,
    "a line without an end": "{" + "x" * 300_000,
    "no JSON": "{x}\n",
    "deep JSON": '{"a":' + "[" * 100_000 + "\n",
    "no such line": line(x=1),
    "text that is none": line(stdout=1),
    "too much output": line(stdout="x" * 200_000) * 75,
    "a size below 0": line(written="a", size=-1),
    "a size that is none": line(written="a", size="1"),
    "more bytes than the file has": line(written="a", size=1) + chunk("a", b"12"),
    "a bomb": line(written="a", size=10**8) + chunk("a", bytes(10**7)),
    "bad base64": line(written="a", size=1) + line(of="a", packed="%"),
    "bad compression": line(written="a", size=1) + line(of="a", packed="YQ=="),
    "a name twice": line(written="a", size=2) * 2,
    "a count below 0": line(written_files=-1),
    "a count without end": '{"written_files":' + "9" * 5000 + "}\n",
    "notes without end": line(note="x") * 2001,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_lie_is_named_and_nothing_is_taken_after_it(tmp_path: Path, lie: str) -> None:
    with store_in(tmp_path).new_session() as session:
        report = report_in(session, 10**8)
        report.add(lie)
        assert report.problem.startswith("the sandbox's report is wrong")
        report.add(line(stderr="later"))
        assert report.stderr.getvalue() == ""
        report.publish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/../../evil", "\udcff", "a" * 257]
)
def test_a_bad_name_is_left_out_whatever_comes_for_it(
    tmp_path: Path, name: str
) -> None:
    with store_in(tmp_path).new_session() as session:
        report = report_in(session, 100)
        report.add(ENDED + line(written=name, size=1) + line(written="b", size=1))
        report.add(chunk(name, b"1") + chunk("b", b"2"))
        report.publish()
        assert [file.name for file in report.delivered] == ["b"]
        assert len(report.left_out) == 1
    assert len(list((tmp_path / session.id).iterdir())) == 2


def test_a_report_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    text = line(stdout="é\u2028\n") + "noise\n" + ENDED + line(written="a", size=3)
    text += chunk("a", b"12") + chunk("a", b"3")
    for size in (1, 7, len(text)):
        with store_in(tmp_path).new_session() as session:
            report = report_in(session, 100)
            for start in range(0, len(text), size):
                report.add(text[start : start + size])
            assert report.stdout.getvalue() == "é\u2028\n"
            report.publish()
            assert [file.size for file in report.delivered] == [3]


def test_a_file_that_did_not_arrive_whole_is_left_out(tmp_path: Path) -> None:
    with store_in(tmp_path).new_session() as session:
        report = report_in(session, 100)
        report.add(ENDED + line(written="a", size=3) + chunk("a", b"12"))
        report.publish()
        assert report.delivered == []
        assert report.left_out == ["file a was left out: it did not arrive whole"]


def test_a_report_of_100_mb_takes_little_memory(tmp_path: Path) -> None:
    data = os.urandom(96 * 1024)
    piece = chunk("a", data)
    with store_in(tmp_path).new_session() as session:
        report = report_in(session, 200_000_000)
        report.add(ENDED + line(written="a", size=1000 * len(data)))
        tracemalloc.start()
        for _ in range(1000):
            report.add(piece)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        report.publish()
        assert len(report.delivered) == 1
    assert peak < 2_000_000


# --- what runs in the sandbox, in another Python --------------------------------------


def test_the_program_is_python_of_3_8_and_ascii() -> None:
    ast.parse(PROGRAM.read_text("ascii"), feature_version=(3, 8))


def is_installed(python: str) -> bool:
    """A version manager's command may lead nowhere."""
    try:
        return not subprocess.run([python, "--version"], capture_output=True).returncode
    except OSError:
        return False


def test_the_cells_run_in_any_python(tmp_path: Path) -> None:
    run_cells("python3", tmp_path)
    for python in filter(is_installed, ["python3.8", "python3.9", "python3.10"]):
        run_cells(python, tmp_path / python)


def run_cells(python: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    store = store_in(tmp_path)
    ids = add(store, os.urandom(3_000_000))
    ref = {"name": "in/a.bin", "storage_session_id": ids[0], "id": ids[1]}
    code = "cat in/a.bin >b.bin; echo hi; echo oh >&2; exit 3"
    request = parse_exec({"lang": "bash", "code": code, "files": [ref]}, store, 20)
    cells = list(exec_cells(request))
    assert len(cells) > 2
    program = "\n".join([*cells, send_cell("b.bin", 0)])
    ran = subprocess.run(
        [python, "-"],
        input=program.replace("/mnt/data", str(data)).encode(),
        # Of a locale that is not installed bash would warn.
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert ran.stderr == b""
    with store.new_session() as session:
        report = report_in(session, 10**8)
        report.add(ran.stdout.decode())
        report.publish()
        [output] = report.delivered
    assert not report.problem
    assert (report.outcome, report.notes) == ("error", ["exit code 3"])
    assert (report.stdout.getvalue(), report.stderr.getvalue()) == ("hi\n", "oh\n")
    given, came = store.find(*ids), store.find(session.id, output.id)
    assert given.path.read_bytes() == came.path.read_bytes()


@pytest.mark.skipif(
    os.getuid() != 0 or not own_mount_command(),
    reason="only root, where mounts are allowed, can be what E2B's kernel is",
)
def test_a_script_runs_as_user_where_the_program_is_root(tmp_path: Path) -> None:
    code = (
        "id -un; echo $HOME; touch new; echo 2 >>in/a.txt; stat -c %U new in in/a.txt"
    )
    store = store_in(tmp_path / "store")
    (tmp_path / "store").mkdir()
    ids = add(store, b"1\n")
    ref = {"name": "in/a.txt", "storage_session_id": ids[0], "id": ids[1]}
    request = parse_exec({"lang": "bash", "code": code, "files": [ref]}, store, 20)
    program = "\n".join(exec_cells(request))
    # A machine of its own, as far as it matters: a user `user`, and an empty /mnt.
    for name, entry in {
        "passwd": "user:x:1234:1234::/tmp:/bin/sh\n",
        "group": "user:x:1234:\n",
    }.items():
        (tmp_path / name).write_text(Path("/etc", name).read_text() + entry)
    (tmp_path / "mnt").mkdir()
    mounts = "; ".join(
        f"mount --bind {tmp_path}/{source} {target}"
        for source, target in {
            "passwd": "/etc/passwd",
            "group": "/etc/group",
            "mnt": "/mnt",
        }.items()
    )
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mounts}; exec /usr/bin/python3 -"],
        input=program.encode(),
        capture_output=True,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "TMPDIR": "/tmp"},
    )
    with store.new_session() as session:
        report = report_in(session, 100)
        report.add(ran.stdout.decode())
        report.publish()
    assert report.stdout.getvalue() == "user\n/tmp\nuser\nuser\nuser\n", ran.stderr
    assert [file.name for file in report.delivered] == ["in/a.txt", "new"]
