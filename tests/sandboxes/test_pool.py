"""The pool: no more sandboxes than the cap, none left over, none beyond the budget."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from e2b.sandbox_sync.sandbox_api import SandboxApi
from e2b_code_interpreter import Sandbox as E2BSandbox
from local_e2b import LocalE2B
from pools import (
    QUICK_SEARCH,
    REFUSED,
    MakePool,
    Panic,
    callers_runs,
    refusal_s,
    requests_of,
    runs_sent,
    wait_until,
)

from conftest import E2B_KEY, OK_RUN, ROOT
from sandboxes.keeping import KEEPING_TIMING, KeepingTiming
from sandboxes.pool import Full
from texts.cell import Cell

# --- the cap --------------------------------------------------------------------------


def test_one_more_run_than_the_cap_is_refused_at_once(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": {"run_s": 1, **OK_RUN}})
    pool = make_pool(max_concurrent_runs=3)
    running = [threads.submit(pool.run, Cell("1"), 5) for _ in range(3)]
    direct_e2b.wait_for(runs_sent(3), 30)
    assert pool.count("running") == 3
    assert refusal_s(pool) < 0.1
    assert [run.result().outcome for run in running] == ["ok"] * 3
    assert direct_e2b.state()["max_alive"] == 3
    assert direct_e2b.state()["created"] == 3


def test_a_slot_counts_as_taken_while_its_sandbox_is_being_made(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": {"delay_s": 0.5}})
    pool = make_pool(max_concurrent_runs=1)
    running = threads.submit(pool.run, Cell("1"), 5)
    direct_e2b.wait_for(lambda state: requests_of(state, "create"), 30)
    assert refusal_s(pool) < 0.1
    assert running.result().outcome == "ok"


def test_a_create_that_failed_leaves_its_slot_free(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": [REFUSED] * 3 + [{}]})
    pool = make_pool(max_concurrent_runs=1)
    outcomes = [pool.run(Cell("1"), 5).outcome for _ in range(4)]
    assert outcomes == ["unavailable"] * 3 + ["ok"]


def test_a_caller_who_comes_while_a_kill_is_under_way_waits_for_its_slot(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "kill": {"delay_s": 1.5}})
    pool = make_pool(max_concurrent_runs=1)
    started = time.monotonic()
    assert pool.run(Cell("1"), 5).outcome == "ok"
    assert time.monotonic() - started < 1.4  # the kill is off the caller's path
    second = pool.run(Cell("1"), 5)
    assert second.outcome == "ok"
    assert 0.05 < second.durations_s["queue"] < 4
    assert direct_e2b.state()["max_alive"] == 1


def test_no_more_callers_wait_than_there_are_kills_under_way(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "kill": {"delay_s": 1.5}})
    pool = make_pool(max_concurrent_runs=2)
    for _ in range(2):
        pool.run(Cell("1"), 5)
    answers = [threads.submit(pool.run, Cell("1"), 5) for _ in range(5)]
    direct_e2b.wait_for(lambda state: len(requests_of(state, "kill")) == 2, 30)
    refused = [a for a in answers if isinstance(a.exception(), Full)]
    assert len(refused) == 3
    assert [a.result().outcome for a in answers if a not in refused] == ["ok", "ok"]
    assert direct_e2b.state()["max_alive"] == 2


def test_a_waiter_is_refused_when_the_kill_takes_longer_than_its_budget(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    assert KEEPING_TIMING.small_call_s <= 5
    direct_e2b.set_script({"run": OK_RUN, "kill": {"delay_s": 2.2}})
    pool = make_pool(KeepingTiming(small_call_s=0.5), max_concurrent_runs=1)
    pool.run(Cell("1"), 5)
    assert 0.4 < refusal_s(pool, tries=1) < 2


def test_a_slot_is_held_until_the_lifetimes_end_when_every_kill_fails(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    timing = KeepingTiming(lifetime_margin_s=1, kill_again_after_s=(0.1, 0.2, math.inf))
    direct_e2b.set_script({"run": OK_RUN, "kill": {"fault": "ignored"}})
    pool = make_pool(timing, max_concurrent_runs=1)
    started = time.monotonic()
    pool.run(Cell("1"), 1)
    direct_e2b.wait_for(lambda state: state["kill_requests"] == 3, 30)
    assert pool.count("ending") == 1
    wait_until(lambda: pool.count("ending") == 0)
    assert 1.9 < time.monotonic() - started < 3.5
    state = direct_e2b.wait_for(lambda state: state["alive"] == 0, 30)
    assert (state["expired"], state["killed"], state["kill_requests"]) == (1, 0, 3)


def test_a_kill_that_fails_is_tried_again_off_the_callers_path(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    assert KEEPING_TIMING.kill_again_after_s[0] <= 1
    direct_e2b.set_script(
        {"run": OK_RUN, "kill": [{"fault": "ignored"}, {"fault": "reset"}, {}]}
    )
    pool = make_pool(KeepingTiming(kill_again_after_s=(1.5, 0.1, math.inf)))
    started = time.monotonic()
    assert pool.run(Cell("1"), 5).outcome == "ok"
    assert time.monotonic() - started < 1.4
    state = direct_e2b.wait_for(lambda state: state["alive"] == 0, 30)
    assert (state["killed"], state["kill_requests"]) == (1, 3)


@pytest.mark.parametrize(
    "create", [{"fault": "hang"}, {"delay_s": 0.7}], ids=["hangs", "is slow"]
)
def test_a_request_as_a_whole_ends_within_its_overhead_when_the_wait_is_long_and_create(
    direct_e2b: LocalE2B, make_pool: MakePool, create: dict[str, Any]
) -> None:
    assert KEEPING_TIMING.overhead_s == 10
    silent = {"fault": "silent"}
    direct_e2b.set_script(
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
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"create": {"fault": "hang"}})
    pool = make_pool(KeepingTiming(overhead_s=4))
    started = time.monotonic()
    assert pool.run(Cell("1"), 1).outcome == "unavailable"
    assert 2.4 < time.monotonic() - started < 3.5  # 1.5 s are kept


# --- what the pool does not expect ----------------------------------------------------


def test_a_run_whose_sandbox_cannot_be_killed_in_a_thread_is_answered_all_the_same(
    direct_e2b: LocalE2B, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = make_pool(max_concurrent_runs=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        run = pool.run(Cell("1"), 5)
    assert (run.outcome, run.stdout.head) == ("ok", "ok\n")
    assert pool.count("ending") == 0
    assert direct_e2b.state()["killed"] == 1
    # A thread that can be had later kills it once more; its seconds count once.
    spent_s = pool.seconds_spent()
    started_at = time.monotonic()
    pool.run(Cell("1"), 5)
    direct_e2b.wait_for(lambda state: len(requests_of(state, "kill")) == 3, 30)
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
    direct_e2b: LocalE2B,
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


# --- money ----------------------------------------------------------------------------


def test_when_the_days_budget_is_spent_no_run_begins_and_it_says_when_it_is_reset(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": {"run_s": 1.1, **OK_RUN}})
    pool = make_pool(sandbox_seconds_per_day=1)
    assert pool.run(Cell("1"), 5).outcome == "ok"
    run = pool.run(Cell("1"), 5)
    assert run.outcome == "budget"
    assert "midnight UTC" in run.problem
    assert direct_e2b.state()["created"] == 1
    direct_e2b.wait_for(lambda state: state["alive"] == 0, 30)
    wait_until(lambda: pool.count("ending") == 0)
    assert 1.1 < pool.seconds_spent() < 5
    assert pool.seconds_spent() == pytest.approx(
        direct_e2b.state()["sandbox_seconds"], abs=0.5
    )


def test_the_seconds_of_a_sandbox_that_lives_count(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": {"run_s": 1.3, **OK_RUN}})
    pool = make_pool(sandbox_seconds_per_day=1)
    running = threads.submit(pool.run, Cell("1"), 5)
    wait_until(lambda: pool.seconds_spent() > 1)
    assert pool.run(Cell("1"), 5).outcome == "budget"
    assert running.result().outcome == "ok"  # it was begun before


def test_no_budget_is_no_limit(direct_e2b: LocalE2B, make_pool: MakePool) -> None:
    pool = make_pool(sandbox_seconds_per_day=0)
    assert [pool.run(Cell("1"), 5).outcome for _ in range(3)] == ["ok"] * 3


def test_a_run_that_comes_after_close_leaves_no_sandbox(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(max_concurrent_runs=1)
    pool.close()
    assert pool.run(Cell("1"), 1).outcome == "unavailable"
    direct_e2b.wait_for(lambda state: state["alive"] == 0, 30)
    assert callers_runs(direct_e2b.state()) == []


# --- what is imported -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "is_imported"),
    [
        pytest.param("", False, id="default"),
        pytest.param("session_idle_s=60", True, id="sessions"),
        pytest.param("warm_sandboxes=1", True, id="made ahead"),
    ],
)
def test_keeping_is_imported_only_where_something_is_kept(
    direct_e2b: LocalE2B, settings: str, is_imported: bool
) -> None:
    program = f"""
import sys
from config import Config
from proxy import create_app
app = create_app(Config(e2b_api_key={E2B_KEY!r}, {settings}))
app.extensions["pool"].close()
print("sandboxes.keeping" in sys.modules)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == str(is_imported)
