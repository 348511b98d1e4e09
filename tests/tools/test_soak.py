"""The soak in short, whether it would notice,
and whether the bench measures what it prints."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from bench_table import Row, against, below, percentile, table
from soak import Life, Plan, Report, Restart, Sample, problems

pytestmark = pytest.mark.usefixtures("untraced")

ROOT = Path(__file__).parents[2]
PLAN = Plan(runs=100, faults=0.1, restarts=1, warm=0, callers=10, quick=False)
START = Sample(memory_mb=100, threads=20, descriptors=40)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def figure(output: str, pattern: str) -> int:
    found = re.search(pattern, output)
    assert found, f"no {pattern!r} in:\n{output}"
    return int(found[1].replace(",", ""))


def test_faults_restarts_and_load_leave_no_sandbox_and_no_unexplained_reply() -> None:
    done = run(
        "dev/soak.py",
        "--runs=150",
        "--restarts=2",
        "--warm=2",
        "--callers=20",
        "--quick",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert figure(done.stdout, r"runs +([\d,]+)") >= 150
    assert figure(done.stdout, r"restarts +(\d+) \(SIG\w+ 1, SIG\w+ 1\)") == 2
    assert figure(done.stdout, r"([\d,]+) killed") >= 100


def a_good_report() -> Report:
    return Report(
        runs=100,
        faults=Counter(run=1, create=3, kill=1),
        restarts=[Restart(15, 0.0, 1.0)],
        lives=[Life(50, START, START)],
        no_sandbox=3,
        expired=2,
        may_expire=2,
        longest_lifetime_s=18,
    )


def test_a_soak_passes_when_all_of_it_is_explained() -> None:
    assert problems(a_good_report(), PLAN) == []


def test_a_thread_for_the_kill_of_each_run_is_no_leak() -> None:
    lives = [Life(50, START, Sample(110, 50, 40))]
    report = dataclasses.replace(a_good_report(), lives=lives)
    assert problems(report, PLAN) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"runs": 99}, "only 99 of 100 runs"),
        ({"faults": Counter(run=1, create=3)}, "only 4 faults"),
        ({"restarts": []}, "only 0 restarts"),
        ({"alive": 1, "may_expire": 3}, "1 sandboxes leaked"),
        ({"expired": 3}, "1 sandboxes were never killed"),
        ({"longest_lifetime_s": 19}, "a lifetime of 19 s"),
        ({"no_sandbox": 4}, "4 runs got no sandbox"),
        ({"unexplained": ["a reply of 500"]}, "a reply of 500"),
        (
            {"lives": [Life(50, START, Sample(110, 20, 40))]},
            "the last process grew by 10.0 MB",
        ),
        (
            {"lives": [Life(50, START, Sample(100, 51, 40))]},
            "31 threads and 0 file descriptors more",
        ),
        (
            {"lives": [Life(50, START, Sample(100, 20, 61))]},
            "0 threads and 21 file descriptors more",
        ),
    ],
)
def test_a_soak_fails_for(change: dict[str, object], problem: str) -> None:
    found = problems(dataclasses.replace(a_good_report(), **change), PLAN)  # type: ignore[arg-type]
    assert len(found) == 1
    assert problem in found[0]


def test_the_bench_prints_its_whole_table_and_names_what_was_missed() -> None:
    done = run("dev/bench.py", "--quick")
    assert done.returncode in (0, 1), done.stderr
    lines = done.stdout.splitlines()
    rows = [line.split("|") for line in lines if line.startswith("|")][2:]
    names = [row[1].strip() for row in rows]
    for part in (
        "one caller, cold",
        "one caller, warm",
        "the run alone",
        "4 callers",
        "1 MB",
        "5 MB",
        "p99 to the median of one",
        "memory",
        "/health",
        "refused",
        "billed",
        "runs a second",
        "CPU",
    ):
        assert sum(part in name for name in names) >= 1, (
            f"{part!r} is missing in {names}: {done.stderr}"
        )
    for row in rows:
        assert re.search(r"\d", row[3]), f"no figure of ours in {row}"
    missed = lines[-1].removeprefix("Targets missed: ").removesuffix(".")
    assert done.returncode == (missed != "none")


def test_a_ratio_is_of_the_medians_and_is_held_against_its_target() -> None:
    bare, ours = [0.2, 0.2, 9.0], [0.1, 0.15, 0.16]
    row = against("x", bare, ours, limit=0.7)
    assert (row.ratio, row.target, row.missed) == ("0.75", "≤ 0.70", True)
    assert not against("x", bare, ours, limit=0.8).missed


def test_a_figure_misses_its_target_from_the_limit_on() -> None:
    assert below("x", 50.0, 50, "{:.0f} ms") == Row(
        "x", "", "50 ms", "", "< 50 ms", True
    )
    assert not below("x", 49.0, 50, "{:.0f} ms").missed


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 50, 95, 99, 100)] == [
        1,
        51,
        95,
        99,
        100,
    ]


def test_the_table_is_markdown_that_a_readme_can_take_as_it_is() -> None:
    lines = table([Row("a", "1", "2", "0.50", "< 1")]).splitlines()
    assert [line.count("|") for line in lines] == [6, 6, 6]
    assert lines[2] == "| a | 1 | 2 | 0.50 | < 1 |"
