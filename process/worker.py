"""gunicorn's worker as this service needs it. Nothing else knows gunicorn's insides.

The methods overridden here are private to gunicorn's threaded worker. So its version is
pinned exactly, and tests/process/test_worker.py checks what is assumed about it. The
worker's main thread accepts connections and polls those that are silent; a pool of
threads answers requests:

    accept -> enqueue_req -> handle (in a thread) -> finish_request (in the main thread)

Before a connection is closed, the main thread reads it to its end:

    finish_request -> _linger -> _take_rest, while the client sends -> _close
"""

import ctypes
import re
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import inf
from selectors import EVENT_READ
from time import monotonic
from typing import Any

from gunicorn.http.body import Body, ChunkedReader
from gunicorn.http.errors import InvalidChunkSize, LimitRequestHeaders
from gunicorn.workers.gthread import TConn, ThreadWorker

from caller import Caller

# A client is slow once its thread has waited longer than its bytes would have taken at
# this rate.
_FAIR_BYTES_PER_S = 16 * 1024
# Credit for bytes already received is capped at this many seconds. So a client that
# keeps the rate over any 10 s is never slow.
_MAX_CREDIT_S = 10
# How long a client may be slow before it is cut off: while it sends a request, which
# also has to be at least this old, and while it is sent a reply.
_RECEIVE_LIMIT_S = 10
_MIN_AGE_S = 15
_SEND_LIMIT_S = 30
# Shorter limits: when slow clients hold half of the threads; when no thread is free at
# all, either.
_LIMIT_AT_HALF_S = 1
_LIMIT_AT_NONE_FREE_S = 0.2
# How long an accepted client may stay silent while others wait to be accepted.
_SILENCE_LIMIT_S = 1
_CHECK_EVERY_S = 0.1
_PIECE_BYTES = 64 * 1024
# A client that was answered may go on sending a body that nobody wants: for this long,
# with pauses this long, and this many bytes, which no upload exceeds. It costs a
# descriptor, but no thread.
_LINGER_LIMIT_S = 30
_LINGER_SILENCE_S = 2
_LINGER_BYTES = 256 * 1024 * 1024
# A request's line and its headers together; nginx takes as much.
_MAX_HEAD_BYTES = 32 * 1024
# The end of a head, or a bare \n, which gunicorn has to see at once, to refuse it.
_HEAD_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")
# How many pieces a body in chunks may have in any case, and for how many bytes it may
# have one more. A piece costs some 15 us, whatever its size.
_FREE_PIECES = 2000
_BYTES_A_PIECE = 512
# The trailer that may follow the last chunk; nobody sends one.
_MAX_TRAILER_BYTES = 4096
# malloc.h's number of the setting: the size from which on a block is in no pool.
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK_BYTES = 128 * 1024
# The other side sends no more. Linux has this sign, which is there even if bytes of a
# further request wait to be read; elsewhere a client has to be gone altogether.
_HUNG_UP = getattr(select, "POLLRDHUP", select.POLLHUP)
# How long a thread that computes keeps the others waiting. With Python's own 5 ms a
# dozen of them keep /health waiting for half a second.
_SWITCH_INTERVAL_S = 0.001
# If one thread cannot be started the worker ends; the others wait for it no longer than
# this.
_START_LIMIT_S = 10


