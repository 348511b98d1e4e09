"""What says nothing is hidden, what says the
same again is counted; near misses stay."""

from __future__ import annotations

import time

import pytest

from texts.folding import callers_frame, fold_logged, fold_printed, fold_traceback

FINDFONT = "findfont: Generic family 'sans-serif' not found\n"
AT = "2026-11-24 03:29:{:02},{:03} WARNING x\n"


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        (50 * FINDFONT, f"{FINDFONT[:-1]} (× 50)\n"),
        ("a\n" + 3 * "b\n" + "c", "a\nb (× 3)\nc"),
        ("b\nb\nb", "b (× 3)"),
        ("b\n" * 2_000 + "c\n" * 3, "b (× 2,000)\nc (× 3)\n"),
        (
            "".join(AT.format(n, 7 * n) for n in range(9)),
            "2026-11-24 03:29:00,000 WARNING x (× 9)\n",
        ),
        ("".join(f"[03:29:0{n}] x\n" for n in range(3)), "[03:29:00] x (× 3)\n"),
        ("\n" * 30 + "a", " (× 30)\na"),
    ],
)
def test_equal_lines_of_a_log_are_counted(text: str, folded: str) -> None:
    assert fold_logged(text) == folded


@pytest.mark.parametrize(
    "text",
    [
        2 * FINDFONT,
        "a\n\n\n\n\nb\n",
        "a\nb\n" * 2,
        "1\n2\n3\n4\n5\n6\n7\n" * 9,  # longer than a block
        "a\nb\na\nc\na\nd\na\ne\n",
        "x 1\n  y\nx 2\n  y\nx 3\n  y\n",
        "loss 0.1\nloss 0.2\nloss 0.3\nloss 0.4\n",
        "b\nbb\nbbb\nbbbb\nb",
        "2026-11-24 x 1\n2026-11-24 x 2\n2026-11-24 x 3\n",
        "03:29:01 a 1\n03:29:02 a 2\n03:29:03 a 3\n",
        "ab\nab c\nab d\nab e\n",
    ],
)
def test_lines_of_a_log_that_differ_stay(text: str) -> None:
    assert fold_logged(text) == text


def test_what_is_printed_is_counted_only_if_it_is_equal_and_often() -> None:
    assert fold_printed("a\n" + 20 * "same\n" + "b\n") == "a\nsame (× 20)\nb\n"
    for text in (
        19 * ("*" * 40 + "\n"),
        "".join(f"2026-11-24 03:29:{n:02} 0\n" for n in range(60)),
        "".join(f"{n}\n" for n in range(60)),
        "# #\n # \n" * 30,
        "total 3\n\n\n",  # blank lines at the end
    ):
        assert fold_printed(text) == text


XKCD = "".join(
    f"findfont: Font family {name!r} not found.\n"
    for name in ("xkcd", "xkcd Script", "Comic Neue", "Comic Sans MS")
)
SKLEARN = (
    "/usr/lib/python3/dist-packages/sklearn/base.py:1: UserWarning: X has no names\n"
    "  warnings.warn(\n"
)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        (30 * XKCD, f"{XKCD}[the same 4 lines 29 more times]\n"),
        (3 * SKLEARN, f"{SKLEARN}[the same 2 lines 2 more times]\n"),
        ("a\n" + 9 * SKLEARN, f"a\n{SKLEARN}[the same 2 lines 8 more times]\n"),
        (
            5 * "1\n2\n3\n4\n5\n6\n",
            "1\n2\n3\n4\n5\n6\n[the same 6 lines 4 more times]\n",
        ),
        (3 * "a\n\n", "a\n\n[the same 2 lines 2 more times]\n"),
        (
            "".join(f"03:29:0{n} a\nb\n" for n in range(4)),
            "03:29:00 a\nb\n[the same 2 lines 3 more times]\n",
        ),
        (4 * "a\nb\n" + "a\n", "a\nb\n[the same 2 lines 3 more times]\na\n"),
        (3 * "a\na\nb\n", "a\na\nb\n[the same 3 lines 2 more times]\n"),
    ],
)
def test_equal_blocks_of_a_log_are_counted(text: str, folded: str) -> None:
    assert fold_logged(text) == folded


