"""gunicorn's worker and logger as this service
needs them. Nothing else knows gunicorn's insides.

What is overridden here is private to gunicorn's threaded worker, so
its version is pinned exactly, and tests/process/test_worker.py holds what
is assumed of it. The worker's main thread accepts connections and
polls those that are silent; a pool of threads answers requests:

    accept -> enqueue_req -> handle (in a thread) -> finish_request (in the main thread)
"""

import logging
import os
import socket
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from gunicorn import glogging, util
from gunicorn.workers.gthread import _DEFER, TConn, ThreadWorker

from config import Config, log
from process.json_log import JsonFormatter, QueuedStdout

# Slow is whom a thread waits for longer than
# the bytes that came are worth, at this rate.
_FAIR_BYTES_PER_S = 16 * 1024
# Bytes are worth this much waiting at most: who
# keeps the rate over any 10 s is never slow.
_MAX_CREDIT_S = 10
# A slow client is cut off after this, and no request before it is 15 s old.
_RECEIVE_LIMIT_S = 10
_MIN_AGE_S = 15
_SEND_LIMIT_S = 30
# The same when slow clients hold half of the threads, and when no other is free either.
_LIMIT_AT_HALF_S = 1
_LIMIT_AT_NONE_FREE_S = 0.2
# For a client that was accepted to send its first bytes, when others wait for that.
_SILENCE_LIMIT_S = 1
_CHECK_EVERY_S = 0.1
_PIECE_BYTES = 64 * 1024
# If one thread cannot be started the worker ends;
# the others wait for it no longer than this.
_START_LIMIT_S = 10
# By these systemd and an old master hand on sockets that listen already.
_INHERITED = {"LISTEN_FDS", "GUNICORN_FD"}
# One for the process: gunicorn may set its logger up again.
_STDOUT = QueuedStdout()


class JsonLogger(glogging.Logger):
    """gunicorn's own lines, and ours; LOG_LEVEL is
    not the SDK's, whose debug lines hold code."""

    def __init__(self, cfg: Any) -> None:
        """Made once, before gunicorn's first line: the time to try the addresses."""
        if not _INHERITED & os.environ.keys():
            for address in cfg.address:
                if isinstance(address, tuple):  # neither a path nor a descriptor
                    _try_address(*address)
        super().__init__(cfg)

    def setup(self, cfg: Any) -> None:
        settings = Config.from_env(os.environ)
        level = settings.log_level.upper()
        keys = (settings.e2b_api_key, settings.proxy_api_key)
        _STDOUT.setFormatter(JsonFormatter(keys))
        logging.basicConfig(
            handlers=[_STDOUT],
            level=logging.WARNING,
            force=True,
        )
        log.setLevel(level)
        self.error_log.setLevel(level)
        self.error_log.propagate = True


def _try_address(host: str, port: int) -> None:
    """Exit in a line, at once, where gunicorn would try five times and say so."""
    family = socket.AF_INET6 if util.is_ipv6(host) else socket.AF_INET
    with socket.socket(family) as probe:
        # As gunicorn sets it: connections of a
        # service that has just ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            sys.exit(
                f"Cannot listen at {host}, port {port}: {exc.strerror} (HOST, PORT)"
            )


class ClientSocket(socket.socket):
    """A connection that knows since when its client keeps a thread waiting."""

    # On the monotonic clock, in seconds. Never, while no thread waits;
    # `cut_at` and `cut_how` are of the last wait.
    slow_since = inf
    cut_at = inf
    cut_how = socket.SHUT_RD
    _started_at = 0.0
    _credit_s = 0.0

    def start_request(self) -> None:
        self._started_at = monotonic()
        self._credit_s = 0.0

    def recv(self, size: int, flags: int = 0) -> bytes:
        slow_since = monotonic() + self._credit_s
        self.cut_at = max(
            self._started_at + _MIN_AGE_S,
            slow_since + _RECEIVE_LIMIT_S,
        )
        # It is still told so, by the reply to what came.
        self.cut_how = socket.SHUT_RD
        self.slow_since = slow_since
        data = super().recv(size, flags)
        self.slow_since = inf
        left_s = slow_since - monotonic()
        earned_s = len(data) / _FAIR_BYTES_PER_S
        self._credit_s = min(left_s + earned_s, _MAX_CREDIT_S)
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """In pieces. What the system buffers earns
        no credit: nobody has read it yet."""
        self.cut_at = monotonic() + _SEND_LIMIT_S
        self.cut_how = socket.SHUT_RDWR
        for start in range(0, len(data), _PIECE_BYTES):
            self.slow_since = monotonic()
            end = start + _PIECE_BYTES
            super().sendall(data[start:end], flags)
            self.cut_at += _PIECE_BYTES / _FAIR_BYTES_PER_S
        self.slow_since = inf


