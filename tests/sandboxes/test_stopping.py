"""A run whose caller has hung up is stopped: nobody reads it, and it is paid for.

Runs last a minute here, so that none of them ends by itself."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from builders import is_running
from local_e2b import LocalE2B
from pools import MakePool, answered, requests_of, session_pool, wait_until
from raw_http import all_of, connected, get, one_answer

from caller import Caller
from conftest import OK_RUN, Service, e2b_at
from sandboxes.pool import CALLER_GONE
from texts.cell import Cell

LONG = {"run": {"run_s": 60, **OK_RUN}}
# Linux closes a connection whose linger time is 0 s by a reset.
BY_RESET = struct.pack("ii", 1, 0)
Request = tuple[str, dict[str, Any]]
WAYS: dict[str, Request] = {
    "execute": ("/execute", {"code": "1"}),
    "mcp": (
        "/mcp",
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "execute_python", "arguments": {"code": "1"}},
        },
    ),
    "exec": ("/v1/exec", {"lang": "py", "code": "1"}),
}
EACH_WAY = pytest.mark.parametrize("way", WAYS)


def sent(request: Request, **headers: str) -> bytes:
    path, body = request
    data = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


def close(client: socket.socket) -> None:
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, BY_RESET)
    client.close()


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


@pytest.fixture
def service(start_service: Callable[..., Service], tmp_path: Path) -> Service:
    return start_service(RUN_TIMEOUT_S="60", FILES_DIR=str(tmp_path))


def health(service: Service) -> dict[str, Any]:
    reply: dict[str, Any] = requests.get(f"{service.url}/health", timeout=30).json()
    return reply


# --- over the wire --------------------------------------------------------------------


@EACH_WAY
@pytest.mark.parametrize("hang_up", [close, reset, half_close])
def test_a_run_ends_when_its_caller_hangs_up(
    service: Service,
    scripted_e2b: LocalE2B,
    way: str,
    hang_up: Callable[[socket.socket], None],
) -> None:
    scripted_e2b.set_script(LONG)
    with connected(service) as client:
        client.sendall(sent(WAYS[way]))
        scripted_e2b.wait_for(is_running)
        hang_up(client)
        scripted_e2b.wait_for(lambda state: state["killed"] == 1)
        line = json.loads(service.wait_for_log('"outcome":'))
    assert line["outcome"] == "cancelled"
    assert "run failed" not in "".join(service.lines)
    wait_until(lambda: health(service)["runs_in_flight"] == 0)
    assert scripted_e2b.state()["created"] == 1
    metrics = requests.get(f"{service.url}/metrics", timeout=30).text
    counter = "execs" if way == "exec" else "runs"
    counted = [each for each in metrics.splitlines() if 'outcome="cancelled"' in each]
    assert [each for each in counted if each.startswith(f"e2b_proxy_{counter}_total")]


@EACH_WAY
def test_a_caller_who_goes_on_sending_is_still_there(
    service: Service, scripted_e2b: LocalE2B, way: str
) -> None:
    """Also one that pipelines: bytes of the next request wait on its connection."""
    scripted_e2b.set_script({"run": {"run_s": 1, **OK_RUN}})
    with connected(service) as client:
        client.sendall(sent(WAYS[way]) + get("/health", "Connection: close"))
        answers = all_of(client)
    assert answers.count(b"HTTP/1.1 200 ") == 2
    assert b"healthy" in answers
    assert "cancelled" not in service.wait_for_log('"outcome":')


def test_one_who_pipelined_and_hung_up_is_noticed_all_the_same(
    service: Service, scripted_e2b: LocalE2B
) -> None:
    scripted_e2b.set_script(LONG)
    with connected(service) as client:
        client.sendall(sent(WAYS["execute"]) + get())
        scripted_e2b.wait_for(is_running)
    scripted_e2b.wait_for(lambda state: state["killed"] == 1)


def test_50_who_hang_up_at_once_leave_no_sandbox_and_nobody_else_is_stopped(
    start_service: Callable[..., Service], scripted_e2b: LocalE2B
) -> None:
    service = start_service(RUN_TIMEOUT_S="60", MAX_CONCURRENT_RUNS="60")
    scripted_e2b.set_script({"run": {"from_code": True}})
    quick = '# answer: {"run_s": 3, "events": [{"type": "stdout", "text": "here"}]}'
    slow = '# answer: {"run_s": 60}'
    with ThreadPoolExecutor(10) as threads:
        gone = [connected(service) for _ in range(50)]
        for client in gone:
            client.sendall(sent(("/execute", {"code": slow})))
        scripted_e2b.wait_for(lambda state: len(requests_of(state, "run")) == 50)
        staying = [threads.submit(service.execute, quick) for _ in range(10)]
        scripted_e2b.wait_for(lambda state: len(requests_of(state, "run")) == 60)
        for client in gone:
            client.close()
        scripted_e2b.wait_for(lambda state: state["killed"] >= 50)
        for reply in staying:
            assert reply.result().headers["X-Run-Outcome"] == "ok"
    scripted_e2b.wait_for(lambda state: state["alive"] == 0)
    assert scripted_e2b.state()["created"] == 60


def test_an_exec_that_was_stopped_leaves_no_file(
    start_shared: Callable[..., Service], e2b: LocalE2B, tmp_path: Path
) -> None:
    service = start_shared(FILES_DIR=str(tmp_path), RUN_TIMEOUT_S="60")
    e2b.set_script({})
    code = "open('a.txt', 'w').write('a'); import time; time.sleep(60)"
    with connected(service) as client:
        client.sendall(sent(("/v1/exec", {"lang": "py", "code": code})))
        e2b.wait_for(is_running)
    service.wait_for_log('"outcome": "cancelled"')
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


# --- by a message of MCP --------------------------------------------------------------

SESSION = "a-session-that-nobody-else-knows"


def cancel(service: Service, call_id: object, session: str) -> None:
    message = {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": call_id},
    }
    headers = {"Mcp-Session-Id": session} if session else {}
    reply = requests.post(
        f"{service.url}/mcp", json=message, headers=headers, timeout=30
    )
    assert (reply.status_code, reply.content) == (202, b"")


def test_a_message_cancels_the_call_of_its_session_and_of_its_number(
    service: Service, scripted_e2b: LocalE2B
) -> None:
    scripted_e2b.set_script(LONG)
    path, body = WAYS["mcp"]
    with connected(service) as mine, connected(service) as other:
        mine.sendall(sent((path, body), **{"Mcp-Session-Id": SESSION}))
        other.sendall(sent((path, body), **{"Mcp-Session-Id": "another session"}))
        scripted_e2b.wait_for(lambda state: len(requests_of(state, "run")) == 2)
        for wrong in ("1", 2, True, None, [1], {}):
            cancel(service, wrong, SESSION)
        for session in ("", "no such session"):
            cancel(service, 1, session)
        assert scripted_e2b.state()["alive"] == 2
        cancel(service, 1, SESSION)
        assert CALLER_GONE.encode() in one_answer(mine)
        cancel(service, 1, SESSION)  # it has ended
        state = scripted_e2b.wait_for(lambda state: state["killed"] == 1)
        assert state["alive"] == 1


def test_without_a_session_no_message_cancels_anything(
    service: Service, scripted_e2b: LocalE2B
) -> None:
    """Each client numbers its calls from 0 on."""
    scripted_e2b.set_script({"run": {"run_s": 2, **OK_RUN}})
    with connected(service) as client:
        client.sendall(sent(WAYS["mcp"]))
        scripted_e2b.wait_for(is_running)
        cancel(service, 1, "")
        assert CALLER_GONE.encode() not in one_answer(client)


def test_a_call_that_is_sent_once_more_is_answered_and_can_be_cancelled(
    service: Service, scripted_e2b: LocalE2B
) -> None:
    """As by a client whose first connection was cut."""
    scripted_e2b.set_script(LONG)
    request = sent(WAYS["mcp"], **{"Mcp-Session-Id": SESSION})
    with connected(service) as first, connected(service) as second:
        first.sendall(request)
        scripted_e2b.wait_for(is_running)
        second.sendall(request)
        scripted_e2b.wait_for(lambda state: len(requests_of(state, "run")) == 2)
        first.close()
        service.wait_for_log('"outcome": "cancelled"')
        cancel(service, 1, SESSION)
        assert CALLER_GONE.encode() in one_answer(second)
    assert "Traceback" not in "".join(service.lines)


def test_a_message_cancels_a_call_with_gunicorns_own_worker_too(
    scripted_e2b: LocalE2B,
) -> None:
    scripted_e2b.set_script(LONG)
    command = ("-k", "gthread", "proxy:app")
    service = Service(e2b_at(scripted_e2b.url), command)
    try:
        service.wait_until_ready()
        with connected(service) as client:
            client.sendall(sent(WAYS["mcp"], **{"Mcp-Session-Id": SESSION}))
            scripted_e2b.wait_for(is_running)
            cancel(service, 1, SESSION)
            assert CALLER_GONE.encode() in one_answer(client)
    finally:
        service.stop()


def test_what_is_to_be_done_when_a_caller_hangs_up_is_done_once() -> None:
    """The worker finds the client gone at each look."""
    done: list[str] = []
    caller = Caller()
    with caller.on_hang_up(lambda: done.append("first")):
        caller.hang_up()
        caller.hang_up()
        with caller.on_hang_up(lambda: done.append("second")):
            caller.hang_up()
    caller.hang_up()
    assert done == ["first", "second"]


# --- while it waits for something -----------------------------------------------------


def test_one_who_waits_for_a_slot_gets_no_sandbox(
    make_pool: MakePool, direct_e2b: LocalE2B, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "kill": {"delay_s": 3}})
    pool = make_pool(max_concurrent_runs=1)
    pool.run(Cell("1"), 5)
    caller = Caller()
    waiting = threads.submit(pool.run, Cell("2"), 5, "", caller)
    wait_until(lambda: caller.is_worked_for)
    caller.hang_up()
    run = waiting.result()
    assert (run.outcome, run.problem) == ("cancelled", CALLER_GONE)
    assert direct_e2b.state()["created"] == 1


def test_a_sandbox_that_was_made_for_one_who_has_gone_runs_nothing(
    make_pool: MakePool, direct_e2b: LocalE2B, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": {"delay_s": 1}})
    pool = make_pool()
    caller = Caller()
    running = threads.submit(pool.run, Cell("1"), 5, "", caller)
    direct_e2b.wait_for(lambda state: bool(requests_of(state, "create")))
    caller.hang_up()
    assert running.result().outcome == "cancelled"
    direct_e2b.wait_for(lambda state: state["killed"] == 1)
    assert not requests_of(direct_e2b.state(), "run")


def test_one_who_waits_for_the_turn_of_a_session_does_not_run(
    make_pool: MakePool, direct_e2b: LocalE2B, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": {"run_s": 2, **OK_RUN}})
    pool = session_pool(make_pool)
    first = threads.submit(pool.run, Cell("1"), 5, "a")
    direct_e2b.wait_for(is_running)
    caller = Caller()
    second = threads.submit(pool.run, Cell("2"), 5, "a", caller)
    wait_until(lambda: caller.is_worked_for)
    caller.hang_up()
    assert second.result().outcome == "cancelled"
    assert not first.done()
    assert first.result().outcome == "ok"
    assert len(requests_of(direct_e2b.state(), "run")) == 1


@pytest.mark.parametrize("kill", [{"fault": "hang"}, {"status": 500}])
def test_a_kill_that_fails_keeps_the_slot_and_not_the_caller(
    make_pool: MakePool,
    direct_e2b: LocalE2B,
    threads: ThreadPoolExecutor,
    kill: dict[str, Any],
) -> None:
    direct_e2b.set_script({**LONG, "kill": kill})
    pool = make_pool()
    caller = Caller()
    running = threads.submit(pool.run, Cell("1"), 60, "", caller)
    direct_e2b.wait_for(is_running)
    caller.hang_up()
    assert running.result().outcome == "cancelled"
    wait_until(lambda: pool.count("ending") == 1)
    direct_e2b.set_script({})
    wait_until(lambda: pool.count("ending") == 0)


def test_a_run_that_e2b_never_begins_to_answer_is_given_up(
    make_pool: MakePool, direct_e2b: LocalE2B, threads: ThreadPoolExecutor
) -> None:
    """Its slot is free at once; its thread waits for E2B."""
    direct_e2b.set_script({"run": {"fault": "hang"}})
    pool = make_pool()
    caller = Caller()
    running = threads.submit(pool.run, Cell("1"), 4, "", caller)
    direct_e2b.wait_for(is_running)
    caller.hang_up()
    direct_e2b.wait_for(lambda state: len(answered(state, "kill")) == 1)
    wait_until(lambda: pool.count("running", "ending") == 0)
    assert running.result().outcome == "cancelled"
    assert direct_e2b.state()["created"] == 1


# --- sessions -------------------------------------------------------------------------


@pytest.fixture
def conversation(
    start_shared: Callable[..., Service],
    kernel_e2b: LocalE2B,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., str]]:
    """`conversation(code)` runs code in a session; with `hang_up_when` its caller goes
    once that is true."""
    environ = e2b_at(kernel_e2b.url)
    service = start_shared(SESSION_IDLE_S="60", RUN_TIMEOUT_S="60", **environ)
    headers = {"X-Session-Id": f"user/{request.node.name}"[:200]}

    def call(code: str, hang_up_when: Callable[[], bool] | None = None) -> str:
        if not hang_up_when:
            body = {"code": code}
            reply = requests.post(
                f"{service.url}/execute", json=body, headers=headers, timeout=100
            )
            return str(reply.json()[0][0]["text"])
        known = len(service.lines)
        with connected(service) as client:
            client.sendall(sent(("/execute", {"code": code}), **headers))
            wait_until(hang_up_when)
        service.wait_for_log('"outcome": "cancelled"', after=known)
        return ""

    yield call


# Each writes the file `sign` once it can be interrupted.
STUCK = {
    "a loop": "sign()\nwhile True: pass",
    "a sleep": "import time\nsign()\ntime.sleep(60)",
    "a subprocess": "import subprocess\nsign()\nsubprocess.run(['sleep', '60'])",
    "a shell": "sign()\n!sleep 60",
    "a thread": "import threading\nsign()\nthreading.Event().wait()",
    "a coroutine": "import asyncio\nsign()\nawait asyncio.sleep(60)",
    "a finally": "try:\n    sign()\n    while True: pass\nfinally:\n    x = 3",
}
TAKES_NO_INTERRUPT = """
while True:
    try:
        sign()
        while True: pass
    except KeyboardInterrupt: pass"""


@pytest.mark.parametrize("stuck", STUCK)
def test_a_session_is_interrupted_and_kept(
    conversation: Callable[..., str], tmp_path: Path, stuck: str
) -> None:
    sign = tmp_path / "sign"
    conversation(f"import pathlib\nx = 41\nsign = pathlib.Path({str(sign)!r}).touch")
    conversation(STUCK[stuck], sign.exists)
    text = conversation("print('x is', x)")
    assert ("x is 3" if stuck == "a finally" else "x is 41") in text
    assert "is gone" not in text


def test_a_session_whose_code_takes_no_interrupt_is_ended_and_its_next_call_told(
    conversation: Callable[..., str], tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    conversation(f"import pathlib\nx = 41\nsign = pathlib.Path({str(sign)!r}).touch")
    conversation(TAKES_NO_INTERRUPT, sign.exists)
    text = conversation("print('x' in dir())")
    assert "False" in text
    assert "is gone; this run began anew" in text


def test_a_session_that_is_stopped_before_its_kernel_was_set_up_is_set_up_later(
    conversation: Callable[..., str], kernel_e2b: LocalE2B
) -> None:
    kernel_e2b.set_script({"run": {"delay_s": 3, "kernel": True}})
    runs = len(requests_of(kernel_e2b.state(), "run"))

    def has_begun() -> bool:
        return len(requests_of(kernel_e2b.state(), "run")) > runs

    conversation("1", has_begun)
    kernel_e2b.set_script({})
    # Without what sets the kernel up its own loop, which runs, would refuse this.
    code = "import asyncio\nprint(asyncio.run(asyncio.sleep(0, 'set up')))"
    assert "```\nset up\n```" in conversation(code)


@pytest.mark.parametrize("moment", ["create", "run"])
def test_that_a_session_is_gone_is_told_to_one_who_reads_it(
    make_pool: MakePool, direct_e2b: LocalE2B, threads: ThreadPoolExecutor, moment: str
) -> None:
    """A caller who hangs up does not: then the next one is told."""
    pool = session_pool(make_pool)
    direct_e2b.set_script(LONG)
    assert pool.run(Cell("x = 1"), 1, "a").outcome == "timeout"
    direct_e2b.set_script({**LONG, "create": {"delay_s": 1}})
    seen = len(requests_of(direct_e2b.state(), moment))
    caller = Caller()
    stopped = threads.submit(pool.run, Cell("2"), 5, "a", caller)
    direct_e2b.wait_for(lambda state: len(requests_of(state, moment)) > seen)
    caller.hang_up()
    direct_e2b.set_script({"run": OK_RUN})
    assert stopped.result().outcome == "cancelled"
    assert "is gone; this run began anew" in pool.run(Cell("x"), 5, "a").note
    assert pool.run(Cell("x"), 5, "a").note == ""
