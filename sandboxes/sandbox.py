"""One E2B sandbox: create it, run code in it in exact limits, put its end off, kill it.

The only module that knows E2B's SDK, but for files.py, which carries files. The SDK is
pinned, because `TappedSandbox` relies on private parts of it. They are needed because
the SDK's own timeout fires after twice the time, and its parser keeps everything in
memory."""

import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from time import monotonic
from typing import Any, cast

import httpx
from e2b import Sandbox as BaseSandbox
from e2b import SandboxNetworkOpts, SandboxQuery
from e2b.api.client_sync import get_transport
from e2b.exceptions import NotFoundException, SandboxException
from e2b_code_interpreter.code_interpreter_sync import Sandbox as E2BSandbox

from config import VERSION, Config, log
from metrics import E2B_FAILURES
from run import Limits, Run
from sandboxes.stream import StreamReader
from sandboxes.timing import TIMING, Timing

# A call to E2B gets this much time even if none is left: enough for an answer.
_LEAST_BUDGET_S = 0.2
# E2B's proxy answers with one of these for a sandbox that is gone.
GONE_STATUSES = (404, 502)
# It does so at once. A later 502 may belong to a run that had begun.
_GONE_WITHIN_S = 2
# A run that fails this close to its limit was ended by the limit: the timer may fire a
# little early.
LIMIT_TOLERANCE_S = 0.1
# E2B may complete a create a little after its time limit. So a sandbox is surely
# missing only when E2B's list has lacked it this often.
_MISSES_UNTIL_SURE = 2
# How much is read of a list that holds all sandboxes of the account: 2,000 of them, at
# 100 on a page.
_MOST_PAGES = 20
# A sandbox's id goes into the paths of requests, such as `DELETE /sandboxes/{id}`.
_SANDBOX_ID = re.compile(r"[\w-]{8,}", re.ASCII)
_METADATA = {"service": "e2b-proxy", "version": VERSION, "process": uuid.uuid4().hex}
# Otherwise whoever knows a sandbox's id reaches its ports from the internet. The SDK
# sends the token that is needed then.
_NO_VISITORS: SandboxNetworkOpts = {"allow_public_traffic": False}
FAILED = "E2B failed. Try again in a minute."
_RUN_REFUSED = "E2B's sandbox refused the run, so the code did not run. Try again."
_STOPPED = "The run was stopped."
# Code that ends a run which was stopped: the kernel answers once it is free.
_PROBE = "pass"
_PROCESS_DIED = (
    "The Python process died: out of memory, a crash in a native library, or an exit."
)


class Unavailable(Exception):
    """E2B did not do its part; the message says so to the caller, in our own words."""


class SandboxGone(Unavailable):
    """The sandbox was gone before it could run anything, so nothing has run."""


class _Answer(logging.Logger):
    """The status of E2B's answer to a call. The SDK takes this for a log.

    The SDK's exception often lacks the status. If a body is not E2B's JSON but, for
    example, the HTML page of a load balancer, its parser fails before it looks at the
    status. But it always logs `Request POST https://…`, and then `Response 429`."""

    def __init__(self) -> None:
        super().__init__("e2b")
        self.status = 0  # 0: no answer came

    def handle(self, record: logging.LogRecord) -> None:
        what, _, rest = record.getMessage().partition(" ")
        self.status = int(rest) if what == "Response" else 0


def _options(config: Config, budget_s: float, answer: _Answer) -> dict[str, Any]:
    """The options of the SDK for a call that may take `budget_s`."""
    return {
        "api_key": config.e2b_api_key,
        # The SDK's transport adds up httpx's read and write timeouts, so a call ends
        # after twice the time.
        "request_timeout": max(budget_s, _LEAST_BUDGET_S) / 2,
        # With E2B_DEBUG in the environment the SDK would skip every kill.
        "debug": False,
        "logger": answer,
    }


def _checked(sandbox_id: str) -> str:
    if not _SANDBOX_ID.fullmatch(sandbox_id):
        raise ValueError("this is not the id of a sandbox")
    return sandbox_id


def short(exc: BaseException) -> str:
    """E2B's own words for the log, without keys.

    They are quoted, by %r, so that they cannot forge a line."""
    words = re.sub(r"\be2b_\w+", "[key]", str(exc))
    return f"{type(exc).__name__} {words[:200]!r}"


_CHECK = "Its operator has to check"
_IN_OUR_WORDS = {
    "timeout": "E2B did not answer in time. Try again in a minute.",
    "network": "E2B could not be reached. Try again in a minute.",
    "key": f"E2B refused this service's key. {_CHECK} E2B_API_KEY.",
    "limit": "E2B is at its limit of sandboxes or requests. Try again in a minute.",
    "template": f"E2B refused to make a sandbox. {_CHECK} E2B_TEMPLATE.",
    "other": FAILED,
}


