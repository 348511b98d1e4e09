"""The rows of `make bench` for LibreChat's code interpreter: an exec, and files.

Kernels are real here, so that what runs in them counts;
creating a sandbox takes as long as in the other rows. Between
two calls a kernel is started ahead, which is not measured.
"""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from bench import (
    BenchError,
    Generator,
    Row,
    Scale,
    Service,
    StandIn,
    against,
    below,
)
from launch import LOOPBACK, clean_environ

# Longer than a kernel takes to start.
PAUSE_S = 0.5
BARE = (
    "import subprocess\n"
    "done = subprocess.run(['bash', '-c', 'echo hi'], capture_output=True, text=True)\n"
    "print(done.stdout, end='')"
)
EXEC_LIMIT = 1.3
# Of the service's memory at 100 MB, in MB.
MEMORY_LIMITS = {"upload": 32, "download": 32, "in": 64, "out": 48}
MB = 1_000_000


@dataclass
class Measured:
    took_s: float = 0.0
    memory_mb: float = 0.0  # at most, above what it was before


class FilesBench:
    """A service with a folder for files, and what is asked of it."""

    def __init__(self, service: Service, e2b: StandIn) -> None:
        self._e2b = e2b
        self._base = f"http://{LOOPBACK}:{service.port}/v1"
        self._connection = http.client.HTTPConnection(LOOPBACK, service.port)
        self._worker = psutil.Process(service.process.pid).children()[0]

    def exec(self, code: str, files: list[Any] | None = None) -> dict[str, Any]:
        body = json.dumps({"lang": "bash", "code": code, "files": files or []})
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/exec", body, headers)
        reply = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(reply.read())
        if reply.status != 200 or answer["stderr"]:
            raise BenchError(f"an exec was answered {reply.status}: {answer}")
        return answer

    def echo_s(self) -> float:
        time.sleep(PAUSE_S)
        started_at = time.monotonic()
        self.exec("echo hi")
        return time.monotonic() - started_at

    def kinds(self) -> str:
        """The requests to E2B of one exec with a small file each way."""
        ref = self.upload(1)
        self._e2b.seconds_when_idle()
        before = len(self._e2b.state()["requests"])
        self.exec("cp a b; echo done", [ref])
        self._e2b.seconds_when_idle()
        requests = self._e2b.state()["requests"][before:]
        kinds = ", ".join(request["kind"] for request in requests)
        return f"{len(requests)}: {kinds}"

    def upload(self, size_bytes: int) -> dict[str, Any]:
        head = (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        )

        def form() -> Iterator[bytes]:
            yield head
            for _ in range(size_bytes // MB):
                yield os.urandom(MB)
            yield b"1" * (size_bytes % MB) + b"\r\n--x--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        self._connection.request(
            "POST", "/v1/upload", form(), headers, encode_chunked=True
        )
        answer = json.loads(self._connection.getresponse().read())
        session_id = answer["storage_session_id"]
        file_id = answer["files"][0]["fileId"]
        return {"id": file_id, "storage_session_id": session_id, "name": "a"}

    def download(self, ref: dict[str, Any]) -> None:
        url = f"{self._base}/download/{ref['storage_session_id']}/{ref['id']}"
        with urllib.request.urlopen(url) as reply:
            while reply.read(65536):
                pass

    def measure(self, call: Callable[[], Any]) -> tuple[Measured, Any]:
        time.sleep(PAUSE_S)
        with self._memory() as measured:
            started_at = time.monotonic()
            result = call()
            measured.took_s = time.monotonic() - started_at
        return measured, result

    @contextmanager
    def _memory(self) -> Iterator[Measured]:
        measured = Measured()
        before = self._worker.memory_info().rss
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                grown_mb = (self._worker.memory_info().rss - before) / 1e6
                measured.memory_mb = max(measured.memory_mb, grown_mb)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield measured
        finally:
            done.set()
            watcher.join()


def file_rows(scale: Scale) -> list[Row]:
    script = {
        "create": {"delay_s": scale.create_s},
        "kill": {"delay_s": scale.kill_s},
    }
    with tempfile.TemporaryDirectory() as folder, StandIn(script) as e2b:
        environ = clean_environ(e2b.url)
        with Generator(environ) as bare:
            job = {"callers": 1, "code": BARE, "pause_s": PAUSE_S}
            bare.ask("bare", calls=1, **job)
            bare_s = bare.ask("bare", calls=scale.execs, **job)["durations_s"]
        with Service({**environ, "FILES_DIR": folder}) as service:
            files = FilesBench(service, e2b)
            files.echo_s()
            ours_s = [files.echo_s() for _ in range(scale.execs)]
            rows = [
                against("exec of `echo hi`", bare_s, ours_s, EXEC_LIMIT),
                Row("requests to E2B of an exec with small files", "", files.kinds()),
            ]
            for megabytes in scale.megabytes:
                rows += _rows_of_size(files, megabytes)
    return rows


def _rows_of_size(files: FilesBench, megabytes: int) -> list[Row]:
    size = megabytes * MB
    up, ref = files.measure(lambda: files.upload(size))
    down, _ = files.measure(lambda: files.download(ref))
    carried_in, _ = files.measure(lambda: files.exec("wc -c <a", [ref]))
    code = f"head -c {size} /dev/urandom >b; echo done"
    carried_out, _ = files.measure(lambda: files.exec(code))
    ways = {"upload": up, "download": down, "in": carried_in, "out": carried_out}
    seconds = ", ".join(f"{way} {one.took_s:.1f} s" for way, one in ways.items())
    rows = [Row(f"{megabytes} MB", "", seconds)]
    for way, one in ways.items():
        what = f"memory of the service for {megabytes} MB, {way}, at most"
        if megabytes >= 100:
            rows.append(below(what, one.memory_mb, MEMORY_LIMITS[way], "{:.0f} MB"))
    return rows
