"""Whatever a run produces, however much and however odd: its reply is bounded, honest
and harmless. Each row is a promise.

Real sockets, the real SDK, the service as shipped.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from builders import encoded, error, padded_png, picture, png_of_pixels, result, stdout
from faults import assert_reply
from local_e2b import LocalE2B

from conftest import Service, text_of, urls_of

MB = 1_000_000
PNG = picture()
MAX_GROWTH_BYTES = 64 * 1024 * 1024


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


@pytest.mark.parametrize(("callers", "limit_s"), [(1, 0.5), (20, 1.5)])
def test_a_value_of_1_5_million_entries_does_not_keep_others_waiting(
    checked_service: Service, e2b: LocalE2B, callers: int, limit_s: float
) -> None:
    e2b.set_script({"run": {"events": BIG_DICT}})

    def load() -> None:
        with ThreadPoolExecutor(callers) as threads:
            for future in [
                threads.submit(checked_service.execute) for _ in range(callers)
            ]:
                assert "over every limit" in text_of(future.result())

    # Something else may keep this machine busy.
    assert any(slowest_health_s(checked_service, load) < limit_s for _ in range(3))


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
            ["kept", "75.0 MB of png", "over every limit"],
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
    checked_service: Service, e2b: LocalE2B, answer: dict[str, Any], words: list[str]
) -> None:
    e2b.set_script({"run": answer})
    memory = Memory(checked_service)
    response = checked_service.execute()
    growth_bytes = memory.growth_bytes()
    text = assert_reply(response, "ok", *words, e2b=e2b)
    assert growth_bytes < MAX_GROWTH_BYTES
    assert len(text) < 40_000
    if "png_bytes" in answer:
        assert len(urls_of(response)) == 3
    if "stdout_bytes" in answer and "one_line_bytes" in answer:
        assert re.search(r"\nx{10,78}\n```", text)  # the tail is the end of the output


def test_the_answer_to_a_refused_run_is_cut_while_streaming(
    checked_service: Service, e2b: LocalE2B
) -> None:
    checked_service.execute()
    e2b.set_script({"run": {"status": 500, "body": "z" * 80 * MB}})
    memory = Memory(checked_service)
    assert_reply(checked_service.execute(), "unavailable", "did not run", e2b=e2b)
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
    checked_service: Service, e2b: LocalE2B, printed: str, absent: str
) -> None:
    error = {"type": "error", "name": printed, "value": printed, "traceback": printed}
    e2b.set_script({"run": {"events": [stdout(printed), result(text=printed), error]}})
    text = assert_reply(
        checked_service.execute(printed.replace("\0", "")), "error", e2b=e2b
    )
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
    checked_service: Service, e2b: LocalE2B
) -> None:
    printed = (
        "![x](https://evil.test/?q=1) \x1b[31m\u202e!\0[y][1]\n[1]: https://evil.test"
    )
    event = error(printed, printed, printed)
    e2b.set_script({"run": {"events": [stdout(printed), result(printed), event]}})
    (part,) = call_tool(checked_service)
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
    checked_service: Service, e2b: LocalE2B, formats: dict[str, str], reason: str
) -> None:
    e2b.set_script(
        {"run": {"events": [stdout("kept\n"), result(text="<Figure>", **formats)]}}
    )
    response = checked_service.execute()
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
    checked_service: Service, e2b: LocalE2B, formats: dict[str, str], named: str
) -> None:
    e2b.set_script({"run": {"events": [result(**formats)]}})
    for part in call_tool(checked_service):
        assert part["type"] == "text" or part["mimeType"] == "image/png"
        assert "alert(1)" not in part.get("text", "")
    response = checked_service.execute()
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
    checked_service: Service, e2b: LocalE2B
) -> None:
    """A child process takes eight, a request of the client's and of E2B's one each."""
    svg = SVG.format('<rect width="20" height="10"/>')
    e2b.set_script({"run": {"events": [stdout("kept\n"), result(svg=svg)]}})
    assert len(call_tool(checked_service)) == 2
    (worker,) = psutil.Process(checked_service.process.pid).children()
    limits = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    leave_descriptors(worker.pid, 5)
    try:
        (text,) = call_tool(checked_service)
    finally:
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limits)
    assert "kept" in text["text"]
    assert "an SVG that could not be drawn at the moment" in text["text"]
    assert len(call_tool(checked_service)) == 2


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
    checked_service: Service, e2b: LocalE2B, svg: str
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(0)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        svg = svg.replace("{address}", address)
        good = result(png=encoded(PNG))
        e2b.set_script({"run": {"events": [stdout("kept\n"), result(svg=svg), good]}})
        text, *pictures = call_tool(checked_service)
        assert "kept" in text["text"]
        assert "1 picture left out: an SVG" in text["text"]
        assert [base64.b64decode(picture["data"]) for picture in pictures] == [PNG]
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert requests.get(f"{checked_service.url}/health", timeout=30).ok


def test_the_same_bytes_twice_are_one_picture_and_a_figure_as_last_value_is_no_noise(
    checked_service: Service, e2b: LocalE2B
) -> None:
    png = encoded(PNG)
    figure = "<Figure size 640x480 with 1 Axes>"
    twice = [
        result(png=png, text=figure),
        result(png=png, text=figure, is_main_result=True),
    ]
    e2b.set_script({"run": {"events": twice}})
    response = checked_service.execute("1")
    assert len(urls_of(response)) == 1
    assert "Figure size" not in text_of(response)
    assert "left out" not in text_of(response)


def test_a_traceback_of_2_mb_coloured_is_stripped_and_cut_its_last_lines_kept(
    checked_service: Service, e2b: LocalE2B
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
    text = assert_reply(checked_service.execute(), "error", "characters cut", e2b=e2b)
    assert "\nframe of the traceback\nRecursionError: deep\n```" in text
    assert "\x1b" not in text
    assert len(text) < 40_000
