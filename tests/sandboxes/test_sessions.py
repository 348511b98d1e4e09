"""Sessions: a conversation keeps its sandbox, over real sockets, in real kernels."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import requests
from local_e2b import LocalE2B
from pools import wait_until

from access import session_mark
from config import VERSION
from conftest import OK_RUN, Service, of_kind, text_of

GONE = "What this conversation had kept, its variables and files, is gone"
CONVERSATION = "64f1c0ffee/5b6a0c1e"


@pytest.fixture(scope="module")
def session_service(start_shared: Callable[..., Service]) -> Service:
    return start_shared(SESSION_IDLE_S="60", RUN_TIMEOUT_S="30")


@pytest.fixture(scope="module")
def forgetful_service(start_shared: Callable[..., Service]) -> Service:
    """A service that keeps nothing between calls."""
    return start_shared()


@pytest.fixture
def own_id(request: pytest.FixtureRequest) -> str:
    """The id of a session of the test's own."""
    return f"user/{request.node.name}"[:200]


@pytest.fixture(autouse=True)
def _real_kernels(e2b: LocalE2B) -> None:
    e2b.set_script({})


def call(service: Service, session: str, code: str, **fields: Any) -> str:
    response = requests.post(
        f"{service.url}/execute",
        json={"code": code, **fields},
        headers={"X-Session-Id": session},
        timeout=100,
    )
    return text_of(response).partition("**Executed Code:**")[0]


def called_over_mcp(service: Service, session: str, code: str) -> dict[str, Any]:
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "execute_python", "arguments": {"code": code}},
    }
    headers = {"X-Session-Id": session, "Accept": "application/json"}
    response = requests.post(
        f"{service.url}/mcp", json=message, headers=headers, timeout=100
    )
    return dict(response.json()["result"])


def idle_sessions(service: Service) -> int:
    return int(
        requests.get(f"{service.url}/health", timeout=30).json()["idle_sessions"]
    )


def test_variables_imports_and_files_are_there_in_the_next_call(
    session_service: Service, own_id: str
) -> None:
    code = "import math\nx = 41\n_ = open('kept.txt', 'w').write('a file')"
    assert GONE not in call(session_service, own_id, code)
    text = call(
        session_service, own_id, "print(x + 1, math.pi, open('kept.txt').read())"
    )
    assert "42 3.14" in text
    assert "a file" in text
    assert GONE not in text
    assert idle_sessions(session_service) >= 1
    metrics = requests.get(f"{session_service.url}/metrics", timeout=30).text
    assert f"e2b_proxy_idle_sessions {float(idle_sessions(session_service))}" in metrics


def test_a_session_is_the_same_over_mcp(session_service: Service, own_id: str) -> None:
    call(session_service, own_id, "x = 41")
    result = called_over_mcp(session_service, own_id, "x + 1")
    assert "42" in result["content"][0]["text"]


def test_a_traceback_of_a_later_call_has_the_callers_lines(
    session_service: Service, own_id: str
) -> None:
    for _ in range(2):
        text = call(session_service, own_id, "x = 1\n1 / 0")
        assert "line 2" in text
        assert "----> 2 1 / 0" in text
        assert "environ" not in text


def test_a_figure_that_is_left_open_is_drawn_once(
    session_service: Service, own_id: str
) -> None:
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nNone"
    first = called_over_mcp(session_service, own_id, code)
    second = called_over_mcp(session_service, own_id, "print('no picture')")
    kinds = [[part["type"] for part in reply["content"]] for reply in (first, second)]
    assert kinds == [["text", "image"], ["text"]]


def test_after_a_timeout_the_next_call_says_that_all_is_gone_and_works(
    session_service: Service, own_id: str
) -> None:
    call(session_service, own_id, "x = 41")
    text = call(session_service, own_id, "while True: pass", timeout=1)
    assert "stopped after 1 s" in text
    text = call(session_service, own_id, "print('x' in dir())")
    assert "False" in text
    assert GONE in text
    assert GONE not in call(session_service, own_id, "1")  # it is said once


