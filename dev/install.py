"""Installs what a lock names for the Python that runs this, and shows how far it is.

    python dev/install.py dev/requirements-demo.txt

Only what Python itself has is used: nothing else is there yet.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# What each lock takes, to download and on disk, in MB: for who waits to know the end.
SIZES = {"requirements-demo.txt": (80, 440), "requirements.txt": (140, 640)}
# How pip begins a line on each package: it is fetched, read
# from disk, there already, or for other machines only.
FIRST_WORDS = ("Collecting", "Processing", "Requirement", "Ignoring")
# In a log, which cannot be written over, a line for so many packages.
LOGGED_EACH = 20


def main(lock: Path) -> int:
    """The exit code: 0 when all is there, 1 when pip has said why not."""
    total = len(re.findall("^[^ #].*==", lock.read_text(), re.MULTILINE))
    download_mb, disk_mb = SIZES[lock.name]
    print(
        f"Installing the {total} packages of {lock} into {sys.prefix}, once:"
        f" about {download_mb} MB to download, {disk_mb} MB on disk.",
        flush=True,
    )
    pip = [sys.executable, "-m", "pip", "install", "--progress-bar=off"]
    options = ["--disable-pip-version-check", "--no-input"]
    # The lock is complete: there is nothing to resolve.
    exactly = ["--require-hashes", "--no-deps", f"--requirement={lock}"]
    with subprocess.Popen(
        [*pip, *options, *exactly], stdout=subprocess.PIPE, text=True
    ) as process:
        number = 0
        for line in process.stdout or ():
            step, _, what = line.partition(" ")
            if step in FIRST_WORDS:
                number += 1
                _show(number, total, Path(what.split()[0]).name)
            elif step == "Installing":
                _end_line()
                print("  All are here; unpacking them.", flush=True)
    if process.returncode:
        _end_line()
        print(
            "The packages could not be installed; pip says why above."
            " No network, maybe?",
            file=sys.stderr,
        )
        return 1
    return 0


def _show(number: int, total: int, name: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[K  {number} of {total}: {name}", end="", flush=True)
    elif number % LOGGED_EACH == 0:
        print(f"  {number} of {total}", flush=True)


def _end_line() -> None:
    if sys.stdout.isatty():
        print()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
