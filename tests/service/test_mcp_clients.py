"""What MCP's official clients, and its conformance suite, make of the service.

mcp_clients/ has the scripts that run in Node.js. test_librechat.py holds what the
client that LibreChat uses makes of it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import error, figure, is_running, picture, stdout
from local_e2b import LocalE2B
from node_packages import install_packages

from conftest import Service, http

pytestmark = pytest.mark.usefixtures("untraced")

CLIENTS_DIR = Path(__file__).with_name("mcp_clients")
NEW = "2026-07-28"
OLD = "2025-11-25"
# What a client asks before it has the tools, by its mode.
FIRST_REQUESTS = {
    "legacy": ["initialize", "notifications/initialized", "GET", "tools/list"],
    "auto": ["server/discover", "tools/list"],
    NEW: ["server/discover", "tools/list"],
}
KEY = "a-key-that-is-long-enough-to-be-one"
FAILURE = "Error: tool call failed: ValueError: no"


@pytest.fixture(scope="module")
def node() -> None:
    install_packages(CLIENTS_DIR, "MCP's own packages were")


def start_node(*arguments: str) -> subprocess.Popen[str]:
    # Nothing here may leave the machine.
    environ = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return subprocess.Popen(
        ["node", *arguments],
        cwd=CLIENTS_DIR,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def output_of(process: subprocess.Popen[str], timeout_s: float = 120) -> str:
    try:
        output, _ = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return output


@pytest.mark.parametrize("version", [NEW, OLD])
def test_the_conformance_suite_finds_what_is_listed_and_nothing_else(
    node: None,
    version: str,
    shared_service: Service,
    runs_print_ok: None,
    tmp_path: Path,
) -> None:
    """A check that is listed and passes ends it with 1, too."""
    suite = "node_modules/@modelcontextprotocol/conformance/dist/index.js"
    process = start_node(
        *("--import", "./node_20.mjs", suite, "server"),
        *("--url", f"{shared_service.url}/mcp", "--requirements", version),
        *("--expected-failures", f"expected-{version}.yml", "-o", str(tmp_path)),
    )
    output = output_of(process)
    assert process.returncode == 0, output
    statuses = [
        check["status"]
        for path in tmp_path.rglob("checks.json")
        for check in json.loads(path.read_text("utf-8"))
    ]
    # What fails early is checked less: so many have to pass.
    assert statuses.count("SUCCESS") >= {NEW: 95, OLD: 35}[version]


@pytest.mark.parametrize("mode", FIRST_REQUESTS)
def test_the_typescript_client_gets_text_picture_and_error(
    node: None, mode: str, shared_service: Service, e2b: LocalE2B
) -> None:
    png = picture()
    shown = [stdout("Hello\n"), figure(png)]
    failed = [error("ValueError", "no")]
    e2b.set_script({"run": [{"events": shown}, {"events": failed}]})
    url = f"{shared_service.url}/mcp"
    output = output_of(start_node("client.mjs", url, mode, *['{"code": "draw()"}'] * 2))
    seen = json.loads(output)
    assert seen["version"] == (OLD if mode == "legacy" else NEW)
    assert "Nothing is kept between calls" in seen["instructions"]
    assert seen["before"] == FIRST_REQUESTS[mode]
    [tool] = seen["tools"]
    assert tool["annotations"] == {
        "readOnlyHint": False,
        "idempotentHint": False,
        "openWorldHint": True,
    }
    drawn, failure = seen["results"]
    text, image = drawn["content"]
    assert text["text"].startswith("Hello\n")
    assert base64.b64decode(image["data"]) == png
    assert (drawn["isError"], failure["isError"]) == (False, True)
    assert failure["content"][0]["text"].startswith(FAILURE)


@pytest.mark.parametrize("mode", FIRST_REQUESTS)
def test_a_call_that_the_typescript_client_cancels_is_stopped(
    node: None, mode: str, shared_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script({"run": {"fault": "silent"}})
    url = f"{shared_service.url}/mcp"
    process = start_node("client.mjs", url, mode, '{"code": "wait()"}')
    assert process.stdin
    with no_run_left(e2b):
        process.stdin.write("cancel\n")
        process.stdin.flush()
    [result] = json.loads(output_of(process))["results"]
    assert "abort" in result["failed"].lower()


@contextmanager
def no_run_left(e2b: LocalE2B) -> Iterator[None]:
    """The block stops a run that is under way, long before its limit of 50 s."""
    e2b.wait_for(is_running, 20)
    yield
    e2b.wait_for(lambda state: state["alive"] == 0, 20)


# --- the client for Python ------------------------------------------------------------


async def talk_in_python(
    service: Service, mode: str, talk: Callable[[Any], Any], key: str = ""
) -> Any:
    """What `talk` does with the SDK's client for Python."""
    # Not with the other imports: these are heavy, and whoever collects tests would wait
    # for them.
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as web:
        transport = streamable_http_client(f"{service.url}/mcp", http_client=web)
        async with Client(transport, mode=mode) as client:
            return await talk(client)


