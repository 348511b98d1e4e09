"""Clients that mean harm, with and without a key: /health answers all the while.

Afterwards the worker is the same process, with as
many threads and descriptors, and every slot is free.
"""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from threading import Event, Thread

import psutil
import pytest
import requests
from attacks import (
    LICENCE,
    Attackers,
    Streamers,
    bodies_of_small_chunks,
    does_not_close,
    drips_bodies,
    drips_headers,
    head,
    heads_in_pieces,
    health_s,
    large_exec,
    post,
    printed,
    reads_nothing,
    runs_a_licence,
    sends_large_bodies,
)
from builders import END, figure, padded_png, stdout
from local_e2b import LocalE2B
from raw_http import all_of

from conftest import E2B_KEY, OK_RUN, ROOT, Service, e2b_at, free_port, text_of, urls_of

PROXY_KEY = "proxy-key-0123456789-abcdef"
AUTHORIZATION = {"Authorization": f"Bearer {PROXY_KEY}"}
MAX_GROWTH_MB = 64
# How often /health is asked: the first answer, before the slow ones are known, may be
# slow on a busy machine.
AT_LEAST = 5
# More than the queue of the log and a pipe hold.
REQUESTS = 1800
# More than a pipe alone holds.
PIPE_FULL = 400

pytestmark = pytest.mark.usefixtures("untraced", "runs_print_ok")


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    picture = folder / f"e2b-{secrets.token_urlsafe(24)}.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5_000_000))
    return folder