class PatientWorker(ThreadWorker):
    """A threaded worker that bounds how long
    slow and silent clients hold its threads."""

    def init_process(self) -> None:
        """The process's whole life."""
        self._handled: set[ClientSocket] = set()  # each has a thread
        # Clients that are slow to close may keep a quarter of the threads.
        self._may_linger = threading.Semaphore(self.cfg.threads // 4)
        super().init_process()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """All threads from the start: one that
        cannot be had is not found out under load."""
        pool = ThreadPoolExecutor(self.cfg.threads)
        all_started = threading.Barrier(self.cfg.threads, timeout=_START_LIMIT_S)
        for _ in range(self.cfg.threads):
            pool.submit(all_started.wait)
        return pool

    def accept(self, listener: socket.socket) -> None:
        try:
            super().accept(listener)
        except OSError:
            # No descriptor is left, say: none is accepted until the next check.
            self.worker_connections = self.nr_conns

    def enqueue_req(self, conn: TConn) -> None:
        """Give a connection a thread, once its first bytes are there."""
        if conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.sock = ClientSocket(fileno=conn.sock.detach())
        # The poller waits for the first bytes; gunicorn would hold a thread for 5 s.
        deferred: Future[object] = Future()
        deferred.set_result(_DEFER)
        self.finish_request(conn, deferred)

    def handle(self, conn: TConn) -> object:
        conn.sock.start_request()
        self._handled.add(conn.sock)
        try:
            is_kept = super().handle(conn)
            if not is_kept:
                self._close(conn.sock)
            return is_kept
        finally:
            self._handled.discard(conn.sock)

    def _close(self, sock: ClientSocket) -> None:
        """Close in the connection's own thread;
        gunicorn would have its main thread wait.

        A client that still sends reads its reply only if what it sends is taken (for 2
        s). Where too many do, the others may lose the reply.
        """
        if self._may_linger.acquire(blocking=False):
            util.close_graceful(sock)
            self._may_linger.release()
        else:
            sock.close()

    def finish_request(self, conn: TConn, fs: Future[object]) -> None:
        if conn.sock.fileno() < 0:  # closed
            self.nr_conns -= 1
        else:
            super().finish_request(conn, fs)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """The main thread's step, repeated to the end; then look after the clients."""
        self.worker_connections = self.cfg.worker_connections
        super().wait_for_and_dispatch_events(min(timeout, _CHECK_EVERY_S))
        if not self._accepting:
            self._limit_silence()
        self._cut_slow_clients()

    def _limit_silence(self) -> None:
        """When there are too many clients, or at the end: silent ones go first."""
        deadline = monotonic() + _SILENCE_LIMIT_S
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)
        if self.alive:  # else gunicorn itself limits them
            self._cap_keepalive(deadline)

    def _cut_slow_clients(self) -> None:
        now = monotonic()
        handled = list(self._handled)
        before = now - _CHECK_EVERY_S
        slow = [sock for sock in handled if sock.slow_since < before]
        limit_s = inf
        if len(slow) >= self.cfg.threads / 2:
            limit_s = _LIMIT_AT_HALF_S
            if len(handled) >= self.cfg.threads:
                limit_s = _LIMIT_AT_NONE_FREE_S
        for sock in slow:
            cut_at = min(sock.cut_at, sock.slow_since + limit_s)
            if now > cut_at:
                with suppress(OSError):  # it is gone already
                    sock.shutdown(sock.cut_how)  # wakes its thread
