"""What POST /mcp promises to any MCP client, over real sockets with E2B's real SDK.

test_librechat.py holds what the official clients make of it.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
import requests
from builders import RED_SVG, answer_with, encoded, error, picture, stdout
from builders import result as result_event
from local_e2b import LocalE2B
from PIL import Image

from config import LIFETIME_MARGIN_S, MAX_BODY_BYTES, MAX_REPLY_IMAGE_BYTES, VERSION
from conftest import OK_RUN, Service, http, one_run_under_way

pytestmark = pytest.mark.usefixtures("runs_print_ok")

API_KEY = "a-key-that-is-long-enough-to-be-one"
VERSIONS = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05", "2024-10-07"]
NEW = "2026-07-28"
ALL_VERSIONS = [NEW, *VERSIONS]
PARSE_ERROR, INVALID_REQUEST, UNKNOWN_METHOD, INVALID_PARAMS = (
    -32700,
    -32600,
    -32601,
    -32602,
)
HEADER_MISMATCH, UNSUPPORTED_VERSION = -32020, -32022
# LibreChat takes an error with one of these in it for a failed login.
LOGIN_WORDS = re.compile("401|oauth|authentication", re.IGNORECASE)


# --- services -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roomy_service(start_shared: Callable[..., Service]) -> Service:
    """The service with room for many pictures, which are sent as they are."""
    return start_shared(MAX_IMAGES="20", RUN_TIMEOUT_S="30", MCP_IMAGE_BYTES="0")


@pytest.fixture
def one_slot_service(start_shared: Callable[..., Service]) -> Service:
    """A service with one slot, which no create before has taken."""
    return start_shared(MAX_CONCURRENT_RUNS="1")


@pytest.fixture(scope="module")
def keyed_service(start_shared: Callable[..., Service]) -> Service:
    """The service with an API key."""
    return start_shared(PROXY_API_KEY=API_KEY)


# --- messages -------------------------------------------------------------------------


def post(service: Service, body: bytes | str, **headers: str) -> requests.Response:
    data = body.encode() if isinstance(body, str) else body
    accepts = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    return http.post(
        f"{service.url}/mcp", data=data, headers=accepts | headers, timeout=30
    )


def send(service: Service, message: object, **headers: str) -> requests.Response:
    return post(service, json.dumps(message), **headers)


def message(
    method: str, params: object = None, message_id: object = 1
) -> dict[str, Any]:
    asked = {"jsonrpc": "2.0", "id": message_id, "method": method}
    return asked if params is None else asked | {"params": params}


def ask(service: Service, method: str, params: object = None) -> Any:
    """The result of a request."""
    response = send(service, message(method, params))
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert body.keys() == {"jsonrpc", "id", "result"}, body
    assert (body["jsonrpc"], body["id"]) == ("2.0", 1)
    return body["result"]


def call(service: Service, **arguments: Any) -> dict[str, Any]:
    """The result of calling the tool: {"content": […], "isError": …}."""
    params = {"name": "execute_python", "arguments": arguments}
    result: dict[str, Any] = ask(service, "tools/call", params)
    assert result.keys() == {"content", "isError"}
    return result


def error_of(response: requests.Response) -> dict[str, Any]:
    """The JSON-RPC error in a response: {"code", "message"}."""
    body = response.json()
    assert body.keys() == {"jsonrpc", "id", "error"}, body
    assert body["jsonrpc"] == "2.0"
    assert body["error"].keys() - {"data"} == {"code", "message"}
    assert not LOGIN_WORDS.search(response.text)
    return dict(body["error"])


def text_of(result: dict[str, Any]) -> str:
    [text] = [part["text"] for part in result["content"] if part["type"] == "text"]
    return str(text)


def images_of(result: dict[str, Any]) -> list[tuple[str, bytes]]:
    """(media type, bytes) of each picture of a result."""
    images = [part for part in result["content"] if part["type"] == "image"]
    assert all(part.keys() == {"type", "data", "mimeType"} for part in images)
    return [
        (part["mimeType"], base64.b64decode(part["data"], validate=True))
        for part in images
    ]


# --- the session that is none ---------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_initialize_agrees_to_each_version_that_is_served(
    roomy_service: Service, version: str
) -> None:
    client = {"name": "client", "version": "1"}
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": client}
    assert ask(roomy_service, "initialize", params)["protocolVersion"] == version


@pytest.mark.parametrize(
    "version", ["2099-01-01", "", None, 3, ["2025-11-25"], {}], ids=repr
)
def test_initialize_offers_the_newest_version_for_an_unknown_one(
    roomy_service: Service, version: object
) -> None:
    assert (
        ask(roomy_service, "initialize", {"protocolVersion": version})[
            "protocolVersion"
        ]
        == VERSIONS[0]
    )


def test_initialize_says_who_serves_and_gives_instructions_for_a_model(
    roomy_service: Service,
) -> None:
    result = ask(roomy_service, "initialize", {"protocolVersion": VERSIONS[0]})
    assert result.keys() == {
        "protocolVersion",
        "capabilities",
        "serverInfo",
        "instructions",
    }
    assert result["capabilities"] == {"tools": {}}
    assert result["serverInfo"]["name"] == "e2b-proxy"
    assert result["serverInfo"]["version"] == VERSION
    assert "execute_python" in result["instructions"]
    assert "Nothing is kept between calls" in result["instructions"]


def test_ping_is_answered_with_nothing(roomy_service: Service) -> None:
    assert ask(roomy_service, "ping") == {}
    assert ask(roomy_service, "ping", {}) == {}


def test_the_one_tool_is_listed_with_its_limits(roomy_service: Service) -> None:
    [tool] = ask(roomy_service, "tools/list")["tools"]
    assert tool["name"] == "execute_python"
    assert "plt.show()" in tool["description"]
    schema = tool["inputSchema"]
    assert schema["type"] == "object"
    assert schema["required"] == ["code"]
    assert schema["properties"].keys() == {"code", "timeout"}
    assert schema["properties"]["code"]["type"] == "string"
    assert "100,000 characters" in schema["properties"]["code"]["description"]
    bounds = {"minLength", "maxLength", "minimum", "maximum"}
    for field in schema["properties"].values():
        assert not bounds & field.keys()  # or LibreChat would keep the call
    # No list of types: Gemini refuses every tool of a chat for it.
    assert schema["properties"]["timeout"]["type"] == "integer"
    assert "null" in schema["properties"]["timeout"]["description"]
    assert schema["properties"]["timeout"]["default"] == 30
    assert "$ref" not in json.dumps(tool)


def test_a_session_is_only_a_name_for_what_may_be_cancelled(
    roomy_service: Service,
) -> None:
    first, second = (
        send(roomy_service, message("initialize", {"protocolVersion": VERSIONS[0]}))
        for _ in range(2)
    )
    ids = {reply.headers["Mcp-Session-Id"] for reply in (first, second)}
    assert len(ids) == 2
    stale = send(
        roomy_service, message("ping"), **{"Mcp-Session-Id": "of another server"}
    )
    assert (stale.status_code, stale.json()["result"]) == (200, {})
    assert "Mcp-Session-Id" not in stale.headers


@pytest.mark.parametrize(
    "message_id", [0, -1, 7, 2**70, "", "1", "a b", "ż\N{PARTY POPPER}", "\ud800"]
)
def test_the_answer_has_the_id_of_the_request(
    roomy_service: Service, message_id: object
) -> None:
    answer = send(roomy_service, message("ping", None, message_id)).json()
    assert answer == {"jsonrpc": "2.0", "id": message_id, "result": {}}
    assert type(answer["id"]) is type(message_id)


@pytest.mark.parametrize(
    "method",
    [
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/unknown",
        "tools/call",
    ],
)
def test_a_notification_is_202_without_a_body_and_runs_nothing(
    roomy_service: Service, e2b: LocalE2B, method: str
) -> None:
    created_before = e2b.state()["created"]
    params = {"name": "execute_python", "arguments": {"code": "1"}}
    response = send(
        roomy_service, {"jsonrpc": "2.0", "method": method, "params": params}
    )
    assert (response.status_code, response.content) == (202, b"")
    assert e2b.state()["created"] == created_before


@pytest.mark.parametrize(
    "answer", [{"result": {}}, {"error": {"code": -1, "message": "no"}}]
)
def test_a_response_to_what_was_never_asked_is_202(
    roomy_service: Service, answer: dict[str, Any]
) -> None:
    response = send(roomy_service, {"jsonrpc": "2.0", "id": 1, **answer})
    assert (response.status_code, response.content) == (202, b"")


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_another_method_is_405_and_says_which_is_allowed(
    roomy_service: Service, method: str
) -> None:
    headers = {"Accept": "text/event-stream"}
    response = http.request(
        method, f"{roomy_service.url}/mcp", headers=headers, timeout=30
    )
    assert response.status_code == 405
    assert not LOGIN_WORDS.search(response.json()["error"]["message"])
    assert "POST" in response.headers["Allow"].split(", ")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_that_is_served_may_stand_in_the_header(
    roomy_service: Service, version: str
) -> None:
    response = send(roomy_service, message("ping"), **{"MCP-Protocol-Version": version})
    assert response.json()["result"] == {}


@pytest.mark.parametrize("version", ["2026-01-01", "1.0", "2025-11-25, 2025-06-18", ""])
def test_a_version_in_the_header_that_is_not_served_is_told_which_are(
    roomy_service: Service, e2b: LocalE2B, version: str
) -> None:
    created_before = e2b.state()["created"]
    params = {"name": "execute_python", "arguments": {"code": "1"}}
    asked = message("tools/call", params, 7)
    response = send(roomy_service, asked, **{"MCP-Protocol-Version": version})
    assert response.status_code == 400
    assert response.json()["id"] == 7
    problem = error_of(response)
    assert problem["code"] == UNSUPPORTED_VERSION
    assert problem["data"] == {"supported": ALL_VERSIONS, "requested": version}
    assert all(each in problem["message"] for each in ALL_VERSIONS)
    assert e2b.state()["created"] == created_before


@pytest.mark.parametrize("version", [NEW, "2099-01-01", "1.0"])
def test_initialize_agrees_whatever_version_its_header_names(
    roomy_service: Service, version: str
) -> None:
    asked = message("initialize", {"protocolVersion": "2099-01-01"})
    response = send(roomy_service, asked, **{"MCP-Protocol-Version": version})
    assert response.json()["result"]["protocolVersion"] == VERSIONS[0]


def test_an_address_with_a_slash_at_its_end_is_the_same(roomy_service: Service) -> None:
    """No client follows a redirect here; the old ones need 405 to a GET."""
    url = f"{roomy_service.url}/mcp/"
    asked = http.post(url, json=message("ping"), allow_redirects=False, timeout=30)
    assert asked.json()["result"] == {}
    assert http.get(url, allow_redirects=False, timeout=30).status_code == 405


# --- 2026-07-28: no handshake, each request says its version --------------------------

PREFIX = "io.modelcontextprotocol/"
SERVER_INFO = {"name": "e2b-proxy", "version": VERSION}
META = {
    f"{PREFIX}protocolVersion": NEW,
    f"{PREFIX}clientCapabilities": {},
    f"{PREFIX}clientInfo": {"name": "client", "version": "1"},
}
CALL = {"name": "execute_python", "arguments": {"code": "1"}}


def new_message(method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    return message(method, {**(params or {}), "_meta": META}, 7)


def new_headers(method: str, name: str = "") -> dict[str, str]:
    headers = {"MCP-Protocol-Version": NEW, "Mcp-Method": method}
    return headers | {"Mcp-Name": name} if name else headers


def ask_new(service: Service, method: str, **params: Any) -> dict[str, Any]:
    """The result of a new client's request, without what each of them has."""
    headers = new_headers(method, params.get("name", ""))
    response = send(service, new_message(method, params), **headers)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body.keys() == {"jsonrpc", "id", "result"}
    assert (body["jsonrpc"], body["id"]) == ("2.0", 7)
    assert body["result"].pop("resultType") == "complete"
    assert body["result"].pop("_meta") == {f"{PREFIX}serverInfo": SERVER_INFO}
    return dict(body["result"])


