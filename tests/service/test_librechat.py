"""What LibreChat makes of the service, shown with
the packages that LibreChat itself is built of.

The scripts in librechat_client/ run librechat-data-provider, the
MCP client and react-markdown in Node; the service runs as shipped
and E2B is the stand-in, told what to answer. `pytest -rP -k adds`
prints what one picture adds to what the model reads, by each way.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from builders import RED_SVG, decoded, error, figure, result, stdout
from local_e2b import LocalE2B
from node_packages import install_packages
from PIL import Image

from conftest import Service, http

pytestmark = pytest.mark.usefixtures("untraced")

CLIENT_DIR = Path(__file__).with_name("librechat_client")
PICTURE_BYTES = 40_000
MAX_ADDED_CHARS = 300
CODE = "import matplotlib.pyplot as plt\nplt.plot(values)\nplt.show()"
PUBLISHED = r"/images/e2b/[A-Za-z0-9_-]{22,}\.png"
API_KEY = "a-key-that-is-long-enough-to-be-one"
Arguments = dict[str, Any]
CLIENT_VERSIONS = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05", "2024-10-07"]


# --- the packages ---------------------------------------------------------------------


class Node:
    """client.mjs of librechat_client/, and what each of its clients gives."""

    def __init__(self) -> None:
        # axios heeds HTTP_PROXY; nothing here may leave the machine.
        environ = {
            k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")
        }
        self._process = subprocess.Popen(
            ["node", "client.mjs"],
            cwd=CLIENT_DIR,
            env={**environ, "NODE_ENV": "production"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def action(self, url: str, *calls: Arguments, key: str = "") -> dict[str, Any]:
        return dict(self._ask("action", url, calls, key))

    def mcp(
        self, url: str, *calls: Arguments, key: str = "", session: str = ""
    ) -> dict[str, Any]:
        return dict(self._ask("mcp", url, calls, key, session))

    def markdown(self, text: str) -> str:
        return str(self._ask("markdown", text))

    def _ask(self, *call: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        watchdog = threading.Timer(60, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line, "node gave no answer: its trace is on stderr"
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def node(start_shared: Callable[..., Service]) -> Iterator[Node]:
    """Closed before the services are stopped: they
    wait for connections that are kept alive."""
    install_packages(CLIENT_DIR, "LibreChat's own packages were")
    client = Node()
    yield client
    client.close()


# --- what the sandbox answers ---------------------------------------------------------


def sandbox_prints(e2b: LocalE2B, *events: dict[str, Any]) -> None:
    """Every run from now on answers with these events."""
    sandboxes_print(e2b, list(events))


def sandboxes_print(e2b: LocalE2B, *runs: list[dict[str, Any]]) -> None:
    """The next run answers with the first list of
    events, and so on; the last one repeats."""
    e2b.set_script({"run": [{"events": events} for events in runs]})


def count_runs(state: dict[str, Any]) -> int:
    """How often the sandboxes were told to run something."""
    return sum(request["kind"] == "run" for request in state["requests"])


@contextmanager
def one_run_under_way(e2b: LocalE2B, service: Service) -> Iterator[None]:
    """A run of the service's that lasts as long as the block does."""
    e2b.set_script({"run": {"fault": "silent"}})
    runs_before = count_runs(e2b.state())
    url, body = f"{service.url}/execute", {"code": CODE, "timeout": 20}
    caller = threading.Thread(
        target=http.post, args=(url,), kwargs={"json": body, "timeout": 30}
    )
    caller.start()
    try:
        e2b.wait_for(lambda state: count_runs(state) > runs_before, 20)
        yield
    finally:
        for sandbox in e2b.state()["sandboxes"]:
            if not sandbox["alive"]:
                continue
            address = f"{e2b.url}/sandboxes/{sandbox['id']}"
            http.delete(address, headers={"X-API-Key": "any"}, timeout=30)
        caller.join()


@pytest.fixture(scope="module")
def one_slot_service(start_shared: Callable[..., Service]) -> Service:
    """The service as an operator gets it, but with one slot."""
    return start_shared(MAX_CONCURRENT_RUNS="1")


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def keyed_serving_service(
    start_shared: Callable[..., Service], image_dir: Path
) -> Service:
    """A service with an API key that serves the pictures that it publishes."""
    pictures = {
        "IMAGE_DIR": str(image_dir),
        "IMAGE_URL": "https://pictures.example/images",
    }
    return start_shared(PROXY_API_KEY=API_KEY, **pictures)