def test_after_the_process_died_the_next_call_says_that_all_is_gone(
    session_service: Service, own_id: str
) -> None:
    call(session_service, own_id, "x = 41")
    assert "process died" in call(session_service, own_id, "import os; os._exit(1)")
    assert GONE in call(session_service, own_id, "print('x' in dir())")


def test_two_sessions_share_nothing_though_their_ids_differ_in_one_character(
    session_service: Service, own_id: str
) -> None:
    call(session_service, f"{own_id}1", "x = 41")
    assert "False" in call(session_service, f"{own_id}2", "print('x' in dir())")
    assert "41" in call(session_service, f"{own_id}1", "print(x)")


def test_a_second_call_waits_for_its_turn(
    session_service: Service, own_id: str
) -> None:
    call(session_service, own_id, "x = 0")
    with ThreadPoolExecutor(3) as threads:
        code = "import time; y = x; time.sleep(0.5); x = y + 1; print('x =', x)"
        replies = threads.map(lambda _: call(session_service, own_id, code), range(3))
    printed = sorted(line for reply in replies for line in reply.splitlines())
    assert [line for line in printed if line.startswith("x =")] == [
        "x = 1",
        "x = 2",
        "x = 3",
    ]


def test_a_call_whose_turn_does_not_come_in_its_own_time_says_so(
    session_service: Service, e2b: LocalE2B, own_id: str
) -> None:
    call(session_service, own_id, "x = 41")
    before = len(of_kind(e2b, "run"))
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(
            call, session_service, own_id, "import time; time.sleep(4)"
        )
        e2b.wait_for(lambda _: len(of_kind(e2b, "run")) > before, 30)
        assert "still running" in call(session_service, own_id, "print(x)", timeout=1)
        first.result()
    assert "41" in call(session_service, own_id, "print(x)")


def test_a_restart_and_another_replica_find_the_session(
    session_service: Service,
    start_shared: Callable[..., Service],
    e2b: LocalE2B,
    own_id: str,
) -> None:
    call(session_service, own_id, "x = 41")
    other = start_shared(SESSION_IDLE_S="60", RUN_TIMEOUT_S="30")
    text = call(other, own_id, "x += 1; print(x)")
    assert "42" in text
    assert GONE not in text
    assert "43" in call(session_service, own_id, "print(x + 1)")
    other.stop()
    assert "44" in call(
        session_service, own_id, "print(x + 2)"
    )  # left to E2B by SIGTERM
    restarted = start_shared(SESSION_IDLE_S="60", RUN_TIMEOUT_S="30")
    assert "45" in call(restarted, own_id, "print(x + 3)")


def test_where_e2bs_list_ignores_whose_it_was_asked_for_no_variables_are_shared(
    session_service: Service,
    start_shared: Callable[..., Service],
    e2b: LocalE2B,
    own_id: str,
) -> None:
    e2b.set_script({"list": {"unfiltered": True, "page_size": 1}})
    call(session_service, f"{own_id}1", "x = 41")
    replica = start_shared(SESSION_IDLE_S="60", RUN_TIMEOUT_S="30")
    assert "False" in call(replica, f"{own_id}2", "print('x' in dir())")
    assert "41" in call(replica, f"{own_id}1", "print(x)")


@pytest.mark.parametrize(
    "session_id",
    [
        "",
        " ",
        "/5b6a0c1e",
        "64f1c0ffee/",
        "64f1c0ffee/{{LIBRECHAT_BODY_CONVERSATIONID}}",
        "a\tb",
        "\xe9",
        "x" * 201,
    ],
)
def test_what_is_no_id_has_no_session(session_id: str) -> None:
    assert session_mark(session_id, "e2b_key") == ""


@pytest.mark.parametrize("session_id", ["x", "a b", "64f1c0ffee/5b6a0c1e", "x" * 200])
def test_a_mark_tells_nothing_of_its_id_without_the_key(session_id: str) -> None:
    mark = session_mark(session_id, "e2b_key")
    assert len(mark) == 64
    assert mark == session_mark(session_id, "e2b_key")
    assert mark != session_mark(session_id, "e2b_kez")
    assert mark != session_mark(f"{session_id}y"[-200:], "e2b_key")


