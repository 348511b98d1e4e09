"""Clients that mean harm, and how long GET /health takes beside them.

Used by the soak and by tests/process/test_attacks.py. Nothing here runs by itself.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from answers import TimedClient, health_of
from launch import LOOPBACK

DROP_EVERY_S = 0.5
# A client that is asked for less would have the system take a whole picture.
RECEIVE_BUFFER_BYTES = 4096
# Half closed or reset. macOS has no name for the first.
HUNG_UP = getattr(select, "POLLRDHUP", select.POLLHUP)


def head(first_line: str, *headers: str) -> bytes:
    return "\r\n".join([first_line, "Host: localhost", *headers, "", ""]).encode()


def post(length: int, *headers: str) -> bytes:
    return head(
        "POST /execute HTTP/1.1",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        *headers,
    )


def health_s(port: int, for_s: float, at_least: int = 1) -> list[float]:
    """How long GET /health took on new connections, the longest last.

    It is asked one after another for `for_s`, and `at_least` so many times. Raises
    WrongAnswer when somebody else answers, or nobody does.
    """
    took_s: list[float] = []
    end_at = time.monotonic() + for_s
    while time.monotonic() < end_at or len(took_s) < at_least:
        started_at = time.monotonic()
        client = TimedClient(port, timeout_s=100)
        answer = client.ask("GET", "/health")
        client.close()
        took_s.append(time.monotonic() - started_at)
        health_of(answer)
        time.sleep(0.04)
    return sorted(took_s)


class Attackers(threading.Thread):
    """Connections that send `first`, then `drop` every half second, and read nothing.

    One that is cut off comes again at once.
    """

    def __init__(self, port: int, count: int, first: bytes, drop: bytes = b"") -> None:
        super().__init__()
        self._port = port
        self._first = first
        self._drop = drop
        self._ended = threading.Event()
        self._count = count
        self._sockets: list[socket.socket] = []

    def _connect(self) -> socket.socket:
        attacker = socket.socket()
        attacker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        attacker.settimeout(5)
        attacker.connect((LOOPBACK, self._port))
        attacker.sendall(self._first)
        return attacker

    def run(self) -> None:
        drop_at = time.monotonic()
        while not self._ended.wait(0.02):
            hung_up = select.poll()
            by_number = {attacker.fileno(): attacker for attacker in self._sockets}
            for number in by_number:
                hung_up.register(number, HUNG_UP)
            for number, _ in hung_up.poll(0):
                attacker = by_number[number]
                attacker.close()
                self._sockets.remove(attacker)
                with suppress(OSError):
                    self._sockets.append(self._connect())
            if time.monotonic() > drop_at:
                drop_at += DROP_EVERY_S
                for attacker in self._sockets:
                    with suppress(OSError):
                        attacker.sendall(self._drop)

    def __enter__(self) -> Attackers:
        self._sockets = [self._connect() for _ in range(self._count)]
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        for attacker in self._sockets:
            attacker.close()


class Streamers(threading.Thread):
    """Connections that each send `first`, then `piece` again and again, in turns.

    Each piece is a packet of its own. One that is refused comes again at once.
    """

    def __init__(self, port: int, count: int, first: bytes, piece: bytes) -> None:
        super().__init__()
        self._port = port
        self._first = first
        self._piece = piece
        self._ended = threading.Event()
        self._sockets = [self._connect() for _ in range(count)]

    def _connect(self) -> socket.socket:
        streamer = socket.create_connection((LOOPBACK, self._port), 100)
        streamer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        streamer.sendall(self._first)
        streamer.setblocking(False)
        return streamer

    def run(self) -> None:
        while not self._ended.is_set():
            for number, streamer in enumerate(self._sockets):
                try:
                    streamer.send(self._piece)
                except BlockingIOError:
                    pass
                except OSError:
                    streamer.close()
                    self._sockets[number] = self._connect()
            # As fast as the service takes them; others may run meanwhile.
            time.sleep(0)

    def __enter__(self) -> Streamers:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        for streamer in self._sockets:
            streamer.close()


def heads_in_pieces(port: int) -> Streamers:
    """30 heads of 50 bytes a packet. Each could be searched anew for each of them."""
    line = b"X-" + b"a" * 40 + b": b\r\n"
    return Streamers(port, 30, b"GET /health HTTP/1.1\r\n", line)


def bodies_of_small_chunks(port: int, *headers: str) -> Streamers:
    """16 bodies in chunks of one byte, a thousand of them a packet."""
    first = head(
        "POST /v1/exec HTTP/1.1",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
        *headers,
    )
    return Streamers(port, 16, first, b"1\r\n \r\n" * 1000)


def drips_headers(port: int) -> Attackers:
    return Attackers(port, 100, b"GET /health HTTP/1.1\r\nX-A: ", b"b")


def drips_bodies(port: int) -> Attackers:
    return Attackers(port, 100, post(900), b" ")


def reads_nothing(port: int, path: str, *headers: str) -> Attackers:
    """`path`: where the service has something large."""
    return Attackers(port, 60, head(f"GET {path} HTTP/1.1", *headers))


@contextmanager
def does_not_close(port: int) -> Iterator[None]:
    """300 clients that leave the closing to the service, and stay."""
    clients = [socket.create_connection((LOOPBACK, port), 100) for _ in range(300)]
    kept = clients[:100]
    for client in kept:
        client.sendall(head("GET /health HTTP/1.1"))
    for client in kept:
        client.recv(65_536)
        client.sendall(head("GET /health HTTP/1.1", "Connection: close"))
    for client in clients[100:200]:
        client.sendall(head("GET /health HTTP/1.0"))
    for client in clients[200:]:
        client.sendall(post(9, "Connection: close") + b"{" * 9)
    try:
        yield
    finally:
        for client in clients:
            client.close()


@contextmanager
def calls(port: int, count: int, request: bytes) -> Iterator[list[bytes]]:
    """Callers that send `request` again and again; the first line of each reply."""
    ended = threading.Event()
    statuses: list[bytes] = []

    def call() -> None:
        while not ended.is_set():
            with socket.create_connection((LOOPBACK, port), 100) as client:
                client.sendall(request)
                reply = client.recv(65_536)
                statuses.append(reply.partition(b"\r\n")[0])
                while client.recv(65_536):
                    pass

    callers = [threading.Thread(target=call) for _ in range(count)]
    for caller in callers:
        caller.start()
    try:
        yield statuses
    finally:
        ended.set()
        for caller in callers:
            caller.join()


def execute(path: str, body: bytes, *headers: str) -> bytes:
    """A request that runs what `body` says, and is the only one of its connection."""
    about_body = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    line = f"POST {path} HTTP/1.1"
    return head(line, *about_body, "Connection: close", *headers) + body


def runs_code(port: int, count: int) -> AbstractContextManager[list[bytes]]:
    """Callers that run code. What it answers is up to the stand-in."""
    return calls(port, count, execute("/execute", b'{"code": "1"}'))


# A licence in the head of a file that was written on Windows.
LICENCE = "# Licensed under the Apache License\r\n" * 2000


def runs_a_licence(port: int, count: int) -> AbstractContextManager[list[bytes]]:
    """Code under comment lines that end in CR LF."""
    body = json.dumps({"code": f"{LICENCE}print(1)\r\n"}).encode()
    return calls(port, count, execute("/execute", body))


def large_exec(*headers: str, is_good: bool = True) -> bytes:
    """The largest body there is. For its emoji Python would take four times as much."""
    code = "\N{GRINNING FACE}".ljust(32 * 1024 * 1024 - 200, "x")
    fields = {"lang": "bash" if is_good else 3, "code": code}
    body = json.dumps(fields, ensure_ascii=False).encode()
    return execute("/v1/exec", body, *headers)


def sends_large_bodies(
    port: int, count: int, *headers: str, is_good: bool = True
) -> AbstractContextManager[list[bytes]]:
    return calls(port, count, large_exec(*headers, is_good=is_good))


def prints_nul(port: int, count: int) -> AbstractContextManager[list[bytes]]:
    """Execs, for a stand-in that answers with `printed`."""
    return calls(port, count, execute("/v1/exec", b'{"lang": "bash", "code": "1"}'))


def printed(character: str) -> dict[str, Any]:
    """The stand-in's script for execs that print 12 Mi of a character."""
    line = json.dumps({"stdout": character * 32_768}, ensure_ascii=False) + "\n"
    end = '{"ended": "ok"}\n{"written_files": 0}\n'
    stdout = {"type": "stdout", "timestamp": "2026-01-01T00:00:00+00:00"}
    events = [
        {"times": 384, "event": {**stdout, "text": line}},
        {**stdout, "text": end},
    ]
    return {"run": {"events": events}}