def _reason_of(exc: BaseException, status: int) -> str:
    """What it means that the SDK raised this after this status: a key of the above."""
    if isinstance(exc, httpx.TimeoutException):
        return "timeout"
    if isinstance(exc, httpx.TransportError):
        return "network"
    match status:
        case 401 | 403:
            return "key"
        case 429 | 503:
            return "limit"
        case 400 | 404:
            return "template"
    return "other"


@contextmanager
def _asking_e2b() -> Iterator[_Answer]:
    """Turn any exception of the SDK into Unavailable, and log it for the operator."""
    answer = _Answer()
    try:
        yield answer
    except Unavailable:
        raise
    except BaseException as exc:  # a panic of the SDK's transport is no Exception
        reason = _reason_of(exc, answer.status)
        E2B_FAILURES.labels(reason).inc()
        text = _IN_OUR_WORDS[reason]
        log.warning("%s (%s)", text, short(exc))
        raise Unavailable(text) from exc


@dataclass
class Tap(httpx.BaseTransport):
    """Bounds one request as a whole. We, not the SDK, read its answer."""

    inner: httpx.BaseTransport
    take: Callable[[bytes], None]  # is given the body of a good answer, in pieces
    limit_s: float
    # What the SDK reads as the body, whatever that was.
    for_sdk: bytearray = field(default_factory=bytearray)
    status: int | None = None  # None: no answer came
    _was_used: bool = False
    _stream: httpx.SyncByteStream | None = None
    _is_stopped: bool = False

    def stop(self) -> None:
        """End the request, from another thread: the thread that reads its answer is
        woken at once, and E2B's server sees that the connection ends."""
        self._is_stopped = True
        if self._stream:
            # This is the worker's main thread. If closing fails, the kill that follows
            # ends the stream, or else the run's limit does.
            with suppress(Exception):
                self._stream.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # After a failure the SDK would ask whether the sandbox lives, with no limit.
        if self._is_stopped or self._was_used:
            raise httpx.ReadError(_STOPPED)
        self._was_used = True
        # The bytes are needed as they are. A server may compress them all the same: the
        # deadline and the reader's limits hold then, too.
        request.headers["accept-encoding"] = "identity"
        request.extensions["timeout"] = {"read": self.limit_s, "write": 0}
        response = self.inner.handle_request(request)
        self.status = response.status_code
        stream = self._stream = cast(httpx.SyncByteStream, response.stream)
        try:
            # Either `stop` sees the stream, or this sees that `stop` was called.
            if response.is_success and not self._is_stopped:
                for chunk in stream:
                    self.take(chunk)
        finally:
            stream.close()
        if self._is_stopped:
            # A stream that was closed may just seem to have ended.
            raise httpx.ReadError(_STOPPED)
        return httpx.Response(self.status, content=bytes(self.for_sdk))


class TappedSandbox(E2BSandbox):
    """The SDK's sandbox, except that our reader reads a run's stream.

    Its methods raise the SDK's exceptions."""

    tap: Tap | None = None  # None: the request of a run was not begun
    is_stopped = False  # no run may begin

    def __init__(self, **opts: Any) -> None:
        # This skips the SDK's clients for commands and files: the former are never
        # used, and files.py has its own.
        super(BaseSandbox, self).__init__(**opts)

    def new_tap(self, take: Callable[[bytes], None], limit_s: float) -> Tap:
        """A tap for the next request, which `stop` ends."""
        self.tap = None  # the last request's status must not be read as this one's
        transport = get_transport(self.connection_config, http_version="1.1")
        self.tap = tap = Tap(transport, take, max(limit_s, _LEAST_BUDGET_S))
        # Either `stop` sees this tap, or this sees that `stop` was called.
        if self.is_stopped:
            tap.stop()
        return tap

    def send(self, code: str, limit_s: float, reader: StreamReader) -> None:
        self.new_tap(reader.feed, limit_s)
        self.run_code(code, timeout=limit_s)

    def stop(self) -> None:
        self.is_stopped = True
        if self.tap:
            self.tap.stop()

    @property
    def _client(self) -> httpx.Client:
        return httpx.Client(transport=self.tap)

    def _handle_connection_error(self, err: Exception) -> None:
        """Does nothing: the SDK would ask whether the sandbox lives, with no limit."""


