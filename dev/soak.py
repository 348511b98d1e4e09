"""`make soak`: mixed load with faults and
restarts, and an account of all that came of it.

    python dev/soak.py [--runs 5000] [--faults 0.1] [--restarts 3] [--warm 0] [--quick]

The service as shipped, the stand-in for E2B and the load are processes of their own.
Each run is given its fate in its code, so that its reply can be held against it; what
the stand-in did is held against what the service should have done about it. Exits 1
unless all of it is explained: see `problems`. It ends by itself.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import attacks
from answers import (
    FORM_TYPE,
    FULL,
    JSON_TYPE,
    Answer,
    Client,
    NoAnswer,
    Reply,
    RequestsClient,
    TooLate,
    WrongAnswer,
    check_error,
    check_exec,
    check_file,
    exec_of,
    is_refused_as_full,
    is_refused_as_full_by_code_api,
    picture_in,
    ref_of,
    reply_of,
    reply_over_mcp,
)
from launch import clean_environ, free_port
from processes import BenchError, Child, Service, StandIn, answered

RUN_TIMEOUT_S = 3
# What the service promises: a run's limit and
# this is the longest that a sandbox may live.
LIFETIME_MARGIN_S = 15
# What a request may take beyond its run's limit,
# by the same promise, and a busy machine.
OVERHEAD_S = 10 + 20
MAX_GROWTH_MB = 10
# A leak would be hundreds; connections and their threads come and go by a few.
MAX_GROWTH = 20
# Threads for kills are started when so many kills are under way at once, one for each
# run at most, and stay. Each keeps some memory.
THREAD_MB = 0.1
LONG_OUTPUT_BYTES = 2_000_000
SHOWN_PROBLEMS = 20
# What the service says of a run that no sandbox has taken.
NOT_RUN = (
    "E2B did not answer in time",
    "E2B could not be reached",
    "E2B refused this service's key",
    "E2B is at its limit",
    "E2B refused to make a sandbox",
    "E2B failed.",
    "E2B's sandbox refused the run",
    "The connection to the sandbox failed",
    "This service is being stopped",
)
# The longest that any answer is waited for.
REQUEST_TIMEOUT_S = RUN_TIMEOUT_S + OVERHEAD_S + 20
# What the sandbox of a hostile caller answers:
# 10 MB in one line, which are long to parse.
ENTRIES = 800_000
ATTACK_S = 5
RUNS = attacks.runs_code
PLAIN_RUN: dict[str, Any] = {"run": {"events": []}}
# How far the service's memory may rise in an attack: what is large may hold 128 MiB,
# runs and the interpreter's own pools have the rest. And what may stay.
MAX_PEAK_MB = 300
MAX_KEPT_MB = 64

# What the stand-in is to answer.
Scripted = dict[str, Any]


# --- what is asked --------------------------------------------------------------------


@dataclass(frozen=True)
class Fate:
    """What a run's code makes the stand-in do, and what has to come of it."""

    name: str
    answer: Scripted
    outcome: str = "ok"
    text: str = ""  # in the reply; {n} is the run's number
    pictures: int = 0
    timeout_s: int | None = None


def _stdout(text: str) -> Scripted:
    return {"type": "stdout", "text": text, "timestamp": "2026-01-01T00:00:00+00:00"}


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40">'
    '<circle cx="20" cy="20" r="15" fill="teal"/></svg>'
)
SVG_RESULT = {"type": "result", "svg": SVG, "extra": {}, "is_main_result": False}
EXCEPTION = {
    "type": "error",
    "name": "ZeroDivisionError",
    "value": "division by zero",
    "traceback": (
        "Traceback (most recent call last)\nZeroDivisionError: division by zero"
    ),
}
SAID = {"events": [_stdout("number {n}\n")]}

