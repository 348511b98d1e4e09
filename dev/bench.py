"""`make bench`: how the service compares with
the bare SDK, in time, CPU, memory and money.

    python dev/bench.py [--quick] [--e2b [--max-sandbox-seconds 60]]

The bare SDK is `with Sandbox.create() as s: s.run_code(...)`. Both ask the
stand-in for E2B, which answers after fixed delays; the service, the stand-in
and what makes the load are processes of their own. Prints a Markdown table
with a target beside each figure, then which were missed; exits 1 when one was.
With --e2b it asks the real E2B (E2B_API_KEY) a few times, and judges nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, Any, Self, cast

import launch
import psutil
from launch import LOOPBACK, POLL_S, clean_environ, free_port

STOP_TIMEOUT_S = 40.0
REQUEST_TIMEOUT_S = 60.0
REAL_RUN = "import time; time.sleep(0.05); print('ok')"

SINE = """import matplotlib.pyplot as plt, numpy as np
x = np.linspace(0, 10, 400)
plt.plot(x, np.sin(x))
plt.show()"""

Job = dict[str, Any]


class BenchError(Exception):
    """What kept a figure from being measured, in one line."""


@dataclass(frozen=True)
class Scale:
    """How much of everything is done, and how long the stand-in takes for it."""

    create_s: float = 0.150
    run_s: float = 0.050
    kill_s: float = 0.060
    calls: int = 50  # of one caller
    crowds: tuple[tuple[int, int], ...] = ((20, 15), (100, 6))  # callers, calls of each
    cap: int = 100
    long_run_s: float = 2.0
    picture_calls: int = 10
    undelayed_calls: int = 75  # of each of 8 callers
    rounds: int = 3
    execs: int = 10
    megabytes: tuple[int, ...] = (1, 10, 25, 100)


FULL = Scale()
QUICK = Scale(0.03, 0.01, 0.01, 2, ((4, 1),), 8, 1.0, 1, 3, 1, 1, (1,))


# --- processes ------------------------------------------------------------------------


def get_json(port: int, path: str, timeout_s: float = 5) -> Any:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


class Child:
    """A Python process, ended when its `with`
    block is left; its output goes to a file."""

    def __init__(self, *command: str, environ: Mapping[str, str]) -> None:
        self.name = command[0] if command[0] != "-m" else command[1]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in kill
        self.started_at = time.monotonic()
        self.process = launch.start(command, environ, self.log.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log_text(self) -> str:
        # pread leaves the position at which the child writes alone.
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode("utf-8", "replace")

    def wait_until(self, is_up: Callable[[], bool]) -> None:
        try:
            launch.wait_until(is_up, self.process)
        except launch.NotUpError as exc:
            tail = " | ".join(self.log_text().splitlines()[-5:])
            raise BenchError(f"{self.name} {exc}: {tail}") from exc

    def stop(self) -> bool:
        """SIGTERM, and SIGKILL for whatever is left; whether the first was enough."""
        has_ended = launch.end(self.process, STOP_TIMEOUT_S)
        self.log.close()
        return has_ended

    def kill(self) -> None:
        launch.kill(self.process)
        self.log.close()

    def processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def memory_mb(self) -> float:
        """Resident memory of all its processes; what they share is counted in each."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 1e6


class StandIn(Child):
    def __init__(self, script: Job) -> None:
        command = ("dev/local_e2b.py", "--port", "0", "--script", json.dumps(script))
        super().__init__(*command, environ=clean_environ())
        self.wait_until(lambda: "\n" in self.log_text())
        self.port = int(self.log_text().partition(f"{LOOPBACK}:")[2].partition(" ")[0])
        self.url = f"http://{LOOPBACK}:{self.port}"

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = get_json(self.port, "/_state", timeout_s=30)
        return state

    def seconds_when_idle(self) -> float:
        """Sandbox seconds, once no sandbox is alive."""
        give_up_at = time.monotonic() + 10
        while (state := self.state())["alive"]:
            if time.monotonic() > give_up_at:
                raise BenchError(f"{state['alive']} sandboxes did not end")
            time.sleep(5 * POLL_S)
        return float(state["sandbox_seconds"])

    def set_script(self, script: Job) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=60)
        connection.request("PUT", "/_script", json.dumps(script))
        status = connection.getresponse().status
        connection.close()
        if status != 204:
            raise BenchError(f"the stand-in answered {status} to a script")


