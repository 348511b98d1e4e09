"""E2B's stream in, a `Run` out: the same however it is cut, and bounded whatever it
holds."""

from __future__ import annotations

import io
import json
import re
import tracemalloc
from typing import Any

import pytest
from builders import (
    END,
    FIGURE,
    RED_SVG,
    TIMESTAMP,
    Event,
    empty_run,
    encoded,
    error,
    facts,
    figure,
    jpeg_of_pixels,
    lines,
    padded_png,
    picture,
    png_of_pixels,
    result,
    stderr,
    stdout,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from config import MAX_REPLY_IMAGE_BYTES, Config
from pictures.picture import JPEG, MAX_PIXELS, PNG, SVG, BadPicture, picture_from
from run import Run
from sandboxes.stream import StreamReader

NO_PICTURE = "only png, jpeg and svg can be shown, so draw it with matplotlib"
LONG = 300 * 1024  # more than the reader decodes at a time
LIMIT = 30_000


def read(*parts: bytes | Event, **settings: Any) -> StreamReader:
    reader = StreamReader(empty_run(**settings))
    for part in parts:
        reader.feed(part if isinstance(part, bytes) else lines(part))
    return reader


def run_of(*parts: bytes | Event, **settings: Any) -> Run:
    reader = read(*parts, **settings)
    assert not reader.broken
    return reader.run


STREAM = b"".join(
    [
        lines({"type": "number_of_executions", "execution_count": 1}),
        lines(stdout('héllo \U0001f600 \\ " \u2028 \ud800\n')),
        b'{"type":"stdout","text":"raw \xc3\xa9 \xf0\x9f\x98\x80"}\n\n',
        lines(stderr("oops"), {"type": "keepalive"}),
        lines(result("3", json=[1, {"a": None}]), figure(picture())),
        lines(error("ValueError", "x", "a\nb"), END),
    ]
)


class TestChunks:
    whole = facts(read(STREAM))

    def test_the_stream_is_read(self) -> None:
        run = run_of(STREAM)
        assert (
            run.stdout.head == 'héllo \U0001f600 \\ " \u2028 \ud800\nraw é \U0001f600'
        )
        assert run.stderr.head == "oops"
        assert run.values.head == "3"
        assert [picture.media_type for picture in run.pictures] == [PNG]
        assert (run.error_name, run.error_value, run.traceback) == (
            "ValueError",
            "x",
            "a\nb",
        )
        assert read(STREAM).ended

    def test_it_may_be_cut_at_any_byte(self) -> None:
        for cut in range(len(STREAM)):
            assert facts(read(STREAM[:cut], STREAM[cut:])) == self.whole, cut

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
    def test_it_may_come_in_pieces_of_any_size(self, size: int) -> None:
        pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
        assert facts(read(*pieces)) == self.whole

    def test_an_unfinished_last_line_is_not_taken_for_an_end(self) -> None:
        reader = read(stdout("kept"), lines(END).rstrip(b"\n"))
        assert reader.run.stdout.head == "kept"
        assert not reader.ended and not reader.broken

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            ("stderr", "\U0001f600" * (LONG // 12)),
            ("stdout", '\\"\\u0041\n' * (LONG // 8)),
            ("stdout", "\\" * LONG),
        ],
    )
    @pytest.mark.parametrize("ascii_only", [True, False])
    def test_a_long_line_of_output_may_be_cut_at_any_byte(
        self, kind: str, text: str, ascii_only: bool
    ) -> None:
        event = {"type": kind, "text": text, "timestamp": TIMESTAMP}
        printed = json.dumps(event, ensure_ascii=ascii_only).encode() + b"\n"
        stream = printed + lines(END)
        near = [256 * 1024 + offset for offset in range(13)]
        end = len(printed)
        for cut in (*near, *range(end - 60, end + 1, 3)):
            reader = read(stream[:cut], stream[cut:], max_output_chars=1_000_000)
            run = reader.run
            kept = getattr(run, kind)
            assert kept.head + kept.tail == text, cut
            assert reader.ended and not reader.broken
            assert not run.left_out


class TestLongOutput:
    @pytest.mark.parametrize("kind", ["stdout", "stderr"])
    @pytest.mark.parametrize("piece_chars", [4000, 5_000_000])
    def test_head_and_tail_are_kept_and_the_rest_is_counted(
        self, kind: str, piece_chars: int
    ) -> None:
        text = "".join(f"{number:09}\n" for number in range(500_000))  # 5 MB
        starts = range(0, len(text), piece_chars)
        events = [stdout(text[at : at + piece_chars]) | {"type": kind} for at in starts]
        stream = lines(*events, END)
        chunks = [stream[at : at + 65_536] for at in range(0, len(stream), 65_536)]
        run = run_of(*chunks)
        kept = getattr(run, kind)
        assert kept.head == text[: LIMIT // 2]
        assert kept.tail == text[-LIMIT // 2 :]
        assert kept.missing == len(text) - LIMIT
        assert not run.left_out

    def test_memory_does_not_grow_with_the_output(self) -> None:
        reader = read()
        piece = b"x" * 65_536
        reader.feed(b'{"type":"stdout","text":"')
        tracemalloc.start()
        try:
            for _ in range(800):  # 50 MB
                reader.feed(piece)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        reader.feed(b'"}\n' + lines(END))
        assert peak_bytes < 4_000_000
        assert reader.run.stdout.missing == 800 * 65_536 - LIMIT
        assert reader.ended and not reader.broken

    @pytest.mark.parametrize("name", ["png", "jpeg", "svg", "html", "text", "pdf"])
    def test_a_result_over_every_limit_is_dropped_with_its_kind_and_size(
        self, name: str
    ) -> None:
        formats = {"text": "<Figure>"} | {name: "MARK"}
        start, end = lines(result(**formats)).split(b"MARK")
        piece = b"x" * 65_536
        tracemalloc.start()
        try:
            reader = read(
                stdout("before"), start, *[piece] * 800, end, stdout("after"), END
            )
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 45_000_000  # three pictures as base64, and their copies
        [(what, why)] = reader.run.left_out
        assert what == "output"
        size = f"52.4 MB of {name}, which is over every limit"
        if name in ("png", "jpeg", "pdf"):
            # Its own size, not that of its base64.
            size = f"39.3 MB of {name}, which is over every limit: draw it smaller"
        assert why == size
        assert reader.run.stdout.head == "beforeafter"
        assert reader.ended and not reader.broken

    def test_an_error_of_2_mb_keeps_its_last_lines(self) -> None:
        traceback = "\x1b[31mframe\x1b[0m\n" * 150_000 + "ValueError: the end"
        run = run_of(error("n" * 9999, "v" * 2_000_000, traceback))
        assert run.traceback.endswith("frame\x1b[0m\nValueError: the end")
        assert len(run.traceback) < 10 * LIMIT
        assert "characters cut" in run.traceback
        assert run.error_name == "n" * 200
        assert 0 < len(run.error_value) <= LIMIT
        assert set(run.error_value) == {"v"}

    @pytest.mark.parametrize("entry", ['"a": 0, ', "[], ", "{}, ", "1, ", '"\\\\", '])
    def test_a_value_that_costs_too_much_to_parse_is_dropped_but_for_its_text(
        self, entry: str
    ) -> None:
        value = '{"type": "result", "text": "cut \\"…\\"", "json": [%s0]}\n'
        run = run_of((value % (entry * 250_000)).encode(), END)
        assert run.values.head == 'cut "…"'
        [(what, why)] = run.left_out
        assert what == "output"
        assert why.endswith(" MB of text, which is over every limit")

    def test_a_value_that_is_dropped_and_no_json_breaks_nothing(self) -> None:
        value = rb'{"type": "result", "text": "\x00", "json": [' + b"1, " * 250_000
        run = run_of(value + b"0]}\n", stdout("after"), END)
        assert run.values.kept == 0
        assert run.stdout.head == "after"

    def test_what_stands_inside_of_a_string_costs_nothing(self) -> None:
        text = '{"a": ["\\\\", [1, 2]]}, ' * 100_000
        reader = read(result(html=text), error("E", text, text + "the end"), END)
        assert not reader.broken
        assert reader.run.traceback.endswith("the end")
        assert "over every limit" not in str(reader.run.left_out)

    def test_an_error_over_every_limit_is_still_an_error(self) -> None:
        run = run_of(error("ValueError", "x" * 20_000_000), END)
        assert run.error_name == "Error"
        assert run.left_out == {
            ("output", "40.0 MB of error, which is over every limit"): 1
        }

    def test_notes_are_bounded_too(self) -> None:
        run = empty_run(max_output_chars=LIMIT)
        for number in range(1000):
            run.leave_out("picture", f"reason {number}")
        assert len(run.left_out) <= 20 + 1
        assert sum(run.left_out.values()) == 1000


class TestBrokenStreams:
    @pytest.mark.parametrize(
        "bad",
        [
            b"<html>502</html>",
            b"[]",
            b"3",
            b"null",
            b'"stdout"',
            b"{}",
            b'{"type": "stdout"}',
            b'{"type": ["stdout"], "text": "x"',
            b'{"type": "error", "name": "E"}',
            b'{"type": "result", "extra": 3}',
            b'{"type": "stdout", "text": "\xff"}',
            b"[" * 100_000,
            b'{"type": "stdout", "text": ' + b"9" * 5000 + b"}",
            b"\x00",
            b"\xef\xbb\xbf{}",
        ],
    )
    def test_a_line_that_is_no_event_is_said_and_what_came_before_is_kept(
        self, bad: bytes
    ) -> None:
        reader = read(stdout("before"), bad + b"\n", END)
        assert reader.run.stdout.head == "before"
        assert reader.broken.startswith("a line of E2B's answer could not be read (")

    @pytest.mark.parametrize(
        "kind", ["chart", "number_of_executions", "unexpected_endpoint", 7]
    )
    def test_an_unknown_kind_of_event_is_passed_over(self, kind: object) -> None:
        reader = read(json.dumps({"type": kind}).encode() + b"\n", stdout("after"), END)
        assert reader.run.stdout.head == "after"
        assert reader.ended and not reader.broken

    @pytest.mark.parametrize(
        "start",
        [
            b'{"type":"stdout","text":"a","x":' + b"[" * LONG,
            b'{"type":"stdout","text":"a","type":"error","x":"' + b"x" * LONG,
            b'{"type":"stdout","text":"a","text":["' + b"x" * LONG,
            b'{"type":"stdout","text":"' + b"\xff" * LONG,
            b'{"type":"stdout","text":"' + b"\\x" * LONG,
            b'{"type":"stdout","text":"' + b"\\" * (LONG + 1),
        ],
    )
    def test_a_long_line_that_only_begins_like_output_does_no_harm(
        self, start: bytes
    ) -> None:
        reader = read(stdout("before"), start, b"\n", END)
        assert reader.run.stdout.head.startswith("before")
        assert reader.broken or reader.ended


class TestPictures:
    @pytest.mark.parametrize(
        ("label", "data", "media_type"),
        [
            ("png", picture("PNG"), PNG),
            ("jpeg", picture("JPEG"), JPEG),
            ("png", picture("JPEG"), JPEG),
            ("jpeg", picture("PNG"), PNG),
            ("png", RED_SVG.encode(), SVG),
        ],
    )
    def test_are_known_by_their_first_bytes(
        self, label: str, data: bytes, media_type: str
    ) -> None:
        [kept] = run_of(result(**{label: encoded(data)})).pictures
        assert (kept.media_type, kept.data) == (media_type, data)

    @pytest.mark.parametrize(
        "text",
        [
            RED_SVG,
            f"\n  {RED_SVG}",
            f'<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG '
            f'1.1//EN">{RED_SVG}',
            f"<!-- é -->{RED_SVG}",
        ],
    )
    def test_an_svg_is_text_and_not_base64(self, text: str) -> None:
        [kept] = run_of(result(svg=text)).pictures
        assert (kept.media_type, kept.data) == (SVG, text.encode())

    @pytest.mark.parametrize("newline", ["\n", "\r\n", " "])
    def test_base64_may_have_newlines(self, newline: str) -> None:
        text = encoded(picture())
        wrapped = (
            newline.join(text[at : at + 60] for at in range(0, len(text), 60)) + newline
        )
        assert run_of(result(png=wrapped)).pictures[0].data == picture()

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("not base64!", "not valid base64"),
            ("abc", "not valid base64"),
            ("é" * 40, "not valid base64"),
            ("\ud800", "not valid base64"),
            (encoded(picture())[:-2], "not valid base64"),
            (encoded(b"MZ\x90\x00 an executable"), "neither PNG, JPEG nor SVG"),
            (
                encoded(b"<html><script>alert(1)</script><svg></svg>"),
                "neither PNG, JPEG nor SVG",
            ),
            (encoded(b"GIF89a" + bytes(40)), "neither PNG, JPEG nor SVG"),
            (encoded(picture()[:20]), "8 x 0 pixels (the limit is 50,000,000 in all)"),
        ],
    )
    def test_what_is_none_is_left_out_with_the_reason(
        self, text: str, reason: str
    ) -> None:
        run = run_of(result(text=FIGURE, png=text), stdout("after"))
        assert run.pictures == []
        assert run.left_out == {("picture", reason): 1}
        assert run.stdout.head == "after"

    @pytest.mark.parametrize(
        "svg", ["<b>no</b>", "", "<script>1</script><svg></svg>", "\ud800"]
    )
    def test_an_svg_that_is_none_is_no_picture(self, svg: str) -> None:
        assert run_of(result(text="<Figure>", svg=svg)).pictures == []

    def test_an_svg_that_cannot_be_encoded_is_left_out_for_that_reason(self) -> None:
        svg = RED_SVG.replace("<rect", "<desc>\ud800</desc><rect")
        run = run_of(result(FIGURE, svg=svg), stdout("after"))
        reason = "an SVG with a lone surrogate, which is no character"
        assert run.left_out == {("picture", reason): 1}
        assert run.stdout.head == "after"

    @pytest.mark.parametrize(
        ("width", "height"),
        [(100_000, 100_000), (MAX_PIXELS + 1, 1), (0, 5), (2**32 - 1, 1)],
    )
    def test_a_png_that_claims_too_many_pixels_or_none_is_refused(
        self, width: int, height: int
    ) -> None:
        with pytest.raises(
            BadPicture, match=rf"{width} x {height} pixels .*50,000,000 in all"
        ):
            picture_from(png_of_pixels(width, height))

    def test_a_png_of_as_many_pixels_as_allowed_is_taken(self) -> None:
        assert picture_from(png_of_pixels(MAX_PIXELS // 2, 2)).media_type == PNG

    @pytest.mark.parametrize(("width", "height"), [(65_500, 65_500), (60_000, 1_000)])
    def test_a_jpeg_that_claims_too_many_pixels_is_refused(
        self, width: int, height: int
    ) -> None:
        with pytest.raises(BadPicture, match=rf"{width} x {height} pixels"):
            picture_from(jpeg_of_pixels(width, height))

    @pytest.mark.parametrize(
        "options", [{}, {"progressive": True}, {"exif": b"x" * 60_000}]
    )
    def test_a_jpeg_of_any_make_is_taken(self, options: dict[str, Any]) -> None:
        file = io.BytesIO()
        Image.new("RGB", (300, 20)).save(file, "JPEG", **options)
        assert picture_from(file.getvalue()).media_type == JPEG

    def test_the_first_format_that_is_good_is_the_one_picture(self) -> None:
        png, jpeg = encoded(picture("PNG")), encoded(picture("JPEG"))
        both = run_of(result(text="<PIL.Image.Image>", jpeg=jpeg, png=png, svg=RED_SVG))
        assert [kept.media_type for kept in both.pictures] == [PNG]
        second = run_of(result(png="broken!", jpeg=jpeg, svg=RED_SVG))
        assert [kept.media_type for kept in second.pictures] == [JPEG]
        assert not second.left_out
        third = run_of(result(png="broken!", jpeg="broken!", svg=RED_SVG))
        assert [kept.media_type for kept in third.pictures] == [SVG]

    def test_the_text_beside_a_picture_is_not_a_result(self) -> None:
        run = run_of(
            result(text="<Figure size 640x480 with 1 Axes>", png=encoded(picture()))
        )
        assert run.values.head == ""

    def test_the_same_bytes_twice_are_one_picture_without_a_note(self) -> None:
        png = encoded(picture())
        run = run_of(result(png=png), result(png=png), result(jpeg=png))
        assert len(run.pictures) == 1
        assert not run.left_out

    def test_stand_in_the_order_of_display(self) -> None:
        pngs = [picture(colour=(shade, 0, 0)) for shade in range(5)]
        run = run_of(*(result(png=encoded(png)) for png in pngs))
        assert [kept.data for kept in run.pictures] == pngs

    def test_200_figures_are_the_first_10_and_a_count(self) -> None:
        pngs = [picture(colour=(shade, 0, 0)) for shade in range(200)]
        run = run_of(*(result(png=encoded(png)) for png in pngs))
        assert [kept.data for kept in run.pictures] == pngs[:10]
        assert run.left_out == {("picture", "a reply holds at most 10 pictures"): 190}

    def test_none_are_kept_when_none_are_wanted(self) -> None:
        run = run_of(result(png=encoded(picture())), max_images=0)
        assert run.pictures == []
        assert run.left_out == {("picture", "a reply holds at most 0 pictures"): 1}

    def test_one_of_as_many_bytes_as_allowed_is_taken_and_one_more_is_not(self) -> None:
        limit = Config().max_image_bytes
        assert len(run_of(result(png=encoded(padded_png(limit)))).pictures) == 1
        run = run_of(result(png=encoded(padded_png(limit + 1))))
        assert run.left_out == {
            ("picture", "5,242,881 bytes (the limit is 5,242,880)"): 1
        }

    def test_a_30_mb_one_is_left_out(self) -> None:
        stream = lines(figure(padded_png(30_000_000)), END)
        run = run_of(
            *(stream[at : at + 65_536] for at in range(0, len(stream), 65_536))
        )
        assert run.pictures == []
        assert run.left_out == {
            ("output", "30.0 MB of png, which is over every limit: draw it smaller"): 1
        }

    def test_all_together_have_a_limit_and_a_smaller_one_still_fits(self) -> None:
        sizes = [4_000_000, 4_000_000, 4_000_000, MAX_REPLY_IMAGE_BYTES - 8_000_000]
        pngs = [padded_png(size, (shade, 0, 0)) for shade, size in enumerate(sizes)]
        run = run_of(*(result(png=encoded(png)) for png in pngs))
        assert [len(kept.data) for kept in run.pictures] == [
            sizes[0],
            sizes[1],
            sizes[3],
        ]
        reason = f"a reply holds at most {MAX_REPLY_IMAGE_BYTES:,} bytes of pictures"
        assert run.left_out == {("picture", reason): 1}

    def test_their_bytes_are_not_in_the_repr(self) -> None:
        assert "PNG" not in repr(picture_from(picture()))


class TestValues:
    @pytest.mark.parametrize(
        ("fields", "value"),
        [
            ({"text": "3"}, "3"),
            ({"text": ""}, ""),
            ({"text": "[1, 2]", "json": [1, 2]}, "[1, 2]"),
            (
                {"text": "   a\n0  1", "html": "<table>", "data": {"a": [1]}},
                "   a\n0  1",
            ),
            (
                {"text": "<IPython.core.display.Markdown object>", "markdown": "# m"},
                "# m",
            ),
            ({"text": "<IPython.core.display.Latex object>", "latex": "$x$"}, "$x$"),
            (
                {"text": "<IPython.core.display.JSON object>", "json": {"a": 1}},
                '{"a": 1}',
            ),
            ({"text": "<IPython.core.display.JSON object>", "json": []}, "[]"),
            ({"text": "<IPython.core.display.JSON object>", "json": 0}, "0"),
            ({"text": "<a.B object at 0x7f00>", "markdown": "m", "latex": "l"}, "m"),
            ({"markdown": "only"}, "only"),
            (
                {"text": "<__main__.Thing object at 0x7f001234>"},
                "<__main__.Thing object at 0x7f001234>",
            ),
            (
                {"text": "see <a.B object at 0x1>", "markdown": "m"},
                "see <a.B object at 0x1>",
            ),
        ],
    )
    def test_the_text_says_it_unless_it_only_stands_for_something(
        self, fields: dict[str, Any], value: str
    ) -> None:
        run = run_of(result(**fields))
        assert run.values.head + run.values.tail == value
        assert not run.left_out

    def test_several_stand_on_lines_of_their_own(self) -> None:
        run = run_of(*(result(text=text) for text in ("a", "b\nc", "d")))
        assert run.values.head == "a\nb\nc\nd"

    @pytest.mark.parametrize(
        "fields",
        [
            {"text": "<IPython.core.display.HTML object>", "html": "<svg>"},
            {"text": "<IPython.core.display.Javascript object>", "javascript": "1"},
            {"html": "<div>", "extra": {"application/vnd.plotly.v1+json": {}}},
            {"extra": {"image/gif": "R0lGOD"}},
            {"text": "<x.Image object>", "extra": {"image/webp": "UklGR"}},
            {"text": "<x.Pdf object>", "pdf": "JVBERi"},
            {"text": "<Figure size 120x80 with 1 Axes>", "pdf": "JVBERi", "chart": {}},
        ],
    )
    def test_a_figure_that_cannot_be_shown_is_named(
        self, fields: dict[str, Any]
    ) -> None:
        run = run_of(result(html="<script>plotly()</script>"), result(**fields))
        assert run.values.head == run.drawings.head == ""
        assert run.left_out == {("figure", NO_PICTURE): 1}

    @pytest.mark.parametrize("fields", [{"pdf": "JV"}, {"extra": {"image/gif": "R0"}}])
    def test_it_is_named_even_beside_a_text(self, fields: dict[str, Any]) -> None:
        run = run_of(result(text="shown", **fields))
        assert run.values.head == "shown"
        assert run.left_out == {("figure", NO_PICTURE): 1}

    def test_html_beside_a_text_or_a_picture_is_no_loss(self) -> None:
        run = run_of(
            result(text="table", html="<table>"),
            result(png=encoded(picture()), html="x"),
        )
        assert not run.left_out


class TestOrder:
    """stdout and values come as they arrived."""

    @pytest.mark.parametrize(
        ("events", "printed", "values"),
        [
            ([stdout("a\n"), result("1")], "a\n", "1"),
            ([stdout("a"), stderr("e"), result("1"), result("2")], "a", "1\n2"),
            ([result("1"), stderr("e"), stdout("\n"), stdout(" ")], "\n ", "1"),
            ([result("1"), stdout(""), result("2")], "", "1\n2"),
            ([result("1"), stdout("a\n")], "1\na\n", ""),
            ([stdout("a"), result("1"), stdout("b")], "a\n1\nb", ""),
            (
                [*(stdout("a\n"), result("1\n2")), *(stdout("b\n"), result("3"))],
                "a\n1\n2\nb\n3\n",
                "",
            ),
            (
                [*(result("1"), result("2"), stdout("a")), *(result("3"), stdout("b"))],
                "1\n2\na\n3\nb",
                "",
            ),
            ([result("1"), stdout("a\n"), stdout(""), result("2")], "1\na\n2\n", ""),
        ],
    )
    def test_a_value_before_which_nothing_is_printed_stays_where_it_was(
        self, events: list[Event], printed: str, values: str
    ) -> None:
        run = run_of(*events)
        assert (run.stdout.text(), run.values.text()) == (printed, values)
        assert run.is_mixed == (values == "")

    def test_pictures_and_what_drawing_returned_change_no_order(self) -> None:
        run = run_of(
            *(figure(picture()), result("Text(0, 1, 'x')"), stdout("a\n")),
            *(result("3"), figure(picture(colour="blue"))),
        )
        assert (run.stdout.text(), run.values.text()) == ("a\n", "3")

    def test_what_is_cut_of_a_value_is_missing_in_the_whole(self) -> None:
        run = run_of(stdout("a" * 20_000), result("b" * 50_000), stdout("c" * 10_000))
        assert run.stdout.head == "a" * 15_000
        assert run.stdout.tail == "b" * 4_999 + "\n" + "c" * 10_000
        kept = len(run.stdout.head) + len(run.stdout.tail)
        assert run.stdout.missing == 20_000 + 1 + 50_000 + 1 + 10_000 - kept

    def test_many_changes_are_held_in_bounded_memory(self) -> None:
        reader = read(max_output_chars=LIMIT)
        piece = lines(stdout("a" * 500 + "\n"), result("b" * 500))
        tracemalloc.start()
        try:
            for _ in range(20_000):  # 20 MB
                reader.feed(piece)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 2_000_000
        assert reader.run.stdout.kept == LIMIT


def png_by(software: str, size: tuple[int, int] = (20, 20)) -> bytes:
    """A PNG of more than 200 characters of base64, made by this program."""
    file = io.BytesIO()
    noise = Image.effect_noise(size, 90)
    about = PngInfo()
    about.add_text("Software", software)
    noise.save(file, "PNG", pnginfo=about)
    return file.getvalue()


def jpeg(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((20, 20), 90).save(file, "JPEG", **options)
    return file.getvalue()


OURS = png_by("Pillow")
MATPLOTLIBS = png_by("Matplotlib version3.10.9, https://matplotlib.org/")


class TestPrintedPictures:
    @pytest.mark.parametrize("data", [OURS, MATPLOTLIBS, jpeg()])
    @pytest.mark.parametrize(
        ("kind", "form"),
        [
            ("base64", "{}\n"),
            ("base64", "{}"),
            ("base64", "<img src='data:image/png;base64,{}'>\n"),
            ("base64", "{{'image': b'{}'}}\n"),
            ("hex", "0 {}\n"),
        ],
    )
    @pytest.mark.parametrize("event", [stdout, stderr, result])
    def test_one_is_shown_and_measured_in_its_place(
        self, data: bytes, kind: str, form: str, event: Any
    ) -> None:
        word = encoded(data) if kind == "base64" else data.hex()
        run = run_of(event(form.format(word)))
        text = "".join(part.text() for part in (run.stdout, run.stderr, run.values))
        size = f"[{len(word):,} characters of {kind}: a picture of 20 x 20 pixels]"
        assert text == form.format(size)
        assert [kept.data for kept in run.pictures] == [data]

    def test_in_the_order_in_which_all_pictures_came_and_once(self) -> None:
        shown = figure(picture(colour="blue"))
        printed = stdout(encoded(OURS) + "\n")
        photograph = jpeg()
        also_printed = stdout(photograph.hex() + "\n")
        run = run_of(printed, shown, printed, also_printed, shown)
        pictures = [OURS, picture(colour="blue"), photograph]
        assert [kept.data for kept in run.pictures] == pictures
        run = run_of(shown, printed)
        assert [kept.data for kept in run.pictures] == [picture(colour="blue"), OURS]

    @pytest.mark.parametrize("data", [MATPLOTLIBS, jpeg(dpi=(100, 100))])
    def test_a_figure_that_is_shown_is_not_there_again_because_it_was_printed(
        self, data: bytes
    ) -> None:
        """The kernel shows all that was saved, as it looks on a screen."""
        shown = figure(picture(colour="blue"))
        printed = stdout(encoded(data) + "\n")
        for events in ((printed, shown), (shown, printed)):
            run = run_of(*events)
            assert [kept.data for kept in run.pictures] == [picture(colour="blue")]

    def test_the_start_of_one_is_none(self) -> None:
        word = encoded(OURS)[:240]
        run = run_of(stdout(f"{word}\n"))
        assert run.stdout.text() == (
            "[240 characters of base64, the start of a picture]\n"
        )
        assert not run.pictures and not run.left_out

    def test_one_that_is_too_large_is_noted(self) -> None:
        png = padded_png(9_000)
        run = run_of(stdout(encoded(png)), max_image_bytes=8_000)
        assert run.stdout.text() == "[12,000 characters of base64]"
        assert run.left_out == {("picture", "9,000 bytes (the limit is 8,000)"): 1}

    @pytest.mark.parametrize("step", [1, 7, 1_000, 300_000])
    def test_one_that_comes_in_pieces_is_whole(self, step: int) -> None:
        png = padded_png(2_000_000 if step > 100 else 3_000)
        text = f"a data:image/png;base64,{encoded(png)} b\n"
        pieces = [text[at : at + step] for at in range(0, len(text), step)]
        run = run_of(*map(stdout, pieces))
        assert [kept.data for kept in run.pictures] == [png]
        assert run.stdout.text().startswith("a data:image/png;base64,[")
        assert run.stdout.text().endswith(
            " characters of base64: a picture of 8 x 6 pixels] b\n"
        )

    def test_one_in_a_long_line_is_whole(self) -> None:
        png = padded_png(3_000_000)
        stream = lines(stdout(f"a {encoded(png)}\n"))
        chunks = [stream[at : at + 65_536] for at in range(0, len(stream), 65_536)]
        run = run_of(*chunks)
        assert [kept.data for kept in run.pictures] == [png]
        assert run.stdout.text() == (
            "a [4,000,000 characters of base64: a picture of 8 x 6 pixels]\n"
        )

    def test_much_base64_is_measured_in_parts(self) -> None:
        word = "aB3+" + encoded(bytes(range(256)) * 6_000)
        run = run_of(stdout(word[: len(word) // 4 * 4]))
        parts = re.findall(r"\[([\d,]+) characters of base64\]", run.stdout.text())
        assert 1 < len(parts) < 10
        total = sum(int(part.replace(",", "")) for part in parts)
        assert total == len(word) // 4 * 4


@pytest.mark.parametrize(
    ("name", "value"), [("", "v"), (None, None), ("E", ["a"]), ("E", {"a": 1})]
)
def test_an_error_of_odd_fields_is_still_an_error(name: object, value: object) -> None:
    run = run_of({"type": "error", "name": name, "value": value, "traceback": None})
    assert run.error_name