def test_a_new_client_is_told_all_versions_and_the_instructions(
    roomy_service: Service,
) -> None:
    result = ask_new(roomy_service, "server/discover")
    assert result.keys() == {
        *("supportedVersions", "capabilities", "instructions", "ttlMs", "cacheScope")
    }
    assert result["supportedVersions"] == ALL_VERSIONS
    assert result["capabilities"] == {"tools": {}}
    assert "Nothing is kept between calls" in result["instructions"]


def test_old_and_new_clients_are_given_the_same_tool(roomy_service: Service) -> None:
    result = ask_new(roomy_service, "tools/list")
    assert result.pop("tools") == ask(roomy_service, "tools/list")["tools"]
    assert result == {"ttlMs": 60_000, "cacheScope": "public"}


def test_the_tool_says_what_it_may_do(
    roomy_service: Service, start_shared: Callable[..., Service]
) -> None:
    """It has no output schema: clients would then want `structuredContent`."""
    offline = start_shared(ALLOW_INTERNET="false")
    for service, is_online in ((roomy_service, True), (offline, False)):
        [tool] = ask(service, "tools/list")["tools"]
        assert tool.keys() == {
            *("name", "title", "description", "inputSchema", "annotations")
        }
        assert tool["annotations"] == {
            "readOnlyHint": False,
            "idempotentHint": False,
            "openWorldHint": is_online,
        }