PLAIN: tuple[tuple[int, Fate], ...] = (
    (50, Fate("print", SAID, text="number {n}")),
    (
        15,
        Fate(
            "pictures",
            {**SAID, "pngs": 3, "png_bytes": 30_000},
            text="number {n}",
            pictures=3,
        ),
    ),
    (4, Fate("svg", {**SAID, "events": [SVG_RESULT]}, pictures=1)),
    (
        6,
        Fate("long output", {"stdout_bytes": LONG_OUTPUT_BYTES}, text="characters cut"),
    ),
    (13, Fate("exception", {"events": [EXCEPTION]}, "error", "ZeroDivisionError")),
    (2, Fate("too long", {"run_s": 2.5}, "timeout", "1 s", timeout_s=1)),
)
# Of the code API: what a sandbox reports of a script that wrote a file.
FILE_BYTES = 20_000
LARGE_FILE_BYTES = 500_000  # goes by E2B's file API
EXEC_SHARE = 0.1
RUN_FAULTS: tuple[tuple[int, Fate], ...] = (
    (3, Fate("reset", {"fault": "reset"}, "unavailable")),
    (3, Fate("status 500", {"status": 500, "body": "no"}, "unavailable")),
    (3, Fate("not found", {"fault": "not_found"}, "unavailable")),
    (3, Fate("gone", {"fault": "gone"}, "unavailable")),
    (3, Fate("cut", {**SAID, "fault": "cut"}, "error", "number {n}")),
    (3, Fate("no end", {**SAID, "fault": "no_end"}, "error", "number {n}")),
    (3, Fate("not JSON", {**SAID, "fault": "not_json"}, "error", "number {n}")),
    (3, Fate("vanish", {**SAID, "fault": "vanish"}, "error", "number {n}")),
    (1, Fate("hang", {"fault": "hang"}, "timeout", timeout_s=1)),
    (
        1,
        Fate(
            "silent", {**SAID, "fault": "silent"}, "timeout", "number {n}", timeout_s=1
        ),
    ),
    (
        1,
        Fate(
            "forever",
            {**SAID, "fault": "forever"},
            "timeout",
            "number {n}",
            timeout_s=1,
        ),
    ),
    (1, Fate("drip", {**SAID, "fault": "drip"}, "timeout", "number {n}", timeout_s=1)),
)
CREATE_FAULTS: tuple[tuple[int, Scripted], ...] = (
    (3, {"status": 429, "body": {"code": 429, "message": "rate limit"}}),
    (3, {"status": 503, "body": {"code": 503, "message": "busy"}}),
    (3, {"status": 500, "body": {"code": 500, "message": "broken"}}),
    (3, {"status": 403, "body": {"code": 403, "message": "forbidden"}}),
    (3, {"fault": "reset"}),
    (3, {"fault": "lost_reply"}),
    (1, {"fault": "hang"}),
)
KILL_FAULTS: tuple[tuple[int, Scripted], ...] = (
    (4, {"fault": "ignored"}),
    (3, {"fault": "reset"}),
    (3, {"fault": "not_found"}),
    (3, {"status": 429, "body": {"code": 429, "message": "rate limit"}}),
    (3, {"status": 503, "body": {"code": 503, "message": "busy"}}),
    (1, {"fault": "hang"}),
    (1, {"fault": "hang_alive"}),
)
# Of create and kill; an honest answer is never one of these.
FAULTY_STATUSES = {403, 429, 500, 503}
SESSION_CALLS = 8
BAD_REQUESTS: tuple[tuple[str, str, dict[str, str], str, int], ...] = (
    ("POST", "/execute", JSON_TYPE, "{}", 400),
    ("POST", "/execute", JSON_TYPE, "{no json", 400),
    ("POST", "/execute", JSON_TYPE, '{"code": "1", "timeout": true}', 400),
    ("POST", "/execute", JSON_TYPE, '{"code": "1", "language": "ruby"}', 400),
    ("POST", "/execute", JSON_TYPE, "[" * 20_000, 400),
    ("POST", "/execute", {"Content-Type": "text/plain"}, '{"code": "1"}', 415),
    (
        "POST",
        "/execute",
        {**JSON_TYPE, "Origin": "https://evil.example"},
        '{"code": "1"}',
        403,
    ),
    ("GET", "/execute", {}, "", 405),
    ("GET", "/nowhere", {}, "", 404),
    ("POST", "/mcp", JSON_TYPE, "{no json", 400),
)


def script(faults: float, quick: bool) -> dict[str, Any]:
    """The stand-in's answers; each create and
    each kill fails with the given probability."""

    def mix(
        delay_s: float, answers: Sequence[tuple[int, Scripted]], seed: int
    ) -> Scripted:
        # A create or a kill that hangs holds its place for as long as it may.
        kept = [(w, a) for w, a in answers if not (quick and "hang" in str(a))]
        total = sum(weight for weight, _ in kept)
        faulty = [[faults * weight / total, answer] for weight, answer in kept]
        return {"mix": [[1 - faults, {"delay_s": delay_s}], *faulty], "seed": seed}

    return {
        "create": mix(0.02, CREATE_FAULTS, 1),
        "run": {"from_code": True},
        "kill": mix(0.01, KILL_FAULTS, 2),
    }


# --- what was seen --------------------------------------------------------------------


@dataclass
class Sample:
    memory_mb: float
    threads: int
    descriptors: int

    @classmethod
    def of(cls, service: Child) -> Sample:
        processes = service.processes()
        return cls(
            service.memory_mb(),
            sum(process.num_threads() for process in processes),
            sum(process.num_fds() for process in processes),
        )


@dataclass
class Life:
    """One process of the service: what it held after warming up, and at its end."""

    runs: int = 0
    start: Sample | None = None
    end: Sample | None = None

    def growth(self) -> Sample:
        """What it holds more of at its end."""
        if not self.start or not self.end:
            return Sample(0.0, 0, 0)
        return Sample(
            self.end.memory_mb - self.start.memory_mb,
            self.end.threads - self.start.threads,
            self.end.descriptors - self.start.descriptors,
        )


@dataclass
class Restart:
    signal_number: int
    began_at: float
    ended_at: float = float("inf")


