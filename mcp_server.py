"""One MCP message in, one out: a stateless server with one tool.

https://modelcontextprotocol.io/specification/2025-11-25, streamable HTTP answered with plain JSON.
LibreChat shows a JSON-RPC error as a failed call, and one that speaks of credentials as a failed
login: so what the model should read and act on is a result, and no error quotes its caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from config import VERSION

# What LibreChat 0.8.8's client offers first, and accepts.
PROTOCOL_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05", "2024-10-07")
PARSE_ERROR, INVALID_REQUEST, UNKNOWN_METHOD, INVALID_PARAMS = -32700, -32600, -32601, -32602


def error(message_id: object, code: int, text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": message_id, "error": {"code": code, "message": text}}


def handle(
    message: object,
    tool: dict[str, Any],
    instructions: str,
    call: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any] | None:
    """Answer a message; None when it wants no answer.

    `tool` is the one tool, as tools/list shows it; `call` runs it, arguments in, result out.
    """
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        return error(None, INVALID_REQUEST, "Expected one JSON-RPC 2.0 message.")
    message_id, method, params = (message.get(key) for key in ("id", "method", "params"))
    if method is None and ("result" in message or "error" in message):
        return None  # a response to a request that was never made
    if not isinstance(method, str) or not isinstance(message_id, (int, float, str, type(None))):
        return error(None, INVALID_REQUEST, "Expected a request with a method and an id.")
    if message_id is None:
        return None
    if not isinstance(params := {} if params is None else params, dict):
        return error(message_id, INVALID_PARAMS, "Expected params to be an object.")
    result: dict[str, Any]
    match method:
        case "initialize":
            asked = params.get("protocolVersion")
            version = asked if asked in PROTOCOL_VERSIONS else PROTOCOL_VERSIONS[0]
            info = {"name": "e2b-proxy", "title": tool["title"], "version": VERSION}
            result = {"protocolVersion": version, "capabilities": {"tools": {}},
                      "serverInfo": info, "instructions": instructions}  # fmt: skip
        case "ping":
            result = {}
        case "tools/list":
            result = {"tools": [tool]}
        case "tools/call":
            if params.get("name") != tool["name"]:
                return error(message_id, INVALID_PARAMS, f"The only tool is {tool['name']}.")
            arguments = params.get("arguments")
            result = call(arguments if isinstance(arguments, dict) else {})
        case _:
            return error(message_id, UNKNOWN_METHOD, "This server has no such method.")
    return {"jsonrpc": "2.0", "id": message_id, "result": result}
