"""Clients that take long: idle, silent, dripping ones, and some that stop half-way."""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import pytest
import requests
from raw_http import CHUNKED, all_of, answer_to, connected, one_answer, post

from conftest import Service

pytestmark = pytest.mark.usefixtures("runs_print_ok")

# The beginning of a request, and what is sent of it again and again.
DRIPS = {
    "drips headers": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n"),
    "drips a body": (post(b"", length=100_000), b" "),
    "drips chunks": (
        (CHUNKED + "Transfer-Encoding: chunked\r\n\r\n").encode(),
        b"1\r\n \r\n",
    ),
}
STOPS = {
    "sends half a line": b"GET /hea",
    "sends half a body": post(b'{"co', length=50),
}


def drip(service: Service, start: bytes, drop: bytes) -> bytes:
    """Send a drop every half second until the service answers or closes; returns its
    answer."""
    with connected(service) as connection:
        try:
            connection.sendall(start)
            while True:
                connection.sendall(drop)
                says_something, _, _ = select.select([connection], [], [], 0.5)
                if says_something:
                    return all_of(connection)
        except ConnectionError:
            return b""


def test_a_request_that_drips_or_stops_is_cut_after_15_s(
    shared_service: Service,
) -> None:
    """All of them at once."""

    def timed(client: Callable[[], bytes]) -> tuple[bytes, float]:
        started = time.monotonic()
        return client(), time.monotonic() - started

    with ThreadPoolExecutor(len(DRIPS) + len(STOPS)) as threads:
        ends = {
            name: threads.submit(timed, partial(drip, shared_service, start, drop))
            for name, (start, drop) in DRIPS.items()
        }
        for name, sent in STOPS.items():
            client = partial(answer_to, shared_service, sent, half_close=False)
            ends[name] = threads.submit(timed, client)
        for name, end in ends.items():
            answer, took_s = end.result()
            assert 14 < took_s < 25, name
            assert re.match(rb"$|HTTP/1\.1 4", answer), name


def test_a_node_client_that_posts_after_6_s_idle_gets_no_econnreset(
    shared_service: Service,
) -> None:
    # Refused for what it lacks: no sandbox is made for it.
    with connected(shared_service) as connection:
        connection.sendall(post(b"{}"))
        first = one_answer(connection)
        time.sleep(6)
        connection.sendall(post(b"{}"))
        answers = first + one_answer(connection)
    assert re.findall(rb"HTTP/1\.1 (\d\d\d) ", answers) == [b"400", b"400"]


def test_200_silent_connections_do_not_keep_health_waiting(
    shared_service: Service,
) -> None:
    """Beside clients that drip all the while."""
    silent = [connected(shared_service) for _ in range(200)]
    dripping = {connected(shared_service): drip for drip in DRIPS.values()}
    for connection, (start, _) in dripping.items():
        connection.sendall(start)
    took_s = []
    for _ in range(20):
        for connection, (_, drop) in dripping.items():
            connection.sendall(drop)
        response = requests.get(f"{shared_service.url}/health", timeout=30)
        assert response.ok
        took_s.append(response.elapsed.total_seconds())
    for connection in [*silent, *dripping]:
        connection.close()
    assert median(took_s) < 0.1  # some of them the machine itself may make wait
