"""Packages of Node.js that tests run, installed as their lock files say."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

# Where no network answers, npm would try for minutes.
NPM_TIMEOUT_S = 300


def install_packages(folder: Path, what: str) -> None:
    """`npm ci` in this folder, unless what its lock names is there already.

    Where that cannot be, the test is skipped in a line that says `what` was not run."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {' and '.join(missing)}: {what} NOT run")
    lock = folder / "package-lock.json"
    installed = folder / "node_modules" / ".installed-lock"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    with lock.open() as held:
        # npm ci empties the folder under another test run's feet.
        fcntl.flock(held, fcntl.LOCK_EX)
        if installed.is_file() and installed.read_text() == wanted:
            return
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            subprocess.run(
                command,
                cwd=folder,
                check=True,
                capture_output=True,
                timeout=NPM_TIMEOUT_S,
            )
        except subprocess.SubprocessError as exc:
            pytest.skip(f"npm ci: {type(exc).__name__}: {what} NOT run")
        installed.write_text(wanted)
