"""One MCP message in, one out: a stateless server with one tool.

https://modelcontextprotocol.io/specification/2025-11-25. LibreChat takes a JSON-RPC error for a
failed call, or a failed login: so what the model should read is a result, never an error."""

from collections.abc import Callable
from typing import Any

from config import VERSION

# What LibreChat 0.8.8's client offers first, and accepts.
PROTOCOL_VERSIONS = (
    "2025-11-25",
    "2025-06-18",
    "2025-03-26",
    "2024-11-05",
    "2024-10-07",
)
PARSE_ERROR, INVALID_REQUEST, UNKNOWN_METHOD, INVALID_PARAMS = (
    -32700,
    -32600,
    -32601,
    -32602,
)


def error(message_id: object, code: int, text: str) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": message_id,
        "error": {"code": code, "message": text},
    }


def handle(
    message: Any, tool: dict[str, Any], instructions: str, call: Callable[[Any], Any]
) -> Any:
    """Answer a message, or None when it wants no answer; `call` runs the tool."""
    message = message if isinstance(message, dict) else {}
    message_id, method, params = (
        message.get(key) for key in ("id", "method", "params")
    )
    if not method and ("result" in message or "error" in message):
        return None  # a response to a request that was never made
    is_id = type(message_id) in (int, str, type(None))
    if message.get("jsonrpc") != "2.0" or not isinstance(method, str) or not is_id:
        return error(None, INVALID_REQUEST, "Expected one JSON-RPC 2.0 request.")
    if message_id is None:
        return None
    params = params if isinstance(params, dict) else {}
    result: dict[str, Any]
    match method:
        case "initialize":
            asked = params.get("protocolVersion")
            version = asked if asked in PROTOCOL_VERSIONS else PROTOCOL_VERSIONS[0]
            info = {"name": "e2b-proxy", "version": VERSION}
            result = {
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": info,
                "instructions": instructions,
            }
        case "ping":
            result = {}
        case "tools/list":
            result = {"tools": [tool]}
        case "tools/call":
            if params.get("name") != tool["name"]:
                return error(
                    message_id, INVALID_PARAMS, f"The only tool is {tool['name']}."
                )
            arguments = params.get("arguments")
            result = call(arguments if isinstance(arguments, dict) else {})
        case _:
            return error(message_id, UNKNOWN_METHOD, "This server has no such method.")
    return {"jsonrpc": "2.0", "id": message_id, "result": result}
