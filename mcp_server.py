"""One MCP message in, one out: a stateless server with one tool. Pure.

Two kinds of clients ask, and each request alone tells which one it is from. Old ones
begin with `initialize` and agree on a version:
https://modelcontextprotocol.io/specification/2025-11-25. New ones have no handshake:
each of their requests says its version, in `_meta` and in a header:
https://modelcontextprotocol.io/specification/2026-07-28.

LibreChat takes a JSON-RPC error for a call or a login that failed. So all that the
model should read is sent as a result.
"""

import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from json_body import parse_json

NEW_VERSIONS = ("2026-07-28",)
# LibreChat 0.8.8's client asks for the first of these, and accepts any of them.
OLD_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05", "2024-10-07")
_VERSIONS = [*NEW_VERSIONS, *OLD_VERSIONS]
# JSON-RPC's own numbers: https://www.jsonrpc.org/specification#error_object
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
UNKNOWN_METHOD = -32601
INVALID_PARAMS = -32602
# MCP's numbers.
HEADER_MISMATCH = -32020
UNSUPPORTED_VERSION = -32022

# The names of what a new request and its answer have in `_meta`.
_VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
_CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
_SERVER_KEY = "io.modelcontextprotocol/serverInfo"
# How a header carries a text that is not plain ASCII: `=?base64?ZcOp?=`.
_ENCODED_HEADER = r"=\?base64\?([A-Za-z0-9+/]*={0,2})\?="

_CAPABILITIES: dict[str, Any] = {"tools": {}}
# A new client may keep the tool and the instructions for so long, whoever it asks for.
# They change when the service is started with other settings.
_CACHING = {"ttlMs": 60_000, "cacheScope": "public"}
# LibreChat ignores isError. It shows a result in red, and in full, only if its text
# begins with this.
_FAILED = "Error: tool call failed: "

JsonObject = dict[str, Any]
# Returns a header's value by its name in any case, None if there is none.
Header = Callable[[str], str | None]


@dataclass(frozen=True)
class Server:
    """What is served: the tool, what a model is told of it, and what a call does."""

    version: str
    tool: JsonObject
    instructions: str
    call: Callable[[JsonObject, int | str], JsonObject]  # arguments, the request's id
    cancel: Callable[[int | str], None]  # the id of a call that may be under way

    def info(self) -> JsonObject:
        return {"name": "e2b-proxy", "version": self.version}


