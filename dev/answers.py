"""How our own tools ask the service and the stand-in, and what they conclude.

Every figure of the bench and every verdict of the soak rests on an answer. Here is what
makes an answer the one that was asked for: each function takes one, returns what it
says, and raises WrongAnswer when it says something else. tests/tools/test_answers.py
shows for each that it does.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import requests
from launch import LOOPBACK
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import ReadTimeoutError

JSON_TYPE = {"Content-Type": "application/json"}
FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=x"}
PIECE_BYTES = 1_000_000
# What the tools' runs draw: how its data URI begins, and how the picture itself does.
BEGINNINGS = {"data:image/png": b"\x89PNG\r\n\x1a\n", "data:image/svg+xml": b"<svg"}
# What the service says to a caller for whom no slot is free.
FULL = "slot is taken"
# Stands between what a run said and the code that it was asked to run.
ECHO = "**Executed Code:**"


class WrongAnswer(Exception):
    """What was asked, and what came instead of the answer, in one line."""


class NoAnswer(WrongAnswer):
    """The connection failed, or was cut before the answer was whole."""


class TooLate(NoAnswer):
    """No whole answer came within the limit."""


@dataclass(frozen=True)
class Answer:
    """A whole answer. A redirect is one too: the service never sends any."""

    asked: str  # "GET /health", for whoever reads that it was wrong
    status: int
    headers: Mapping[str, str]  # found by their names in any case
    body: bytes

    def wrong(self, expected: str) -> WrongAnswer:
        """To be raised: this is not what was expected."""
        return WrongAnswer(
            f"{self.asked} was answered {self.status}, not with {expected}: "
            f"{self.body[:200]!r}"
        )


# --- asking ---------------------------------------------------------------------------


class Client:
    """Asks 127.0.0.1. How it does so is the business of each kind."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Raises NoAnswer unless the whole answer comes within the client's limit."""
        asked_at = time.monotonic()
        answer = self._ask(method, path, body, dict(headers or {}))
        took_s = time.monotonic() - asked_at
        # The limit that each kind gives to its connection is for each piece that comes,
        # this one is for all.
        if took_s > self._timeout_s:
            limit = f"more than {self._timeout_s:g} s"
            raise TooLate(f"{answer.asked} took {took_s:.1f} s, {limit}")
        return answer

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes],
        headers: dict[str, str],
    ) -> Answer:
        raise NotImplementedError

    def close(self) -> None:
        """Close the connections. The next question opens a new one."""
        raise NotImplementedError


class RequestsClient(Client):
    """Asks through `requests`. It keeps its connections."""

    def __init__(self, port: int, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self._base = f"http://{LOOPBACK}:{port}"
        self._session = requests.Session()
        self._session.trust_env = False  # nothing here goes through a proxy

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes],
        headers: dict[str, str],
    ) -> Answer:
        asked = f"{method} {path}"
        try:
            with self._session.request(
                method,
                self._base + path,
                data=body,
                headers=headers,
                timeout=self._timeout_s,
                allow_redirects=False,
                stream=True,
            ) as reply:
                whole = b"".join(reply.iter_content(PIECE_BYTES))
        except requests.RequestException as exc:
            raise _no_answer(asked, exc, _is_timeout(exc)) from exc
        return Answer(asked, reply.status_code, reply.headers, whole)

    def close(self) -> None:
        self._session.close()


def ask_once(
    port: int, method: str, path: str, timeout_s: float, body: bytes = b""
) -> Answer:
    """Ask through `requests`, over a connection of its own. Raises NoAnswer."""
    client = RequestsClient(port, timeout_s)
    try:
        return client.ask(method, path, body)
    finally:
        client.close()


class TimedClient(Client):
    """Asks over one connection, for callers that measure how long it takes.

    By http.client: `requests` takes a quarter of a millisecond more for each call. That
    would count in the ratio to the bare SDK and in the runs a second.
    """

    def __init__(self, port: int, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_s)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes],
        headers: dict[str, str],
    ) -> Answer:
        asked = f"{method} {path}"
        try:
            self._connection.request(method, path, body, headers)
            reply = self._connection.getresponse()
            whole = reply.read()
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise _no_answer(asked, exc, isinstance(exc, TimeoutError)) from exc
        return Answer(asked, reply.status, _headers_of(reply), whole)

    def close(self) -> None:
        self._connection.close()