@dataclass(frozen=True)
class Attack:
    """What one attack did to the service."""

    name: str
    health_s: float  # the longest that GET /health took
    limit_s: float  # and may take
    before_mb: float
    peak_mb: float
    after_mb: float

    def problems(self) -> list[str]:
        found = []
        if self.health_s >= self.limit_s:
            found.append(f"/health took {self.health_s:.2f} s, not {self.limit_s} s")
        if self.peak_mb - self.before_mb >= MAX_PEAK_MB:
            found.append(f"the memory rose by {self.peak_mb - self.before_mb:.0f} MB")
        if self.after_mb - self.before_mb >= MAX_KEPT_MB:
            found.append(f"{self.after_mb - self.before_mb:.0f} MB of memory stayed")
        return [f"{self.name}: {problem}" for problem in found]

    def __str__(self) -> str:
        return (
            f"{self.name}: /health at most {self.health_s:.2f} s (of {self.limit_s} s),"
            f" memory {self.before_mb:.0f}, {self.peak_mb:.0f}, {self.after_mb:.0f} MB"
            " before, at most, after"
        )


@dataclass
class Report:
    """What came of a soak."""

    runs: int = 0
    bad_requests: int = 0
    full: int = 0
    refused: int = 0  # connections, while the service was restarted
    cut_by_kill: int = 0
    execs: int = 0  # among the runs
    no_sandbox: int = 0  # runs for which none could be made
    stopped: int = 0  # runs that were told that the service is being stopped
    outcomes: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    restarts: list[Restart] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    created: int = 0
    killed: int = 0
    expired: int = 0
    alive: int = 0
    may_expire: int = 0  # sandboxes that no kill can have ended
    longest_lifetime_s: float = 0.0
    took_s: float = 0.0
    attacks: list[Attack] = field(default_factory=list)

    def never_killed(self) -> int:
        """Sandboxes that were left to their lifetime
        although a kill could have ended them."""
        return max(0, self.expired + self.alive - self.may_expire)


