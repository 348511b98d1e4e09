"""The code API's parts: the store, what a report may not do, what runs in a sandbox."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
from local_e2b_kernels import own_mount_command
from werkzeug.exceptions import RequestEntityTooLarge

from code_api.cells import exec_cell, start_early_code
from code_api.languages import LANGUAGES
from code_api.names import is_id, name_problem, new_id
from code_api.reply import add_notes, reply_body
from code_api.report import Report
from code_api.request import ExecRequest, parse_exec
from code_api.staging import Staging, staging_of
from code_api.store import NewSession, NotStored, Store, StoredFile, StoreError
from code_api.sweeper import Sweeper
from code_api.upload import take_form
from config import Config
from conftest import ROOT
from in_sandbox.script import CACHES, HOME_CACHES, cache_of
from json_body import JsonBody

FORM = "multipart/form-data; boundary=x"
PROGRAM = ROOT / "in_sandbox" / "script.py"
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


def store_in(folder: Path) -> Store:
    folder.mkdir(exist_ok=True)
    return Store(folder)


def sweep(folder: Path, **settings: Any) -> None:
    """As a service does that has just been started."""
    Sweeper(folder, Config(**settings)).sweep()


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
    store = Store(tmp_path)
    good = BytesIO(form_of([1_500_000] * 2))
    _, size = take_form(store, config, good, FORM, is_batch)
    assert size == 3_000_000
    too_large = BytesIO(form_of([1_500_000] * 5))
    with pytest.raises(RequestEntityTooLarge, match="form was not taken"):
        take_form(store, config, too_large, FORM, is_batch)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_gone_is_an_error_in_words(tmp_path: Path) -> None:
    store = store_in(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    expected = pytest.raises(StoreError, match="has to check FILES_DIR")
    with expected, store.new_session() as session:
        session.new_file("a")


# --- what is removed -----------------------------------------------------------------


def on_disk(folder: Path) -> tuple[int, int]:
    """The bytes and the inodes of what lies in a folder."""
    du = ["du", "--block-size=1", "--separate-dirs", *folder.iterdir()]
    lines = subprocess.check_output(du, text=True).splitlines()
    paths = list(folder.rglob("*"))
    return sum(int(line.split()[0]) for line in lines), len(paths)


def test_old_sessions_are_removed_and_others_are_not(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    old, new = add(store, age_s=7300), add(store, age_s=7100)
    sweep(tmp_path, files_ttl_hours=2)
    assert not can_be_found(store, old)
    assert can_be_found(store, new)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_oldest_go_first_when_there_is_too_much(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    sessions = [add(store, bytes(100_000), age_s) for age_s in (10, 30, 20)]
    sweep(tmp_path, files_total_bytes=250_000)
    assert [can_be_found(store, ids) for ids in sessions] == [True, False, True]


def test_what_is_counted_is_what_the_disk_gave(tmp_path: Path) -> None:
    """Files of one byte, their index and their folder take blocks of some 4 kB."""
    store = store_in(tmp_path)
    for age_s in range(100):
        last = add(store, age_s=100 - age_s)
    assert on_disk(tmp_path)[0] > 400_000
    sweep(tmp_path, files_total_bytes=200_000)
    size_bytes, inodes = on_disk(tmp_path)
    assert 150_000 < size_bytes <= 200_000
    assert inodes % 3 == 0  # whole sessions
    assert can_be_found(store, last)


def test_inodes_are_bounded_too(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    sessions = [add(store, b"", age_s) for age_s in range(20)]
    sweep(tmp_path, files_total_inodes=31)
    kept = [can_be_found(store, ids) for ids in sessions]
    assert kept == [True] * 10 + [False] * 10
    assert on_disk(tmp_path)[1] == 30


def test_a_later_sweep_counts_what_came_and_what_was_deleted(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    sweeper = Sweeper(tmp_path, Config(files_total_bytes=500_000))
    with store.new_session() as session:
        files = [session.new_file("a"), session.new_file("b")]
        for file in files:
            file.write(bytes(200_000))
        session.publish(files)
    sweeper.sweep()
    store.delete(session.id, files[0].id)
    second = add(store, bytes(200_000), age_s=-10)
    sweeper.sweep()
    assert can_be_found(store, (session.id, files[1].id))
    third = add(store, bytes(200_000), age_s=-20)
    sweeper.sweep()
    assert not can_be_found(store, (session.id, files[1].id))
    assert can_be_found(store, second)
    assert can_be_found(store, third)


def test_a_later_sweep_looks_into_those_only_that_are_new_or_have_changed(
    tmp_path: Path,
) -> None:
    """A sweep of 100,000 sessions would take seconds, each minute."""
    program = """
