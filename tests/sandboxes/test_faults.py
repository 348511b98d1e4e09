"""What the service survives: E2B that misbehaves,
hostile results, load. Each row is a promise.

Real sockets, the real SDK, the service as shipped.
Rows about signals are in test_process.py.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from builders import encoded, error, padded_png, picture, png_of_pixels, result, stdout
from local_e2b import LocalE2B

from conftest import E2B_KEY, OK_RUN, Service, e2b_at, of_kind, text_of, urls_of

UPSTREAM = "words of upstream: the token tok_5e1f of team blue"
MB = 1_000_000
PNG = picture()
MAX_GROWTH_BYTES = 64 * 1024 * 1024


def answered_as(answer: dict[str, Any], code: str = "print()") -> str:
    """Code whose run the stand-in answers like that, when its script is `from_code`."""
    return f"{code}\n# answer: {json.dumps(answer)}"


Row = tuple[requests.Response, float]  # and the seconds it took


def best_of_three(service: Service, code: str, timeout: int) -> Row:
    """The first that is over in time: something
    else may have kept this machine busy."""
    for _ in range(3):
        response, took_s = timed_execute(service, code, timeout=timeout)
        if took_s < timeout + 1:
            break
    return response, took_s


def timed_execute(service: Service, code: str, **fields: Any) -> Row:
    started = time.monotonic()
    response = service.execute(code, **fields)
    return response, time.monotonic() - started


def execute_by_its_clock(service: Service, code: str, **fields: Any) -> Row:
    """With the seconds it took by the service's own clock, while
    other rows are under way: the stand-in's work in this process,
    200 MB of output say, holds up the reading of the reply."""
    response = service.execute(code, **fields)
    line = service.wait_for_log(response.headers["X-Request-Id"])
    return response, json.loads(line)["took_ms"] / 1000


# --- the services, shared: each test leaves no sandbox of its own alive ---------------


@pytest.fixture(scope="module")
def e2b() -> Iterator[LocalE2B]:
    with LocalE2B(script={"run": OK_RUN}) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def slow_e2b() -> Iterator[LocalE2B]:
    with LocalE2B(script={"run": {"from_code": True}}) as stand_in:
        yield stand_in


@contextmanager
def started(environ: dict[str, str]) -> Iterator[Service]:
    service = Service(environ)
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def fast(e2b: LocalE2B) -> Iterator[Service]:
    with started(e2b_at(e2b.url)) as running:
        yield running


@pytest.fixture
def service(e2b: LocalE2B, fast: Service) -> Iterator[Service]:
    """The service; its E2B does what `e2b.set_script`
    says, and has no sandbox before and after."""
    at = len(fast.lines)
    yield fast
    e2b.wait_for(lambda state: state["alive"] == 0, 15)
    e2b.set_script({"run": OK_RUN})
    assert E2B_KEY not in "".join(fast.lines[at:])


LOOP_LIMIT_S = 8  # a kernel is started in that time


@pytest.fixture(scope="module")
def slow_rows(slow_e2b: LocalE2B) -> Iterator[dict[str, Future[Row]]]:
    """Rows that take seconds, all of them under
    way at once, with a service of their own."""
    printing = "print('printed before', flush=True)"
    endless = {"events": [stdout("printed before\n")], "keepalive_s": 0.3}
    codes = {
        "loop": (
            f"{printing}\nimport time\nwhile True: time.sleep(0.1)",
            {"kernel": True},
        ),
        "keepalives forever": ("1", {**endless, "fault": "forever"}),
        "silent": ("1", {**endless, "fault": "silent"}),
        "drip": ("1", {**endless, "fault": "drip"}),
        "hang": ("1", {"fault": "hang"}),
    }
    rows: dict[str, Future[Row]] = {}
    # A name longer than can be is refused by the resolver without asking anyone. That
    # nobody listens at an address is in test_sandbox.py.
    nowhere = {"DNS failure": f"http://{'a' * 64}.test"}
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(20))
        urls = [slow_e2b.url, *nowhere.values()]
        services = [stack.enter_context(started(e2b_at(url))) for url in urls]
        service = services[0]
        for name, other in zip(nowhere, services[1:], strict=True):
            rows[name] = threads.submit(execute_by_its_clock, other, "1", timeout=1)

        def start(
            name: str,
            code: str,
            limit_s: int,
            execute: Callable[..., Row] = execute_by_its_clock,
        ) -> None:
            rows[name] = threads.submit(execute, service, code, timeout=limit_s)

        run = {"from_code": True}
        lost_twice = [{"fault": "hang"}, {"fault": "lost_reply"}, {"fault": "reset"}]
        slow_e2b.set_script({"run": run, "create": lost_twice})
        start("create hangs", "1", 1)
        slow_e2b.wait_for(lambda state: state["requests"], 30)
        start("orphan", "1", 1)
        rows["orphan"].result()
        slow_e2b.set_script({"run": run})
        for name, (code, answer) in codes.items():
            limit_s = LOOP_LIMIT_S if name == "loop" else 1
            start(name, answered_as(answer, code), limit_s, best_of_three)
        yield rows
        for each in services:
            each.process.terminate()  # all at once; leaving the stack waits for each


@pytest.fixture(scope="module", autouse=True)
def slow_rows_go_first(request: pytest.FixtureRequest) -> None:
    """They are under way while the other rows are tested."""
    if any(
        "slow_rows" in getattr(item, "fixturenames", ())
        for item in request.session.items
    ):
        request.getfixturevalue("slow_rows")


def assert_reply(
    row: requests.Response, outcome: str, *words: str, e2b: LocalE2B | None = None
) -> str:
    """It is a 200 of this outcome that says these words and nothing of E2B's own."""
    text = text_of(row)
    assert row.headers["X-Run-Outcome"] == outcome
    for word in words:
        assert word in text
    private = [E2B_KEY, UPSTREAM, "tok_5e1f"]
    if e2b:
        private += [sandbox["id"] for sandbox in e2b.state()["sandboxes"]]
    for secret in private:
        assert secret not in row.text
        assert secret not in str(row.headers)
    return text


