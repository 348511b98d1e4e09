"""Sandboxes made ahead: ready when a call comes, never in its way, never left over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import requests
from builders import empty_run
from e2b.sandbox_sync.sandbox_api import SandboxApi
from local_e2b import LocalE2B
from pools import (
    QUICK_SEARCH,
    REFUSED,
    MakePool,
    Panic,
    answered,
    callers_runs,
    requests_of,
    runs_sent,
    wait_until,
    wait_until_ready,
)

from config import Config
from conftest import E2B_KEY, OK_RUN, Service, use
from run import Run
from sandboxes.keeping import KeepingPool, KeepingTiming
from sandboxes.pool import Full, Need, Pool
from texts.cell import Cell


def test_a_sandbox_for_longer_work_runs_several_cells_and_lives_long_enough(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(warm_sandboxes=1, run_timeout_s=5, max_concurrent_runs=2)
    wait_until_ready(pool)
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
    state = direct_e2b.wait_for(lambda state: state["killed"] >= 2, 30)
    used = [request["sandbox_id"] for request in callers_runs(state)]
    assert used[0] == used[1]
    assert used[2] == used[3] != used[0]


def test_a_keeper_logs_what_it_does_not_expect_and_goes_on(
    direct_e2b: LocalE2B,
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
    wait_until_ready(pool)


# Made ahead: what waits is looked at every 0.1 s and renewed every 0.2 s.
QUICK_KEEPER = KeepingTiming(look_again_after_s=0.1, renew_after_s=0.2)


def test_one_made_ahead_is_used_once_killed_and_made_again(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(warm_sandboxes=1)
    for number in range(1, 4):
        wait_until_ready(pool)
        assert direct_e2b.state()["created"] == number
        run = pool.run(Cell("1"), 5)
        assert run.outcome == "ok"
        assert "create" not in run.durations_s
        direct_e2b.wait_for(lambda state, number=number: state["killed"] == number, 30)
    used = [request["sandbox_id"] for request in callers_runs(direct_e2b.state())]
    assert len(set(used)) == 3
    for sandbox_id in used:  # primed before it was offered
        runs = [
            r
            for r in requests_of(direct_e2b.state(), "run")
            if r["sandbox_id"] == sandbox_id
        ]
        assert [request["body"]["code"] for request in runs][1:] == ["1"]


def test_a_caller_is_faster_with_one_made_ahead(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": {"delay_s": 1.5}})
    pool = make_pool(warm_sandboxes=1)
    wait_until_ready(pool)
    started = time.monotonic()
    pool.run(Cell("1"), 5)
    assert time.monotonic() - started < 1.4


def test_those_made_ahead_count_under_the_cap_and_give_way_to_runs(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": {"run_s": 0.4, **OK_RUN}})
    pool = make_pool(max_concurrent_runs=3, warm_sandboxes=2)
    wait_until_ready(pool, 2)
    running = [threads.submit(pool.run, Cell("1"), 5) for _ in range(3)]
    assert [run.result().outcome for run in running] == ["ok"] * 3
    assert direct_e2b.state()["max_alive"] <= 3
    wait_until_ready(pool, 2)
    assert direct_e2b.state()["max_alive"] <= 3


def test_who_comes_while_one_is_being_made_ahead_waits_for_it_when_all_else_is_taken(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": {"delay_s": 0.4}})
    pool = make_pool(max_concurrent_runs=1, warm_sandboxes=1)
    direct_e2b.wait_for(lambda state: requests_of(state, "create"), 30)
    assert pool.run(Cell("1"), 5).outcome == "ok"


@pytest.fixture
def make_kernel_pool(
    direct: None, kernel_e2b: LocalE2B, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakePool]:
    """A pool of sandboxes with real kernels, which start late on a busy machine."""
    use(kernel_e2b, monkeypatch)
    pools = []

    def make(**settings: Any) -> Pool:
        config = Config(e2b_api_key=E2B_KEY, warm_sandboxes=1, **settings)
        pools.append(KeepingPool(config, KeepingTiming(priming_s=60)))
        wait_until_ready(pools[-1])
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_one_made_ahead_is_primed_so_lines_are_right_and_magics_work(
    make_kernel_pool: MakePool,
) -> None:
    pool = make_kernel_pool(warm_imports="")
    run = pool.run(Cell("x = 1\n\n1 / 0"), 50)
    assert "create" not in run.durations_s
    assert "----> 3 1 / 0" in run.traceback
    assert "environ" not in run.traceback
    wait_until_ready(pool)
    code = "%%time\nimport sys\nprint('x' in dir(), 'pandas' in sys.modules)"
    run = pool.run(Cell(code), 50)
    assert run.outcome == "ok"
    assert run.stdout.head.startswith("False False\n")  # nothing of the run before


def test_one_made_ahead_has_imported_what_is_slow_and_has_no_name_of_it(
    make_kernel_pool: MakePool,
) -> None:
    pool = make_kernel_pool(warm_imports="no_such_module, matplotlib.pyplot,pandas")
    slow = ("matplotlib.pyplot", "pandas", "matplotlib_inline.backend_inline")
    code = f"""import sys