@pytest.mark.parametrize(
    ("mode", "version"), [("auto", NEW), (NEW, NEW), ("legacy", OLD)]
)
def test_the_python_client_gets_text_picture_and_error(
    mode: str, version: str, start_shared: Callable[..., Service], e2b: LocalE2B
) -> None:
    png = picture()
    shown = [stdout("Hello\n"), figure(png)]
    failed = [error("ValueError", "no")]
    e2b.set_script({"run": [{"events": shown}, {"events": failed}]})

    async def talk(client: Any) -> tuple[str, Any, Any, Any]:
        tools = await client.list_tools()
        drawn = await client.call_tool("execute_python", {"code": "draw()"})
        failure = await client.call_tool("execute_python", {"code": "fail()"})
        return client.protocol_version, tools, drawn, failure

    service = start_shared(PROXY_API_KEY=KEY)
    agreed, listed, drawn, failure = asyncio.run(
        talk_in_python(service, mode, talk, KEY)
    )
    assert agreed == version
    assert [tool.name for tool in listed.tools] == ["execute_python"]
    text, image = drawn.content
    assert text.text.startswith("Hello\n")
    assert image.mime_type == "image/png"
    assert base64.b64decode(image.data, validate=True) == png
    assert (drawn.is_error, failure.is_error) == (False, True)
    assert failure.content[0].text.startswith(FAILURE)


@pytest.mark.parametrize("mode", FIRST_REQUESTS)
def test_a_call_that_the_python_client_cancels_is_stopped(
    mode: str, shared_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script({"run": {"fault": "silent"}})

    async def talk(client: Any) -> None:
        call = asyncio.create_task(
            client.call_tool("execute_python", {"code": "wait()"})
        )
        await asyncio.to_thread(e2b.wait_for, is_running, 20)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(e2b.wait_for, lambda state: state["alive"] == 0, 20)
        await client.list_tools()  # the client goes on

    asyncio.run(talk_in_python(shared_service, mode, talk))


@pytest.mark.parametrize("version", [NEW, OLD])
def test_each_answer_has_the_form_of_the_published_schema(
    version: str, shared_service: Service, e2b: LocalE2B
) -> None:
    """The suite calls the tool with empty arguments only. These models are made from
    the schema of each version."""
    from mcp_types.methods import validate_server_result

    shown = [stdout("Hello\n"), figure(picture())]
    failed = [error("ValueError", "no")]
    e2b.set_script({"run": [{"events": shown}, {"events": failed}]})
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    call = {"name": "execute_python", "arguments": {"code": "1"}}
    first = "server/discover" if version == NEW else "initialize"
    for method, asked in (
        (first, {"protocolVersion": version}),
        ("tools/list", {}),
        ("tools/call", call),
        ("tools/call", call),
    ):
        params = {**asked, "_meta": meta} if version == NEW else asked
        headers = {"MCP-Protocol-Version": version}
        if version == NEW:
            headers |= {"Mcp-Method": method, "Mcp-Name": asked.get("name", "")}
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        url = f"{shared_service.url}/mcp"
        answer = http.post(url, json=message, headers=headers, timeout=30).json()
        validate_server_result(method, version, answer["result"])
