"""The README's tables say what the code says."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path

from prometheus_client import REGISTRY

import metrics
from config import Config

README = Path(__file__).parents[1].joinpath("README.md").read_text("utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    below = README.split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", below, re.M)
    assert lines, heading
    rows = lines[0].splitlines()[2:]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows
    ]


def test_the_table_of_settings_has_each_setting_with_its_default() -> None:
    def shown(name: str, default: object) -> str:
        if name == "e2b_api_key":
            return "required"
        if default in ("", None):
            return "none"
        return f"`{str(default).lower() if isinstance(default, bool) else default}`"

    told = {row[0]: row[1] for row in table("## Settings")}
    known = {f"`{f.name.upper()}`": shown(f.name, f.default) for f in fields(Config)}
    assert told == known


def test_the_table_of_metrics_has_each_metric() -> None:
    assert metrics.RUNS
    told = {row[0].strip("`") for row in table("## Operating it")}
    known = set()
    for family in REGISTRY.collect():
        if family.name.startswith("e2b_proxy_"):
            known.add(family.name + ("_total" if family.type == "counter" else ""))
    assert told == known


def test_the_table_of_files_has_each_file_of_the_service() -> None:
    told = {
        name
        for row in table("## Reading the code")
        for name in re.findall(r"`(.+?)`", row[0])
    }
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    aside = re.compile(r"^(tests|dev)/|^(test_proxy|conftest)\.py$")
    assert told == {name for name in listed if not aside.match(name)}