class _Refused(Exception):
    """A request that is answered with a JSON-RPC error."""

    def __init__(self, code: int, text: str, data: JsonObject | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.data = data


def error(
    message_id: object, code: int, text: str, data: JsonObject | None = None
) -> JsonObject:
    """A JSON-RPC error: the message with that id could not be answered."""
    problem: JsonObject = {"code": code, "message": text}
    if data:
        problem["data"] = data
    return {"jsonrpc": "2.0", "id": message_id, "error": problem}


def tool_result(text: str, images: list[JsonObject], *, is_error: bool) -> JsonObject:
    """The result of a call of the tool: a text part, then the image parts.

    It has no `structuredContent`: several clients would give that to the model, and
    neither the text nor the pictures."""
    if is_error:
        text = _FAILED + text
    content = [{"type": "text", "text": text}, *images]
    return {"content": content, "isError": is_error}


def handle(
    message: object, header: Header, server: Server
) -> tuple[int, JsonObject | None]:
    """The HTTP status and the answer to a message; None if it wants no answer."""
    request = _as_object(message)
    if _is_response(request):
        return 202, None  # it answers a request that was never made
    is_request = _is_request(request)
    message_id = request.get("id") if is_request else None
    is_new = _is_new(request, header)
    try:
        if isinstance(message, list):
            raise _Refused(INVALID_REQUEST, "Send one message at a time.")
        if not is_request:
            raise _Refused(INVALID_REQUEST, "Expected one JSON-RPC 2.0 request.")
        if message_id is None:
            _take_notification(request, server)
            return 202, None
        if is_new:
            result = _answer_new(request, header, server)
        else:
            result = _answer_old(request, server)
    except _Refused as exc:
        status = _status_of(exc.code) if is_new else 200
        return status, error(message_id, exc.code, str(exc), exc.data)
    return 200, {"jsonrpc": "2.0", "id": message_id, "result": result}


def _as_object(value: object) -> JsonObject:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _params(request: JsonObject) -> JsonObject:
    return _as_object(request.get("params"))


def _meta(request: JsonObject) -> JsonObject:
    return _as_object(_params(request).get("_meta"))


def _is_new(request: JsonObject, header: Header) -> bool:
    """Whether it is to be answered as a new client's.

    A version in the header that nobody knows is a newer one, but for `initialize`: that
    agrees on a version by itself."""
    if _VERSION_KEY in _meta(request):
        return True
    if request.get("method") == "initialize":
        return False
    # Older clients do not send the header.
    return header("MCP-Protocol-Version") not in (None, *OLD_VERSIONS)


def _is_response(message: JsonObject) -> bool:
    return not message.get("method") and ("result" in message or "error" in message)


def _is_request(message: JsonObject) -> bool:
    """Whether it is a request or, without an id, a notification."""
    has_id_or_none = "id" not in message or _is_id(message["id"])
    has_method = isinstance(message.get("method"), str)
    return message.get("jsonrpc") == "2.0" and has_method and has_id_or_none


def _is_id(value: object) -> TypeGuard[int | str]:
    return type(value) in (int, str)  # to isinstance `true` would be an int


# --- old clients ----------------------------------------------------------------------


def begins_session(answer: JsonObject) -> bool:
    """Whether it agrees on a version with an old client. From then on the client sends
    the Mcp-Session-Id that it is given, which only tells what it may cancel."""
    return "protocolVersion" in _as_object(answer.get("result"))


def _take_notification(notification: JsonObject, server: Server) -> None:
    """Old clients cancel a call by a message; new ones close the call's connection."""
    call_id = _params(notification).get("requestId")
    if notification["method"] == "notifications/cancelled" and _is_id(call_id):
        server.cancel(call_id)


def _answer_old(request: JsonObject, server: Server) -> JsonObject:
    match request["method"]:
        case "initialize":
            return _initialize(request, server)
        case "ping":
            return {}
        case "tools/list":
            return {"tools": [server.tool]}
        case "tools/call":
            return _call(request, server)
    raise _unknown_method()


def _initialize(request: JsonObject, server: Server) -> JsonObject:
    """Agree to the version that the client asks for, or offer the newest old one."""
    asked = _params(request).get("protocolVersion")
    return {
        "protocolVersion": asked if asked in OLD_VERSIONS else OLD_VERSIONS[0],
        "capabilities": _CAPABILITIES,
        "serverInfo": server.info(),
        "instructions": server.instructions,
    }


# --- new clients ----------------------------------------------------------------------


def _answer_new(request: JsonObject, header: Header, server: Server) -> JsonObject:
    _check_version(request, header)
    _check_names(request, header)
    match request["method"]:
        case "server/discover":
            result = {
                "supportedVersions": _VERSIONS,
                "capabilities": _CAPABILITIES,
                "instructions": server.instructions,
                **_CACHING,
            }
        case "tools/list":
            result = {"tools": [server.tool], **_CACHING}
        case "tools/call":
            result = _call(request, server)
        case _:
            raise _unknown_method()
    meta = {_SERVER_KEY: server.info()}
    return {**result, "resultType": "complete", "_meta": meta}


def _status_of(error_code: int) -> int:
    """The HTTP status of an error. To old clients it is 200: they were answered."""
    return 404 if error_code == UNKNOWN_METHOD else 400


def _check_version(request: JsonObject, header: Header) -> None:
    """Raises _Refused unless header and `_meta` name one version that is served.

    The order of the checks decides which error is sent."""
    version = header("MCP-Protocol-Version")
    meta = _meta(request)
    asked = meta.get(_VERSION_KEY)
    is_named = isinstance(asked, str)
    if version is None or (is_named and asked != version):
        text = "The header MCP-Protocol-Version must name the version in _meta."
        raise _Refused(HEADER_MISMATCH, text)
    if version not in NEW_VERSIONS:
        text = f"MCP-Protocol-Version must be one of {', '.join(_VERSIONS)}."
        data = {"supported": _VERSIONS, "requested": version}
        raise _Refused(UNSUPPORTED_VERSION, text, data)
    if not is_named or not isinstance(meta.get(_CAPABILITIES_KEY), dict):
        text = f"params._meta must have {_VERSION_KEY} and {_CAPABILITIES_KEY}."
        raise _Refused(INVALID_PARAMS, text)


def _check_names(request: JsonObject, header: Header) -> None:
    """Raises _Refused unless the headers name the method, and of a call the tool."""
    if header("Mcp-Method") != request["method"]:
        raise _Refused(HEADER_MISMATCH, "The header Mcp-Method must name the method.")
    name = _params(request).get("name", "")
    is_call = request["method"] == "tools/call"
    if is_call and _decoded(header("Mcp-Name") or "") != name:
        raise _Refused(HEADER_MISMATCH, "The header Mcp-Name must name the tool.")


def _decoded(value: str) -> str | None:
    """The text of a header's value; None if it cannot be decoded."""
    encoded = re.fullmatch(_ENCODED_HEADER, value)
    if not encoded:
        return value
    try:
        return b64decode(encoded[1], validate=True).decode()
    except ValueError:
        return None


# --- both -----------------------------------------------------------------------------


def _call(request: JsonObject, server: Server) -> JsonObject:
    params = _params(request)
    if params.get("name") != server.tool["name"]:
        raise _Refused(INVALID_PARAMS, f"The only tool is {server.tool['name']}.")
    return server.call(_arguments(params.get("arguments")), request["id"])


def _arguments(given: object) -> JsonObject:
    """A call's arguments; some models send them as a string of JSON."""
    if isinstance(given, str):
        try:
            given = parse_json(given.encode())
        except (ValueError, RecursionError):
            return {}
    return _as_object(given)


def _unknown_method() -> _Refused:
    return _Refused(UNKNOWN_METHOD, "This server has no such method.")