def test_a_new_call_gives_what_an_old_one_gives(
    roomy_service: Service, e2b: LocalE2B
) -> None:
    answer_with(e2b, stdout("Hello\n"), result_event(png=encoded(picture("PNG"))))
    result = ask_new(roomy_service, "tools/call", **CALL)
    assert result == call(roomy_service, code="1")
    assert len(images_of(result)) == 1


def test_wrong_arguments_of_a_new_call_are_a_result_too(roomy_service: Service) -> None:
    result = ask_new(roomy_service, "tools/call", name="execute_python", arguments={})
    assert error_text(result).startswith("code")


@pytest.mark.parametrize(
    "name", ["=?base64?ZXhlY3V0ZV9weXRob24=?=", "execute_python \t"]
)
def test_a_tools_name_may_be_encoded_or_have_space_around_it(
    roomy_service: Service, name: str
) -> None:
    headers = new_headers("tools/call", name)
    response = send(roomy_service, new_message("tools/call", CALL), **headers)
    assert response.json()["result"]["isError"] is False


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in META.items() if key != PREFIX + name}


LISTED = new_headers("tools/list")
CALLED = new_headers("tools/call", "execute_python")
# A method, its params, its headers; the status and the code of the error.
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, str], int, int]] = {
    "no header": ("tools/list", {"_meta": META}, {}, 400, HEADER_MISMATCH),
    "an old version in the header": (
        *(
            "tools/list",
            {"_meta": META},
            LISTED | {"MCP-Protocol-Version": VERSIONS[0]},
        ),
        *(400, HEADER_MISMATCH),
    ),
    "two headers": (
        *("tools/list", {"_meta": META}),
        *(LISTED | {"MCP-Protocol-Version": f"{NEW}, {NEW}"}, 400, HEADER_MISMATCH),
    ),
    "a newer version": (
        *("tools/list", {"_meta": META | {f"{PREFIX}protocolVersion": "2099-01-01"}}),
        *(LISTED | {"MCP-Protocol-Version": "2099-01-01"}, 400, UNSUPPORTED_VERSION),
    ),
    "a newer version in the header alone": (
        *("tools/list", {}, LISTED | {"MCP-Protocol-Version": "v999"}),
        *(400, UNSUPPORTED_VERSION),
    ),
    "no _meta": ("tools/list", {}, LISTED, 400, INVALID_PARAMS),
    "_meta a list": ("tools/list", {"_meta": [1]}, LISTED, 400, INVALID_PARAMS),
    "no version in _meta": (
        *("tools/list", {"_meta": without("protocolVersion")}, LISTED),
        *(400, INVALID_PARAMS),
    ),
    "a version that is a number": (
        *("tools/list", {"_meta": META | {f"{PREFIX}protocolVersion": 3}}, LISTED),
        *(400, INVALID_PARAMS),
    ),
    "no capabilities": (
        *("tools/list", {"_meta": without("clientCapabilities")}, LISTED),
        *(400, INVALID_PARAMS),
    ),
    "capabilities that are a list": (
        *("tools/list", {"_meta": META | {f"{PREFIX}clientCapabilities": []}}, LISTED),
        *(400, INVALID_PARAMS),
    ),
    "no method in the header": (
        *("tools/list", {"_meta": META}, {"MCP-Protocol-Version": NEW}),
        *(400, HEADER_MISMATCH),
    ),
    "another method in the header": (
        *("tools/list", {"_meta": META}, new_headers("Tools/list")),
        *(400, HEADER_MISMATCH),
    ),
    "no tool in the header": (
        *("tools/call", {**CALL, "_meta": META}, new_headers("tools/call")),
        *(400, HEADER_MISMATCH),
    ),
    "another tool in the header": (
        *("tools/call", {**CALL, "_meta": META}, new_headers("tools/call", "x")),
        *(400, HEADER_MISMATCH),
    ),
    "a tool in the header that cannot be decoded": (
        *("tools/call", {**CALL, "_meta": META}),
        *(new_headers("tools/call", "=?base64?/?="), 400, HEADER_MISMATCH),
    ),
    "another tool": (
        *("tools/call", {"name": "x", "_meta": META}, new_headers("tools/call", "x")),
        *(400, INVALID_PARAMS),
    ),
    "no tool": (*("tools/call", {"_meta": META}, CALLED), *(400, HEADER_MISMATCH)),
    **{
        method: (method, {"_meta": META}, new_headers(method), 404, UNKNOWN_METHOD)
        for method in ("initialize", "ping", "resources/list", "tasks/get", "401")
    },
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_is_wrong_with_a_new_request_is_told_by_status_and_code(
    roomy_service: Service, e2b: LocalE2B, row: str
) -> None:
    method, params, headers, status, code = REFUSED[row]
    created_before = e2b.state()["created"]
    response = send(roomy_service, message(method, params, 7), **headers)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert response.json()["id"] == 7
    assert e2b.state()["created"] == created_before


@pytest.mark.parametrize("message_id", [None, True, [1], 1.5])
def test_an_id_that_is_none_is_not_sent_back_to_a_new_client(
    roomy_service: Service, message_id: object
) -> None:
    asked = new_message("tools/list") | {"id": message_id}
    response = send(roomy_service, asked, **LISTED)
    assert (response.status_code, error_of(response)["code"]) == (400, INVALID_REQUEST)
    assert response.json()["id"] is None


def test_a_notification_of_a_new_client_is_202(roomy_service: Service) -> None:
    asked = new_message("notifications/cancelled")
    del asked["id"]
    response = send(roomy_service, asked, **LISTED)
    assert (response.status_code, response.content) == (202, b"")


def test_an_old_request_may_have_a_meta_of_its_own(roomy_service: Service) -> None:
    params = {"_meta": {"progressToken": 1}}
    assert ask(roomy_service, "tools/list", params).keys() == {"tools"}
    assert ask(roomy_service, "ping", params) == {}


# --- what is malformed or unknown -----------------------------------------------------

MALFORMED = {
    "empty": ("", PARSE_ERROR),
    "no JSON": ("{jsonrpc: 2.0}", PARSE_ERROR),
    "cut short": ('{"jsonrpc": "2.0", "id": 1, "meth', PARSE_ERROR),
    "no UTF-8": (b'{"jsonrpc": "2.0", "id": 1, "method": "\xff"}', PARSE_ERROR),
    "an integer of 5,000 digits": (
        '{"jsonrpc": "2.0", "id": ' + "9" * 5000 + "}",
        PARSE_ERROR,
    ),
    "nested 100,000 deep": ("[" * 100_000 + "]" * 100_000, PARSE_ERROR),
    "null": ("null", INVALID_REQUEST),
    "a number": ("3", INVALID_REQUEST),
    "a string": ('"ping"', INVALID_REQUEST),
    "a batch": ('[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', INVALID_REQUEST),
    "an empty batch": ("[]", INVALID_REQUEST),
    "no version": ('{"id": 1, "method": "ping"}', INVALID_REQUEST),
    "version 1.0": ('{"jsonrpc": "1.0", "id": 1, "method": "ping"}', INVALID_REQUEST),
    "version as a number": (
        '{"jsonrpc": 2.0, "id": 1, "method": "ping"}',
        INVALID_REQUEST,
    ),
    "neither method nor result": ('{"jsonrpc": "2.0", "id": 1}', INVALID_REQUEST),
    "method null": ('{"jsonrpc": "2.0", "id": 1, "method": null}', INVALID_REQUEST),
    "method a number": ('{"jsonrpc": "2.0", "id": 1, "method": 3}', INVALID_REQUEST),
    "id a list": ('{"jsonrpc": "2.0", "id": [1], "method": "ping"}', INVALID_REQUEST),
    "id null": ('{"jsonrpc": "2.0", "id": null, "method": "ping"}', INVALID_REQUEST),
    "id an object": ('{"jsonrpc": "2.0", "id": {}, "method": "ping"}', INVALID_REQUEST),
}


@pytest.mark.parametrize("row", MALFORMED)
def test_what_is_no_request_is_a_json_rpc_error(
    roomy_service: Service, row: str
) -> None:
    body, code = MALFORMED[row]
    response = post(roomy_service, body)
    assert error_of(response)["code"] == code
    assert response.status_code == (400 if code == PARSE_ERROR else 200)
    assert response.json()["id"] is None


def test_a_batch_is_refused_in_words(roomy_service: Service) -> None:
    response = send(roomy_service, [message("ping"), message("ping")])
    assert error_of(response) == {
        "code": INVALID_REQUEST,
        "message": "Send one message at a time.",
    }


@pytest.mark.parametrize("message_id", ["NaN", "Infinity", "-1e999", "true"])
def test_an_id_that_json_cannot_send_back_is_an_invalid_request(
    roomy_service: Service, message_id: str
) -> None:
    response = post(
        roomy_service, f'{{"jsonrpc": "2.0", "id": {message_id}, "method": "ping"}}'
    )
    assert error_of(response)["code"] == INVALID_REQUEST
    assert response.json()["id"] is None


UNKNOWN = {
    "method": (message("resources/list"), UNKNOWN_METHOD),
    "method empty": (message(""), UNKNOWN_METHOD),
    "method in capitals": (message("PING"), UNKNOWN_METHOD),
    "method with login words": (message("401/OAuth/authentication"), UNKNOWN_METHOD),
    "tool": (
        message("tools/call", {"name": "execute_bash", "arguments": {}}),
        INVALID_PARAMS,
    ),
    "tool missing": (
        message("tools/call", {"arguments": {"code": "1"}}),
        INVALID_PARAMS,
    ),
    "tool null": (message("tools/call", {"name": None}), INVALID_PARAMS),
    "tool a list": (
        message("tools/call", {"name": ["execute_python"]}),
        INVALID_PARAMS,
    ),
    "tool with login words": (
        message("tools/call", {"name": "OAuth 401"}),
        INVALID_PARAMS,
    ),
    "params missing": (message("tools/call"), INVALID_PARAMS),
    "params a list": (message("tools/call", ["execute_python"]), INVALID_PARAMS),
}


@pytest.mark.parametrize("row", UNKNOWN)
def test_what_is_unknown_is_a_json_rpc_error_for_that_request(
    roomy_service: Service, e2b: LocalE2B, row: str
) -> None:
    asked, code = UNKNOWN[row]
    created_before = e2b.state()["created"]
    response = send(roomy_service, asked)
    assert response.status_code == 200
    assert error_of(response)["code"] == code
    assert response.json()["id"] == asked["id"]
    assert e2b.state()["created"] == created_before


def test_a_body_that_is_no_json_by_its_type_is_415(roomy_service: Service) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = send(
            roomy_service, message("ping"), **{"Content-Type": content_type}
        )
        assert response.status_code == 415
        assert not LOGIN_WORDS.search(response.json()["error"]["message"])


def test_a_body_over_1_mib_is_413_before_it_is_sent(roomy_service: Service) -> None:
    connection = HTTPConnection("127.0.0.1", roomy_service.port, timeout=30)
    with closing(connection):
        connection.putrequest("POST", "/mcp")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(MAX_BODY_BYTES + 1))
        connection.endheaders()
        assert connection.getresponse().status == 413


