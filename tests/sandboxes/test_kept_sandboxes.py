"""Sandboxes kept for sessions: which calls have one, and what ends it.

That variables last, over HTTP and in real kernels, is in test_sessions.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from local_e2b import LocalE2B
from pools import (
    UNFILTERED,
    MakePool,
    State,
    answered,
    callers_runs,
    refusal_s,
    requests_of,
    runs_sent,
    session_pool,
    used_by,
    wait_until,
    wait_until_ready,
)

from conftest import OK_RUN
from sandboxes.keeping import KeepingTiming
from sandboxes.sandbox import FAILED
from texts.cell import Cell


def test_the_calls_of_a_session_have_one_sandbox_whose_lifetime_begins_after_each(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool)
    for number in (1, 2):
        assert pool.run(Cell("1"), 5, "mark").outcome == "ok"
        direct_e2b.wait_for(
            lambda state, number=number: len(requests_of(state, "timeout")) == number,
            30,
        )
    state = direct_e2b.state()
    assert len(set(used_by(state))) == 1
    assert requests_of(state, "create")[0]["body"]["timeout"] == 60 + 5 + 15
    assert [r["body"]["timeout"] for r in requests_of(state, "timeout")] == [80, 80]
    # Before the second run nothing was asked.
    kinds = [request["kind"] for request in state["requests"]]
    assert kinds[:3] == ["list", "create", "run"]
    assert sorted(kinds[3:]) == ["run", "timeout", "timeout"]
    assert pool.idle_sessions() == 1
    assert pool.seconds_spent() > 0


def test_a_session_never_takes_a_sandbox_made_ahead_but_others_still_do(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool, warm_sandboxes=1)
    wait_until_ready(pool)
    assert "create" in pool.run(Cell("1"), 5, "mark").durations_s
    assert "create" not in pool.run(Cell("1"), 5).durations_s


def test_a_caller_without_a_slot_ends_the_session_that_is_idle_longest(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool, max_concurrent_runs=2)
    for mark in ("a", "b", "a"):  # `a` ran again
        pool.run(Cell("1"), 5, mark)
    a, b = used_by(direct_e2b.state())[:2]
    assert pool.run(Cell("1"), 5).outcome == "ok"
    state = direct_e2b.wait_for(lambda state: state["killed"] == 2, 30)
    assert {request["sandbox_id"] for request in requests_of(state, "kill")} & {
        a,
        b,
    } == {b}
    assert pool.run(Cell("1"), 5, "a").note == ""
    assert "is gone" in pool.run(Cell("1"), 5, "b").note
    assert direct_e2b.state()["max_alive"] == 2


def test_a_session_that_runs_is_never_ended_for_another_caller(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    pool = session_pool(make_pool, max_concurrent_runs=2)
    pool.run(Cell("1"), 5, "idle")
    direct_e2b.set_script({"run": {"run_s": 1.5, **OK_RUN}})
    running = threads.submit(pool.run, Cell("1"), 5, "running")
    direct_e2b.wait_for(runs_sent(2), 30)
    other = threads.submit(pool.run, Cell("1"), 5)
    direct_e2b.wait_for(runs_sent(3), 30)
    assert pool.idle_sessions() == 0
    assert refusal_s(pool) < 0.1
    assert running.result().outcome == other.result().outcome == "ok"


def test_making_ahead_never_ends_a_session(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool, max_concurrent_runs=2, warm_sandboxes=1)
    wait_until_ready(pool)
    pool.run(Cell("1"), 5, "a")
    assert pool.run(Cell("1"), 5).outcome == "ok"  # took the one made ahead
    wait_until_ready(pool)  # and its keeper has its slot again
    assert "create" not in pool.run(Cell("1"), 5).durations_s
    assert pool.idle_sessions() == 1


def test_a_session_without_a_slot_ends_one_that_was_made_ahead(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool, max_concurrent_runs=2, warm_sandboxes=2)
    wait_until_ready(pool, 2)
    assert [pool.run(Cell("1"), 5, mark).outcome for mark in "abab"] == ["ok"] * 4
    assert direct_e2b.state()["max_alive"] == 2


def test_a_session_that_comes_while_all_are_being_made_ahead_has_one_ended(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": [{"delay_s": 0.5}, {}]})
    pool = session_pool(make_pool, max_concurrent_runs=1, warm_sandboxes=1)
    direct_e2b.wait_for(lambda state: requests_of(state, "create"), 30)
    assert pool.run(Cell("1"), 5, "mark").outcome == "ok"
    assert direct_e2b.state()["max_alive"] == 1


def test_30_sessions_with_a_cap_of_20(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool)
    marks = [f"mark {number}" for number in range(30)]
    for mark in marks:
        assert pool.run(Cell("1"), 5, mark).outcome == "ok"
    direct_e2b.wait_for(lambda state: state["alive"] == 20, 30)
    assert pool.idle_sessions() == 20
    assert [bool(pool.run(Cell("1"), 5, mark).note) for mark in marks[10:]] == [
        False
    ] * 20
    assert all(pool.run(Cell("1"), 5, mark).note for mark in marks[:10])
    assert direct_e2b.state()["max_alive"] == 20


def test_a_session_whose_sandbox_turns_out_dead_begins_anew_and_says_so(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool)
    pool.run(Cell("1"), 5, "mark")
    direct_e2b.set_script({"run": [{"fault": "gone"}, OK_RUN]})
    run = pool.run(Cell("1"), 5, "mark")
    assert (run.outcome, run.stdout.head) == ("ok", "ok\n")
    assert "is gone" in run.note
    assert len(set(used_by(direct_e2b.state()))) == 2


def test_a_session_whose_code_may_have_begun_is_not_run_again(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool)
    pool.run(Cell("1"), 5, "mark")
    direct_e2b.set_script({"run": [{"fault": "cut"}, OK_RUN]})
    assert "broke off" in pool.run(Cell("1"), 5, "mark").problem
    assert len(callers_runs(direct_e2b.state())) == 2
    assert "is gone" in pool.run(Cell("1"), 5, "mark").note


def test_a_sandbox_that_e2b_lets_live_no_longer_ends_its_session(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool)
    too_long = {"status": 400, "body": {"code": 400, "message": "longer than 1 h"}}
    direct_e2b.set_script({"run": OK_RUN, "timeout": too_long})
    pool.run(Cell("1"), 5, "mark")
    wait_until(lambda: pool.idle_sessions() == 0)
    assert "is gone" in pool.run(Cell("1"), 5, "mark").note


def test_a_renewal_that_fails_otherwise_leaves_the_session(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool)
    broken = {"status": 500, "body": {"code": 500, "message": "no"}}
    direct_e2b.set_script({"run": OK_RUN, "timeout": broken})
    for _ in range(2):
        assert pool.run(Cell("1"), 5, "mark").note == ""
    assert len(set(used_by(direct_e2b.state()))) == 1


def test_a_kill_does_not_wait_behind_a_renewal_that_hangs(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "timeout": {"fault": "hang"}})
    pool = session_pool(make_pool, max_concurrent_runs=1)
    pool.run(Cell("1"), 5, "mark")
    direct_e2b.wait_for(lambda state: requests_of(state, "timeout"), 30)
    run = pool.run(Cell("1"), 5)
    assert run.outcome == "ok"
    assert run.durations_s["queue"] < 2  # the renewal takes 4 s


def test_a_call_that_puts_the_end_off_itself_asks_for_a_sessions_whole_life(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(session_idle_s=1, run_timeout_s=5)
    broken = {"status": 500, "body": {"code": 500, "message": "no"}}
    direct_e2b.set_script({"run": OK_RUN, "timeout": [broken, {}]})
    pool.run(Cell("1"), 5, "mark")
    direct_e2b.wait_for(lambda state: answered(state, "timeout"), 30)
    assert pool.run(Cell("1"), 25, "mark").outcome == "ok"  # 21 s are left
    asked = [r["body"]["timeout"] for r in requests_of(direct_e2b.state(), "timeout")]
    assert asked[:2] == [21, 21]


def test_a_session_that_was_idle_too_long_is_left_to_e2b_and_begins_anew(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(
        KeepingTiming(lifetime_margin_s=1), session_idle_s=1, run_timeout_s=1
    )
    pool.run(Cell("1"), 1, "mark")
    state = direct_e2b.wait_for(lambda state: state["expired"] == 1, 30)
    assert state["kill_requests"] == 0
    wait_until(lambda: pool.idle_sessions() == 0)
    assert "is gone" in pool.run(Cell("1"), 1, "mark").note
    assert pool.run(Cell("1"), 1, "mark").note == ""


def test_a_session_that_is_being_killed_is_not_found_again(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    silent = {"fault": "silent"}
    direct_e2b.set_script({"run": [OK_RUN, silent, OK_RUN], "kill": {"delay_s": 1}})
    pool = session_pool(make_pool)
    pool.run(Cell("1"), 5, "mark")
    assert pool.run(Cell("1"), 1, "mark").outcome == "timeout"
    run = pool.run(Cell("1"), 5, "mark")
    assert run.outcome == "ok"
    assert "is gone" in run.note
    first, timed_out, last = used_by(direct_e2b.state())
    assert first == timed_out != last


def test_when_the_budget_is_spent_idle_sessions_are_ended(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = session_pool(make_pool, sandbox_seconds_per_day=1)
    pool.run(Cell("1"), 5, "mark")
    direct_e2b.wait_for(lambda state: state["killed"] == 1, 30)
    assert pool.run(Cell("1"), 5, "mark").outcome == "budget"
    wait_until(lambda: pool.idle_sessions() + pool.count("ending") == 0)


def test_close_leaves_idle_sessions_to_e2b(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(session_idle_s=1, run_timeout_s=1)
    pool.run(Cell("1"), 1, "mark")
    pool.close()
    state = direct_e2b.state()
    assert (state["alive"], state["kill_requests"]) == (1, 0)
    assert pool.idle_sessions() == 0


def test_close_does_not_wait_for_a_session_that_is_just_being_found(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    session_pool(make_pool).run(Cell("1"), 5, "mark")
    direct_e2b.set_script({"run": OK_RUN, "list": {"delay_s": 1}})
    lists = len(requests_of(direct_e2b.state(), "list"))
    replica = session_pool(make_pool)
    finding = threads.submit(replica.run, Cell("1"), 5, "mark")
    direct_e2b.wait_for(lambda state: len(requests_of(state, "list")) > lists, 30)
    replica.close()
    assert replica.idle_sessions() == 0
    assert "is being stopped" in finding.result().problem
    assert direct_e2b.state()["alive"] == 1


@pytest.mark.parametrize(("slots", "may_wait"), [(4, 2), (5, 2), (2, 1), (1, 1)])
def test_many_calls_of_a_session_leave_threads_to_others(
    direct_e2b: LocalE2B,
    make_pool: MakePool,
    threads: ThreadPoolExecutor,
    slots: int,
    may_wait: int,
) -> None:
    direct_e2b.set_script({"run": {"run_s": 1, **OK_RUN}})
    pool = session_pool(make_pool, max_concurrent_runs=slots)
    calls = [threads.submit(pool.run, Cell("1"), 60, "mark") for _ in range(10)]
    busy = [c for c in calls if "still running" in c.result().problem]
    assert len(busy) == 10 - 1 - may_wait
    assert len(set(used_by(direct_e2b.state()))) == 1


def test_the_calls_of_a_session_run_in_the_order_in_which_they_came(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": {"run_s": 0.5, **OK_RUN}})
    pool = session_pool(make_pool)

    def wait_behind(number: int) -> str:
        direct_e2b.wait_for(runs_sent(2 * number + 1))
        return pool.run(Cell(f"waiter {number}"), 30, "mark").outcome

    rounds = range(4)
    for number in rounds:
        waiter = threads.submit(wait_behind, number)
        # Who has just had its turn is the quickest to ask for the next one.
        assert pool.run(Cell(f"first {number}"), 30, "mark").outcome == "ok"
    assert pool.run(Cell("last"), 30, "mark").outcome == "ok"
    assert waiter.result() == "ok"
    codes = [request["body"]["code"] for request in callers_runs(direct_e2b.state())]
    in_order = [f"{who} {number}" for number in rounds for who in ("first", "waiter")]
    assert codes == [*in_order, "last"]


def test_a_call_whose_turn_comes_when_its_time_is_up_does_not_run(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": {"run_s": 3.5, **OK_RUN}})
    pool = session_pool(make_pool)
    first = threads.submit(pool.run, Cell("1"), 30, "mark")
    direct_e2b.wait_for(runs_sent(1), 30)
    late = pool.run(Cell("1"), 5, "mark")  # its turn comes after some 3.4 s
    assert (late.outcome, first.result().outcome) == ("unavailable", "ok")
    assert "still running" in late.problem
    direct_e2b.set_script({"run": OK_RUN})
    assert pool.run(Cell("1"), 5, "mark").note == ""
    assert len(set(used_by(direct_e2b.state()))) == 1


@pytest.mark.parametrize("listing", UNFILTERED)
def test_a_session_takes_no_other_sessions_sandbox_from_a_list_that_holds_all(
    direct_e2b: LocalE2B, make_pool: MakePool, listing: State
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "list": listing})
    marks = ["a", "b", "a longer one"]
    for mark in marks:
        assert session_pool(make_pool).run(Cell("1"), 5, mark).outcome == "ok"
    assert len(set(used_by(direct_e2b.state()))) == 3
    # Each is found by another replica all the same.
    for mark in marks:
        assert session_pool(make_pool).run(Cell("1"), 5, mark).outcome == "ok"
    used = used_by(direct_e2b.state())
    assert used[3:] == used[:3]
    assert direct_e2b.state()["created"] == 3


def test_a_list_without_an_end_is_looked_through_in_bounds_and_nothing_is_used(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    session_pool(make_pool).run(Cell("1"), 5, "a")
    direct_e2b.set_script(
        {"run": OK_RUN, "list": {"unfiltered": True, "endless": True}}
    )
    lists = len(requests_of(direct_e2b.state(), "list"))
    run = session_pool(make_pool).run(Cell("1"), 5, "b")
    assert (run.outcome, run.problem) == ("unavailable", FAILED)
    state = direct_e2b.state()
    assert len(requests_of(state, "list")) - lists == 20
    assert (state["created"], len(callers_runs(state))) == (1, 1)
    assert session_pool(make_pool).run(Cell("1"), 5, "a").outcome == "ok"
    assert len(set(used_by(direct_e2b.state()))) == 1


def test_two_first_calls_of_a_session_have_one_sandbox(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": {"delay_s": 0.3}})
    pool = session_pool(make_pool)
    calls = [threads.submit(pool.run, Cell("1"), 5, "mark") for _ in range(3)]
    assert {call.result().outcome for call in calls} == {"ok"}
    assert direct_e2b.state()["created"] == 1