class Since:
    """What came to E2B since then."""

    def __init__(self, e2b: LocalE2B) -> None:
        self._e2b = e2b
        self._at_s = time.monotonic()
        self._before = e2b.state()

    def requests(self, kind: str) -> list[dict[str, Any]]:
        return [r for r in of_kind(self._e2b, kind) if r["at_s"] >= self._at_s]

    def count(self, name: str) -> int:
        return int(self._e2b.state()[name] - self._before[name])


@pytest.fixture
def since(e2b: LocalE2B) -> Since:
    return Since(e2b)


# --- E2B misbehaves -----------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_create_answers_401_or_403_the_reply_says_that_e2b_refused_the_services_key(
    service: Service, e2b: LocalE2B, since: Since, status: int
) -> None:
    body = {"code": status, "message": f"{UPSTREAM}, your key {E2B_KEY} is not valid"}
    e2b.set_script({"create": {"status": status, "body": body}, "run": OK_RUN})
    at = len(service.lines)
    assert_reply(
        service.execute(), "unavailable", "E2B refused this service's key", e2b=e2b
    )
    service.wait_for_log("E2B_API_KEY", after=at)  # which variable to check
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
    service: Service,
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
    response, took_s = timed_execute(service, "1", timeout=1)
    assert_reply(response, "unavailable", "E2B is at its limit", e2b=e2b)
    assert at_least_s <= took_s < 11
    assert 1 <= len(since.requests("create")) <= most_tries
    assert since.count("created") == 0


def test_create_answers_429_once_and_the_run_succeeds(
    service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script(
        {
            "create": [{"status": 429, "headers": {"Retry-After": "0"}}, {}],
            "run": OK_RUN,
        }
    )
    assert_reply(service.execute(), "ok", "ok\n", e2b=e2b)


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
    service: Service, e2b: LocalE2B, answer: dict[str, Any]
) -> None:
    e2b.set_script({"create": answer, "run": OK_RUN})
    assert_reply(service.execute(), "unavailable", "E2B failed", e2b=e2b)


