"""A stand-in for E2B on one machine, for trying the service out and for its tests.

`python dev/local_e2b.py --port N` serves E2B's control plane and its sandboxes on one
loopback port, to the unmodified SDK: point E2B_API_URL and E2B_SANDBOX_URL both at it.
Code runs in real Jupyter kernels, one per sandbox, WITHOUT ANY ISOLATION: as this user,
on this machine.

It answers what E2B's server answers, but for these: each sandbox works in a temporary
directory, which output calls /home/user, while code that spells out a path under
/home/user does not find it; Python, its packages and their line numbers in tracebacks
are this machine's; there are no other languages, no contexts but the default one, no
process API, no pausing, and of the file system API only what writes and reads files
(local_e2b_files.py). Nothing outlives it but temporary directories,
and these only after a SIGKILL.

A script (`LocalE2B(script=...)`, `--script`, PUT /_script) replaces the truth with
delays, sizes and faults: see local_e2b_script.py. GET /_state says what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, unquote

from aiohttp import web
from local_e2b_files import Refused, cut, read, refusal, write
from local_e2b_kernels import AS_AT_E2B, Forks, Kernel, KernelSettings
from local_e2b_script import (
    CHUNK_BYTES,
    END,
    Answer,
    Script,
    callers_code,
    line_of,
    scripted_lines,
)

KEPT_NEWEST = 1000
# Of the code of each request that is kept: those that carry files are large.
REMEMBERED_CHARS = 200_000
MAX_BODY_BYTES = 64 * 1024 * 1024
# Kinds of requests that carry files.
FILES = ("write", "read")
ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(eq=False)
class Sandbox:
    id: str
    metadata: dict[str, str]
    timeout_s: float
    template: str
    envs: dict[str, str]
    access_token: str
    traffic_token: str | None  # needed to reach it, where it is not public
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    created_s: float = field(default_factory=time.monotonic)
    deadline_s: float = 0.0
    ended_s: float | None = None
    ended_by: str | None = None
    expiry: asyncio.TimerHandle | None = None
    runs: set[asyncio.Task[Any]] = field(default_factory=set)
    run_count: int = 0
    kernel: Kernel | None = None

    def lived_s(self) -> float:
        return (self.ended_s or time.monotonic()) - self.created_s

    def summary(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "metadata": self.metadata,
            "timeout_s": self.timeout_s,
            "alive": self.ended_by is None,
            "ended_by": self.ended_by,
            "lived_s": round(self.lived_s(), 4),
        }

    def created(self) -> dict[str, Any]:
        return {
            "templateID": self.template,
            "sandboxID": self.id,
            "clientID": "6532622b",
            "envdVersion": "0.5.9",
            "alias": self.template,
            "envdAccessToken": self.access_token,
            "trafficAccessToken": self.traffic_token,
            "domain": None,
        }

    def listed(self) -> dict[str, Any]:
        end_at = self.started_at + timedelta(seconds=self.deadline_s - self.created_s)
        return {
            "templateID": self.template,
            "sandboxID": self.id,
            "clientID": "6532622b",
            "alias": self.template,
            "startedAt": self.started_at.isoformat(),
            "endAt": end_at.isoformat(),
            "cpuCount": 2,
            "memoryMB": 1024,
            "diskSizeMB": 1024,
            "metadata": self.metadata,
            "state": "running",
            "envdVersion": "0.5.9",
        }


def _remembered(body: Any) -> Any:
    """A request's body, without most of a large cell."""
    code = body.get("code") if isinstance(body, dict) else None
    if not isinstance(code, str) or len(code) <= REMEMBERED_CHARS:
        return body
    return {**body, "code": code[:REMEMBERED_CHARS], "code_chars": len(code)}


def _as_the_caller_sent(body: Any) -> Any:
    """A request's body with the caller's code instead of the cell that runs it."""
    code = body.get("code") if isinstance(body, dict) else None
    return {**body, "code": callers_code(code)} if isinstance(code, str) else body


def _gone(sandbox_id: str, status: int = 502) -> web.Response:
    message = "The sandbox was not found"
    return web.json_response(
        {"sandboxId": sandbox_id, "message": message, "code": status}, status=status
    )


def _api_error(status: int, message: str) -> web.Response:
    return web.json_response({"code": status, "message": message}, status=status)


async def _hang() -> None:
    await asyncio.Event().wait()