import sys
from pathlib import Path
from code_api.store import Store
from code_api.sweeper import Sweeper
from config import Config

def add():
    with store.new_session() as session:
        files = [session.new_file("a"), session.new_file("b")]
        session.publish(files)
    return session.id, files[0].id

def looked_into():
    before = len(scans)
    sweeper.sweep()
    return len(scans) - before - 1  # FILES_DIR itself

root = Path(sys.argv[1])
store, sweeper = Store(root), Sweeper(root, Config())
scans = []
sys.addaudithook(lambda event, args: event == "os.scandir" and scans.append(args))
sessions = [add() for _ in range(50)]
counts = [looked_into(), looked_into()]
add()
counts += [looked_into(), looked_into()]
store.delete(*sessions[7])
counts += [looked_into(), looked_into()]
print(*counts)
"""
    ran = in_another_process(program, tmp_path)
    assert ran.stdout.split() == ["50", "0", "1", "0", "1", "0"]


def in_another_process(program: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, args)],
        cwd=PROGRAM.parents[1],
        check=True,
        text=True,
        capture_output=True,
    )


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
        sweep(tmp_path)
        session.publish([file])
    # One of the two, what is no session of ours, and the one that was written.
    assert len(list(tmp_path.iterdir())) == 3


def test_a_session_that_is_still_written_is_not_taken_for_an_abandoned_one(
    tmp_path: Path,
) -> None:
    """An upload of hours: its folder's own time stays that of its first file."""
    sweeper = Sweeper(tmp_path, Config())
    with store_in(tmp_path).new_session() as session:
        file = session.new_file("a")
        sweeper.sweep()
        os.utime(session.hidden_folder, (time.time() - 4000,) * 2)
        file.write(b"1")
        sweeper.sweep()
        session.publish([file])
    assert (tmp_path / session.id).exists()


def test_a_link_in_the_place_of_a_session_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("x")
    session_id, _ = add(store_in(root))
    sweeper = Sweeper(root, Config(files_ttl_hours=1))
    sweeper.sweep()  # knows it from now on
    (root / session_id).rename(tmp_path / "taken away")
    os.utime(outside / "kept", (0, 0))
    os.utime(outside, (0, 0))
    (root / session_id).symlink_to(outside)
    sweeper.sweep()
    assert (outside / "kept").read_text() == "x"


