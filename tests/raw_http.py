"""Requests as bytes, and what comes back over the socket: also what no client sends."""

from __future__ import annotations

import re
import socket

from conftest import Service


def connected(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=100)


def all_of(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    answer = b""
    try:
        while chunk := connection.recv(65_536):
            answer += chunk
    except ConnectionResetError:
        pass
    return answer


def answer_to(service: Service, sent: bytes, half_close: bool = True) -> bytes:
    with connected(service) as connection:
        connection.sendall(sent)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return all_of(connection)


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        "POST /execute HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
    ]
    lines += [f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str = "/health", *headers: str) -> bytes:
    return "\r\n".join(
        [f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    ).encode()


def one_answer(connection: socket.socket) -> bytes:
    """One reply, read by its Content-Length; what follows it is left to be read."""

    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += _some_of(connection, 1)
    found = re.search(rb"(?i)content-length: (\d+)", answer)
    assert found
    end = len(answer) + int(found[1])
    while len(answer) < end:
        answer += _some_of(connection, end - len(answer))
    return answer


def _some_of(connection: socket.socket, size: int) -> bytes:
    chunk = connection.recv(size)
    assert chunk, "it was closed in the middle of a reply"
    return chunk


CHUNKED = (
    "POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
SMUGGLED = "POST /execute HTTP/1.1\r\nHost: localhost\r\n\r\n"