# --- the tool -------------------------------------------------------------------------


def test_the_text_comes_without_the_echo_of_the_code(
    roomy_service: Service, e2b: LocalE2B
) -> None:
    answer_with(e2b, stdout("Hello, World!\n"), result_event(text="42"))
    text = "Console Output:\nHello, World!\n\nResult:\n42"
    expected = {"content": [{"type": "text", "text": text}], "isError": False}
    assert call(roomy_service, code="print('Hello, World!')\n42") == expected


def test_a_run_without_output_says_so(roomy_service: Service, e2b: LocalE2B) -> None:
    answer_with(e2b)
    result = call(roomy_service, code="x = 1")
    assert text_of(result) == (
        "Code executed successfully, without output. Use print() to see a value."
    )
    assert result["isError"] is False


def test_each_picture_is_an_image_part_after_the_text_in_the_order_of_display(
    roomy_service: Service, e2b: LocalE2B
) -> None:
    png, jpeg = picture("PNG"), picture("JPEG")
    answer_with(
        e2b,
        result_event(png=encoded(png)),
        stdout("between\n"),
        result_event(jpeg=encoded(jpeg)),
    )
    result = call(roomy_service, code="draw()")
    assert [part["type"] for part in result["content"]] == ["text", "image", "image"]
    assert images_of(result) == [("image/png", png), ("image/jpeg", jpeg)]
    assert text_of(result) == (
        "between\n\n[2 pictures were drawn and are shown to the user: 8 x 6, 8 x 6]"
    )
    assert result["isError"] is False


