"""What the routes promise, over real sockets: POST /execute, then who may call."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import requests
from builders import (
    answer_with,
    decoded,
    encoded,
    error,
    picture,
    result,
    stderr,
    stdout,
)
from local_e2b import LocalE2B
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from config import LIFETIME_MARGIN_S, MAX_BODY_BYTES, VERSION, Config
from conftest import E2B_KEY, OK_RUN, Service, http, of_kind, text_of, urls_of
from proxy import create_app

pytestmark = pytest.mark.usefixtures("runs_print_ok")

API_KEY = "a-key-that-is-long-enough-to-be-one"
JSON = {"Content-Type": "application/json"}
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="3">'
    '<path d="M0 0h4v3z"/></svg>'
)


# What needs no key, besides published pictures.
OPEN_PATHS = ["/", "/health", "/ready", "/openapi.json", "/docs/faq.md"]


# --- services -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_service(start_shared: Callable[..., Service]) -> Service:
    """The service without an API key, reachable under one name more."""
    return start_shared(ALLOWED_HOSTS="code.example.com, other.example.com")


@pytest.fixture(scope="module")
def keyed_service(
    start_shared: Callable[..., Service], tmp_path_factory: pytest.TempPathFactory
) -> Service:
    """The service with an API key, and with the code API."""
    folder = tmp_path_factory.mktemp("files")
    return start_shared(PROXY_API_KEY=API_KEY, FILES_DIR=str(folder))


@pytest.fixture(scope="module")
def shown(open_service: Service, e2b: LocalE2B) -> requests.Response:
    """The reply to SHOWN, which a kernel ran."""
    e2b.set_script({})
    return execute(open_service, SHOWN)


# --- what a sandbox answers, and what is sent and read --------------------------------


def post(service: Service, body: bytes | str, **headers: str) -> requests.Response:
    data = body.encode() if isinstance(body, str) else body
    return http.post(
        f"{service.url}/execute", data=data, headers=JSON | headers, timeout=30
    )


def execute(service: Service, code: str = "1", **fields: Any) -> requests.Response:
    return post(service, json.dumps({"code": code, **fields}))


def error_of(response: requests.Response | Answer) -> dict[str, str]:
    """The error in a response, which is of the one form that all errors have."""
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "request_id"}
    assert all(isinstance(value, str) and value for value in body["error"].values())
    assert body["error"]["request_id"] == response.headers["X-Request-Id"]
    return dict(body["error"])


class Answer:
    """A response read from a socket."""

    def __init__(self, connection: socket.socket) -> None:
        with contextlib.closing(HTTPResponse(connection)) as response:
            response.begin()
            self.status_code, self.headers = response.status, response.headers
            self.text = response.read().decode()

    def json(self) -> Any:
        return json.loads(self.text)


def raw(service: Service, *head: str | bytes, body: bytes = b"") -> Answer:
    """Send these lines and this body as they are; read the answer."""
    lines = [line.encode("latin-1") if isinstance(line, str) else line for line in head]
    with socket.create_connection(
        ("127.0.0.1", service.port), timeout=10
    ) as connection:
        connection.sendall(b"".join(line + b"\r\n" for line in [*lines, b""]) + body)
        return Answer(connection)


def raw_execute(
    service: Service, *headers: str | bytes, version: str = "1.1"
) -> Answer:
    """POST /execute with a good body and, but for its own, these headers only."""
    body = b'{"code": "1"}'
    own = (
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return raw(service, f"POST /execute HTTP/{version}", *own, *headers, body=body)


def run_requests(e2b: LocalE2B) -> list[dict[str, Any]]:
    return [request for request in e2b.state()["requests"] if request["kind"] == "run"]


# --- the reply ------------------------------------------------------------------------

HELLO = "print('Hello, World!')"
HELLO_REPLY = (
    r'[[{"type": "text", "text": "**Console Output:**\n```\nHello, World!\n```\n\n'
    r"**Executed Code:**\n```python\nprint('Hello, World!')\n```"
    r'"}], {"content": [%s]}]'
)


def test_hello_world_gives_the_two_element_array_byte_for_byte(
    open_service: Service, e2b: LocalE2B
) -> None:
    answer_with(e2b, stdout("Hello, World!\n"))
    response = execute(open_service, HELLO)
    assert response.content.decode() == HELLO_REPLY % ""
    assert response.headers["Content-Type"] == "application/json"


def test_a_picture_joins_the_array_as_an_image_url_byte_for_byte(
    open_service: Service, e2b: LocalE2B
) -> None:
    png = encoded(picture("PNG"))
    answer_with(
        e2b, stdout("Hello, World!\n"), result("<Figure size 8x6 with 1 Axes>", png=png)
    )
    url = f"data:image/png;base64,{png}"
    part = f'{{"type": "image_url", "image_url": {{"url": "{url}"}}}}'
    assert execute(open_service, HELLO).content.decode() == HELLO_REPLY % part


def test_the_parts_of_the_text_stand_in_one_order_separated_by_a_blank_line(
    open_service: Service, e2b: LocalE2B
) -> None:
    answer_with(
        e2b,
        stdout("a "),
        error("ValueError", "no"),
        stdout("line\n\n"),
        result("first value", html="<b>1</b>"),
        result(None, pdf="JVBERg=="),
        stderr("a warning\n"),
        result("<IPython.core.display.Markdown object>", markdown="*second*"),
    )
    assert text_of(execute(open_service, "the code")) == "\n\n".join(
        [
            "**Console Output:**\n```\na line\n\n```",
            "**Stderr:**\n```\na warning\n```",
            "**Result:**\n```\nfirst value\n*second*\n```",
            "**Execution Error:**\n```\nTraceback (most recent call last)\n"
            "Cell In[1], line 1\n"
            "ValueError: no\n```",
            "Note: 1 figure left out: only png, jpeg and svg can be shown,"
            " so draw it with matplotlib.",
            "**Executed Code:**\n```python\nthe code\n```",
        ]
    )


def test_what_is_printed_after_a_value_comes_after_it_under_one_heading(
    open_service: Service, e2b: LocalE2B
) -> None:
    answer_with(
        e2b,
        stdout("first\n"),
        result("   a\n0  1", html="<b>1</b>"),
        stderr("a warning\n"),
        stdout("second\n"),
        result("   b\n0  2"),
    )
    assert text_of(execute(open_service, "the code")) == "\n\n".join(
        [
            "**Console Output:**\n```\nfirst\n   a\n0  1\nsecond\n   b\n0  2\n```",
            "**Stderr:**\n```\na warning\n```",
            "**Executed Code:**\n```python\nthe code\n```",
        ]
    )


def test_a_run_with_nothing_to_show_says_so_first(
    open_service: Service, e2b: LocalE2B
) -> None:
    answer_with(e2b)
    assert text_of(execute(open_service, "x = 1")) == (
        "Code executed successfully, without output. Use print() to see a value.\n\n"
        "**Executed Code:**\n```python\nx = 1\n```"
    )


def test_pictures_are_data_uris_in_the_order_of_display(
    open_service: Service, e2b: LocalE2B
) -> None:
    jpeg, png = picture("JPEG"), picture("PNG")
    answer_with(
        e2b,
        result(jpeg=encoded(jpeg)),
        result(svg=SVG),
        result(png=encoded(png)),
        stdout("x"),
    )
    first, second, third = urls_of(execute(open_service))
    assert decoded(first, "image/jpeg") == jpeg
    assert decoded(second, "image/svg+xml") == SVG.encode()
    assert decoded(third, "image/png") == png


@pytest.mark.parametrize(
    ("labels", "media_type"),
    [
        (("svg", "jpeg", "png"), "image/png"),
        (("svg", "jpeg"), "image/jpeg"),
        (("svg",), "image/svg+xml"),
    ],
)
def test_a_result_in_several_formats_is_one_picture_png_before_jpeg_before_svg(
    open_service: Service, e2b: LocalE2B, labels: tuple[str, ...], media_type: str
) -> None:
    formats = {
        "svg": SVG,
        "jpeg": encoded(picture("JPEG")),
        "png": encoded(picture("PNG")),
    }
    answer_with(e2b, result("<Figure>", **{label: formats[label] for label in labels}))
    [url] = urls_of(execute(open_service))
    assert url.startswith(f"data:{media_type};base64,")


def test_the_same_bytes_shown_twice_are_one_picture(
    open_service: Service, e2b: LocalE2B
) -> None:
    red, blue = encoded(picture("PNG", "red")), encoded(picture("PNG", "blue"))
    answer_with(e2b, result(png=red), result(png=blue), result(png=red))
    assert urls_of(execute(open_service)) == [
        f"data:image/png;base64,{png}" for png in (red, blue)
    ]


def test_a_picture_is_known_by_its_bytes_and_not_by_its_label(
    open_service: Service, e2b: LocalE2B
) -> None:
    answer_with(e2b, result(png=encoded(picture("JPEG"))))
    [url] = urls_of(execute(open_service))
    assert decoded(url, "image/jpeg") == picture("JPEG")


def test_what_is_no_picture_is_left_out_and_the_text_says_why(
    open_service: Service, e2b: LocalE2B
) -> None:
    answer_with(e2b, result(png=encoded(b"MZ, a program")), result(png="not base64"))
    response = execute(open_service)
    assert urls_of(response) == []
    assert "Note: 1 picture left out: neither PNG, JPEG nor SVG." in text_of(response)
    assert "Note: 1 picture left out: not valid base64." in text_of(response)


# --- how a run ended ------------------------------------------------------------------

OUTCOMES = {
    "ok": ({"run": OK_RUN}, "ok"),
    "error": ({"run": {"events": [error("ValueError", "no")]}}, "ValueError: no"),
    "timeout": (
        {"run": {"fault": "silent"}},
        "The run was stopped after 1 s, its time limit.",
    ),
    "unavailable": ({"run": OK_RUN, "create": {"status": 500}}, "E2B failed."),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_end_of_a_run_is_a_200_and_a_header_tells_them_apart(
    open_service: Service, e2b: LocalE2B, outcome: str
) -> None:
    script, words = OUTCOMES[outcome]
    e2b.set_script(script)
    response = execute(open_service, timeout=1)
    assert words in text_of(response)
    assert ("**Execution Error:**" in text_of(response)) == (outcome != "ok")
    assert response.headers["X-Run-Outcome"] == outcome


def test_what_was_printed_and_drawn_before_a_timeout_is_in_the_reply(
    open_service: Service, e2b: LocalE2B
) -> None:
    png = encoded(picture("PNG"))
    answer_with(e2b, stdout("so far\n"), result(png=png), fault="silent")
    for _ in range(3):  # something else may have kept this machine busy
        started = monotonic()
        response = execute(open_service, timeout=1)
        took_s = monotonic() - started
        if took_s < 2:
            break
    assert 1 <= took_s < 2
    assert text_of(response).startswith(
        "**Console Output:**\n```\nso far\n```\n\n**Execution Err"
    )
    assert len(urls_of(response)) == 1
    assert response.headers["X-Run-Outcome"] == "timeout"


def test_every_run_has_a_sandbox_of_its_own_that_is_killed(
    open_service: Service, e2b: LocalE2B
) -> None:
    before = e2b.wait_for(lambda state: state["alive"] == 0, 30)
    for _ in range(3):
        execute(open_service)
    after = e2b.wait_for(lambda state: state["killed"] == before["killed"] + 3, 30)
    assert after["created"] == before["created"] + 3
    assert after["alive"] == 0


# --- what may be sent -----------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "print(1)\0",
        "print(1)\r\nprint(2)\r\n",
        "  print('\N{PARTY POPPER} żółć \N{RIGHT-TO-LEFT OVERRIDE}')\n\n",
        "%%bash\necho 1",
        "'" + 99_998 * "x" + "'",
    ],
    ids=["NUL", "CRLF", "four-byte emoji", "cell magic", "100,000 characters"],
)
def test_code_is_sent_once_and_exactly_as_it_came(
    open_service: Service, e2b: LocalE2B, code: str
) -> None:
    runs_before = len(run_requests(e2b))
    assert execute(open_service, code).status_code == 200
    sent = [request["body"]["code"] for request in run_requests(e2b)[runs_before:]]
    assert sent == [code]


@pytest.mark.parametrize(
    "codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"], ids="body in {}".format
)
def test_every_encoding_of_json_is_read(
    open_service: Service, e2b: LocalE2B, codec: str
) -> None:
    body = json.dumps({"code": "'\N{PARTY POPPER}'"}, ensure_ascii=False)
    assert post(open_service, body.encode(codec)).status_code == 200
    assert run_requests(e2b)[-1]["body"]["code"] == "'\N{PARTY POPPER}'"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
    ],
)
def test_json_is_taken_under_each_spelling_of_its_type(
    open_service: Service, content_type: str
) -> None:
    assert (
        post(
            open_service, '{"code": "1"}', **{"Content-Type": content_type}
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    ("timeout", "limit_s"),
    [
        *[("null", 50), ("1", 1), ("7", 7), ("50", 50), ("51", 50)],
        *[(str(10**9), 50), ("9" * 400, 50), ("9" * 4000, 50)],
    ],
    ids="{!s:.12}".format,
)
def test_a_timeout_shortens_a_run_and_never_lengthens_it(
    open_service: Service, e2b: LocalE2B, timeout: str, limit_s: int
) -> None:
    assert (
        post(open_service, f'{{"code": "1", "timeout": {timeout}}}').status_code == 200
    )
    creates = [
        request for request in e2b.state()["requests"] if request["kind"] == "create"
    ]
    assert creates[-1]["body"]["timeout"] == limit_s + LIFETIME_MARGIN_S


def test_unknown_fields_are_ignored_and_never_forwarded(
    open_service: Service, e2b: LocalE2B
) -> None:
    number_before = len(e2b.state()["requests"])
    unknown = {
        "template": "EVIL",
        "envs": {"A": "EVIL"},
        "api_key": "EVIL",
        "metadata": {"a": "EVIL"},
        "context_id": "EVIL",
        "sandbox_id": "EVIL",
        "EVIL": True,
    }
    assert text_of(execute(open_service, "1", **unknown)).startswith(
        "**Console Output:**\n```\nok\n"
    )
    sent = e2b.state()["requests"][number_before:]
    assert {request["kind"] for request in sent} >= {"create", "run"}
    assert "EVIL" not in json.dumps(sent)
    [create] = [request for request in sent if request["kind"] == "create"]
    assert create["body"]["templateID"] == "code-interpreter-v1"
    assert create["headers"]["x-api-key"] == E2B_KEY


@pytest.mark.parametrize(
    "field",
    [
        {"timeout": "10"},
        {"timeout": " 10 "},
        {"timeout": 10.0},
        {"timeout": "10.0"},
        {"timeout": 1e1},
        {"timeout": 10, "language": ""},
        *(
            {"timeout": 10, "language": name}
            for name in (
                None,
                "py",
                "Python",
                "python3",
                "PYTHON",
                "ipython",
                "Python 3.12",
            )
        ),
    ],
    ids=str,
)
def test_arguments_are_taken_as_models_write_them(
    open_service: Service, e2b: LocalE2B, field: dict[str, Any]
) -> None:
    assert open_service.execute("print(1)", **field).status_code == 200
    [*_, create] = of_kind(e2b, "create")
    assert create["body"]["timeout"] == 10 + LIFETIME_MARGIN_S


def test_a_timeout_that_is_empty_is_the_default(
    open_service: Service, e2b: LocalE2B
) -> None:
    assert open_service.execute("print(1)", timeout="").status_code == 200
    [*_, create] = of_kind(e2b, "create")
    assert create["body"]["timeout"] == Config.run_timeout_s + LIFETIME_MARGIN_S


# --- bad requests: refused before any sandbox is created ------------------------------


def with_timeout(timeout: str) -> str:
    return f'{{"code": "print(1)", "timeout": {timeout}}}'


def with_language(language: str) -> str:
    return f'{{"code": "print(1)", "language": {language}}}'


OBJECT = 'Expected a JSON object such as {"code": "print(1)"}.'
NO_JSON = "The body is no JSON that can be read"
CODE = "code must be a string that is not blank."
SECONDS = ", but must be a whole number of seconds, 1 or more."
PYTHON_ONLY = ", but only python is served: leave it out."
BAD_REQUESTS = {
    "body empty": ("", 400, NO_JSON),
    "body blank": (" \n", 400, NO_JSON),
    "body null": ("null", 400, OBJECT),
    "body []": ("[]", 400, OBJECT),
    'body "x"': ('"x"', 400, OBJECT),
    "body 3": ("3", 400, OBJECT),
    "body [the object]": ('[{"code": "1"}]', 400, OBJECT),
    "body no JSON": ("code=print(1)", 400, NO_JSON),
    "body cut short": ('{"code": "print(1', 400, NO_JSON),
    "body with bytes that are no UTF-8": (b'{"code": "\xff"}', 400, NO_JSON),
    "code missing": ("{}", 400, CODE),
    "code under another name": ('{"Code": "1"}', 400, CODE),
    "code null": ('{"code": null}', 400, CODE),
    "code number": ('{"code": 3}', 400, CODE),
    "code list": ('{"code": ["print(1)"]}', 400, CODE),
    "code object": ('{"code": {"code": "1"}}', 400, CODE),
    "code empty": ('{"code": ""}', 400, CODE),
    "code blank": ('{"code": " \\n\\t"}', 400, CODE),
    "code of 100,001 characters": (
        json.dumps({"code": "x" * 100_001}),
        400,
        "code has 100,001 characters of 100,000.",
    ),
    "JSON nested 5,000 deep": ("[" * 5000 + "]" * 5000, 400, ""),
    "JSON nested 5,000 deep in code": (
        '{"code":' + "[" * 5000 + "]" * 5000 + "}",
        400,
        "",
    ),
    "JSON nested 200,000 deep": ('{"code":' * 100_000 + "1" + "}" * 100_000, 400, ""),
    "a lone surrogate in code": ('{"code": "\\ud800"}', 400, "lone surrogate"),
    "a lone low surrogate in code": (
        '{"code": "x = \'\\udc00\'"}',
        400,
        "lone surrogate",
    ),
    "timeout NaN": (with_timeout("NaN"), 400, f"timeout is NaN{SECONDS}"),
    "timeout Infinity": (
        with_timeout("Infinity"),
        400,
        f"timeout is Infinity{SECONDS}",
    ),
    "timeout 1e999": (with_timeout("1e999"), 400, f"timeout is Infinity{SECONDS}"),
    "timeout -1e999": (with_timeout("-1e999"), 400, f"timeout is -Infinity{SECONDS}"),
    "timeout true": (with_timeout("true"), 400, f"timeout is true{SECONDS}"),
    "timeout false": (with_timeout("false"), 400, f"timeout is false{SECONDS}"),
    'timeout "soon"': (with_timeout('"soon"'), 400, f'timeout is "soon"{SECONDS}'),
    'timeout "-1"': (with_timeout('"-1"'), 400, f'timeout is "-1"{SECONDS}'),
    'timeout "10s"': (with_timeout('"10s"'), 400, f'timeout is "10s"{SECONDS}'),
    'timeout "0"': (with_timeout('"0"'), 400, f'timeout is "0"{SECONDS}'),
    "timeout [10]": (with_timeout("[10]"), 400, f"timeout is an array{SECONDS}"),
    "timeout {}": (with_timeout("{}"), 400, f"timeout is an object{SECONDS}"),
    "timeout 0": (with_timeout("0"), 400, f"timeout is 0{SECONDS}"),
    "timeout -0.0": (with_timeout("-0.0"), 400, f"timeout is -0.0{SECONDS}"),
    "timeout -1": (with_timeout("-1"), 400, f"timeout is -1{SECONDS}"),
    "timeout 0.5": (with_timeout("0.5"), 400, f"timeout is 0.5{SECONDS}"),
    "timeout 1.5": (with_timeout("1.5"), 400, f"timeout is 1.5{SECONDS}"),
    "timeout an integer of -4,000 digits": (
        with_timeout("-" + "9" * 4000),
        400,
        f"timeout is -{'9' * 39}…{SECONDS}",
    ),
    "timeout an integer of 5,000 digits": (with_timeout("9" * 5000), 400, ""),
    "language javascript": (
        with_language('"javascript"'),
        400,
        f'language is "javascript"{PYTHON_ONLY}',
    ),
    "language python2": (
        with_language('"python2"'),
        400,
        f'language is "python2"{PYTHON_ONLY}',
    ),
    "language []": (with_language("[]"), 400, f"language is an array{PYTHON_ONLY}"),
    "language 3": (with_language("3"), 400, f"language is 3{PYTHON_ONLY}"),
    "language false": (with_language("false"), 400, f"language is false{PYTHON_ONLY}"),
}


@pytest.mark.parametrize("row", BAD_REQUESTS)
def test_a_bad_request_is_refused_before_any_sandbox_is_created(
    open_service: Service, e2b: LocalE2B, row: str
) -> None:
    body, status, words = BAD_REQUESTS[row]
    created_before = e2b.state()["created"]
    response = post(open_service, body)
    assert response.status_code == status
    assert error_of(response)["code"] == "bad_request"
    assert words in error_of(response)["message"]
    assert e2b.state()["created"] == created_before


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Content-Type:"],
        ["Content-Type: text/plain"],
        ["Content-Type: application/x-www-form-urlencoded"],
        ["Content-Type: multipart/form-data"],
        ["Content-Type: text/plain; application/json"],
        ["Content-Type: application/jsonp"],
        ["Content-Type: text/plain", "Content-Type: application/json"],
    ],
    ids=lambda headers: " and ".join(headers) or "none",
)
def test_a_wrong_or_missing_content_type_is_415(
    open_service: Service, e2b: LocalE2B, headers: list[str]
) -> None:
    created_before = e2b.state()["created"]
    body = b'{"code": "1"}'
    head = [
        "POST /execute HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    response = raw(open_service, *head, body=body)
    # Of two headers gunicorn's parser may make a 400.
    assert response.status_code in ((415, 400) if len(headers) == 2 else (415,))
    if response.status_code == 415:
        assert "application/json" in error_of(response)["message"]
    assert e2b.state()["created"] == created_before


@pytest.mark.parametrize("path", ["/execute", "/mcp", "/v1/exec", "/v1/upload"])
@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "GZIP", "gzip, gzip"])
def test_a_packed_body_is_415_and_the_answer_says_why(
    open_service: Service, path: str, coding: str
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    body = gzip.compress(b'{"code": "1"}')
    response = http.post(
        f"{open_service.url}{path}", data=body, headers=headers, timeout=30
    )
    assert response.status_code == 415
    assert f"without Content-Encoding: {coding}" in response.text


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_a_body_that_is_said_not_to_be_packed_is_read(
    open_service: Service, coding: str
) -> None:
    headers = {"Content-Encoding": coding}
    response = http.post(
        f"{open_service.url}/execute", json={"code": "1"}, headers=headers, timeout=30
    )
    assert response.status_code == 200


def test_a_body_that_is_absent_is_400(open_service: Service) -> None:
    head = [
        "POST /execute HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
    ]
    assert NO_JSON in error_of(raw(open_service, *head))["message"]


BIG = ["POST /execute HTTP/1.1", "Host: localhost", "Content-Type: application/json"]


def test_a_body_over_1_mib_by_content_length_is_413_before_it_is_sent(
    open_service: Service,
) -> None:
    response = raw(open_service, *BIG, f"Content-Length: {MAX_BODY_BYTES + 1}")
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_entity_too_large"


def test_a_body_of_1_mib_is_read(open_service: Service) -> None:
    body = b'{"code": "1", "more": "' + b"x" * (MAX_BODY_BYTES - 25) + b'"}'
    assert len(body) == MAX_BODY_BYTES
    assert post(open_service, body).status_code == 200


@pytest.mark.parametrize("codec", ["utf-8", "utf-16"])
def test_a_body_of_very_many_values_is_400_and_a_string_that_holds_them_is_not(
    open_service: Service, codec: str
) -> None:
    """Parsing it would keep every other caller waiting, and take much memory."""
    values = "[]," * 105_000 + "0"
    a_quote = json.dumps('"')
    in_a_string = json.dumps('"' + values)
    for more, status in ((f"[{a_quote}, {values}]", 400), (in_a_string, 200)):
        body = '{"code": "1", "more": ' + more + "}"
        assert post(open_service, body.encode(codec)).status_code == status


@pytest.mark.parametrize("filler", [b"x", b" "], ids=["garbage", "blanks"])
def test_a_chunked_body_over_1_mib_is_413_without_waiting_for_its_end(
    open_service: Service, e2b: LocalE2B, filler: bytes
) -> None:
    # Its beginning is a good request: it must not be taken for the whole.
    created_before = e2b.state()["created"]
    start = b'd\r\n{"code": "1"}\r\n'
    chunk = b"10000\r\n" + filler * 0x10000 + b"\r\n"
    over = b"800\r\n" + filler * 0x800 + b"\r\n"  # gunicorn reads 1 KiB at a time
    response = raw(
        open_service, *BIG, "Transfer-Encoding: chunked", body=start + chunk * 16 + over
    )
    assert response.status_code == 413
    error_of(response)
    assert e2b.state()["created"] == created_before


def test_a_chunked_body_without_an_end_is_not_read_on_after_the_413(
    open_service: Service, e2b: LocalE2B
) -> None:
    created_before = e2b.state()["created"]
    head = "\r\n".join([*BIG, "Transfer-Encoding: chunked", "", ""]).encode()
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with socket.create_connection(
        ("127.0.0.1", open_service.port), timeout=10
    ) as connection:
        connection.sendall(head)
        with pytest.raises(OSError):  # the service has closed the connection
            for _ in range(300):  # more than any upload has
                connection.sendall(chunk)
    assert e2b.state()["created"] == created_before


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "PROPFIND"])
@pytest.mark.parametrize("path", ["/execute", "/mcp"])
def test_another_method_is_405_and_says_which_is_allowed(
    open_service: Service, path: str, method: str
) -> None:
    response = http.request(method, open_service.url + path, timeout=30)
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}
    assert error_of(response)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/nothing/",
        "/images//",
        "/execute/x/",
        "/execute%20/",
        "/Execute",
        "/health/x",
        "/static/index.html",
        "/proxy.py",
    ],
)
def test_an_unknown_path_is_404(open_service: Service, path: str) -> None:
    for response in (
        http.get(open_service.url + path, timeout=30),
        http.post(open_service.url + path),
    ):
        assert response.status_code == 404
        assert error_of(response)["code"] == "not_found"


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nothing"])
def test_an_unknown_path_of_the_code_api_is_an_error_that_librechat_reads(
    open_service: Service, path: str
) -> None:
    assert http.get(open_service.url + path, timeout=30).json()["error"] == "not_found"


SPELLINGS = [
    pytest.param(lambda path: path + "/", id="a slash at the end"),
    pytest.param(lambda path: path + "//", id="two"),
    pytest.param(lambda path: path.replace("/", "//"), id="all doubled"),
    pytest.param(lambda path: path.replace("/", "//") + "/", id="both"),
    pytest.param(lambda path: "/" + path, id="the first doubled"),
    pytest.param(lambda path: path.replace("/", "/%2F"), id="escaped"),
]


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_slashes_too_many_change_nothing_on_any_route(
    keyed_service: Service, tmp_path: Path, spelled: Callable[[str], str]
) -> None:
    """LIBRECHAT_CODE_BASEURL may end in one. The key is needed for each as ever."""
    app = create_app(Config(e2b_api_key=E2B_KEY, files_dir=tmp_path))
    rules = list(app.url_map.iter_rules())
    app.extensions["pool"].close()
    key = {"Authorization": f"Bearer {API_KEY}"}
    for rule in rules:
        path = re.sub("<.*?>", "x", rule.rule)
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            for headers in ({}, key):
                plain, other = (
                    http.request(
                        method,
                        keyed_service.url + spelling,
                        headers=headers,
                        allow_redirects=False,
                        timeout=30,
                    )
                    for spelling in (path, spelled(path))
                )
                assert other.status_code == plain.status_code
                assert other.headers.get("Allow") == plain.headers.get("Allow")
                assert other.status_code not in (301, 302, 307, 308)
                if not headers and path not in [*OPEN_PATHS, "/images/x", "/docs/x"]:
                    assert other.status_code in (401, 405, 200), path
                    assert method == "OPTIONS" or other.status_code != 200


@pytest.mark.parametrize("path", ["/execute/", "//execute", "//execute//"])
def test_code_runs_at_a_path_with_slashes_too_many(
    open_service: Service, path: str
) -> None:
    response = http.post(open_service.url + path, json={"code": "1"}, timeout=30)
    assert "ok" in text_of(response)


# --- the API key ----------------------------------------------------------------------

KEYS = {
    "none": [],
    "empty": ["Authorization:"],
    "scheme only": ["Authorization: Bearer"],
    "wrong": ["Authorization: Bearer wrong"],
    "its beginning": [f"Authorization: Bearer {API_KEY[:-1]}"],
    "more than it": [f"Authorization: Bearer {API_KEY}x"],
    "in capitals": [f"Authorization: Bearer {API_KEY.upper()}"],
    "non-ASCII bytes": [b"Authorization: Bearer \xff\xfe\xc3\xa9"],
    "with a non-ASCII byte at its end": [
        b"Authorization: Bearer " + API_KEY.encode() + b"\xff"
    ],
    "two headers, the right one first": [
        f"Authorization: Bearer {API_KEY}",
        "Authorization: Bearer wrong",
    ],
    "two headers, the right one last": [
        "Authorization: Bearer wrong",
        f"Authorization: Bearer {API_KEY}",
    ],
    "two blanks before it": [f"Authorization: Bearer  {API_KEY}"],
    "quoted": [f'Authorization: Bearer "{API_KEY}"'],
    "no scheme": [f"Authorization: {API_KEY}"],
    "scheme Basic": [f"Authorization: Basic {API_KEY}"],
    "scheme Token": [f"Authorization: Token {API_KEY}"],
    "under another name": [f"X-API-Key: {API_KEY}"],
}


@pytest.mark.parametrize("row", KEYS)
def test_without_the_api_key_it_is_401_with_www_authenticate_and_no_sandbox(
    keyed_service: Service, e2b: LocalE2B, row: str
) -> None:
    created_before = e2b.state()["created"]
    response = raw_execute(keyed_service, "Host: localhost", *KEYS[row])
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].lower().startswith("bearer")
    assert error_of(response)["code"] == "unauthorized"
    assert API_KEY not in response.text + str(response.headers)
    assert e2b.state()["created"] == created_before


@pytest.mark.parametrize("blanks", ["", " ", "\t ", "   "], ids=repr)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_api_key_a_run_is_served(
    keyed_service: Service, scheme: str, blanks: str
) -> None:
    # Blanks at the end are no part of a header's value (RFC 9110, section 5.5):
    # gunicorn strips them, so the service cannot see, and refuse, them.
    header = f"Authorization: {scheme} {API_KEY}{blanks}"
    assert raw_execute(keyed_service, "Host: localhost", header).status_code == 200


def test_a_key_in_the_address_or_the_body_opens_nothing(keyed_service: Service) -> None:
    query = f"api_key={API_KEY}&key={API_KEY}&access_token={API_KEY}"
    url = f"{keyed_service.url}/execute?{query}"
    body = {"code": "1", "api_key": API_KEY, "key": API_KEY}
    assert http.post(url, json=body, timeout=30).status_code == 401


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_looking_at_the_service_needs_no_key(keyed_service: Service, path: str) -> None:
    assert http.get(keyed_service.url + path, timeout=10).status_code == 200


def test_published_pictures_need_no_key(keyed_service: Service) -> None:
    # There are none here; test_published.py reads one.
    assert http.get(f"{keyed_service.url}/images/x.png", timeout=30).status_code == 404


def test_everything_else_needs_the_key(keyed_service: Service, tmp_path: Path) -> None:
    app = create_app(Config(e2b_api_key=E2B_KEY, files_dir=tmp_path))
    rules = list(app.url_map.iter_rules())
    app.extensions["pool"].close()
    open_rules = {*OPEN_PATHS, "/docs/<name>", "/images/<name>"}
    others = [rule for rule in rules if rule.rule not in open_rules]
    assert {"/execute", "/mcp", "/metrics"} <= {rule.rule for rule in others}
    for rule in others:
        path = re.sub("<.*?>", "x", rule.rule)
        for method in rule.methods or ():
            response = http.request(method, keyed_service.url + path, timeout=30)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"


# --- web pages of other origins, and names that lead here -----------------------------

HOSTS = {
    "127.0.0.1": 200,
    "127.0.0.1:1": 200,
    "192.0.2.7:3001": 200,
    "[::1]:3001": 200,
    "[2001:db8::1]": 200,
    "localhost": 200,
    "LocalHost:3001": 200,
    "a.localhost": 200,
    "999.1.1.1": 200,
    "e2b-proxy:3001": 200,
    "code.example.com": 200,
    "CODE.example.com:443": 200,
    "other.example.com": 200,
    "evil.example": 403,
    "evil.example:3001": 403,
    "evil.example.": 403,
    "sub.code.example.com": 403,
    "code.example.com.evil.example": 403,
    "code.example.com, other.example.com": 403,
    "127.0.0.1.evil.example": 403,
    "localhost.evil.example": 403,
    "localhost, evil.example": 403,
    "127.1": 403,
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_that_an_attacker_can_make_lead_here_is_403_without_a_key(
    open_service: Service, e2b: LocalE2B, host: str
) -> None:
    created_before = e2b.state()["created"]
    response = raw_execute(open_service, f"Host: {host}")
    if HOSTS[host] == 200:
        assert response.status_code == 200
    else:
        assert response.status_code == 403
        assert "ALLOWED_HOSTS" in error_of(response)["message"]
        assert e2b.state()["created"] == created_before


def test_two_host_headers_do_not_pass_as_the_good_one(open_service: Service) -> None:
    for hosts in (("localhost", "evil.example"), ("evil.example", "localhost")):
        response = raw_execute(open_service, *[f"Host: {host}" for host in hosts])
        assert response.status_code in (400, 403)


def test_a_request_of_http_1_0_needs_no_host(open_service: Service) -> None:
    assert raw_execute(open_service, version="1.0").status_code == 200


@pytest.mark.parametrize("host", HOSTS)
def test_with_the_api_key_any_host_is_served(keyed_service: Service, host: str) -> None:
    authorization = f"Authorization: Bearer {API_KEY}"
    assert raw_execute(keyed_service, f"Host: {host}", authorization).status_code == 200


HERE = "127.0.0.1:3001"
ORIGINS = {
    ("http://127.0.0.1:3001", HERE): 200,
    ("https://127.0.0.1:3001", HERE): 200,
    ("HTTP://127.0.0.1:3001", HERE): 200,
    ("http://localhost", "localhost"): 200,
    ("http://localhost", "localhost:80"): 200,
    ("https://code.example.com", "code.example.com"): 200,
    ("https://code.example.com", "code.example.com:443"): 200,
    ("http://127.0.0.1:3002", HERE): 403,
    ("http://127.0.0.1", HERE): 403,
    ("http://localhost:3001", HERE): 403,
    ("http://evil.example", HERE): 403,
    ("http://127.0.0.1:3001.evil.example", HERE): 403,
    ("http://evil.example#127.0.0.1:3001", HERE): 403,
    ("http://127.0.0.1:3001@evil.example", HERE): 403,
    ("http://evil.example@127.0.0.1:3001", HERE): 403,
    ("https://localhost", "localhost:80"): 403,
    ("null", HERE): 403,
    ("", HERE): 403,
    ("127.0.0.1:3001", HERE): 403,
    ("//127.0.0.1:3001", "evil"): 403,
    ("http://[", HERE): 403,
    ("file://", HERE): 403,
}


@pytest.mark.parametrize(
    ("origin", "host"),
    ORIGINS,
    ids=[f"{origin!r} at {host}" for origin, host in ORIGINS],
)
def test_an_origin_must_have_the_host_and_port_that_were_asked(
    open_service: Service, e2b: LocalE2B, origin: str, host: str
) -> None:
    created_before = e2b.state()["created"]
    response = raw_execute(open_service, f"Host: {host}", f"Origin: {origin}")
    assert response.status_code == ORIGINS[origin, host]
    if response.status_code == 403:
        assert "another origin" in error_of(response)["message"]
        assert e2b.state()["created"] == created_before


def test_two_origins_are_not_taken_for_the_good_one(open_service: Service) -> None:
    for origins in (HERE, "evil.example"), ("evil.example", HERE):
        headers = [f"Origin: http://{origin}" for origin in origins]
        assert raw_execute(open_service, f"Host: {HERE}", *headers).status_code == 403


def test_a_cross_origin_post_is_403_even_with_the_key(keyed_service: Service) -> None:
    headers = [f"Host: {HERE}", f"Authorization: Bearer {API_KEY}"]
    assert (
        raw_execute(keyed_service, *headers, "Origin: http://evil.example").status_code
        == 403
    )
    assert (
        raw_execute(keyed_service, *headers, f"Origin: http://{HERE}").status_code
        == 200
    )


@pytest.mark.parametrize(
    "path", ["/execute", "/mcp", "/health", "/openapi.json", "/nothing"]
)
@pytest.mark.parametrize(
    "header",
    [{"Origin": "http://evil.example"}, {"Host": "evil.example"}],
    ids=["Origin", "Host"],
)
def test_every_post_of_a_foreign_page_is_403(
    open_service: Service, path: str, header: dict[str, str]
) -> None:
    response = http.post(open_service.url + path, headers=header, timeout=30)
    assert response.status_code == 403
    error_of(response)


def test_a_foreign_page_deletes_nothing(open_service: Service) -> None:
    for header in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        url = f"{open_service.url}/v1/files/a/b"
        assert http.delete(url, headers=header, timeout=30).status_code == 403


def test_no_other_origin_is_ever_let_in(open_service: Service) -> None:
    asks = {
        "Origin": "http://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    for response in (
        http.options(f"{open_service.url}/execute", headers=asks, timeout=30),
        http.post(
            f"{open_service.url}/execute", json={"code": "1"}, headers=asks, timeout=30
        ),
        http.get(f"{open_service.url}/health", headers=asks, timeout=30),
    ):
        assert not [
            name
            for name in response.headers
            if name.lower().startswith("access-control")
        ]


# --- looking at the service -----------------------------------------------------------


def test_health_tells_the_version_the_keys_and_how_full_it_is(
    open_service: Service, keyed_service: Service
) -> None:
    expected = {
        "status": "healthy",
        "version": VERSION,
        "e2b_key_configured": True,
        "api_key_required": False,
        "code_api": False,
        "runs_in_flight": 0,
        "max_concurrent_runs": 20,
        "warm_ready": 0,
        "idle_sessions": 0,
        "sandbox_seconds_per_day": 0,
    }
    health = http.get(f"{open_service.url}/health", timeout=30).json()
    assert health["sandbox_seconds_today"] >= 0
    assert health["lost_sandboxes"] >= 0  # of a create that another test left so
    assert health | expected == health
    assert not re.search("e2b_[0-9a-f]", str(health))  # the key itself
    assert (
        http.get(f"{keyed_service.url}/health", timeout=30).json()["api_key_required"]
        is True
    )


@pytest.mark.parametrize(
    ("e2b_api_url", "is_local"),
    [
        ("http://127.0.0.1:39999", True),
        ("http://LOCALHOST", True),
        ("https://api.e2b.example:8443/", False),
        ("", False),
    ],
)
def test_health_says_whether_e2b_is_on_this_machine(
    e2b_api_url: str, is_local: bool
) -> None:
    app = create_app(Config(e2b_api_key=E2B_KEY, e2b_api_url=e2b_api_url))
    health = app.test_client().get("/health").get_json()
    app.extensions["pool"].close()
    assert health["e2b_on_this_machine"] is is_local


def test_health_counts_the_run_that_is_under_way(
    open_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script({"run": OK_RUN | {"delay_s": 1}})
    runs_before = len(run_requests(e2b))
    with ThreadPoolExecutor(1) as caller:
        run = caller.submit(execute, open_service)
        e2b.wait_for(lambda _: len(run_requests(e2b)) > runs_before, 30)
        assert (
            http.get(f"{open_service.url}/health", timeout=30).json()["runs_in_flight"]
            == 1
        )
        run.result()
    assert (
        http.get(f"{open_service.url}/health", timeout=30).json()["runs_in_flight"] == 0
    )


def test_health_touches_nothing_outside(
    default_service: Service, scripted_e2b: LocalE2B
) -> None:
    assert http.get(f"{default_service.url}/health", timeout=30).status_code == 200
    assert scripted_e2b.state()["requests"] == []


def list_requests(e2b: LocalE2B) -> int:
    return sum(request["kind"] == "list" for request in e2b.state()["requests"])


def test_ready_asks_e2b_once_for_many_callers(
    open_service: Service, e2b: LocalE2B
) -> None:
    asked_before = list_requests(e2b)
    for _ in range(10):
        response = http.get(f"{open_service.url}/ready", timeout=10)
        assert (response.status_code, response.json()) == (200, {"status": "ready"})
    assert list_requests(e2b) == asked_before + 1


def test_ready_says_what_to_check_when_e2b_refuses_the_key(
    start_shared: Callable[..., Service], e2b: LocalE2B
) -> None:
    refused = start_shared(E2B_API_KEY="e2b_refused")
    e2b.set_script({"run": OK_RUN, "api_key": E2B_KEY})
    asked_before = list_requests(e2b)
    for _ in range(3):
        response = http.get(f"{refused.url}/ready", timeout=10)
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        assert "E2B_API_KEY" in error_of(response)["message"]
        assert "e2b_refused" not in response.text
    # Once; another service may have looked for a sandbox that was lost.
    assert list_requests(e2b) - asked_before < 3
    assert http.get(f"{refused.url}/health", timeout=30).json()["status"] == "healthy"
    run = execute(refused)
    assert "refused this service's key" in text_of(run)
    assert run.headers["X-Run-Outcome"] == "unavailable"


def test_the_page_runs_its_own_script_and_nothing_else(open_service: Service) -> None:
    nonces = set()
    for _ in range(2):
        page = http.get(f"{open_service.url}/", timeout=30)
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = page.headers["Content-Security-Policy"].split(";")
        rules = {name: sources for name, *sources in (rule.split() for rule in policy)}
        assert (
            rules["default-src"]
            == rules["frame-ancestors"]
            == rules["form-action"]
            == ["'none'"]
        )
        assert rules["connect-src"] == ["'self'"]
        assert rules["img-src"] == ["'self'", "data:"]
        [source] = rules["script-src"]
        nonce = re.fullmatch(r"'nonce-([\w-]{22,})'", source)
        assert nonce
        scripts = re.findall(r"<script\b[^>]*>", page.text)
        assert scripts and all(f'nonce="{nonce[1]}"' in script for script in scripts)
        nonces.add(nonce[1])
    assert len(nonces) == 2


METRICS = {
    "e2b_proxy_runs": "counter",
    "e2b_proxy_step_seconds": "histogram",
    "e2b_proxy_in_flight": "gauge",
    "e2b_proxy_warm_ready": "gauge",
    "e2b_proxy_idle_sessions": "gauge",
    "e2b_proxy_lost_sandboxes": "gauge",
    "e2b_proxy_kills_failed": "counter",
    "e2b_proxy_sandbox_seconds": "counter",
    "e2b_proxy_picture_bytes": "counter",
    "e2b_proxy_execs": "counter",
    "e2b_proxy_uploads": "counter",
    "e2b_proxy_upload_bytes": "counter",
    "e2b_proxy_download_bytes": "counter",
    "e2b_proxy_max_concurrent_runs": "gauge",
    "e2b_proxy_budget_seconds": "gauge",
    "e2b_proxy_spent_seconds": "gauge",
    "e2b_proxy_e2b_failures": "counter",
    "e2b_proxy_files_bytes": "gauge",
    "e2b_proxy_files_max_bytes": "gauge",
    "e2b_proxy_files_sessions": "gauge",
    "e2b_proxy_files_removed": "counter",
}


def test_metrics_count_what_was_done(keyed_service: Service, e2b: LocalE2B) -> None:
    key = {"Authorization": f"Bearer {API_KEY}"}

    def sample(name: str, **labels: str) -> float:
        response = http.get(f"{keyed_service.url}/metrics", headers=key, timeout=30)
        families = list(text_string_to_metric_families(response.text))
        own = {f.name: f.type for f in families if f.name.startswith("e2b_proxy_")}
        assert {
            name: own[name] for name in own if not name.endswith("_created")
        } == METRICS
        samples = [sample for family in families for sample in family.samples]
        found = [s.value for s in samples if s.name == name and s.labels == labels]
        return found[0] if found else 0

    def watched() -> list[float]:
        return [
            sample("e2b_proxy_runs_total", outcome="ok"),
            sample("e2b_proxy_runs_total", outcome="error"),
            sample("e2b_proxy_picture_bytes_total"),
            sample("e2b_proxy_step_seconds_count", step="create"),
            sample("e2b_proxy_step_seconds_count", step="run"),
        ]

    png = picture("PNG")
    before = watched()
    answer_with(e2b, result(png=encoded(png)))
    assert post(keyed_service, '{"code": "1"}', **key).status_code == 200
    answer_with(e2b, error("ValueError", "no"))
    assert post(keyed_service, '{"code": "1"}', **key).status_code == 200
    grown = [now - then for now, then in zip(watched(), before, strict=True)]
    assert grown == [1, 1, len(png), 2, 2]


# --- headers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/execute", 200), ("POST", "/execute/x", 404), ("GET", "/execute", 405)]
    + [
        ("GET", path, 200)
        for path in ("/health", "/ready", "/openapi.json", "/metrics", "/")
    ],
)
def test_every_response_is_for_this_caller_only_and_is_what_it_says_it_is(
    open_service: Service, method: str, path: str, status: int
) -> None:
    body = {"code": "1"} if method == "POST" else None
    response = http.request(method, open_service.url + path, json=body, timeout=10)
    assert response.status_code == status
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])
    assert "Set-Cookie" not in response.headers


def test_a_request_id_goes_through_to_the_response_and_the_log(
    open_service: Service,
) -> None:
    for response in (
        post(open_service, '{"code": "1"}', **{"X-Request-Id": "the.request_id-1"}),
        post(open_service, "", **{"X-Request-Id": "the.request_id-1"}),
    ):
        assert response.headers["X-Request-Id"] == "the.request_id-1"
    assert '"status": 200' in open_service.wait_for_log("the.request_id-1")


@pytest.mark.parametrize(
    "given",
    [b"", b"a b", b"x" * 65, b"a\xc3\xa9", b'"}, {"a": "', b"a; Set-Cookie: x=1"],
    ids=repr,
)
def test_a_request_id_that_is_none_is_replaced(
    open_service: Service, given: bytes
) -> None:
    response = raw_execute(open_service, "Host: localhost", b"X-Request-Id: " + given)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])


# --- real code ------------------------------------------------------------------------


SHOWN = """\
import sys
import matplotlib.pyplot as plt
import numpy as np
import pandas
print('Hello')
print('żółć \N{PARTY POPPER}')
print('日本', file=sys.stderr)
x = np.linspace(0, 2 * np.pi, 200)
plt.plot(x, np.sin(x))
plt.show()
for colour in ('red', 'blue'):
    plt.figure(facecolor=colour)
    plt.plot([1, 2])
    plt.show()
