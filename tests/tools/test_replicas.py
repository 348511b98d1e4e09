"""Replicas behind nginx: what is lost when one of them dies, and how much they do.

Skipped where nginx is not installed. `-rP` shows the figures of docs/performance.md.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import launch
import pytest
import requests
from bench import delays, printing
from bench_load import Generator
from local_e2b import LocalE2B
from processes import StandIn

from conftest import ROOT, Service, e2b_at, free_port

NGINX = shutil.which("nginx")
pytestmark = [
    pytest.mark.usefixtures("untraced"),
    pytest.mark.skipif(not NGINX, reason="replicas: nginx is not installed"),
]
# Each replica has the same port at an address of its own, as in Docker.
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
CALLS = 300
CALLERS = 8
KILL_AT = 100
STOP_AT = 200
PNG = b"\x89PNG"
DRAW = "import matplotlib.pyplot as plt\nplt.plot([{number}, 1])\nplt.show()"
MAIN = """
worker_processes 1;
daemon off;
error_log stderr;
pid {folder}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {conf}
}}
"""


@contextmanager
def name_server() -> Iterator[int]:
    """A port at which each name has all of ADDRESSES, as Docker's own answers."""
    answers = b"".join(
        b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + socket.inet_aton(address)
        for address in ADDRESSES
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                query, client = server.recvfrom(512)
                if not query:
                    return
                question = query[12:]
                name_end = question.index(b"\0") + 1
                is_ipv4 = question[name_end : name_end + 2] == b"\0\1"
                count = len(ADDRESSES) if is_ipv4 else 0
                head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, count, 0, 0)
                body = question[: name_end + 4]
                server.sendto(head + body + (answers if is_ipv4 else b""), client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", server.getsockname())
        thread.join()


def resolves_names() -> bool:
    said = subprocess.run([str(NGINX), "-v"], capture_output=True, text=True).stderr
    version = re.search(r"/(\d+)\.(\d+)\.(\d+)", said)
    assert version, said
    return tuple(map(int, version.groups())) >= (1, 27, 3)


def conf_for(port: int, replica_port: int, name_server_port: int, count: int) -> str:
    """deploy/replicas.conf on this machine, which says of each reply whose it is."""
    conf = (ROOT / "deploy/replicas.conf").read_text()
    changes = {
        "listen 3001;": f"listen 127.0.0.1:{port};",
        "resolver 127.0.0.11": f"resolver 127.0.0.1:{name_server_port}",
        "server e2b-proxy:3001": f"server e2b-proxy:{replica_port}",
        "location / {": "location / {\nadd_header X-Replica $upstream_addr always;",
    }
    for shipped, here in changes.items():
        assert shipped in conf
        conf = conf.replace(shipped, here)
    if count == len(ADDRESSES) and resolves_names():
        return conf
    # As the file's first lines say.
    lines = [f"server {each}:{replica_port};" for each in ADDRESSES[:count]]
    conf = re.sub(r"\n +(zone|resolver) .*", "", conf)
    return re.sub(r"server e2b-proxy:\d+ resolve;", "\n".join(lines), conf)


@dataclass
class Replicas:
    """nginx, and the services behind it."""

    url: str
    services: list[Service] = field(default_factory=list)

    def address(self, index: int) -> str:
        return f"{ADDRESSES[index]}:{self.services[index].port}"

    def end(self, index: int, number: signal.Signals) -> None:
        """By SIGKILL as a whole, as when its container is killed."""
        process = self.services[index].process
        if number == signal.SIGKILL:
            launch.kill(process)
        else:
            process.send_signal(number)


@contextmanager
def replicas(e2b_url: str, folder: Path, count: int, **more: str) -> Iterator[Replicas]:
    """They share the folders for files and for pictures."""
    shared = {name: folder / name for name in ("files", "images")}
    for path in shared.values():
        path.mkdir()
    environ = {
        **e2b_at(e2b_url),
        "PORT": str(free_port()),
        "FILES_DIR": str(shared["files"]),
        "IMAGE_DIR": str(shared["images"]),
        "IMAGE_URL": "/images",
        **more,
    }
    port = free_port()
    with ExitStack() as stack:
        found = Replicas(f"http://127.0.0.1:{port}")
        for address in ADDRESSES[:count]:
            service = Service({**environ, "HOST": address})
            stack.callback(service.stop)
            found.services.append(service)
            service.wait_for_log("Listening at")
        name_server_port = stack.enter_context(name_server())
        conf = conf_for(port, int(environ["PORT"]), name_server_port, count)
        main = folder / "nginx.conf"
        main.write_text(MAIN.format(folder=folder, conf=conf))
        nginx = subprocess.Popen(
            [str(NGINX), "-p", str(folder), "-e", "stderr", "-c", str(main)]
        )
        stack.callback(nginx.wait)
        stack.callback(nginx.terminate)

        def is_up() -> bool:
            return launch.is_healthy(port)

        launch.wait_until(is_up, nginx)
        yield found


class Caller:
    """One of those who call at once, with a conversation of its own."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        self.conversation = {"X-Session-Id": f"user/{name}"}
        # What its sandbox holds. After a call that failed this is not known.
        self.kept: int | None = None
        self.has_called = False

    def ask(self, method: str, path: str, **how: Any) -> requests.Response:
        return self.session.request(method, f"{self.url}{path}", timeout=90, **how)

    def post(self, path: str, **how: Any) -> requests.Response:
        response = self.ask("POST", path, **how)
        response.raise_for_status()
        return response

    def call(self, number: int) -> None:
        """One call, by one of five ways. Raises AssertionError for a wrong answer,
        HTTPError for one that was lost."""
        ways = (self.execute, self.mcp, self.keep, self.files, self.picture)
        ways[number % len(ways)](number)

    def execute(self, number: int) -> None:
        reply = self.post("/execute", json={"code": f"print({number} * 7)"})
        assert f"\n{number * 7}\n" in reply.json()[0][0]["text"]

    def mcp(self, number: int) -> None:
        call = {"name": "execute_python", "arguments": {"code": f"print({number} * 7)"}}
        message = {"jsonrpc": "2.0", "id": number, "method": "tools/call"}
        reply = self.post("/mcp", json={**message, "params": call})
        text = reply.json()["result"]["content"][0]["text"]
        assert str(number * 7) in text

    def keep(self, number: int) -> None:
        """A value that the conversation's next call finds."""
        code = f"print('kept', globals().get('kept'))\nkept = {number}"
        known, self.kept = self.kept, None
        is_first, self.has_called = not self.has_called, True
        reply = self.post("/execute", json={"code": code}, headers=self.conversation)
        text = reply.json()[0][0]["text"]
        self.kept = number
        if known is not None or is_first:
            assert f"kept {known}\n" in text

    def files(self, number: int) -> None:
        data = f"{number}\n".encode() * 1000
        uploaded = self.post("/v1/upload", files={"file": ("a.txt", data)}).json()
        file = {
            "name": "a.txt",
            "id": uploaded["files"][0]["fileId"],
            "storage_session_id": uploaded["storage_session_id"],
        }
        body = {"lang": "bash", "code": "rev a.txt >b.txt", "files": [file]}
        reply = self.post("/v1/exec", json=body).json()
        [written] = reply["files"]
        address = f"/v1/download/{reply['session_id']}/{written['id']}"
        response = self.ask("GET", address)
        response.raise_for_status()
        assert response.content == f"{str(number)[::-1]}\n".encode() * 1000

    def picture(self, number: int) -> None:
        reply = self.post("/execute", json={"code": DRAW.format(number=number)})
        [part] = reply.json()[1]["content"]
        response = self.ask("GET", part["image_url"]["url"])
        response.raise_for_status()
        assert response.content.startswith(PNG)


def test_of_300_calls_only_those_under_way_in_the_killed_replica_are_lost(
    tmp_path: Path,
) -> None:
    """Also while another replica is asked to stop. Sessions and files are right."""
    with (
        LocalE2B(ahead=2) as e2b,
        replicas(e2b.url, tmp_path, 3, SESSION_IDLE_S="120") as behind,
    ):
        numbers = iter(range(CALLS))
        turn = threading.Lock()
        lost: list[requests.Response] = []
        served_by: set[str] = set()

        def call_all(caller: Caller) -> int:
            done = 0
            while True:
                with turn:
                    number = next(numbers, None)
                    if number is None:
                        return done
                    if number == KILL_AT:
                        behind.end(1, signal.SIGKILL)
                    if number == STOP_AT:
                        behind.end(2, signal.SIGTERM)
                try:
                    caller.call(number)
                    done += 1
                except requests.HTTPError as exc:
                    assert exc.response is not None
                    lost.append(exc.response)

        def note(response: requests.Response, *_: Any, **__: Any) -> None:
            served_by.add(response.headers["X-Replica"].split(", ")[-1])

        callers = [Caller(behind.url, str(each)) for each in range(CALLERS)]
        for caller in callers:
            caller.session.hooks["response"].append(note)
        with ThreadPoolExecutor(CALLERS) as threads:
            done = sum(threads.map(call_all, callers))
        assert served_by == {behind.address(index) for index in range(3)}
        assert done + len(lost) == CALLS
        assert len(lost) <= CALLERS
        for response in lost:
            assert response.status_code == 502
            assert response.headers["X-Replica"] == behind.address(1)
        assert behind.services[2].process.wait(30) == 0
        print(f"{done} of {CALLS} calls right; lost in the killed replica: {len(lost)}")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_how_many_runs_a_second(tmp_path: Path, count: int) -> None:
    """A figure, and no limit: it says how much another replica is worth here.

    The stand-in and the load have processes of their own, as in the bench.
    """
    calls = 100
    with (
        StandIn(delays(0, 0)) as e2b,
        replicas(e2b.url, tmp_path, count) as behind,
        Generator(launch.clean_environ(e2b.url)) as load,
    ):
        job = {"callers": CALLERS, "port": urlsplit(behind.url).port, **printing(0)}
        load.ask("service", **job, calls=5)  # each imports what it needs, and connects
        done = load.ask("service", **job, calls=calls)
        runs = len(done["durations_s"])
        assert runs == CALLERS * calls
        print(f"{count} replicas: {runs / done['took_s']:.0f} runs a second")
