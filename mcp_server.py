"""One MCP message in, one out: a stateless server with one tool.

https://modelcontextprotocol.io/specification/2025-11-25. LibreChat takes a JSON-RPC
error for a call or a login that failed. So all that the model should read is sent as a
result.
"""

from collections.abc import Callable
from typing import Any

from config import VERSION

# LibreChat 0.8.8's client asks for the first of these, and accepts any of them.
PROTOCOL_VERSIONS = (
    "2025-11-25",
    "2025-06-18",
    "2025-03-26",
    "2024-11-05",
    "2024-10-07",
)
# JSON-RPC's own numbers: https://www.jsonrpc.org/specification#error_object
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
UNKNOWN_METHOD = -32601
INVALID_PARAMS = -32602

# LibreChat ignores isError. It shows a result in red, and in full, only if its text
# begins with this.
_FAILED = "Error: tool call failed: "

JsonObject = dict[str, Any]


def error(message_id: object, code: int, text: str) -> JsonObject:
    """A JSON-RPC error: the message with that id could not be answered."""
    return {
        "jsonrpc": "2.0",
        "id": message_id,
        "error": {"code": code, "message": text},
    }


def tool_result(text: str, images: list[JsonObject], *, is_error: bool) -> JsonObject:
    """The result of a call of the tool: a text part, then the image parts."""
    if is_error:
        text = _FAILED + text
    content = [{"type": "text", "text": text}, *images]
    return {"content": content, "isError": is_error}


def handle(
    message: object,
    tool: JsonObject,
    instructions: str,
    call: Callable[[JsonObject], JsonObject],
) -> JsonObject | None:
    """The answer to a message, or None if it wants none; `call` runs the tool."""
    if isinstance(message, list):
        return error(None, INVALID_REQUEST, "Send one message at a time.")
    request = _as_object(message)
    if _is_response(request):
        return None  # it answers a request that was never made
    if not _is_request(request):
        return error(None, INVALID_REQUEST, "Expected one JSON-RPC 2.0 request.")
    message_id = request.get("id")
    if message_id is None:
        return None  # a notification
    params = _as_object(request.get("params"))
    match request["method"]:
        case "initialize":
            result = _initialize(params, instructions)
        case "ping":
            result = {}
        case "tools/list":
            result = {"tools": [tool]}
        case "tools/call":
            if params.get("name") != tool["name"]:
                text = f"The only tool is {tool['name']}."
                return error(message_id, INVALID_PARAMS, text)
            result = call(_as_object(params.get("arguments")))
        case _:
            text = "This server has no such method."
            return error(message_id, UNKNOWN_METHOD, text)
    return {"jsonrpc": "2.0", "id": message_id, "result": result}


def _as_object(value: object) -> JsonObject:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _is_response(message: JsonObject) -> bool:
    return not message.get("method") and ("result" in message or "error" in message)


def _is_request(message: JsonObject) -> bool:
    has_id_or_none = type(message.get("id")) in (int, str, type(None))
    has_method = isinstance(message.get("method"), str)
    return message.get("jsonrpc") == "2.0" and has_method and has_id_or_none


def _initialize(params: JsonObject, instructions: str) -> JsonObject:
    """Agree to the version that the client asks for, or offer the newest."""
    asked = params.get("protocolVersion")
    return {
        "protocolVersion": asked
        if asked in PROTOCOL_VERSIONS
        else PROTOCOL_VERSIONS[0],
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "e2b-proxy", "version": VERSION},
        "instructions": instructions,
    }
