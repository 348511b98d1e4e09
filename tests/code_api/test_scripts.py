"""What scripts of LibreChat's find where they run, and what becomes of their stderr."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from code_api_client import CodeApi, named
from local_e2b import LocalE2B
from local_e2b_kernels import own_mount_command

from conftest import Service, e2b_at
from in_sandbox.script import PlainLines, with_main_first

needs_own_mount = pytest.mark.skipif(
    not own_mount_command(), reason="this machine allows no mount namespace"
)
SYSTEM_PYTHON = "/usr/bin/python3"
ESCAPE = "\x1b"
HELPER = "class Helper { int one() { return 1; } }\n"
MAIN = (
    "class Runner {\n    public static void main(String[] args) throws Exception {\n"
    '        System.out.println(new Helper().one() + args[0] + "}");\n    }\n}\n'
)


@pytest.fixture(scope="module")
def api(
    start_shared: Callable[..., Service],
    kernels_ahead_e2b: LocalE2B,
    tmp_path_factory: pytest.TempPathFactory,
) -> CodeApi:
    folder = tmp_path_factory.mktemp("files")
    settings = {"FILES_DIR": str(folder), "RUN_TIMEOUT_S": "40"}
    return CodeApi(start_shared(**e2b_at(kernels_ahead_e2b.url), **settings))


# --- what they find -------------------------------------------------------------------


@needs_own_mount
def test_programs_that_pip_installs_are_found(api: CodeApi) -> None:
    code = (
        "mkdir -p ~/.local/bin; printf '#!/bin/sh\\necho found' >~/.local/bin/my-tool\n"
        "chmod +x ~/.local/bin/my-tool; my-tool"
    )
    reply = api.exec(code)
    assert (reply["stdout"], reply["stderr"]) == ("found\n", "")


@needs_own_mount
@pytest.mark.skipif(not shutil.which(SYSTEM_PYTHON), reason="there is no other Python")
def test_what_a_script_installs_for_its_user_it_can_import(api: CodeApi) -> None:
    """Not in a virtual environment, such as that of the kernels here."""
    code = (
        f"{SYSTEM_PYTHON} - <<'PY'\nimport site, os, sys\n"
        "folder = site.getusersitepackages()\n"
        "open(os.path.join(folder, 'installed_now.py'), 'w').write('print(1)')\n"
        "import installed_now\n"
        "names = [os.path.basename(path) for path in sys.path]\n"
        "print(names.index('site-packages') < names.index('dist-packages'))\nPY"
    )
    reply = api.exec(code)
    assert (reply["stdout"], reply["stderr"]) == ("1\nTrue\n", "")


@needs_own_mount
@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("if true\r\nthen\r\n  echo 'a'\r\nfi\r\n", "a\n"),
        ("cat <<END\r\nb\r\nEND\r\necho c", "b\nc\n"),
        ("cd /mnt/data\r\npwd\r\n", "/mnt/data\n"),
        # Where some lines have none, they are there on purpose.
        ("printf 'a\r\nb'\necho", "a\r\nb\n"),
        ("printf 'a\\r\\n'\r\n", "a\r\n"),
    ],
)
def test_a_script_of_bash_may_have_cr_lf(
    api: CodeApi, script: str, printed: str
) -> None:
    reply = api.exec(script)
    assert (reply["stdout"], reply["stderr"]) == (printed, "")


def test_halves_of_characters_in_a_script_say_in_which_line(api: CodeApi) -> None:
    reply = api.exec("print('a')\nprint('\\ud83d\\ude00')", lang="py")
    assert reply["stdout"] == "a\n"
    assert 'script.py", line 2' in reply["stderr"]
    assert "UnicodeEncodeError" in reply["stderr"]


@needs_own_mount
def test_a_crash_leaves_no_file(api: CodeApi) -> None:
    reply = api.exec("ulimit -c; kill -SEGV $$")
    assert (reply["stdout"], reply["files"]) == ("0\n", [])
    assert reply["stderr"] == "Error: killed by signal 11\n"


@needs_own_mount
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")
def test_cpp_is_of_2020(api: CodeApi) -> None:
    code = (
        "#include <cmath>\n#include <iostream>\n#include <ranges>\n"
        "int main() {\n"
        "  auto even = [](int i) { return i % 2 == 0; };\n"
        "  for (int i : std::views::iota(1, 7) | std::views::filter(even))\n"
        "    std::cout << i;\n"
        "  std::cout << (M_PI > 3);\n}\n"
    )
    reply = api.exec(code, "cpp")
    assert (reply["stdout"], reply["stderr"]) == ("2461", "")


@needs_own_mount
@pytest.mark.skipif(not shutil.which("javac"), reason="there is no Java")
def test_java_may_begin_with_a_helper(api: CodeApi) -> None:
    code = f"import java.util.*;\n{HELPER}public {MAIN}"
    reply = api.exec(code, "java", args=["x"])
    assert (reply["stdout"], reply["stderr"]) == ("1x}\n", "")


@pytest.mark.parametrize(
    "before_helper",
    [
        "",
        "import java.util.*;\n",
        "import java.util.*; // imports; {\nimport java.io.*;\n",
        "/* class Main { static void main( */\n",
        'import java.util.*;\n@SuppressWarnings({"a", "b"})\n',
        "import java.util.*;\npublic ",
    ],
)
def test_the_class_with_a_main_is_called_first(before_helper: str) -> None:
    source = f"{before_helper}{HELPER}{MAIN}"
    changed = with_main_first(source)
    assert changed.replace(" ", "") != source.replace(" ", "")
    assert changed.count("\n") == source.count("\n")
    start = changed.index("class StartOfScript")
    assert "Runner.main(args); }" in changed[start:]
    assert start < changed.index("class Helper")
    assert not before_helper.startswith("import") or changed[:start].endswith(";")


@pytest.mark.parametrize(
    "source",
    [
        "",
        MAIN,
        MAIN + HELPER,
        # One in a text, in a comment and in a class inside of the first one.
        'class A { String s = "static void main("; }\nclass B { }',
        "class A { }\n// class B { static void main(String[] a) { } }\n",
        HELPER,
        "class A { static class B { } public static void main(String[] a) { } }",
        # What is no Java is for javac to refuse.
        "}}}{{{ class { static void main(",
        'class A { char c = \'{\'; String s = """\n{ " """; }',
    ],
)
def test_a_java_source_that_needs_nothing_is_left_alone(source: str) -> None:
    assert with_main_first(source) == source