@dataclass(frozen=True)
class Plan:
    runs: int
    faults: float  # injected for each run, on average
    restarts: int
    warm: int
    callers: int
    quick: bool
    session_idle_s: int = 0

    def warm_up(self) -> int:
        """Runs of a process before its memory is looked at for the first time.

        Until then stacks of threads and buffers of
        connections reach the size that they keep.
        """
        return min(1000, self.runs // 5)

    def restart_after(self) -> list[int]:
        """Runs before each restart; the last process does as much as all before it."""
        return [
            self.runs * n // (2 * self.restarts) for n in range(1, self.restarts + 1)
        ]


def problems(report: Report, plan: Plan) -> list[str]:
    """Why the soak has failed: empty when it has not."""
    found = list(report.unexplained)
    if report.runs < plan.runs:
        found.append(f"only {report.runs} of {plan.runs} runs")
    # Each is a throw of dice, and a short soak has few: half as many are no chance.
    if (injected := report.faults.total()) < plan.runs * plan.faults / 2:
        found.append(f"only {injected} faults")
    if len(report.restarts) < plan.restarts:
        found.append(f"only {len(report.restarts)} restarts")
    if report.alive and not plan.quick:
        found.append(
            f"{report.alive} sandboxes leaked: alive after the lifetime given at create"
        )
    if count := report.never_killed():
        found.append(
            f"{count} sandboxes were never killed, for no reason that is known"
        )
    if report.longest_lifetime_s > RUN_TIMEOUT_S + LIFETIME_MARGIN_S:
        found.append(f"a sandbox was given a lifetime of {report.longest_lifetime_s} s")
    if report.no_sandbox > report.faults["create"]:
        found.append(
            f"{report.no_sandbox} runs got no sandbox: more than faults can explain"
        )
    for attack in report.attacks:
        found += attack.problems()
    growth = report.lives[-1].growth()
    if growth.memory_mb >= MAX_GROWTH_MB + THREAD_MB * max(0, growth.threads):
        found.append(
            f"the memory of the last process grew by {growth.memory_mb:.1f} MB"
        )
    if max(growth.threads - plan.callers, growth.descriptors) > MAX_GROWTH:
        found.append(
            f"the last process has {growth.threads} threads"
            f" and {growth.descriptors} file descriptors more"
        )
    return found


class Witness(threading.Thread):
    """Reads what the stand-in did before it forgets:
    it keeps its newest thousand requests."""

    def __init__(self, e2b: StandIn) -> None:
        super().__init__(name="witness")
        self._e2b = e2b
        self._stop_asked = threading.Event()
        self._requests: dict[tuple[float, str], dict[str, Any]] = {}
        self._newest_s = 0.0
        self.gaps = 0
        self.state: dict[str, Any] = {}

    def run(self) -> None:
        while not self._stop_asked.wait(0.8):
            self.look()

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()

    def look(self) -> None:
        self.state = self._e2b.state()
        records = self.state.pop("requests")
        if len(records) >= 1000 and records[0]["at_s"] > self._newest_s:
            self.gaps += 1
        for record in records:
            kind, body = record["kind"], record["body"]
            self._requests[record["at_s"], kind] = {
                "kind": kind,
                "sandbox_id": record["sandbox_id"],
                "answer": record["answer"],
                "lifetime_s": body.get("timeout")
                if kind in ("create", "timeout")
                else None,
                "is_run": kind == "run" and "# answer" in body["code"],
            }
            self._newest_s = max(self._newest_s, record["at_s"])

    def tell(self, report: Report) -> None:
        """Add up; the rest of the state is told as it is now."""
        self.look()
        ended_by_kill, not_killed = set[str](), set[str]()
        runs = Counter[str]()
        for request in self._requests.values():
            kind, answer, sandbox_id = (
                request["kind"],
                request["answer"],
                request["sandbox_id"],
            )
            is_fault = isinstance(answer, str) or answer in FAULTY_STATUSES
            report.faults[kind] += is_fault
            report.longest_lifetime_s = max(
                report.longest_lifetime_s, request["lifetime_s"] or 0
            )
            report.may_expire += answer == "lost_reply"
            runs[sandbox_id] += request["is_run"]
            if kind == "kill":
                (ended_by_kill if answer in (204, "hang") else not_killed).add(
                    sandbox_id
                )
        report.may_expire += len(not_killed - ended_by_kill)
        twice = sum(count > 1 for count in runs.values())
        if twice:
            report.unexplained.append(
                f"{twice} sandboxes were sent a run more than once"
            )
        if self.gaps:
            report.unexplained.append(
                f"{self.gaps} gaps in what is known of the stand-in"
            )
        for name in ("created", "killed", "expired", "alive"):
            setattr(report, name, self.state[name])


# --- the load -------------------------------------------------------------------------


class Load:
    """Callers in threads; `gate` lets them begin their next request."""

    def __init__(self, port: int, callers: int, runs: int, faults: float) -> None:
        self.report = Report()
        self.gate = threading.Event()
        self._port, self._wanted, self._faults = port, runs, faults
        self._changed = threading.Condition()
        self._active = self._numbers = 0
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._call_repeatedly, args=(seed,))
            for seed in range(callers)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._is_over = True
        self.gate.set()
        for thread in self._threads:
            thread.join()

    def wait_for_runs(self, runs: int, give_up_at: float) -> None:
        with self._changed:
            left_s = give_up_at - time.monotonic()
            if not self._changed.wait_for(lambda: self.report.runs >= runs, left_s):
                raise BenchError(f"only {self.report.runs} of {runs} runs came in time")

    def pause(self, give_up_at: float) -> None:
        self.gate.clear()
        with self._changed:
            left_s = give_up_at - time.monotonic()
            if not self._changed.wait_for(lambda: not self._active, left_s):
                raise BenchError(f"{self._active} requests are not answered")

    def count(self, name: str) -> None:
        with self._changed:
            setattr(self.report, name, getattr(self.report, name) + 1)

    def rest(self, what: str) -> None:
        """Before the same request is made again. Raises WrongAnswer after the end."""
        if self._is_over:
            raise WrongAnswer(f"{what}: was not answered")
        time.sleep(0.1)

    def _call_repeatedly(self, seed: int) -> None:
        choose = random.Random(seed)
        caller = Caller(self, RequestsClient(self._port, REQUEST_TIMEOUT_S))
        while True:
            self.gate.wait()
            with self._changed:
                if self._is_over:
                    break
                self._active += 1
                self._numbers += 1
                number = self._numbers
            try:
                self._call(caller, choose, number)
            except WrongAnswer as exc:
                self.report.unexplained.append(str(exc))
            except Exception as exc:
                self.report.unexplained.append(f"in this program: {exc!r}")
            finally:
                with self._changed:
                    self._active -= 1
                    self._changed.notify_all()
        caller.close()

    def _call(self, caller: Caller, choose: random.Random, number: int) -> None:
        if choose.random() < 0.05:
            caller.refused(*choose.choice(BAD_REQUESTS))
            self.count("bad_requests")
            return
        if choose.random() < EXEC_SHARE:
            outcome = caller.exec(number)
            with self._changed:
                self.report.runs += 1
                self.report.execs += 1
                self.report.outcomes[outcome] += 1
            return
        faulty = choose.random() < 0.6 * self._faults
        weights, fates = zip(*(RUN_FAULTS if faulty else PLAIN), strict=True)
        fate = choose.choices(fates, weights)[0]
        outcome = caller.run(fate, number, over_mcp=choose.random() < 0.3)
        with self._changed:
            self.report.runs += 1
            self.report.fates[fate.name] += 1
            self.report.outcomes[outcome] += 1


