"""Whatever a run, a stream or a message holds: the promises of the pure rooms hold.

Each search is the same every time (derandomised) but for this: hypothesis also tries
texts that it finds in the modules that are loaded.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from builders import empty_run, encoded, facts
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from formatter import echo, format_plain, format_run
from mcp_server import Server, handle
from pictures.picture import PNG, Picture
from run import Limits, Run
from sandboxes.stream import StreamReader
from texts.clipped import Clipped
from texts.tracebacks import split_headings

LIMIT = 1_000  # the lowest that can be set
WHOLE = 300 * LIMIT  # longer than any of `texts` is
OURS = 6_000  # what headings, marks and notes may add to it
MARKDOWN = MarkdownIt("commonmark")
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
always = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=list(HealthCheck),
)

# What has a meaning to Markdown, HTML, a terminal
# or a traceback, and any character at all.
HOSTILE = [
    *(
        "```",
        "````",
        "~~~",
        "`",
        "\n```\n",
        "\n~~~\n",
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "    ",
        "\t",
        "> ",
    ),
    *(
        "- ",
        "1. ",
        "# ",
        "---",
        "***",
        "\\",
        "<!--",
        "-->",
        "<script>",
        "</pre>",
        "<img src=x>",
    ),
    *(
        "![x](https://evil.example/?q=)",
        "[a]: https://evil.example",
        "<https://evil.example>",
        "|",
    ),
    *(
        "\x1b[31m",
        "\x1b]8;;https://evil.example\x1b\\",
        "\x1b]",
        "\x1b",
        "\x9b",
        "\x07",
        "\x00",
    ),
    *(
        "\u202e",
        "\u2066",
        "\u2028",
        "\u2029",
        "\ufeff",
        "\ud800",
        "\udfff",
        "\U0001f600",
        "\x85",
    ),
    *(
        "**Executed Code:**",
        "Cell In[1], line 7",
        "----> 7 x",
        "(12.py, line 9)",
        "9" * 5_000,
    ),
    *("`" * 700, "~" * 700, "x" * 900, " " * 900, "\n" * 900, "\u202e" * 900),
]
texts = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=20), max_size=40).map(
    "".join
)


def clipped(text: str, limit: int = LIMIT) -> Clipped:
    made = Clipped(limit)
    made.add(text)
    return made


@st.composite
def runs(draw: st.DrawFn) -> Run:
    printed = [clipped(draw(texts)) for _ in range(4)]
    run = Run(Limits(LIMIT), *printed)
    run.error_name, run.error_value = draw(texts)[:200], draw(texts)[: LIMIT // 4]
    run.traceback = clipped(draw(texts), 8 * LIMIT).text()
    run.problem = draw(
        st.sampled_from(["", "The run was stopped after 50 s, its time limit."])
    )
    run.pictures = draw(st.sampled_from([[], [Picture(PNG, b"")]]))
    for number in range(draw(st.integers(0, 40))):
        run.leave_out("picture", f"{number:,} bytes (the limit is 5,242,880)")
    return run


def inline(tokens: list[Token]) -> set[str]:
    return {child.type for token in tokens for child in token.children or []}


def assert_safe(text: str) -> None:
    """Only our headings and notes are Markdown;
    all else is in fences; all can be sent."""
    text.encode()
    assert not BIDI.search(text)
    controls = {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")}
    assert controls <= {"\n", "\t"}
    tokens = MARKDOWN.parse(text)
    assert {token.type for token in tokens} <= {
        *("paragraph_open", "inline", "paragraph_close", "fence")
    }
    assert inline(tokens) <= {"text", "softbreak", "strong_open", "strong_close"}
    for token in tokens:
        if token.type == "inline":
            assert re.fullmatch(
                r"\*\*(Console Output|Stderr|Result|Execution Error|Executed Code):\*\*"
                r"|Code executed successfully, without output\. Use print\(\) to "
                r"see a value\."
                r"|(Note: [\w ,.:()]+(\n|$))+",
                token.content,
            )


@always
@given(runs(), st.sampled_from(["ok", "error", "timeout", "unavailable"]))
def test_any_run_gives_a_plain_text_for_mcp_that_loads_nothing_within_its_limit(
    run: Run, outcome: Any
) -> None:
    run.outcome = outcome
    text = format_plain(run, LIMIT)
    text.encode()
    assert text
    assert "![" not in text
    assert not BIDI.search(text)
    assert len(text.replace("\u200b", "")) <= LIMIT + 6_000


@always
@given(runs())
def test_any_run_gives_a_text_that_is_quoted_whole_and_within_its_limit(
    run: Run,
) -> None:
    text = format_run(run, LIMIT)
    assert_safe(text)
    assert len(text) <= LIMIT + OURS


@always
@given(texts)
def test_what_is_quoted_is_what_was_printed(text: str) -> None:
    run = empty_run(max_output_chars=WHOLE)
    run.stdout.add(text)
    fences = [
        token
        for token in MARKDOWN.parse(format_run(run, WHOLE))
        if token.type == "fence"
    ]
    assert len(fences) <= 1
    letters = re.sub(
        r"[^a-zé]", "", re.sub(r"\x1b\].*", "", text.replace("\r", ""), flags=re.DOTALL)
    )
    if (
        fences
        and "\r" not in text
        and "\x1b" not in text
        and "`" * 100 not in text
        and "\\u" not in fences[0].content
    ):
        assert re.sub(r"[^a-zé]", "", fences[0].content) == letters


@always
@given(texts)
def test_any_code_is_echoed_in_a_fence_of_its_own(code: str) -> None:
    text = echo(code)
    assert_safe(text)
    assert [token.type for token in MARKDOWN.parse(text)][-1] == "fence"


@always
@given(texts)
def test_any_traceback_can_be_split(text: str) -> None:
    split = split_headings(text)
    assert split.replace("\n", "") == text.replace("\n", "")


# --- the stream -----------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
SVG = "<svg xmlns='http://www.w3.org/2000/svg'/>"
PICTURES = [
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + bytes(30),
    b"\xff\xd8\xff\xc0\x00",
    b"GIF89a",
]
picture_texts = st.sampled_from([encoded(data) for data in PICTURES] + [SVG, "=="])
FIELDS = [
    "text",
    "name",
    "value",
    "traceback",
    "png",
    "jpeg",
    "svg",
    "html",
    "json",
    "pdf",
]
ERROR = {
    "name": "ValueError",
    "value": "x",
    "traceback": "Traceback",
    "text": "text",
    "extra": {},
}
events = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["stdout", "stderr", "result", "error", "end_of_execution", "x", None]
        )
    },
    optional=dict.fromkeys(FIELDS, texts | picture_texts | json_values),
)

outputs = st.builds(
    lambda kind, text: {"type": kind, "text": text},
    st.sampled_from(["stdout", "stderr"]),
    texts,
)
good_lines = (outputs | events).map(lambda event: json.dumps(ERROR | event).encode())
bad_lines = st.one_of(
    events.map(lambda event: json.dumps(event).encode()),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.sampled_from(
        [b"[" * 3_000, b'{"type":' * 3_000, b'"\\ud800"', b"{}", b"\xff\xfe"]
    ),
)
streams = st.builds(
    lambda good, bad: b"\n".join([*good, *bad]),
    st.lists(good_lines, max_size=8),
    st.lists(bad_lines, max_size=3),
)


def read(*chunks: bytes) -> StreamReader:
    reader = StreamReader(empty_run(max_output_chars=LIMIT))
    for chunk in chunks:
        reader.feed(chunk)
    return reader


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted(cut % (len(stream) + 1) for cut in cuts)
    return [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)]


@always
@given(streams, st.lists(st.integers(0, 10**6), max_size=20))
def test_any_bytes_in_any_pieces_give_the_same_run(
    stream: bytes, cuts: list[int]
) -> None:
    assert facts(read(*pieces(stream, cuts))) == facts(read(stream))


@always
@given(streams)
def test_any_bytes_give_a_run_that_is_bounded_and_can_be_shown(stream: bytes) -> None:
    run = read(stream, b"\n").run
    for part in (run.stdout, run.stderr, run.values):
        assert len(part.head) + len(part.tail) <= LIMIT
    assert len(run.error_name) <= 200
    assert len(run.error_value) + len(run.traceback) < 10 * LIMIT
    assert len(run.left_out) <= 21
    text = format_run(run, LIMIT)
    assert_safe(text)
    assert len(text) <= LIMIT + OURS


@always
@given(
    st.sampled_from([b"", b'{"type":"stdout","text":"', b'{"type":"result","png":"']),
    st.binary(),
)
def test_a_line_that_never_ends_is_held_in_bounded_memory(
    start: bytes, filler: bytes
) -> None:
    reader = StreamReader(empty_run(max_image_bytes=1024, max_output_chars=LIMIT))
    reader.feed(start)
    chunk = (filler.replace(b"\n", b"") or b"x") * 3_000
    for _ in range(20):
        reader.feed(chunk[:100_000])
    assert len(reader._line) < 1_000_000
    reader.feed(b"\n")
    assert len(reader._line) == 0


# --- messages -------------------------------------------------------------------------

TOOL: dict[str, Any] = {
    "name": "run_python",
    "title": "Run Python",
    "description": "",
    "inputSchema": {},
}
VERSIONS = ["2026-07-28", "2025-06-18", "2099-01-01", ""]
METHODS = [
    "initialize",
    "server/discover",
    "ping",
    "tools/list",
    "tools/call",
    "resources/list",
    "notifications/x",
    "401",
]
CREDENTIALS = re.compile(
    r"401|oauth|unauthori[sz]ed|authenticat|token|credential|forbidden", re.I
)
params = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("run_python") | json_values,
        "arguments": st.fixed_dictionaries({"code": json_values}) | json_values,
        "protocolVersion": st.sampled_from(["2025-06-18", 1, [], ["x"], {}, {"a": 1}]),
        "_meta": st.fixed_dictionaries(
            {},
            optional={
                "io.modelcontextprotocol/protocolVersion": st.sampled_from(
                    [*VERSIONS, 1, None, []]
                ),
                "io.modelcontextprotocol/clientCapabilities": st.sampled_from([{}, 1]),
            },
        ),
    },
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "MCP-Protocol-Version": st.sampled_from(VERSIONS),
        "Mcp-Method": st.sampled_from(METHODS),
        "Mcp-Name": st.sampled_from(
            ["run_python", "=?base64?cnVu?=", "=?base64?/?=", ""]
        ),
    },
)
messages = st.fixed_dictionaries(
    {
        "jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", 2.0]),
        "id": st.sampled_from([1, "a", "1" * 99]) | json_values,
        "method": st.sampled_from(
            METHODS * 3 + ["initialize", "tools/call", None, 7, ["ping"], {}]
        ),
        "params": params
        | params.filter(bool)
        | st.sampled_from([None, "", 0, [], [1], "x", 3, True]),
    },
    optional={"result": json_values, "error": json_values},
)


@settings(always, max_examples=200)
@given(messages, headers)
@example(
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": []},
    },
    {},
)
@example(
    {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": {}}}, {}
)
def test_any_message_has_an_answer_or_wants_none(
    message: object, headers: dict[str, str]
) -> None:
    check_answer(message, headers)


@always
@given(json_values, headers)
def test_any_json_is_answered_as_a_message_is(
    message: object, headers: dict[str, str]
) -> None:
    check_answer(message, headers)


def check_answer(message: object, headers: dict[str, str]) -> None:
    def call(arguments: dict[str, Any], call_id: int | str) -> dict[str, Any]:
        assert isinstance(arguments, dict)
        assert type(call_id) in (int, str)
        return {"content": []}

    def cancel(call_id: int | str) -> None:
        assert type(call_id) in (int, str)

    server = Server("1.0", TOOL, "instructions", call, cancel)
    status, answer = handle(message, headers.get, server)
    if answer is None:
        assert status == 202
        return
    assert status in (200, 400, 404)
    assert answer["jsonrpc"] == "2.0"
    assert set(answer) in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"})
    json.dumps(answer)
    if "error" in answer:
        assert set(answer["error"]) in (
            {"code", "message"},
            {"code", "message", "data"},
        )
        assert isinstance(answer["error"]["code"], int)
        assert not CREDENTIALS.search(answer["error"]["message"])
    elif isinstance(message, dict):
        assert status == 200
        assert answer["id"] == message["id"] or answer["id"] != answer["id"]  # NaN