@pytest.fixture(scope="module")
def linking_service(start_shared: Callable[..., Service], image_dir: Path) -> Service:
    """A service that publishes pictures in a folder that LibreChat serves."""
    return start_shared(IMAGE_DIR=str(image_dir), IMAGE_URL="/images/e2b")


@pytest.fixture(scope="session")
def noise_png() -> bytes:
    """A real PNG of PICTURE_BYTES, give or take two
    hundred; noise, so that nothing shrinks it."""
    side = 115
    pixels = random.Random(1).randbytes(side * side * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(file, "PNG")
    assert abs(len(file.getvalue()) - PICTURE_BYTES) < 200
    return file.getvalue()


# --- what is read from the answers ----------------------------------------------------


def seen_by_action(
    node: Node, service: Service, code: str = CODE, key: str = ""
) -> str:
    """What the model reads after one call as an Action."""
    [seen] = seen_by_actions(node, service, {"code": code}, key=key)
    return seen


def seen_by_actions(
    node: Node, service: Service, *calls: Arguments, key: str = ""
) -> list[str]:
    called = node.action(service.url, *calls, key=key)["calls"]
    assert [call["status"] for call in called] == [200] * len(calls), called
    return [str(call["seen"]) for call in called]


def calls_by_mcp(
    node: Node, service: Service, *calls: Arguments, key: str = ""
) -> list[dict[str, Any]]:
    """What LibreChat makes of each call over MCP."""
    connection = node.mcp(service.url, *calls, key=key)
    assert "error" not in connection, connection
    return list(connection["calls"])


def text_of(seen: str) -> str:
    """The text inside the two-element array."""
    [[part], _content] = json.loads(seen)
    return str(part["text"])


class Page(HTMLParser):
    """The tags of an HTML text, and the addresses of its pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.pictures: list[str | None] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])


# --- Actions --------------------------------------------------------------------------


def test_librechat_makes_one_tool_of_openapi_json_named_and_described_as_written(
    node: Node, one_slot_service: Service
) -> None:
    document = http.get(f"{one_slot_service.url}/openapi.json", timeout=30).json()
    [operation] = [
        o for methods in document["paths"].values() for o in methods.values()
    ]
    action = node.action(one_slot_service.url)
    assert (action["valid"], action["message"]) == (True, "OpenAPI spec is valid.")
    assert action["server_url"] == "http://e2b-proxy:3001"
    assert action["domain"]["isValid"], action["domain"]
    [tool] = action["tools"]
    assert tool["name"] == f"{operation['operationId']}_action_e2b-proxy"
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tool["name"])
    # LibreChat would show a summary in its place.
    assert tool["description"] == operation["description"]
    assert len(tool["description"]) > 100
    assert tool["parameters"]["required"] == ["code"]
    assert tool["parameters"]["properties"]["code"]["type"] == "string"
    assert "$ref" not in json.dumps(tool["parameters"])


def test_an_action_shows_the_model_the_two_element_array_as_json_text(
    node: Node, one_slot_service: Service, e2b: LocalE2B
) -> None:
    sandbox_prints(e2b, stdout("Hello, World!\n"))
    seen = seen_by_action(node, one_slot_service, "print('Hello, World!')")
    text = (
        "**Console Output:**\n```\nHello, World!\n```\n\n"
        "**Executed Code:**\n```python\nprint('Hello, World!')\n```"
    )
    assert json.loads(seen) == [[{"type": "text", "text": text}], {"content": []}]


def test_an_action_strips_unknown_keys_and_never_sends_a_wrong_type(
    node: Node, one_slot_service: Service, e2b: LocalE2B
) -> None:
    sandbox_prints(e2b, stdout("ran\n"))
    call = {"code": "print(1)", "template": "x", "envs": {"A": "b"}}
    [served] = node.action(one_slot_service.url, call)["calls"]
    assert (served["status"], served["arguments"]) == (200, {"code": "print(1)"})
    runs_before = count_runs(e2b.state())
    refused = node.action(
        one_slot_service.url,
        {"code": 1},
        {"timeout": 5},
        {"code": "print(1)", "timeout": "5"},
        {"code": "print(1)", "timeout": 1.5},
    )["calls"]
    assert [call["sent"] for call in refused] == [False] * 4
    assert count_runs(e2b.state()) == runs_before


def test_an_exception_reaches_the_model_of_an_action_as_text_to_act_on(
    node: Node, one_slot_service: Service, e2b: LocalE2B
) -> None:
    sandbox_prints(e2b, error("ZeroDivisionError", "division by zero"))
    [call] = node.action(one_slot_service.url, {"code": "1/0"})["calls"]
    assert (call["status"], call["outcome"]) == (200, "error")
    assert "ZeroDivisionError: division by zero" in text_of(call["seen"])


def test_a_full_service_reaches_the_model_of_an_action_as_a_number_only(
    node: Node, one_slot_service: Service, e2b: LocalE2B
) -> None:
    with one_run_under_way(e2b, one_slot_service):
        [call] = node.action(one_slot_service.url, {"code": "print(1)"})["calls"]
    assert call["seen"] == (
        "API call to http://e2b-proxy failed: "
        "The server responded with status 503: Request failed with status code 503"
    )


def test_an_action_with_the_api_key_is_served_and_one_without_is_refused(
    node: Node, keyed_serving_service: Service, e2b: LocalE2B
) -> None:
    sandbox_prints(e2b, stdout("ran\n"))
    call = {"code": "print(1)"}
    [served] = node.action(keyed_serving_service.url, call, key=API_KEY)["calls"]
    runs_before = count_runs(e2b.state())
    [refused] = node.action(keyed_serving_service.url, call)["calls"]
    assert (served["status"], refused["status"]) == (200, 401)
    assert count_runs(e2b.state()) == runs_before


# --- published pictures ---------------------------------------------------------------


def test_a_published_picture_is_shown_in_the_chat_byte_for_byte(
    node: Node,
    linking_service: Service,
    e2b: LocalE2B,
    noise_png: bytes,
    image_dir: Path,
) -> None:
    sandbox_prints(e2b, figure(noise_png))
    seen = seen_by_action(node, linking_service)
    [address] = re.findall(rf"!\[image 1\]\(({PUBLISHED})\)", text_of(seen))
    assert Page(node.markdown(text_of(seen))).pictures == [address]
    assert json.loads(seen)[1]["content"] == [
        {"type": "image_url", "image_url": {"url": address}}
    ]
    assert (image_dir / Path(address).name).read_bytes() == noise_png


def test_a_picture_that_the_service_serves_itself_is_shown_byte_for_byte(
    node: Node, keyed_serving_service: Service, e2b: LocalE2B, noise_png: bytes
) -> None:
    sandbox_prints(e2b, figure(noise_png))
    seen = seen_by_action(node, keyed_serving_service, key=API_KEY)
    [address] = Page(node.markdown(text_of(seen))).pictures
    assert address is not None and address.startswith(
        "https://pictures.example/images/"
    )
    answer = http.get(keyed_serving_service.url + urlsplit(address).path, timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    assert answer.content == noise_png


def test_a_published_svg_is_shown_as_a_png(
    node: Node, linking_service: Service, e2b: LocalE2B, image_dir: Path
) -> None:
    sandbox_prints(e2b, result(text="<IPython.core.display.SVG object>", svg=RED_SVG))
    [address] = Page(
        node.markdown(text_of(seen_by_action(node, linking_service)))
    ).pictures
    assert address is not None and re.fullmatch(PUBLISHED, address)
    assert_red_png((image_dir / Path(address).name).read_bytes())


def test_hostile_output_stays_text_in_the_chat(
    node: Node, one_slot_service: Service, e2b: LocalE2B
) -> None:
    hostile = (
        "```\n![x](https://evil.example/?q=1)\n<img src=x onerror=alert(1)>\n"
        "~~~\n````\n"
    )
    sandbox_prints(
        e2b,
        stdout(hostile),
        {**stdout(hostile), "type": "stderr"},
        result(text=hostile, is_main_result=True),
        error("ValueError", hostile),
    )
    page = Page(node.markdown(text_of(seen_by_action(node, one_slot_service, hostile))))
    assert page.pictures == []
    assert page.tags <= {"p", "strong", "pre", "code"}


# --- MCP ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def connection(node: Node, one_slot_service: Service) -> dict[str, Any]:
    """What LibreChat's MCP client finds when it connects."""
    return node.mcp(one_slot_service.url)


def test_librechats_mcp_client_connects_without_a_stream(
    connection: dict[str, Any],
) -> None:
    assert "error" not in connection, connection
    assert connection["accepted"] == CLIENT_VERSIONS
    assert connection["negotiated"] == connection["offered"] == "2025-11-25"
    assert connection["ping"] == {}
    assert connection["server"]["name"] and connection["server"]["version"]
    assert connection["instructions"]
    posts = [
        exchange for exchange in connection["exchanges"] if exchange["method"] == "POST"
    ]
    assert {exchange["rpc"]: exchange["status"] for exchange in posts} == {
        "initialize": 200,
        "notifications/initialized": 202,
        "ping": 200,
        "tools/list": 200,
    }
    assert {e["content_type"] for e in posts if e["status"] == 200} == {
        "application/json"
    }
    assert {e["version_header"] for e in posts if e["rpc"] != "initialize"} == {
        "2025-11-25"
    }
    [stream] = [
        exchange for exchange in connection["exchanges"] if exchange["method"] == "GET"
    ]
    assert stream["status"] == 405


def test_each_version_that_librechats_client_accepts_is_agreed_to(
    one_slot_service: Service,
) -> None:
    def agreed(version: str) -> str:
        client = {"name": "@librechat/api-client", "version": "1.2.3"}
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": client}
        answer = http.post(
            f"{one_slot_service.url}/mcp",
            json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params},
            headers={"Accept": "application/json, text/event-stream"},
            timeout=30,
        )
        return str(answer.json()["result"]["protocolVersion"])

    assert [agreed(version) for version in CLIENT_VERSIONS] == CLIENT_VERSIONS