# --- what was written elsewhere -------------------------------------------------------

WHY = "not kept because not in /mnt/data"


@needs_own_mount
def test_files_that_are_not_kept_are_named(api: CodeApi) -> None:
    reply = api.exec(
        "mkdir -p ~/out ~/.cache; for n in 1 2 3 4 5 6; do echo $n >~/out/$n.csv; done;"
        " echo 1 >~/.cache/x.bin"
    )
    home = api.exec("echo ~; echo 1 >~/notes.txt; echo 2 >notes.txt")
    assert home["stderr"] == ""  # for it is in /mnt/data as well
    assert reply["files"] == []
    heading, _, paths = reply["stderr"].partition(": ")
    assert heading == WHY
    assert [path.rsplit("/", 1)[1] for path in paths.split(", ")] == [
        "1.csv",
        "2.csv",
        "3.csv",
        "4.csv",
        "5.csv and 1 more\n",
    ]


@needs_own_mount
def test_a_file_in_tmp_is_named(api: CodeApi) -> None:
    code = (
        "import os\nname = f'/tmp/plot-of-{os.getpid()}.png'\n"
        "open(name, 'w').write('x')\nprint(name)\n"
        "import atexit"
    )
    reply = api.exec(code, "py")
    path = reply["stdout"].strip()
    removed = api.exec(f"ls {path}; rm -f {path}")
    assert removed["stdout"] == f"{path}\n"
    assert path in reply["stderr"]
    assert reply["stderr"].startswith(f"{WHY}: ")


@needs_own_mount
@pytest.mark.parametrize(
    "code",
    [
        "echo 1 >kept.txt",
        "echo 1 >~/no-ending; mkdir -p ~/.config/a; echo 1 >~/.config/a/b.ini",
        "mkdir -p ~/R/x ~/node_modules; echo 1 | tee ~/R/x/a.R ~/node_modules/b.js",
        "echo 1 >~/gone.txt; rm ~/gone.txt",
        "ls /tmp >/dev/null",
        "python3 - <<'PY'\nimport os, tempfile\n"
        "tempfile.mkstemp('.csv', dir=os.path.expanduser('~'))\nPY",
    ],
)
def test_what_nobody_misses_is_not_named(api: CodeApi, code: str) -> None:
    assert WHY not in api.exec(code)["stderr"]


