"""Settings: read once from the environment into a frozen, ranged value.

Each setting is a field of `Config`; its environment variable is the field's name in capitals."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

VERSION = "1.0.0"
log = logging.getLogger("e2b_proxy")
MAX_BODY_BYTES = 1024 * 1024
# LibreChat refuses an MCP reply over 16 MiB; 11 MiB of pictures is what fits into it as base64.
MAX_REPLY_IMAGE_BYTES = 11 * 1024 * 1024
# What a request may take beyond its run's limit: waiting for a place, making a sandbox, retries.
OVERHEAD_S = 10
# How much longer than its run's limit a sandbox may live if this process dies (E2B ends it then).
LIFETIME_MARGIN_S = 15


def _text(
    default: Any, pattern: str, must: str, parse: Callable[[str], Any] = str
) -> Any:
    return field(
        default=default, metadata={"pattern": pattern, "must": must, "parse": parse}
    )


def _secret() -> Any:
    metadata = {
        "pattern": "[!-~]+",
        "must": "printable ASCII without spaces",
        "parse": str,
    }
    return field(default="", repr=False, metadata=metadata)


def _whole(default: int, low: int, high: int) -> Any:
    def parse(text: str) -> int:
        if not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return _text(default, "[0-9]{1,12}", f"a whole number from {low} to {high}", parse)


@dataclass(frozen=True)
class Config:
    e2b_api_key: str = _secret()
    host: str = _text(
        "127.0.0.1", r"[\w.-]+|\[[\w:.]+\]", "an address ([] around IPv6) or a name"
    )
    port: int = _whole(3001, 1, 65535)
    proxy_api_key: str = _secret()
    allowed_hosts: str = _text("", r"[\w., -]+", "host names parted by commas")
    run_timeout_s: int = _whole(50, 1, 3500)
    max_concurrent_runs: int = _whole(20, 1, 1000)
    max_code_chars: int = _whole(100_000, 1, 1_000_000)
    max_output_chars: int = _whole(30_000, 1000, 1_000_000)
    max_images: int = _whole(10, 0, 100)
    max_image_bytes: int = _whole(5 * 1024 * 1024, 1024, MAX_REPLY_IMAGE_BYTES)
    image_dir: Path | None = _text(None, "/.*", "an absolute path", Path)
    image_url: str = _text(
        "", r"(https?:/)?(/[\w.:%~-]+)+/?", "/a/path or http(s)://an/address"
    )
    image_ttl_hours: int = _whole(0, 0, 100_000)
    sandbox_seconds_per_day: int = _whole(0, 0, 10**9)
    warm_sandboxes: int = _whole(0, 0, 100)
    warm_idle_s: int = _whole(600, 1, 86_400)
    e2b_template: str = _text(
        "code-interpreter-v1", r"[\w.:/-]+", "a template's name or id"
    )
    allow_internet: bool = _text(True, "true|false", "true or false", "true".__eq__)
    log_level: str = _text(
        "info", "debug|info|warning|error", "debug, info, warning or error"
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings. An empty one is unset. Raises ValueError, which names all bad ones."""
        values: dict[str, Any] = {}
        problems = []
        for setting in fields(cls):
            name, text = (
                setting.name.upper(),
                environ.get(setting.name.upper(), "").strip(),
            )
            path = environ.get(f"{name}_FILE", "") if not setting.repr else ""
            try:
                if path and not text:
                    name = f"{name}_FILE"
                    text = Path(path).read_text("ascii").strip()
                if not re.fullmatch(setting.metadata["pattern"], text, re.ASCII) and (
                    text or path
                ):
                    raise ValueError
                if text:
                    values[setting.name] = setting.metadata["parse"](text)
            except OSError as exc:
                problems.append(f"{name} cannot be read: {exc}")
            except ValueError:
                shown = f", not {text[:80]!r}" if setting.repr else ""
                problems.append(f"{name} must be {setting.metadata['must']}{shown}")
        config = cls(**values)
        if not config.e2b_api_key and not any(
            "E2B_API_KEY" in text for text in problems
        ):
            problems.append(
                "E2B_API_KEY (or E2B_API_KEY_FILE) is required, https://e2b.dev has it"
            )
        if bool(config.image_dir) != bool(config.image_url):
            problems.append("IMAGE_DIR and IMAGE_URL must be set together")
        if problems:
            raise ValueError("Configuration error: " + "; ".join(problems))
        return config