def test_a_call_without_an_id_has_a_sandbox_of_its_own(
    session_service: Service, e2b: LocalE2B
) -> None:
    for _ in range(2):
        assert "False" in text_of(session_service.execute("print('x' in dir()); x = 1"))
    e2b.set_script({"run": OK_RUN})
    since = len(of_kind(e2b, "create"))
    call(session_service, "user/", "1")
    assert "session" not in of_kind(e2b, "create")[since]["body"]["metadata"]


def test_neither_e2b_nor_the_log_is_told_the_id(
    session_service: Service, e2b: LocalE2B, own_id: str
) -> None:
    e2b.set_script({"run": OK_RUN})
    call(session_service, own_id, "1")
    metadata = of_kind(e2b, "create")[-1]["body"]["metadata"]
    assert len(metadata["session"]) == 64
    assert own_id not in str(e2b.state()["requests"])
    assert own_id not in "".join(session_service.lines)


def test_the_tool_says_that_things_are_kept_only_where_they_are(
    session_service: Service, forgetful_service: Service
) -> None:
    def said(of: Service, method: str) -> str:
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {}}
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return requests.post(f"{of.url}/mcp", json=message, timeout=30).text

    assert "kept within a conversation until 1 minutes" in said(
        session_service, "tools/list"
    )
    assert "kept within" not in said(forgetful_service, "tools/list")
    for method in ("tools/list", "initialize"):
        assert "Nothing is kept" not in said(session_service, method)
        assert "Nothing is kept" in said(forgetful_service, method)


def test_off_the_same_requests_go_to_e2b_whatever_id_a_call_has(
    forgetful_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script({"run": OK_RUN})
    at_s = time.monotonic()
    call(forgetful_service, CONVERSATION, "1")

    def sent() -> list[dict[str, Any]]:
        requests_ = e2b.state()["requests"]
        return [request for request in requests_ if request["at_s"] >= at_s]

    e2b.wait_for(lambda _: len(sent()) == 3, 30)
    assert [request["kind"] for request in sent()] == ["create", "run", "kill"]
    create, run, kill = sent()
    assert {**create["body"], "metadata": None} == {
        "templateID": "code-interpreter-v1",
        "metadata": None,
        "timeout": 65,
        "allow_internet_access": True,
        "envVars": {},
    }
    assert set(create["body"]["metadata"]) == {
        "service",
        "version",
        "process",
        "create",
    }
    assert create["body"]["metadata"]["version"] == VERSION
    assert run["body"]["code"] == "1"
    assert kill["method"] == "DELETE"


def test_a_kernel_that_ended_between_two_calls_is_noticed(
    session_service: Service, own_id: str
) -> None:
    code = (
        "import os\nkept = 41\n_ = open('kept.txt', 'w').write('a file')\nos.getpid()"
    )
    found = re.search(r"\n(\d+)\n", call(session_service, own_id, code))
    assert found
    os.kill(int(found[1]), signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(int(found[1])))
    text = call(session_service, own_id, "print(open('kept.txt').read())")
    assert "a file" in text
    assert "Note: The variables that this conversation had kept are gone" in text
    # It has all that a new kernel has.
    text = call(session_service, own_id, "exit()\n")
    assert "Note" not in text
    text = call(session_service, own_id, "1/0")
    assert "Cell In[3], line 1" in text
    assert "Note" not in text


@pytest.mark.parametrize("code", ["exit()", "quit()", "import sys\nsys.exit()"])
def test_an_exit_does_not_cost_a_session_what_it_has(
    session_service: Service, own_id: str, code: str
) -> None:
    call(session_service, own_id, f"kept = 41\n{code}")
    text = call(session_service, own_id, "print(kept + 1)")
    assert "42" in text
    assert "Note" not in text