def test_create_reaches_nobody_says_so_within_the_run_limit_plus_10_s(
    slow_rows: dict[str, Future[Row]],
) -> None:
    response, took_s = slow_rows["DNS failure"].result()
    assert_reply(response, "unavailable", "E2B could not be reached")
    assert took_s < 11


def test_create_succeeds_but_its_reply_is_lost_the_retry_has_the_same_idempotency_key(
    service: Service, e2b: LocalE2B, since: Since
) -> None:
    e2b.set_script({"create": [{"fault": "lost_reply"}, {}], "run": OK_RUN})
    assert_reply(service.execute(), "ok", "ok\n", e2b=e2b)
    e2b.wait_for(lambda state: state["alive"] == 0, 30)
    keys = [
        request["headers"]["idempotency-key"] for request in since.requests("create")
    ]
    assert len(keys) == 2
    assert re.fullmatch("[a-z0-9-]{1,255}", keys[0])
    assert len(set(keys)) == 1
    assert since.count("created") == since.count("killed") == 1


@pytest.mark.parametrize("name", ["loop", "keepalives forever", "drip"])
def test_run_never_ends_it_ends_at_the_limit_and_what_was_printed_is_returned(
    slow_rows: dict[str, Future[Row]], slow_e2b: LocalE2B, name: str
) -> None:
    response, took_s = slow_rows[name].result()
    limit_s = LOOP_LIMIT_S if name == "loop" else 1
    text = assert_reply(
        response, "timeout", "printed before", f"{limit_s} s", e2b=slow_e2b
    )
    assert text.startswith(
        "**Console Output:**\n```\nprinted before\n```\n\n**Execution Error:**"
    )
    assert limit_s <= took_s < limit_s + 1


@pytest.mark.parametrize("name", ["hang", "silent"])
def test_run_hangs_or_falls_silent_it_is_answered_at_the_limit(
    slow_rows: dict[str, Future[Row]], slow_e2b: LocalE2B, name: str
) -> None:
    response, took_s = slow_rows[name].result()
    words = ["printed before"] if name == "silent" else []
    assert_reply(response, "timeout", "stopped after 1 s", *words, e2b=slow_e2b)
    assert 1 <= took_s < 2


def test_run_hangs_or_falls_silent_and_the_kill_does_not_end_it_either(
    service: Service, e2b: LocalE2B, since: Since
) -> None:
    kills = [{"fault": "hang_alive"}] * 2 + [{"fault": "ignored"}] * 2 + [{}]
    e2b.set_script({"run": {"from_code": True}, "kill": kills})
    faults = ["hang", "silent", "forever", "drip"]
    with ThreadPoolExecutor(4) as threads:
        rows = [
            threads.submit(
                best_of_three, service, answered_as({"fault": fault}), timeout=1
            )
            for fault in faults
        ]
        for row in rows:
            response, took_s = row.result()
            assert_reply(response, "timeout", "stopped after 1 s", e2b=e2b)
            assert 1 <= took_s < 2
    e2b.wait_for(lambda state: state["alive"] == 0, 15)
    assert since.count("killed") == since.count(
        "created"
    )  # the kill is tried again, off the caller's path
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
    service: Service, e2b: LocalE2B, since: Since, fault: str, words: str
) -> None:
    e2b.set_script({"run": {"events": [stdout("printed before\n")], "fault": fault}})
    assert_reply(
        service.execute(),
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
    service: Service, e2b: LocalE2B, raw: str
) -> None:
    e2b.set_script({"run": {"events": [raw], "raw": True}})
    assert_reply(service.execute(), "error", "**Execution Error:**", e2b=e2b)