def test_a_picture_alone_still_comes_with_a_text(
    roomy_service: Service, e2b: LocalE2B
) -> None:
    answer_with(
        e2b, result_event(text="<Figure size 8x6>", png=encoded(picture("PNG")))
    )
    result = call(roomy_service, code="draw()")
    assert len(images_of(result)) == 1
    said = "[1 picture was drawn and is shown to the user: 8 x 6]"
    assert text_of(result) == said


def test_an_svg_arrives_as_a_png(roomy_service: Service, e2b: LocalE2B) -> None:
    answer_with(e2b, result_event(text="<Figure>", svg=RED_SVG))
    [(media_type, data)] = images_of(call(roomy_service, code="draw()"))
    assert media_type == "image/png"
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("PNG", (40, 30))
        assert image.convert("RGB").getcolors() == [(1200, (255, 0, 0))]


def test_an_svg_that_cannot_be_drawn_costs_that_picture_only(
    roomy_service: Service, e2b: LocalE2B
) -> None:
    png = picture("PNG")
    answer_with(
        e2b,
        result_event(svg=RED_SVG.replace("<rect", '<image href="/etc/passwd"/><rect')),
        result_event(png=encoded(png)),
    )
    result = call(roomy_service, code="draw()")
    assert images_of(result) == [("image/png", png)]
    assert "refers to something outside itself" in text_of(result)
    assert result["isError"] is False


