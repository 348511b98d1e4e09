"""Settings: read once from the environment into a frozen, checked value.

Each setting is a field of `Config`; its environment variable is the field's name in
capitals. A secret may be in a file instead, whose path is in the variable of that name
with _FILE added.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

from run import Limits

VERSION = "1.1.0"
log = logging.getLogger("e2b_proxy")
# It bounds memory. LibreChat's largest request, the code for one call, is far smaller.
MAX_BODY_BYTES = 1024 * 1024
# LibreChat's create_file sends a file of up to 10 MiB, encoded in base64 twice: 19 MB.
MAX_EXEC_BODY_BYTES = 32 * 1024 * 1024
# LibreChat refuses an MCP reply over 16 MiB, which holds 11 MiB of pictures as base64.
MAX_REPLY_IMAGE_BYTES = 11 * 1024 * 1024
# How much longer than its run's limit a request may take: for waiting for a slot,
# making a sandbox, and retries. With a run of 50 s it ends within the 60 s that most
# clients wait.
OVERHEAD_S = 10
# If this process dies, E2B ends a sandbox this long after its run's limit.
LIFETIME_MARGIN_S = 15
# The files that an exec of the code API is given may have this size together, and so
# may those that it returns.
MAX_CARRIED_BYTES = 200 * 1024 * 1024
# Carrying files may take a second for each of this many bytes, on top of OVERHEAD_S.
CARRIED_BYTES_PER_S = 10_000_000
# "localhost", "0.0.0.0", "[::1]"
_HOST = r"([\w.-]+|\[[\w:.]+\])"
# A variable this similar to a setting is taken for its name with a letter or two wrong:
# PORTS has 0.89 (PORT), WARM_SANDBOX 0.92. Names that are right have less:
# PROXY_API_KEY_FILE has 0.84, those in LibreChat's .env have 0.80 at most.
_NEAR = 0.85
# Kubernetes sets these in every container beside a service named e2b-proxy.
_KUBERNETES_OWN = re.compile("E2B_PROXY_(PORT|SERVICE)(_.*)?")
_NO_KEY = "E2B_API_KEY (or E2B_API_KEY_FILE) is required, https://e2b.dev has it"


def _setting(
    default: Any,
    pattern: str,
    must_be: str,
    convert: Callable[[str], Any] = str,
    is_secret: bool = False,
) -> Any:
    """A field that `from_env` reads.

    A value has to match `pattern`, and `convert` may still refuse it with ValueError.
    An empty variable means the default, unless the pattern matches an empty text."""
    metadata = {
        "pattern": pattern,
        "must_be": must_be,
        "convert": convert,
        "is_secret": is_secret,
    }
    return field(default=default, repr=not is_secret, metadata=metadata)


def _folder() -> Any:
    return _setting(None, "/.*", "an absolute path", _writable_folder)


def _writable_folder(path: str) -> Path:
    """The folder, once a file was made in it as a trial. Raises OSError."""
    with TemporaryFile(dir=path):
        return Path(path)


def _whole_number(default: int, low: int, high: int) -> Any:
    """A number in this range, or the default: that may lie below it, as 0 for off."""

    def convert(digits: str) -> int:
        number = int(digits)
        if not low <= number <= high and number != default:
            raise ValueError
        return number

    must_be = f"a whole number from {low} to {high}"
    if default < low:
        must_be += f", or {default}"
    # Python takes long to read thousands of digits, and no limit needs more than 12.
    return _setting(default, "[0-9]{1,12}", must_be, convert)


@dataclass(frozen=True)
class Config:
    # The pattern refuses a key copied with quotes or with dots: "e2b_0123", e2b_01...
    e2b_api_key: str = _setting(
        "",
        r"(?!.*(\.\.\.|['\"]))[!-~]+",
        "E2B's key in printable ASCII, without spaces, quotes or ...",
        is_secret=True,
    )
    # The SDK reads this variable from the environment itself.
    e2b_api_url: str = _setting(
        "",
        rf"https?://{_HOST}(:\d+)?(/\S*)?",
        "an address such as https://api.e2b.example",
    )
    host: str = _setting("127.0.0.1", _HOST, "an address ([] around IPv6) or a name")
    port: int = _whole_number(3001, 1, 65535)
    proxy_api_key: str = _setting(
        "", "[!-~]+", "printable ASCII without spaces", is_secret=True
    )
    allowed_hosts: str = _setting("", r"[\w., -]+", "host names separated by commas")
    run_timeout_s: int = _whole_number(50, 1, 3500)
    max_concurrent_runs: int = _whole_number(20, 1, 1000)
    max_code_chars: int = _whole_number(100_000, 1, 1_000_000)
    max_output_chars: int = _whole_number(30_000, 1000, 1_000_000)
    max_in_flight_bytes: int = _whole_number(128 * 1024**2, 1024**2, 10**12 - 1)
    max_images: int = _whole_number(10, 0, 100)
    max_image_bytes: int = _whole_number(5 * 1024 * 1024, 1024, MAX_REPLY_IMAGE_BYTES)
    mcp_image_bytes: int = _whole_number(50_000, 0, MAX_REPLY_IMAGE_BYTES)
    image_dir: Path | None = _folder()
    # "/images/e2b", "https://code.example.com/images"; nothing in it could end a link
    image_url: str = _setting(
        "",
        r"(https?:/)?(?=/[^/])([\w.:%~-]|/(?!/))+",
        "/a/path or http(s)://an/address",
    )
    image_ttl_hours: int = _whole_number(0, 0, 100_000)
    # Where the code API keeps files; without a folder the code API is off.
    files_dir: Path | None = _folder()
    max_file_bytes: int = _whole_number(150 * 1024 * 1024, 1, MAX_CARRIED_BYTES)
    files_ttl_hours: int = _whole_number(26, 1, 100_000)
    files_total_bytes: int = _whole_number(10 * 1024**3, 1, 10**12 - 1)
    # Enough for 100,000 sessions of one file each. ext4 makes an inode for each 16 KiB,
    # so a disk of 10 GiB has twice as many.
    files_total_inodes: int = _whole_number(300_000, 1, 10**9)
    sandbox_seconds_per_day: int = _whole_number(0, 0, 10**9)
    warm_sandboxes: int = _whole_number(0, 0, 100)
    warm_idle_s: int = _whole_number(600, 1, 86_400)
    # "matplotlib.pyplot,pandas,numpy"; empty for none
    warm_imports: str = _setting(
        "matplotlib.pyplot,pandas,numpy",
        r"[\w., ]*",
        "names of modules separated by commas",
    )
    # 0: each run has a sandbox of its own. The maximum leaves time for a run within the
    # hour after which E2B's free plan ends a sandbox.
    session_idle_s: int = _whole_number(0, 60, 3000)
    e2b_template: str = _setting(
        "code-interpreter-v1", r"[\w.:/-]+", "a template's name or id"
    )
    allow_internet: bool = _setting(
        True, "(?i)true|false", "true or false", lambda text: text.lower() == "true"
    )
    log_level: str = _setting(
        "info",
        "(?i)debug|info|warning|error",
        "debug, info, warning or error",
        str.lower,
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings. Raises ValueError, whose one line names each bad one."""
        values = {}
        problems: dict[str, str] = {}
        for setting in fields(cls):
            try:
                values[setting.name] = _read(setting, environ)
            except ValueError as exc:
                problems[setting.name] = str(exc)
        config = cls(**values)
        if not config.e2b_api_key:
            problems.setdefault("e2b_api_key", _NO_KEY)
        is_pair = bool(config.image_dir) == bool(config.image_url)
        if not is_pair and "image_dir" not in problems and "image_url" not in problems:
            problems["image_dir"] = "IMAGE_DIR and IMAGE_URL must be set together"
        if problems:
            raise ValueError("Configuration error: " + "; ".join(problems.values()))
        return config

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        """A line for each likely mistake: a misspelt name, a number without effect."""
        warnings = [text for name in environ if (text := _doubt_about(name))]
        if self.warm_sandboxes > self.max_concurrent_runs:
            numbers = f"{self.warm_sandboxes} of {self.max_concurrent_runs}"
            warnings.append(f"WARM_SANDBOXES is above MAX_CONCURRENT_RUNS: {numbers}")
        return warnings

    def run_limits(self) -> Limits:
        """How much of a run is kept."""
        return Limits(
            output_chars=self.max_output_chars,
            images=self.max_images,
            image_bytes=self.max_image_bytes,
            all_image_bytes=MAX_REPLY_IMAGE_BYTES,
        )

    def longest_request_s(self) -> int:
        """The time from arrival to reply; the code API may carry files in and out."""
        carry_s = 2 * MAX_CARRIED_BYTES // CARRIED_BYTES_PER_S if self.files_dir else 0
        # An exec of a session may have waited for the one before it.
        wait_s = self.run_timeout_s if self.files_dir and self.session_idle_s else 0
        return wait_s + self.run_timeout_s + OVERHEAD_S + carry_s