def test_the_one_mcp_tool_is_execute_python(connection: dict[str, Any]) -> None:
    [tool] = connection["tools"]
    assert tool["name"] == "execute_python"
    assert len(tool["description"]) > 100
    assert set(tool["inputSchema"]["properties"]) == {"code", "timeout"}
    assert tool["inputSchema"]["required"] == ["code"]


def test_over_mcp_the_text_is_read_and_the_picture_attached_byte_for_byte(
    node: Node, one_slot_service: Service, e2b: LocalE2B, noise_png: bytes
) -> None:
    sandbox_prints(e2b, stdout("Hello, World!\n"), figure(noise_png))
    [call] = calls_by_mcp(node, one_slot_service, {"code": CODE})
    assert call["result"].get("isError", False) is False
    assert "Hello, World!" in call["seen"]
    assert CODE not in call["seen"]  # LibreChat shows the code itself
    [attached] = call["artifact"]["content"]
    assert decoded(attached["image_url"]["url"]) == noise_png
    [part] = [part for part in call["result"]["content"] if part["type"] == "image"]
    assert part["mimeType"] == "image/png"


def test_over_mcp_an_svg_arrives_as_a_png(
    node: Node, one_slot_service: Service, e2b: LocalE2B
) -> None:
    sandbox_prints(e2b, result(text="<IPython.core.display.SVG object>", svg=RED_SVG))
    [call] = calls_by_mcp(node, one_slot_service, {"code": CODE})
    [attached] = call["artifact"]["content"]
    assert_red_png(decoded(attached["image_url"]["url"]))


