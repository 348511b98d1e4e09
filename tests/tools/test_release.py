"""One version everywhere, and what a tag sets off."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import release_notes
import yaml

from config import VERSION
from conftest import ROOT

WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
CHANGELOG = """# Changelog

## Unreleased

## 2.1.0 (2026-01-02)

- new

## 2.0.0 (2026-01-01)

- old
"""
OPEN_CHANGELOG = CHANGELOG.replace("Unreleased\n", "Unreleased\n\n- more\n")


def test_code_document_image_and_cluster_have_one_version() -> None:
    document = json.loads((ROOT / "openapi.json").read_text())
    image = re.findall(r'image\.version="(.+?)"', (ROOT / "Dockerfile").read_text())
    cluster = re.findall(
        r"image: e2b-proxy:(\S+)", (ROOT / "deploy/kubernetes.yaml").read_text()
    )
    assert document["info"]["version"] == VERSION
    assert image == cluster == [VERSION]
    assert release_notes.version_of_the_code() == VERSION


def test_the_changelog_has_the_version_first_or_is_open() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert heads[0] == "Unreleased" or heads[0].startswith(f"{VERSION} (")


def test_the_notes_are_the_section_of_the_tag() -> None:
    assert release_notes.notes("v2.1.0", CHANGELOG, "2.1.0") == "- new"
    assert release_notes.notes("v2.0.0", CHANGELOG, "2.0.0") == "- old"


@pytest.mark.parametrize(
    ("tag", "changelog", "said"),
    [
        ("v2.2.0", CHANGELOG, "the tag is v2.2.0, VERSION in config.py is 2.1.0"),
        ("2.1.0", CHANGELOG, "the tag is 2.1.0"),
        ("v2.1.0", CHANGELOG.replace("2.1.0 (2026-01-02)", "2.1.0"), "no section"),
        ("v2.1.0", CHANGELOG.replace("2.1.0 (", "2x1.0 ("), "no section"),
        ("v2.1.0", OPEN_CHANGELOG, "close it"),
    ],
)
def test_what_is_not_ready_is_no_release(tag: str, changelog: str, said: str) -> None:
    with pytest.raises(release_notes.NotReady, match=re.escape(said)):
        release_notes.notes(tag, changelog, "2.1.0")


def test_a_wrong_tag_ends_the_workflow_in_one_line() -> None:
    command = [sys.executable, str(ROOT / "dev/release_notes.py"), "v0.0.1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    said = f"Not ready: the tag is v0.0.1, VERSION in config.py is {VERSION}."
    assert ended.stderr.splitlines() == [said]


def test_the_workflows_run_what_is_there() -> None:
    """Each file of ours that a workflow's command names exists."""
    ci, release = (yaml.safe_load(path.read_text()) for path in WORKFLOWS)
    jobs = [*ci["jobs"].values(), *release["jobs"].values()]
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands
    files = r"(?<![\w/-])(?:dev/\w+\.py|\.ci/\w+|compose\.[\w.]+)"
    named = set(re.findall(files, " ".join(commands)))
    assert {"dev/release_notes.py", ".ci/run", "compose.yaml"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actionlint_finds_nothing(path: Path) -> None:
    if not shutil.which("actionlint"):
        pytest.skip("actionlint is not installed")
    checked = subprocess.run(
        ["actionlint", str(path)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_hadolint_finds_nothing() -> None:
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed")
    checked = subprocess.run(
        ["hadolint", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
