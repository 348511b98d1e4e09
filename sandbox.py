"""One E2B sandbox: create it, run code in it within exact limits, put its end off, kill it.

The only module that knows E2B's SDK. The SDK is pinned, because `_TappedSandbox` rests on private
parts of it: its own timeout fires after twice the time, its parser keeps everything in memory."""

import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, cast

import httpx
from e2b import Sandbox as BaseSandbox
from e2b.api.client_sync import get_transport
from e2b.exceptions import (
    AuthenticationException,
    RateLimitException,
    ServiceBusyException,
)
from e2b_code_interpreter.code_interpreter_sync import Sandbox as E2BSandbox

from config import VERSION, Config, log
from run import Run
from stream import StreamReader
from tracebacks import renumber_run

KILL_BUDGET_S = 4  # for a small call to E2B: kill, renew, prime, list
# The least time that a call gets, where none is left: enough for E2B to answer.
_LEAST_BUDGET_S = 0.2
# What E2B's proxy answers for a sandbox that is gone.
_GONE_STATUSES = (404, 502)
# It does so at once. A 502 that comes later may be that of a run which had begun.
_GONE_WITHIN_S = 2
# A run that fails so close to its limit was ended by it: the timer may fire a little early.
_LIMIT_TOLERANCE_S = 0.1
_METADATA = {"service": "e2b-proxy", "version": VERSION, "process": uuid.uuid4().hex}

_RUN_REFUSED = "E2B's sandbox refused the run, so the code did not run. Try again."
_PROCESS_DIED = (
    "The Python process died: out of memory, a crash in a native library, or an exit."
)


class Unavailable(Exception):
    """E2B did not do what was asked; the message says so in our own words, for the caller."""


class SandboxGone(Unavailable):
    """The sandbox was not there any more when it was to run something, so nothing has run."""


def _connection(config: Config, budget_s: float) -> dict[str, Any]:
    # The SDK's transport adds httpx's read and write timeouts, so it ends after twice the time.
    # debug=False: with E2B_DEBUG in the environment the SDK would skip every kill.
    timeout_s = max(budget_s, _LEAST_BUDGET_S) / 2
    return {"api_key": config.e2b_api_key, "request_timeout": timeout_s, "debug": False}


def _short(exc: Exception) -> str:
    """What the log says of E2B's own words: %r, so that they cannot forge a line; no key."""
    words = re.sub(r"\be2b_\w+", "[key]", str(exc))
    return f"{type(exc).__name__} {words[:200]!r}"


def _explain(exc: Exception) -> str:
    """Say in our own words what it means that the SDK raised this."""
    status = getattr(exc, "status_code", None)
    if isinstance(exc, AuthenticationException) or status in (401, 403):
        return "E2B refused this service's key. Its operator has to check E2B_API_KEY."
    if isinstance(exc, (RateLimitException, ServiceBusyException)):
        return "E2B is at its limit of sandboxes or requests. Try again in a minute."
    if isinstance(exc, httpx.TimeoutException):
        return "E2B did not answer in time. Try again in a minute."
    if isinstance(exc, httpx.TransportError):
        return "E2B could not be reached. Try again in a minute."
    if status in (400, 404):
        return "E2B refused to make a sandbox. Its operator has to check E2B_TEMPLATE."
    return "E2B failed. Try again in a minute."


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn what the SDK raises into Unavailable, and log what an operator has to check."""
    try:
        yield
    except Exception as exc:
        text = _explain(exc)
        log.warning("%s (%s)", text, _short(exc))
        raise Unavailable(text) from exc


class _Tap(httpx.BaseTransport):
    """Bounds a run's request as a whole, and has the reader read its answer instead of the SDK."""

    def __init__(
        self, inner: httpx.BaseTransport, reader: StreamReader, limit_s: float
    ) -> None:
        self.status: int | None = None  # None: no answer came
        self._inner = inner
        self._reader = reader
        self._limit_s = limit_s

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # The reader wants the bytes as they are; and what is packed may be a bomb.
        request.headers["accept-encoding"] = "identity"
        request.extensions["timeout"] = {"read": self._limit_s, "write": 0}
        response = self._inner.handle_request(request)
        self.status = response.status_code
        stream = cast(httpx.SyncByteStream, response.stream)
        try:
            if response.is_success:
                for chunk in stream:
                    self._reader.feed(chunk)
        finally:
            stream.close()
        return httpx.Response(self.status)


class _TappedSandbox(E2BSandbox):
    """The SDK's sandbox, its run's stream read by a reader of ours; raises what the SDK does."""

    def __init__(self, **opts: Any) -> None:
        # Without the SDK's clients for files and commands, which are never used.
        super(BaseSandbox, self).__init__(**opts)

    def send(self, code: str, limit_s: float, reader: StreamReader) -> None:
        transport = get_transport(self.connection_config, http_version="1.1")
        self.tap = _Tap(transport, reader, limit_s)
        self.run_code(code, timeout=limit_s)

    @property
    def _client(self) -> httpx.Client:
        return httpx.Client(transport=self.tap)

    def _handle_connection_error(self, err: Exception) -> None:
        """The SDK would now ask whether the sandbox lives, for as long as it takes; we need not."""


