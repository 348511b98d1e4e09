"""The text of a run, to the letter; and nothing in it is more than text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from builders import empty_run, png_of_pixels

from formatter import echo, fence, format_plain, format_run
from pictures.picture import PNG, Picture, picture_from
from run import Run

NO_OUTPUT = "Code executed successfully, without output. Use print() to see a value."
LIMIT = 30_000


def run(**fields: Any) -> Run:
    """A run in which this was printed (stdout, stderr, values) or happened."""
    made = empty_run(max_output_chars=LIMIT)
    for name, value in fields.items():
        if name in ("stdout", "stderr", "values"):
            getattr(made, name).add(value)
        else:
            setattr(made, name, value)
    return made


def in_order(*parts: str | list[str]) -> Run:
    """A run in which these came: a text was printed, one in a list is a value."""
    made = run(outcome="ok")
    for part in parts:
        if isinstance(part, str):
            made.add_printed("stdout", part)
        else:
            made.add_value(*part)
    return made


def shown(text: str) -> str:
    """What is shown of a text that was printed."""
    reply = format_run(run(stdout=text), LIMIT)
    match = re.fullmatch(
        r"\*\*Console Output:\*\*\n(`{3,})\n(.*)\n\1", reply, re.DOTALL
    )
    assert match, reply
    return match[2]


class TestGoldenTexts:
    def test_output_and_the_executed_code(self) -> None:
        text = format_run(run(stdout="Hello, World!\n"), LIMIT)
        assert "\n\n".join([text, echo("print('Hello, World!')")]) == (
            "**Console Output:**\n```\nHello, World!\n```\n\n"
            "**Executed Code:**\n```python\nprint('Hello, World!')\n```"
        )

    def test_all_parts_stand_in_their_order_separated_by_one_blank_line(self) -> None:
        made = run(
            stdout="out\n",
            stderr="err\n",
            values="3",
            error_name="ValueError",
            error_value="bad",
            traceback="----\nValueError: bad",
            problem="The run was stopped.",
        )
        made.leave_out("figure", "only png, jpeg and svg can be shown")
        made.leave_out("picture", "not valid base64")
        made.leave_out("picture", "not valid base64")
        assert format_run(made, LIMIT) == (
            "**Console Output:**\n```\nout\n```\n\n"
            "**Stderr:**\n```\nerr\n```\n\n"
            "**Result:**\n```\n3\n```\n\n"
            "**Execution Error:**\n```\n----\nValueError: bad\nThe run was "
            "stopped.\n```\n\n"
            "Note: 1 figure left out: only png, jpeg and svg can be shown.\n"
            "Note: 2 pictures left out: not valid base64."
        )

    def test_what_was_printed_after_a_value_comes_after_it_in_one_output(self) -> None:
        made = in_order("first\n", ["   a\n0  1"], "second\n", ["   b\n0  2"])
        made.stderr.add("err\n")
        assert format_run(made, LIMIT) == (
            "**Console Output:**\n```\nfirst\n   a\n0  1\nsecond\n   b\n0  2\n```\n\n"
            "**Stderr:**\n```\nerr\n```"
        )

    def test_the_headings_stay_where_the_order_is_theirs(self) -> None:
        made = in_order("first\n", "second\n", ["1"], ["2"])
        assert format_run(made, LIMIT) == (
            "**Console Output:**\n```\nfirst\nsecond\n```\n\n"
            "**Result:**\n```\n1\n2\n```"
        )

    def test_what_drawing_returned_is_not_shown_beside_other_values(self) -> None:
        made = in_order(["1"], "printed\n", ["Text(0.5, 1.0, 'x')"])
        assert format_run(made, LIMIT) == ("**Console Output:**\n```\n1\nprinted\n```")

    def test_nothing_to_show(self) -> None:
        assert format_run(run(outcome="ok"), LIMIT) == NO_OUTPUT

    def test_a_picture_only(self) -> None:
        assert format_run(run(pictures=[Picture(PNG, b"")]), LIMIT) == ""

    def test_nothing_but_a_note(self) -> None:
        made = run()
        made.leave_out("figure", "draw it with matplotlib")
        note = "Note: 1 figure left out: draw it with matplotlib."
        assert format_run(made, LIMIT) == note

    def test_a_value_of_nothing_is_no_part(self) -> None:
        assert format_run(run(stdout="\n", values=""), LIMIT) == NO_OUTPUT


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"traceback": "T\nValueError: x\n"}, "T\nValueError: x"),
            ({"traceback": "T\nOther"}, "T\nOther\nValueError: x"),
            ({"traceback": ""}, "ValueError: x"),
            ({"traceback": " \n"}, "ValueError: x"),
            ({"error_name": "", "problem": "Stopped."}, "Stopped."),
            ({"problem": "Died."}, "ValueError: x\nDied."),
            ({"traceback": "T\nValueError: y"}, "T\nValueError: y\nValueError: x"),
        ],
    )
    def test_name_and_value_are_always_in_it(
        self, fields: dict[str, str], text: str
    ) -> None:
        made = run(**{"error_name": "ValueError", "error_value": "x"} | fields)
        assert format_run(made, LIMIT) == f"**Execution Error:**\n```\n{text}\n```"

    def test_a_coloured_traceback_of_2_mb_is_stripped_and_cut_and_its_last_lines_kept(
        self,
    ) -> None:
        traceback = "\x1b[31mframe\x1b[0m of a file\n" * 100_000 + "the last line"
        text = format_run(
            run(traceback=traceback, error_name="E", error_value="v"), LIMIT
        )
        assert text.endswith(
            "frame of a file\nthe last line\nE: v\n```" + text[-len_of_note(text) :]
        )
        assert "\x1b" not in text and "[31m" not in text.split("characters cut")[1]
        assert LIMIT - 100 < len(text) < LIMIT + 500


def len_of_note(text: str) -> int:
    return len(text) - text.rindex("\n\nNote: ")


class TestPrintedText:
    @pytest.mark.parametrize(
        ("printed", "text"),
        [
            ("a", "a"),
            ("a\n", "a"),
            ("a\n\n", "a\n"),
            ("\na", "\na"),
            ("  a\tb  \n", "  a\tb  "),
            ("hi\r\n/home/user\r\n", "hi\n/home/user"),
            ("é \U0001f600 ‍ עברית", "é \U0001f600 ‍ עברית"),
        ],
    )
    def test_is_shown_as_it_was_printed_without_its_last_newline(
        self, printed: str, text: str
    ) -> None:
        assert shown(printed) == text

    @pytest.mark.parametrize(
        ("printed", "text"),
        [
            ("\r0/3\r1/3\r2/3", "2/3"),
            ("50%\r100%\ndone", "100%\ndone"),
            ("50%\r100%\r\n", "100%"),
            ("a\r\rb\r", "b"),
            ("one\ntwo\rthree\nfour\n", "one\nthree\nfour"),
            ("\x1b[32m1/2\r\x1b[2K2/2\x1b[0m\n", "2/2"),
        ],
    )
    def test_a_redrawn_line_shows_its_last_state(self, printed: str, text: str) -> None:
        assert shown(printed) == text

    @pytest.mark.parametrize(
        ("printed", "text"),
        [
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b[38;2;1;2;3;48:5:6mred\x1b[m", "red"),
            ("\x1b[?25lx\x1b[2J\x1b[1;1H\x1b[ q", "x"),
            ("\x1b]0;a title\x07text", "text"),
            (
                "\x1b]8;;https://evil.example/\x1b\\link\x1b]8;;\x1b\\ after",
                "link after",
            ),
            ("\x1bPq#0;2;0\x1b\\sixel", "sixel"),
            ("\x1b(Btext\x1b7\x1b8\x1b=\x1bc", "text"),
            ("a\x1b", "a"),
            ("a\x1b[", "a"),
            ("a\x1b[3", "a3"),
            ("a\x1b]8;;https://evil.example", "a"),
            ("\x1b\x1b[31mx", "x"),
            ("\x9b31mx", "31mx"),
        ],
    )
    def test_ansi_escapes_are_removed(self, printed: str, text: str) -> None:
        assert shown(printed) == text

    @pytest.mark.parametrize(
        "start", ["\x1b]8;;https://evil.example", "\x1bP", "\x1b^x", "\x1bX"]
    )
    def test_an_escape_without_an_end_hides_no_more_than_its_line(
        self, start: str
    ) -> None:
        assert shown(f"before{start}\nafter") == "before\nafter"

    def test_control_characters_are_removed(self) -> None:
        controls = "".join(
            map(chr, [*range(9), *range(11, 13), *range(14, 32), *range(127, 160)])
        )
        controls = controls.replace("\x1b", "")
        assert shown(f"a{controls}b\u2028c\u2029d\ufeffe\ufffe\uffff\tf") == "abcde\tf"

    @pytest.mark.parametrize(
        "control", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
    def test_what_reorders_the_text_is_made_visible(self, control: str) -> None:
        assert shown(f"a{control}b") == f"a\\u{ord(control):04x}b"
        assert (
            echo(f"a{control}b")
            == f"**Executed Code:**\n```python\na\\u{ord(control):04x}b\n```"
        )

    @pytest.mark.parametrize("mark", "\u061c\u200e\u200f")
    def test_invisible_marks_of_direction_are_too(self, mark: str) -> None:
        assert shown(f"a{mark}b") == f"a\\u{ord(mark):04x}b"

    def test_lone_surrogates_become_question_marks(self) -> None:
        assert shown("a\ud800b\udfff") == "a?b?"
        assert "a?b" in echo("a\ud800b")


class TestFences:
    @pytest.mark.parametrize("ticks", [0, 1, 2, 3, 4, 10, 99])
    def test_are_longer_than_any_run_of_backticks_inside(self, ticks: int) -> None:
        text = f"a\n{'`' * ticks}\n# not a heading ``` x"
        fenced = fence(text, "python")
        first, *_, last = fenced.split("\n")
        assert first == last + "python"
        assert last == "`" * max(4, ticks + 1)
        assert fenced == f"{last}python\n{text}\n{last}"

    def test_are_three_backticks_when_there_are_none_inside(self) -> None:
        assert fence("a") == "```\na\n```"

    @pytest.mark.parametrize(
        "hidden", ["`\x00`", "`\x1b[0m`", "`\u2028`", "`\ufeff`", "\x1b]`\x07`"]
    )
    def test_are_measured_on_what_is_shown(self, hidden: str) -> None:
        text = shown(f"\n{hidden * 5}\n# out")
        assert text.endswith("\n# out")

    @pytest.mark.parametrize(
        "make", [echo, lambda text: format_run(run(stdout=text), LIMIT)]
    )
    def test_hold_markdown_html_and_links_that_tell(
        self, make: Callable[[str], str]
    ) -> None:
        hostile = (
            "```\n![x](https://evil.example/?q=)\n<img src=x "
            "onerror=alert(1)>\n**Stderr:**"
        )
        text = make(hostile)
        assert f"\n{hostile}\n````" in text
        assert text.count("````") == 2


class TestCutting:
    def test_a_part_that_is_cut_says_how_much_is_missing(self) -> None:
        printed = "a" * 20_000 + "b" * 50_000 + "c" * 20_000
        text = format_run(run(stdout=printed), LIMIT)
        assert text == (
            f"**Console Output:**\n```\n{'a' * 15_000}\n[… 60,000 characters cut …]\n"
            f"{'c' * 15_000}\n```\n\nNote: 60,000 characters of Console Output are "
            f"not shown."
        )

    def test_nothing_is_cut_at_the_limit_and_something_above_it(self) -> None:
        assert "cut" not in format_run(run(stdout="x" * LIMIT), LIMIT)
        assert "[… 2 characters cut …]" in format_run(
            run(stdout="x" * (LIMIT + 2)), LIMIT
        )

    def test_a_short_part_is_not_cut_on_account_of_a_long_one(self) -> None:
        made = run(stdout="o" * LIMIT, stderr="e" * 5_000, values="v" * 100)
        text = format_run(made, LIMIT)
        assert text.count("e" * 5_000) == 1 and text.count("v" * 100) == 1
        assert "5,100 characters of Console Output are not shown" in text
        assert "Stderr are not shown" not in text

    def test_long_parts_share_alike(self) -> None:
        made = run(
            stdout="ø" * LIMIT,
            stderr="é" * LIMIT,
            values="ü" * LIMIT,
            traceback="å" * LIMIT,
        )
        text = format_run(made, LIMIT)
        assert [text.count(letter) for letter in "øéüå"] == [LIMIT // 4] * 4
        assert text.count("[… 22,500 characters cut …]") == 4

    def test_characters_that_are_not_shown_do_not_count(self) -> None:
        text = format_run(run(stdout="\x1b[31mx\x1b[0m" * 3_000), LIMIT)
        assert text.count("x") == 3_000
        assert "cut" not in text

    def test_head_and_tail_stay_apart_when_more_is_cut(self) -> None:
        """The mark stands where characters are missing, not where two pieces met by
        chance."""
        made = run(
            stdout="\x1b[m" * 4_998 + "HEAD" + "m" * 40_000 + "t" * 15_000,
            stderr="e" * LIMIT,
        )
        head, tail = format_run(made, LIMIT).split("characters cut …]", 1)
        assert "HEAD" in head
        assert "t" not in head.split("```\n", 1)[1]
        assert "t" * 7_000 in tail


class TestNotes:
    def test_a_count_of_thousands_can_be_read(self) -> None:
        made = run(stdout="x")
        for _ in range(1_234):
            made.leave_out("picture", "a reply holds at most 10 pictures")
        note = "Note: 1,234 pictures left out: a reply holds at most 10 pictures."
        assert format_run(made, LIMIT).endswith(f"```\n\n{note}")


class TestPlain:
    """Over MCP the text is shown as it is: no Markdown of ours, and none of theirs."""

    def test_one_part_has_no_label(self) -> None:
        made = run(stdout="a\n**b**\n", outcome="ok")
        assert format_plain(made, LIMIT) == "a\n**b**"

    def test_several_parts_have_labels_and_notes_stand_last_in_brackets(self) -> None:
        made = run(stdout="out\n", stderr="err\n", values="3", outcome="ok")
        made.leave_out("picture", "not valid base64")
        assert format_plain(made, LIMIT) == (
            "Console Output:\nout\n\nStderr:\nerr\n\nResult:\n3\n\n"
            "[1 picture left out: not valid base64]"
        )

    def test_what_came_in_another_order_is_one_text_without_a_label(self) -> None:
        made = in_order("first\n", ["1"], "second\n", ["2"])
        assert format_plain(made, LIMIT) == "first\n1\nsecond\n2"

    def test_what_was_cut_is_a_note(self) -> None:
        text = format_plain(run(stdout="x" * 9_000, outcome="ok"), 1_000)
        assert text.endswith("\n\n[8,000 characters of Console Output are not shown]")

    def test_no_output_is_said(self) -> None:
        assert format_plain(run(outcome="ok"), LIMIT) == NO_OUTPUT

    def test_pictures_stand_in_the_last_line_with_their_sizes(self) -> None:
        made = run(outcome="ok")
        made.leave_out("picture", "not valid base64")
        made.pictures = [picture_from(png_of_pixels(711, 432))]
        assert format_plain(made, LIMIT) == (
            "[1 picture left out: not valid base64]\n"
            "[1 picture was drawn and is shown to the user: 711 x 432]"
        )

    def test_what_failed_is_in_the_first_line(self) -> None:
        made = run(
            stdout="before\n",
            outcome="error",
            error_name="KeyError",
            error_value="'a'",
            traceback="Traceback (most recent call last)\nKeyError: 'a'",
        )
        assert format_plain(made, LIMIT).split("\n\n") == [
            "KeyError: 'a'",
            "Console Output:\nbefore",
            "Execution Error:\nTraceback (most recent call last)\nKeyError: 'a'",
        ]

    def test_a_problem_is_told_once(self) -> None:
        made = run(problem="The run was stopped.", outcome="timeout")
        assert format_plain(made, LIMIT) == "The run was stopped."

    def test_the_error_and_the_callers_line_come_before_those_of_a_library(
        self,
    ) -> None:
        frames = "".join(
            f"File /usr/lib/python3/dist-packages/a/b.py:{n}, in f()\n      {n} f()\n"
            for n in range(5)
        )
        heading = "KeyError        Traceback (most recent call last)\n"
        cause = "The above exception was the direct cause of the following exception:\n"
        own = "Cell In[1], line 1\n----> 1 a['b']\n"
        first = f"{heading}{frames}KeyError: 'b'\n{cause}"
        rest = (
            f"{heading}[5 frames of a left out]\nKeyError: 'b'\n{cause}"
            f"{heading}{own}KeyError: 'c'"
        )
        made = run(
            outcome="error",
            error_name="KeyError",
            error_value="'c'",
            traceback=f"{first}{heading}{own}KeyError: 'c'",
        )
        text = f"KeyError: 'c'\n\n{own}\n{rest}"
        assert format_plain(made, LIMIT) == text
        text = f"KeyError: 'c'\n{own}\n{rest}"
        assert format_run(made, LIMIT) == f"**Execution Error:**\n```\n{text}\n```"

    def test_the_first_line_of_a_long_message_is_enough(self) -> None:
        made = run(outcome="error", error_name="E", error_value="a" * 999 + "\nb")
        first = format_plain(made, LIMIT).split("\n")[0]
        assert first == "E: " + "a" * 297

    def test_no_picture_can_be_loaded_by_a_client_that_renders_markdown(self) -> None:
        link = "![x](https://evil.test/?q=1)"
        made = run(stdout=link, error_name=link, error_value=link, outcome="error")
        text = format_plain(made, LIMIT)
        assert "![" not in text
        assert text.count("!\u200b[x](https://evil.test/?q=1)") == 3


@pytest.mark.parametrize(
    "text", ["`" * LIMIT, "`" * 9_000 + "~" * 9_000, "`" * 500_000]
)
def test_a_fence_adds_little_however_long_the_run_of_backticks(text: str) -> None:
    made = run(stdout=text, stderr=text, values=text, traceback=text)
    assert len(format_run(made, LIMIT)) <= LIMIT + 6_000