@pytest.fixture(scope="module", params=["", PROXY_KEY], ids=["no key", "key"])
def attacked_service(
    request: pytest.FixtureRequest,
    e2b: LocalE2B,
    image_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    service = Service(
        e2b_at(e2b.url)
        | {
            "PROXY_API_KEY": request.param,
            "FILES_DIR": str(tmp_path_factory.mktemp("files")),
            "IMAGE_DIR": str(image_dir),
            "IMAGE_URL": "http://127.0.0.1/images",
        }
    )
    try:
        service.wait_until_ready()
        # As many runs at once as there may be: all threads that it ever has are there.
        e2b.set_script({"run": {"run_s": 0.5, **OK_RUN}})
        with ThreadPoolExecutor(20) as threads:
            assert all(map(text_of, threads.map(execute, [service] * 20)))
        e2b.set_script({"run": OK_RUN})
        e2b.wait_for(lambda state: state["alive"] == 0)
        yield service
    finally:
        service.stop()


def execute(service: Service, path: str = "/execute") -> requests.Response:
    return requests.post(
        service.url + path, json={"code": "1"}, headers=AUTHORIZATION, timeout=100
    )


# --- what is watched -----------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    pid: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, service: Service) -> Footprint:
        worker = worker_of(service)
        # The SDK keeps as many connections to E2B as there ever were at once.
        kept = [
            connection
            for connection in worker.net_connections("tcp")
            if connection.raddr and connection.laddr.port != service.port
        ]
        descriptors = worker.num_fds() - len(kept)
        return cls(worker.pid, worker.num_threads(), descriptors)

    def is_within(self, other: Footprint) -> bool:
        """The same process holds no more: less is only what came to its end since."""
        return (
            self.pid == other.pid
            and self.threads <= other.threads
            and self.descriptors <= other.descriptors
        )


def worker_of(service: Service) -> psutil.Process:
    (worker,) = psutil.Process(service.process.pid).children()
    return worker


@contextmanager
def nothing_remains(service: Service) -> Iterator[None]:
    before = Footprint.of(service)
    memory = worker_of(service).memory_info().rss
    yield
    give_up_at = time.monotonic() + 20

    def grown_mb() -> float:
        return float((worker_of(service).memory_info().rss - memory) / 1e6)

    while not Footprint.of(service).is_within(before) or grown_mb() >= MAX_GROWTH_MB:
        left = (Footprint.of(service), before, grown_mb())
        assert time.monotonic() < give_up_at, left
        time.sleep(0.05)
    health = requests.get(f"{service.url}/health", timeout=20).json()
    assert health["runs_in_flight"] == 0
    assert text_of(execute(service))


def assert_health_is_quick(service: Service) -> None:
    """Every answer has the cost of an attack, some have what else the machine does.

    So the quickest quarter is looked at, once the attack has gone on for a while. `make
    soak` looks at the longest answers."""
    health_s(service.port, 3, AT_LEAST)
    took_s = health_s(service.port, 1.5, AT_LEAST)
    assert quantiles(took_s, n=4)[0] < 0.1, took_s


def connected(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=100)


# --- the end of connections -----------------------------------------------------


def test_300_clients_that_do_not_close_leave_health_quick(
    attacked_service: Service,
) -> None:
    """gunicorn's main thread would wait for each of them, for up to 2 s."""
    with nothing_remains(attacked_service), does_not_close(attacked_service.port):
        took_s = health_s(attacked_service.port, 1.5, AT_LEAST)
    assert median(took_s) < 0.5, took_s[-5:]


def test_a_client_that_still_sends_reads_why_it_was_refused_and_is_not_reset(
    attacked_service: Service,
) -> None:
    with connected(attacked_service) as client:
        lines = ("Content-Length: 40000", "Connection: close")
        client.sendall(head("POST /execute HTTP/1.1", *lines))
        refusal = client.recv(65_536)
        assert re.match(rb"HTTP/1.1 4(01|15) ", refusal)
        for _ in range(40):
            client.sendall(b" " * 1000)
        while client.recv(65_536):
            pass  # to its end


@pytest.mark.parametrize(
    ("body", "lines", "connection"),
    [
        (b'{"code": 1}', ["Content-Type: application/json"], b"keep-alive"),
        (b'{"code": 1}', ["Content-Type: text/plain"], b"close"),
        (b"", ["Content-Type: text/plain"], b"keep-alive"),
    ],
)
def test_a_reply_says_close_where_the_body_was_not_read(
    attacked_service: Service, body: bytes, lines: list[str], connection: bytes
) -> None:
    key = f"Authorization: Bearer {PROXY_KEY}"
    with connected(attacked_service) as client:
        length = f"Content-Length: {len(body)}"
        client.sendall(head("POST /execute HTTP/1.1", *lines, key, length) + body)
        assert b"\r\nConnection: " + connection in client.recv(65_536)


def test_100_clients_that_go_on_after_a_refusal_hold_no_thread(
    attacked_service: Service,
) -> None:
    lines = ("Content-Type: text/plain", "Content-Length: 100000000")
    refused = head("POST /execute HTTP/1.1", *lines)
    with (
        nothing_remains(attacked_service),
        Attackers(attacked_service.port, 100, refused, b"x"),
    ):
        assert_health_is_quick(attacked_service)


# --- slow clients -----------------------------------------------------


@pytest.mark.parametrize("drips", [drips_headers, drips_bodies])
def test_100_clients_that_send_a_byte_each_half_second_leave_health_quick(
    attacked_service: Service, drips: Callable[[int], Attackers]
) -> None:
    with nothing_remains(attacked_service), drips(attacked_service.port):
        took_s = health_s(attacked_service.port, 2.5, AT_LEAST)
    assert median(took_s) < 1, took_s[-5:]


def test_60_clients_that_do_not_read_a_picture_leave_health_quick(
    attacked_service: Service, image_dir: Path
) -> None:
    (picture,) = image_dir.iterdir()
    path = f"/images/{picture.name}"
    with nothing_remains(attacked_service), reads_nothing(attacked_service.port, path):
        took_s = health_s(attacked_service.port, 2.5, AT_LEAST)
    assert median(took_s) < 1, took_s[-5:]


def test_60_clients_that_do_not_read_a_file_leave_health_quick(
    attacked_service: Service,
) -> None:
    uploaded = requests.post(
        f"{attacked_service.url}/v1/upload",
        files={"file": ("a", bytes(20_000_000))},
        headers=AUTHORIZATION,
        timeout=100,
    ).json()
    file_id = uploaded["files"][0]["fileId"]
    path = f"/v1/download/{uploaded['storage_session_id']}/{file_id}"
    key = f"Authorization: Bearer {PROXY_KEY}"
    with (
        nothing_remains(attacked_service),
        reads_nothing(attacked_service.port, path, key),
    ):
        took_s = health_s(attacked_service.port, 2.5, AT_LEAST)
    assert median(took_s) < 1, took_s[-5:]


def test_an_upload_at_a_fair_rate_is_not_cut_off_among_slow_clients(
    attacked_service: Service,
) -> None:
    """Here 130 KB each 5 s: over any 10 s that is more than 16 KiB/s."""
    body = json.dumps({"code": "1"}).ljust(260_000).encode()
    request = post(len(body), f"Authorization: Bearer {PROXY_KEY}")
    with drips_bodies(attacked_service.port), connected(attacked_service) as client:
        client.sendall(request)
        for start in range(0, len(body), 130_000):
            if start:
                time.sleep(5)
            client.sendall(body[start : start + 130_000])
        assert client.recv(65_536).startswith(b"HTTP/1.1 200")


# --- requests that are long to read ----------------------------------------------


def small_chunks_with_the_key(port: int) -> Streamers:
    return bodies_of_small_chunks(port, f"Authorization: Bearer {PROXY_KEY}")


@pytest.mark.parametrize(
    "streams", [heads_in_pieces, bodies_of_small_chunks, small_chunks_with_the_key]
)
def test_heads_and_bodies_in_very_small_pieces_leave_health_quick(
    attacked_service: Service, streams: Callable[[int], Streamers]
) -> None:
    with nothing_remains(attacked_service), streams(attacked_service.port):
        assert_health_is_quick(attacked_service)


HEADS = {
    "a token of 4 kB": (["Authorization: Bearer " + "t" * 4000], 200),
    "cookies of 8 kB": (["Cookie: " + "c" * 8100], 200),
    "both, and 50 of a proxy's": (
        [
            "Cookie: " + "c" * 8100,
            "Authorization: Bearer " + "t" * 4000,
            *[f"X-Forwarded-{n}: {'x' * 200}" for n in range(50)],
        ],
        200,
    ),
    "a header of 9 kB": (["Cookie: " + "c" * 9000], 431),
    "65 headers": ([f"X-{n}: 1" for n in range(65)], 431),
    "40 kB in all": ([f"X-{n}: {'x' * 5000}" for n in range(8)], 431),
}


@pytest.mark.parametrize("row", HEADS)
@pytest.mark.parametrize("piece_bytes", [7, 100_000])
def test_heads_of_browsers_and_libre_chat_pass_and_longer_ones_are_told(
    attacked_service: Service, row: str, piece_bytes: int
) -> None:
    headers, status = HEADS[row]
    whole = head("GET /health HTTP/1.1", *headers)
    with connected(attacked_service) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(whole), piece_bytes):
            try:
                client.sendall(whole[start : start + piece_bytes])
            except ConnectionError:
                break  # refused before its end
        assert client.recv(65_536).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("cut", range(-4, 60, 3))
