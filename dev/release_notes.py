"""The words of a release: `python3 dev/release_notes.py v1.1.0`.

Prints that version's section of CHANGELOG.md. Ends with one line on stderr if the tag
is not the version of the code, or if the section is missing or still open.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class NotReady(Exception):
    """What keeps this from being a release, in one line."""


def version_of_the_code() -> str:
    """Read, not imported: the service's packages need not be there."""
    text = (ROOT / "config.py").read_text()
    [version] = re.findall(r'^VERSION = "(.+)"$', text, re.M)
    return str(version)


def notes(tag: str, changelog: str, version: str) -> str:
    """The section of the changelog that the tag names. Raises NotReady."""
    if tag != f"v{version}":
        raise NotReady(f"the tag is {tag}, VERSION in config.py is {version}")
    sections = re.split(r"^## ", changelog, flags=re.M)[1:]
    for section in sections:
        head, _, body = section.partition("\n")
        if head.startswith("Unreleased") and body.strip():
            raise NotReady('CHANGELOG.md has changes below "Unreleased": close it')
        if re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", head):
            return body.strip()
    raise NotReady(f'CHANGELOG.md has no section "{version} (YYYY-MM-DD)"')


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    try:
        print(notes(arguments[0], changelog, version_of_the_code()))
    except NotReady as problem:
        print(f"Not ready: {problem}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
