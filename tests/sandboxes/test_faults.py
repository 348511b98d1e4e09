"""What the service survives: E2B that misbehaves, and load. Each row is a promise.

Real sockets, the real SDK, the service as shipped. Rows about what a run may produce
are in tests/service/test_hostile_results.py, rows about signals are in
tests/process/test_process.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from builders import stdout
from faults import UPSTREAM, Since, assert_reply, timed_execute
from local_e2b import LocalE2B

from conftest import E2B_KEY, OK_RUN, Service, e2b_at


@pytest.fixture
def since(e2b: LocalE2B) -> Since:
    return Since(e2b)


# --- creates, runs and kills that fail ------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_create_answers_401_or_403_the_reply_says_that_e2b_refused_the_services_key(
    checked_service: Service, e2b: LocalE2B, since: Since, status: int
) -> None:
    body = {"code": status, "message": f"{UPSTREAM}, your key {E2B_KEY} is not valid"}
    e2b.set_script({"create": {"status": status, "body": body}, "run": OK_RUN})
    at = len(checked_service.lines)
    assert_reply(
        checked_service.execute(),
        "unavailable",
        "E2B refused this service's key",
        e2b=e2b,
    )
    checked_service.wait_for_log("E2B_API_KEY", after=at)  # which variable to check
    assert len(since.requests("create")) == 1
    assert since.count("created") == 0


@pytest.mark.parametrize(
    ("statuses", "headers", "most_tries", "at_least_s"),
    [
        pytest.param([429], {}, 4, 0, id="429 without Retry-After"),
        pytest.param([503], {}, 4, 0, id="503 without Retry-After"),
        # At least one second each, so that both were heeded.
        pytest.param(
            [429, 503] * 2, {"Retry-After": "1"}, 4, 2, id="both with Retry-After"
        ),
        pytest.param(
            [429],
            {"Retry-After": "60"},
            1,
            0,
            id="429 with a Retry-After beyond the limit",
        ),
    ],
)
def test_create_answers_429_or_503_bounded_retries_then_says_e2b_is_at_its_limit(
    checked_service: Service,
    e2b: LocalE2B,
    since: Since,
    statuses: list[int],
    headers: dict[str, str],
    most_tries: int,
    at_least_s: float,
) -> None:
    answers = [
        {
            "status": status,
            "headers": headers,
            "body": {"code": status, "message": UPSTREAM},
        }
        for status in statuses
    ]
    e2b.set_script({"create": answers, "run": OK_RUN})
    response, took_s = timed_execute(checked_service, "1", timeout=1)
    assert_reply(response, "unavailable", "E2B is at its limit", e2b=e2b)
    assert at_least_s <= took_s < 11
    assert 1 <= len(since.requests("create")) <= most_tries
    assert since.count("created") == 0


def test_create_answers_429_once_and_the_run_succeeds(
    checked_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script(
        {
            "create": [{"status": 429, "headers": {"Retry-After": "0"}}, {}],
            "run": OK_RUN,
        }
    )
    assert_reply(checked_service.execute(), "ok", "ok\n", e2b=e2b)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            {"status": 500, "body": {"code": 500, "message": UPSTREAM}}, id="500"
        ),
        pytest.param({"status": 201, "body": "<html>words of upstream"}, id="no JSON"),
        pytest.param(
            {"status": 201, "body": {"words": UPSTREAM}}, id="no sandbox in it"
        ),
        pytest.param({"status": 201, "body": []}, id="a list"),
        pytest.param(
            {"status": 302, "headers": {"Location": "/elsewhere"}}, id="redirect"
        ),
        pytest.param({"status": 200, "body": ""}, id="empty"),
    ],
)
def test_create_answers_what_cannot_be_understood(
    checked_service: Service, e2b: LocalE2B, answer: dict[str, Any]
) -> None:
    e2b.set_script({"create": answer, "run": OK_RUN})
    assert_reply(checked_service.execute(), "unavailable", "E2B failed", e2b=e2b)


def test_create_reaches_nobody_says_so_within_the_run_limit_plus_10_s(
    start_service: Callable[..., Service],
) -> None:
    # A name longer than can be is refused by the resolver without asking anyone. That
    # nobody listens at an address is in test_sandbox.py.
    service = start_service(**e2b_at(f"http://{'a' * 64}.test"))
    response, took_s = timed_execute(service, "1", timeout=1)
    assert_reply(response, "unavailable", "E2B could not be reached")
    assert took_s < 11


def test_create_accepts_and_hangs_says_so_within_the_limit_plus_10_s_its_thread_is_free(
    checked_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script({"create": [{"fault": "hang"}], "run": OK_RUN})
    response, took_s = timed_execute(checked_service, "1", timeout=1)
    assert_reply(response, "unavailable", "E2B did not answer in time")
    assert took_s < 11
    health = requests.get(f"{checked_service.url}/health", timeout=30).json()
    assert health["runs_in_flight"] == 0


def test_create_succeeds_but_every_reply_is_lost_the_orphan_is_found_and_killed(
    checked_service: Service, e2b: LocalE2B, since: Since
) -> None:
    e2b.set_script(
        {"create": [{"fault": "lost_reply"}, {"fault": "reset"}], "run": OK_RUN}
    )
    response, took_s = timed_execute(checked_service, "1", timeout=1)
    assert_reply(response, "unavailable", "E2B could not be reached", e2b=e2b)
    assert took_s < 11
    state = e2b.wait_for(lambda state: state["alive"] == 0, 20)
    assert state["sandboxes"][-1]["timeout_s"] == 16  # limit plus 15 s
    assert since.count("expired") == 0
    assert since.count("killed") == since.count("created") == 1


def test_create_succeeds_but_its_reply_is_lost_the_retry_has_the_same_idempotency_key(
    checked_service: Service, e2b: LocalE2B, since: Since
) -> None:
    e2b.set_script({"create": [{"fault": "lost_reply"}, {}], "run": OK_RUN})
    assert_reply(checked_service.execute(), "ok", "ok\n", e2b=e2b)
    e2b.wait_for(lambda state: state["alive"] == 0, 30)
    keys = [
        request["headers"]["idempotency-key"] for request in since.requests("create")
    ]
    assert len(keys) == 2
    assert re.fullmatch("[a-z0-9-]{1,255}", keys[0])
    assert len(set(keys)) == 1
    assert since.count("created") == since.count("killed") == 1


ENDLESS = {"events": [stdout("printed before\n")], "keepalive_s": 0.3}


def best_of_three(
    service: Service, code: str, timeout: int
) -> tuple[requests.Response, float]:
    """The first call that is over in time, or the third: something else may have kept
    this machine busy."""
    for _ in range(3):
        response, took_s = timed_execute(service, code, timeout=timeout)
        if took_s < timeout + 1:
            break
    return response, took_s


@pytest.mark.parametrize(
    ("code", "limit_s", "answer"),
    [
        pytest.param(
            "print('printed before', flush=True)\nwhile True: pass",
            5,  # a kernel is started in that time
            {"kernel": True},
            id="loop",
        ),
        pytest.param("1", 1, {**ENDLESS, "fault": "forever"}, id="keepalives forever"),
        pytest.param("1", 1, {**ENDLESS, "fault": "drip"}, id="drip"),
    ],
)
def test_run_never_ends_it_ends_at_the_limit_and_what_was_printed_is_returned(
    checked_service: Service,
    e2b: LocalE2B,
    code: str,
    limit_s: int,
    answer: dict[str, Any],
) -> None:
    e2b.set_script({"run": answer})
    response, took_s = best_of_three(checked_service, code, limit_s)
    text = assert_reply(response, "timeout", f"{limit_s} s", e2b=e2b)
    assert text.startswith(
        "**Console Output:**\n```\nprinted before\n```\n\n**Execution Error:**"
    )
    assert limit_s <= took_s < limit_s + 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param({"fault": "hang"}, [], id="hang"),
        pytest.param({**ENDLESS, "fault": "silent"}, ["printed before"], id="silent"),
    ],
)
def test_run_hangs_or_falls_silent_it_is_answered_at_the_limit(
    checked_service: Service, e2b: LocalE2B, answer: dict[str, Any], words: list[str]
) -> None:
    e2b.set_script({"run": answer})
    response, took_s = best_of_three(checked_service, "1", 1)
    assert_reply(response, "timeout", "stopped after 1 s", *words, e2b=e2b)
    assert 1 <= took_s < 2


def test_run_hangs_or_falls_silent_and_the_kill_does_not_end_it_either(
    checked_service: Service, e2b: LocalE2B, since: Since
) -> None:
    faults = ["hang", "silent", "forever", "drip"]
    kills = [{"fault": "hang_alive"}] * 2 + [{"fault": "ignored"}] * 2 + [{}]
    e2b.set_script({"run": {"from_code": True}, "kill": kills})
    codes = [f"1\n# answer: {json.dumps({'fault': fault})}" for fault in faults]

    def call(code: str) -> tuple[requests.Response, float]:
        return best_of_three(checked_service, code, 1)

    with ThreadPoolExecutor(len(codes)) as threads:
        for response, took_s in threads.map(call, codes):
            assert_reply(response, "timeout", "stopped after 1 s", e2b=e2b)
            assert 1 <= took_s < 2
    e2b.wait_for(lambda state: state["alive"] == 0, 15)
    # The kill is tried again, off the caller's path.
    assert since.count("killed") == since.count("created")
    assert since.count("kill_requests") == since.count("created") + 4


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("cut", "the connection ended before", id="stream cut mid-line"),
        pytest.param("not_json", "could not be read", id="a line that is not JSON"),
        pytest.param(
            "no_end", "ended before the run did", id="an end without the end marker"
        ),
    ],
)
def test_stream_is_broken_it_is_said_plainly_and_partial_output_is_kept(
    checked_service: Service, e2b: LocalE2B, since: Since, fault: str, words: str
) -> None:
    e2b.set_script({"run": {"events": [stdout("printed before\n")], "fault": fault}})
    assert_reply(
        checked_service.execute(),
        "error",
        "printed before",
        "The run broke off",
        words,
        e2b=e2b,
    )
    assert len(since.requests("run")) == 1


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(
            '{"type": "stdout", "text": "a"}\n[1, 2]\n', id="a line that is a list"
        ),
        pytest.param('{"type": "stdout"}\n', id="output without text"),
        pytest.param(
            '{"type": "result", "extra": 3, "png": 4}\n', id="a result of numbers"
        ),
        pytest.param(
            '{"type": "error", "name": "E"}\n', id="an error of half its fields"
        ),
        pytest.param("[" * 200_000 + "\n", id="nested 200,000 deep"),
        pytest.param(
            '{"type": "stdout", "text": ' + "9" * 5000 + "}\n", id="5,000 digits"
        ),
        pytest.param('{"type": "stdout", "text": "\\ud800"}\n', id="a lone surrogate"),
        pytest.param('{"type": "new in a later version"}\n', id="an unknown kind"),
        pytest.param("\0\n\n\r\n", id="NUL and blank lines"),
        pytest.param("", id="nothing"),
    ],
)
def test_stream_of_anything_at_all_gives_a_reply_and_never_a_500(
    checked_service: Service, e2b: LocalE2B, raw: str
) -> None:
    e2b.set_script({"run": {"events": [raw], "raw": True}})
    assert_reply(checked_service.execute(), "error", "**Execution Error:**", e2b=e2b)


@pytest.mark.parametrize(
    "fault", ["gone", "not_found"], ids=["answered 502", "answered 404"]
)
def test_sandbox_gone_before_the_run_began_one_retry_on_a_fresh_one(
    checked_service: Service, e2b: LocalE2B, since: Since, fault: str
) -> None:
    e2b.set_script({"run": [{"fault": fault}, OK_RUN]})
    assert_reply(checked_service.execute("first"), "ok", "ok\n", e2b=e2b)
    runs = since.requests("run")
    assert [request["body"]["code"] for request in runs] == ["first", "first"]
    assert len({request["sandbox_id"] for request in runs}) == 2
    assert since.count("created") == 2


@pytest.mark.parametrize(
    "fault", ["gone", "not_found"], ids=["answered 502", "answered 404"]
)
def test_sandbox_gone_before_the_run_began_twice_is_said_and_not_tried_a_third_time(
    checked_service: Service, e2b: LocalE2B, since: Since, fault: str
) -> None:
    e2b.set_script({"run": {"fault": fault}})
    assert_reply(
        checked_service.execute(), "unavailable", "the code did not run", e2b=e2b
    )
    assert len(since.requests("run")) == 2


def test_sandbox_vanishes_once_the_run_has_begun_error_no_second_run(
    checked_service: Service, e2b: LocalE2B, since: Since
) -> None:
    e2b.set_script({"run": {"events": [stdout("printed before\n")], "fault": "vanish"}})
    assert_reply(
        checked_service.execute(), "error", "printed before", "broke off", e2b=e2b
    )
    assert len(since.requests("run")) == 1
    assert since.count("created") == 1


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_run_is_refused_it_is_said_and_nothing_is_tried_again(
    checked_service: Service, e2b: LocalE2B, since: Since, status: int
) -> None:
    e2b.set_script(
        {"run": {"status": status, "body": {"message": f"{UPSTREAM} {E2B_KEY}"}}}
    )
    assert_reply(checked_service.execute(), "unavailable", "did not run", e2b=e2b)
    assert len(since.requests("run")) == 1


def test_run_is_reset_before_its_answer_it_is_not_sent_twice(
    checked_service: Service, e2b: LocalE2B, since: Since
) -> None:
    e2b.set_script({"run": {"fault": "reset"}})
    assert_reply(
        checked_service.execute(), "unavailable", "may or may not have run", e2b=e2b
    )
    assert len(since.requests("run")) == 1


@pytest.mark.parametrize(
    ("fault", "tries"),
    [
        pytest.param({"fault": "not_found", "really": True}, 1, id="kill answers 404"),
        pytest.param({"fault": "ignored"}, 2, id="kill answers 500"),
        pytest.param({"fault": "reset"}, 2, id="kill is reset"),
        pytest.param({"fault": "hang"}, 1, id="kill hangs"),
    ],
)
def test_kill_fails_the_result_is_returned_all_the_same_and_it_is_counted_and_logged(
    checked_service: Service,
    e2b: LocalE2B,
    since: Since,
    fault: dict[str, Any],
    tries: int,
) -> None:
    def failed() -> float:
        metrics = requests.get(f"{checked_service.url}/metrics", timeout=30).text
        found = re.search(r"^e2b_proxy_kills_failed_total (\S+)", metrics, re.MULTILINE)
        assert found
        return float(found[1])

    e2b.set_script({"run": OK_RUN, "kill": [fault, {}]})
    before, at = failed(), len(checked_service.lines)
    response, took_s = timed_execute(checked_service, "1")
    assert_reply(response, "ok", "ok\n", e2b=e2b)
    assert took_s < 3  # a kill has 4 s
    e2b.wait_for(
        lambda state: since.count("kill_requests") >= tries and not state["alive"], 10
    )
    if fault["fault"] == "hang":
        # It is known to have failed once its time is
        # over; the second try finds nothing to kill.
        e2b.wait_for(lambda state: since.count("kill_requests") == 2, 10)
    expected = 0 if fault["fault"] == "not_found" else 1  # what is gone is gone
    assert failed() - before == expected
    assert sum('"warning"' in line for line in checked_service.lines[at:]) == expected


# --- load -----------------------------------------------------------------------------


def test_one_more_run_than_the_cap_is_refused_in_under_100_ms_with_retry_after(
    start_service: Callable[..., Service], scripted_e2b: LocalE2B
) -> None:
    service = start_service()  # no slot of it is held by a create that failed before
    scripted_e2b.set_script({"run": {"run_s": 10, **OK_RUN}})
    with requests.Session() as session, ThreadPoolExecutor(20) as threads:
        session.get(f"{service.url}/health", timeout=30)
        running = [threads.submit(service.execute) for _ in range(20)]
        scripted_e2b.wait_for(
            lambda state: sum(s["alive"] for s in state["sandboxes"]) == 20, 30
        )
        scripted_e2b.wait_for(
            lambda state: (
                len([r for r in state["requests"] if r["kind"] == "run"]) >= 20
            ),
            30,
        )
        fastest_s = {"refusal": 9.0, "health": 9.0}
        for _ in range(10):
            refusal = session.post(
                f"{service.url}/execute", json={"code": "1"}, timeout=30
            )
            assert refusal.status_code == 503
            assert int(refusal.headers["Retry-After"]) >= 1
            assert refusal.json()["error"]["code"] == "service_unavailable"
            health = session.get(f"{service.url}/health", timeout=30)
            assert health.json()["runs_in_flight"] == 20
            fastest_s["refusal"] = min(
                fastest_s["refusal"], refusal.elapsed.total_seconds()
            )
            fastest_s["health"] = min(
                fastest_s["health"], health.elapsed.total_seconds()
            )
            if max(fastest_s.values()) < 0.1:
                break  # or before all runs have ended, on a busy machine
        assert max(fastest_s.values()) < 0.1
        assert {row.result().headers["X-Run-Outcome"] for row in running} == {"ok"}