@pytest.mark.parametrize(
    ("size_bytes", "sent", "fitting"), [(1024 * 1024, 12, 11), (3 * 1024 * 1024, 5, 3)]
)
def test_as_many_pictures_as_fit_arrive_in_under_16_mib(
    roomy_service: Service, e2b: LocalE2B, size_bytes: int, sent: int, fitting: int
) -> None:
    e2b.set_script({"run": {"pngs": sent, "png_bytes": size_bytes}})
    params = {"name": "execute_python", "arguments": {"code": "draw()"}}
    response = send(roomy_service, message("tools/call", params))
    assert len(response.content) < 16 * 1024 * 1024
    assert int(response.headers["Content-Length"]) == len(response.content)
    result = response.json()["result"]
    sizes = [len(data) for _, data in images_of(result)]
    assert sizes == [size_bytes] * fitting
    assert sum(sizes) + size_bytes > MAX_REPLY_IMAGE_BYTES >= sum(sizes)
    assert re.search(
        rf"\[{sent - fitting} pictures? left out: .*11,534,336", text_of(result)
    )


# --- what the model should act on is a result with isError ----------------------------


FAILED = "Error: tool call failed: "  # by which LibreChat knows one


def error_text(result: dict[str, Any]) -> str:
    """The text of a result that is an error, and cannot pass for a failed login."""
    assert result["isError"] is True
    assert not LOGIN_WORDS.search(text_of(result))
    text = text_of(result)
    assert text.startswith(FAILED)
    return text.removeprefix(FAILED)