async def _reset(request: web.BaseRequest) -> None:
    """Cuts the connection with a TCP reset;
    waits for aiohttp to cancel this handler."""
    transport = request.transport
    if transport is not None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await _hang()


class _Server:
    """All state, in one event loop; `changed`
    guards it against readers in other threads."""

    def __init__(
        self,
        script: dict[str, Any],
        ahead: int = 0,
        kernels: KernelSettings = AS_AT_E2B,
    ) -> None:
        self.forks = Forks(kernels)
        self.changed = threading.Condition()
        self.ahead = ahead
        self.kernels_ahead: deque[Kernel] = deque()
        self.stops: set[asyncio.Task[None]] = set()
        self.script = Script(script)
        self.sandboxes: dict[str, Sandbox] = {}
        self.newest: deque[Sandbox] = deque(maxlen=KEPT_NEWEST)
        self.requests: deque[dict[str, Any]] = deque(maxlen=KEPT_NEWEST)
        self.by_idempotency_key: dict[str, Sandbox] = {}
        self.counts = {
            "created": 0,
            "killed": 0,
            "expired": 0,
            "kill_requests": 0,
            "max_alive": 0,
        }
        self.ended_seconds = 0.0

    # state

    def state(self) -> dict[str, Any]:
        with self.changed:
            alive_s = sum(sandbox.lived_s() for sandbox in self.sandboxes.values())
            return {
                **self.counts,
                "alive": len(self.sandboxes),
                "sandbox_seconds": round(self.ended_seconds + alive_s, 4),
                "sandboxes": [sandbox.summary() for sandbox in self.newest],
                "requests": [dict(request) for request in self.requests],
            }

    def set_script(self, script: dict[str, Any]) -> None:
        compiled = Script(script)
        with self.changed:
            self.script = compiled

    def _note(self, record: dict[str, Any], **what: Any) -> None:
        with self.changed:
            record.update(what)
            self.changed.notify_all()

    # lives of sandboxes

    def start_sandbox(self, body: Any, idempotency_key: str | None) -> Sandbox:
        if idempotency_key and idempotency_key in self.by_idempotency_key:
            return self.by_idempotency_key[idempotency_key]
        body = body if isinstance(body, dict) else {}
        network = body.get("network") or {}
        is_public = network.get("allowPublicTraffic", True)
        sandbox = Sandbox(
            id="i" + "".join(secrets.choice(ID_ALPHABET) for _ in range(19)),
            metadata=body.get("metadata") or {},
            timeout_s=body.get("timeout", 300),
            template=body.get("templateID", "code-interpreter-v1"),
            envs=body.get("envVars") or {},
            access_token=secrets.token_hex(16),
            traffic_token=None if is_public else secrets.token_hex(16),
        )
        with self.changed:
            self.sandboxes[sandbox.id] = sandbox
            self.newest.append(sandbox)
            if idempotency_key:
                self.by_idempotency_key[idempotency_key] = sandbox
            self.counts["created"] += 1
            self.counts["max_alive"] = max(
                self.counts["max_alive"], len(self.sandboxes)
            )
            self.changed.notify_all()
        self.set_lifetime(sandbox, sandbox.timeout_s)
        if not self.script.has("run"):
            self.start_kernel(sandbox)
        return sandbox

    def keep_ahead(self) -> None:
        while len(self.kernels_ahead) < self.ahead and not self.script.has("run"):
            self.kernels_ahead.append(Kernel(self.forks))

    def start_kernel(self, sandbox: Sandbox) -> Kernel:
        if sandbox.kernel is None:
            sandbox.kernel = (
                self.kernels_ahead.popleft()
                if self.kernels_ahead
                else Kernel(self.forks)
            )
            self.keep_ahead()
        return sandbox.kernel

    def stop_kernel(self, kernel: Kernel) -> None:
        kernel.kill()
        stop = asyncio.create_task(kernel.stop())
        self.stops.add(stop)
        stop.add_done_callback(self.stops.discard)

    async def stop_everything(self) -> None:
        for sandbox in list(self.sandboxes.values()):
            self.end_sandbox(sandbox, "fault")
        for kernel in self.kernels_ahead:
            self.stop_kernel(kernel)
        await asyncio.gather(*self.stops)
        await self.forks.stop()

    def set_lifetime(self, sandbox: Sandbox, timeout_s: float) -> None:
        if sandbox.expiry:
            sandbox.expiry.cancel()
        sandbox.timeout_s = timeout_s
        sandbox.deadline_s = time.monotonic() + timeout_s
        loop = asyncio.get_running_loop()
        sandbox.expiry = loop.call_later(
            timeout_s, self.end_sandbox, sandbox, "lifetime"
        )

    def end_sandbox(self, sandbox: Sandbox, ended_by: str) -> None:
        if sandbox.ended_by:
            return
        if sandbox.expiry:
            sandbox.expiry.cancel()
        with self.changed:
            sandbox.ended_by = ended_by
            sandbox.ended_s = time.monotonic()
            self.ended_seconds += sandbox.lived_s()
            del self.sandboxes[sandbox.id]
            if ended_by in ("kill", "lifetime"):
                self.counts["killed" if ended_by == "kill" else "expired"] += 1
            self.changed.notify_all()
        for run in sandbox.runs:
            run.cancel()
        if sandbox.kernel:
            self.stop_kernel(sandbox.kernel)

    # requests

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        method, path = request.method, request.path
        if path == "/_state" and method == "GET":
            return web.json_response(self.state())
        if path == "/_script" and method == "PUT":
            try:
                self.set_script(await request.json())
            except (ValueError, TypeError, AttributeError) as error:
                return _api_error(400, f"not a script: {error}")
            return web.Response(status=204)
        kind, sandbox_id = _kind(
            method, path, request.headers.get("e2b-sandbox-id", "")
        )
        if kind is None:
            return _api_error(404, "no such route")
        text = ""
        if kind not in FILES:  # those are read as they come
            text = (await request.read()).decode("utf-8", "replace")
        try:
            body: Any = json.loads(text) if text else None
        except ValueError:
            body = text
        callers_body = _as_the_caller_sent(body)
        record = {
            "kind": kind,
            "method": method,
            "path": request.path_qs,
            "sandbox_id": sandbox_id,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": _remembered(callers_body),
            "at_s": time.monotonic(),
            "answer": None,
        }
        with self.changed:
            self.requests.append(record)
            if kind == "kill":
                self.counts["kill_requests"] += 1
            self.changed.notify_all()
        if kind not in ("run", "health", *FILES):
            key = request.headers.get("x-api-key")
            if not key or self.script.api_key not in (None, key):
                self._note(record, answer=401)
                return _api_error(401, "Unauthorized, please check your credentials.")
        answer = self.script.answer(kind, callers_body)
        fault = answer.get("fault") if answer else None
        if fault:
            self._note(record, answer=fault)
        if answer and (kind != "run" or not answer.get("delay_after_headers_s")):
            await asyncio.sleep(answer.get("delay_s", 0))
        if kind == "run":
            response = await self._guarded_run(request, sandbox_id, body, answer)
        elif kind in FILES:
            response = await self._guarded_files(
                request, kind, sandbox_id, answer or {}
            )
        else:
            response = await self._control(
                request, kind, sandbox_id, body, answer or {}
            )
        if not fault:
            self._note(record, answer=response.status)
        return response

    async def _control(
        self,
        request: web.BaseRequest,
        kind: str,
        sandbox_id: str,
        body: Any,
        answer: Answer,
    ) -> web.StreamResponse:
        fault = answer.get("fault")
        sandbox = self.sandboxes.get(sandbox_id)
        if kind == "kill" and sandbox and answer.get("really", fault == "hang"):
            self.end_sandbox(sandbox, "kill")
        if kind == "create" and fault == "lost_reply":
            self.start_sandbox(body, request.headers.get("idempotency-key"))
            await _reset(request)
        if kind == "create" and fault == "late":
            key = request.headers.get("idempotency-key")
            loop = asyncio.get_running_loop()
            loop.call_later(answer["late_s"], self.start_sandbox, body, key)
            await _hang()
        if fault == "reset":
            await _reset(request)
        if fault in ("hang", "hang_alive"):
            await _hang()
        if fault == "ignored":
            return _api_error(500, "Error killing sandbox")
        if fault == "not_found":
            return _api_error(404, f"sandbox {sandbox_id} not found")
        if fault == "gone":
            if sandbox:
                self.end_sandbox(sandbox, "fault")
            return _gone(sandbox_id)
        if fault:
            raise ValueError(f"{kind} has no fault {fault!r}")
        if "status" in answer or "body" in answer:
            return _as_scripted(answer)
        return self._honest(request, kind, sandbox_id, body, answer)

    def _list(self, request: web.BaseRequest, answer: Answer) -> web.Response:
        """One page, with the token of the next one, which is where that begins."""
        # The SDK quotes names and values, and then the query that it makes of them.
        query = parse_qsl(request.query.get("metadata", ""))
        wanted = {unquote(name): unquote(value) for name, value in query}
        if answer.get("unfiltered"):
            wanted = {}
        found = [
            sandbox.listed()
            for sandbox in self.sandboxes.values()
            if wanted.items() <= sandbox.metadata.items()
        ]
        start = int(request.query.get("nextToken", 0))
        end = start + answer.get("page_size", int(request.query.get("limit", 100)))
        has_next = end < len(found) or answer.get("endless")
        headers = {"X-Next-Token": str(end)} if has_next else {}
        return web.json_response(found[start:end], headers=headers)

    def _honest(
        self,
        request: web.BaseRequest,
        kind: str,
        sandbox_id: str,
        body: Any,
        answer: Answer,
    ) -> web.Response:
        if kind == "create":
            created = self.start_sandbox(body, request.headers.get("idempotency-key"))
            return web.json_response(created.created(), status=201)
        if kind == "list":
            return self._list(request, answer)
        sandbox = self.sandboxes.get(sandbox_id)
        if kind == "health":
            return web.Response(status=204) if sandbox else _gone(sandbox_id)
        if sandbox is None:
            return _api_error(404, f"sandbox {sandbox_id} not found")
        if kind == "kill":
            self.end_sandbox(sandbox, "kill")
            return web.Response(status=204)
        timeout_s = body.get("timeout") if isinstance(body, dict) else None
        if kind == "timeout":
            self.set_lifetime(sandbox, timeout_s or 0)
            return web.Response(status=204)
        if kind == "connect":
            if timeout_s and time.monotonic() + timeout_s > sandbox.deadline_s:
                self.set_lifetime(sandbox, timeout_s)
            return web.json_response(sandbox.created())
        return web.json_response(sandbox.listed())

    # files

    async def _guarded_files(
        self, request: web.BaseRequest, kind: str, sandbox_id: str, answer: Answer
    ) -> web.StreamResponse:
        """A transfer that is cut off when its sandbox ends."""
        sandbox = self.sandboxes.get(sandbox_id)
        fault = answer.get("fault")
        if fault == "gone" and sandbox:
            self.end_sandbox(sandbox, "fault")
            sandbox = None
        if sandbox is None:
            return _gone(sandbox_id)
        transfer = asyncio.ensure_future(self._files(request, kind, sandbox, answer))
        sandbox.runs.add(transfer)
        try:
            return await transfer
        except Refused as error:
            return refusal(error.status, str(error))
        except asyncio.CancelledError:
            if sandbox.ended_by is None:
                raise
            cut(request)
            await _hang()
            raise
        finally:
            sandbox.runs.discard(transfer)

    async def _files(
        self, request: web.BaseRequest, kind: str, sandbox: Sandbox, answer: Answer
    ) -> web.StreamResponse:
        fault = answer.get("fault")
        if fault == "reset":
            await _reset(request)
        if fault == "hang":
            await _hang()
        if fault == "not_found":
            return _gone(sandbox.id, 404)
        if fault == "cut" and kind == "write":
            await request.content.readany()
            await _reset(request)
        token = request.headers.get("e2b-traffic-access-token")
        if sandbox.traffic_token not in (None, token):
            return _api_error(403, "Sandbox is not accessible publicly")
        if request.headers.get("x-access-token") != sandbox.access_token:
            return refusal(401, "unauthorized access")
        if "status" in answer or "body" in answer:
            return _as_scripted(answer)
        if fault not in (None, "stall", "cut"):
            raise ValueError(f"{kind} has no fault {fault!r}")
        kernel = self.start_kernel(sandbox)
        await kernel.has_folders.wait()
        serve = write if kind == "write" else read
        return await serve(request, kernel.place_of, answer)

    # runs

    async def _guarded_run(
        self,
        request: web.BaseRequest,
        sandbox_id: str,
        body: Any,
        answer: Answer | None,
    ) -> web.StreamResponse:
        """A run that is cut off when its sandbox ends; `answer` None is the truth."""
        answer = answer or ({"kernel": True} if answer is None else {})
        fault = answer.get("fault")
        if fault == "reset":
            await _reset(request)
        if fault == "hang":
            await _hang()
        if fault == "not_found":
            return _gone(sandbox_id, 404)
        sandbox = self.sandboxes.get(sandbox_id)
        if fault == "gone" and sandbox:
            self.end_sandbox(sandbox, "fault")
            sandbox = None
        if sandbox is None:
            return _gone(sandbox_id)
        token = request.headers.get("e2b-traffic-access-token")
        if sandbox.traffic_token not in (None, token):
            return _api_error(403, "Sandbox is not accessible publicly")
        if "status" in answer or "body" in answer:
            return _as_scripted(answer)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        stream.enable_chunked_encoding()
        run = asyncio.ensure_future(self._run(request, stream, sandbox, body, answer))
        sandbox.runs.add(run)
        try:
            await run
        except asyncio.CancelledError:
            if sandbox.ended_by is None:
                raise
            if not stream.prepared:
                return _gone(sandbox_id)
            if request.transport is not None:
                request.transport.abort()
            await _hang()
        finally:
            sandbox.runs.discard(run)
        return stream

    async def _run(
        self,
        request: web.BaseRequest,
        stream: web.StreamResponse,
        sandbox: Sandbox,
        body: Any,
        answer: Answer,
    ) -> None:
        if answer.get("kernel"):
            await self._run_in_kernel(request, stream, sandbox, body)
            return
        fault = answer.get("fault")
        sandbox.run_count += 1
        count = {"type": "number_of_executions", "execution_count": sandbox.run_count}
        pending = b"" if answer.get("raw") else line_of(count)
        if answer.get("delay_after_headers_s"):
            await stream.prepare(request)
            await asyncio.sleep(
                answer["delay_after_headers_s"] + answer.get("delay_s", 0)
            )
        if answer.get("run_s"):
            await stream.prepare(request)
            await stream.write(pending)
            pending = b""
            await asyncio.sleep(answer["run_s"])
        await stream.prepare(request)
        for chunk in scripted_lines(answer):
            pending += chunk
            if len(pending) >= CHUNK_BYTES:
                await stream.write(pending)
                pending = b""
        if fault == "not_json":
            pending += b"<html>this line is not JSON</html>\n"
        elif fault == "cut":
            pending += b'{"type": "stdout", "text": "half a li'
        if not fault and not answer.get("raw"):
            pending += line_of(END)
        if pending:
            await stream.write(pending)
        if fault == "cut":
            # What was sent must have been read: a reset
            # throws away what is still under way.
            await asyncio.sleep(0.05)
            await _reset(request)
        elif fault == "vanish":
            await asyncio.sleep(0.05)
            self.end_sandbox(sandbox, "fault")
            await _hang()
        elif fault == "silent":
            await _hang()
        elif fault in ("forever", "drip"):
            interval_s = (
                0.1
                if fault == "drip"
                else answer.get("keepalive_s", AS_AT_E2B.keepalive_s)
            )
            drop = b"x" if fault == "drip" else line_of({"type": "keepalive"})
            while True:
                await asyncio.sleep(interval_s)
                await stream.write(drop)
        elif fault not in (None, "no_end", "not_json"):
            raise ValueError(f"run has no fault {fault!r}")
        await stream.write_eof()

    async def _run_in_kernel(
        self,
        request: web.BaseRequest,
        stream: web.StreamResponse,
        sandbox: Sandbox,
        body: Any,
    ) -> None:
        sandbox_envs = {
            **sandbox.envs,
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": sandbox.id,
            "E2B_TEMPLATE_ID": sandbox.template,
        }
        if not isinstance(body, dict) or not isinstance(body.get("code"), str):
            raise web.HTTPUnprocessableEntity(text="code: a string is required")
        if body.get("context_id"):
            raise web.HTTPNotFound(text=f"Context {body['context_id']} not found")
        if (body.get("language") or "python").lower().strip() != "python":
            raise web.HTTPInternalServerError(
                text="local_e2b has kernels for Python only"
            )
        kernel = self.start_kernel(sandbox)
        try:
            await kernel.until_ready()
        except RuntimeError as error:
            raise web.HTTPInternalServerError(text=str(error)) from error
        lines = kernel.execute(body["code"], sandbox_envs, body.get("env_vars") or {})
        await stream.prepare(request)
        async with contextlib.aclosing(lines):
            async for line in lines:
                await stream.write(line)
        await stream.write_eof()