def _read(setting: Field[Any], environ: Mapping[str, str]) -> Any:
    """One setting's value; the default where none is given. Raises ValueError."""
    is_secret = setting.metadata["is_secret"]
    pattern = setting.metadata["pattern"]
    name = setting.name.upper()
    given = environ.get(name, "").strip()
    is_in_file = is_secret and not given
    if is_in_file:
        name += "_FILE"
        given = environ.get(name, "")
    may_be_empty = name in environ and re.fullmatch(pattern, "")
    if not given and not may_be_empty:
        return setting.default
    try:
        text = Path(given).read_text("ascii").strip() if is_in_file else given
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError
        return setting.metadata["convert"](text)
    except OSError as exc:
        # A secret itself, put here by mistake, is no path: it must not be in a log.
        shown = given if given.startswith("/") else "it is no absolute path"
        problem = f"{name} cannot be used: {shown}: {exc.strerror}"
        raise ValueError(problem) from None
    except ValueError:
        must_be = setting.metadata["must_be"]
        shown = "" if is_secret else f", not {given[:80]!r}"
        raise ValueError(f"{name} must be {must_be}{shown}") from None


def _doubt_about(name: str) -> str:
    """A warning about a variable that is not ours but seems meant to be, else ""."""
    settings = [setting.name.upper() for setting in fields(Config)]
    if name in settings or _KUBERNETES_OWN.fullmatch(name):
        return ""
    if near := get_close_matches(name, settings, 1, _NEAR):
        return f"{name} is no setting; {near[0]}?"
    return f"{name} is no setting" if name.startswith("E2B_PROXY_") else ""