print([name in sys.modules for name in {slow}])
names = [name for name in dir() if "import" in name or "pandas" in name]
print(names)
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()
1 / 0"""
    run = pool.run(Cell(code), 50)
    assert run.stdout.head.splitlines() == [str([True] * 3), "[]"]
    assert len(run.pictures) == 1
    assert "----> 8 1 / 0" in run.traceback


def test_the_end_of_one_that_waits_is_put_off_so_a_whole_run_always_fits(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(QUICK_KEEPER, warm_sandboxes=1, run_timeout_s=5)
    state = direct_e2b.wait_for(
        lambda state: len(requests_of(state, "timeout")) >= 3, 30
    )
    assert requests_of(state, "create")[0]["body"]["timeout"] == 5 + 15
    assert {
        request["body"]["timeout"] for request in requests_of(state, "timeout")
    } == {5 + 15}
    assert state["created"] == 1
    assert pool.run(Cell("1"), 5).outcome == "ok"


def test_those_that_wait_are_dropped_when_no_run_comes_and_made_again_at_the_next(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(QUICK_KEEPER, warm_sandboxes=2, warm_idle_s=1)
    wait_until_ready(pool, 2)
    state = direct_e2b.wait_for(lambda state: state["killed"] == 2, 30)
    wait_until(lambda: pool.warm_ready() + pool.count("making") == 0)
    assert (state["created"], pool.count("making")) == (2, 0)
    assert pool.run(Cell("1"), 5).outcome == "ok"
    wait_until_ready(pool, 2)


def test_one_that_turns_out_dead_is_replaced_without_the_caller_seeing_it(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(warm_sandboxes=2)
    wait_until_ready(pool, 2)
    direct_e2b.set_script({"run": [{"fault": "gone"}, OK_RUN]})
    run = pool.run(Cell("1"), 5)
    assert (run.outcome, run.stdout.head, run.problem) == ("ok", "ok\n", "")
    assert (
        "create" in run.durations_s
    )  # not the other one made ahead: it may be dead as well


def test_one_that_turns_out_dead_when_its_end_is_put_off_is_made_again(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(QUICK_KEEPER, warm_sandboxes=1)
    wait_until_ready(pool)
    direct_e2b.set_script({"run": OK_RUN, "timeout": [{"fault": "not_found"}, {}]})
    direct_e2b.wait_for(lambda state: state["created"] == 2, 30)
    wait_until_ready(pool)
    assert pool.run(Cell("1"), 5).outcome == "ok"


def test_when_e2b_is_short_of_room_making_ahead_backs_off_and_callers_still_run(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    short = {"status": 429, "headers": {"Retry-After": "99"}}
    direct_e2b.set_script({"run": OK_RUN, "create": [short, short, {}]})
    pool = make_pool(warm_sandboxes=1)
    state = direct_e2b.wait_for(
        lambda state: len(requests_of(state, "create")) == 2, 30
    )
    first, second = (request["at_s"] for request in requests_of(state, "create"))
    assert second - first >= 0.9
    assert pool.run(Cell("1"), 5).outcome == "ok"
    third = direct_e2b.wait_for(
        lambda state: len(requests_of(state, "create")) == 4, 30
    )
    assert requests_of(third, "create")[3]["at_s"] - second >= 1.8


def test_a_caller_does_not_wait_while_making_ahead_backs_off(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": [REFUSED, {}]})
    pool = make_pool(
        KeepingTiming(first_back_off_s=5), max_concurrent_runs=1, warm_sandboxes=1
    )
    direct_e2b.wait_for(lambda state: answered(state, "create"), 30)
    run = pool.run(Cell("1"), 5)
    assert run.outcome == "ok"
    assert run.durations_s["queue"] < 4.5


def test_one_that_cannot_be_primed_is_killed_before_making_ahead_backs_off(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": {"fault": "reset"}})
    make_pool(KeepingTiming(first_back_off_s=5), warm_sandboxes=1)
    state = direct_e2b.wait_for(lambda state: requests_of(state, "kill"), 30)
    (primed, *_), (killed, *_) = requests_of(state, "run"), requests_of(state, "kill")
    assert killed["at_s"] - primed["at_s"] < 4.5


def test_the_back_off_begins_again_after_a_success(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": [*[REFUSED] * 3, {}, REFUSED, {}]})
    pool = make_pool(replace(QUICK_KEEPER, first_back_off_s=0.25), warm_sandboxes=1)
    wait_until_ready(pool)
    assert pool.run(Cell("1"), 5).outcome == "ok"
    state = direct_e2b.wait_for(
        lambda state: len(requests_of(state, "create")) == 6, 30
    )
    times = [request["at_s"] for request in requests_of(state, "create")]
    assert times[3] - times[2] > 0.95
    assert times[5] - times[4] < 0.9


def test_a_caller_who_waits_for_a_slot_comes_before_making_ahead(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "kill": {"delay_s": 0.2}})
    pool = make_pool(max_concurrent_runs=1, warm_sandboxes=1)
    for _ in range(4):
        wait_until_ready(pool)
        pool.run(Cell("1"), 5)
        assert "create" in pool.run(Cell("1"), 5).durations_s


def test_the_next_is_made_ahead_as_soon_as_one_is_taken(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(warm_sandboxes=1)
    wait_until_ready(pool)
    direct_e2b.set_script({"run": {"run_s": 4, **OK_RUN}})
    running = threads.submit(pool.run, Cell("1"), 10)
    state = direct_e2b.wait_for(lambda state: len(requests_of(state, "create")) == 2, 3)
    assert not requests_of(state, "timeout")  # a sandbox that is in use is not renewed
    assert running.result().outcome == "ok"


def test_whenever_one_is_taken_the_next_is_made_ahead_at_once(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    """No change is lost, whatever the keeper is about to do: it looks again by itself
    only when this test is over."""
    timing = KeepingTiming(look_again_after_s=30)
    pool = make_pool(timing, warm_sandboxes=1)
    for _ in range(50):
        wait_until_ready(pool)
        assert pool.run(Cell("1"), 5).outcome == "ok"


def test_making_ahead_stops_when_the_days_budget_is_spent(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    pool = make_pool(warm_sandboxes=1, sandbox_seconds_per_day=1)
    wait_until_ready(pool)
    wait_until(lambda: pool.seconds_spent() > 1)
    assert pool.run(Cell("1"), 5).outcome == "budget"
    assert direct_e2b.state()["created"] == 1


# --- the end --------------------------------------------------------------------------


def test_close_leaves_none_whatever_they_were_doing(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script(
        {
            "run": [OK_RUN, OK_RUN, {"fault": "silent"}],
            "create": [{}, {}, {"delay_s": 0.5}],
        }
    )
    pool = make_pool(warm_sandboxes=2)
    wait_until_ready(pool, 2)
    running = threads.submit(
        pool.run, Cell("1"), 20
    )  # takes one; another is then being made
    direct_e2b.wait_for(
        lambda state: len(requests_of(state, "create")) == 3 and runs_sent(1)(state), 30
    )
    assert pool.count("making") == 1
    pool.close()
    state = direct_e2b.state()
    assert (state["alive"], state["created"], state["killed"]) == (0, 3, 3)
    assert running.result().outcome != "ok"


def test_one_that_is_primed_while_the_pool_closes_is_not_offered(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
) -> None:
    direct_e2b.set_script({"run": {"delay_s": 0.6, **OK_RUN}, "kill": {"delay_s": 1.2}})
    pool = make_pool(warm_sandboxes=1)
    direct_e2b.wait_for(lambda state: requests_of(state, "run"), 30)
    closing = threads.submit(pool.close)
    while not closing.done():
        assert pool.warm_ready() == 0
    assert len(requests_of(direct_e2b.state(), "kill")) == 1


def test_close_tries_a_kill_again_and_gives_up_within_its_budget(
    direct_e2b: LocalE2B, make_pool: MakePool
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "kill": [{"fault": "ignored"}, {}]})
    pool = make_pool(warm_sandboxes=1)
    wait_until_ready(pool)
    pool.close()
    assert direct_e2b.state()["alive"] == 0
    direct_e2b.set_script({"run": OK_RUN, "kill": {"fault": "hang_alive"}})
    pool = make_pool(KeepingTiming(small_call_s=1.5), warm_sandboxes=1)
    wait_until_ready(pool)
    started = time.monotonic()
    pool.close(0.5)
    assert time.monotonic() - started < 1.4


def test_sigterm_while_some_are_being_made_leaves_none(
    direct_e2b: LocalE2B, start_service: Callable[..., Service]
) -> None:
    direct_e2b.set_script({"run": OK_RUN, "create": [{}, {}, {"delay_s": 1}]})
    service = start_service(WARM_SANDBOXES="4")
    direct_e2b.wait_for(
        lambda state: len(requests_of(state, "create")) == 4 and state["created"] == 2,
        30,
    )
    service.stop()
    assert service.process.returncode == 0
    state = direct_e2b.wait_for(lambda state: state["alive"] == 0, 30)
    assert state["created"] == state["killed"] == 4


def test_creates_and_kills_balance_after_a_mix_of_faults(
    direct_e2b: LocalE2B, make_pool: MakePool, threads: ThreadPoolExecutor
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
    direct_e2b.set_script(
        {kind: {"mix": answers, "seed": 7} for kind, answers in mix.items()}
    )
    pool = make_pool(warm_sandboxes=3)
    runs: list[Future[Run]] = [
        threads.submit(pool.run, Cell("1"), 5) for _ in range(15)
    ]
    outcomes = {run.result().outcome for run in runs}
    assert outcomes <= {"ok", "error", "unavailable"}
    assert "ok" in outcomes
    pool.close()
    wait_until(lambda: not pool.count("making", "kept", "running", "ending"))
    assert direct_e2b.wait_for(lambda state: state["alive"] == 0, 30)["created"] > 15


def test_what_was_spent_and_who_runs_is_on_health(
    direct_e2b: LocalE2B, start_service: Callable[..., Service]
) -> None:
    service = start_service(WARM_SANDBOXES="1", SANDBOX_SECONDS_PER_DAY="100000")
    direct_e2b.wait_for(lambda state: requests_of(state, "run"), 30)

    def health() -> dict[str, Any]:
        return dict(requests.get(f"{service.url}/health", timeout=30).json())

    wait_until(lambda: health()["warm_ready"] == 1)
    wait_until(lambda: health()["sandbox_seconds_today"] > 0)
    assert health()["sandbox_seconds_per_day"] == 100_000
    assert health()["runs_in_flight"] == 0