def test_two_processes_may_remove_the_same_sessions(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for _ in range(300):
        add(store, age_s=4000)
    program = (
        "import sys; from pathlib import Path; from config import Config;"
        " from code_api.sweeper import Sweeper;"
        " print('ready', flush=True); sys.stdin.readline();"
        " Sweeper(Path(sys.argv[1]), Config(files_ttl_hours=1)).sweep()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=PROGRAM.parents[1],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as other:
        assert other.stdout and other.stdin and other.stderr
        other.stdout.readline()
        other.stdin.write("\n")
        other.stdin.flush()
        sweep(tmp_path, files_ttl_hours=1)
        assert other.stderr.read() == ""
    assert other.returncode == 0
    assert not list(tmp_path.iterdir())


# --- folders of another user ----------------------------------------------------------


NOBODY = 65534
only_as_root = pytest.mark.skipif(
    os.getuid() != 0, reason="only root can give a folder to another user"
)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to do everything, all threads of this process."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """One that each user may write to, as /tmp is: nobody may rename what is another's.

    pytest's own folders cannot be reached by other users."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@only_as_root
def test_folders_of_another_user_do_not_keep_the_others(
    shared_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a change of the container's user, say."""
    of_root = add(store_in(shared_folder), bytes(500_000), age_s=7200)
    (shared_folder / of_root[0]).chmod(0o755)
    with as_nobody():
        store = store_in(shared_folder)
        old, new = add(store, age_s=7200), add(store, bytes(100_000))
        sweeper = Sweeper(
            shared_folder, Config(files_ttl_hours=1, files_total_bytes=300_000)
        )
        for _ in range(2):
            sweeper.sweep()
        found = [can_be_found(store, ids) for ids in (of_root, old, new)]
    assert found == [False, False, True]
    assert {path.name for path in shared_folder.iterdir()} == {of_root[0], new[0]}
    [record] = caplog.records
    assert record.getMessage().startswith("1 folders in FILES_DIR belong to another")


@only_as_root
def test_what_root_could_remove_is_left_to_its_owner_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_in(tmp_path)
    foreign, own = add(store, age_s=7200), add(store, age_s=7200)
    os.chown(tmp_path / foreign[0], NOBODY, -1)
    with pytest.raises(NotStored):
        store.delete(*foreign)
    sweep(tmp_path, files_ttl_hours=1)
    assert [path.name for path in tmp_path.iterdir()] == [foreign[0]]
    assert not can_be_found(store, foreign)
    assert not can_be_found(store, own)
    assert len(caplog.records) == 1


@only_as_root
def test_a_session_that_cannot_be_removed_does_not_keep_the_others(
    shared_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with as_nobody():
        store = store_in(shared_folder)
        stuck = add(store, bytes(500_000), age_s=30)
        (shared_folder / stuck[0]).chmod(0o500)
        unreadable = add(store, age_s=20)
        (shared_folder / unreadable[0]).chmod(0)
        old, new = add(store, bytes(300_000), age_s=20), add(store, bytes(300_000))
        sweep(shared_folder, files_total_bytes=400_000)
        found = [can_be_found(store, ids) for ids in (stuck, old, new)]
    assert found == [False, False, True]
    [record] = caplog.records
    assert record.getMessage() == (
        "2 sessions in FILES_DIR could not be read or removed: Permission denied"
    )


# --- the report of a sandbox that lies ------------------------------------------------


def line(**fields: Any) -> str:
    return json.dumps(fields) + "\n"


def chunk(name: str, data: bytes) -> str:
    return line(of=name, packed=b64encode(zlib.compress(data)).decode())


@pytest.fixture(autouse=True)
def _reports_are_closed() -> Iterator[None]:
    yield
    while REPORTS:
        REPORTS.pop().close()


REPORTS: list[Report] = []


def report_in(session: NewSession, max_file_bytes: int) -> Report:
    request = ExecRequest("py", LANGUAGES["py"], code=b"", args=[], limit_s=1)
    stored = StoredFile(session.hidden_folder, 1, read_only=False, modified_at=0)
    request.inputs["in"] = stored
    request.inputs["read-only"] = replace(stored, read_only=True)
    REPORTS.append(Report(request, session, max_file_bytes, Path(gettempdir())))
    return REPORTS[-1]


def text_of(report: Report, name: str) -> str:
    return str(json.loads(b'"' + b"".join(report.streams[name].pieces()) + b'"'))


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
    "caches without end": line(cache="x", files=1) * 2001,
    "a count that is none": line(written_files=True),
    "a size that is true": line(written="a", size=True),
    "a cache's count that is none": line(cache="a", files=False),
    "a read-only input that is deleted": line(deleted="read-only"),
    "a read-only input that is written": line(written="read-only", size=1),
    "a file that is there and is not": line(deleted="in") + line(written="in", size=1),
    "and the other way round": line(written="in", size=1) + line(deleted="in"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_lie_is_named_and_nothing_is_taken_after_it(tmp_path: Path, lie: str) -> None:
    with store_in(tmp_path).new_session() as session:
        report = report_in(session, 10**8)
        report.add(lie)
        assert report.problem.startswith("the sandbox's report is wrong")
        report.add(line(stderr="later"))
        assert text_of(report, "stderr") == ""
        report.publish()
    assert not list(tmp_path.iterdir())


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("character", "kept"),
    [
        ("x", 12 * MIB),
        ('"', 12 * MIB),
        ("\n", 12 * MIB),
        ("é", 12 * MIB),
        ("\0", 4 * MIB),
        ("😀", 6 * MIB),
    ],
)
def test_what_goes_out_is_capped_in_bytes_and_what_is_cut_is_said(
    tmp_path: Path, character: str, kept: int
) -> None:
    """12 Mi characters, which are up to 75 MB as JSON."""
    with store_in(tmp_path).new_session() as session:
        report = report_in(session, 100)
        text = line(stdout=character * (32 * 1024))
        tracemalloc.start()
        for _ in range(12 * MIB // (32 * 1024)):
            report.add(text)
        report.add(ENDED)
        add_notes(report)
        body = reply_body(report)
        made = JsonBody(body)
        sent_bytes = sum(map(len, made))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert not report.problem
        assert sent_bytes == made.size_bytes < 24 * MIB + 10_000
        assert kept - 32 * 1024 < text_of(report, "stdout").count(character) <= kept
        missing = 12 * MIB - text_of(report, "stdout").count(character)
        note = f"stdout was cut: {missing:,} characters more would make the reply too"
        assert text_of(report, "stderr").startswith(note if missing else "")
        assert bool(text_of(report, "stderr")) == bool(missing)
        assert peak < 3_000_000


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


def test_what_a_report_says_of_inputs_is_of_those_that_may_change(
    tmp_path: Path,
) -> None:
    with store_in(tmp_path).new_session() as session:
        report = report_in(session, 100)
        report.add(ENDED + line(deleted="in") + line(deleted="of the template's"))
        assert (report.problem, report.deleted) == ("", {"in"})


def test_notes_are_lines_of_plain_characters(tmp_path: Path) -> None:
    with store_in(tmp_path).new_session() as session:
        report = report_in(session, 100)
        report.add(line(note="input \u202ea\nb \ud800é was left out"))
        report.add(line(cache="\u2028", files=2))
    assert report.notes == [
        r"input \u202ea\u000ab \ud800é was left out",
        r"\u2028: 2 files were left out: caches and the like do not come back",
    ]


def test_a_report_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    text = line(stdout="é\u2028\n") + "noise\n" + ENDED + line(written="a", size=3)
    text += chunk("a", b"12") + chunk("a", b"3")
    for size in (1, 7, len(text)):
        with store_in(tmp_path).new_session() as session:
            report = report_in(session, 100)
            for start in range(0, len(text), size):
                report.add(text[start : start + size])
            assert text_of(report, "stdout") == "é\u2028\n"
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


# --- what of a script's files comes back ----------------------------------------------


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        (".git/config", ".git"),
        ("repository/.git/objects/a", "repository/.git"),
        (".git", ".git"),  # of a worktree: it leads to a folder elsewhere
        (".cache/pip/a", ".cache"),
        (".local/share/a", ".local"),
        ("a/node_modules/b/node_modules/c", "a/node_modules"),
        ("a/__pycache__/b.pyc", "a/__pycache__"),
        ("__MACOSX/._a.csv", "__MACOSX"),
        ("a/.DS_Store", "a/.DS_Store"),
        # Near, and what people want:
        (".env", ""),
        (".gitignore", ""),
        (".github/workflows/ci.yml", ""),
        (".gitattributes", ""),
        (".npmrc", ""),
        (".config", ""),
        (".cache", ""),
        ("app/.config/settings.ini", ""),
        ("app/.local/a", ""),
        ("a.git/config", ""),
        ("cache/a", ""),
        ("node_modules.txt", ""),
        ("conf/.htaccess", ""),
        (".vscode/settings.json", ""),
    ],
)
def test_what_lies_in_a_cache(name: str, cache: str) -> None:
    assert cache_of(name) == cache


def test_the_pages_name_each_cache() -> None:
    page = (PROGRAM.parents[1] / "docs/librechat.md").read_text("utf-8")
    missing = [name for name in CACHES + HOME_CACHES if f"`{name}`" not in page]
    assert not missing


# --- what runs in the sandbox, in another Python --------------------------------------


@pytest.mark.parametrize("name", ["script", "startup", "plots", "fonts", "shapes"])
def test_the_program_is_python_of_3_8_and_ascii(name: str) -> None:
    source = PROGRAM.with_name(f"{name}.py").read_text("ascii")
    ast.parse(source, feature_version=(3, 8))


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
    tmp_path.mkdir(exist_ok=True)
    data = tmp_path / "data"
    store = store_in(tmp_path)
    ids = add(store, os.urandom(3_000_000))
    ref = {"name": "in/a.bin", "storage_session_id": ids[0], "id": ids[1]}
    code = "cat in/a.bin >b.bin; echo >c; echo hi; echo oh >&2; exit 3"
    request = parse_exec({"lang": "bash", "code": code, "files": [ref]}, store, 20)
    program = cell_in(request, tmp_path)
    ran = subprocess.run(
        [python, "-"],
        input=program.encode(),
        # Of a locale that is not installed bash would warn.
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert ran.stderr == b""
    with store.new_session() as session:
        report = report_in(session, 10**8)
        report.add(ran.stdout.decode())
        assert list(report.to_fetch()) == ["b.bin"]
        report.publish()
        assert [file.name for file in report.delivered] == ["c"]
    assert not report.problem
    assert (report.outcome, report.notes) == ("error", ["Error: exit code 3"])
    assert (text_of(report, "stdout"), text_of(report, "stderr")) == ("hi\n", "oh\n")
    assert store.find(*ids).path.read_bytes() == (data / "b.bin").read_bytes()
    assert not list(tmp_path.glob("data-*"))


def cell_in(request: ExecRequest, folder: Path) -> str:
    """The cell of an exec whose /mnt is this folder, where its staged files are."""
    staging = staging_of(request)
    for path, file in staging.files.items():
        place = folder / Path(path).relative_to("/mnt")
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(file.read())
    return exec_cell(request, staging).replace("/mnt", str(folder))


LARGER = os.urandom(300_000)  # comes by the file API


@pytest.mark.parametrize("content", [b"small", LARGER], ids=len)
def test_an_input_goes_in_whole_and_through_nothing_that_lies_there(
    tmp_path: Path, content: bytes
) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    for folder in (data / "folder", outside):
        folder.mkdir(parents=True)
    (outside / "file").write_bytes(b"outside")
    (data / "link").symlink_to(outside / "file")
    (data / "dangling").symlink_to(outside / "none")
    (data / "linked").symlink_to(outside)
    (data / "file").write_bytes(b"before")
    os.mkfifo(data / "pipe")
    names = ["link", "dangling", "pipe", "file", "new/folder/a"]
    refused = ["folder", "linked/file", "file/below"]
    store = store_in(tmp_path / "store")
    refs = []
    for name in [*names, *refused]:
        ids = add(store, content)
        refs.append({"name": name, "storage_session_id": ids[0], "id": ids[1]})
    request = parse_exec({"lang": "bash", "code": "true", "files": refs}, store, 20)
    ran = subprocess.run(
        ["python3", "-"],
        input=cell_in(request, tmp_path).encode(),
        capture_output=True,
        check=False,
    )
    assert not ran.stderr
    for name in names:
        assert not (data / name).is_symlink()
        assert (data / name).read_bytes() == content
    assert (outside / "file").read_bytes() == b"outside"
    assert sorted(path.name for path in outside.iterdir()) == ["file"]
    notes = [json.loads(text)["note"] for text in ran.stdout.splitlines()[:3]]
    assert sorted(notes) == [
        "input file/below was left out: a part of its name is no folder",
        "input folder was left out: it is a folder, too",
        "input linked/file was left out: a part of its name is no folder",
    ]
    # Nothing else is left there, of those that could not be placed either.
    found = {str(path.relative_to(data)) for path in data.rglob("*")}
    assert found == {*names, "folder", "linked", "new", "new/folder"}
    assert not list(tmp_path.glob("data-*"))


only_as_root = pytest.mark.skipif(
    os.getuid() != 0 or not own_mount_command(),
    reason="only root, where mounts are allowed, can be what E2B's kernel is",
)


def run_as_root(program: str, tmp_path: Path) -> subprocess.CompletedProcess[bytes]:
    """On a machine of its own, as far as it matters: a user `user`, an empty /mnt."""
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
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mounts}; exec /usr/bin/python3 -"],
        input=program.encode(),
        capture_output=True,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "TMPDIR": "/tmp"},
    )


@only_as_root
def test_a_script_runs_as_user_where_the_program_is_root(tmp_path: Path) -> None:
    code = (
        "id -un; echo $HOME; touch new; echo 2 >>in/a.txt; stat -c %U new in in/a.txt"
    )
    store = store_in(tmp_path / "store")
    ids = add(store, b"1\n")
    ref = {"name": "in/a.txt", "storage_session_id": ids[0], "id": ids[1]}
    request = parse_exec({"lang": "bash", "code": code, "files": [ref]}, store, 20)
    program = exec_cell(request, Staging())
    ran = run_as_root(program, tmp_path)
    with store.new_session() as session:
        report = report_in(session, 100)
        report.add(ran.stdout.decode())
        report.publish()
    assert text_of(report, "stdout") == "user\n/tmp\nuser\nuser\nuser\n", ran.stderr
    assert [file.name for file in report.delivered] == ["in/a.txt", "new"]


@only_as_root
def test_a_python_that_is_started_early_runs_as_user_too(tmp_path: Path) -> None:
    code = (
        "import colorsys, os, sys\n"
        "print(os.getuid(), sys.argv[1:], EARLY)\n"
        "open('in/a.txt', 'a').write('2'); open('new', 'w').close()"
    )
    code = f"import sys; EARLY = 'colorsys' in sys.modules\n{code}"
    store = store_in(tmp_path / "store")
    ids = add(store, b"1\n")
    ref = {"name": "in/a.txt", "storage_session_id": ids[0], "id": ids[1]}
    body = {"lang": "py", "code": code, "files": [ref], "args": ["a b"]}
    request = parse_exec(body, store, 20)
    # The folder `in` may be a module: it is known which are imported once it waits.
    wait = (
        "import os, sys, time\n"
        "imported = sys.modules['exec_program'].EARLY.folder + '/python/imported'\n"
        "while not os.path.exists(imported): time.sleep(0.01)\n"
    )
    cells = [start_early_code("colorsys"), wait, exec_cell(request, Staging())]
    ran = run_as_root("\n".join(cells), tmp_path)
    with store.new_session() as session:
        report = report_in(session, 100)
        report.add(ran.stdout.decode())
        report.publish()
    assert text_of(report, "stdout") == "1234 ['a b'] True\n", ran.stderr
    assert [file.name for file in report.delivered] == ["in/a.txt", "new"]