class Caller:
    """One client, which keeps its connection, and tries again while the service is
    restarted. Its methods raise WrongAnswer."""

    def __init__(self, load: Load, client: RequestsClient) -> None:
        self._load, self._client = load, client
        # When its connection was opened, or has last brought an answer.
        self._alive_at: float | None = None

    def close(self) -> None:
        self._client.close()
        self._alive_at = None

    def refused(
        self, method: str, path: str, headers: dict[str, str], body: str, status: int
    ) -> None:
        """A bad request."""
        check_error(self._ask(method, path, headers, body.encode(), body[:40]), status)

    def run(self, fate: Fate, number: int, over_mcp: bool) -> str:
        """The outcome of a run."""
        what = f"{fate.name} {number}{' over MCP' if over_mcp else ''}"
        code = answered(**fate.answer).replace("{n}", str(number))
        arguments: dict[str, Any] = {"code": code}
        if fate.timeout_s:
            arguments["timeout"] = fate.timeout_s
        limit_s = fate.timeout_s or RUN_TIMEOUT_S
        path, message = "/execute", arguments
        if over_mcp:
            path, params = "/mcp", {"name": "execute_python", "arguments": arguments}
            message = {
                "jsonrpc": "2.0",
                "id": number,
                "method": "tools/call",
                "params": params,
            }
        body = json.dumps(message).encode()
        while True:
            asked_at = time.monotonic()
            answer = self._ask("POST", path, JSON_TYPE, body, what)
            if (took_s := time.monotonic() - asked_at) > limit_s + OVERHEAD_S:
                raise TooLate(f"{what}: took {took_s:.1f} s")
            if over_mcp:
                reply = reply_over_mcp(answer, number)
                is_full = reply.outcome == "failed" and FULL in reply.text
            else:
                is_full = is_refused_as_full(answer)
            if not is_full:
                break
            self._load.count("full")
            self._load.rest(what)
        if not over_mcp:
            reply = reply_of(answer, code)
        if is_as_it_should_be(reply, fate, number, answer):
            return reply.outcome
        self._count_without_sandbox()
        return reply.outcome

    def _count_without_sandbox(self) -> None:
        now = time.monotonic()
        restarts = self._load.report.restarts
        is_stopped = any(r.began_at < now < r.ended_at for r in restarts)
        self._load.count("stopped" if is_stopped else "no_sandbox")

    def exec(self, number: int) -> str:
        """A file goes up, a script reads it and writes another, which is fetched."""
        what = f"exec {number}"
        body = _form(FILE_BYTES)
        given = ref_of(self._ask("POST", "/v1/upload", FORM_TYPE, body, what))
        script = answered(events=[_stdout(_reported(number))])
        exec_body = {"lang": "bash", "code": script, "files": [given]}
        data = json.dumps(exec_body).encode()
        while is_refused_as_full_by_code_api(
            answer := self._ask("POST", "/v1/exec", JSON_TYPE, data, what)
        ):
            self._load.count("full")
            self._load.rest(what)
        if has_not_run(exec_of(answer).stderr):
            self._load.count("no_sandbox")
            return "unavailable"
        done = check_exec(answer, f"number {number}\n", files=1)
        path = f"/v1/download/{done.session_id}/{done.file_ids[0]}"
        check_file(self._ask("GET", path, {}, b"", what), b"%d" % number)
        return "ok"

    def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes, what: str
    ) -> Answer:
        """Ask until it is answered. A failed connection has to have a known reason."""
        while True:
            asked_at = time.monotonic()
            if self._alive_at is None:
                self._alive_at = asked_at
            try:
                answer = self._client.ask(method, path, body, headers)
            except TooLate as exc:
                raise WrongAnswer(f"{what}: {exc}") from exc
            except NoAnswer as exc:
                alive_at = self._alive_at
                self.close()
                self._explain(exc, asked_at, alive_at, what)
            else:
                self._alive_at = time.monotonic()
                return replace(answer, asked=f"{what}: {answer.asked}")
            self._load.rest(what)

    def _explain(
        self, exc: NoAnswer, asked_at: float, alive_at: float, what: str
    ) -> None:
        """Count a connection that a restart ended; raises WrongAnswer if none did."""
        for restart in reversed(self._load.report.restarts):
            if alive_at <= restart.ended_at:
                if restart.signal_number == signal.SIGKILL:
                    self._load.count(
                        "cut_by_kill" if asked_at < restart.began_at else "refused"
                    )
                    return
                if asked_at > restart.began_at - 0.05:
                    self._load.count("refused")
                    return
                raise WrongAnswer(
                    f"{what}: SIGTERM cut a request that was under way: {exc}"
                )
        raise WrongAnswer(f"{what}: {exc}")


def is_as_it_should_be(reply: Reply, fate: Fate, number: int, answer: Answer) -> bool:
    """Whether a run came to what its fate asks for. False: it was given no sandbox.

    Raises WrongAnswer for anything else.
    """
    expected = fate.outcome
    if reply.over_mcp and expected != "ok":
        expected = "failed"
    text = fate.text.replace("{n}", str(number))
    if fate.outcome == "unavailable":
        is_said = has_not_run(reply.text)
    else:
        is_said = not text or reply.says(text)
    is_drawn = len(reply.pictures) == fate.pictures or "picture left out" in reply.text
    if reply.outcome == expected and is_said and is_drawn:
        for uri in reply.pictures:
            picture_in(uri, answer)
        return True
    if reply.outcome in ("unavailable", "failed") and has_not_run(reply.text):
        return False
    raise answer.wrong(f"{expected} and what {fate.name} brings")


def has_not_run(text: str) -> bool:
    """Whether it says that there was no sandbox, or none that took the code."""
    return any(words in text for words in NOT_RUN)


