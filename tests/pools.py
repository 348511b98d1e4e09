"""What the tests of pools share: pools, and what E2B was asked by them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from builders import SET_UP
from local_e2b import LocalE2B

from config import Config
from conftest import E2B_KEY, OK_RUN
from sandboxes.keeping import KEEPING_TIMING, KeepingPool, KeepingTiming
from sandboxes.pool import Full, Pool
from texts.cell import Cell

State = dict[str, Any]
MakePool = Callable[..., Pool]
REFUSED = {"status": 400, "body": {"code": 400, "message": "no"}}
# A create has 1 s, and what was not answered is looked for every 0.4 s.
QUICK_SEARCH = KeepingTiming(overhead_s=1.5, reserve_s=0.5, search_again_after_s=0.4)

# What a list may have that ignores the metadata it was asked for.
UNFILTERED = [
    pytest.param({"unfiltered": True}, id="on one page"),
    pytest.param({"unfiltered": True, "page_size": 1}, id="on several pages"),
]


class Panic(BaseException):
    """What a panic of the SDK's transport, which is Rust, is raised as."""


@contextmanager
def pools_at(e2b: LocalE2B) -> Iterator[MakePool]:
    """Make pools with these settings; none of their sandboxes is left afterwards."""
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
    creates = requests_of(e2b.state(), "create")
    sessions = {create["body"]["metadata"].get("session") for create in creates}
    # What idle sessions leave behind is E2B's to end.
    if sessions <= {None}:
        e2b.wait_for(lambda state: state["alive"] == 0, 30)


def session_pool(make_pool: MakePool, **settings: Any) -> Pool:
    return make_pool(session_idle_s=60, run_timeout_s=5, **settings)


def requests_of(state: State, kind: str) -> list[State]:
    return [request for request in state["requests"] if request["kind"] == kind]


def answered(state: State, kind: str) -> list[State]:
    return [request for request in requests_of(state, kind) if request["answer"]]


def callers_runs(state: State) -> list[State]:
    """Without the cells that primed a sandbox."""
    return [
        request
        for request in requests_of(state, "run")
        if not request["body"]["code"].startswith(SET_UP)
    ]


def runs_sent(count: int) -> Callable[[State], bool]:
    """Whether `count` runs of callers were sent."""
    return lambda state: len(callers_runs(state)) >= count


def used_by(state: State) -> list[str]:
    """The sandboxes that ran the callers' cells, in their order."""
    return [request["sandbox_id"] for request in callers_runs(state)]


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait for what no event tells of."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at
        threading.Event().wait(0.01)


def wait_until_ready(pool: Pool, count: int = 1) -> None:
    """Wait until so many sandboxes that were made ahead are there."""
    wait_until(lambda: pool.warm_ready() == count)


def refusal_s(pool: Pool, tries: int = 3) -> float:
    """How long it takes to be refused, at best: something else may keep this machine
    busy."""
    fastest_s = math.inf
    while tries and fastest_s > 0.1:
        started = time.monotonic()
        tries -= 1
        with pytest.raises(Full):
            pool.run(Cell("one more"), 1)
        fastest_s = min(fastest_s, time.monotonic() - started)
    return fastest_s
