"""Creates that E2B did not answer: what it made all the same is found and killed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import requests
from local_e2b import LocalE2B
from pools import (
    QUICK_SEARCH,
    UNFILTERED,
    MakePool,
    State,
    requests_of,
    session_pool,
    wait_until,
)

from conftest import OK_RUN, Service
from sandboxes.sandbox import FAILED
from texts.cell import Cell


@pytest.mark.parametrize(
    "creates",
    [
        pytest.param([{"fault": "late", "late_s": 1.3}], id="made late"),
        pytest.param([{"fault": "lost_reply"}, {"fault": "reset"}], id="lost twice"),
    ],
)
def test_a_sandbox_whose_create_was_not_answered_is_found_and_killed(
    direct_e2b: LocalE2B, make_pool: MakePool, creates: list[State]
) -> None:
    # It is not found before this test has seen that it is looked for.
    direct_e2b.set_script(
        {"run": OK_RUN, "create": creates, "list": {"fault": "reset"}}
    )
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=1)
    assert pool.run(Cell("1"), 30).outcome == "unavailable"
    assert pool.count("lost") == 1
    assert pool.seconds_spent() > 0
    direct_e2b.set_script({"run": OK_RUN})
    state = direct_e2b.wait_for(lambda state: state["killed"] == 1, 10)
    assert (state["created"], state["alive"]) == (1, 0)
    wait_until(lambda: pool.count("lost") == 0)
    assert pool.seconds_spent() == pytest.approx(state["sandbox_seconds"], abs=2)


@pytest.mark.parametrize(
    "create",
    [
        pytest.param({"status": 500, "body": {"code": 500}}, id="500"),
        pytest.param({"status": 201, "body": "<html>"}, id="not JSON"),
        pytest.param({"fault": "reset"}, id="reset"),
    ],
)
def test_the_slot_of_a_create_that_made_nothing_is_free_and_costs_nothing_in_the_end(
    direct_e2b: LocalE2B, make_pool: MakePool, create: State
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": create})
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=1)
    assert pool.run(Cell("1"), 30).outcome == "unavailable"
    assert pool.count("lost") == 1
    wait_until(lambda: pool.count("lost") == 0, 10)
    assert pool.seconds_spent() == 0
    searches = requests_of(direct_e2b.state(), "list")
    assert 2 <= len(searches) <= 6
    direct_e2b.set_script({"run": OK_RUN})
    assert pool.run(Cell("1"), 5).outcome == "ok"


# What E2B, and what stands before it, may send with a status.
BODIES = {
    "E2B's JSON": '{"code": 1, "message": "no"}',
    "JSON without a code": '{"message": "Forbidden"}',
    "a list": "[]",
    "a string": '"no"',
    "HTML": "<html><head><title>Too Many Requests</title></head></html>",
    "nothing": "",
}
NO_RETRY = {"Retry-After": "99"}  # or the SDK asks three times more


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_create_that_was_refused_frees_its_slot_without_a_search_whatever_its_body(
    direct_e2b: LocalE2B, make_pool: MakePool, body: str
) -> None:
    words = dict.fromkeys((401, 403), "E2B_API_KEY")
    words |= dict.fromkeys((400, 404), "E2B_TEMPLATE")
    words |= dict.fromkeys((405, 409, 413, 418, 422, 451), "E2B failed")
    words[429] = "at its limit"
    answers = [{"status": each, "body": body, "headers": NO_RETRY} for each in words]
    direct_e2b.set_script({"run": OK_RUN, "create": answers})
    pool = make_pool(max_concurrent_runs=1)
    for status, said in words.items():
        run = pool.run(Cell("1"), 5)
        assert (run.outcome, pool.count("lost")) == ("unavailable", 0), status
        assert said in run.problem, status
    assert not requests_of(direct_e2b.state(), "list")


def test_any_other_answer_than_a_refusal_holds_its_slot_whatever_its_body(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    answers = [
        {"status": status, "body": body, "headers": NO_RETRY}
        for status in (200, 201, 302, 500, 502, 503, 504)
        for body in BODIES.values()
    ]
    direct_e2b.set_script(
        {"run": OK_RUN, "create": answers, "list": {"fault": "reset"}}
    )
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=len(answers))
    for number, answer in enumerate(answers, 1):
        assert pool.run(Cell("1"), 30).outcome == "unavailable", answer
        assert pool.count("lost") == number, answer
    direct_e2b.set_script({"run": OK_RUN})
    wait_until(lambda: pool.count("lost") == 0, 20)


@pytest.mark.parametrize("fault", ["hang", "reset", "lost_reply"])
def test_a_refusal_before_a_try_without_an_answer_does_not_free_the_slot(
    direct_e2b: LocalE2B, make_pool: MakePool, fault: str
) -> None:
    """The SDK tries again after a 429: E2B may have made what it had refused."""
    refusal = {"status": 429, "headers": {"Retry-After": "0"}}
    direct_e2b.set_script({"create": [refusal, {"fault": fault}]})
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=1)
    assert pool.run(Cell("1"), 30).outcome == "unavailable"
    assert pool.count("lost") == 1


def test_health_and_metrics_tell_of_lost_sandboxes(
    scripted_e2b: LocalE2B, default_service: Service
) -> None:
    def lost() -> tuple[int, float]:
        health = requests.get(f"{default_service.url}/health", timeout=30).json()
        metrics = requests.get(f"{default_service.url}/metrics", timeout=30).text
        [line] = [
            line
            for line in metrics.splitlines()
            if line.startswith("e2b_proxy_lost_sandboxes ")
        ]
        return health["lost_sandboxes"], float(line.split()[1])

    assert lost() == (0, 0)
    scripted_e2b.set_script({"create": {"status": 500, "body": "<html>"}})
    assert "E2B failed" in default_service.execute("1").text
    assert lost() == (1, 1)


def test_an_outage_of_e2b_never_reads_as_full(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    broken = {"status": 500, "body": {"code": 500}}
    direct_e2b.set_script({"run": OK_RUN, "create": broken, "list": broken})
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=2)
    for _ in range(5):
        assert pool.run(Cell("1"), 30).problem == "E2B failed. Try again in a minute."
    assert pool.count("lost") == 2
    direct_e2b.set_script({"run": OK_RUN})
    wait_until(lambda: pool.count("lost") == 0, 10)
    assert pool.run(Cell("1"), 5).outcome == "ok"


def test_what_e2b_cannot_say_counts_until_the_end_of_its_lifetime(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    timing = replace(QUICK_SEARCH, lifetime_margin_s=1)
    creates = [{"fault": "lost_reply"}, {"fault": "reset"}]
    direct_e2b.set_script(
        {"run": OK_RUN, "create": creates, "list": {"fault": "reset"}}
    )
    pool = make_pool(timing, max_concurrent_runs=1)
    pool.run(Cell("1"), 1)
    direct_e2b.wait_for(lambda state: state["expired"] == 1, 10)
    assert pool.count("lost") == 1
    wait_until(lambda: pool.count("lost") == 0, 10)
    assert pool.seconds_spent() >= 2


def test_an_id_that_is_none_is_a_create_that_failed(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    created = {"templateID": "t", "clientID": "c", "envdVersion": "0.5.9"}
    ids = [None, 12345678, "", "../v2/sandboxes", "short"]
    creates = [{"status": 201, "body": created | {"sandboxID": id_}} for id_ in ids]
    direct_e2b.set_script({"run": OK_RUN, "create": creates})
    pool = make_pool(QUICK_SEARCH)
    for _ in ids:
        run = pool.run(Cell("1"), 30)
        assert (run.outcome, run.problem) == ("unavailable", FAILED)
    assert len(requests_of(direct_e2b.state(), "create")) == len(ids)
    wait_until(lambda: pool.count("lost") == 0, 10)
    state = direct_e2b.state()
    assert {request["kind"] for request in state["requests"]} == {"create", "list"}


@pytest.mark.parametrize("listing", UNFILTERED)
@pytest.mark.parametrize("last_try", [{"fault": "reset"}, {"status": 500}])
def test_a_create_without_an_answer_kills_nothing_else_of_a_list_that_holds_all(
    direct_e2b: LocalE2B, make_pool: MakePool, listing: State, last_try: State
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "list": listing})
    pool = session_pool(make_pool, timing=QUICK_SEARCH)
    for mark in ("a", "b"):
        pool.run(Cell("1"), 5, mark)
    others = {sandbox["id"] for sandbox in direct_e2b.state()["sandboxes"]}
    creates = [{"fault": "lost_reply"}, last_try]
    direct_e2b.set_script({"run": OK_RUN, "list": listing, "create": creates})
    for created in (3, 3):  # the second one makes nothing: it is looked for in vain
        assert pool.run(Cell("1"), 30).outcome == "unavailable"
        wait_until(lambda: pool.count("lost") == 0, 10)
        state = direct_e2b.state()
        assert state["created"] == created
        alive = {each["id"] for each in state["sandboxes"] if each["alive"]}
        assert alive == others
