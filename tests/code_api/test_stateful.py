"""LibreChat's stateful code sessions: execs with one hint share one /mnt/data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from code_api_client import CodeApi, Ref, named
from local_e2b import LocalE2B
from local_e2b_kernels import own_mount_command

from code_api.names import id_of_output, new_id
from conftest import E2B_KEY, Service, e2b_at, http, of_kind, text_of
from in_sandbox.workspace import Workspace

pytestmark = [
    pytest.mark.usefixtures("untraced"),
    pytest.mark.skipif(not own_mount_command(), reason="no mount namespace"),
]
LARGE = os.urandom(700_000)  # comes by the file API
LOST = "What this session had kept in /mnt/data is gone"


@pytest.fixture(scope="module")
def files_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def settings(files_dir: Path) -> dict[str, str]:
    return {
        "FILES_DIR": str(files_dir),
        "SESSION_IDLE_S": "60",
        "RUN_TIMEOUT_S": "4",
        "MAX_CONCURRENT_RUNS": "6",
    }


@pytest.fixture(scope="module")
def service(kernels_ahead_e2b: LocalE2B, settings: dict[str, str]) -> Iterator[Service]:
    service = Service(e2b_at(kernels_ahead_e2b.url) | settings)
    service.wait_until_ready()
    yield service
    http.close()
    service.stop()


@pytest.fixture(scope="module")
def api(service: Service) -> CodeApi:
    return CodeApi(service)


Exec = Callable[..., dict[str, Any]]


def session_of(api: CodeApi) -> Exec:
    """Execs of a session of their own."""
    hint = f"v2:conversation:{new_id()}"

    def run(code: str, *files: Ref, **more: Any) -> dict[str, Any]:
        return api.exec(code, files=files, runtime_session_hint=hint, **more)

    return run


@pytest.fixture
def run(api: CodeApi) -> Exec:
    return session_of(api)


def end_sandboxes(e2b: LocalE2B) -> None:
    """As E2B does when their time is over."""
    for sandbox in e2b.state()["sandboxes"]:
        if sandbox["alive"]:
            url = f"{e2b.url}/sandboxes/{sandbox['id']}"
            requests.delete(url, headers={"X-API-Key": E2B_KEY}, timeout=30)


# --- what lasts, and what does not ----------------------------------------------------


def test_mnt_data_lasts_whole(run: Exec) -> None:
    code = (
        "mkdir -p empty .hid 'a  b'; echo 1 >.hid/x; echo 2 >'a  b/ü '; echo 3 >-n;"
        " chmod 4750 -- -n; ln -s -- -n link; mkfifo pipe; printf x >$'new\\nline'"
    )
    assert run(code)["stderr"].count("left out") <= 1
    listed = run("find . -printf '%P|%y|%m|%l|%s\\n' | sort; id -un")["stdout"]
    for line in (
        "empty|d|755||",
        ".hid/x|f|644||2",
        "a  b/ü |f|644||2",
        "-n|f|4750||2",
        "link|l|777|-n|",
        "pipe|p|644||0",
    ):
        assert line in listed
    assert run("cat link $'new\\nline' '.hid/x'")["stdout"] == "3\nx1\n"


def test_a_call_is_a_new_process(run: Exec) -> None:
    run("X=1; mkdir sub; cd sub")
    assert run("echo [$X] $PWD; ls -A")["stdout"] == "[] /mnt/data\nsub\n"


@pytest.mark.parametrize(
    "start",
    [
        "sleep {} &",
        "nohup setsid sleep {} >/dev/null 2>&1 &",
        "(setsid sleep {} >/dev/null 2>&1 &)",
        # It leaves what it had inherited, too.
        "(env -i setsid sh -c 'sleep {} & sleep {}' >/dev/null 2>&1 &)",
        "env -i sleep {} & exit 3",
    ],
)
def test_what_a_call_has_started_ends_with_it(run: Exec, start: str) -> None:
    name = f"10{time.time_ns()}"
    run(start.format(name, name))
    assert run(f"ps ax | grep -c '[s]leep {name}'")["stdout"] == "0\n"


@pytest.mark.parametrize("lang", ["js", "py", "bash"])
def test_nothing_of_ours_stays_in_the_workspace(run: Exec, lang: str) -> None:
    run("1", lang=lang)
    assert run("ls -A")["stdout"] == ""


def test_two_sessions_are_apart(api: CodeApi, run: Exec) -> None:
    run("echo 1 >a")
    assert session_of(api)("ls")["stdout"] == ""
    assert api.exec("ls")["stdout"] == ""


def test_a_session_of_execute_is_another(service: Service, api: CodeApi) -> None:
    hint = new_id()
    api.exec("echo 1 >a", runtime_session_hint=hint)
    headers = {"X-Session-Id": hint}
    body = {"code": "import os; print(os.path.exists('/mnt/data/a'))"}
    url = f"{service.url}/execute"
    reply = requests.post(url, json=body, headers=headers, timeout=30)
    assert "\nFalse\n" in text_of(reply)


# --- the request ----------------------------------------------------------------------


@pytest.mark.parametrize("hint", ["a" * 129, "a b", "ü", 1, ["a"], "a\n"])
def test_a_wrong_hint_is_a_400_in_words(api: CodeApi, hint: Any) -> None:
    body = {"lang": "bash", "code": "true", "runtime_session_hint": hint}
    response = api.post("/exec", json=body)
    assert response.status_code == 400
    assert "runtime_session_hint must be 1 to 128" in response.json()["message"]


@pytest.mark.parametrize("hint", ["", None])
def test_without_a_hint_an_exec_has_its_own_sandbox(api: CodeApi, hint: Any) -> None:
    api.exec("echo 1 >a", runtime_session_hint=hint)
    assert api.exec("ls", runtime_session_hint=hint)["stdout"] == ""


def test_the_profile_is_a_claim_only(api: CodeApi, run: Exec) -> None:
    headers = {"X-CodeAPI-Expected-Profile": "stateful"}
    body = {"lang": "bash", "code": "echo hi"}
    response = api.post("/exec", json=body, headers=headers)
    assert (response.status_code, response.json()["stdout"]) == (200, "hi\n")


# --- inputs ---------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"small\n", LARGE], ids=len)
def test_an_input_is_carried_once(
    api: CodeApi, run: Exec, kernels_ahead_e2b: LocalE2B, data: bytes
) -> None:
    ref = api.upload("dir/a.bin", data)
    before = len(of_kind(kernels_ahead_e2b, "write"))
    for _ in range(3):
        assert run("wc -c <dir/a.bin", ref)["stdout"] == f"{len(data)}\n"
    writes = len(of_kind(kernels_ahead_e2b, "write")) - before
    assert writes == (len(data) > 10_000)


@pytest.mark.parametrize("data", [b"1\n", LARGE], ids=len)
def test_a_ref_that_was_seen_leaves_edits_alone(
    api: CodeApi, run: Exec, data: bytes
) -> None:
    """Two calls of one message both carry the older ref."""
    ref = api.upload("a.bin", data)
    first = run("echo edited >a.bin", ref)
    assert run("cat a.bin; echo again >>a.bin", ref)["stdout"] == "edited\n"
    # The next turn names the output of the first, which the second has changed.
    assert run("cat a.bin", named(first)["a.bin"])["stdout"] == "edited\nagain\n"


@pytest.mark.parametrize("size", [2, 700_000])
def test_of_two_files_of_one_name_the_last_named_lies_there(
    api: CodeApi, run: Exec, size: int
) -> None:
    one, two = (api.upload("a", letter * size) for letter in (b"1", b"2"))
    for ref, letter in ((one, "1"), (two, "2"), (one, "1"), (two, "2")):
        assert run("head -c 1 a", ref)["stdout"] == letter


@pytest.mark.parametrize("data", [b"1\n", LARGE], ids=len)
def test_a_deleted_file_comes_back_if_it_is_named_again(
    api: CodeApi, run: Exec, data: bytes
) -> None:
    ref = api.upload("a", data)
    assert run("rm a", ref)["deleted_files"] == ["a"]
    assert run("ls")["stdout"] == ""
    assert run("wc -c <a", ref)["stdout"] == f"{len(data)}\n"


@pytest.mark.parametrize("data", [b"echo 1\n", LARGE], ids=len)
def test_read_only_files_are_restored_and_never_come_back(
    api: CodeApi, run: Exec, data: bytes
) -> None:
    fields = {"kind": "skill", "id": "s", "version": "1", "read_only": "true"}
    reply = api.upload_batch({"skills/x.sh": data}, **fields)
    ref = {
        "id": reply["files"][0]["fileId"],
        "storage_session_id": reply["storage_session_id"],
        "name": "skills/x.sh",
    }
    assert run("echo changed >skills/x.sh; echo 1 >other", ref)["files"] != []
    assert run("wc -c <skills/x.sh", ref)["stdout"] == f"{len(data)}\n"
    # Neither by a call that does not name it, which may change it for good.
    assert run("echo changed >skills/x.sh")["files"] == []
    assert run("cat skills/x.sh")["stdout"] == "changed\n"
    assert run("wc -c <skills/x.sh", ref)["stdout"] == f"{len(data)}\n"


@pytest.mark.parametrize("data", [b"secret\n", LARGE], ids=len)
def test_an_input_goes_through_nothing_that_a_script_has_left(
    api: CodeApi, run: Exec, data: bytes
) -> None:
    run("mkdir out; ln -s /etc/hostname a; mkfifo b; ln -s out c; mkdir d")
    refs = [api.upload(name, data) for name in ("a", "b", "c/x", "d")]
    reply = run("stat -c %F a b; ls out; ls d", *refs)
    assert reply["stdout"] == "regular file\nregular file\n"
    assert "input c/x was left out: a part of its name is no folder" in reply["stderr"]
    assert "input d was left out: it is a folder, too" in reply["stderr"]


def test_what_is_said_of_an_input_is_said_once(api: CodeApi, run: Exec) -> None:
    """Where the large one is asked for, the cell with the small one is run twice."""
    run("mkdir d")
    small, large = api.upload("d", b"1"), api.upload("large", LARGE)
    reply = run("wc -c <large", small, large)
    assert reply["stdout"] == "700000\n"
    assert reply["stderr"] == "input d was left out: it is a folder, too\n"


def test_a_file_is_returned_when_it_is_written_and_not_again(run: Exec) -> None:
    assert list(named(run("echo 1 >a"))) == ["a"]
    assert run("cat a")["files"] == []
    assert list(named(run("echo 1 >a"))) == ["a"]


def test_a_tree_that_is_installed_is_one_line(run: Exec) -> None:
    code = (
        "mkdir -p venv/lib; for n in $(seq 200); do echo >venv/lib/$n.py; done; echo >a"
    )
    reply = run(code)
    assert list(named(reply)) == ["a"]
    line = "venv/: 200 files stay in /mnt/data and do not come back\n"
    assert reply["stderr"] == line
    assert run("ls venv/lib | wc -l")["stdout"] == "200\n"


def test_cat_shows_what_lies_there(api: CodeApi, run: Exec) -> None:
    """Without a session it is answered from the store."""
    ref = api.upload("a.txt", b"1\n")
    run("echo 2 >a.txt", ref)
    assert run("cat '/mnt/data/a.txt'", ref)["stdout"] == "2\n"


def test_both_sides_make_the_same_id_of_a_name() -> None:
    session = {"refs": {}, "read_only": [], "left_out": [], "secret": "s"}
    workspace = Workspace("/nowhere", session)
    for name in ("a", "dir/ü 1.csv", "😀"):
        assert workspace._id_of_output(name) == id_of_output("s", name)


# --- turns ----------------------------------------------------------------------------


def test_calls_have_their_turns_in_one_sandbox(
    run: Exec, kernels_ahead_e2b: LocalE2B
) -> None:
    """Also a prewarm beside the first call, while the sandbox is made."""
    before = kernels_ahead_e2b.state()["created"]
    with ThreadPoolExecutor() as threads:
        threads.submit(run, "true")
        calls = [threads.submit(run, f"echo {n} >>log; sleep 0.2") for n in range(2)]
        for call in calls:
            assert call.result()["stderr"] == ""
    assert sorted(run("cat log")["stdout"].split()) == ["0", "1"]
    assert kernels_ahead_e2b.state()["created"] - before == 1


def test_a_call_that_waited_has_its_whole_time(run: Exec) -> None:
    """3.5 s of waiting and 3 s of its own, where a run has 4 s."""
    run("echo kept >a")
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(run, "sleep 3.5")
        time.sleep(0.3)
        reply = run("sleep 3; cat a")
        assert slow.result()["stderr"] == ""
    assert (reply["stdout"], reply["stderr"]) == ("kept\n", "")


def test_a_run_past_its_limit_costs_no_file(run: Exec) -> None:
    reply = run("echo kept >a; sleep 30")
    assert reply["stderr"] == "Error: stopped after 4 s, its time limit\n"
    assert run("cat a")["stdout"] == "kept\n"


@pytest.mark.parametrize(
    "code", ["exit 3", "kill -9 $$", "python3 -c 'import os; os.abort()'", "kill -9 0"]
)
def test_what_ends_a_script_costs_no_file(run: Exec, code: str) -> None:
    run(f"echo kept >a; {code}")
    assert run("cat a")["stdout"] == "kept\n"


def test_a_caller_who_hangs_up_costs_no_file(
    service: Service, api: CodeApi, kernels_ahead_e2b: LocalE2B
) -> None:
    run = session_of(api)
    run("echo kept >a")
    hint = f"v2:user:{new_id()}"
    api.exec("echo kept >a", runtime_session_hint=hint)
    created = kernels_ahead_e2b.state()["created"]
    body = {"lang": "bash", "code": "echo 1 >b; sleep 30", "runtime_session_hint": hint}
    with pytest.raises(requests.Timeout):
        requests.post(f"{api.url}/exec", json=body, timeout=1.5)
    code = "cat a b; ps ax | grep -c '[s]leep 30'"
    reply = api.exec(code, runtime_session_hint=hint)
    assert (reply["stdout"], reply["stderr"]) == (
        "kept\n1\n0\n",
        "Error: exit code 1\n",
    )
    assert kernels_ahead_e2b.state()["created"] == created


# --- a sandbox that is lost -----------------------------------------------------------


def test_a_lost_sandbox_is_said_once_and_to_whom_it_harms_nothing(
    api: CodeApi, run: Exec, kernels_ahead_e2b: LocalE2B
) -> None:
    ref = api.upload("a.txt", b"")
    run("echo 1 >kept; echo >a.txt", ref)
    end_sandboxes(kernels_ahead_e2b)
    assert run("true")["stderr"] == ""  # a prewarm
    empty = run("cat '/mnt/data/a.txt'", ref)  # a helper's, whose file is empty
    assert (empty["stdout"], empty["stderr"]) == ("", "")
    told = run("ls", ref)
    assert told["stdout"] == "a.txt\n"
    assert told["stderr"].startswith(LOST)
    assert run("ls", ref)["stderr"] == ""


def test_a_session_ended_for_another_is_told(
    settings: dict[str, str], kernels_ahead_e2b: LocalE2B
) -> None:
    """More sessions than there may be sandboxes."""
    more = {**settings, "MAX_CONCURRENT_RUNS": "2"}
    service = Service(e2b_at(kernels_ahead_e2b.url) | more)
    service.wait_until_ready()
    try:
        sessions = [session_of(CodeApi(service)) for _ in range(3)]
        for number, run in enumerate(sessions):
            assert run(f"echo {number} >a; ls")["stdout"] == "a\n"
        assert sessions[2]("cat a")["stdout"] == "2\n"
        told = sessions[0]("ls")
        assert told["stderr"].startswith(LOST)
    finally:
        http.close()
        service.stop()


def test_a_write_that_is_cut_costs_no_file(
    api: CodeApi, run: Exec, kernels_ahead_e2b: LocalE2B
) -> None:
    run("echo kept >a")
    ref = api.upload("b", LARGE)
    real = {"kernel": True}
    kernels_ahead_e2b.set_script({"write": [{"fault": "cut"}, {}], "run": real})
    try:
        assert run("cat a; wc -c <b", ref)["stdout"] == "kept\n700000\n"
        kernels_ahead_e2b.set_script({"write": {"fault": "cut"}, "run": real})
        ref = api.upload("c", LARGE)
        problem = "so the code did not run: the connection failed."
        assert problem in run("cat c", ref)["stderr"]
    finally:
        kernels_ahead_e2b.set_script({})
    assert run("cat a; wc -c <c", ref)["stdout"] == "kept\n700000\n"


def test_replicas_and_a_restart_find_it(
    settings: dict[str, str], service: Service, kernels_ahead_e2b: LocalE2B
) -> None:
    hint = f"v2:user:{new_id()}"
    first = CodeApi(service)
    ref = first.upload("in.bin", LARGE)
    more = {"runtime_session_hint": hint}
    out = named(first.exec("echo 1 >a; echo edited >in.bin", files=[ref], **more))
    writes = len(of_kind(kernels_ahead_e2b, "write"))
    other = Service(e2b_at(kernels_ahead_e2b.url) | settings)
    other.wait_until_ready()
    try:
        second = CodeApi(other)
        reply = second.exec("cat a in.bin; echo 2 >a", files=[ref], **more)
        assert (reply["stdout"], reply["stderr"]) == ("1\nedited\n", "")
    finally:
        http.close()
        other.stop()
    reply = first.exec("cat a in.bin", files=[out["a"], out["in.bin"]], **more)
    assert (reply["stdout"], reply["stderr"]) == ("2\nedited\n", "")
    assert len(of_kind(kernels_ahead_e2b, "write")) == writes