def test_an_exception_is_a_result_with_its_traceback(
    roomy_service: Service, e2b: LocalE2B
) -> None:
    answer_with(e2b, stdout("before\n"), error("ValueError", "no"))
    assert error_text(call(roomy_service, code="raise ValueError('no')")) == (
        "ValueError: no\n\nConsole Output:\nbefore\n\nExecution Error:\n"
        "Traceback (most recent call last)\nCell In[1], line 1\nValueError: no"
    )


def test_a_timeout_is_a_result_with_what_was_printed_and_drawn(
    roomy_service: Service, e2b: LocalE2B
) -> None:
    png = picture("PNG")
    answer_with(e2b, stdout("so far\n"), result_event(png=encoded(png)), fault="silent")
    result = call(roomy_service, code="while True: pass", timeout=1)
    assert error_text(result) == (
        "The run was stopped after 1 s, its time limit.\n\nso far\n\n"
        "[1 picture was drawn and is shown to the user: 8 x 6]"
    )
    assert images_of(result) == [("image/png", png)]


# Of a create that may have been done, the only slot would be kept for a while.
@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_a_refusal_by_e2b_is_a_result_in_our_own_words(
    roomy_service: Service, e2b: LocalE2B, status: int
) -> None:
    body = {"code": status, "message": "401 OAuth authentication"}
    e2b.set_script({"run": OK_RUN, "create": {"status": status, "body": body}})
    assert "E2B" in error_text(call(roomy_service, code="1", timeout=1))


def test_a_full_service_is_a_result_that_says_how_long_to_wait(
    one_slot_service: Service, e2b: LocalE2B
) -> None:
    with one_run_under_way(e2b, one_slot_service):
        text = error_text(call(one_slot_service, code="1"))
        refused = http.post(
            f"{one_slot_service.url}/execute", json={"code": "1"}, timeout=30
        )
    assert refused.status_code == 503
    assert re.search(rf"\b{refused.headers['Retry-After']} seconds\b", text)


WRONG = {
    "none": {},
    "code null": {"code": None},
    "code a number": {"code": 3},
    "code blank": {"code": " \n"},
    "code too long": {"code": "x" * 100_001},
    "code with a lone surrogate": {"code": "\ud800"},
    "timeout 0": {"code": "1", "timeout": 0},
    "timeout 1.5": {"code": "1", "timeout": 1.5},
    'timeout "soon"': {"code": "1", "timeout": "soon"},
    "timeout true": {"code": "1", "timeout": True},
    "timeout NaN": {"code": "1", "timeout": float("nan")},
    "timeout 1e999": {"code": "1", "timeout": float("inf")},
    "language javascript": {"code": "1", "language": "javascript"},
    "not an object but a string": "print(1)",
    "not an object but a list": ["print(1)"],
    "not an object but JSON of a list": '["print(1)"]',
    "not an object but JSON that is cut": '{"code": "print(1)"',
    "not an object but JSON that is deep": "[" * 100_000,
    "null": None,
}