def test_a_request_that_comes_with_the_end_of_the_one_before_is_answered(
    attacked_service: Service, cut: int
) -> None:
    """Wherever it is cut: in the body before it, in its head, in the head's end."""
    body = b'{"code": 3}'
    lines = (f"Authorization: Bearer {PROXY_KEY}", "Content-Type: application/json")
    first = (
        head("POST /execute HTTP/1.1", *lines, f"Content-Length: {len(body)}") + body
    )
    second = head("GET /health HTTP/1.1", "Connection: close")
    end = len(first) + cut
    whole = first + second
    with connected(attacked_service) as client:
        client.sendall(whole[:end])
        if cut >= 0:
            assert client.recv(65_536).startswith(b"HTTP/1.1 400 ")
        client.sendall(whole[end:])
        replies = b""
        while data := client.recv(65_536):
            replies += data
    assert b"HTTP/1.1 200 OK" in replies


def test_a_line_that_ends_in_a_bare_newline_is_refused_at_once(
    attacked_service: Service,
) -> None:
    with connected(attacked_service) as client:
        client.settimeout(5)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("chunk_bytes", "body_bytes", "status"),
    [
        (1, 1500, 200),
        (200, 200_000, 200),
        (1000, 1_000_000, 200),
        (65_536, 1_000_000, 200),
        (1, 20_000, 400),
        (100, 1_000_000, 400),
    ],
)
def test_chunks_may_be_small_and_few_or_many_and_large(
    attacked_service: Service, chunk_bytes: int, body_bytes: int, status: int
) -> None:
    body = b'{"code": "1"}'.ljust(body_bytes)

    def chunks() -> Iterator[bytes]:
        for start in range(0, body_bytes, chunk_bytes):
            yield body[start : start + chunk_bytes]

    reply = b""
    with connected(attacked_service) as client:
        lines = (
            f"Authorization: Bearer {PROXY_KEY}",
            "Content-Type: application/json",
            "Transfer-Encoding: chunked",
            "Connection: close",
        )
        data = head("POST /execute HTTP/1.1", *lines)
        for chunk in chunks():
            data += b"%x\r\n%b\r\n" % (len(chunk), chunk)
        client.sendall(data + b"0\r\n\r\n")
        while data := client.recv(65_536):
            reply += data
    assert reply.startswith(f"HTTP/1.1 {status} ".encode()), reply
    if status == 400:
        assert b"chunks" in reply