# --- stderr ---------------------------------------------------------------------------


def plain(*pieces: bytes) -> str:
    """What comes of a stream that arrives in these pieces."""
    lines = PlainLines()
    out = b"".join(lines.add(piece, is_open=True) for piece in pieces)
    return (out + lines.add(b"", is_open=False)).decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\n", "plain\n"),
        ("no end", "no end"),
        ("", ""),
        ("\n\n  two\n", "\n\n  two\n"),
        (f"{ESCAPE}[1;31mred{ESCAPE}[0m\n", "red\n"),
        (f"{ESCAPE}]0;title\x07text{ESCAPE}[2K\n", "text\n"),
        (f"{ESCAPE}[?25lhidden{ESCAPE}[?25h\n", "hidden\n"),
        ("a\0b\n", "ab\n"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("  0%\r 50%\r100%\ndone\n", "100%\ndone\n"),
        ("\r  0%\r 50%\r100%", "100%"),
        ("\r 50%\r     \rTraceback\n", "Traceback\n"),
        ("\r 50%\r     \r", ""),
        ("é 100 % \u2588\n", "é 100 % \u2588\n"),
        ("[31m is a text\n", "[31m is a text\n"),
    ],
)
def test_stderr_is_what_one_would_read_at_the_end(text: str, expected: str) -> None:
    data = text.encode()
    assert plain(data) == expected
    assert plain(*(data[i : i + 1] for i in range(len(data)))) == expected


def test_states_of_a_progress_bar_take_no_room() -> None:
    lines = PlainLines()
    for number in range(100_000):
        assert lines.add(b"\r%d of 100000" % number, is_open=True) == b""
    assert lines.add(b"\n", is_open=True) == b"99999 of 100000\n"


def test_a_line_without_an_end_is_passed_on() -> None:
    data = b"x" * 1_000_000
    pieces = [data[start : start + 32_768] for start in range(0, len(data), 32_768)]
    lines = PlainLines()
    passed_on = [lines.add(piece, is_open=True) for piece in pieces]
    assert sum(map(len, passed_on)) > 900_000
    assert plain(*pieces) == data.decode()


@needs_own_mount
@pytest.mark.parametrize("lang", ["py", "bash"])
def test_stderr_is_cleaned_and_stdout_is_exact(api: CodeApi, lang: str) -> None:
    text = "\\r 50%\\r100%\\n\\x1b[31mred\\x1b[0m\\0\\n"
    code = {
        "py": f"import sys\nsys.stdout.write('{text}'); sys.stderr.write('{text}')",
        "bash": f"printf '%b' '{text}'; printf '%b' '{text}' >&2",
    }[lang]
    reply = api.exec(code, lang)
    assert reply["stdout"] == f"\r 50%\r100%\n{ESCAPE}[31mred{ESCAPE}[0m\0\n"
    assert reply["stderr"] == "100%\nred\n"


@needs_own_mount
def test_an_error_after_a_long_progress_bar_is_kept(api: CodeApi) -> None:
    """Its states alone are more than is kept of stderr."""
    code = (
        "import sys\nfor i in range(100_000):\n"
        "    sys.stderr.write(f'\\r{i} of 100000 files')\n"
        "sys.exit('no more files')"
    )
    reply = api.exec(code, "py")
    assert reply["stderr"] == "99999 of 100000 filesno more files\nError: exit code 1\n"


@needs_own_mount
def test_a_file_that_failed_to_be_read_is_missing_for_librechat(api: CodeApi) -> None:
    """Its read_file takes an empty stdout with these words for a file that is not."""
    reply = api.exec("cat '/mnt/data/missing.csv'")
    assert reply["stdout"] == ""
    first, last = reply["stderr"].splitlines()
    assert "No such file or directory" in first
    assert last == "Error: exit code 1"
    assert named(reply) == {}
