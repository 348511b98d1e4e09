"""`make bench`: how the service compares with the bare SDK, in time, CPU and money.

    python dev/bench.py [--quick] [--e2b [--max-sandbox-seconds 60]]

The bare SDK is `with Sandbox.create() as s: s.run_code(...)`. Both ask the stand-in for
E2B, which answers after fixed delays; the service, the stand-in and the processes that
make the load are apart from each other. A call counts only when its answer is the one
that was asked for (answers.py). Prints a Markdown table with a target beside each
figure, then which were missed; exits 1 when one was. With --e2b it asks the real E2B
(E2B_API_KEY) a few times, and judges nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from answers import (
    JSON_TYPE,
    Client,
    TimedClient,
    WrongAnswer,
    check_ran,
    is_refused_as_full,
)
from bench_files import file_rows, script_rows
from bench_load import REQUEST_TIMEOUT_S, Generator
from bench_table import Row, against, below, median, percentile, spread_ms, table
from launch import POLL_S, clean_environ
from processes import BenchError, Job, Service, StandIn, answered

REAL_RUN = "import time; time.sleep(0.05); print('ok')"

SINE = """import matplotlib.pyplot as plt, numpy as np
x = np.linspace(0, 10, 400)
plt.plot(x, np.sin(x))
plt.show()"""


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
    megabytes: tuple[int, ...] = (1, 10, 100)


FULL = Scale()
QUICK = Scale(0.03, 0.01, 0.01, 2, ((4, 1),), 8, 1.0, 1, 3, 1, 1, (1,))


def printing(after_s: float) -> Job:
    """A run that prints ok after that time, and what it is held to."""
    event = {"type": "stdout", "text": "ok\n", "timestamp": "2026-01-01T00:00:00+00:00"}
    code = answered(delay_s=after_s, events=[event])
    return {"code": code, "prints": "ok"}


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
            # Each imports what it needs, and connects.
            first = {"callers": 1, "calls": 2, **printing(0)}
            self.bare.ask("bare", **first)
            self.load.ask("service", port=service.port, **first)
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
                **printing(self.scale.run_s),
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
        job = printing(self.scale.run_s) | job
        bare = self.bare.ask("bare", **job)
        ours = self.load.ask("service", port=service.port, **job)
        return bare["durations_s"], ours["durations_s"]

    def _picture(self, service: Service, megabytes: int) -> Row:
        size_bytes = megabytes * 1_000_000
        code = answered(delay_s=self.scale.run_s, pngs=1, png_bytes=size_bytes)
        both = self._both(
            service,
            callers=1,
            calls=self.scale.picture_calls,
            code=code,
            prints="",
            pictures=1,
            picture_bytes=size_bytes,
        )
        return against(f"a picture of {megabytes} MB", *both)

    def _effort(self, service: Service) -> list[Row]:
        """Runs a second and CPU, with nothing to wait for."""
        self.e2b.set_script(delays(0, 0))
        job = {"callers": 8, "calls": self.scale.undelayed_calls, **printing(0)}
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
            **printing(self.scale.run_s),
        }
        self.load.ask("service", **job)
        before_s = self.e2b.seconds_when_idle()
        job |= {"callers": 1, "calls": 3, **printing(run_s)}
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
                    client = TimedClient(service.port, REQUEST_TIMEOUT_S)
                    is_refused, took_s = one_more_run(client)
                    client.close()
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


def one_more_run(client: Client) -> tuple[bool, float]:
    """Whether a run is refused, as it has to be when the cap is reached; and how long
    the answer takes, s. Raises WrongAnswer when it is neither run nor refused."""
    job = printing(0)
    body = json.dumps({"code": job["code"]}).encode()
    started_at = time.monotonic()
    answer = client.ask("POST", "/execute", body, JSON_TYPE)
    took_s = time.monotonic() - started_at
    is_refused = is_refused_as_full(answer)
    if not is_refused:
        check_ran(answer, **job)
    return is_refused, took_s


def kernel_rows(calls: int) -> list[Row]:
    """What a person waits for is mostly imports: in real kernels, on this machine."""
    drawing = {"callers": 1, "calls": calls, "code": SINE, "pictures": 1}
    with StandIn({}) as e2b, Generator(clean_environ()) as load:
        environ = clean_environ(e2b.url)
        durations_s = []
        for setting in ({"WARM_IMPORTS": ""}, {}):
            warm = {"WARM_SANDBOXES": "1", **setting}
            with Service(environ | warm) as service:
                job = {**drawing, "port": service.port, "warm": True}
                result = load.ask("service", **job)
                durations_s.append(result["durations_s"])
        setting = {"SESSION_IDLE_S": "60"}
        with Service(environ | setting) as service:
            job = {**drawing, "port": service.port}
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
    """One caller at the real E2B; a third of the sandbox seconds for each way."""
    share_s = max(1, max_sandbox_s // 3)
    environ = clean_environ() | {
        "SANDBOX_SECONDS_PER_DAY": str(share_s),
        "RUN_TIMEOUT_S": "10",
    }
    job = {"callers": 1, "calls": calls, "code": REAL_RUN, "prints": "ok"}
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
    options = parser.parse_args(arguments)
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
            rows += script_rows(1 if options.quick else 10)
            rows += file_rows(
                scale.create_s, scale.kill_s, scale.execs, scale.megabytes
            )
    except (BenchError, WrongAnswer) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    print(table(rows))
    python = platform.python_version()
    print(f"\nMeasured against {e2b}; {os.cpu_count()} cores, Python {python}.")
    missed = [row.what for row in rows if row.missed]
    print("Targets missed: " + ("; ".join(missed) or "none") + ".")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