def _headers_of(reply: http.client.HTTPResponse) -> Mapping[str, str]:
    return CaseInsensitiveDict(reply.getheaders())


def _no_answer(asked: str, exc: Exception, is_timeout: bool) -> NoAnswer:
    kind = TooLate if is_timeout else NoAnswer
    return kind(f"{asked} brought no answer: {exc!r}")


def _is_timeout(exc: requests.RequestException) -> bool:
    """In the midst of a body `requests` has a timeout inside of a ConnectionError."""
    inner = exc.args[0] if exc.args else None
    return isinstance(exc, requests.Timeout) or isinstance(inner, ReadTimeoutError)


# --- concluding -----------------------------------------------------------------------


def json_of(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except ValueError:
        raise answer.wrong("JSON") from None


def health_of(answer: Answer) -> dict[str, Any]:
    """What GET /health says of a service that is well."""
    health = json_of(answer)
    match health:
        case {"status": "healthy", "runs_in_flight": int(), "warm_ready": int()}:
            if answer.status == 200:
                return dict(health)
    raise answer.wrong("the health of e2b-proxy")


def state_of(answer: Answer) -> dict[str, Any]:
    """What the stand-in says of itself at GET /_state."""
    state = json_of(answer)
    match state:
        case {"alive": int(), "sandbox_seconds": int() | float(), "requests": list()}:
            if answer.status == 200:
                return dict(state)
    raise answer.wrong("the state of the stand-in")


def check_script_taken(answer: Answer) -> None:
    """The stand-in's answer to PUT /_script."""
    if answer.status != 204:
        raise answer.wrong("a 204: the script was not taken")


def check_error(answer: Answer, status: int) -> None:
    """The service itself, and nothing before it, has refused a bad request."""
    match json_of(answer):
        case {"error": {"message": str()}}:
            if answer.status == status and "X-Request-Id" in answer.headers:
                return
    raise answer.wrong(f"an error of the service's own and a {status}")


@dataclass(frozen=True)
class Reply:
    """What came of a run."""

    outcome: str  # over MCP only "ok" or "failed"
    text: str  # without the code
    pictures: tuple[str, ...] = ()  # data URIs
    over_mcp: bool = False

    def says(self, text: str) -> bool:
        """Whether the text is in it, and not as a part of other words or numbers."""
        return bool(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", self.text))


def reply_of(answer: Answer, code: str) -> Reply:
    """What POST /execute says of a run of this code, and of no other."""
    if answer.status != 200:
        raise answer.wrong("a run's reply")
    match json_of(answer):
        case [[{"type": "text", "text": str(whole)}], {"content": list(content)}]:
            text, heading, echo = whole.partition(ECHO)
        case _:
            raise answer.wrong("LibreChat's two-element array")
    pictures = []
    for part in content:
        match part:
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                pictures.append(url)
            case _:
                raise answer.wrong("pictures")
    # In the text a run's code is repeated: what it is to print stands in it too.
    if not heading or code.strip() not in echo:
        raise answer.wrong("the reply to this code")
    outcome = answer.headers.get("X-Run-Outcome")
    if not outcome:
        raise answer.wrong("an X-Run-Outcome")
    return Reply(outcome, text, tuple(pictures))


def reply_over_mcp(answer: Answer, message_id: int) -> Reply:
    """What a call of the tool says, in the answer to this message and to no other."""
    if answer.status != 200:
        raise answer.wrong("a tool's result")
    match json_of(answer):
        case {
            "jsonrpc": "2.0",
            "id": int(same),
            "result": {
                "content": [{"type": "text", "text": str(text)}, *parts],
                "isError": bool(is_error),
            },
        } if same == message_id:
            pictures = []
            for part in parts:
                match part:
                    case {"type": "image", "mimeType": str(kind), "data": str(data)}:
                        pictures.append(f"data:{kind};base64,{data}")
                    case _:
                        raise answer.wrong("images after the text")
            outcome = "failed" if is_error else "ok"
            return Reply(outcome, text, tuple(pictures), over_mcp=True)
    raise answer.wrong(f"the result of message {message_id}")


def check_ran(
    answer: Answer,
    code: str,
    prints: str = "",
    pictures: int = 0,
    picture_bytes: int = 0,
) -> None:
    """A run of this code ended well, with that line printed and so many pictures.

    `picture_bytes`: the size that each has at least.
    """
    reply = reply_of(answer, code)
    if reply.outcome != "ok":
        raise answer.wrong(f"the outcome ok but {reply.outcome}")
    if prints and prints not in reply.text.splitlines():
        raise answer.wrong(f"what the code prints ({prints!r})")
    if len(reply.pictures) != pictures:
        raise answer.wrong(f"{pictures} pictures but {len(reply.pictures)}")
    for uri in reply.pictures:
        size_bytes = len(picture_in(uri, answer))
        if size_bytes < picture_bytes:
            raise answer.wrong(
                f"a picture of {picture_bytes:,} bytes but of {size_bytes:,}"
            )


def picture_in(uri: str, answer: Answer) -> bytes:
    """The picture in a data URI of this answer, which begins as its kind does."""
    kind, separator, encoded = uri.partition(";base64,")
    beginning = BEGINNINGS.get(kind)
    if not beginning or not separator:
        raise answer.wrong("a picture in its data URI")
    try:
        picture = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise answer.wrong("a picture in base64") from None
    if not picture.startswith(beginning):
        raise answer.wrong(f"a picture of the kind {kind}")
    return picture


def is_refused_as_full(answer: Answer) -> bool:
    """Whether POST /execute was refused because each slot is taken; False for a 200.

    Raises WrongAnswer for anything else: what stands between us and the service answers
    503 too.
    """
    if answer.status == 200:
        return False
    if answer.status == 503 and answer.headers.get("Retry-After", "").isdigit():
        match json_of(answer):
            case {"error": {"message": str(message)}} if FULL in message:
                return True
    raise answer.wrong("a run, or a refusal because each slot is taken")


def is_refused_as_full_by_code_api(answer: Answer) -> bool:
    """The same of LibreChat's code interpreter, which answers 429."""
    if answer.status == 200:
        return False
    if answer.status == 429 and answer.headers.get("Retry-After", "").isdigit():
        match json_of(answer):
            case {"error": "rate_limited", "message": str(message)} if FULL in message:
                return True
    raise answer.wrong("an exec, or a refusal because each slot is taken")


def ref_of(answer: Answer) -> dict[str, Any]:
    """The reference to the one file that went up, as an exec takes it."""
    if answer.status == 200:
        match json_of(answer):
            case {
                "message": "success",
                "storage_session_id": str(session_id),
                "files": [{"fileId": str(file_id), "filename": str(name)}],
            }:
                return {"id": file_id, "storage_session_id": session_id, "name": name}
    raise answer.wrong("an uploaded file")


@dataclass(frozen=True)
class Exec:
    """What came of a script of the code API."""

    session_id: str
    stdout: str
    stderr: str
    file_ids: tuple[str, ...]


def exec_of(answer: Answer) -> Exec:
    """What POST /v1/exec says of a script, whatever became of it."""
    if answer.status != 200:
        raise answer.wrong("an exec's reply")
    match json_of(answer):
        case {
            "session_id": str(session_id),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "files": list(files),
        }:
            ids = []
            for file in files:
                match file:
                    case {"id": str(file_id), "storage_session_id": str(of)}:
                        if of != session_id:
                            raise answer.wrong("files of its own session")
                        ids.append(file_id)
                    case _:
                        raise answer.wrong("files that have an id")
            return Exec(session_id, stdout, stderr, tuple(ids))
    raise answer.wrong("an exec's reply")


def check_exec(answer: Answer, stdout: str, files: int = 0) -> Exec:
    """A script ended well, printed this, and wrote so many files."""
    done = exec_of(answer)
    if done.stderr:
        raise answer.wrong("an empty stderr")
    if done.stdout != stdout:
        raise answer.wrong(f"what the script prints ({stdout!r})")
    if len(done.file_ids) != files:
        raise answer.wrong(f"{files} files but {len(done.file_ids)}")
    return done


def check_file(answer: Answer, data: bytes) -> None:
    """A download is the file, from its first byte to its last."""
    if answer.status != 200:
        raise answer.wrong("a file")
    if answer.body != data:
        raise answer.wrong(f"the file's {len(data):,} bytes but {len(answer.body):,}")


def check_size(answer: Answer, size_bytes: int) -> None:
    """What the code API says of a file that it keeps."""
    if answer.status == 200:
        match json_of(answer):
            case {"size": int(size)} if size == size_bytes:
                return
    raise answer.wrong(f"a file of {size_bytes:,} bytes")
