"""JSON bodies: what comes is parsed, and what goes is made, in bounded memory."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import pytest

from code_api.large_body import LongText, parse_large
from config import MAX_BODY_BYTES
from in_flight import Hold, InFlight, NoRoom
from json_body import PARSE_FACTOR, BadBody, Blob, JsonBody

LONG = 2_000_000
# What is special in JSON or in UTF-8: in every order, and so at every cut.
ALPHABET = ["a", '"', "\\", "\n", "\0", "\x7f", "é", "\u2028", "\uffff", "😀", "u0041"]


def read(body: bytes) -> Any:
    """As an exec's body is read."""
    return parse_large(body, MAX_BODY_BYTES)


# --- what comes ---------------------------------------------------------------------


def parsed_code(literal: str | bytes) -> bytes:
    data = literal.encode() if isinstance(literal, str) else literal
    body = b'{"lang": "py", "code": ' + data + b', "args": ["x"]}'
    value = read(body)
    assert (value["lang"], value["args"]) == ("py", ["x"])
    assert isinstance(value["code"], LongText)
    return value["code"].utf8()


@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_long_text_is_what_it_was_wherever_it_is_cut(
    seed: int, is_ascii: bool
) -> None:
    code = "".join(random.Random(seed).choices(ALPHABET, k=LONG))
    literal = json.dumps(code, ensure_ascii=is_ascii)
    assert parsed_code(literal) == code.encode()


@pytest.mark.parametrize("character", ALPHABET)
@pytest.mark.parametrize("shift", range(6))
def test_a_long_text_of_one_character_is_what_it_was(
    character: str, shift: int
) -> None:
    code = "x" * shift + character * 1_100_000
    assert parsed_code(json.dumps(code)) == code.encode()


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (b"\\ud800", UnicodeEncodeError),
        (b"\\udfff", UnicodeEncodeError),
        (b"\\udfff\\ud800", UnicodeEncodeError),
        (b"\xff", ValueError),
        (b"\xf0\x9f", ValueError),
        (b"\n", ValueError),
        (b"\0", ValueError),
        (b"\\x", ValueError),
        (b"\\u00", ValueError),
    ],
)
@pytest.mark.parametrize("where", ["in the middle", "at the end"])
def test_a_long_text_that_is_none_is_refused(
    bad: bytes, error: type[Exception], where: str
) -> None:
    after = b"y" if where == "in the middle" else b""
    with pytest.raises(error):
        parsed_code(b'"' + b"x" * LONG + bad + after + b'"')


BAD_LARGE_BODIES = {
    "a list": ("[%s]", BadBody),
    "a text": ("%s", BadBody),
    "within a list": ('{"code": "1", "args": [%s]}', BadBody),
    "within an object": ('{"code": {"code": %s}}', BadBody),
    "a name": ('{%s: "1"}', BadBody),
    "the same name twice": ('{"code": %s, "code": "1"}', BadBody),
    "many short texts": (f'{{"code": %s, "args": [{"0," * 600_000}0]}}', BadBody),
    "no end": ('{"code": %s', ValueError),
    "no end of its text": ('{"code": %s, "x', ValueError),
    "two of them": ('{"code": %s} {}', ValueError),
}


@pytest.mark.parametrize("row", BAD_LARGE_BODIES)
def test_a_large_body_is_refused_for(row: str) -> None:
    form, error = BAD_LARGE_BODIES[row]
    body = form % json.dumps("x" * LONG)
    with pytest.raises(error):
        read(body.encode())