@pytest.mark.parametrize(
    "fault", ["gone", "not_found"], ids=["answered 502", "answered 404"]
)
def test_sandbox_gone_before_the_run_began_one_retry_on_a_fresh_one(
    service: Service, e2b: LocalE2B, since: Since, fault: str
) -> None:
    e2b.set_script({"run": [{"fault": fault}, OK_RUN]})
    assert_reply(service.execute("first"), "ok", "ok\n", e2b=e2b)
    runs = since.requests("run")
    assert [request["body"]["code"] for request in runs] == ["first", "first"]
    assert len({request["sandbox_id"] for request in runs}) == 2
    assert since.count("created") == 2


@pytest.mark.parametrize(
    "fault", ["gone", "not_found"], ids=["answered 502", "answered 404"]
)
def test_sandbox_gone_before_the_run_began_twice_is_said_and_not_tried_a_third_time(
    service: Service, e2b: LocalE2B, since: Since, fault: str
) -> None:
    e2b.set_script({"run": {"fault": fault}})
    assert_reply(service.execute(), "unavailable", "the code did not run", e2b=e2b)
    assert len(since.requests("run")) == 2


def test_sandbox_vanishes_once_the_run_has_begun_error_no_second_run(
    service: Service, e2b: LocalE2B, since: Since
) -> None:
    e2b.set_script({"run": {"events": [stdout("printed before\n")], "fault": "vanish"}})
    assert_reply(service.execute(), "error", "printed before", "broke off", e2b=e2b)
    assert len(since.requests("run")) == 1
    assert since.count("created") == 1


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_run_is_refused_it_is_said_and_nothing_is_tried_again(
    service: Service, e2b: LocalE2B, since: Since, status: int
) -> None:
    e2b.set_script(
        {"run": {"status": status, "body": {"message": f"{UPSTREAM} {E2B_KEY}"}}}
    )
    assert_reply(service.execute(), "unavailable", "did not run", e2b=e2b)
    assert len(since.requests("run")) == 1


def test_run_is_reset_before_its_answer_it_is_not_sent_twice(
    service: Service, e2b: LocalE2B, since: Since
) -> None:
    e2b.set_script({"run": {"fault": "reset"}})
    assert_reply(service.execute(), "unavailable", "may or may not have run", e2b=e2b)
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
    service: Service, e2b: LocalE2B, since: Since, fault: dict[str, Any], tries: int
) -> None:
    def failed() -> float:
        metrics = requests.get(f"{service.url}/metrics", timeout=30).text
        found = re.search(r"^e2b_proxy_kills_failed_total (\S+)", metrics, re.MULTILINE)
        assert found
        return float(found[1])

    e2b.set_script({"run": OK_RUN, "kill": [fault, {}]})
    before, at = failed(), len(service.lines)
    response, took_s = timed_execute(service, "1")
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
    assert sum('"warning"' in line for line in service.lines[at:]) == expected


# --- Hostile results -----------------------------------------------------


# A value as E2B sends it: its text, which is cut, and as JSON, which is not.
BIG_DICT = [
    '{"type": "result", "text": "{0: 0, …}", "json": {"',
    '":0,"'.join(map(str, range(1_500_000))),  # 16 MB
    '":0}, "extra": {}, "is_main_result": true}\n',
]
# Asks /health until its stdin ends; prints how long the slowest answer took.
ASK_HEALTH = """
import sys, threading, time, urllib.request
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
slowest_s = 0
while not ended.wait(0.01):
    started = time.monotonic()
    urllib.request.urlopen(sys.argv[1], timeout=60).read()
    if not slowest_s:
        print("asking", flush=True)
    slowest_s = max(slowest_s, time.monotonic() - started)
print(slowest_s)
"""


