"""Settings: every default, every range, and one line that names all that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from config import Config
from conftest import Service

KEY = "e2b_0123456789abcdef"
NEEDED = {"E2B_API_KEY": KEY}

DEFAULTS: dict[str, Any] = {
    "e2b_api_url": "",
    "host": "127.0.0.1",
    "port": 3001,
    "proxy_api_key": "",
    "allowed_hosts": "",
    "run_timeout_s": 50,
    "max_concurrent_runs": 20,
    "max_code_chars": 100_000,
    "max_output_chars": 30_000,
    "max_in_flight_bytes": 128 * 1024**2,
    "max_images": 10,
    "max_image_bytes": 5 * 1024 * 1024,
    "mcp_image_bytes": 50_000,
    "image_dir": None,
    "image_url": "",
    "image_ttl_hours": 0,
    "files_dir": None,
    "max_file_bytes": 150 * 1024 * 1024,
    "files_ttl_hours": 26,
    "files_total_bytes": 10 * 1024**3,
    "files_total_inodes": 300_000,
    "sandbox_seconds_per_day": 0,
    "warm_sandboxes": 0,
    "warm_idle_s": 600,
    "session_idle_s": 0,
    "warm_imports": "matplotlib.pyplot,pandas,numpy",
    "e2b_template": "code-interpreter-v1",
    "allow_internet": True,
    "log_level": "info",
}

RANGES = {
    "PORT": (1, 65535),
    "RUN_TIMEOUT_S": (1, 3500),
    "MAX_CONCURRENT_RUNS": (1, 1000),
    "MAX_CODE_CHARS": (1, 1_000_000),
    "MAX_OUTPUT_CHARS": (1000, 1_000_000),
    "MAX_IMAGES": (0, 100),
    "MAX_IMAGE_BYTES": (1024, 11 * 1024 * 1024),
    "MCP_IMAGE_BYTES": (0, 11 * 1024 * 1024),
    "IMAGE_TTL_HOURS": (0, 100_000),
    "MAX_FILE_BYTES": (1, 200 * 1024 * 1024),
    "FILES_TTL_HOURS": (1, 100_000),
    "FILES_TOTAL_BYTES": (1, 10**12 - 1),
    "FILES_TOTAL_INODES": (1, 10**9),
    "SANDBOX_SECONDS_PER_DAY": (0, 10**9),
    "WARM_SANDBOXES": (0, 100),
    "WARM_IDLE_S": (1, 86_400),
}

GOOD = [
    ("HOST", "0.0.0.0", "0.0.0.0"),
    ("HOST", "[::1]", "[::1]"),
    ("HOST", " proxy.internal\n", "proxy.internal"),
    ("PORT", "0080", 80),
    ("PROXY_API_KEY", "s3cret-~!", "s3cret-~!"),
    ("ALLOWED_HOSTS", "A.example, b.example", "A.example, b.example"),
    ("ALLOWED_HOSTS", "one", "one"),
    ("SESSION_IDLE_S", "0", 0),
    ("SESSION_IDLE_S", "60", 60),
    ("SESSION_IDLE_S", "3000", 3000),
    ("WARM_IMPORTS", "numpy, scipy.stats", "numpy, scipy.stats"),
    ("WARM_IMPORTS", "", ""),
    ("E2B_TEMPLATE", "team/my_template:v1.2", "team/my_template:v1.2"),
    ("ALLOW_INTERNET", "false", False),
    ("ALLOW_INTERNET", "true", True),
    ("ALLOW_INTERNET", "False", False),
    ("ALLOW_INTERNET", "TRUE", True),
    ("LOG_LEVEL", "debug", "debug"),
    ("LOG_LEVEL", "error", "error"),
    ("LOG_LEVEL", "INFO", "info"),
    ("E2B_API_URL", "https://api.e2b.example", "https://api.e2b.example"),
    ("E2B_API_URL", "http://[::1]:3000/v1", "http://[::1]:3000/v1"),
]

BAD = [
    *(
        (name, value)
        for name in RANGES
        for value in ("x", "-1", "1.5", "1e3", "٣", "9" * 5000)
    ),
    ("HOST", "http://a"),
    ("HOST", "a b"),
    ("HOST", "é.example"),
    ("ALLOWED_HOSTS", "https://a.example"),
    ("ALLOWED_HOSTS", "*"),
    ("E2B_TEMPLATE", "a b"),
    ("WARM_IMPORTS", "os; print(1)"),
    ("SESSION_IDLE_S", "59"),
    ("SESSION_IDLE_S", "3001"),
    ("ALLOW_INTERNET", "yes"),
    ("ALLOW_INTERNET", "0"),
    *(
        ("E2B_API_URL", value)
        for value in ("foo", "api.e2b.app", "ftp://a", "http://[")
    ),
    ("LOG_LEVEL", "verbose"),
]


def problems_of(environ: dict[str, str]) -> str:
    with pytest.raises(ValueError) as caught:
        Config.from_env(environ)
    message = str(caught.value)
    assert message.isprintable()  # one line, whatever the values were
    return message


def test_a_key_alone_is_enough_and_the_rest_has_these_defaults() -> None:
    config = Config.from_env(NEEDED)
    assert {field.name for field in fields(Config)} == {"e2b_api_key", *DEFAULTS}
    assert config.e2b_api_key == KEY
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS


def test_an_empty_variable_counts_as_unset() -> None:
    empty = {
        name.upper(): value
        for name, value in zip(DEFAULTS, ("", " ", "\n") * 9, strict=False)
        if name != "warm_imports"  # empty: none
    }
    empty |= {"E2B_API_KEY_FILE": "", "PROXY_API_KEY_FILE": ""}
    assert Config.from_env(NEEDED | empty) == Config.from_env(NEEDED)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        Config.from_env(NEEDED).port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", RANGES)
def test_a_number_is_taken_from_its_lowest_to_its_highest(name: str) -> None:
    low, high = RANGES[name]
    for value in (low, high):
        environ = {"MAX_CONCURRENT_RUNS": "1000", name: str(value)}
        assert getattr(Config.from_env(NEEDED | environ), name.lower()) == value
    for value in (low - 1, high + 1):
        message = problems_of(NEEDED | {name: str(value)})
        assert (
            f"{name} must be a whole number from {low} to {high}, not '{value}'"
            in message
        )


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_good_value_is_taken(name: str, text: str, value: object) -> None:
    assert getattr(Config.from_env(NEEDED | {name: text}), name.lower()) == value


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_is_named(name: str, text: str) -> None:
    message = problems_of(NEEDED | {name: text})
    assert message.startswith(f"Configuration error: {name} must be ")
    assert repr(text[:80]) in message
    assert len(message) < 300


def test_all_bad_values_are_named_in_one_line() -> None:
    values = {
        "PORT": "70000",
        "RUN_TIMEOUT_S": "fast",
        "HOST": "two words",
        "ALLOW_INTERNET": "maybe\nnot",
        "IMAGE_DIR": "relative",
        "PROXY_API_KEY": "has a space",
    }
    message = problems_of(values)
    assert all(name in message for name in (*values, "E2B_API_KEY"))


@pytest.mark.parametrize("name", ["E2B_API_KEY", "PROXY_API_KEY"])
@pytest.mark.parametrize(
    "secret", ["hush hush", "hüsh", "hush\x00hush", "hush\u2028hush"]
)
def test_a_bad_secret_is_named_but_never_shown(
    name: str, secret: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(secret, "utf-8")
    for environ in ({name: secret}, {f"{name}_FILE": str(file)}):
        message = problems_of(NEEDED | {name: ""} | environ)
        assert f"{next(iter(environ))} must be" in message
        assert (
            "hush" not in message
            and "h\\xfcsh" not in message
            and "hüsh" not in message
        )


def test_secrets_are_not_in_the_repr() -> None:
    shown = repr(Config.from_env({"E2B_API_KEY": KEY, "PROXY_API_KEY": "hush"}))
    assert KEY not in shown and "hush" not in shown
    assert "run_timeout_s=50" in shown


@pytest.mark.parametrize("name", ["E2B_API_KEY", "PROXY_API_KEY"])
class TestSecretsFromFiles:
    def test_a_file_is_read_without_its_newline(
        self, name: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "secret"
        file.write_text("from-the-file\n")
        config = Config.from_env(NEEDED | {name: "", f"{name}_FILE": str(file)})
        assert getattr(config, name.lower()) == "from-the-file"

    def test_the_variable_comes_before_the_file(
        self, name: str, tmp_path: Path
    ) -> None:
        environ = NEEDED | {
            name: "from-the-variable",
            f"{name}_FILE": str(tmp_path / "none"),
        }
        assert getattr(Config.from_env(environ), name.lower()) == "from-the-variable"

    def test_a_file_that_cannot_be_read_is_named_once(
        self, name: str, tmp_path: Path
    ) -> None:
        for path in (tmp_path / "none", tmp_path):
            message = problems_of(NEEDED | {name: "", f"{name}_FILE": str(path)})
            assert message.startswith(
                f"Configuration error: {name}_FILE cannot be used: "
            )
            assert str(path) in message
            assert message.count(name) == 1

    def test_a_secret_that_stands_where_its_path_should_is_not_shown(
        self, name: str
    ) -> None:
        message = problems_of(NEEDED | {name: "", f"{name}_FILE": "e2b_top_secret"})
        assert f"{name}_FILE cannot be used: it is no absolute path: No" in message
        assert "top_secret" not in message

    @pytest.mark.parametrize("content", [b"", b"\n", b"a b", b"\xff\xfe"])
    def test_a_file_without_a_secret_is_refused(
        self, name: str, content: bytes, tmp_path: Path
    ) -> None:
        file = tmp_path / "secret"
        file.write_bytes(content)
        assert f"{name}_FILE must be" in problems_of(
            {name: "", f"{name}_FILE": str(file)}
        )


def test_only_secrets_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("99")
    assert Config.from_env(NEEDED | {"PORT_FILE": str(tmp_path / "port")}).port == 3001


@pytest.mark.parametrize("environ", [{}, {"E2B_API_KEY": ""}, {"E2B_API_KEY": "  "}])
def test_a_missing_key_is_named_with_where_to_get_one(environ: dict[str, str]) -> None:
    message = problems_of(environ)
    assert "E2B_API_KEY (or E2B_API_KEY_FILE) is required" in message
    assert "https://e2b.dev" in message


@pytest.mark.parametrize(
    "url",
    [
        "/images/e2b",
        "https://pictures.example/files",
        "http://10.0.0.1:3001/files",
        "https://pictures.example",
    ],
)
def test_pictures_are_published_with_a_folder_and_an_address(
    url: str, tmp_path: Path
) -> None:
    config = Config.from_env(NEEDED | {"IMAGE_DIR": str(tmp_path), "IMAGE_URL": url})
    assert config.image_dir == tmp_path
    assert not list(tmp_path.iterdir())
    assert config.image_url == url


@pytest.mark.parametrize(
    "url",
    [
        *(
            "images",
            "ftp://a/b",
            "javascript:alert(1)",
            "//evil.example/x",
            "/",
            "https://",
        ),
        *(
            "/a b",
            "/a)b",
            "/a(b",
            '/a"b',
            "/a?b",
            "/a#b",
            "/a\\b",
            "/a<b",
            "/a//b",
            "/a\nb",
        ),
    ],
)
def test_an_address_that_a_link_could_not_hold_is_refused(
    url: str, tmp_path: Path
) -> None:
    environ = NEEDED | {"IMAGE_DIR": str(tmp_path), "IMAGE_URL": url}
    message = problems_of(environ)
    assert message.startswith("Configuration error: IMAGE_URL must be ")
    # Both are set: nothing else is wrong.
    assert "together" not in message


@pytest.mark.parametrize(
    "environ", [{"IMAGE_DIR": gettempdir()}, {"IMAGE_URL": "/images"}]
)
def test_a_folder_without_an_address_or_the_reverse_is_refused(
    environ: dict[str, str],
) -> None:
    assert "IMAGE_DIR and IMAGE_URL must be set together" in problems_of(
        NEEDED | environ
    )


def test_a_folder_must_be_an_absolute_path() -> None:
    environ = {"IMAGE_DIR": "pictures", "IMAGE_URL": "/images"}
    assert "IMAGE_DIR must be an absolute path" in problems_of(NEEDED | environ)


@pytest.mark.parametrize("name", ["IMAGE_DIR", "FILES_DIR"])
def test_a_folder_where_nothing_can_be_written_is_named_with_the_reason(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, reason in (
        (tmp_path / "none", "No such file or directory"),
        (file, "Not a directory"),
        # Not even root makes files there.
        (Path("/proc"), "No such file or directory"),
    ):
        environ = NEEDED | {"IMAGE_URL": "/images", name: str(path)}
        assert f"{name} cannot be used: {path}: {reason}" in problems_of(environ)


@pytest.mark.parametrize("key", ['"e2b_quoted"', "'e2b_quoted'", "e2b_..."])
def test_a_key_that_was_copied_wrongly_is_refused_in_words(key: str) -> None:
    message = problems_of({"E2B_API_KEY": key})
    assert "E2B_API_KEY must be E2B's key" in message
    assert "without spaces, quotes or ..." in message
    assert key not in message


@pytest.mark.parametrize("key", ["x", "sk-self-hosted", "e2b_0.1.2", "a..b"])
def test_any_other_text_is_a_key(key: str) -> None:
    assert Config.from_env({"E2B_API_KEY": key}).e2b_api_key == key


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WARM_SANDBOX", "WARM_SANDBOXES"),
        ("MAX_IMAGE", "MAX_IMAGES"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("RUN_TIMEOUT", "RUN_TIMEOUT_S"),
        ("FILE_DIR", "FILES_DIR"),
        ("PORTS", "PORT"),
        ("E2B_APIKEY", "E2B_API_KEY"),
    ],
)
def test_a_name_a_letter_or_two_away_from_a_setting_is_asked_about(
    name: str, meant: str
) -> None:
    environ = NEEDED | {name: "1"}
    warnings = Config.from_env(environ).warnings(environ)
    assert warnings == [f"{name} is no setting; {meant}?"]


def test_a_name_of_this_service_that_is_no_setting_is_named() -> None:
    environ = NEEDED | {"E2B_PROXY_KEY": "hush"}
    warnings = Config.from_env(environ).warnings(environ)
    assert warnings == ["E2B_PROXY_KEY is no setting"]


def test_other_peoples_variables_are_passed_over_in_silence() -> None:
    names = [
        *("HOSTNAME", "HOME", "PATH", "PWD", "E2B_DOMAIN", "E2B_SANDBOX_URL"),
        *("E2B_DEBUG", "E2B_API_KEY_FILE", "PROXY_API_KEY_FILE"),
        *("E2B_PROXY_PORT", "E2B_PROXY_PORT_3001_TCP", "E2B_PROXY_SERVICE_HOST"),
        # Of LibreChat's .env.
        *("DOMAIN_CLIENT", "PROXY", "OPENAI_API_KEY", "DEBUG_LOGGING", "MONGO_URI"),
        *("LIBRECHAT_CODE_BASEURL", "SEARCH", "IMAGE_GEN_OAI_API_KEY", "UID", "GID"),
    ]
    environ = NEEDED | dict.fromkeys(names, "")
    assert Config.from_env(environ).warnings(environ) == []


def test_more_warm_sandboxes_than_runs_are_warned_of_with_both_numbers() -> None:
    environ = NEEDED | {"WARM_SANDBOXES": "7", "MAX_CONCURRENT_RUNS": "5"}
    [warning] = Config.from_env(environ).warnings(environ)
    assert "7" in warning and "5" in warning


def test_warnings_are_lines_of_the_log(start_shared: Callable[..., Service]) -> None:
    service = start_shared(WARM_SANDBOX="1", E2B_API_KEY=KEY)
    line = service.wait_for_log("WARM_SANDBOX is no setting; WARM_SANDBOXES?")
    assert '"level": "warning"' in line


def test_variables_that_are_no_settings_are_left_alone() -> None:
    environ = {
        "E2B_DOMAIN": "e2b.example",
        "PATH": "/bin",
        "port": "x",
        "NOT_A_SETTING": "\n",
    }
    assert Config.from_env(NEEDED | environ) == Config.from_env(NEEDED)