class Service(Child):
    """gunicorn with the shipped configuration."""

    def __init__(self, environ: Mapping[str, str], port: int = 0) -> None:
        self.port = port or free_port()
        environ = {**environ, "HOST": LOOPBACK, "PORT": str(self.port)}
        super().__init__(*launch.SERVICE, environ=environ)
        self.wait_until(lambda: launch.is_healthy(self.port))
        self.start_s = time.monotonic() - self.started_at

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = get_json(self.port, "/health")
        return health


class Generator:
    """A process that makes load: this file, asked for one job at a time."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--generate"],
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._to, self._from = (
            cast(IO[str], self._process.stdin),
            cast(IO[str], self._process.stdout),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, do: str, **job: Any) -> None:
        self._to.write(json.dumps({"do": do, **job}) + "\n")
        self._to.flush()

    def result(self) -> dict[str, Any]:
        line = self._from.readline()
        if not line:
            raise BenchError("a load generator died")
        result: dict[str, Any] = json.loads(line)
        if result["failed"]:
            raise BenchError(
                f"{len(result['failed'])} calls failed: {result['failed'][0]}"
            )
        return result

    def ask(self, do: str, **job: Any) -> dict[str, Any]:
        self.begin(do, **job)
        return self.result()


# --- in the generator's process -------------------------------------------------------


def generate() -> None:
    """Do jobs, a line of JSON each, until stdin
    ends; answer each with a line of JSON."""
    for line in sys.stdin:
        job = json.loads(line)
        do = {"bare": _bare, "alone": _alone, "service": _service, "probe": _probe}[
            job["do"]
        ]
        print(json.dumps(do(job)), flush=True)


def _in_threads(
    job: Job, make_call: Callable[[], Callable[[], float]]
) -> dict[str, Any]:
    """Have `callers` threads make `calls` calls
    each; `make_call` gives a thread its call."""
    durations_s: list[float] = []
    failed: list[str] = []
    start = threading.Barrier(job["callers"] + 1)

    def call_repeatedly() -> None:
        call = make_call()
        start.wait()
        for _ in range(job["calls"]):
            time.sleep(job.get("pause_s", 0))
            try:
                durations_s.append(call())
            except Exception as exc:
                failed.append(f"{type(exc).__name__} {exc}"[:300])

    threads = [threading.Thread(target=call_repeatedly) for _ in range(job["callers"])]
    for thread in threads:
        thread.start()
    start.wait()
    started_at, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    for thread in threads:
        thread.join()
    now_used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = now_used.ru_utime + now_used.ru_stime - used.ru_utime - used.ru_stime
    took_s = time.monotonic() - started_at
    return {
        "durations_s": durations_s,
        "failed": failed,
        "took_s": took_s,
        "cpu_s": cpu_s,
    }


def _bare(job: Job) -> dict[str, Any]:
    from e2b_code_interpreter import Sandbox

    spent_s = 0.0

    def call() -> float:
        nonlocal spent_s
        if spent_s > job.get("max_sandbox_s", 1e9):
            raise BenchError("the limit of sandbox seconds is reached")
        started_at = time.monotonic()
        with Sandbox.create(timeout=60) as sandbox:
            execution = sandbox.run_code(job["code"])
        took_s = time.monotonic() - started_at
        spent_s += took_s
        if execution.error:
            raise BenchError(str(execution.error))
        return took_s

    return _in_threads(job, lambda: call)


def _alone(job: Job) -> dict[str, Any]:
    """Only the run, in a sandbox that is there."""
    from e2b_code_interpreter import Sandbox

    with Sandbox.create(timeout=60) as sandbox:

        def call() -> float:
            started_at = time.monotonic()
            sandbox.run_code(job["code"])
            return time.monotonic() - started_at

        call()
        return _in_threads(job, lambda: call)


def _service(job: Job) -> dict[str, Any]:
    body = json.dumps({"code": job["code"]}).encode()
    headers = {"Content-Type": "application/json"}
    if job.get("session"):
        headers["X-Session-Id"] = job["session"]

    def make_call() -> Callable[[], float]:
        connection = http.client.HTTPConnection(
            LOOPBACK, job["port"], timeout=REQUEST_TIMEOUT_S
        )

        def is_warm() -> bool:
            connection.request("GET", "/health")
            return bool(json.loads(connection.getresponse().read())["warm_ready"])

        def call() -> float:
            give_up_at = time.monotonic() + 20
            while job.get("warm") and not is_warm():
                if time.monotonic() > give_up_at:
                    raise BenchError("no sandbox was made ahead")
                time.sleep(POLL_S)
            started_at = time.monotonic()
            connection.request("POST", "/execute", body, headers)
            reply = connection.getresponse()
            text = reply.read()
            took_s = time.monotonic() - started_at
            if reply.status != 200 or reply.headers["X-Run-Outcome"] != "ok":
                raise BenchError(f"{reply.status} {text[:200]!r}")
            if len(text) < job.get("min_reply_bytes", 0):
                raise BenchError(f"a reply of {len(text)} bytes")
            return took_s

        return call

    return _in_threads(job, make_call)


def _probe(job: Job) -> dict[str, Any]:
    """Ask /health as a monitor does, on a new
    connection each time, for some seconds."""
    durations_s = []
    end_at = time.monotonic() + job["for_s"]
    while (started_at := time.monotonic()) < end_at:
        get_json(job["port"], "/health")
        durations_s.append(time.monotonic() - started_at)
        time.sleep(0.025)
    return {"durations_s": durations_s, "failed": []}


# --- the table ------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    what: str
    bare: str
    ours: str
    ratio: str = ""
    target: str = ""
    missed: bool = False


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def spread_ms(durations_s: Sequence[float]) -> str:
    parts = [
        f"{percentile(durations_s, percent) * 1000:,.0f}" for percent in (50, 95, 99)
    ]
    return " / ".join(parts) + " ms"


def against(
    what: str, bare: Sequence[float], ours: Sequence[float], limit: float = 0
) -> Row:
    """The ratio of the medians, which may be `limit` (0: any)."""
    ratio = median(ours) / median(bare)
    target = f"≤ {limit:.2f}" if limit else ""
    missed = bool(limit) and ratio > limit
    return Row(what, spread_ms(bare), spread_ms(ours), f"{ratio:.2f}", target, missed)


def below(what: str, value: float, limit: float, form: str) -> Row:
    """A figure that has to stay below a limit; `form` formats both."""
    return Row(
        what, "", form.format(value), "", f"< {form.format(limit)}", value >= limit
    )


def table(rows: Sequence[Row]) -> str:
    heading = Row(
        "p50 / p95 / p99, or as said", "Bare SDK", "e2b-proxy", "Ratio", "Target"
    )
    lines = [
        f"| {row.what} | {row.bare} | {row.ours} | {row.ratio} | {row.target} |"
        for row in [heading, *rows]
    ]
    return "\n".join([lines[0], "|---|---|---|---|---|", *lines[1:]])


# --- the measurements -----------------------------------------------------------------


def answered(**answer: Any) -> str:
    """Code that makes the stand-in answer so."""
    return f"# answer: {json.dumps(answer)}"


def printed(after_s: float) -> str:
    event = {"type": "stdout", "text": "ok\n", "timestamp": "2026-01-01T00:00:00+00:00"}
    return answered(delay_s=after_s, events=[event])


def delays(create_s: float, kill_s: float) -> Job:
    kill = {"delay_s": kill_s}
    return {"create": {"delay_s": create_s}, "run": {"from_code": True}, "kill": kill}


class Bench:
    """The stand-in, and three processes that make load."""

    def __init__(self, scale: Scale, stack: ExitStack) -> None:
        self.scale = scale
        self.e2b = stack.enter_context(StandIn(delays(scale.create_s, scale.kill_s)))
        self.environ = clean_environ(self.e2b.url) | {
            "MAX_CONCURRENT_RUNS": str(scale.cap),
            # More threads than connections kept would
            # open new ones all the time, on both sides.
            "E2B_MAX_KEEPALIVE_CONNECTIONS": str(2 * scale.cap),
        }
        generators = (stack.enter_context(Generator(self.environ)) for _ in range(3))
        self.bare, self.load, self.probe = generators

    def rows(self) -> list[Row]:
        with Service(self.environ) as service:
            start_s, idle_mb = service.start_s, service.memory_mb()
            self.bare.ask(
                "bare", callers=1, calls=2, code=printed(0)
            )  # imports, and connects
            self.load.ask(
                "service", port=service.port, callers=1, calls=2, code=printed(0)
            )
            long_runs = self._long_runs(service)
            bare_s, cold_s = self._both(service, callers=1, calls=self.scale.calls)
            crowds = [
                against(
                    f"{callers} callers",
                    *self._both(service, callers=callers, calls=calls),
                )
                for callers, calls in self.scale.crowds
            ]
            pictures = [self._picture(service, megabytes) for megabytes in (1, 5)]
            effort = self._effort(service)
        with Service(self.environ | {"WARM_SANDBOXES": "1"}) as service:
            job = {
                "callers": 1,
                "calls": self.scale.calls,
                "code": printed(self.scale.run_s),
            }
            alone_s = self.bare.ask("alone", **job)["durations_s"]
            job |= {"port": service.port, "warm": True}
            warm_s = self.load.ask("service", **job)["durations_s"]
        return [
            against("one caller, cold", bare_s, cold_s, 0.82),
            against("one caller, warm (WARM_SANDBOXES=1)", bare_s, warm_s, 0.25),
            against("the same to the run alone", alone_s, warm_s, 1.25),
            *crowds,
            *pictures,
            *long_runs,
            *effort,
            Row("from its start until /health answers", "", f"{start_s:.2f} s"),
            Row("memory before the first run", "", f"{idle_mb:.0f} MB"),
        ]

    def _both(self, service: Service, **job: Any) -> tuple[list[float], list[float]]:
        """The durations of the bare SDK's calls and of the service's."""
        job.setdefault("code", printed(self.scale.run_s))
        bare = self.bare.ask("bare", **job)
        ours = self.load.ask("service", port=service.port, **job)
        return bare["durations_s"], ours["durations_s"]

    def _picture(self, service: Service, megabytes: int) -> Row:
        code = answered(
            delay_s=self.scale.run_s, pngs=1, png_bytes=megabytes * 1_000_000
        )
        calls, least = self.scale.picture_calls, megabytes * 1_333_000
        both = self._both(
            service, callers=1, calls=calls, code=code, min_reply_bytes=least
        )
        return against(f"a picture of {megabytes} MB", *both)

    def _effort(self, service: Service) -> list[Row]:
        """Runs a second and CPU, with nothing to wait for."""
        self.e2b.set_script(delays(0, 0))
        job = {"callers": 8, "calls": self.scale.undelayed_calls, "code": printed(0)}
        bare = self.bare.ask("bare", **job)
        self.e2b.seconds_when_idle()
        before_s, e2b_before_s = service.cpu_s(), self.e2b.cpu_s()
        ours = self.load.ask("service", port=service.port, **job)
        e2b_s = self.e2b.cpu_s() - e2b_before_s
        self.e2b.seconds_when_idle()
        cpu_s = service.cpu_s() - before_s
        self.e2b.set_script(delays(self.scale.create_s, self.scale.kill_s))
        runs, took_s = len(ours["durations_s"]), ours["took_s"]
        shares = f"service {cpu_s / took_s:.2f}, stand-in {e2b_s / took_s:.2f}, "
        shares += f"load {ours['cpu_s'] / took_s:.2f} of {os.cpu_count()} cores"
        return [
            Row(
                f"runs a second, 8 callers, no delays (busy: {shares})",
                f"{runs / bare['took_s']:.0f}",
                f"{runs / took_s:.0f}",
                f"{bare['took_s'] / took_s:.2f}",
            ),
            Row(
                "CPU of a run",
                f"{bare['cpu_s'] / runs * 1000:.1f} ms",
                f"{cpu_s / runs * 1000:.1f} ms",
                f"{cpu_s / bare['cpu_s']:.2f}",
            ),
        ]

    def _long_runs(self, service: Service) -> list[Row]:
        """As many callers at once as the cap allows, and what they do to others."""
        cap, run_s = self.scale.cap, self.scale.long_run_s
        # Threads and connections of as many callers are made once, and not measured.
        job = {
            "port": service.port,
            "callers": cap,
            "calls": 1,
            "code": printed(self.scale.run_s),
        }
        self.load.ask("service", **job)
        before_s = self.e2b.seconds_when_idle()
        job |= {"callers": 1, "calls": 3, "code": printed(run_s)}
        one_s = median(self.load.ask("service", **job)["durations_s"])
        job |= {"callers": cap, "calls": 1}
        memory_mb, many_s, health_s = 0.0, list[float](), list[float]()
        refused_s: list[float] = []
        for _ in range(self.scale.rounds):
            self.load.begin("service", **job)
            self.probe.begin("probe", port=service.port, for_s=run_s)
            end_at = time.monotonic() + run_s
            while time.monotonic() < end_at:
                memory_mb = max(memory_mb, service.memory_mb())
                if service.health()["runs_in_flight"] == cap:
                    is_refused, took_s = _one_more_run(service.port)
                    if is_refused:
                        refused_s.append(took_s)
                    elif service.health()["runs_in_flight"] == cap:
                        raise BenchError(f"more than {cap} runs were in flight")
                time.sleep(5 * POLL_S)
            health_s += self.probe.result()["durations_s"]
            many_s += self.load.result()["durations_s"]
            memory_mb = max(memory_mb, service.memory_mb())
            self.e2b.seconds_when_idle()
        if not refused_s:
            raise BenchError(f"the service never had {cap} runs in flight")
        seconds = self.e2b.seconds_when_idle() - before_s
        billed = seconds / (run_s * (3 + len(many_s)))
        name = f"{cap} callers at once of a {run_s:g} s run, cap {cap}"
        return [
            Row(
                f"{name} (ratio: p99 to the median of one caller)",
                "",
                spread_ms(many_s),
                f"{percentile(many_s, 99) / one_s:.2f}",
                "< 1.15",
                missed=percentile(many_s, 99) / one_s >= 1.15,
            ),
            below(
                "memory of the service meanwhile, master and worker, at most",
                memory_mb,
                250,
                "{:.0f} MB",
            ),
            below(
                "/health meanwhile, p95",
                percentile(health_s, 95) * 1000,
                50,
                "{:.0f} ms",
            ),
            below(
                "a run above the cap is refused, at most",
                max(refused_s) * 1000,
                50,
                "{:.0f} ms",
            ),
            below("sandbox seconds billed for a second of code", billed, 1.2, "{:.2f}"),
        ]


def _one_more_run(port: int) -> tuple[bool, float]:
    """Whether a run is refused, as it has to be when
    the cap is reached; and how long the answer takes."""
    started_at = time.monotonic()
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=REQUEST_TIMEOUT_S)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/execute", json.dumps({"code": printed(0)}), headers)
    reply = connection.getresponse()
    reply.read()
    connection.close()
    is_refused = reply.status == 503 and bool(reply.headers["Retry-After"])
    return is_refused, time.monotonic() - started_at


def kernel_rows(calls: int) -> list[Row]:
    """What a person waits for is mostly imports: in
    real kernels, on this machine, not at E2B."""
    with StandIn({}) as e2b, Generator(clean_environ()) as load:
        environ = clean_environ(e2b.url)
        durations_s = []
        for setting in ({"WARM_IMPORTS": ""}, {}):
            warm = {"WARM_SANDBOXES": "1", **setting}
            with Service(environ | warm) as service:
                job = {"callers": 1, "calls": calls, "code": SINE, "warm": True}
                result = load.ask("service", port=service.port, **job)
                durations_s.append(result["durations_s"])
        setting = {"SESSION_IDLE_S": "60"}
        with Service(environ | setting) as service:
            job = {"callers": 1, "calls": calls, "code": SINE, "port": service.port}
            cold_s = load.ask("service", **job)["durations_s"]
            job["calls"] = calls + 1  # the first one makes the sandbox
            kept_s = load.ask("service", **job, session="user/1")["durations_s"][1:]
    return [
        against(
            "a sine wave, warm; left: WARM_IMPORTS empty (real kernels)", *durations_s
        ),
        against(
            "a sine wave in a kept sandbox; left: cold (real kernels)", cold_s, kept_s
        ),
    ]


def real_rows(calls: int, max_sandbox_s: int) -> list[Row]:
    """One caller at the real E2B; a third of the
    sandbox seconds for each way to ask it."""
    share_s = max(1, max_sandbox_s // 3)
    environ = clean_environ() | {
        "SANDBOX_SECONDS_PER_DAY": str(share_s),
        "RUN_TIMEOUT_S": "10",
    }
    job = {"callers": 1, "calls": calls, "code": REAL_RUN}
    with Generator(environ) as bare, Generator(environ) as load:
        bare_s = bare.ask("bare", **job, max_sandbox_s=share_s)["durations_s"]
        with Service(environ) as service:
            cold_s = load.ask("service", **job, port=service.port)["durations_s"]
        with Service(environ | {"WARM_SANDBOXES": "1"}) as service:
            warm_s = load.ask("service", **job, port=service.port, warm=True)[
                "durations_s"
            ]
    return [
        against("one caller, cold", bare_s, cold_s),
        against("one caller, warm (WARM_SANDBOXES=1)", bare_s, warm_s),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Compare the service with the bare SDK."
    )
    parser.add_argument(
        "--quick", action="store_true", help="try it out: the figures mean little"
    )
    parser.add_argument(
        "--e2b", action="store_true", help="ask the real E2B (E2B_API_KEY)"
    )
    parser.add_argument(
        "--max-sandbox-seconds",
        type=int,
        default=60,
        help="spend no more (default: %(default)s)",
    )
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.generate:
        generate()
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no child is left
    if options.e2b and not os.environ.get("E2B_API_KEY"):
        parser.error("--e2b needs E2B_API_KEY")
    try:
        if options.e2b:
            rows, e2b = (
                real_rows(3 if options.quick else 10, options.max_sandbox_seconds),
                "E2B",
            )
        else:
            scale = QUICK if options.quick else FULL
            times_ms = [
                f"{s * 1000:.0f} ms"
                for s in (scale.create_s, scale.run_s, scale.kill_s)
            ]
            e2b = "a stand-in for E2B (create {}, run {}, kill {})".format(*times_ms)
            with ExitStack() as stack:
                rows = Bench(scale, stack).rows()
            rows += kernel_rows(1 if options.quick else 10)
            # Here, because it builds on this module.
            from bench_files import file_rows

            rows += file_rows(scale)
    except BenchError as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    print(table(rows))
    python = platform.python_version()
    print(f"\nMeasured against {e2b}; {os.cpu_count()} cores, Python {python}.")
    missed = [row.what for row in rows if row.missed]
    print("Targets missed: " + ("; ".join(missed) or "none") + ".")
    return 1 if missed else 0


if __name__ == "__main__":
    # As the module that bench_files.py imports, not as another copy of it.
    import bench

    sys.exit(bench.main())
