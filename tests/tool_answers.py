"""What the tools are answered: the good answers, and what comes from something between.

Each is in the form that requests-mock takes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import requests
from builders import encoded, padded_png
from requests_mock import Mocker
from urllib3 import HTTPResponse

PORT = 3001
BASE = f"http://127.0.0.1:{PORT}"
HTML = "<html><h1>Bad Gateway</h1></html>"
PNG_URI = "data:image/png;base64," + encoded(padded_png(1000))
GIF_URI = "data:image/png;base64," + encoded(b"GIF89a")
FILE = {"id": "f2", "name": "b", "storage_session_id": "s2"}

Fields = dict[str, Any]


def play(mocker: Mocker, answers: dict[str, Fields]) -> None:
    for asked, answer in answers.items():
        method, path = asked.split()
        mocker.request(method, BASE + path, **answer)


# --- good answers ---------------------------------------------------------------------


def run_reply(
    code: str, says: str = "ok", urls: tuple[str, ...] = (), outcome: str = "ok"
) -> Fields:
    text = f"**Console Output:**\n```\n{says}\n```\n\n"
    text += f"**Executed Code:**\n```python\n{code}\n```"
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = [[{"type": "text", "text": text}], {"content": pictures}]
    return {"json": body, "headers": {"X-Run-Outcome": outcome}}


def exec_reply(**changed: Any) -> Fields:
    body = {"session_id": "s2", "stdout": "", "stderr": "", "files": []}
    return {"json": {**body, **changed}}


def uploaded(**changed: Any) -> Fields:
    body = {
        "message": "success",
        "storage_session_id": "s1",
        "files": [{"fileId": "f1", "filename": "a"}],
    }
    return {"json": {**body, **changed}}


def refusal(message: str = "Every slot is taken. Try again.", **more: Any) -> Fields:
    error = {"code": "service_unavailable", "message": message, "request_id": "r"}
    headers = {"Retry-After": "5"}
    return {"json": {"error": error}, "status_code": 503, "headers": headers, **more}


def tool_result(
    text: str = "number 7", number: int = 7, failed: bool = False, drawn: int = 0
) -> Fields:
    png = {"type": "image", "mimeType": "image/png", "data": PNG_URI.split(",")[1]}
    content = [{"type": "text", "text": text}, *[png] * drawn]
    result = {"content": content, "isError": failed}
    return {"json": {"jsonrpc": "2.0", "id": number, "result": result}}


def bad_request(**more: Any) -> Fields:
    error = {"code": "bad_request", "message": "no", "request_id": "r"}
    headers = {"X-Request-Id": "r"}
    return {"json": {"error": error}, "status_code": 400, "headers": headers, **more}


# --- what something in between makes of them ------------------------------------------


def body_of(answer: Fields) -> bytes:
    return answer.get("content") or json.dumps(answer.get("json", {})).encode()


def cut_connection(answer: Fields) -> Fields:
    """The connection ends in the middle of the body, as urllib3 sees it."""
    body = body_of(answer)
    given = answer.get("headers", {})
    raw = HTTPResponse(
        io.BytesIO(body[: len(body) // 2]),
        {**given, "Content-Length": str(len(body))},
        status=answer.get("status_code", 200),
        preload_content=False,
    )
    return {"raw": raw}


def cut_body(answer: Fields) -> Fields:
    """The whole reply of something that has kept half of the body."""
    body = body_of(answer)
    whole = {
        name: answer[name] for name in ("headers", "status_code") if name in answer
    }
    return {**whole, "content": body[: len(body) // 2], "status_code": 200}


BETWEEN: dict[str, Callable[[Fields], Fields]] = {
    "HTML": lambda _: {"text": HTML, "headers": {"X-Run-Outcome": "ok"}},
    "502": lambda _: {"text": HTML, "status_code": 502},
    "502 with the right body": lambda good: {**good, "status_code": 502},
    "503": lambda _: {
        "text": HTML,
        "status_code": 503,
        "headers": {"Retry-After": "1"},
    },
    "redirect": lambda good: {
        **good,
        "status_code": 302,
        "headers": {"Location": f"{BASE}/elsewhere"},
    },
    "nothing": lambda _: {"content": b""},
    "null": lambda _: {"json": None, "text": "null"},
    "other JSON": lambda _: {"json": {"hello": "world"}},
    "cut connection": cut_connection,
    "cut body": cut_body,
    "reset": lambda _: {"exc": requests.ConnectionError("reset by peer")},
    "nothing within the limit": lambda _: {"exc": requests.ReadTimeout("timed out")},
}
