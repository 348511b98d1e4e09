"""One E2B sandbox: create it, run code in it within exact limits, put its end off, kill it.

The only room that knows E2B's SDK. The SDK is pinned, because `_TappedSandbox` rests on private
parts of it: its own timeout fires after twice the time, its parser keeps everything in memory."""

import re
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
_METADATA = {"service": "e2b-proxy", "version": VERSION, "process": uuid.uuid4().hex}
_PROCESS_DIED = (
    "The Python process died: out of memory, a crash in a native library, or an exit."
)


class Unavailable(Exception):
    """E2B did not do what was asked; the message says so in our own words, for the caller."""


def _connection(config: Config, budget_s: float) -> dict[str, Any]:
    # The SDK's transport adds httpx's read and write timeouts, so it ends after twice the time.
    # debug=False: with E2B_DEBUG in the environment the SDK would skip every kill.
    timeout_s = max(budget_s, 0.2) / 2
    return {"api_key": config.e2b_api_key, "request_timeout": timeout_s, "debug": False}


def _short(exc: Exception) -> str:
    """What the log says of E2B's own words: %r, so that they cannot forge a line; no key."""
    words = re.sub(r"\be2b_\w+", "[key]", str(exc))
    return f"{type(exc).__name__} {words[:200]!r}"


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn what the SDK raises into Unavailable, and tell the log what an operator has to check."""
    try:
        yield
    except Exception as exc:
        status, text = (
            getattr(exc, "status_code", None),
            "E2B failed. Try again in a minute.",
        )
        if isinstance(exc, AuthenticationException) or status in (401, 403):
            text = (
                "E2B refused this service's key. Its operator has to check E2B_API_KEY."
            )
        elif isinstance(exc, (RateLimitException, ServiceBusyException)):
            text = (
                "E2B is at its limit of sandboxes or requests. Try again in a minute."
            )
        elif isinstance(exc, httpx.TimeoutException):
            text = "E2B did not answer in time. Try again in a minute."
        elif isinstance(exc, httpx.TransportError):
            text = "E2B could not be reached. Try again in a minute."
        elif status in (400, 404):
            text = (
                "E2B refused to make a sandbox. Its operator has to check E2B_TEMPLATE."
            )
        log.warning("%s (%s)", text, _short(exc))
        raise Unavailable(text) from exc


class _Tap(httpx.BaseTransport):
    """Bounds a run's request as a whole, and has the reader read its answer instead of the SDK."""

    def __init__(
        self, inner: httpx.BaseTransport, reader: StreamReader, limit_s: float
    ) -> None:
        self.status: int | None = None
        self._inner, self._reader, self._limit_s = inner, reader, limit_s

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # The reader wants the bytes as they are; and what is packed may be a bomb.
        request.headers["accept-encoding"] = "identity"
        request.extensions["timeout"] = {"read": self._limit_s, "write": 0}
        response = self._inner.handle_request(request)
        self.status, stream = (
            response.status_code,
            cast(httpx.SyncByteStream, response.stream),
        )
        try:
            for chunk in stream if response.is_success else ():
                self._reader.feed(chunk)
        finally:
            stream.close()
        return httpx.Response(self.status)


class _TappedSandbox(E2BSandbox):
    """The SDK's sandbox, its run's stream read by a reader of ours; raises what the SDK does."""

    def __init__(self, **opts: Any) -> None:
        super(BaseSandbox, self).__init__(
            **opts
        )  # without the SDK's clients that are never used

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
    """Made within `budget_s`; E2B ends it after `lifetime_s`. Its methods raise Unavailable."""

    @_in_our_words()
    def __init__(self, config: Config, lifetime_s: int, budget_s: float) -> None:
        self._config, self._lifetime_s = config, lifetime_s
        self._primed = (
            False  # a cell ran in it, which took the prefix that E2B gives the first
        )
        self.created_at = monotonic()
        # One key for both tries: E2B gives a sandbox whose reply was lost again.
        create = partial(
            _TappedSandbox.create,
            config.e2b_template,
            timeout=lifetime_s,
            metadata=_METADATA,
            allow_internet_access=config.allow_internet,
            idempotency_key=str(uuid.uuid4()),
        )
        try:
            self._e2b = create(**_connection(config, budget_s))
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            self._e2b = create(
                **_connection(config, self.created_at + budget_s - monotonic())
            )
        self.ends_at = monotonic() + lifetime_s

    @_in_our_words()
    def kill(self) -> None:
        """End it, within KILL_BUDGET_S; one that is gone already is fine."""
        self._e2b.kill(**_connection(self._config, KILL_BUDGET_S))

    @_in_our_words()
    def renew(self) -> None:
        """Let it live for its whole lifetime from now on."""
        self._e2b.set_timeout(
            self._lifetime_s, **_connection(self._config, KILL_BUDGET_S)
        )
        self.ends_at = monotonic() + self._lifetime_s

    @_in_our_words()
    def prime(self, budget_s: float, code: str = "") -> None:
        """Run an empty cell, which takes E2B's prefix with it, unless `code` can do without."""
        if code and not code.lstrip().startswith(
            "%%"
        ):  # a cell magic has to come first
            return
        reader = StreamReader(Run.empty(2), self._config)
        self._e2b.send("pass", min(KILL_BUDGET_S, max(budget_s, 0.2)), reader)
        self._primed = True

    def run(self, code: str, limit_s: int, run: Run) -> bool:
        """Run `code` once and fill `run`; False when the sandbox was gone, so that nothing ran."""
        reader, started, failed = StreamReader(run, self._config), monotonic(), False
        try:
            self._e2b.send(code, limit_s, reader)
        except Exception as exc:
            failed = True
            log.warning(
                "run failed in sandbox %s: %s", self._e2b.sandbox_id, _short(exc)
            )
        run.durations_s["run"] = took_s = monotonic() - started
        status = self._e2b.tap.status
        if run.error_name or (reader.ended and not reader.broken):
            run.outcome = "error" if run.error_name else "ok"
            run.problem = _PROCESS_DIED if run.error_name == "ContextRestarting" else ""
        elif failed and took_s > limit_s - 0.1:
            run.outcome = "timeout"
            run.problem = f"The run was stopped after {limit_s} s, its time limit."
        elif status is None:
            run.problem = "The connection to the sandbox failed; the code may or may not have run."
        elif not 200 <= status < 300:
            run.problem = (
                "E2B's sandbox refused the run, so the code did not run. Try again."
            )
        else:
            reason = reader.broken or "the connection ended before the run did"
            run.outcome, run.problem = "error", f"The run broke off: {reason}."
        renumber_run(run, code, self._e2b.sandbox_id, is_first_cell=not self._primed)
        return status not in (404, 502) or took_s > 2


@_in_our_words()
def check_key(config: Config) -> None:  # raises Unavailable
    E2BSandbox.list(limit=1, **_connection(config, KILL_BUDGET_S)).next_items()
