"""The pool: never more sandboxes than the cap,
none left over, and none that costs for nothing."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import requests
from builders import empty_run
from e2b.sandbox_sync.sandbox_api import SandboxApi
from e2b_code_interpreter import Sandbox as E2BSandbox
from local_e2b import LocalE2B

from config import Config
from conftest import E2B_KEY, OK_RUN, Service, use
from run import Run
from sandboxes.keeping import KEEPING_TIMING, KeepingPool, KeepingTiming
from sandboxes.pool import Full, Need, Pool
from sandboxes.sandbox import FAILED
from texts.cell import MAKE_DATA_FOLDER, Cell

State = dict[str, Any]
MakePool = Callable[..., Pool]
REFUSED = {"status": 400, "body": {"code": 400, "message": "no"}}

pytestmark = pytest.mark.usefixtures("direct")


@pytest.fixture
def e2b(scripted_e2b: LocalE2B, monkeypatch: pytest.MonkeyPatch) -> LocalE2B:
    return use(scripted_e2b, monkeypatch)


@pytest.fixture
def make_pool(e2b: LocalE2B) -> Iterator[MakePool]:
    """A pool with these settings; none of its
    sandboxes is left when the test is over."""
    pools = []

    def make(timing: KeepingTiming = KEEPING_TIMING, **settings: Any) -> Pool:
        config = Config(e2b_api_key=E2B_KEY, **settings)
        keeps = config.session_idle_s or config.warm_sandboxes
        pools.append((KeepingPool if keeps else Pool)(config, timing))
        return pools[-1]

    yield make
    e2b.set_script({"run": OK_RUN})
    for pool in pools:
        pool.close()
    # What idle sessions leave behind is E2B's to end.
    kept = {
        r["body"]["metadata"].get("session") for r in of_kind(e2b.state(), "create")
    }
    if kept <= {None}:
        e2b.wait_for(lambda state: state["alive"] == 0, 30)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as executor:
        yield executor


def of_kind(state: State, kind: str) -> list[State]:
    return [request for request in state["requests"] if request["kind"] == kind]


def answered(state: State, kind: str) -> list[State]:
    return [request for request in of_kind(state, kind) if request["answer"]]


def runs_sent(count: int) -> Callable[[State], bool]:
    """`count` runs of callers: what primes a sandbox is none."""
    return lambda state: len(callers_runs(state)) >= count


def callers_runs(state: State) -> list[State]:
    return [
        request
        for request in of_kind(state, "run")
        if not request["body"]["code"].startswith(MAKE_DATA_FOLDER)
    ]


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """For what no event tells of."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at
        threading.Event().wait(0.01)


def refusal_s(pool: Pool, tries: int = 3) -> float:
    """How long it takes to be refused: the best, for
    something else may keep this machine busy."""
    fastest_s = math.inf
    while tries and fastest_s > 0.1:
        started, tries = time.monotonic(), tries - 1
        with pytest.raises(Full):
            pool.run(Cell("one more"), 1)
        fastest_s = min(fastest_s, time.monotonic() - started)
    return fastest_s


# --- the cap --------------------------------------------------------------------------


def test_one_more_run_than_the_cap_is_refused_at_once(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script({"run": {"run_s": 1, **OK_RUN}})
    pool = make_pool(max_concurrent_runs=3)
    running = [threads.submit(pool.run, Cell("1"), 5) for _ in range(3)]
    e2b.wait_for(runs_sent(3), 30)
    assert pool.count("running") == 3
    assert refusal_s(pool) < 0.1
    assert [run.result().outcome for run in running] == ["ok"] * 3
    assert e2b.state()["max_alive"] == 3
    assert e2b.state()["created"] == 3


def test_a_slot_counts_as_taken_while_its_sandbox_is_being_made(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script({"run": OK_RUN, "create": {"delay_s": 0.5}})
    pool = make_pool(max_concurrent_runs=1)
    running = threads.submit(pool.run, Cell("1"), 5)
    e2b.wait_for(lambda state: of_kind(state, "create"), 30)
    assert refusal_s(pool) < 0.1
    assert running.result().outcome == "ok"


def test_a_create_that_failed_leaves_its_slot_free(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "create": [REFUSED] * 3 + [{}]})
    pool = make_pool(max_concurrent_runs=1)
    outcomes = [pool.run(Cell("1"), 5).outcome for _ in range(4)]
    assert outcomes == ["unavailable"] * 3 + ["ok"]


def test_a_caller_who_comes_while_a_kill_is_under_way_waits_for_its_slot(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "kill": {"delay_s": 1.5}})
    pool = make_pool(max_concurrent_runs=1)
    started = time.monotonic()
    assert pool.run(Cell("1"), 5).outcome == "ok"
    assert time.monotonic() - started < 1.4  # the kill is off the caller's path
    second = pool.run(Cell("1"), 5)
    assert second.outcome == "ok"
    assert 0.05 < second.durations_s["queue"] < 4
    assert e2b.state()["max_alive"] == 1