pandas.DataFrame({'name': ['a', 'b'], 'count': [1, 22]})"""


def test_real_code_prints_and_has_a_value_a_data_frame_as_a_table_of_text(
    shown: requests.Response,
) -> None:
    # No placeholder of a figure, nor anything else, beside these and the code.
    assert text_of(shown) == (
        "**Console Output:**\n```\nHello\nżółć \N{PARTY POPPER}\n```\n\n"
        "**Stderr:**\n```\n日本\n```\n\n"
        "**Result:**\n```\n  name  count\n0    a      1\n1    b     22\n```\n\n"
        f"**Executed Code:**\n```python\n{SHOWN}\n```"
    )
    assert shown.headers["X-Run-Outcome"] == "ok"


def test_a_sine_wave_comes_back_as_a_png_that_shows_something(
    shown: requests.Response,
) -> None:
    with Image.open(io.BytesIO(decoded(urls_of(shown)[0]))) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        red, green, blue = image.convert("RGB").getextrema()
        assert (red[0], green[0], blue[0]) < (
            100,
            100,
            200,
        )  # matplotlib's first blue, and black
        assert (red[1], green[1], blue[1]) == (255, 255, 255)


def test_several_figures_are_as_many_pictures_in_their_order(
    shown: requests.Response,
) -> None:
    corners = []
    for url in urls_of(shown):
        with Image.open(io.BytesIO(decoded(url))) as image:
            corners.append(image.convert("RGB").getpixel((1, 1)))
    assert corners == [(255, 255, 255), (255, 0, 0), (0, 0, 255)]


def test_an_exception_points_to_the_lines_of_the_callers_code(
    open_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script({})  # in a kernel
    code = "def half(x):\n    return x / zero\n\nzero = 0\nprint('before')\nhalf(1)"
    response = execute(open_service, code)
    text, _, _ = text_of(response).partition("**Executed Code:**")
    assert text.startswith(
        "**Console Output:**\n```\nbefore\n```\n\n**Execution Error:**\n```\n"
    )
    assert text.endswith("ZeroDivisionError: division by zero\n```\n\n")
    assert re.findall(r"Cell In\[1\], line (\d+)", text) == ["6", "2"]
    assert re.findall(r"-> +(\d+) (.*)", text) == [
        ("6", "half(1)"),
        ("2", "    return x / zero"),
    ]
    assert "\x1b" not in text
    assert (
        "E2B" not in text and "environ" not in text
    )  # E2B's own lines before the first cell
    assert response.headers["X-Run-Outcome"] == "error"