def test_a_large_body_in_utf_16_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        read(json.dumps({"code": "x" * LONG}).encode("utf-16"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["none", "a BOM"])
def test_what_is_short_in_a_large_body_stays_text(mark: bytes) -> None:
    fields = {"a": "é", "": [1, {"b": None}], "long": "x" * LONG, "c": 'q"\\'}
    value = read(mark + json.dumps(fields).encode())
    assert value.pop("long").utf8() == b"x" * LONG
    assert value == {"a": "é", "": [1, {"b": None}], "c": 'q"\\'}


@pytest.mark.parametrize("character", ["x", "\\", '"', "\0", "é", "😀"])
def test_parsing_takes_no_more_memory_than_is_held_for_it(character: str) -> None:
    """One emoji would make of each byte four."""
    body = json.dumps({"code": character * 2_000_000 + "😀"}, ensure_ascii=False)
    tracemalloc.start()
    try:
        data = bytearray(body.encode())
        size = len(data)
        tracemalloc.reset_peak()
        text = read(data)["code"]
        del data
        text.utf8()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PARSE_FACTOR * size + 1_000_000


# --- what goes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "blobs", [[], [b""], [b"a"], [b"ab", b"abc"], [bytes(100_000), b"x"]]
)
def test_a_body_is_json_with_each_blob_in_base64(blobs: list[bytes]) -> None:
    body = [
        {"url": Blob(data, "data:image/png;base64,"), "n": number}
        for number, data in enumerate(blobs)
    ]
    made = JsonBody({"é\u2028": "x", "all": body})
    joined = b"".join(made)
    assert made.size_bytes == len(joined)
    urls = [part["url"] for part in json.loads(joined)["all"]]
    assert [base64.b64decode(url.partition(",")[2]) for url in urls] == blobs


def test_nothing_else_than_json_and_what_is_long_is_taken() -> None:
    with pytest.raises(AttributeError):
        JsonBody([b"x"])


@pytest.mark.parametrize(
    "text",
    ["é😀", "\0\x1b\x7f", "\u2028", "\ud800", "a\udfffb", '"\\', "\ud83d \ude00"],
)
def test_a_text_is_itself_in_utf_8_and_half_a_character_breaks_nothing(
    text: str,
) -> None:
    data = b"".join(JsonBody([text]))
    assert json.loads(data) == [text]
    assert data.isascii() == (not any(character in text for character in "é😀\u2028"))


# --- how much of it at once ---------------------------------------------------------


def in_thread(work: Callable[[], Any]) -> tuple[Thread, list[str]]:
    outcome: list[str] = []

    def run() -> None:
        try:
            work()
            outcome.append("held")
        except NoRoom:
            outcome.append("no room")

    thread = Thread(target=run)
    thread.start()
    return thread, outcome


MB = 1024 * 1024


def test_who_finds_no_room_waits_for_it_in_turn() -> None:
    in_flight = InFlight(10 * MB, max_waiting=5)
    first, second, third = (Hold(in_flight) for _ in range(3))
    first.resize(11 * MB)
    large, large_outcome = in_thread(lambda: second.resize(11 * MB))
    large.join(0.3)
    small, small_outcome = in_thread(lambda: third.resize(2 * MB))
    small.join(0.3)
    assert (large_outcome, small_outcome) == ([], [])
    first.resize(0)
    large.join(5)
    assert (large_outcome, small_outcome) == (["held"], [])
    second.release()
    small.join(5)
    assert small_outcome == ["held"]


def test_what_is_not_large_never_waits() -> None:
    in_flight = InFlight(2 * MB, max_waiting=0)
    Hold(in_flight).resize(3 * MB)
    Hold(in_flight).resize(MB)


def test_one_that_goes_beyond_the_limit_may_have_all_that_it_needs() -> None:
    """Each grows as its body comes: else they would all wait for each other."""
    in_flight = InFlight(4 * MB, max_waiting=2)
    holds = [Hold(in_flight) for _ in range(3)]
    for hold in holds:
        hold.resize(2 * MB)
    last = holds.pop()

    def grow_and_end(hold: Hold) -> None:
        hold.resize(3 * MB)
        hold.release()

    others = [in_thread(partial(grow_and_end, hold)) for hold in holds]
    for size in range(3, 100):
        last.resize(size * MB)
    assert [outcome for _, outcome in others] == [[], []]
    last.release()
    for thread, outcome in others:
        thread.join(5)
        assert outcome == ["held"]


def test_no_more_than_may_wait_do() -> None:
    in_flight = InFlight(2 * MB, max_waiting=1)
    first = Hold(in_flight)
    first.resize(3 * MB)
    waits, outcome = in_thread(lambda: Hold(in_flight).resize(2 * MB))
    waits.join(0.3)
    with pytest.raises(NoRoom):
        Hold(in_flight).resize(2 * MB)
    assert outcome == []
    first.release()
    waits.join(5)
    assert outcome == ["held"]


def test_without_room_to_wait_what_there_is_is_given() -> None:
    in_flight = InFlight(4 * MB, max_waiting=0)
    Hold(in_flight).resize(2 * MB)
    Hold(in_flight).resize(2 * MB)