@pytest.mark.parametrize("row", WRONG)
def test_wrong_arguments_are_a_result_that_the_model_can_correct(
    roomy_service: Service, e2b: LocalE2B, row: str
) -> None:
    created_before = e2b.state()["created"]
    params = {"name": "execute_python", "arguments": WRONG[row]}
    field = row.split()[0] if row.split()[0] in ("timeout", "language") else "code"
    assert error_text(ask(roomy_service, "tools/call", params)).startswith(field)
    assert e2b.state()["created"] == created_before


@pytest.mark.parametrize("timeout", [10, 10.0, "10"])
def test_arguments_may_be_a_string_of_json(
    roomy_service: Service, e2b: LocalE2B, timeout: object
) -> None:
    arguments = json.dumps({"code": "print('é')", "timeout": timeout})
    params = {"name": "execute_python", "arguments": arguments}
    assert ask(roomy_service, "tools/call", params)["isError"] is False
    runs = [r for r in e2b.state()["requests"] if r["kind"] == "run"]
    assert "print('é')" in runs[-1]["body"]["code"]
    creates = [r for r in e2b.state()["requests"] if r["kind"] == "create"]
    assert creates[-1]["body"]["timeout"] == 10 + LIFETIME_MARGIN_S


def test_arguments_that_are_missing_are_a_result_too(roomy_service: Service) -> None:
    assert "code" in error_text(
        ask(roomy_service, "tools/call", {"name": "execute_python"})
    )


# --- the same guards and limits as for /execute ---------------------------------------


@pytest.mark.parametrize(("timeout", "limit_s"), [(None, 30), (5, 5), (10**9, 30)])
def test_a_timeout_shortens_a_run_and_never_lengthens_it(
    roomy_service: Service, e2b: LocalE2B, timeout: object, limit_s: int
) -> None:
    assert call(roomy_service, code="1", timeout=timeout)["isError"] is False
    creates = [
        request for request in e2b.state()["requests"] if request["kind"] == "create"
    ]
    assert creates[-1]["body"]["timeout"] == limit_s + LIFETIME_MARGIN_S


def test_unknown_arguments_are_never_forwarded(
    roomy_service: Service, e2b: LocalE2B
) -> None:
    number_before = len(e2b.state()["requests"])
    assert (
        call(roomy_service, code="1", template="EVIL", envs={"A": "EVIL"})["isError"]
        is False
    )
    assert "EVIL" not in json.dumps(e2b.state()["requests"][number_before:])


def test_a_call_is_logged_by_length_and_hash_and_never_with_its_code(
    roomy_service: Service,
) -> None:
    params = {"name": "execute_python", "arguments": {"code": "secret_plan()"}}
    send(
        roomy_service,
        message("tools/call", params),
        **{"X-Request-Id": "the-logged-call"},
    )
    line = json.loads(roomy_service.wait_for_log("the-logged-call"))
    assert (line["path"], line["status"], line["outcome"]) == ("/mcp", 200, "ok")
    assert line["code_chars"] == len("secret_plan()")
    assert not [line for line in roomy_service.lines if "secret_plan" in line]


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", f"Basic {API_KEY}", API_KEY, ""]
)
@pytest.mark.parametrize("method", ["initialize", "tools/list", "tools/call"])
def test_without_the_api_key_nothing_is_answered(
    keyed_service: Service, e2b: LocalE2B, method: str, given: str | None
) -> None:
    created_before = e2b.state()["created"]
    params = {"name": "execute_python", "arguments": {"code": "1"}}
    headers = {} if given is None else {"Authorization": given}
    response = send(keyed_service, message(method, params), **headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].lower().startswith("bearer")
    assert response.json()["error"]["code"] == "unauthorized"
    assert e2b.state()["created"] == created_before


def test_with_the_api_key_and_any_host_a_call_is_answered(
    keyed_service: Service,
) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}", "Host": "code.example.com"}
    assert send(keyed_service, message("ping"), **headers).json()["result"] == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
    ids=["Origin of another page", "Origin null", "Host", "Host and Origin agree"],
)
def test_a_web_page_cannot_call_the_tool(
    roomy_service: Service, e2b: LocalE2B, headers: dict[str, str]
) -> None:
    created_before = e2b.state()["created"]
    params = {"name": "execute_python", "arguments": {"code": "1"}}
    response = send(roomy_service, message("tools/call", params), **headers)
    assert response.status_code == 403
    assert not LOGIN_WORDS.search(response.json()["error"]["message"])
    assert e2b.state()["created"] == created_before