def slowest_health_s(service: Service, load: Callable[[], object]) -> float:
    """How long /health took at worst while `load` ran, asked from another process."""
    with subprocess.Popen(
        [sys.executable, "-c", ASK_HEALTH, f"{service.url}/health"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as asking:
        assert asking.stdout
        assert asking.stdout.readline() == "asking\n"
        load()
        slowest_s, _ = asking.communicate()
    return float(slowest_s)


@pytest.fixture(scope="module")
def untouched(e2b: LocalE2B) -> Iterator[Service]:
    """A service whose slots are not held by creates that failed before."""
    with started(e2b_at(e2b.url)) as service:
        yield service


@pytest.mark.parametrize(("callers", "limit_s"), [(1, 0.5), (20, 1.5)])
def test_a_value_of_1_5_million_entries_does_not_keep_others_waiting(
    untouched: Service, e2b: LocalE2B, callers: int, limit_s: float
) -> None:
    e2b.set_script({"run": {"events": BIG_DICT}})

    def load() -> None:
        with ThreadPoolExecutor(callers) as threads:
            for future in [threads.submit(untouched.execute) for _ in range(callers)]:
                assert "over every limit" in text_of(future.result())

    # Something else may keep this machine busy.
    assert any(slowest_health_s(untouched, load) < limit_s for _ in range(3))


class Memory:
    """How much the worker's memory grew at its highest, bytes."""

    def __init__(self, service: Service) -> None:
        (worker,) = psutil.Process(service.process.pid).children()
        self._pid = worker.pid
        Path(f"/proc/{worker.pid}/clear_refs").write_text(
            "5"
        )  # forgets the highest until now
        self._before = worker.memory_info().rss

    def growth_bytes(self) -> int:
        status = Path(f"/proc/{self._pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024 - self._before


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(
            {
                "events": [stdout("the head\n")],
                "stdout_bytes": 50 * MB,
                "one_line_bytes": 120,
            },
            [
                "\nthe head\nxxx",
                "[… 49,9",
                "characters cut …]",
                "characters of Console Output are not shown",
            ],
            id="50 MB of stdout in many lines",
        ),
        pytest.param(
            {"stdout_bytes": 200 * MB, "line_bytes": 1000},
            ["[… 199,9", "characters cut …]"],
            id="200 MB of stdout in many lines",
        ),
        pytest.param(
            {"one_line_bytes": 200 * MB, "events": [stdout("the head\n")]},
            ["\nthe head\nxxx", "[… 199,9", "characters cut …]"],
            id="one line of the stream: 200 MB of stdout",
        ),
        pytest.param(
            {"big_png_line_bytes": 100 * MB, "events": [stdout("kept\n")]},
            ["kept", "100.0 MB of png", "over every limit"],
            id="one line of the stream: a picture of 100 MB",
        ),
        pytest.param(
            {
                "events": [
                    '{"type": "result", "html": "',
                    "h" * 30 * MB,
                    '"}\n',
                    stdout("kept\n"),
                ]
            },
            ["kept", "30.0 MB of html", "over every limit"],
            id="one line of the stream: html of 30 MB",
        ),
        pytest.param(
            {"events": [*BIG_DICT, stdout("kept\n")]},
            ["kept", "{0: 0, …}", " MB of text, which is over every limit"],
            id="one line of the stream: a dict of 1.5 million entries",
        ),
        pytest.param(
            {"pngs": 12, "png_bytes": 3 * MB},
            ["Note: 9 pictures left out: a reply holds at most 11,534,336 bytes"],
            id="12 pictures of 3 MB",
        ),
    ],
)
def test_more_than_every_limit_is_cut_while_streaming_memory_is_flat_the_cut_is_noted(
    service: Service, e2b: LocalE2B, answer: dict[str, Any], words: list[str]
) -> None:
    e2b.set_script({"run": answer})
    memory = Memory(service)
    response = service.execute()
    growth_bytes = memory.growth_bytes()
    text = assert_reply(response, "ok", *words, e2b=e2b)
    assert growth_bytes < MAX_GROWTH_BYTES
    assert len(text) < 40_000
    if "png_bytes" in answer:
        assert len(urls_of(response)) == 3
    if "stdout_bytes" in answer and "one_line_bytes" in answer:
        assert re.search(r"\nx{10,78}\n```", text)  # the tail is the end of the output


def test_the_answer_to_a_refused_run_is_cut_while_streaming(
    service: Service, e2b: LocalE2B
) -> None:
    service.execute()
    e2b.set_script({"run": {"status": 500, "body": "z" * 80 * MB}})
    memory = Memory(service)
    assert_reply(service.execute(), "unavailable", "did not run", e2b=e2b)
    assert memory.growth_bytes() < MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    ("printed", "absent"),
    [
        pytest.param(
            "```\n# out\n````\n![x](https://evil.test/?q=1)", "", id="``` fences"
        ),
        pytest.param("![x](https://evil.test/?q=1)", "", id="![x](https://evil/?q=)"),
        pytest.param("<script>alert(1)</script><img src=x onerror=y>", "", id="HTML"),
        pytest.param(
            "\x1b[31mred\x1b[0m \x1b]8;;https://evil.test\x07l",
            "\x1b",
            id="ANSI colours",
        ),
        pytest.param("10%\r50%\r100%\r", "10%", id="carriage-return progress bars"),
        pytest.param("user\u202egnp.exe\u2066x", "\u202e", id="bidi controls"),
        pytest.param("a\0b\x07c\x85d\u2028e", "\x07", id="control characters"),
    ],
)
def test_hostile_output_stays_inside_its_fence_and_nothing_renders(
    service: Service, e2b: LocalE2B, printed: str, absent: str
) -> None:
    error = {"type": "error", "name": printed, "value": printed, "traceback": printed}
    e2b.set_script({"run": {"events": [stdout(printed), result(text=printed), error]}})
    text = assert_reply(service.execute(printed.replace("\0", "")), "error", e2b=e2b)
    assert not absent or absent not in text.split("**Executed Code:**")[0]
    assert not re.search(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text
    )
    outside, fence = [], ""
    for line in text.split("\n"):
        ticks = re.match("`{3,}", line)
        if fence:
            if re.fullmatch("`+", line.strip(" ")) and len(line.strip(" ")) >= len(
                fence
            ):
                fence = ""
        elif ticks:
            fence = ticks[0]
        else:
            outside.append(line)
    assert not fence
    headings = {"Console Output", "Result", "Execution Error", "Executed Code"}
    assert set(outside) == {"", *(f"**{heading}:**" for heading in headings)}


