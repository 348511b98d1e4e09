"""Settings: read once from the environment into a frozen, checked value.

Each is a field of `Config`; its environment variable is the field's name in capitals.
A secret may be in a file instead, named by that variable with _FILE added.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

VERSION = "1.0.0"
log = logging.getLogger("e2b_proxy")
# LibreChat's largest request is a question's code, far below; it bounds memory.
MAX_BODY_BYTES = 1024 * 1024
# LibreChat refuses an MCP reply over 16 MiB, which holds 11 MiB of pictures as base64.
MAX_REPLY_IMAGE_BYTES = 11 * 1024 * 1024
# What a request may take beyond its run's limit: waiting for a slot, making a sandbox,
# retries. With a run of 50 s it ends within the 60 s that most clients wait.
OVERHEAD_S = 10
# How much longer than its run's limit a sandbox may live if this process dies: E2B ends
# it then.
LIFETIME_MARGIN_S = 15
# Files of one exec of the code API, together: as much on the way in as on the way out.
MAX_CARRIED_BYTES = 200 * 1024 * 1024
# Carrying them may take a second for each of these, on top of OVERHEAD_S.
CARRIED_BYTES_PER_S = 1_000_000
_NO_KEY = "E2B_API_KEY (or E2B_API_KEY_FILE) is required, https://e2b.dev has it"


def _setting(
    default: Any,
    pattern: str,
    must_be: str,
    convert: Callable[[str], Any] = str,
    is_secret: bool = False,
) -> Any:
    """A field for `from_env`; `convert` may raise ValueError for what matches, too."""
    metadata = {"pattern": pattern, "must_be": must_be, "convert": convert}
    return field(default=default, repr=not is_secret, metadata=metadata)


def _secret() -> Any:
    return _setting("", "[!-~]+", "printable ASCII without spaces", is_secret=True)


def _whole_number(default: int, low: int, high: int) -> Any:
    def convert(digits: str) -> int:
        if not low <= int(digits) <= high:
            raise ValueError
        return int(digits)

    must_be = f"a whole number from {low} to {high}"
    # Python takes long to read thousands of digits; no limit has so many.
    return _setting(default, "[0-9]{1,12}", must_be, convert)


@dataclass(frozen=True)
class Config:
    e2b_api_key: str = _secret()
    # "localhost", "0.0.0.0", "[::1]"
    host: str = _setting(
        "127.0.0.1",
        r"[\w.-]+|\[[\w:.]+\]",
        "an address ([] around IPv6) or a name",
    )
    port: int = _whole_number(3001, 1, 65535)
    proxy_api_key: str = _secret()
    allowed_hosts: str = _setting(
        "",
        r"[\w., -]+",
        "host names separated by commas",
    )
    run_timeout_s: int = _whole_number(50, 1, 3500)
    max_concurrent_runs: int = _whole_number(20, 1, 1000)
    max_code_chars: int = _whole_number(100_000, 1, 1_000_000)
    max_output_chars: int = _whole_number(30_000, 1000, 1_000_000)
    max_images: int = _whole_number(10, 0, 100)
    max_image_bytes: int = _whole_number(5 * 1024 * 1024, 1024, MAX_REPLY_IMAGE_BYTES)
    image_dir: Path | None = _setting(
        None,
        "/.*",
        "an absolute path",
        Path,
    )
    # "/images/e2b", "https://code.example.com/images": nothing that could end a link
    image_url: str = _setting(
        "",
        r"(https?:/)?(/[\w.:%~-]+)+/?",
        "/a/path or http(s)://an/address",
    )
    image_ttl_hours: int = _whole_number(0, 0, 100_000)
    # Where the code API keeps files; without it that is off.
    files_dir: Path | None = _setting(
        None,
        "/.*",
        "an absolute path",
        Path,
    )
    max_file_bytes: int = _whole_number(150 * 1024 * 1024, 1, MAX_CARRIED_BYTES)
    files_ttl_hours: int = _whole_number(26, 1, 100_000)
    files_total_bytes: int = _whole_number(10 * 1024**3, 1, 10**12 - 1)
    sandbox_seconds_per_day: int = _whole_number(0, 0, 10**9)
    warm_sandboxes: int = _whole_number(0, 0, 100)
    warm_idle_s: int = _whole_number(600, 1, 86_400)
    e2b_template: str = _setting(
        "code-interpreter-v1",
        r"[\w.:/-]+",
        "a template's name or id",
    )
    allow_internet: bool = _setting(
        True,
        "true|false",
        "true or false",
        "true".__eq__,
    )
    log_level: str = _setting(
        "info",
        "debug|info|warning|error",
        "debug, info, warning or error",
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings. Raises ValueError; its one line names all that is bad."""
        values = {}
        problems = []
        for setting in fields(cls):
            try:
                values[setting.name] = _read(setting, environ)
            except ValueError as exc:
                problems.append(str(exc))
        config = cls(**values)
        if not config.e2b_api_key and not any(
            "E2B_API_KEY" in text for text in problems
        ):
            problems.append(_NO_KEY)
        if bool(config.image_dir) != bool(config.image_url):
            problems.append("IMAGE_DIR and IMAGE_URL must be set together")
        if config.files_dir and not os.access(config.files_dir, os.W_OK | os.X_OK):
            is_folder = config.files_dir.is_dir()
            reason = "cannot be written" if is_folder else "is no folder"
            problems.append(f"FILES_DIR {config.files_dir} {reason}")
        if problems:
            raise ValueError("Configuration error: " + "; ".join(problems))
        return config

    def longest_request_s(self) -> int:
        """From its arrival to its reply; the code API's may carry files twice."""
        carry_s = 2 * MAX_CARRIED_BYTES // CARRIED_BYTES_PER_S if self.files_dir else 0
        return self.run_timeout_s + OVERHEAD_S + carry_s


def _read(setting: Field[Any], environ: Mapping[str, str]) -> Any:
    """One setting's value; the default where none is given. Raises ValueError."""
    is_secret = not setting.repr
    name = setting.name.upper()
    text = environ.get(name, "").strip()
    path = environ.get(f"{name}_FILE", "") if is_secret else ""
    if not text and not path:
        return setting.default
    try:
        if not text:
            name += "_FILE"
            text = Path(path).read_text("ascii").strip()
        if not re.fullmatch(setting.metadata["pattern"], text, re.ASCII):
            raise ValueError
        return setting.metadata["convert"](text)
    except OSError as exc:
        raise ValueError(f"{name} cannot be read: {exc}") from None
    except ValueError:
        must_be = setting.metadata["must_be"]
        shown = "" if is_secret else f", not {text[:80]!r}"
        raise ValueError(f"{name} must be {must_be}{shown}") from None