# --- much at once -----------------------------------------------------------------

KEY_HEADER = f"Authorization: Bearer {PROXY_KEY}"
# What is large may hold 128 MiB.
MAX_PEAK_MB = 300


@contextmanager
def little_memory(service: Service) -> Iterator[None]:
    """The worker's memory stays below a limit all the while."""
    worker = worker_of(service)
    before = worker.memory_info().rss
    peaks = [before]
    ended = Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peaks.append(worker.memory_info().rss)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    assert (max(peaks) - before) / 1e6 < MAX_PEAK_MB


@pytest.mark.parametrize("is_good", [True, False], ids=["good", "bad"])
def test_20_bodies_of_32_mb_at_once_take_little_memory_and_leave_health_quick(
    attacked_service: Service, is_good: bool
) -> None:
    attack = sends_large_bodies(attacked_service.port, 20, KEY_HEADER, is_good=is_good)
    with (
        nothing_remains(attacked_service),
        little_memory(attacked_service),
        attack as statuses,
    ):
        took_s = health_s(attacked_service.port, 4, AT_LEAST)
    assert median(took_s) < 0.2, took_s[-5:]
    status = b"HTTP/1.1 200 OK" if is_good else b"HTTP/1.1 400 BAD REQUEST"
    assert set(statuses) <= {status, b"HTTP/1.1 429 TOO MANY REQUESTS"}
    assert statuses.count(status) >= 3


@contextmanager
def holding_all_memory(service: Service) -> Iterator[None]:
    """A client whose body, which does not end, has taken all of 1 MiB."""
    with connected(service) as holder:
        holder.sendall(large_exec()[:3_000_000])
        give_up_at = time.monotonic() + 10
        # A small run's pictures are the first for which nothing is left.
        while "held all of the memory" not in text_of(service.execute()):
            assert time.monotonic() < give_up_at
        yield


PICTURE_OF_2_MB = [stdout("the answer\n"), figure(padded_png(2_000_000)), END]


@pytest.fixture
def narrow_service(
    scripted_e2b: LocalE2B, start_service: Callable[..., Service], tmp_path: Path
) -> Service:
    """The least memory there can be for what is large; its runs draw 2 MB."""
    scripted_e2b.set_script({"run": {"events": PICTURE_OF_2_MB}})
    return start_service(
        FILES_DIR=str(tmp_path),
        MAX_IN_FLIGHT_BYTES=str(2**20),
        # No picture waits for memory: it is left out at once.
        MAX_CONCURRENT_RUNS="1",
    )


def test_a_large_body_that_finds_no_memory_reads_when_to_come_again(
    narrow_service: Service,
) -> None:
    with holding_all_memory(narrow_service):
        small = requests.post(
            f"{narrow_service.url}/v1/exec",
            json={"lang": "bash", "code": "x" * 100_000},
            timeout=5,
        )
        assert small.status_code == 200
        with connected(narrow_service) as second:
            second.sendall(large_exec())
            reply = all_of(second)
    assert reply.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nRetry-After: 5\r\n" in reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"] == "rate_limited"