def test_over_mcp_hostile_output_is_plain_text_that_loads_no_picture(
    service: Service, e2b: LocalE2B
) -> None:
    printed = (
        "![x](https://evil.test/?q=1) \x1b[31m\u202e!\0[y][1]\n[1]: https://evil.test"
    )
    event = error(printed, printed, printed)
    e2b.set_script({"run": {"events": [stdout(printed), result(printed), event]}})
    (part,) = call_tool(service)
    assert "x](https://evil.test/?q=1)" in part["text"]
    assert "![" not in part["text"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", part["text"])


@pytest.mark.parametrize(
    ("formats", "reason"),
    [
        pytest.param(
            {"png": "not base64!"}, "not valid base64", id="a png that is not base64"
        ),
        pytest.param(
            {"png": "éé"}, "not valid base64", id="a png that is not even ASCII"
        ),
        pytest.param(
            {"png": encoded(b"<html>")}, "neither PNG", id="a png that is not a PNG"
        ),
        pytest.param(
            {"png": encoded(padded_png(30 * MB))}, "of png", id="a png of 30 MB"
        ),
        pytest.param(
            {"png": encoded(padded_png(6 * MB))},
            "the limit is 5,242,880",
            id="a png of 6 MB",
        ),
        pytest.param(
            {"png": encoded(png_of_pixels(100_000, 100_000))},
            "pixels",
            id="100000 x 100000 pixels",
        ),
        pytest.param(
            {"png": encoded(png_of_pixels(0, 5))}, "pixels", id="a png of no pixels"
        ),
    ],
)
def test_a_picture_that_is_none_is_left_out_with_the_reason_in_the_text(
    service: Service, e2b: LocalE2B, formats: dict[str, str], reason: str
) -> None:
    e2b.set_script(
        {"run": {"events": [stdout("kept\n"), result(text="<Figure>", **formats)]}}
    )
    response = service.execute()
    assert_reply(response, "ok", "kept", "left out", reason, e2b=e2b)
    assert urls_of(response) == []


def call_tool(service: Service) -> list[dict[str, Any]]:
    """Run over MCP, where SVGs are drawn; returns the parts of the answer."""
    call = {"name": "execute_python_code", "arguments": {"code": "1"}}
    listed = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"Accept": "application/json, text/event-stream"}
    tools = requests.post(
        f"{service.url}/mcp", json=listed, headers=headers, timeout=30
    ).json()
    call["name"] = tools["result"]["tools"][0]["name"]
    message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}
    answer = requests.post(
        f"{service.url}/mcp", json=message, headers=headers, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return list(answer.json()["result"]["content"])


SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10">{}</svg>'


@pytest.mark.parametrize(
    ("formats", "named"),
    [
        pytest.param(
            {"svg": SVG.format("<script>alert(1)</script>")}, "", id="SVG with script"
        ),
        pytest.param(
            {"html": "<script>alert(1)</script>", "text": "<a.B object>"},
            "1 figure left out",
            id="HTML",
        ),
        pytest.param(
            {"javascript": "alert(1)", "text": "<a.B object>"},
            "1 figure left out",
            id="JavaScript",
        ),
    ],
)
def test_svg_with_script_html_and_javascript_are_never_active_content(
    service: Service, e2b: LocalE2B, formats: dict[str, str], named: str
) -> None:
    e2b.set_script({"run": {"events": [result(**formats)]}})
    for part in call_tool(service):
        assert part["type"] == "text" or part["mimeType"] == "image/png"
        assert "alert(1)" not in part.get("text", "")
    response = service.execute()
    text = assert_reply(response, "ok", e2b=e2b)
    assert "alert(1)" not in text
    assert named in text
    # In an <img>, as which data URIs are shown, an SVG runs no script.
    assert all(url.startswith("data:image/") for url in urls_of(response))


def leave_descriptors(pid: int, count: int) -> None:
    """Let a process open so many files more, and no others."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in itertools.count() if number not in used)
    last = next(itertools.islice(free, count, None))
    _, hard_limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (last, hard_limit))


def test_an_svg_for_which_there_are_no_descriptors_costs_that_picture_only(
    service: Service, e2b: LocalE2B
) -> None:
    """A child process takes eight, a request of the client's and of E2B's one each."""
    svg = SVG.format('<rect width="20" height="10"/>')
    e2b.set_script({"run": {"events": [stdout("kept\n"), result(svg=svg)]}})
    assert len(call_tool(service)) == 2
    (worker,) = psutil.Process(service.process.pid).children()
    limits = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    leave_descriptors(worker.pid, 5)
    try:
        (text,) = call_tool(service)
    finally:
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limits)
    assert "kept" in text["text"]
    assert "an SVG that could not be drawn at the moment" in text["text"]
    assert len(call_tool(service)) == 2


@pytest.mark.parametrize(
    "svg",
    [
        pytest.param(
            SVG.replace('"20" height="10"', '"90000" height="90000"').format(""),
            id="SVG that is huge",
        ),
        pytest.param(
            SVG.format(
                "<defs>"
                + '<g id="a0"><rect width="1" height="1"/></g>'
                + "".join(
                    f'<g id="a{n}">' + f'<use href="#a{n - 1}"/>' * 10 + "</g>"
                    for n in range(1, 9)
                )
                + '</defs><use href="#a8"/>'
            ),
            id="SVG that is slow to draw",
        ),
        pytest.param(
            SVG.format('<image href="file:///etc/passwd"/>'),
            id="SVG that refers to files",
        ),
        pytest.param(
            SVG.format('<image href="{address}"/>'), id="SVG that refers to addresses"
        ),
        pytest.param(SVG.format("<g>") + "<svg", id="SVG that is broken"),
    ],
)
def test_a_bad_svg_costs_that_picture_only_nothing_is_read_and_the_service_stays_up(
    service: Service, e2b: LocalE2B, svg: str
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(0)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        svg = svg.replace("{address}", address)
        good = result(png=encoded(PNG))
        e2b.set_script({"run": {"events": [stdout("kept\n"), result(svg=svg), good]}})
        text, *pictures = call_tool(service)
        assert "kept" in text["text"]
        assert "1 picture left out: an SVG" in text["text"]
        assert [base64.b64decode(picture["data"]) for picture in pictures] == [PNG]
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert requests.get(f"{service.url}/health", timeout=30).ok


def test_the_same_bytes_twice_are_one_picture_and_a_figure_as_last_value_is_no_noise(
    service: Service, e2b: LocalE2B
) -> None:
    png = encoded(PNG)
    figure = "<Figure size 640x480 with 1 Axes>"
    twice = [
        result(png=png, text=figure),
        result(png=png, text=figure, is_main_result=True),
    ]
    e2b.set_script({"run": {"events": twice}})
    response = service.execute("1")
    assert len(urls_of(response)) == 1
    assert "Figure size" not in text_of(response)
    assert "left out" not in text_of(response)


def test_a_traceback_of_2_mb_coloured_is_stripped_and_cut_its_last_lines_kept(
    service: Service, e2b: LocalE2B
) -> None:
    traceback = (
        "\x1b[31mframe of the traceback\x1b[0m\n" * 60_000
        + "RecursionError: \x1b[1mdeep"
    )
    error = {
        "type": "error",
        "name": "RecursionError",
        "value": "deep",
        "traceback": traceback,
    }
    e2b.set_script({"run": {"events": [error]}})
    text = assert_reply(service.execute(), "error", "characters cut", e2b=e2b)
    assert "\nframe of the traceback\nRecursionError: deep\n```" in text
    assert "\x1b" not in text
    assert len(text) < 40_000


# --- Load -----------------------------------------------------


def test_one_more_run_than_the_cap_is_refused_in_under_100_ms_with_retry_after(
    service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script({"run": {"run_s": 10, **OK_RUN}})
    with requests.Session() as session, ThreadPoolExecutor(20) as threads:
        session.get(f"{service.url}/health", timeout=30)
        running = [threads.submit(service.execute) for _ in range(20)]
        e2b.wait_for(
            lambda state: sum(s["alive"] for s in state["sandboxes"]) == 20, 30
        )
        e2b.wait_for(
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


# --- last, for they last longest -----------------------------------------------------


def test_create_accepts_and_hangs_says_so_within_the_limit_plus_10_s_its_thread_is_free(
    slow_rows: dict[str, Future[Row]],
) -> None:
    response, took_s = slow_rows["create hangs"].result()
    assert_reply(response, "unavailable", "E2B did not answer in time")
    assert took_s < 11
    for row in slow_rows.values():
        row.result()  # there is nothing else under way
    url = response.url.removesuffix("execute")
    assert requests.get(f"{url}health", timeout=30).json()["runs_in_flight"] == 0


def test_create_succeeds_but_every_reply_is_lost_the_orphan_is_found_and_killed(
    slow_rows: dict[str, Future[Row]], slow_e2b: LocalE2B
) -> None:
    response, took_s = slow_rows["orphan"].result()
    assert_reply(response, "unavailable", "E2B could not be reached", e2b=slow_e2b)
    assert took_s < 11
    state = slow_e2b.wait_for(lambda state: state["alive"] == 0, 20)
    assert {sandbox["timeout_s"] for sandbox in state["sandboxes"]} <= {
        16,
        LOOP_LIMIT_S + 15,
    }  # limit plus 15 s
    assert state["expired"] == 0
    assert state["killed"] == state["created"]