class Sandbox:
    """One sandbox, from before E2B is asked for it. Its methods raise Unavailable."""

    def __init__(self, config: Config, timing: Timing = TIMING) -> None:
        self._config = config
        self._timing = timing
        # Whether a cell has run in it.
        self.has_run = False
        # Whether its kernel has what set_up.py sends.
        self.is_set_up = False
        # Whether its kernel is free and whole after a run, for the session's next one.
        self.is_reusable = False
        # E2B may have it: it was asked for, was not refused, and has not been found
        # missing.
        self.may_exist = False
        self.exists = False
        self.id = ""
        self._misses = 0
        # One thread at a time asks E2B for a lifetime, because the last request holds.
        self._renewing = threading.Lock()

    def adopt(self, mark: str, lifetime_s: int) -> bool:
        """Be the sandbox that E2B has for the session with this mark.

        Returns whether there is one."""
        with _asking_e2b() as answer:
            # There may be more than one: two replicas may have made one each at a time.
            for sandbox_id in self._listed({"session": mark}, answer):
                with suppress(SandboxGone):
                    self._connect(sandbox_id, lifetime_s, answer)
                    return True
            return False

    def _listed(self, metadata: dict[str, str], answer: _Answer) -> list[str]:
        """Return the ids of the sandboxes that have this metadata, the oldest first.

        E2B is asked for these only, but an E2B that ignores this lists all sandboxes of
        the account, on several pages. To use or to kill a wrong one would be far worse
        than to find none, so each is compared. Raises ValueError if none is found on
        the first pages and there are more."""
        give_up_at = monotonic() + self._timing.small_call_s
        pages = E2BSandbox.list(SandboxQuery(metadata=metadata))
        found = []
        for _ in range(_MOST_PAGES):
            left_s = give_up_at - monotonic()
            for sandbox in pages.next_items(**_options(self._config, left_s, answer)):
                if metadata.items() <= sandbox.metadata.items():
                    found.append(sandbox)
            if not pages.has_next or monotonic() > give_up_at:
                break
        if pages.has_next and not found:
            raise ValueError("its list of sandboxes is too long to look through")
        found.sort(key=attrgetter("started_at"))
        return [_checked(sandbox.sandbox_id) for sandbox in found]

    def _connect(self, sandbox_id: str, lifetime_s: int, answer: _Answer) -> None:
        options = _options(self._config, self._timing.small_call_s, answer)
        with self._gone_if_refused():
            e2b = TappedSandbox.connect(sandbox_id, timeout=lifetime_s, **options)
        self.id = sandbox_id
        self.e2b = cast(TappedSandbox, e2b)
        self._created_at = monotonic()
        self._ends_at = self._created_at + lifetime_s
        self.may_exist = True
        self.exists = True
        self.has_run = True
        self.is_reusable = True

    def create(self, lifetime_s: int, budget_s: float, mark: str = "") -> None:
        """Have E2B make it within `budget_s`. It `may_exist` even after Unavailable."""
        key = str(uuid.uuid4())
        self._metadata = _METADATA | {"create": key}
        if mark:
            self._metadata["session"] = mark
        self._created_at = monotonic()
        self._ends_at = self._created_at + self._timing.overhead_s + lifetime_s
        self.may_exist = True
        create = partial(
            TappedSandbox.create,
            self._config.e2b_template,
            timeout=lifetime_s,
            metadata=self._metadata,
            allow_internet_access=self._config.allow_internet,
            network=None if self._config.allow_internet else _NO_VISITORS,
            idempotency_key=key,
        )
        with _asking_e2b() as answer:
            try:
                self.e2b = create(**_options(self._config, budget_s, answer))
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                # E2B knows this create by its key: if it made a sandbox, it returns
                # that one.
                left_s = budget_s - self.age_s()
                self.e2b = create(**_options(self._config, left_s, answer))
            except Exception as exc:
                # E2B has surely made none if it was not reached, or answered 4xx.
                not_reached = isinstance(exc, httpx.ConnectError)
                self.may_exist = not (not_reached or 400 <= answer.status < 500)
                raise
            self.id = _checked(self.e2b.sandbox_id)
        self._ends_at = monotonic() + lifetime_s
        self.exists = True

    def age_s(self) -> float:
        return monotonic() - self._created_at if self.may_exist else 0.0

    def left_s(self) -> float:
        """How long it lives until E2B ends it by itself."""
        return self._ends_at - monotonic()

    def kill(self) -> None:
        """End it; if it is gone already, that is fine. Each call has `small_call_s`.

        If its create was not answered, it is looked for first: see `_search`."""
        with _asking_e2b() as answer:
            options = _options(self._config, self._timing.small_call_s, answer)
            for sandbox_id in [self.id] if self.exists else self._search(answer):
                E2BSandbox.kill(sandbox_id, **options)

    def _search(self, answer: _Answer) -> list[str]:
        """Return the ids that E2B's list has for this create.

        Empty once E2B's list lacked it twice after `overhead_s` (no create lasts
        longer). Before that, raises Unavailable."""
        found = self._listed(self._metadata, answer)
        if not found:
            self._misses += self.age_s() > self._timing.overhead_s
            self.may_exist = self._misses < _MISSES_UNTIL_SURE
            if self.may_exist:
                raise Unavailable("E2B's list does not have it yet.")
        return found

    def live_for_at_least(self, lifetime_s: int) -> None:
        """Put its end off, within `small_call_s`, unless it is that far away already.

        Waits for another thread that is doing so. Raises SandboxGone if E2B has no such
        sandbox, or does not let it live longer."""
        if self.left_s() >= lifetime_s:
            return
        with self._renewing, _asking_e2b() as answer:
            if self.left_s() < lifetime_s:
                options = _options(self._config, self._timing.small_call_s, answer)
                with self._gone_if_refused():
                    E2BSandbox.set_timeout(self.id, lifetime_s, **options)
                self._ends_at = monotonic() + lifetime_s

    @contextmanager
    def _gone_if_refused(self) -> Iterator[None]:
        """Raises SandboxGone if E2B has no such sandbox any more, or its plan does not
        let it live so long."""
        try:
            yield
        except SandboxException as exc:
            status = exc.status_code or 0
            if isinstance(exc, NotFoundException) or 400 <= status < 500:
                self.is_reusable = False
                raise SandboxGone(FAILED) from exc
            raise

    def prime(self, code: str, limit_s: float) -> None:
        """Set up its kernel with this code, as the first cell."""
        reader = StreamReader(Run.empty(Limits(output_chars=0)))
        with _asking_e2b():
            self.e2b.send(code, limit_s, reader)
        self.has_run = True
        self.is_set_up = True

    def run(self, code: str, limit_s: float, run: Run) -> None:
        """Run `code` once, for `limit_s` at most, and fill `run`.

        Raises SandboxGone only."""
        reader = StreamReader(run)
        started = monotonic()
        failed = False
        self.is_reusable = False
        try:
            self.e2b.send(code, limit_s, reader)
        except BaseException as exc:
            failed = True
            if not self.e2b.is_stopped:
                log.warning("run failed in sandbox %s: %s", self.id, short(exc))
        took_s = monotonic() - started
        run.durations_s["run"] = took_s
        tap = self.e2b.tap
        status = tap.status if tap else None
        if status in GONE_STATUSES and took_s <= _GONE_WITHIN_S:
            raise SandboxGone(_RUN_REFUSED)
        run.began_anew = self.has_run and reader.run_number == 1
        self.has_run = True
        if (reader.ended and not reader.broken) or run.error_name:
            # It ran to its end, or to an exception, whatever happened to the stream
            # after that.
            run.outcome = "error" if run.error_name else "ok"
            has_died = run.error_name == "ContextRestarting"
            run.problem = _PROCESS_DIED if has_died else ""
            self.is_reusable = not has_died and not reader.broken
        elif failed and took_s > limit_s - LIMIT_TOLERANCE_S:
            # The request was given up at the limit; the output until then is in the
            # run.
            run.outcome = "timeout"
            run.problem = f"The run was stopped after {limit_s} s, its time limit."
        elif status is None:
            # No answer: the request may have reached the sandbox, or not.
            run.problem = (
                "The connection to the sandbox failed; "
                "the code may or may not have run."
            )
        elif not 200 <= status < 300:
            # E2B answered by itself, before it gave the code to the kernel.
            run.problem = _RUN_REFUSED
        else:
            # The stream began, so the code ran; it is not known how far.
            reason = reader.broken or "the connection ended before the run did"
            run.outcome = "error"
            run.problem = f"The run broke off: {reason}."

    def stop(self) -> None:
        """End the run in it from another thread, without waiting. It `exists`.

        E2B's server interrupts the kernel when a run's connection ends. No other run
        begins in it before `settle`."""
        self.e2b.stop()

    def settle(self) -> None:
        """After `stop`: find out whether it `is_reusable`, within `small_call_s`.

        It is if its kernel runs a cell: its code was interrupted, and took it. The
        lines that set it up may not have come, or may have been interrupted."""
        self.e2b.is_stopped = False
        self.is_set_up = False
        has_run = self.has_run
        probe = Run.empty(Limits(output_chars=0))
        with suppress(SandboxGone):
            self.run(_PROBE, self._timing.small_call_s, probe)
        self.has_run = has_run  # the probe is no run of the session
        self.is_reusable = self.is_reusable and not probe.began_anew


def check_key(config: Config) -> None:
    """Ask E2B whether it takes the key. Raises Unavailable."""
    with _asking_e2b() as answer:
        options = _options(config, TIMING.small_call_s, answer)
        E2BSandbox.list(limit=1).next_items(**options)