def _as_scripted(answer: Answer) -> web.Response:
    body, status = answer.get("body", ""), answer.get("status", 200)
    headers = {name: str(value) for name, value in answer.get("headers", {}).items()}
    if isinstance(body, str):
        return web.Response(text=body, status=status, headers=headers)
    return web.json_response(body, status=status, headers=headers)


def _kind(method: str, path: str, run_sandbox_id: str) -> tuple[str | None, str]:
    """The kind of a request, and the sandbox that it is about ("" for none)."""
    if path == "/execute" and method == "POST":
        return "run", run_sandbox_id
    if path == "/health" and method == "GET":
        return "health", run_sandbox_id
    if path == "/files" and method in ("GET", "POST"):
        return ("read" if method == "GET" else "write"), run_sandbox_id
    found = re.fullmatch(
        r"(?:/v2)?/sandboxes(?:/([^/]+)(?:/(connect|timeout))?)?", path
    )
    if not found:
        return None, ""
    sandbox_id, action = found[1] or "", found[2]
    if action:
        return (action, sandbox_id) if method == "POST" else (None, sandbox_id)
    if sandbox_id:
        return {"GET": "get", "DELETE": "kill"}.get(method), sandbox_id
    return {"GET": "list", "POST": "create"}.get(method), ""


def _large_request(
    message: Any, payload: Any, protocol: Any, writer: Any, task: Any
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(
        message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES
    )


@contextlib.asynccontextmanager
async def _serving(server: _Server, port: int) -> AsyncIterator[int]:
    """Listens on loopback; gives the port."""
    runner = web.ServerRunner(
        web.Server(
            server.handle,
            request_factory=_large_request,
            handler_cancellation=True,
            access_log=None,
        ),
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
        await site.start()
        server.keep_ahead()
        yield runner.addresses[0][1]
    finally:
        await server.stop_everything()
        await runner.cleanup()


class LocalE2B:
    """The stand-in, in a thread of the calling
    process, for as long as the `with` block lasts."""

    def __init__(
        self,
        script: dict[str, Any] | None = None,
        port: int = 0,
        ahead: int = 0,
        kernels: KernelSettings = AS_AT_E2B,
    ) -> None:
        """`ahead` kernels are kept started."""
        self._server = _Server(script or {}, ahead, kernels)
        self._port = port
        self.url = ""

    def __enter__(self) -> LocalE2B:
        started = threading.Event()
        failures: list[BaseException] = []
        self._thread = threading.Thread(
            target=self._main, args=(started, failures), name="local-e2b", daemon=True
        )
        self._thread.start()
        started.wait()
        if failures:
            self._thread.join()
            raise failures[0]
        return self

    def _main(self, started: threading.Event, failures: list[BaseException]) -> None:
        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            async with _serving(self._server, self._port) as port:
                self.url = f"http://127.0.0.1:{port}"
                started.set()
                await self._stop.wait()

        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            started.set()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def state(self) -> dict[str, Any]:
        return self._server.state()

    def set_script(self, script: dict[str, Any]) -> None:
        self._server.set_script(script)

    def wait_for(
        self, condition: Callable[[dict[str, Any]], object], timeout_s: float = 30
    ) -> dict[str, Any]:
        """The state once `condition(state)` holds;
        TimeoutError shows the state that did not."""
        deadline_s = time.monotonic() + timeout_s
        with self._server.changed:
            while not condition(state := self.state()):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._server.changed.wait(left_s):
                    if condition(state := self.state()):
                        return state
                    raise TimeoutError(json.dumps(state, indent=1, default=str))
            return state


BANNER = (
    "local_e2b: http://127.0.0.1:{port} runs the code it is sent UNISOLATED, on this "
    "machine and as"
    " this user: for trying out and for tests only (stop with Ctrl-C)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--port", type=int, default=0, help="loopback port; 0 picks a free one"
    )
    parser.add_argument("--script", default="{}", help="JSON, or a file that holds it")
    parser.add_argument(
        "--ahead", type=int, default=1, help="kernels kept started ahead"
    )
    options = parser.parse_args()
    text = options.script
    script = json.loads(
        text if text.lstrip().startswith("{") else Path(text).read_text()
    )

    async def serve() -> None:
        stop = asyncio.Event()
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
        async with _serving(_Server(script, options.ahead), options.port) as port:
            print(BANNER.format(port=port), flush=True)
            await stop.wait()

    try:
        asyncio.run(serve())
    except OSError as error:
        sys.exit(
            f"local_e2b: cannot listen on port {options.port}: "
            f"{os.strerror(error.errno or 0)}"
        )


if __name__ == "__main__":
    main()