def test_a_large_body_waits_for_memory_that_another_gives_back(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service(FILES_DIR=str(tmp_path), MAX_IN_FLIGHT_BYTES=str(2**20))
    whole = large_exec()

    def ask() -> bytes:
        with connected(service) as second:
            second.sendall(whole)
            return all_of(second)

    with connected(service) as first, ThreadPoolExecutor(1) as threads:
        first.sendall(whole[:3_000_000])
        give_up_at = time.monotonic() + 10
        # The first has its memory once another waits.
        while not wait([reply := threads.submit(ask)], timeout=2).not_done:
            assert time.monotonic() < give_up_at
        first.sendall(whole[3_000_000:])
        assert all_of(first).startswith(b"HTTP/1.1 200 ")
        assert reply.result().startswith(b"HTTP/1.1 200 ")


def test_clients_that_announce_large_bodies_and_send_little_keep_no_other_waiting(
    attacked_service: Service,
) -> None:
    announced = large_exec(KEY_HEADER)[:2_000_000]
    with Attackers(attacked_service.port, 8, announced, b" "):
        for _ in range(2):
            with connected(attacked_service) as client:
                client.settimeout(8)
                client.sendall(large_exec(KEY_HEADER))
                assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("character", ["\0", "\N{GRINNING FACE}"], ids=["NUL", "emoji"])
def test_execs_that_print_much_take_little_memory_and_leave_health_quick(
    attacked_service: Service, e2b: LocalE2B, character: str
) -> None:
    def run(_: int) -> tuple[int, str, str]:
        reply = requests.post(
            f"{attacked_service.url}/v1/exec",
            json={"lang": "bash", "code": "1"},
            headers=AUTHORIZATION,
            timeout=200,
        )
        body = reply.json()
        return len(reply.content), body["stdout"], body["stderr"]

    e2b.set_script(printed(character))
    try:
        with (
            nothing_remains(attacked_service),
            little_memory(attacked_service),
            ThreadPoolExecutor(4) as threads,
        ):
            replies = threads.map(run, range(4))
            took_s = health_s(attacked_service.port, 2, AT_LEAST)
            for size_bytes, output, note in replies:
                assert size_bytes < 24 * 1024 * 1024 + 1000
                assert set(output) == {character}
                assert note.startswith("stdout was cut: ")
            e2b.set_script({"run": OK_RUN})
    finally:
        e2b.set_script({"run": OK_RUN})
    assert median(took_s) < 0.2, took_s[-5:]


# --- code that keeps a pattern busy --------------------------------------------


@pytest.mark.parametrize("path", ["/execute", "/mcp"])
def test_code_under_a_licence_with_windows_newlines_runs_at_once(
    attacked_service: Service, path: str
) -> None:
    """Each of its lines could be matched in two ways: 40 of them ended the worker."""
    code = f"{LICENCE}print(1)\r\n"
    body = {"code": code}
    if path == "/mcp":
        params = {"name": "execute_python", "arguments": body}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    worker = worker_of(attacked_service)
    reply = requests.post(
        attacked_service.url + path, json=body, headers=AUTHORIZATION, timeout=10
    )
    assert reply.status_code == 200
    assert "ok" in reply.text
    assert worker_of(attacked_service) == worker


def test_code_under_a_licence_leaves_health_quick(attacked_service: Service) -> None:
    with nothing_remains(attacked_service), runs_a_licence(attacked_service.port, 4):
        assert_health_is_quick(attacked_service)


def test_refused_bodies_in_chunks_one_after_another_leave_no_memory(
    attacked_service: Service,
) -> None:
    """Not even until Python looks for cycles: nothing else may happen for long."""
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    refused = head("POST /v1/exec HTTP/1.1", *lines, KEY_HEADER)
    worker = worker_of(attacked_service)
    before = worker.memory_info().rss
    for _ in range(10):
        with connected(attacked_service) as client:
            client.sendall(refused)
            for _ in range(33):
                client.sendall(chunk)
            assert client.recv(65_536).startswith(b"HTTP/1.1 413")
    assert (worker.memory_info().rss - before) / 1e6 < MAX_GROWTH_MB


def test_a_run_whose_pictures_find_no_memory_has_its_text_all_the_same(
    narrow_service: Service,
) -> None:
    """The code has run: it is not to be run again because of its pictures."""
    assert len(urls_of(narrow_service.execute())) == 1
    with holding_all_memory(narrow_service):
        reply = narrow_service.execute()
    assert "the answer" in text_of(reply)
    assert "1 picture left out: other large replies held" in text_of(reply)
    assert urls_of(reply) == []


# --- headers of a proxy -----------------------------------------------------


@pytest.mark.parametrize(
    ("first_line", "header"),
    [
        ("POST /images/execute HTTP/1.0", "SCRIPT_NAME: /images"),
        ("POST /images/execute HTTP/1.0", "Script-Name: /images"),
        ("POST /images/execute HTTP/1.0", "PATH_INFO: /execute"),
        ("GET /images/metrics HTTP/1.0", "SCRIPT_NAME: /images"),
        ("GET /images/metrics HTTP/1.0", "PATH_INFO: /metrics"),
    ],
)
def test_no_header_changes_the_path_that_is_served(
    attacked_service: Service, e2b: LocalE2B, first_line: str, header: str
) -> None:
    """A proxy may pass on /images/ only, and every header."""
    created = e2b.state()["created"]
    body = b'{"code": "1"}'
    key = f"Authorization: Bearer {PROXY_KEY}"
    about_body = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    with connected(attacked_service) as client:
        lines = head(first_line, header, key, *about_body)
        client.sendall(lines + body)
        assert re.match(rb"HTTP/1.0 40[45] ", client.recv(65_536))
    assert e2b.state()["created"] == created


# --- descriptors -----------------------------------------------------


@contextmanager
def descriptors_limited_to(limit: int) -> Iterator[None]:
    """For what is started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("key", ["", PROXY_KEY], ids=["no key", "key"])
def test_a_limit_on_descriptors_that_cannot_hold_the_cap_costs_no_run(key: str) -> None:
    with LocalE2B(script={"run": {"run_s": 0.5, **OK_RUN}}) as e2b:
        settings = {"MAX_CONCURRENT_RUNS": "200", "PROXY_API_KEY": key}
        with descriptors_limited_to(256):
            service = Service(e2b_at(e2b.url) | settings)
        try:
            service.wait_until_ready()
            worker = worker_of(service)
            with ThreadPoolExecutor(126) as threads:
                replies = list(threads.map(execute, [service] * 126))
            assert worker_of(service) == worker
            statuses = [reply.status_code for reply in replies]
            assert set(statuses) <= {200, 503}
            assert statuses.count(200) >= 40
            for reply in replies:
                assert reply.headers.get("X-Run-Outcome", "ok") == "ok"
            (warning,) = [line for line in service.lines if '"warning"' in line]
            assert "256" in warning
            assert "200" in warning
        finally:
            service.stop()


def test_running_out_of_descriptors_is_survived(attacked_service: Service) -> None:
    worker = worker_of(attacked_service)
    before = worker.rlimit(psutil.RLIMIT_NOFILE)
    with nothing_remains(attacked_service):
        worker.rlimit(psutil.RLIMIT_NOFILE, (worker.num_fds() + 5, before[1]))
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connected(attacked_service))
            assert health_s(attacked_service.port, 0.5)
        worker.rlimit(psutil.RLIMIT_NOFILE, before)


# --- a log that nobody reads -----------------------------------------------------


@contextmanager
def unread(e2b: LocalE2B, key: str, times: int) -> Iterator[subprocess.Popen[str]]:
    """A service that was asked so many times, and whose log nobody read meanwhile."""
    port = free_port()
    settings = {"E2B_API_KEY": E2B_KEY, "PORT": str(port), "PROXY_API_KEY": key}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "proxy:app"],
        cwd=ROOT,
        env=os.environ | e2b_at(e2b.url) | settings,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        while "Booting worker" not in process.stdout.readline():
            pass
        with requests.Session() as session:
            for number in range(times):
                url = f"http://127.0.0.1:{port}/nothing/{number}"
                assert session.get(url, timeout=20).status_code in (401, 404)
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("key", ["", PROXY_KEY], ids=["no key", "key"])
def test_a_log_that_nobody_reads_keeps_no_one_waiting_and_says_what_is_missing(
    e2b: LocalE2B, key: str
) -> None:
    with unread(e2b, key, REQUESTS) as process:
        process.terminate()
        lines = list(process.stdout or [])
        assert process.wait(20) == 0
    dropped = 0
    for line in lines:
        found = re.search("([0-9]+) lines of this log were dropped", line)
        dropped += int(found[1]) if found else 0
    logged = [line for line in lines if "/nothing/" in line]
    assert dropped > 0
    # A line or two that are no request's may be among the dropped.
    assert REQUESTS <= len(logged) + dropped < REQUESTS + 5
    assert "Shutting down: Master" in lines[-1]


def test_a_log_that_nobody_reads_does_not_keep_the_service_from_stopping(
    e2b: LocalE2B,
) -> None:
    with unread(e2b, "", PIPE_FULL) as process:
        process.terminate()
        assert process.wait(20) == 0