def test_blocks_that_are_printed_stay_for_they_may_be_data_or_a_drawing() -> None:
    for text in (
        "   a  b\n0  1  2\n" * 30,
        "- id: 1\n  name: x\n" * 40,
        "|  |  |\n+--+--+\n" * 20,
        "1 2 3\n" * 19,
        XKCD * 30,
    ):
        assert fold_printed(text) == text


# --- tracebacks -----------------------------------------------------------------------

HEADING = f"{'-' * 75}\nKeyError{' ' * 33}Traceback (most recent call last)\n"
OWN = "Cell In[1], line 2\n      1 import pandas as pd\n----> 2 f(1)\n"
OWN_MODULE = "File ~/helpers.py:4, in helper(x)\n      3 def helper(x):\n----> 4 x()\n"


def frame(path: str, line: int = 12, name: str = "f(self)") -> str:
    return f"File {path}:{line}, in {name}\n  (...)\n     11 try:\n---> {line} g()\n"


PACKAGES = "/usr/local/lib/python3.13/dist-packages"
PANDAS = [frame(f"{PACKAGES}/pandas/core/base.py", n) for n in range(12, 42)]
ERROR = "KeyError: 'b'"


def test_of_a_librarys_frames_the_first_and_the_last_are_kept() -> None:
    text = HEADING + OWN + "".join(PANDAS[:14]) + ERROR
    assert fold_traceback(text) == (
        f"{HEADING}{OWN}{PANDAS[0]}[12 frames of pandas left out]\n{PANDAS[13]}{ERROR}"
    )


def test_the_callers_frames_are_kept_between_them() -> None:
    text = "".join([*PANDAS[:3], OWN, *PANDAS[3:7], OWN_MODULE, *PANDAS[7:9], ERROR])
    assert fold_traceback(text) == "".join(
        [
            *(*PANDAS[:3], OWN),
            *(PANDAS[3], "[2 frames of pandas left out]\n", PANDAS[6], OWN_MODULE),
            *(PANDAS[7], PANDAS[8], ERROR),
        ]
    )


def test_the_libraries_are_named() -> None:
    frames = [
        frame("/usr/lib/python3.13/json/decoder.py"),
        frame("/usr/lib/python3.13/json/decoder.py"),
        frame("~/.local/lib/python3.11/site-packages/numpy/lib/npyio.py"),
        frame("<frozen importlib._bootstrap>"),
        frame("index.pyx", 167, "pandas._libs.index.IndexEngine.get_loc()"),
        frame("pandas/_libs/hashtable_class_helper.pxi", 7081),
        frame("/usr/lib/python3/dist-packages/six.py"),
    ]
    note = "[5 frames of importlib, json, numpy, pandas left out]\n"
    text = OWN + "".join(frames) + ERROR
    assert fold_traceback(text) == OWN + frames[0] + note + frames[-1] + ERROR


def test_each_error_of_a_chain_is_kept() -> None:
    chain = "\nThe above exception was the direct cause of the following exception:\n\n"
    first = "".join(PANDAS[:2]) + "ValueError: a\n" + chain + HEADING
    text = first + "".join(PANDAS[2:4]) + ERROR
    assert fold_traceback(text) == text


@pytest.mark.parametrize(
    "text",
    [
        OWN + "".join(PANDAS[:2]) + ERROR,
        OWN + "".join(PANDAS[:3]) + ERROR,
        "".join(OWN.replace("line 2", f"line {n}") for n in range(9)) + ERROR,
        "".join(frame(f"/home/user/pandas/a{n}.py") for n in range(9)) + ERROR,
        "".join(frame(f"/tmp/a{n}.py") for n in range(9)) + ERROR,
        OWN + "ValueError: see\n" + "".join(f"File a{n}.txt\n" for n in range(9)),
        OWN + "ValueError: rows\n" + "  1 a\n" * 9,
    ],
)
def test_frames_of_the_callers_own_and_errors_stay(text: str) -> None:
    assert fold_traceback(text) == text


JOINED = (
    f"File {PACKAGES}/requests/api.py:73, in get(url)\n"
    '     63     r"""Sends a GET request.\n     64 \n'
    "   (...)     70     :rtype: requests.Response\n"
    "---> 73     return request(url)\n"
)