def test_no_more_callers_wait_than_there_are_kills_under_way(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script({"run": OK_RUN, "kill": {"delay_s": 1.5}})
    pool = make_pool(max_concurrent_runs=2)
    for _ in range(2):
        pool.run(Cell("1"), 5)
    answers = [threads.submit(pool.run, Cell("1"), 5) for _ in range(5)]
    e2b.wait_for(lambda state: len(of_kind(state, "kill")) == 2, 30)
    refused = [a for a in answers if isinstance(a.exception(), Full)]
    assert len(refused) == 3
    assert [a.result().outcome for a in answers if a not in refused] == ["ok", "ok"]
    assert e2b.state()["max_alive"] == 2


def test_a_waiter_is_refused_when_the_kill_takes_longer_than_its_budget(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    assert KEEPING_TIMING.small_call_s <= 5
    e2b.set_script({"run": OK_RUN, "kill": {"delay_s": 2.2}})
    pool = make_pool(KeepingTiming(small_call_s=0.5), max_concurrent_runs=1)
    pool.run(Cell("1"), 5)
    assert 0.4 < refusal_s(pool, tries=1) < 2


def test_a_slot_is_held_until_the_lifetimes_end_when_every_kill_fails(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    timing = KeepingTiming(lifetime_margin_s=1, kill_again_after_s=(0.1, 0.2, math.inf))
    e2b.set_script({"run": OK_RUN, "kill": {"fault": "ignored"}})
    pool = make_pool(timing, max_concurrent_runs=1)
    started = time.monotonic()
    pool.run(Cell("1"), 1)
    e2b.wait_for(lambda state: state["kill_requests"] == 3, 30)
    assert pool.count("ending") == 1
    wait_until(lambda: pool.count("ending") == 0)
    assert 1.9 < time.monotonic() - started < 3.5
    state = e2b.wait_for(lambda state: state["alive"] == 0, 30)
    assert (state["expired"], state["killed"], state["kill_requests"]) == (1, 0, 3)


def test_a_kill_that_fails_is_tried_again_off_the_callers_path(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    assert KEEPING_TIMING.kill_again_after_s[0] <= 1
    e2b.set_script(
        {"run": OK_RUN, "kill": [{"fault": "ignored"}, {"fault": "reset"}, {}]}
    )
    pool = make_pool(KeepingTiming(kill_again_after_s=(1.5, 0.1, math.inf)))
    started = time.monotonic()
    assert pool.run(Cell("1"), 5).outcome == "ok"
    assert time.monotonic() - started < 1.4
    state = e2b.wait_for(lambda state: state["alive"] == 0, 30)
    assert (state["killed"], state["kill_requests"]) == (1, 3)


def test_code_that_cannot_be_sent_ends_its_sandbox_and_frees_its_slot(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(max_concurrent_runs=1)
    assert pool.run(Cell("\ud800"), 5).outcome == "unavailable"
    e2b.wait_for(lambda state: state["alive"] == 0 and state["created"] == 1, 30)
    assert pool.run(Cell("1"), 5).outcome == "ok"


@pytest.mark.parametrize(
    "create", [{"fault": "hang"}, {"delay_s": 0.7}], ids=["hangs", "is slow"]
)
def test_a_request_as_a_whole_ends_within_its_overhead_when_the_wait_is_long_and_create(
    e2b: LocalE2B,
    make_pool: MakePool,
    create: dict[str, Any],
) -> None:
    assert KEEPING_TIMING.overhead_s == 10
    silent = {"fault": "silent"}
    e2b.set_script(
        {"run": [OK_RUN, silent], "kill": {"delay_s": 0.5}, "create": [{}, create]}
    )
    pool = make_pool(KeepingTiming(overhead_s=4), max_concurrent_runs=1)
    pool.run(Cell("1"), 1)
    started = time.monotonic()
    run = pool.run(
        Cell("1"), 1
    )  # waits 0.5 s for the kill; then 2 s are left for a sandbox
    assert time.monotonic() - started <= 1 + 4
    assert run.outcome == ("unavailable" if "fault" in create else "timeout")


def test_making_a_sandbox_leaves_time_for_what_comes_after_the_run(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"create": {"fault": "hang"}})
    pool = make_pool(KeepingTiming(overhead_s=4))
    started = time.monotonic()
    assert pool.run(Cell("1"), 1).outcome == "unavailable"
    assert 2.4 < time.monotonic() - started < 3.5  # 1.5 s are kept


def test_a_sandbox_for_longer_work_runs_several_cells_and_lives_long_enough(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(warm_sandboxes=1, run_timeout_s=5, max_concurrent_runs=2)
    is_ready(pool)
    for is_made_ahead in (True, False):
        steps: dict[str, float] = {}
        need = Need(100, must_be_new=not is_made_ahead)
        with pool.sandbox(need, steps) as sandbox:
            for _ in range(2):
                sandbox.run("1", 5, empty_run())
            assert sandbox.left_s() > 99
            assert ("create" not in steps) == is_made_ahead
            need = Need(1, asked_at=-math.inf)
            with pytest.raises(Full), pool.sandbox(need, {}), pool.sandbox(need, {}):
                pass
    state = e2b.wait_for(lambda state: state["killed"] >= 2, 30)
    used = [request["sandbox_id"] for request in callers_runs(state)]
    assert used[0] == used[1]
    assert used[2] == used[3] != used[0]


# --- creates that were not answered ---------------------------------------------------


# A create has 1 s, and what was not answered is looked for every 0.4 s.
QUICK_SEARCH = KeepingTiming(overhead_s=1.5, reserve_s=0.5, search_again_after_s=0.4)


@pytest.mark.parametrize(
    "creates",
    [
        pytest.param([{"fault": "late", "late_s": 1.3}], id="made late"),
        pytest.param([{"fault": "lost_reply"}, {"fault": "reset"}], id="lost twice"),
    ],
)
def test_a_sandbox_whose_create_was_not_answered_is_found_and_killed(
    e2b: LocalE2B, make_pool: MakePool, creates: list[State]
) -> None:
    # It is not found before this test has seen that it is looked for.
    e2b.set_script({"run": OK_RUN, "create": creates, "list": {"fault": "reset"}})
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=1)
    assert pool.run(Cell("1"), 30).outcome == "unavailable"
    assert pool.count("lost") == 1
    assert pool.seconds_spent() > 0
    e2b.set_script({"run": OK_RUN})
    state = e2b.wait_for(lambda state: state["killed"] == 1, 10)
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
    e2b: LocalE2B, make_pool: MakePool, create: State
) -> None:
    e2b.set_script({"run": OK_RUN, "create": create})
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=1)
    assert pool.run(Cell("1"), 30).outcome == "unavailable"
    assert pool.count("lost") == 1
    wait_until(lambda: pool.count("lost") == 0, 10)
    assert pool.seconds_spent() == 0
    searches = of_kind(e2b.state(), "list")
    assert 2 <= len(searches) <= 6
    e2b.set_script({"run": OK_RUN})
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
    e2b: LocalE2B, make_pool: MakePool, body: str
) -> None:
    words = dict.fromkeys((401, 403), "E2B_API_KEY")
    words |= dict.fromkeys((400, 404), "E2B_TEMPLATE")
    words |= dict.fromkeys((405, 409, 413, 418, 422, 451), "E2B failed")
    words[429] = "at its limit"
    answers = [{"status": each, "body": body, "headers": NO_RETRY} for each in words]
    e2b.set_script({"run": OK_RUN, "create": answers})
    pool = make_pool(max_concurrent_runs=1)
    for status, said in words.items():
        run = pool.run(Cell("1"), 5)
        assert (run.outcome, pool.count("lost")) == ("unavailable", 0), status
        assert said in run.problem, status
    assert not of_kind(e2b.state(), "list")


def test_any_other_answer_than_a_refusal_holds_its_slot_whatever_its_body(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    answers = [
        {"status": status, "body": body, "headers": NO_RETRY}
        for status in (200, 201, 302, 500, 502, 503, 504)
        for body in BODIES.values()
    ]
    e2b.set_script({"run": OK_RUN, "create": answers, "list": {"fault": "reset"}})
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=len(answers))
    for number, answer in enumerate(answers, 1):
        assert pool.run(Cell("1"), 30).outcome == "unavailable", answer
        assert pool.count("lost") == number, answer
    e2b.set_script({"run": OK_RUN})
    wait_until(lambda: pool.count("lost") == 0, 20)


def test_health_and_metrics_tell_of_lost_sandboxes(
    scripted_e2b: LocalE2B, service: Service
) -> None:
    def lost() -> tuple[int, float]:
        health = requests.get(f"{service.url}/health", timeout=30).json()
        metrics = requests.get(f"{service.url}/metrics", timeout=30).text
        [line] = [
            line
            for line in metrics.splitlines()
            if line.startswith("e2b_proxy_lost_sandboxes ")
        ]
        return health["lost_sandboxes"], float(line.split()[1])

    assert lost() == (0, 0)
    scripted_e2b.set_script({"create": {"status": 500, "body": "<html>"}})
    assert "E2B failed" in service.execute("1").text
    assert lost() == (1, 1)


def test_an_outage_of_e2b_never_reads_as_full(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    broken = {"status": 500, "body": {"code": 500}}
    e2b.set_script({"run": OK_RUN, "create": broken, "list": broken})
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=2)
    for _ in range(5):
        assert pool.run(Cell("1"), 30).problem == "E2B failed. Try again in a minute."
    assert pool.count("lost") == 2
    e2b.set_script({"run": OK_RUN})
    wait_until(lambda: pool.count("lost") == 0, 10)
    assert pool.run(Cell("1"), 5).outcome == "ok"


def test_what_e2b_cannot_say_counts_until_the_end_of_its_lifetime(
    e2b: LocalE2B,
    make_pool: MakePool,
) -> None:
    timing = replace(QUICK_SEARCH, lifetime_margin_s=1)
    creates = [{"fault": "lost_reply"}, {"fault": "reset"}]
    e2b.set_script({"run": OK_RUN, "create": creates, "list": {"fault": "reset"}})
    pool = make_pool(timing, max_concurrent_runs=1)
    pool.run(Cell("1"), 1)
    e2b.wait_for(lambda state: state["expired"] == 1, 10)
    assert pool.count("lost") == 1
    wait_until(lambda: pool.count("lost") == 0, 10)
    assert pool.seconds_spent() >= 2


def test_an_id_that_is_none_is_a_create_that_failed(
    e2b: LocalE2B,
    make_pool: MakePool,
) -> None:
    created = {"templateID": "t", "clientID": "c", "envdVersion": "0.5.9"}
    ids = [None, 12345678, "", "../v2/sandboxes", "short"]
    creates = [{"status": 201, "body": created | {"sandboxID": id_}} for id_ in ids]
    e2b.set_script({"run": OK_RUN, "create": creates})
    pool = make_pool(QUICK_SEARCH)
    for _ in ids:
        run = pool.run(Cell("1"), 30)
        assert (run.outcome, run.problem) == ("unavailable", FAILED)
    assert len(of_kind(e2b.state(), "create")) == len(ids)
    wait_until(lambda: pool.count("lost") == 0, 10)
    state = e2b.state()
    assert {request["kind"] for request in state["requests"]} == {"create", "list"}


# --- what the pool does not expect ----------------------------------------------------


class Panic(BaseException):
    """What a panic of the SDK's transport, which is Rust, is raised as."""


def test_a_run_whose_sandbox_cannot_be_killed_in_a_thread_is_answered_all_the_same(
    e2b: LocalE2B, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = make_pool(max_concurrent_runs=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        run = pool.run(Cell("1"), 5)
    assert (run.outcome, run.stdout.head) == ("ok", "ok\n")
    assert pool.count("ending") == 0
    assert e2b.state()["killed"] == 1
    # A thread that can be had later kills it once more; its seconds count once.
    spent_s = pool.seconds_spent()
    started_at = time.monotonic()
    pool.run(Cell("1"), 5)
    e2b.wait_for(lambda state: len(of_kind(state, "kill")) == 3, 30)
    wait_until(lambda: pool.count("ending") == 0)
    assert pool.seconds_spent() <= spent_s + time.monotonic() - started_at


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (SandboxApi, "_create_sandbox"),
        (SandboxApi, "_cls_kill"),
        (E2BSandbox, "run_code"),
    ],
)
def test_a_panic_leaves_no_slot_taken(
    e2b: LocalE2B,
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
) -> None:
    working = getattr(owner, method)
    panics = iter([Panic("called `Option::unwrap()` on a `None` value")])

    def panic_once(*args: Any, **options: Any) -> Any:
        for panic in panics:
            raise panic
        return working(*args, **options)

    monkeypatch.setattr(owner, method, panic_once)
    pool = make_pool(QUICK_SEARCH, max_concurrent_runs=1)
    run = pool.run(Cell("1"), 30)
    assert run.outcome == ("ok" if method == "_cls_kill" else "unavailable")
    wait_until(lambda: pool.count("running", "ending", "lost") == 0)
    assert pool.run(Cell("1"), 5).outcome == "ok"


def test_a_keeper_logs_what_it_does_not_expect_and_goes_on(
    e2b: LocalE2B,
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def panic(*_: object, **__: object) -> None:
        raise Panic("in create")

    with monkeypatch.context() as patch:
        patch.setattr(SandboxApi, "_create_sandbox", panic)
        pool = make_pool(QUICK_SEARCH, warm_sandboxes=1)
        wait_until(lambda: "in create" in caplog.text)
    is_ready(pool)


# --- money ----------------------------------------------------------------------------


def test_when_the_days_budget_is_spent_no_run_begins_and_it_says_when_it_is_reset(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": {"run_s": 1.1, **OK_RUN}})
    pool = make_pool(sandbox_seconds_per_day=1)
    assert pool.run(Cell("1"), 5).outcome == "ok"
    run = pool.run(Cell("1"), 5)
    assert run.outcome == "unavailable"
    assert "midnight UTC" in run.problem
    assert e2b.state()["created"] == 1
    e2b.wait_for(lambda state: state["alive"] == 0, 30)
    wait_until(lambda: pool.count("ending") == 0)
    assert 1.1 < pool.seconds_spent() < 5
    assert pool.seconds_spent() == pytest.approx(
        e2b.state()["sandbox_seconds"], abs=0.5
    )


def test_the_seconds_of_a_sandbox_that_lives_count(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script({"run": {"run_s": 1.3, **OK_RUN}})
    pool = make_pool(sandbox_seconds_per_day=1)
    running = threads.submit(pool.run, Cell("1"), 5)
    wait_until(lambda: pool.seconds_spent() > 1)
    assert pool.run(Cell("1"), 5).outcome == "unavailable"
    assert running.result().outcome == "ok"  # it was begun before


def test_no_budget_is_no_limit(e2b: LocalE2B, make_pool: MakePool) -> None:
    pool = make_pool(sandbox_seconds_per_day=0)
    assert [pool.run(Cell("1"), 5).outcome for _ in range(3)] == ["ok"] * 3


# --- sandboxes made ahead -------------------------------------------------------------


# Made ahead: what waits is looked at every 0.1 s and renewed every 0.2 s.
QUICK_KEEPER = KeepingTiming(look_again_after_s=0.1, renew_after_s=0.2)


def is_ready(pool: Pool, count: int = 1) -> None:
    wait_until(lambda: pool.warm_ready() == count)


def test_one_made_ahead_is_used_once_killed_and_made_again(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(warm_sandboxes=1)
    for number in range(1, 4):
        is_ready(pool)
        assert e2b.state()["created"] == number
        run = pool.run(Cell("1"), 5)
        assert run.outcome == "ok"
        assert "create" not in run.durations_s
        e2b.wait_for(lambda state, number=number: state["killed"] == number, 30)
    used = [request["sandbox_id"] for request in callers_runs(e2b.state())]
    assert len(set(used)) == 3
    for sandbox_id in used:  # primed before it was offered
        runs = [r for r in of_kind(e2b.state(), "run") if r["sandbox_id"] == sandbox_id]
        assert [request["body"]["code"] for request in runs][1:] == ["1"]


def test_a_caller_is_faster_with_one_made_ahead(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "create": {"delay_s": 1.5}})
    pool = make_pool(warm_sandboxes=1)
    is_ready(pool)
    started = time.monotonic()
    pool.run(Cell("1"), 5)
    assert time.monotonic() - started < 1.4


def test_those_made_ahead_count_under_the_cap_and_give_way_to_runs(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script({"run": {"run_s": 0.4, **OK_RUN}})
    pool = make_pool(max_concurrent_runs=3, warm_sandboxes=2)
    is_ready(pool, 2)
    running = [threads.submit(pool.run, Cell("1"), 5) for _ in range(3)]
    assert [run.result().outcome for run in running] == ["ok"] * 3
    assert e2b.state()["max_alive"] <= 3
    is_ready(pool, 2)
    assert e2b.state()["max_alive"] <= 3


def test_who_comes_while_one_is_being_made_ahead_waits_for_it_when_all_else_is_taken(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "create": {"delay_s": 0.4}})
    pool = make_pool(max_concurrent_runs=1, warm_sandboxes=1)
    e2b.wait_for(lambda state: of_kind(state, "create"), 30)
    assert pool.run(Cell("1"), 5).outcome == "ok"


@pytest.fixture
def kernel_pool(
    kernel_e2b: LocalE2B, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakePool]:
    """A pool of sandboxes with real kernels, which start late on a busy machine."""
    use(kernel_e2b, monkeypatch)
    pools = []

    def make(**settings: Any) -> Pool:
        config = Config(e2b_api_key=E2B_KEY, warm_sandboxes=1, **settings)
        pools.append(KeepingPool(config, KeepingTiming(priming_s=60)))
        is_ready(pools[-1])
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_one_made_ahead_is_primed_so_lines_are_right_and_magics_work(
    kernel_pool: MakePool,
) -> None:
    pool = kernel_pool(warm_imports="")
    run = pool.run(Cell("x = 1\n\n1 / 0"), 50)
    assert "create" not in run.durations_s
    assert "----> 3 1 / 0" in run.traceback
    assert "environ" not in run.traceback
    is_ready(pool)
    code = "%%time\nimport sys\nprint('x' in dir(), 'pandas' in sys.modules)"
    run = pool.run(Cell(code), 50)
    assert run.outcome == "ok"
    assert run.stdout.head.startswith("False False\n")  # nothing of the run before


def test_one_made_ahead_has_imported_what_is_slow_and_has_no_name_of_it(
    kernel_pool: MakePool,
) -> None:
    pool = kernel_pool(warm_imports="no_such_module, matplotlib.pyplot,pandas")
    slow = (
        "matplotlib.pyplot",
        "pandas",
        "matplotlib_inline.backend_inline",
        "e2b_charts",
    )
    code = f"""import sys
print([name in sys.modules for name in {slow}])
names = [name for name in dir() if "import" in name or "pandas" in name]
print(names)
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()
1 / 0"""
    run = pool.run(Cell(code), 50)
    assert run.stdout.head.splitlines() == [str([True] * 4), "[]"]
    assert len(run.pictures) == 1
    assert "----> 8 1 / 0" in run.traceback


def test_the_end_of_one_that_waits_is_put_off_so_a_whole_run_always_fits(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(QUICK_KEEPER, warm_sandboxes=1, run_timeout_s=5)
    state = e2b.wait_for(lambda state: len(of_kind(state, "timeout")) >= 3, 30)
    assert of_kind(state, "create")[0]["body"]["timeout"] == 5 + 15
    assert {request["body"]["timeout"] for request in of_kind(state, "timeout")} == {
        5 + 15
    }
    assert state["created"] == 1
    assert pool.run(Cell("1"), 5).outcome == "ok"


def test_those_that_wait_are_dropped_when_no_run_comes_and_made_again_at_the_next(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(QUICK_KEEPER, warm_sandboxes=2, warm_idle_s=1)
    is_ready(pool, 2)
    state = e2b.wait_for(lambda state: state["killed"] == 2, 30)
    wait_until(lambda: pool.warm_ready() + pool.count("making") == 0)
    assert (state["created"], pool.count("making")) == (2, 0)
    assert pool.run(Cell("1"), 5).outcome == "ok"
    is_ready(pool, 2)


def test_one_that_turns_out_dead_is_replaced_without_the_caller_seeing_it(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(warm_sandboxes=2)
    is_ready(pool, 2)
    e2b.set_script({"run": [{"fault": "gone"}, OK_RUN]})
    run = pool.run(Cell("1"), 5)
    assert (run.outcome, run.stdout.head, run.problem) == ("ok", "ok\n", "")
    assert (
        "create" in run.durations_s
    )  # not the other one made ahead: it may be dead as well


def test_one_that_turns_out_dead_when_its_end_is_put_off_is_made_again(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(QUICK_KEEPER, warm_sandboxes=1)
    is_ready(pool)
    e2b.set_script({"run": OK_RUN, "timeout": [{"fault": "not_found"}, {}]})
    e2b.wait_for(lambda state: state["created"] == 2, 30)
    is_ready(pool)
    assert pool.run(Cell("1"), 5).outcome == "ok"


def test_when_e2b_is_short_of_room_making_ahead_backs_off_and_callers_still_run(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    short = {"status": 429, "headers": {"Retry-After": "99"}}
    e2b.set_script({"run": OK_RUN, "create": [short, short, {}]})
    pool = make_pool(warm_sandboxes=1)
    state = e2b.wait_for(lambda state: len(of_kind(state, "create")) == 2, 30)
    first, second = (request["at_s"] for request in of_kind(state, "create"))
    assert second - first >= 0.9
    assert pool.run(Cell("1"), 5).outcome == "ok"
    third = e2b.wait_for(lambda state: len(of_kind(state, "create")) == 4, 30)
    assert of_kind(third, "create")[3]["at_s"] - second >= 1.8


def test_a_caller_does_not_wait_while_making_ahead_backs_off(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "create": [REFUSED, {}]})
    pool = make_pool(
        KeepingTiming(first_back_off_s=5), max_concurrent_runs=1, warm_sandboxes=1
    )
    e2b.wait_for(lambda state: answered(state, "create"), 30)
    run = pool.run(Cell("1"), 5)
    assert run.outcome == "ok"
    assert run.durations_s["queue"] < 4.5


def test_one_that_cannot_be_primed_is_killed_before_making_ahead_backs_off(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": {"fault": "reset"}})
    make_pool(KeepingTiming(first_back_off_s=5), warm_sandboxes=1)
    state = e2b.wait_for(lambda state: of_kind(state, "kill"), 30)
    (primed, *_), (killed, *_) = of_kind(state, "run"), of_kind(state, "kill")
    assert killed["at_s"] - primed["at_s"] < 4.5


def test_the_back_off_begins_again_after_a_success(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "create": [*[REFUSED] * 3, {}, REFUSED, {}]})
    pool = make_pool(replace(QUICK_KEEPER, first_back_off_s=0.25), warm_sandboxes=1)
    is_ready(pool)
    assert pool.run(Cell("1"), 5).outcome == "ok"
    state = e2b.wait_for(lambda state: len(of_kind(state, "create")) == 6, 30)
    times = [request["at_s"] for request in of_kind(state, "create")]
    assert times[3] - times[2] > 0.95
    assert times[5] - times[4] < 0.9


def test_a_caller_who_waits_for_a_slot_comes_before_making_ahead(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "kill": {"delay_s": 0.2}})
    pool = make_pool(max_concurrent_runs=1, warm_sandboxes=1)
    for _ in range(4):
        is_ready(pool)
        pool.run(Cell("1"), 5)
        assert "create" in pool.run(Cell("1"), 5).durations_s


def test_the_next_is_made_ahead_as_soon_as_one_is_taken(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(warm_sandboxes=1)
    is_ready(pool)
    e2b.set_script({"run": {"run_s": 4, **OK_RUN}})
    running = threads.submit(pool.run, Cell("1"), 10)
    state = e2b.wait_for(lambda state: len(of_kind(state, "create")) == 2, 3)
    assert not of_kind(state, "timeout")  # a sandbox that is in use is not renewed
    assert running.result().outcome == "ok"


def test_whenever_one_is_taken_the_next_is_made_ahead_at_once(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    """No change is lost, whatever the keeper is about to do: it looks again by itself
    only when this test is over."""
    timing = KeepingTiming(look_again_after_s=30)
    pool = make_pool(timing, warm_sandboxes=1)
    for _ in range(50):
        is_ready(pool)
        assert pool.run(Cell("1"), 5).outcome == "ok"


def test_making_ahead_stops_when_the_days_budget_is_spent(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(warm_sandboxes=1, sandbox_seconds_per_day=1)
    is_ready(pool)
    wait_until(lambda: pool.seconds_spent() > 1)
    assert pool.run(Cell("1"), 5).outcome == "unavailable"
    assert e2b.state()["created"] == 1


# --- the end --------------------------------------------------------------------------


def test_close_leaves_none_whatever_they_were_doing(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script(
        {
            "run": [OK_RUN, OK_RUN, {"fault": "silent"}],
            "create": [{}, {}, {"delay_s": 0.5}],
        }
    )
    pool = make_pool(warm_sandboxes=2)
    is_ready(pool, 2)
    running = threads.submit(
        pool.run, Cell("1"), 20
    )  # takes one; another is then being made
    e2b.wait_for(
        lambda state: len(of_kind(state, "create")) == 3 and runs_sent(1)(state), 30
    )
    assert pool.count("making") == 1
    pool.close()
    state = e2b.state()
    assert (state["alive"], state["created"], state["killed"]) == (0, 3, 3)
    assert running.result().outcome != "ok"


def test_one_that_is_primed_while_the_pool_closes_is_not_offered(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script(
        {"run": {"delay_s": 0.6, **OK_RUN}, "kill": {"delay_s": 1.2}},
    )
    pool = make_pool(warm_sandboxes=1)
    e2b.wait_for(lambda state: of_kind(state, "run"), 30)
    closing = threads.submit(pool.close)
    while not closing.done():
        assert pool.warm_ready() == 0
    assert len(of_kind(e2b.state(), "kill")) == 1


def test_close_tries_a_kill_again_and_gives_up_within_its_budget(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "kill": [{"fault": "ignored"}, {}]})
    pool = make_pool(warm_sandboxes=1)
    is_ready(pool)
    pool.close()
    assert e2b.state()["alive"] == 0
    e2b.set_script({"run": OK_RUN, "kill": {"fault": "hang_alive"}})
    pool = make_pool(KeepingTiming(small_call_s=1.5), warm_sandboxes=1)
    is_ready(pool)
    started = time.monotonic()
    pool.close(0.5)
    assert time.monotonic() - started < 1.4


def test_a_run_that_comes_after_close_leaves_no_sandbox(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(max_concurrent_runs=1)
    pool.close()
    assert pool.run(Cell("1"), 1).outcome == "unavailable"
    e2b.wait_for(lambda state: state["alive"] == 0, 30)
    assert callers_runs(e2b.state()) == []


def test_sigterm_while_some_are_being_made_leaves_none(
    e2b: LocalE2B, start_service: Callable[..., Service]
) -> None:
    e2b.set_script({"run": OK_RUN, "create": [{}, {}, {"delay_s": 1}]})
    service = start_service({"WARM_SANDBOXES": "4"})
    e2b.wait_for(
        lambda state: len(of_kind(state, "create")) == 4 and state["created"] == 2, 30
    )
    service.stop()
    assert service.process.returncode == 0
    state = e2b.wait_for(lambda state: state["alive"] == 0, 30)
    assert state["created"] == state["killed"] == 4


def test_creates_and_kills_balance_after_a_mix_of_faults(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    mix: dict[str, list[list[Any]]] = {
        "run": [
            [6, OK_RUN],
            [1, {"fault": "cut"}],
            [1, {"fault": "gone"}],
            [1, {"fault": "reset"}],
            [1, {"fault": "not_json"}],
        ],
        "create": [[8, {}], [1, {"status": 429}], [1, {"status": 500}]],
        "kill": [
            [8, {}],
            [1, {"fault": "ignored"}],
            [1, {"fault": "not_found", "really": True}],
        ],
    }
    e2b.set_script({kind: {"mix": answers, "seed": 7} for kind, answers in mix.items()})
    pool = make_pool(warm_sandboxes=3)
    runs: list[Future[Run]] = [
        threads.submit(pool.run, Cell("1"), 5) for _ in range(15)
    ]
    outcomes = {run.result().outcome for run in runs}
    assert outcomes <= {"ok", "error", "unavailable"}
    assert "ok" in outcomes
    pool.close()
    wait_until(lambda: not pool.count("making", "kept", "running", "ending"))
    assert e2b.wait_for(lambda state: state["alive"] == 0, 30)["created"] > 15


def test_what_was_spent_and_who_runs_is_on_health(
    e2b: LocalE2B, start_service: Callable[..., Service]
) -> None:
    service = start_service(
        {"WARM_SANDBOXES": "1", "SANDBOX_SECONDS_PER_DAY": "100000"}
    )
    e2b.wait_for(lambda state: of_kind(state, "run"), 30)

    def health() -> dict[str, Any]:
        return dict(requests.get(f"{service.url}/health", timeout=30).json())

    wait_until(lambda: health()["warm_ready"] == 1)
    wait_until(lambda: health()["sandbox_seconds_today"] > 0)
    assert health()["sandbox_seconds_per_day"] == 100_000
    assert health()["runs_in_flight"] == 0


# --- sessions -------------------------------------------------------------------------


def sessions(make_pool: MakePool, **settings: Any) -> Pool:
    return make_pool(session_idle_s=60, run_timeout_s=5, **settings)


def used_by(state: State) -> list[str]:
    """The sandboxes that ran the callers' cells, in their order."""
    return [request["sandbox_id"] for request in callers_runs(state)]


def test_the_calls_of_a_session_have_one_sandbox_whose_lifetime_begins_after_each(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = sessions(make_pool)
    for number in (1, 2):
        assert pool.run(Cell("1"), 5, "mark").outcome == "ok"
        e2b.wait_for(
            lambda state, number=number: len(of_kind(state, "timeout")) == number, 30
        )
    state = e2b.state()
    assert len(set(used_by(state))) == 1
    assert of_kind(state, "create")[0]["body"]["timeout"] == 60 + 5 + 15
    assert [r["body"]["timeout"] for r in of_kind(state, "timeout")] == [80, 80]
    # Before the second run nothing was asked.
    kinds = [request["kind"] for request in state["requests"]]
    assert kinds[:3] == ["list", "create", "run"]
    assert sorted(kinds[3:]) == ["run", "timeout", "timeout"]
    assert pool.idle_sessions() == 1
    assert pool.seconds_spent() > 0


def test_a_session_never_takes_a_sandbox_made_ahead_but_others_still_do(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = sessions(make_pool, warm_sandboxes=1)
    is_ready(pool)
    assert "create" in pool.run(Cell("1"), 5, "mark").durations_s
    assert "create" not in pool.run(Cell("1"), 5).durations_s


def test_a_caller_without_a_slot_ends_the_session_that_is_idle_longest(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = sessions(make_pool, max_concurrent_runs=2)
    for mark in ("a", "b", "a"):  # `a` ran again
        pool.run(Cell("1"), 5, mark)
    a, b = used_by(e2b.state())[:2]
    assert pool.run(Cell("1"), 5).outcome == "ok"
    state = e2b.wait_for(lambda state: state["killed"] == 2, 30)
    assert {request["sandbox_id"] for request in of_kind(state, "kill")} & {a, b} == {b}
    assert pool.run(Cell("1"), 5, "a").note == ""
    assert "is gone" in pool.run(Cell("1"), 5, "b").note
    assert e2b.state()["max_alive"] == 2


def test_a_session_that_runs_is_never_ended_for_another_caller(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    pool = sessions(make_pool, max_concurrent_runs=2)
    pool.run(Cell("1"), 5, "idle")
    e2b.set_script({"run": {"run_s": 1.5, **OK_RUN}})
    running = threads.submit(pool.run, Cell("1"), 5, "running")
    e2b.wait_for(runs_sent(2), 30)
    other = threads.submit(pool.run, Cell("1"), 5)
    e2b.wait_for(runs_sent(3), 30)
    assert pool.idle_sessions() == 0
    assert refusal_s(pool) < 0.1
    assert running.result().outcome == other.result().outcome == "ok"


def test_making_ahead_never_ends_a_session(e2b: LocalE2B, make_pool: MakePool) -> None:
    pool = sessions(make_pool, max_concurrent_runs=2, warm_sandboxes=1)
    is_ready(pool)
    pool.run(Cell("1"), 5, "a")
    assert pool.run(Cell("1"), 5).outcome == "ok"  # took the one made ahead
    is_ready(pool)  # and its keeper has its slot again
    assert "create" not in pool.run(Cell("1"), 5).durations_s
    assert pool.idle_sessions() == 1


def test_a_session_without_a_slot_ends_one_that_was_made_ahead(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = sessions(make_pool, max_concurrent_runs=2, warm_sandboxes=2)
    is_ready(pool, 2)
    assert [pool.run(Cell("1"), 5, mark).outcome for mark in "abab"] == ["ok"] * 4
    assert e2b.state()["max_alive"] == 2


def test_a_session_that_comes_while_all_are_being_made_ahead_has_one_ended(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "create": [{"delay_s": 0.5}, {}]})
    pool = sessions(make_pool, max_concurrent_runs=1, warm_sandboxes=1)
    e2b.wait_for(lambda state: of_kind(state, "create"), 30)
    assert pool.run(Cell("1"), 5, "mark").outcome == "ok"
    assert e2b.state()["max_alive"] == 1


def test_30_sessions_with_a_cap_of_20(e2b: LocalE2B, make_pool: MakePool) -> None:
    pool = sessions(make_pool)
    marks = [f"mark {number}" for number in range(30)]
    for mark in marks:
        assert pool.run(Cell("1"), 5, mark).outcome == "ok"
    e2b.wait_for(lambda state: state["alive"] == 20, 30)
    assert pool.idle_sessions() == 20
    assert [bool(pool.run(Cell("1"), 5, mark).note) for mark in marks[10:]] == [
        False
    ] * 20
    assert all(pool.run(Cell("1"), 5, mark).note for mark in marks[:10])
    assert e2b.state()["max_alive"] == 20


def test_a_session_whose_sandbox_turns_out_dead_begins_anew_and_says_so(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = sessions(make_pool)
    pool.run(Cell("1"), 5, "mark")
    e2b.set_script({"run": [{"fault": "gone"}, OK_RUN]})
    run = pool.run(Cell("1"), 5, "mark")
    assert (run.outcome, run.stdout.head) == ("ok", "ok\n")
    assert "is gone" in run.note
    assert len(set(used_by(e2b.state()))) == 2


def test_a_session_whose_code_may_have_begun_is_not_run_again(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = sessions(make_pool)
    pool.run(Cell("1"), 5, "mark")
    e2b.set_script({"run": [{"fault": "cut"}, OK_RUN]})
    assert "broke off" in pool.run(Cell("1"), 5, "mark").problem
    assert len(callers_runs(e2b.state())) == 2
    assert "is gone" in pool.run(Cell("1"), 5, "mark").note


def test_a_sandbox_that_e2b_lets_live_no_longer_ends_its_session(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = sessions(make_pool)
    too_long = {"status": 400, "body": {"code": 400, "message": "longer than 1 h"}}
    e2b.set_script({"run": OK_RUN, "timeout": too_long})
    pool.run(Cell("1"), 5, "mark")
    wait_until(lambda: pool.idle_sessions() == 0)
    assert "is gone" in pool.run(Cell("1"), 5, "mark").note


def test_a_renewal_that_fails_otherwise_leaves_the_session(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = sessions(make_pool)
    broken = {"status": 500, "body": {"code": 500, "message": "no"}}
    e2b.set_script({"run": OK_RUN, "timeout": broken})
    for _ in range(2):
        assert pool.run(Cell("1"), 5, "mark").note == ""
    assert len(set(used_by(e2b.state()))) == 1


def test_a_kill_does_not_wait_behind_a_renewal_that_hangs(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    e2b.set_script({"run": OK_RUN, "timeout": {"fault": "hang"}})
    pool = sessions(make_pool, max_concurrent_runs=1)
    pool.run(Cell("1"), 5, "mark")
    e2b.wait_for(lambda state: of_kind(state, "timeout"), 30)
    run = pool.run(Cell("1"), 5)
    assert run.outcome == "ok"
    assert run.durations_s["queue"] < 2  # the renewal takes 4 s


def test_a_call_that_puts_the_end_off_itself_asks_for_a_sessions_whole_life(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(session_idle_s=1, run_timeout_s=5)
    broken = {"status": 500, "body": {"code": 500, "message": "no"}}
    e2b.set_script({"run": OK_RUN, "timeout": [broken, {}]})
    pool.run(Cell("1"), 5, "mark")
    e2b.wait_for(lambda state: answered(state, "timeout"), 30)
    assert pool.run(Cell("1"), 25, "mark").outcome == "ok"  # 21 s are left
    asked = [r["body"]["timeout"] for r in of_kind(e2b.state(), "timeout")]
    assert asked[:2] == [21, 21]


def test_a_session_that_was_idle_too_long_is_left_to_e2b_and_begins_anew(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(
        KeepingTiming(lifetime_margin_s=1), session_idle_s=1, run_timeout_s=1
    )
    pool.run(Cell("1"), 1, "mark")
    state = e2b.wait_for(lambda state: state["expired"] == 1, 30)
    assert state["kill_requests"] == 0
    wait_until(lambda: pool.idle_sessions() == 0)
    assert "is gone" in pool.run(Cell("1"), 1, "mark").note
    assert pool.run(Cell("1"), 1, "mark").note == ""


def test_a_session_that_is_being_killed_is_not_found_again(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    silent = {"fault": "silent"}
    e2b.set_script({"run": [OK_RUN, silent, OK_RUN], "kill": {"delay_s": 1}})
    pool = sessions(make_pool)
    pool.run(Cell("1"), 5, "mark")
    assert pool.run(Cell("1"), 1, "mark").outcome == "timeout"
    run = pool.run(Cell("1"), 5, "mark")
    assert run.outcome == "ok"
    assert "is gone" in run.note
    first, timed_out, last = used_by(e2b.state())
    assert first == timed_out != last


def test_when_the_budget_is_spent_idle_sessions_are_ended(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = sessions(make_pool, sandbox_seconds_per_day=1)
    pool.run(Cell("1"), 5, "mark")
    e2b.wait_for(lambda state: state["killed"] == 1, 30)
    assert pool.run(Cell("1"), 5, "mark").outcome == "unavailable"
    wait_until(lambda: pool.idle_sessions() + pool.count("ending") == 0)


def test_close_leaves_idle_sessions_to_e2b(e2b: LocalE2B, make_pool: MakePool) -> None:
    pool = make_pool(session_idle_s=1, run_timeout_s=1)
    pool.run(Cell("1"), 1, "mark")
    pool.close()
    state = e2b.state()
    assert (state["alive"], state["kill_requests"]) == (1, 0)
    assert pool.idle_sessions() == 0


def test_close_does_not_wait_for_a_session_that_is_just_being_found(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    sessions(make_pool).run(Cell("1"), 5, "mark")
    e2b.set_script({"run": OK_RUN, "list": {"delay_s": 1}})
    lists = len(of_kind(e2b.state(), "list"))
    replica = sessions(make_pool)
    finding = threads.submit(replica.run, Cell("1"), 5, "mark")
    e2b.wait_for(lambda state: len(of_kind(state, "list")) > lists, 30)
    replica.close()
    assert replica.idle_sessions() == 0
    assert "is being stopped" in finding.result().problem
    assert e2b.state()["alive"] == 1


@pytest.mark.parametrize(("slots", "may_wait"), [(4, 2), (5, 2), (2, 1), (1, 1)])
def test_many_calls_of_a_session_leave_threads_to_others(
    e2b: LocalE2B,
    make_pool: MakePool,
    threads: ThreadPoolExecutor,
    slots: int,
    may_wait: int,
) -> None:
    e2b.set_script({"run": {"run_s": 1, **OK_RUN}})
    pool = sessions(make_pool, max_concurrent_runs=slots)
    calls = [threads.submit(pool.run, Cell("1"), 60, "mark") for _ in range(10)]
    busy = [c for c in calls if "still running" in c.result().problem]
    assert len(busy) == 10 - 1 - may_wait
    assert len(set(used_by(e2b.state()))) == 1


def test_the_calls_of_a_session_run_in_the_order_in_which_they_came(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script({"run": {"run_s": 0.5, **OK_RUN}})
    pool = sessions(make_pool)

    def wait_behind(number: int) -> str:
        e2b.wait_for(runs_sent(2 * number + 1))
        return pool.run(Cell(f"waiter {number}"), 30, "mark").outcome

    rounds = range(4)
    for number in rounds:
        waiter = threads.submit(wait_behind, number)
        # Who has just had its turn is the quickest to ask for the next one.
        assert pool.run(Cell(f"first {number}"), 30, "mark").outcome == "ok"
    assert pool.run(Cell("last"), 30, "mark").outcome == "ok"
    assert waiter.result() == "ok"
    codes = [request["body"]["code"] for request in callers_runs(e2b.state())]
    in_order = [f"{who} {number}" for number in rounds for who in ("first", "waiter")]
    assert codes == [*in_order, "last"]


def test_a_call_whose_turn_comes_when_its_time_is_up_does_not_run(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script({"run": {"run_s": 3.5, **OK_RUN}})
    pool = sessions(make_pool)
    first = threads.submit(pool.run, Cell("1"), 30, "mark")
    e2b.wait_for(runs_sent(1), 30)
    late = pool.run(Cell("1"), 5, "mark")  # its turn comes after some 3.4 s
    assert (late.outcome, first.result().outcome) == ("unavailable", "ok")
    assert "still running" in late.problem
    e2b.set_script({"run": OK_RUN})
    assert pool.run(Cell("1"), 5, "mark").note == ""
    assert len(set(used_by(e2b.state()))) == 1


# What a list may have that ignores the metadata it was asked for.
UNFILTERED = [
    pytest.param({"unfiltered": True}, id="on one page"),
    pytest.param({"unfiltered": True, "page_size": 1}, id="on several pages"),
]


@pytest.mark.parametrize("listing", UNFILTERED)
def test_a_session_takes_no_other_sessions_sandbox_from_a_list_that_holds_all(
    e2b: LocalE2B, make_pool: MakePool, listing: State
) -> None:
    e2b.set_script({"run": OK_RUN, "list": listing})
    marks = ["a", "b", "a longer one"]
    for mark in marks:
        assert sessions(make_pool).run(Cell("1"), 5, mark).outcome == "ok"
    assert len(set(used_by(e2b.state()))) == 3
    # Each is found by another replica all the same.
    for mark in marks:
        assert sessions(make_pool).run(Cell("1"), 5, mark).outcome == "ok"
    used = used_by(e2b.state())
    assert used[3:] == used[:3]
    assert e2b.state()["created"] == 3


@pytest.mark.parametrize("listing", UNFILTERED)
@pytest.mark.parametrize("last_try", [{"fault": "reset"}, {"status": 500}])
def test_a_create_without_an_answer_kills_nothing_else_of_a_list_that_holds_all(
    e2b: LocalE2B,
    make_pool: MakePool,
    listing: State,
    last_try: State,
) -> None:
    e2b.set_script({"run": OK_RUN, "list": listing})
    pool = sessions(make_pool, timing=QUICK_SEARCH)
    for mark in ("a", "b"):
        pool.run(Cell("1"), 5, mark)
    others = {sandbox["id"] for sandbox in e2b.state()["sandboxes"]}
    creates = [{"fault": "lost_reply"}, last_try]
    e2b.set_script({"run": OK_RUN, "list": listing, "create": creates})
    for created in (3, 3):  # the second one makes nothing: it is looked for in vain
        assert pool.run(Cell("1"), 30).outcome == "unavailable"
        wait_until(lambda: pool.count("lost") == 0, 10)
        state = e2b.state()
        assert state["created"] == created
        alive = {each["id"] for each in state["sandboxes"] if each["alive"]}
        assert alive == others


def test_a_list_without_an_end_is_looked_through_in_bounds_and_nothing_is_used(
    e2b: LocalE2B, make_pool: MakePool
) -> None:
    sessions(make_pool).run(Cell("1"), 5, "a")
    e2b.set_script({"run": OK_RUN, "list": {"unfiltered": True, "endless": True}})
    lists = len(of_kind(e2b.state(), "list"))
    run = sessions(make_pool).run(Cell("1"), 5, "b")
    assert (run.outcome, run.problem) == ("unavailable", FAILED)
    state = e2b.state()
    assert len(of_kind(state, "list")) - lists == 20
    assert (state["created"], len(callers_runs(state))) == (1, 1)
    assert sessions(make_pool).run(Cell("1"), 5, "a").outcome == "ok"
    assert len(set(used_by(e2b.state()))) == 1


def test_two_first_calls_of_a_session_have_one_sandbox(
    e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    e2b.set_script({"run": OK_RUN, "create": {"delay_s": 0.3}})
    pool = sessions(make_pool)
    calls = [threads.submit(pool.run, Cell("1"), 5, "mark") for _ in range(3)]
    assert {call.result().outcome for call in calls} == {"ok"}
    assert e2b.state()["created"] == 1