def _reported(number: int) -> str:
    """What the sandbox of such an exec says, in the code API's form."""
    data = b"%d" % number
    lines: list[dict[str, Any]] = [
        {"stdout": f"number {number}\n"},
        {"ended": "ok"},
        {"written": "b", "size": len(data)},
        {"written_files": 1},
        {"of": "b", "packed": b64encode(zlib.compress(data)).decode()},
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def left_over(folder: Path, cut_by_kill: int) -> list[str]:
    """What is wrong with FILES_DIR: nothing may be in it that no session holds."""
    found = []
    half_written = list(folder.glob(".*"))
    # A process that is killed cannot remove them; another one does so after an hour.
    if len(half_written) > cut_by_kill:
        found.append(f"{len(half_written)} half-written sessions are left in FILES_DIR")
    for session in set(folder.iterdir()) - set(half_written):
        index = json.loads((session / "index.json").read_bytes())
        names = {path.name for path in session.iterdir()}
        if names != {"index.json", *index["sizes"]}:
            found.append(f"session {session.name} holds {names}")
    return found


# --- the soak -------------------------------------------------------------------------


def soak(plan: Plan) -> Report:
    """Do it all; raises BenchError when something stands still."""
    started_at = time.monotonic()
    give_up_at = started_at + 200 + plan.runs * 0.05 + plan.restarts * 30
    with (
        tempfile.TemporaryDirectory() as folder,
        StandIn(script(0.3 * plan.faults, plan.quick)) as e2b,
    ):
        environ = clean_environ(e2b.url) | {
            "FILES_DIR": folder,
            "RUN_TIMEOUT_S": str(RUN_TIMEOUT_S),
            "MAX_CONCURRENT_RUNS": str(plan.callers),
            "WARM_SANDBOXES": str(plan.warm),
            "SESSION_IDLE_S": str(plan.session_idle_s),
        }
        port = free_port()
        service = Service(environ, port)
        witness = Witness(e2b)
        load = Load(port, plan.callers, plan.runs, plan.faults)
        report = load.report
        try:
            witness.start()
            for number, until in enumerate([*plan.restart_after(), plan.runs]):
                first = report.runs
                load.gate.set()
                life = Life()
                report.lives.append(life)
                load.wait_for_runs(min(until, first + plan.warm_up()), give_up_at)
                load.pause(give_up_at)
                life.start = Sample.of(service)
                load.gate.set()
                load.wait_for_runs(until, give_up_at)
                load.pause(give_up_at)
                life.end, life.runs = Sample.of(service), report.runs - first
                if number < plan.restarts:
                    # With runs under way again.
                    load.gate.set()
                    load.wait_for_runs(report.runs + plan.callers // 2, give_up_at)
                    is_kill = number == plan.restarts // 2
                    service = _restart(service, environ, load, e2b, is_kill=is_kill)
            load.end()
            service.stop()
            if not plan.quick:
                report.attacks = _attack()
                report.unexplained += soak_sessions()
                report.unexplained += slow_patterns()
            ended_at = time.monotonic()
            wait_s = 0 if plan.quick else RUN_TIMEOUT_S + LIFETIME_MARGIN_S + 1
            while time.monotonic() < ended_at + wait_s and e2b.state()["alive"]:
                time.sleep(1)
        finally:
            load.end()
            witness.stop()
            with suppress(ValueError):
                service.stop()
        witness.tell(report)
        report.unexplained += left_over(Path(folder), report.cut_by_kill)
    report.took_s = time.monotonic() - started_at
    return report


def _form(size_bytes: int) -> bytes:
    """An upload of a file `a`."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return head + bytes(size_bytes) + b"\r\n--x--\r\n"


def slow_patterns() -> list[str]:
    """Texts on which a pattern of the service is slow, looked for for a minute.

    In a process of its own: the CPU of the others must not count."""
    finished = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("pump_patterns.py")),
            "--seconds=60",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = finished.stdout.splitlines()
    print(f"patterns  {' '.join(lines[:1])}: {len(lines) - 2} uses were looked at")
    slow = [line.strip() for line in lines if "SLOW" in line]
    if finished.returncode and not slow:
        slow = [finished.stderr[-500:]]
    return slow


def soak_sessions() -> list[str]:
    """What is wrong with sessions, in real kernels: a variable or a file of another
    one's, or one that is gone without a word. With more sessions than slots, a SIGTERM,
    and timeouts."""
    found: list[str] = []
    port = free_port()
    with StandIn({}) as e2b, tempfile.TemporaryDirectory() as folder:
        environ = clean_environ(e2b.url) | {
            "FILES_DIR": folder,
            "RUN_TIMEOUT_S": "20",
            "MAX_CONCURRENT_RUNS": "4",
            "SESSION_IDLE_S": "60",
        }
        sessions = [Session(number, number % 2 == 1) for number in range(8)]
        for _ in range(2):
            for session in sessions:
                session.is_known = False
            with Service(environ, port), ThreadPoolExecutor(4) as threads:
                for problems_of_one in threads.map(
                    lambda session: _call_session(port, session), sessions
                ):
                    found += problems_of_one
        # 60 s, 20 s for a run and 15 s are their lifetime.
        give_up_at = time.monotonic() + 100
        while (alive := e2b.state()["alive"]) and time.monotonic() < give_up_at:
            time.sleep(1)
        if alive:
            found.append(f"{alive} sandboxes of sessions leaked")
    return found


@dataclass
class Session:
    """A conversation, and what its sandbox should hold."""

    number: int
    has_files: bool = False  # a stateful code session, whose token is in a file
    calls: int = 0
    kept: str | None = None  # the token that the call before has set
    # A process that was just started cannot tell a call that its sandbox is gone.
    is_known: bool = False


def _call_session(port: int, session: Session) -> list[str]:
    client = RequestsClient(port, REQUEST_TIMEOUT_S)
    call = call_code_session if session.has_files else call_session
    try:
        return call(client, session)
    finally:
        client.close()


def call_session(client: Client, session: Session) -> list[str]:
    """Each call checks the token that the one before it has set, and sets another.

    The result is what was wrong, in words.
    """
    found = []
    headers = {**JSON_TYPE, "X-Session-Id": f"soak/{session.number}"}
    for call in range(SESSION_CALLS):
        token = f"token {session.number}.{session.calls}"
        is_too_long = call == SESSION_CALLS // 2
        code = code_of_session(token, is_too_long)
        limit_s = 2 if is_too_long else 20
        body = json.dumps({"code": code, "timeout": limit_s}).encode()
        try:
            answer = client.ask("POST", "/execute", body, headers)
            reply = reply_of(answer, code)
            if reply.outcome != ("timeout" if is_too_long else "ok"):
                raise answer.wrong(f"what such a call comes to but {reply.outcome}")
            problem = wrong_token(reply, session)
        except WrongAnswer as exc:
            problem = str(exc)
        if problem:
            found.append(f"session {session.number}: {problem}")
        session.kept = None if is_too_long else token
        session.is_known = True
        session.calls += 1
    return found


def call_code_session(client: Client, session: Session) -> list[str]:
    """As `call_session`, with a large input that each call names. A call that is too
    long costs no file."""
    found = []
    form = _form(LARGE_FILE_BYTES)
    given = ref_of(client.ask("POST", "/v1/upload", form, FORM_TYPE))
    for call in range(SESSION_CALLS):
        token = f"token {session.number}.{session.calls}"
        is_too_long = call == SESSION_CALLS // 2
        code = "cp token had 2>/dev/null || echo None >had; wc -c <a; "
        code += f"echo had $(cat had); echo {token} >token"
        body = {
            "lang": "bash",
            "code": f"{code}; sleep 60" if is_too_long else code,
            "runtime_session_hint": f"soak:{session.number}",
            "files": [given],
            "timeout": 2000 if is_too_long else 20_000,
        }
        try:
            answer = client.ask(
                "POST", "/v1/exec", json.dumps(body).encode(), JSON_TYPE
            )
            done = exec_of(answer)
            if not done.stdout.startswith(f"{LARGE_FILE_BYTES}\n"):
                raise answer.wrong(f"an exec with its input: {done}")
            reply = Reply("ok", done.stdout + done.stderr)
            problem = wrong_token(reply, session)
        except WrongAnswer as exc:
            problem = str(exc)
        if problem:
            found.append(f"code session {session.number}: {problem}")
        session.kept = token
        session.is_known = True
        session.calls += 1
    return found


def code_of_session(token: str, is_too_long: bool) -> str:
    ending = "while True: pass" if is_too_long else "1"
    return f"print('had', globals().get('token'))\ntoken = {token!r}\n{ending}"


def wrong_token(reply: Reply, session: Session) -> str:
    """What is wrong with the token that a call has seen; "" if it is the one kept."""
    had = re.search(r"^had (None|token (\d+)\.\d+)$", reply.text, re.MULTILINE)
    if not had:
        return f"no token in {reply.text[:200]!r}"
    if had[1] == "None":
        is_lost = session.kept and session.is_known and "is gone" not in reply.text
        return f"lost {session.kept} without a word" if is_lost else ""
    if had[2] != str(session.number):
        return f"has seen {had[1]} of another one"
    return "" if had[1] == session.kept else f"has seen {had[1]}, not {session.kept}"


def _attack() -> list[Attack]:
    """What came of each attack.

    On a service of its own, with the threads that it has by default.
    """
    entries = {str(number): 0 for number in range(ENTRIES)}
    large = {"type": "result", "json": entries, "extra": {}}
    large_dict = {"run": {"events": [large]}}
    found = []
    with StandIn({}) as e2b, tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / f"e2b-{secrets.token_urlsafe(24)}.png"
        picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5_000_000))
        settings = {
            "IMAGE_DIR": folder,
            "IMAGE_URL": "http://localhost/images",
            "FILES_DIR": folder,
        }
        with Service(clean_environ(e2b.url) | settings) as service:
            port = service.port
            reads_nothing = partial(
                attacks.reads_nothing, path=f"/images/{picture.name}"
            )
            bad_bodies = partial(attacks.sends_large_bodies, count=20, is_good=False)
            for name, limit_s, script, attack in (
                ("300 do not close", 0.5, {}, attacks.does_not_close),
                ("1 gets a large dict", 0.5, large_dict, partial(RUNS, count=1)),
                ("20 get a large dict", 1.5, large_dict, partial(RUNS, count=20)),
                ("100 drip headers", 1, {}, attacks.drips_headers),
                ("100 drip bodies", 1, {}, attacks.drips_bodies),
                ("60 read nothing", 1, {}, reads_nothing),
                ("30 heads in pieces", 0.5, {}, attacks.heads_in_pieces),
                ("16 bodies in crumbs", 0.5, {}, attacks.bodies_of_small_chunks),
                (
                    "4 under a licence",
                    0.5,
                    PLAIN_RUN,
                    partial(attacks.runs_a_licence, count=4),
                ),
                ("20 bad bodies of 32 MB", 0.5, PLAIN_RUN, bad_bodies),
                (
                    "20 bodies of 32 MB",
                    0.5,
                    PLAIN_RUN,
                    partial(attacks.sends_large_bodies, count=20),
                ),
                (
                    "8 print 12 MiB of NUL",
                    0.5,
                    attacks.printed("\0"),
                    partial(attacks.prints_nul, count=8),
                ),
            ):
                e2b.set_script(script)
                found.append(_attacked(service, name, limit_s, attack(port)))
    return found


def _attacked(
    service: Service, name: str, limit_s: float, attack: AbstractContextManager[object]
) -> Attack:
    before_mb = service.memory_mb()
    memory_mb = [before_mb]
    has_ended = threading.Event()

    def watch() -> None:
        while not has_ended.wait(0.02):
            memory_mb.append(service.memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with attack:
        health_s = attacks.health_s(service.port, ATTACK_S)[-1]
    has_ended.set()
    watcher.join()
    attacks.health_s(service.port, 2)  # until the last of it has come to its end
    return Attack(
        name, health_s, limit_s, before_mb, max(memory_mb), service.memory_mb()
    )


def _restart(
    service: Service, environ: dict[str, str], load: Load, e2b: StandIn, is_kill: bool
) -> Service:
    """End the service with SIGKILL or with SIGTERM,
    and start it again at the same port."""
    report = load.report
    restart = Restart(signal.SIGKILL if is_kill else signal.SIGTERM, time.monotonic())
    report.restarts.append(restart)
    if is_kill:
        service.kill()
        time.sleep(
            0.1
        )  # for the stand-in to see that nobody waits for its answers any more
        report.may_expire += e2b.state()["alive"]
    elif not service.stop():
        report.unexplained.append("SIGTERM did not end the service")
    service = Service(environ, service.port)
    restart.ended_at = time.monotonic()
    return service


def text_of(report: Report) -> str:
    signals = Counter(
        signal.Signals(restart.signal_number).name for restart in report.restarts
    )
    lines = [
        (
            "runs",
            f"{report.runs:,} ({report.execs:,} with files) and "
            f"{report.bad_requests:,} bad requests, "
            f"{report.took_s:.0f} s",
        ),
        ("outcomes", _counts(report.outcomes)),
        ("fates", _counts(report.fates)),
        ("faults", f"{report.faults.total():,} ({_counts(report.faults)})"),
        ("refused", f"full {report.full:,}, no sandbox {report.no_sandbox:,}"),
        (
            "restarts",
            f"{len(report.restarts)} ({_counts(signals)}); meanwhile "
            f"{report.refused:,} connections"
            f" refused, {report.stopped:,} runs told so, {report.cut_by_kill:,} cut by "
            "SIGKILL",
        ),
        *(("attack", str(attack)) for attack in report.attacks),
        (
            "sandboxes",
            f"{report.created:,} created, {report.killed:,} killed, {report.expired:,} "
            "ended by"
            f" their lifetime (at most {report.longest_lifetime_s} s), "
            f"{report.alive:,} alive",
        ),
        ("never killed", f"{report.never_killed():,} for no reason that is known"),
        ("unexplained", f"{len(report.unexplained):,}"),
    ]
    for number, life in enumerate(report.lives, 1):
        if life.start and life.end:
            pairs = [
                f"{name} {form.format(before)} to {form.format(after)}"
                for (name, before), after, form in zip(
                    vars(life.start).items(),
                    vars(life.end).values(),
                    ("{:.1f}", "{}", "{}"),
                    strict=True,
                )
            ]
            lines.append(
                (f"process {number}", f"{life.runs:,} runs; {', '.join(pairs)}")
            )
    return "\n".join(f"{name:<14}{text}" for name, text in lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(
        f"{name} {count:,}" for name, count in counter.most_common() if count
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Mixed load with faults and restarts.")
    parser.add_argument("--runs", type=int, default=5000, help="default: %(default)s")
    parser.add_argument(
        "--faults", type=float, default=0.1, help="a run; default: %(default)s"
    )
    parser.add_argument("--restarts", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--warm", type=int, default=0, help="WARM_SANDBOXES, default: %(default)s"
    )
    parser.add_argument(
        "--session-idle-s",
        type=int,
        default=0,
        help="SESSION_IDLE_S, default: %(default)s, which is off",
    )
    parser.add_argument(
        "--callers", type=int, default=100, help="at once, default: %(default)s"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="no creates and kills that hang, no wait for lifetimes, no attacks",
    )
    options = parser.parse_args(arguments)
    plan = Plan(**vars(options))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no child is left
    try:
        report = soak(plan)
    except (BenchError, WrongAnswer) as exc:
        print(f"soak: {exc}", file=sys.stderr)
        return 1
    print(text_of(report))
    found = problems(report, plan)
    for problem in found[:SHOWN_PROBLEMS]:
        print(f"  - {problem}")
    if surplus := len(found[SHOWN_PROBLEMS:]):
        print(f"  - and {surplus} more")
    print("Failed." if found else "Passed: nothing leaked, everything explained.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