def test_a_gap_to_which_the_next_row_is_joined_is_code() -> None:
    text = HEADING + OWN + 2 * JOINED + "".join(PANDAS[:3]) + JOINED + ERROR
    assert fold_traceback(text) == (
        f"{HEADING}{OWN}{JOINED}[4 frames of pandas, requests left out]\n"
        f"{JOINED}{ERROR}"
    )


CAUSE = "The above exception was the direct cause of the following exception:\n"
DURING = "During handling of the above exception, another exception occurred:\n"


@pytest.mark.parametrize("words", [CAUSE, DURING])
def test_of_an_error_that_led_to_the_callers_no_frame_of_a_library_is_shown(
    words: str,
) -> None:
    first = HEADING + "".join(PANDAS[:5]) + "KeyError: 1\n" + words
    second = HEADING + PANDAS[0] + "KeyError: 2\n" + words
    last = HEADING + OWN + PANDAS[6] + ERROR
    assert fold_traceback(first + second + last) == (
        f"{HEADING}[5 frames of pandas left out]\nKeyError: 1\n{words}"
        f"{HEADING}[1 frame of pandas left out]\nKeyError: 2\n{words}{last}"
    )


def test_the_callers_frame_is_found_behind_an_error_that_came_first() -> None:
    first = HEADING + PANDAS[0] + "KeyError: 1\n" + CAUSE
    assert callers_frame(first + HEADING + OWN + PANDAS[1] + ERROR) == OWN[:-1]
    module = first + HEADING + PANDAS[1] + OWN_MODULE + OWN + ERROR
    assert callers_frame(module) == OWN_MODULE[:-1]
    for text in ("", HEADING + OWN + ERROR, first + PANDAS[1] + ERROR, ERROR):
        assert callers_frame(text) == ""


def test_an_error_of_the_callers_that_led_to_another_keeps_its_frames() -> None:
    first = HEADING + OWN + PANDAS[0] + PANDAS[1] + "KeyError: 1\n" + DURING
    text = first + HEADING + OWN + PANDAS[2] + ERROR
    assert fold_traceback(text) == text


def test_endless_recursion_is_folded() -> None:
    again = (
        "Cell In[1], line 6, in f(n)\n      5 def f(n):\n----> 6     return f(n+1)\n"
    )
    text = HEADING + OWN + 2_961 * again + "RecursionError: too deep"
    assert fold_traceback(text) == (
        f"{HEADING}{OWN}{again}[the same 3 lines 2,960 more times]\n"
        "RecursionError: too deep"
    )


def test_functions_that_call_each_other_are_folded() -> None:
    pair = OWN + OWN.replace("f(1)", "g(1)") + OWN_MODULE
    text = HEADING + 400 * pair + OWN + ERROR
    assert fold_traceback(text) == (
        f"{HEADING}{pair}[the same 9 lines 399 more times]\n{OWN}{ERROR}"
    )


def test_frames_that_are_there_twice_stay() -> None:
    text = HEADING + OWN + OWN + OWN_MODULE + OWN_MODULE + ERROR
    assert fold_traceback(text) == text


HOSTILE = [
    *("\n", "a", "a\n", "`", "File ", "/", "File /", "-> 1\n", "  1 a\n", "'", '"""\\'),
    *(
        "data:a/",
        "data:a/b;base64,",
        "A",
        "00:00:00",
        "00:00:00\n",
        "pydantic/main.py:",
    ),
    *(
        "/pydantic/main.py:1: UserWarning: Pydantic serializer warnings:\n",
        "Cell In[\n",
    ),
    *(
        f"{PANDAS[0]}:1: UserWarning: x",
        PANDAS[0],
        OWN,
        OWN + PANDAS[0],
        PANDAS[0] + PANDAS[1],
    ),
    *("Cell In[1\n" * 3 + "File x\n", "File " + "/lib/python3" * 50),
    *("\n" * 19 + "x\n", "a\n" * 19 + "b\n", "a\nb\na\nb\nc\n"),
    *(f"x\n{CAUSE}", f"{PANDAS[0]}x\n{CAUSE}", f"{OWN}x\n{CAUSE}"),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_time_does_not_explode(text: str) -> None:
    """Some 0.1 s for ten times what is usually folded; a square would take minutes."""
    long = text * (200_000 // len(text))
    started = time.process_time()
    for fold in (fold_printed, fold_logged, fold_traceback):
        fold(long)
        fold(long + "x")
    assert time.process_time() - started < 10
