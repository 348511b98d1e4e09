"""What the soak takes for explained, and what it would notice."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import launch
import pytest
import requests
from answers import Client, RequestsClient, WrongAnswer
from processes import answered
from requests_mock import ANY, Mocker
from soak import (
    PLAIN,
    RUN_FAULTS,
    SESSION_CALLS,
    Caller,
    Life,
    Load,
    Plan,
    Restart,
    Session,
    call_session,
    code_of_session,
    problems,
)
from tool_answers import (
    BASE,
    BETWEEN,
    GIF_URI,
    HTML,
    PNG_URI,
    PORT,
    Fields,
    exec_reply,
    play,
    refusal,
    run_reply,
    tool_result,
    uploaded,
)

PRINT = PLAIN[0][1]
CODE = answered(**PRINT.answer).replace("{n}", "7")
GOOD = run_reply(CODE, "number 7")
NO_SANDBOX = "E2B is at its limit of sandboxes or requests. Try again in a minute."
SAYS_SO = run_reply(CODE, NO_SANDBOX, outcome="unavailable")
FULL_NOW = tool_result("Every slot is taken. Try again in 5 seconds.", failed=True)
CODE_API_FULL = {
    "json": {"error": "rate_limited", "message": "Every slot is taken. Try again."},
    "status_code": 429,
    "headers": {"Retry-After": "5"},
}
RESET = {"exc": requests.ConnectionError("reset by peer")}
TIMED_OUT = {"exc": requests.ReadTimeout("timed out")}


@pytest.fixture
def client() -> Iterator[RequestsClient]:
    client = RequestsClient(PORT, timeout_s=5)
    yield client
    client.close()


@pytest.fixture
def load() -> Load:
    """Without callers of its own: it counts for one."""
    return Load(PORT, callers=0, runs=0, faults=0)


@pytest.fixture
def caller(load: Load, client: RequestsClient) -> Caller:
    return Caller(load, client)


def count_of(load: Load, name: str) -> int:
    return int(getattr(load.report, name))


def run(caller: Caller) -> str:
    return caller.run(PRINT, 7, over_mcp=False)


def run_over_mcp(caller: Caller) -> str:
    return caller.run(PRINT, 7, over_mcp=True)


def run_exec(caller: Caller) -> str:
    return caller.exec(7)


@pytest.mark.parametrize(
    ("ask", "path", "answers", "counted"),
    [
        (run, "/execute", [SAYS_SO], "no_sandbox"),
        (run, "/execute", [refusal(), GOOD], "full"),
        (run_over_mcp, "/mcp", [tool_result(NO_SANDBOX, failed=True)], "no_sandbox"),
        (run_over_mcp, "/mcp", [FULL_NOW, tool_result()], "full"),
        (run_exec, "/v1/exec", [exec_reply(stderr=NO_SANDBOX)], "no_sandbox"),
        (run_exec, "/v1/exec", [CODE_API_FULL, exec_reply(stderr=NO_SANDBOX)], "full"),
    ],
)
def test_what_the_service_says_of_a_refusal_is_counted(
    ask: Callable[[Caller], str],
    path: str,
    answers: list[Fields],
    counted: str,
    load: Load,
    caller: Caller,
    requests_mock: Mocker,
) -> None:
    play(requests_mock, {"POST /v1/upload": uploaded()})
    requests_mock.post(f"{BASE}{path}", answers)
    ask(caller)
    assert count_of(load, counted) == 1


def test_a_service_that_stays_full_has_not_answered(
    load: Load, caller: Caller, requests_mock: Mocker
) -> None:
    requests_mock.post(f"{BASE}/execute", **refusal())
    load.end()
    with pytest.raises(WrongAnswer, match="was not answered"):
        run(caller)


@pytest.mark.parametrize(
    ("fate", "reply", "is_right"),
    [
        ("cut", run_reply("{}", "number 7", outcome="error"), True),
        ("cut", run_reply("{}", "The run broke off.", outcome="error"), False),
        ("cut", run_reply("{}", "number 7", outcome="ok"), False),
        ("hang", run_reply("{}", "", outcome="timeout"), True),
        ("hang", run_reply("{}", "", outcome="error"), False),
        ("silent", run_reply("{}", "number 6", outcome="timeout"), False),
        ("reset", run_reply("{}", NO_SANDBOX, outcome="unavailable"), True),
        ("reset", run_reply("{}", "number 7", outcome="unavailable"), False),
        ("reset", run_reply("{}", "number 7", outcome="ok"), False),
        ("exception", run_reply("{}", "ZeroDivisionError: x", outcome="error"), True),
        ("exception", run_reply("{}", "NameError: x", outcome="error"), False),
        ("too long", run_reply("{}", "after 1 s, its", outcome="timeout"), True),
        ("too long", run_reply("{}", "after 11 s, its", outcome="timeout"), False),
        ("pictures", run_reply("{}", "number 7", (PNG_URI,) * 3), True),
        ("pictures", run_reply("{}", "number 7", (PNG_URI,) * 2), False),
        ("pictures", run_reply("{}", "number 7", (PNG_URI, PNG_URI, GIF_URI)), False),
        ("long output", run_reply("{}", "9 characters cut"), True),
        ("long output", run_reply("{}", "xxxx"), False),
    ],
)
def test_a_run_is_held_to_its_fate(
    fate: str,
    reply: Fields,
    is_right: bool,
    caller: Caller,
    load: Load,
    requests_mock: Mocker,
) -> None:
    [found] = [fate_ for _, fate_ in (*PLAIN, *RUN_FAULTS) if fate_.name == fate]
    code = answered(**found.answer).replace("{n}", "7")
    body = json.dumps(reply["json"]).replace("{}", json.dumps(code)[1:-1])
    requests_mock.post(f"{BASE}/execute", text=body, headers=reply["headers"])
    if is_right:
        caller.run(found, 7, over_mcp=False)
    else:
        with pytest.raises(WrongAnswer):
            caller.run(found, 7, over_mcp=False)
    assert count_of(load, "no_sandbox") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_connection_is_refused_while_a_restart_is_under_way(
    number: int, load: Load, caller: Caller, requests_mock: Mocker
) -> None:
    load.report.restarts.append(Restart(number, time.monotonic()))
    requests_mock.post(f"{BASE}/execute", [RESET, GOOD])
    assert run(caller) == "ok"
    assert count_of(load, "refused") == 1


def test_a_request_under_way_is_cut_by_sigkill_but_not_by_sigterm(
    load: Load, caller: Caller, requests_mock: Mocker
) -> None:
    later = time.monotonic() + 60  # than the request
    requests_mock.post(f"{BASE}/execute", [RESET, GOOD, RESET])
    load.report.restarts.append(Restart(signal.SIGKILL, later))
    assert run(caller) == "ok"
    assert count_of(load, "cut_by_kill") == 1
    load.report.restarts.append(Restart(signal.SIGTERM, later))
    with pytest.raises(WrongAnswer, match="SIGTERM cut a request"):
        run(caller)


def test_a_restart_explains_nothing_once_the_connection_has_answered_after_it(
    load: Load, caller: Caller, requests_mock: Mocker
) -> None:
    now = time.monotonic()
    load.report.restarts.append(Restart(signal.SIGKILL, now - 2, now - 1))
    requests_mock.post(f"{BASE}/execute", [GOOD, RESET])
    assert run(caller) == "ok"
    with pytest.raises(WrongAnswer, match="reset by peer"):
        run(caller)


def test_no_restart_explains_that_nothing_came_within_the_limit(
    load: Load, caller: Caller, requests_mock: Mocker
) -> None:
    load.report.restarts.append(Restart(signal.SIGKILL, time.monotonic()))
    requests_mock.post(f"{BASE}/execute", **TIMED_OUT)
    with pytest.raises(WrongAnswer, match="timed out"):
        run(caller)


@pytest.mark.parametrize("between", ["HTML", "502", "redirect"])
def test_a_soak_fails_when_something_else_answers(
    between: str, requests_mock: Mocker
) -> None:
    requests_mock.get(f"{BASE}/elsewhere", text=HTML)
    requests_mock.post(ANY, **BETWEEN[between]({}))
    requests_mock.get(ANY, **BETWEEN[between]({}))
    load = Load(PORT, callers=2, runs=1, faults=0.1)
    load.gate.set()
    give_up_at = time.monotonic() + 20
    while len(load.report.unexplained) < 5 and time.monotonic() < give_up_at:
        time.sleep(launch.POLL_S)
    load.end()
    load.report.lives.append(Life())
    plan = Plan(runs=0, faults=0, restarts=0, warm=0, callers=2, quick=True)
    found = problems(load.report, plan)
    assert len(found) >= 5
    assert all("was answered" in problem for problem in found)


# --- sessions of a soak ---------------------------------------------------------------

LONG_CALL = SESSION_CALLS // 2


def session_reply(call: int, had: str | None, note: str = "") -> Fields:
    is_too_long = call == LONG_CALL
    code = code_of_session(f"token 3.{call}", is_too_long)
    outcome = "timeout" if is_too_long else "ok"
    return run_reply(code, says=f"had {had}\n{note}", outcome=outcome)


def conversation() -> list[Fields]:
    """What a session that works answers to its calls; the long one ends its sandbox."""
    had = [None, *(f"token 3.{call}" for call in range(SESSION_CALLS - 1))]
    had[LONG_CALL + 1] = None
    return [session_reply(call, token) for call, token in enumerate(had)]


def problems_of_session(
    client: Client, requests_mock: Mocker, answers: list[Fields], **session: Any
) -> list[str]:
    requests_mock.post(f"{BASE}/execute", answers)
    return call_session(client, Session(3, **session))


def test_a_session_that_keeps_its_token_is_right(
    client: RequestsClient, requests_mock: Mocker
) -> None:
    assert problems_of_session(client, requests_mock, conversation()) == []


@pytest.mark.parametrize("between", BETWEEN)
def test_what_something_in_between_answers_is_no_session(
    between: str, client: RequestsClient, requests_mock: Mocker
) -> None:
    requests_mock.get(f"{BASE}/elsewhere", **session_reply(2, "token 3.1"))
    answers = conversation()
    answers[2] = BETWEEN[between](answers[2])
    [problem] = problems_of_session(client, requests_mock, answers)
    assert problem.startswith("session 3: POST /execute")


@pytest.mark.parametrize(
    ("call", "had", "note", "words"),
    [
        (2, "token 3.1", "", ""),
        (2, None, "What this conversation had kept is gone;", ""),
        (2, None, "", "lost token 3.1 without a word"),
        (2, "token 4.1", "", "token 4.1 of another one"),
        (2, "token 31.1", "", "token 31.1 of another one"),
        (2, "token 3.0", "", "has seen token 3.0, not token 3.1"),
        (2, "token", "", "no token in"),
        (LONG_CALL + 1, f"token 3.{LONG_CALL}", "", "not None"),
        (0, "token 4.7", "", "of another one"),
    ],
)
def test_a_session_sees_its_own_last_token(
    call: int,
    had: str | None,
    note: str,
    words: str,
    client: RequestsClient,
    requests_mock: Mocker,
) -> None:
    answers = conversation()
    answers[call] = session_reply(call, had, note)
    found = problems_of_session(client, requests_mock, answers)
    assert len(found) == bool(words)
    assert words in "".join(found)


@pytest.mark.parametrize("had", [None, "token 3.9"])
def test_after_a_restart_a_session_may_be_kept_or_forgotten(
    had: str | None, client: RequestsClient, requests_mock: Mocker
) -> None:
    answers = conversation()
    answers[0] = session_reply(0, had)
    kept = problems_of_session(client, requests_mock, answers, kept="token 3.9")
    assert kept == []


@pytest.mark.parametrize("outcome", ["error", "unavailable", "timeout"])
def test_a_call_of_a_session_ends_as_it_should(
    outcome: str, client: RequestsClient, requests_mock: Mocker
) -> None:
    answers = conversation()
    answers[2] = {**answers[2], "headers": {"X-Run-Outcome": outcome}}
    [problem] = problems_of_session(client, requests_mock, answers)
    assert f"but {outcome}" in problem