class ClientSocket(socket.socket):
    """A connection that knows since when its client keeps a thread waiting."""

    # On the monotonic clock, in seconds. While no thread waits `slow_since` is inf, for
    # never, and `cut_at` and `cut_how` are those of the last wait.
    slow_since = inf
    cut_at = inf
    cut_how = socket.SHUT_RD
    # Limits for a connection that is being closed, on the same clock.
    linger_until = inf
    silent_until = inf
    surplus_bytes = 0  # received while it is being closed
    # Who waits for the reply to the request; the view has it as `gunicorn.socket`.
    caller = Caller()
    _started_at = 0.0
    _credit_s = 0.0
    _head: bytearray | None = None

    def start_request(self, received: bytes) -> None:
        """A request comes next; `received` is the part of its head that is here."""
        self.caller = Caller()
        self._started_at = monotonic()
        self._credit_s = 0.0
        self._head = bytearray(received)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self._head is None:
            return self._receive(size, flags)
        head = self._head
        self._head = None
        self._receive_head(head)
        return bytes(head)

    def _receive_head(self, head: bytearray) -> None:
        """Receive until the head is whole, so that gunicorn is given all of it at once:
        given pieces, it would search all of the head again after each.

        Raises LimitRequestHeaders."""
        searched = 0
        while not (end := _HEAD_END.search(head, searched)):
            # The end may have begun in the last three bytes.
            searched = max(0, len(head) - 3)
            data = self._receive(_PIECE_BYTES)
            if not data or searched > _MAX_HEAD_BYTES:
                break
            head += data
        size = end.end() if end else len(head)
        if size > _MAX_HEAD_BYTES:
            raise LimitRequestHeaders(f"more than {_MAX_HEAD_BYTES:,} bytes")

    def _receive(self, size: int, flags: int = 0) -> bytes:
        slow_since = monotonic() + self._credit_s
        self.cut_at = max(self._started_at + _MIN_AGE_S, slow_since + _RECEIVE_LIMIT_S)
        # Only receiving is cut: the client is still sent a reply to the bytes that
        # came.
        self.cut_how = socket.SHUT_RD
        self.slow_since = slow_since
        data = super().recv(size, flags)
        self.slow_since = inf
        left_s = slow_since - monotonic()
        earned_s = len(data) / _FAIR_BYTES_PER_S
        self._credit_s = min(left_s + earned_s, _MAX_CREDIT_S)
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send in pieces. Bytes that the system buffers earn no credit: nobody has read
        them yet."""
        self.cut_at = monotonic() + _SEND_LIMIT_S
        self.cut_how = socket.SHUT_RDWR
        for start in range(0, len(data), _PIECE_BYTES):
            self.slow_since = monotonic()
            end = start + _PIECE_BYTES
            super().sendall(data[start:end], flags)
            self.cut_at += _PIECE_BYTES / _FAIR_BYTES_PER_S
        self.slow_since = inf


class TooManyChunks(InvalidChunkSize):
    """A body comes in too many chunks that are too small."""

    def __init__(self) -> None:
        super().__init__(b"")

    def __str__(self) -> str:
        return (
            f"it comes in more than {_FREE_PIECES:,} chunks of fewer than"
            f" {_BYTES_A_PIECE} bytes: send larger ones"
        )


class PatientWorker(ThreadWorker):
    """A threaded worker that bounds how long slow and silent clients hold threads."""

    poller: Any  # gunicorn's own, made by init_process

    def init_process(self) -> None:
        """Runs for all of the process's life."""
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        _return_freed_memory()
        self._handled: set[ClientSocket] = set()  # each has a thread
        self._lingering: set[TConn] = set()  # none has one
        self._rest = bytearray(_PIECE_BYTES)
        self._accept_again_at = -inf  # unless the last try has failed
        super().init_process()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Start all threads now: if one cannot be had, that must not be found out under
        load."""
        pool = ThreadPoolExecutor(self.cfg.threads)
        all_started = threading.Barrier(self.cfg.threads, timeout=_START_LIMIT_S)
        for _ in range(self.cfg.threads):
            pool.submit(all_started.wait)
        return pool

    def accept(self, listener: socket.socket) -> None:
        try:
            super().accept(listener)
        except OSError:
            # For example, no descriptor is left: another try at once would fail, too.
            super().set_accept_enabled(False)
            self._accept_again_at = monotonic() + _CHECK_EVERY_S

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled and monotonic() > self._accept_again_at)
        if not self.alive:
            self._accept_the_last()

    def _accept_the_last(self) -> None:
        """Accept the clients that have connected already, and refuse all others.

        gunicorn itself would leave both in the queue until the last reply is sent, and
        then reset them."""
        for listener in self.sockets:
            accepted = -1
            while accepted < self.nr_conns:
                accepted = self.nr_conns
                self.accept(listener)
            listener.close()

    def enqueue_req(self, conn: TConn) -> None:
        """Give a connection a thread, once its first bytes are there."""
        if conn.data_ready:
            super().enqueue_req(conn)
            return
        # The poller waits for the first bytes; gunicorn would hold a thread for 5 s.
        conn.sock = ClientSocket(fileno=conn.sock.detach())
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.pending_conns.append(conn)
        ready = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, EVENT_READ, ready)

    def handle(self, conn: TConn) -> object:
        parser = conn.parser  # none before a connection's first request
        conn.sock.start_request(parser.unreader.take_buffered() if parser else b"")
        self._handled.add(conn.sock)
        try:
            return super().handle(conn)
        finally:
            self._handled.discard(conn.sock)

    def handle_request(self, req: Any, conn: TConn) -> object:
        reader = req.body.reader
        if isinstance(reader, ChunkedReader):
            reader.limit_trailer_section = _MAX_TRAILER_BYTES
            reader.parser = _without_crumbs(reader.parser)
        # gunicorn asks this when it writes the reply's head, and again at its end.
        req.should_close = partial(_has_to_close, req.should_close, req.body)
        return super().handle_request(req, conn)

    def finish_request(self, conn: TConn, fs: Future[object]) -> None:
        if conn.sock.fileno() < 0:  # closed
            self.nr_conns -= 1
        elif fs.cancelled() or fs.exception() or not fs.result():
            self._linger(conn)
        else:
            super().finish_request(conn, fs)

    def _linger(self, conn: TConn) -> None:
        """Close a connection once its client does; bytes until then are dropped.

        Otherwise the system would reset the connection, and a client that is still
        sending would lose the reply. gunicorn's own main thread would wait for each
        client.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it is gone already
            self.nr_conns -= 1
            conn.close()
            return
        conn.sock.setblocking(False)
        now = monotonic()
        conn.sock.linger_until = now + _LINGER_LIMIT_S
        conn.sock.silent_until = now + _LINGER_SILENCE_S
        self._lingering.add(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self._take_rest, conn))

    def _take_rest(self, conn: TConn, client: ClientSocket) -> None:
        try:
            size = client.recv_into(self._rest)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        client.silent_until = monotonic() + _LINGER_SILENCE_S
        client.surplus_bytes += size
        if not size or client.surplus_bytes > _LINGER_BYTES:
            self._close(conn)

    def _close(self, conn: TConn) -> None:
        self._lingering.remove(conn)
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """One step of the main thread's loop, and then a look at the slow clients."""
        super().wait_for_and_dispatch_events(min(timeout, _CHECK_EVERY_S))
        if not self._accepting:
            self._limit_silence()
        self._notice_hang_ups()
        self._cut_slow_clients()
        self._end_lingering()

    def _limit_silence(self) -> None:
        """Called if there are too many clients, or at the end: silent ones go first."""
        deadline = monotonic() + _SILENCE_LIMIT_S
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)
        for conn in self._lingering:
            conn.sock.linger_until = min(conn.sock.linger_until, deadline)
        if self.alive:  # else gunicorn itself limits them
            self._cap_keepalive(deadline)

    def _notice_hang_ups(self) -> None:
        """Tell the callers of runs whose clients have gone: nobody reads the reply."""
        poll = select.poll()
        clients = {}
        for sock in list(self._handled):
            # Read once: its thread may close the socket, which makes it -1.
            descriptor = sock.fileno()
            if sock.caller.is_worked_for and descriptor >= 0:
                clients[descriptor] = sock
                poll.register(descriptor, _HUNG_UP)
        for descriptor, _event in poll.poll(0) if clients else ():
            clients[descriptor].caller.hang_up()

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

    def _end_lingering(self) -> None:
        now = monotonic()
        for conn in list(self._lingering):
            if now > min(conn.sock.linger_until, conn.sock.silent_until):
                self._close(conn)


def _return_freed_memory() -> None:
    """Have glibc give each large block back to the system as soon as it is free.

    Otherwise, after the first block of megabytes, it would keep all such blocks in the
    pools of its threads: hundreds of MB stayed after a burst. Other C libraries, which
    have no such setting, are left alone.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _has_to_close(is_asked_to: Callable[[], bool], body: Body) -> bool:
    """Whether a connection cannot have another request after the reply to this one."""
    return is_asked_to() or not _is_read(body)


def _is_read(body: Body) -> bool:
    """Whether a body is read to its end: the next bytes are another request's."""
    if body.failed:
        return False
    if isinstance(body.reader, ChunkedReader):
        return body.reader.parser is None
    return bool(body.reader.length == 0)


def _without_crumbs(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A chunked body's pieces. Raises TooManyChunks when they are too small."""
    left = float(_FREE_PIECES)
    for piece in pieces:
        left += len(piece) / _BYTES_A_PIECE - 1
        if left < 0:
            raise TooManyChunks
        yield piece