class Sandbox:
    """One sandbox, from before E2B is asked for it. Its methods raise Unavailable."""

    def __init__(self, config: Config) -> None:
        self._config = config
        # Whether a cell ran in it: only the first one is given a prefix by E2B.
        self._primed = False
        self._lifetime_lock = threading.Lock()
        self.exists = False
        self._created_at = self._ends_at = 0.0

    @_in_our_words()
    def create(self, lifetime_s: int, budget_s: float) -> None:
        """Have E2B make it, within `budget_s`; a second time when the reply was lost."""
        self._created_at = monotonic()
        # One key for both tries: E2B gives a sandbox whose reply was lost again.
        create = partial(
            _TappedSandbox.create,
            self._config.e2b_template,
            timeout=lifetime_s,
            metadata=_METADATA,
            allow_internet_access=self._config.allow_internet,
            idempotency_key=str(uuid.uuid4()),
        )
        try:
            self._e2b = create(**_connection(self._config, budget_s))
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            left_s = self._created_at + budget_s - monotonic()
            self._e2b = create(**_connection(self._config, left_s))
        self._ends_at = monotonic() + lifetime_s
        self.exists = True

    def age_s(self) -> float:
        return monotonic() - self._created_at if self.exists else 0.0

    def left_s(self) -> float:
        """Until E2B ends it by itself."""
        return self._ends_at - monotonic()

    @_in_our_words()
    def kill(self) -> None:
        """End it, within KILL_BUDGET_S; one that is gone already is fine."""
        self._e2b.kill(**_connection(self._config, KILL_BUDGET_S))

    @_in_our_words()
    def live_for_at_least(self, lifetime_s: int) -> None:
        """Put its end off, within KILL_BUDGET_S, unless it is that far away already."""
        if self.left_s() >= lifetime_s:
            return
        # One at a time, so that a shorter lifetime never comes after a longer one.
        with self._lifetime_lock:
            if self.left_s() < lifetime_s:
                connection = _connection(self._config, KILL_BUDGET_S)
                self._e2b.set_timeout(lifetime_s, **connection)
                self._ends_at = monotonic() + lifetime_s

    @_in_our_words()
    def prime(self, budget_s: float) -> None:
        """Run an empty cell, which takes E2B's prefix with it, unless one ran already."""
        if self._primed:
            return
        reader = StreamReader(Run.empty(2), self._config)
        limit_s = min(KILL_BUDGET_S, max(budget_s, _LEAST_BUDGET_S))
        self._e2b.send("pass", limit_s, reader)
        self._primed = True

    def run(self, code: str, limit_s: int, run: Run) -> None:
        """Run `code` once, for `limit_s` at most, and fill `run`. Raises SandboxGone only."""
        self.run_cell(code, limit_s, run)
        renumber_run(run, code, self._e2b.sandbox_id, is_first_cell=not self._primed)

    def run_cell(self, code: str, limit_s: float, run: Run) -> None:
        """As `run`, but line numbers and ids in texts are left as they come."""
        reader = StreamReader(run, self._config)
        started = monotonic()
        failed = False
        try:
            self._e2b.send(code, limit_s, reader)
        except Exception as exc:
            failed = True
            log.warning(
                "run failed in sandbox %s: %s", self._e2b.sandbox_id, _short(exc)
            )
        took_s = monotonic() - started
        run.durations_s["run"] = took_s
        status = self._e2b.tap.status
        if status in _GONE_STATUSES and took_s <= _GONE_WITHIN_S:
            raise SandboxGone(_RUN_REFUSED)
        if (reader.ended and not reader.broken) or run.error_name:
            # It ran to its end, or to an exception, whatever became of the stream after it.
            run.outcome = "error" if run.error_name else "ok"
            run.problem = _PROCESS_DIED if run.error_name == "ContextRestarting" else ""
        elif failed and took_s > limit_s - _LIMIT_TOLERANCE_S:
            # The request was given up at the limit; what had been printed is in the run.
            run.outcome = "timeout"
            run.problem = f"The run was stopped after {limit_s} s, its time limit."
        elif status is None:
            # No answer: the request may have reached the sandbox, or not.
            run.problem = "The connection to the sandbox failed; the code may or may not have run."
        elif not 200 <= status < 300:
            # An answer of E2B's own, which comes before the code is given to the kernel.
            run.problem = _RUN_REFUSED
        else:
            # The stream began, so the code ran; how far is not known.
            reason = reader.broken or "the connection ended before the run did"
            run.outcome = "error"
            run.problem = f"The run broke off: {reason}."


@_in_our_words()
def check_key(config: Config) -> None:
    """Ask E2B whether it takes the key. Raises Unavailable."""
    E2BSandbox.list(limit=1, **_connection(config, KILL_BUDGET_S)).next_items()