def assert_red_png(data: bytes) -> None:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        width, height = image.size
        assert width * 3 == height * 4
        assert image.convert("RGB").getpixel((width // 2, height // 2)) == (255, 0, 0)


def test_over_mcp_a_failed_run_is_a_result_that_the_model_can_read(
    node: Node, one_slot_service: Service, e2b: LocalE2B
) -> None:
    sandbox_prints(e2b, stdout("before\n"), error("KeyError", "'x'"))
    raised, wrong_type, no_code = calls_by_mcp(
        node, one_slot_service, {"code": "{}['x']"}, {"code": 1}, {"timeout": 1}
    )
    assert "before" in raised["seen"] and "KeyError: 'x'" in raised["seen"]
    for call in (raised, wrong_type, no_code):
        assert call["result"]["isError"] is True
        assert_not_taken_for_an_auth_failure(call["seen"])
    assert "code" in wrong_type["seen"] and "code" in no_code["seen"]


def test_over_mcp_a_conversation_keeps_its_variables(
    node: Node, start_shared: Callable[..., Service], e2b: LocalE2B
) -> None:
    e2b.set_script({})  # real kernels
    service = start_shared(SESSION_IDLE_S="60")
    calls = {"code": "x = 41"}, {"code": "x + 1"}
    _, second = node.mcp(service.url, *calls, session="user/conversation")["calls"]
    assert "42" in second["seen"]
    (other,) = node.mcp(service.url, calls[1], session="user/another")["calls"]
    assert "NameError" in other["seen"]


def test_over_mcp_a_full_service_says_how_long_to_wait(
    node: Node, one_slot_service: Service, e2b: LocalE2B
) -> None:
    with one_run_under_way(e2b, one_slot_service):
        [call] = calls_by_mcp(node, one_slot_service, {"code": "print(1)"})
    assert call["result"]["isError"] is True
    assert re.search(r"\d+ s", call["seen"])
    assert_not_taken_for_an_auth_failure(call["seen"])


def assert_not_taken_for_an_auth_failure(seen: str) -> None:
    """LibreChat takes a message with one of these words for a failed sign-in."""
    assert not re.search(r"401|oauth|authentication", seen, re.IGNORECASE)


def test_mcp_with_the_api_key_is_served_and_without_is_refused(
    node: Node, keyed_serving_service: Service, e2b: LocalE2B
) -> None:
    sandbox_prints(e2b, stdout("ran\n"))
    [served] = calls_by_mcp(
        node, keyed_serving_service, {"code": "print(1)"}, key=API_KEY
    )
    assert "ran" in served["seen"]
    runs_before = count_runs(e2b.state())
    refused = node.mcp(keyed_serving_service.url, {"code": "print(1)"})
    assert refused["error"]["code"] == 401
    assert "tools" not in refused
    assert count_runs(e2b.state()) == runs_before


# --- what one picture costs -----------------------------------------------------------


def test_a_picture_adds_little_by_mcp_and_published_and_all_of_itself_in_the_bare_array(
    node: Node,
    one_slot_service: Service,
    linking_service: Service,
    e2b: LocalE2B,
    noise_png: bytes,
) -> None:
    calls = [{"code": CODE}] * 2

    def chars_added(seen_by: Callable[[], list[str]]) -> int:
        printed = stdout("done\n")
        sandboxes_print(e2b, [printed], [printed, figure(noise_png)])
        without, with_picture = seen_by()
        return len(with_picture) - len(without)

    def over_mcp(formatted: str) -> list[str]:
        return [
            call[formatted] for call in calls_by_mcp(node, one_slot_service, *calls)
        ]

    added = {
        "MCP": chars_added(lambda: over_mcp("seen")),
        "Action, pictures published": chars_added(
            lambda: seen_by_actions(node, linking_service, *calls)
        ),
        "Action, bare array": chars_added(
            lambda: seen_by_actions(node, one_slot_service, *calls)
        ),
        "MCP, provider without pictures": chars_added(
            lambda: over_mcp("seen_by_other_providers")
        ),
    }

    print(
        f"| way | characters that a PNG of {len(noise_png):,} bytes adds |\n|---|---|"
    )
    for way, chars in added.items():
        print(f"| {way} | {chars:,} |")
    assert 0 <= added["MCP"] < MAX_ADDED_CHARS
    assert 0 < added["Action, pictures published"] < MAX_ADDED_CHARS
    in_base64 = len(base64.b64encode(noise_png))
    assert added["Action, bare array"] > in_base64
    assert added["MCP, provider without pictures"] > in_base64


def test_a_data_uri_of_the_bare_array_would_not_be_shown(
    node: Node, one_slot_service: Service, e2b: LocalE2B, noise_png: bytes
) -> None:
    sandbox_prints(e2b, figure(noise_png))
    [content] = json.loads(seen_by_action(node, one_slot_service))[1]["content"]
    data_uri = content["image_url"]["url"]
    assert decoded(data_uri) == noise_png
    assert Page(node.markdown(f"![image 1]({data_uri})")).pictures == [""]
