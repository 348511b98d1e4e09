"""E2B's stream in, a `Run` out: the same however it is cut, and bounded whatever it holds."""

from __future__ import annotations

import base64
import io
import json
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from PIL import Image

from config import MAX_REPLY_IMAGE_BYTES, Config
from pictures import JPEG, MAX_PIXELS, PNG, SVG, BadPicture, picture_from
from run import Clipped, Run
from stream import StreamReader

LONG = 300 * 1024  # more than the reader decodes at a time
LIMIT = 30_000
MAIN = {"extra": {}, "is_main_result": True}
SVG_PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'


def line(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode() + b"\n"


def out(text: str, kind: str = "stdout") -> bytes:
    return line(kind, text=text, timestamp="2026-11-22T18:24:32.893974+00:00")


def result(**fields: Any) -> bytes:
    return line(
        "result", **fields, **{name: MAIN[name] for name in MAIN if name not in fields}
    )


END = line("end_of_execution")


def read(*chunks: bytes, **settings: Any) -> StreamReader:
    config = Config(**settings)
    reader = StreamReader(Run.empty(config.max_output_chars), config)
    for chunk in chunks:
        reader.feed(chunk)
    return reader


def run_of(*chunks: bytes, **settings: Any) -> Run:
    reader = read(*chunks, **settings)
    assert not reader.broken
    return reader.run


def facts(reader: StreamReader) -> tuple[object, ...]:
    """All that a stream came to, in a form that can be compared."""
    run = reader.run
    outputs = [
        (p.head, p.tail, p.missing) for p in (run.stdout, run.stderr, run.values)
    ]
    error = (run.error_name, run.error_value, run.traceback)
    return (*outputs, error, run.pictures, run.left_out, reader.ended, reader.broken)


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 8), shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256, 0)).save(file, kind)
    return file.getvalue()


def padded_png(size_bytes: int, shade: int = 0) -> bytes:
    """A valid PNG of exactly so many bytes."""
    png = picture(shade=shade)
    body = b"tEXt" + b"x" * (size_bytes - len(png) - 12)
    chunk = (
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    )
    return png[:-12] + chunk + png[-12:]


def png_of_pixels(width: int, height: int) -> bytes:
    png = bytearray(picture())
    png[16:24] = struct.pack(">2I", width, height)
    return bytes(png)


def jpeg_of_pixels(width: int, height: int) -> bytes:
    jpeg = bytearray(picture("JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">2H", height, width)
    return bytes(jpeg)


STREAM = b"".join(
    [
        line("number_of_executions", execution_count=1),
        out('héllo \U0001f600 \\ " \u2028 \ud800\n'),
        b'{"type":"stdout","text":"raw \xc3\xa9 \xf0\x9f\x98\x80"}\n\n',
        out("oops", "stderr"),
        line("keepalive"),
        result(text="3", json=[1, {"a": None}]),
        result(text="<Figure size 8x8 with 1 Axes>", png=in_base64(picture())),
        line("error", name="ValueError", value="x", traceback="a\nb"),
        END,
    ]
)


class TestClipped:
    def test_a_text_within_its_limit_is_whole(self) -> None:
        clipped = Clipped(10)
        for piece in ("abc", "", "defgh", "ij"):
            clipped.add(piece)
        assert clipped.head + clipped.tail == "abcdefghij"
        assert clipped.missing == 0

    @pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
    def test_head_and_tail_are_kept_however_it_grows(self, step: int) -> None:
        text, clipped = "".join(map(chr, range(100, 1100))), Clipped(20)
        for start in range(0, len(text), step):
            clipped.add(text[start : start + step])
        assert (clipped.head, clipped.tail) == (text[:10], text[-10:])
        assert clipped.missing == len(text) - 20


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
        reader = read(out("kept"), END.rstrip(b"\n"))
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
        event = {
            "type": kind,
            "text": text,
            "timestamp": "2026-11-22T18:24:32.893974+00:00",
        }
        stream = json.dumps(event, ensure_ascii=ascii_only).encode() + b"\n" + END
        near = [256 * 1024 + offset for offset in range(13)]
        end = len(stream) - len(END)
        for cut in (*near, *range(end - 60, end + 1, 3)):
            reader = read(stream[:cut], stream[cut:], max_output_chars=1_000_000)
            run = reader.run
            kept = getattr(run, kind)
            assert kept.head + kept.tail == text, cut
            assert reader.ended and not reader.broken
            assert not run.left_out


class TestLongOutput:
    @pytest.mark.parametrize("kind", ["stdout", "stderr"])
    @pytest.mark.parametrize("lines", ["many", "one"])
    def test_head_and_tail_are_kept_and_the_rest_is_counted(
        self, kind: str, lines: str
    ) -> None:
        text = "".join(f"{number:09}\n" for number in range(500_000))  # 5 MB
        pieces = (
            [text]
            if lines == "one"
            else [text[i : i + 4000] for i in range(0, len(text), 4000)]
        )
        stream = b"".join(out(piece, kind) for piece in pieces if piece) + END
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
        reader.feed(b'"}\n' + END)
        assert peak_bytes < 4_000_000
        assert reader.run.stdout.missing == 800 * 65_536 - LIMIT
        assert reader.ended and not reader.broken

    @pytest.mark.parametrize("name", ["png", "jpeg", "svg", "html", "text", "pdf"])
    def test_a_result_over_every_limit_is_dropped_with_its_kind_and_size(
        self, name: str
    ) -> None:
        fields = (
            result(text="<Figure>", **{name: "MARK"})
            if name != "text"
            else result(text="MARK")
        )
        start, end = fields.split(b"MARK")
        piece = b"x" * 65_536
        tracemalloc.start()
        try:
            reader = read(out("before"), start, *[piece] * 800, end, out("after"), END)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 45_000_000  # three pictures as base64, and their copies
        [(what, why)] = reader.run.left_out
        assert what == "output"
        assert why == f"52.4 MB of {name}, which is over every limit"
        assert reader.run.stdout.head == "beforeafter"
        assert reader.ended and not reader.broken

    def test_an_error_of_2_mb_keeps_its_last_lines(self) -> None:
        traceback = "\x1b[31mframe\x1b[0m\n" * 150_000 + "ValueError: the end"
        run = run_of(
            line("error", name="n" * 9999, value="v" * 2_000_000, traceback=traceback)
        )
        assert run.traceback.endswith("frame\x1b[0m\nValueError: the end")
        assert len(run.traceback) < 10 * LIMIT
        assert "characters cut" in run.traceback
        assert run.error_name == "n" * 200
        assert 0 < len(run.error_value) <= LIMIT
        assert set(run.error_value) == {"v"}

    def test_notes_are_bounded_too(self) -> None:
        run = Run.empty(LIMIT)
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
        reader = read(out("before"), bad + b"\n", END)
        assert reader.run.stdout.head == "before"
        assert reader.broken.startswith("a line of E2B's answer could not be read (")

    @pytest.mark.parametrize(
        "kind", ["chart", "number_of_executions", "unexpected_endpoint", 7]
    )
    def test_an_unknown_kind_of_event_is_passed_over(self, kind: object) -> None:
        reader = read(json.dumps({"type": kind}).encode() + b"\n", out("after"), END)
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
        reader = read(out("before"), start, b"\n", END)
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
            ("png", SVG_PICTURE.encode(), SVG),
        ],
    )
    def test_are_known_by_their_first_bytes(
        self, label: str, data: bytes, media_type: str
    ) -> None:
        [kept] = run_of(result(**{label: in_base64(data)})).pictures
        assert (kept.media_type, kept.data) == (media_type, data)

    @pytest.mark.parametrize(
        "text",
        [
            SVG_PICTURE,
            f"\n  {SVG_PICTURE}",
            f'<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN">{SVG_PICTURE}',
            f"<!-- é -->{SVG_PICTURE}",
        ],
    )
    def test_an_svg_is_text_and_not_base64(self, text: str) -> None:
        [kept] = run_of(result(svg=text)).pictures
        assert (kept.media_type, kept.data) == (SVG, text.encode())

    @pytest.mark.parametrize("newline", ["\n", "\r\n", " "])
    def test_base64_may_have_newlines(self, newline: str) -> None:
        text = in_base64(picture())
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
            (in_base64(picture())[:-2], "not valid base64"),
            (in_base64(b"MZ\x90\x00 an executable"), "neither PNG, JPEG nor SVG"),
            (
                in_base64(b"<html><script>alert(1)</script><svg></svg>"),
                "neither PNG, JPEG nor SVG",
            ),
            (in_base64(b"GIF89a" + bytes(40)), "neither PNG, JPEG nor SVG"),
            (
                in_base64(picture()[:20]),
                "8 x 0 pixels (the limit is 50,000,000 in all)",
            ),
        ],
    )
    def test_what_is_none_is_left_out_with_the_reason(
        self, text: str, reason: str
    ) -> None:
        run = run_of(result(text="<Figure>", png=text), out("after"))
        assert run.pictures == []
        assert run.left_out == {("picture", reason): 1}
        assert run.stdout.head == "after"

    @pytest.mark.parametrize(
        "svg", ["<b>no</b>", "", "<script>1</script><svg></svg>", "\ud800"]
    )
    def test_an_svg_that_is_none_is_no_picture(self, svg: str) -> None:
        assert run_of(result(text="<Figure>", svg=svg)).pictures == []

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
        png, jpeg = in_base64(picture("PNG")), in_base64(picture("JPEG"))
        both = run_of(
            result(text="<PIL.Image.Image>", jpeg=jpeg, png=png, svg=SVG_PICTURE)
        )
        assert [kept.media_type for kept in both.pictures] == [PNG]
        second = run_of(result(png="broken!", jpeg=jpeg, svg=SVG_PICTURE))
        assert [kept.media_type for kept in second.pictures] == [JPEG]
        assert not second.left_out
        third = run_of(result(png="broken!", jpeg="broken!", svg=SVG_PICTURE))
        assert [kept.media_type for kept in third.pictures] == [SVG]

    def test_the_text_beside_a_picture_is_not_a_result(self) -> None:
        run = run_of(
            result(text="<Figure size 640x480 with 1 Axes>", png=in_base64(picture()))
        )
        assert run.values.head == ""

    def test_the_same_bytes_twice_are_one_picture_without_a_note(self) -> None:
        png = in_base64(picture())
        run = run_of(result(png=png), result(png=png), result(jpeg=png))
        assert len(run.pictures) == 1
        assert not run.left_out

    def test_stand_in_the_order_of_display(self) -> None:
        pngs = [picture(shade=shade) for shade in range(5)]
        run = run_of(*(result(png=in_base64(png)) for png in pngs))
        assert [kept.data for kept in run.pictures] == pngs

    def test_200_figures_are_the_first_10_and_a_count(self) -> None:
        pngs = [picture(shade=shade) for shade in range(200)]
        run = run_of(*(result(png=in_base64(png)) for png in pngs))
        assert [kept.data for kept in run.pictures] == pngs[:10]
        assert run.left_out == {("picture", "a reply holds at most 10 pictures"): 190}

    def test_none_are_kept_when_none_are_wanted(self) -> None:
        run = run_of(result(png=in_base64(picture())), max_images=0)
        assert run.pictures == []
        assert run.left_out == {("picture", "a reply holds at most 0 pictures"): 1}

    def test_one_of_as_many_bytes_as_allowed_is_taken_and_one_more_is_not(self) -> None:
        limit = Config().max_image_bytes
        assert len(run_of(result(png=in_base64(padded_png(limit)))).pictures) == 1
        run = run_of(result(png=in_base64(padded_png(limit + 1))))
        assert run.left_out == {
            ("picture", "5,242,881 bytes (the limit is 5,242,880)"): 1
        }

    def test_a_30_mb_one_is_left_out(self) -> None:
        stream = result(text="<Figure>", png=in_base64(padded_png(30_000_000))) + END
        run = run_of(
            *(stream[at : at + 65_536] for at in range(0, len(stream), 65_536))
        )
        assert run.pictures == []
        assert run.left_out == {
            ("output", "40.0 MB of png, which is over every limit"): 1
        }

    def test_all_together_have_a_limit_and_a_smaller_one_still_fits(self) -> None:
        sizes = [4_000_000, 4_000_000, 4_000_000, MAX_REPLY_IMAGE_BYTES - 8_000_000]
        pngs = [padded_png(size, shade) for shade, size in enumerate(sizes)]
        run = run_of(*(result(png=in_base64(png)) for png in pngs))
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
        ("fields", "name"),
        [
            (
                {"text": "<IPython.core.display.HTML object>", "html": "<b>h</b>"},
                "html",
            ),
            ({"html": "<b>h</b>"}, "html"),
            (
                {"text": "<IPython.core.display.Javascript object>", "javascript": "1"},
                "javascript",
            ),
            ({"extra": {"image/gif": "R0lGOD"}}, "gif"),
            ({"text": "<x.Image object>", "extra": {"image/webp": "UklGR"}}, "webp"),
            ({"text": "<x.Pdf object>", "pdf": "JVBERi"}, "pdf"),
        ],
    )
    def test_a_format_that_is_not_shown_is_named(
        self, fields: dict[str, Any], name: str
    ) -> None:
        run = run_of(result(**fields))
        assert run.values.head == ""
        assert run.left_out == {(f"{name} output", "this format is not shown"): 1}

    @pytest.mark.parametrize(
        ("fields", "name"),
        [({"pdf": "JVBERi"}, "pdf"), ({"extra": {"image/gif": "R0"}}, "gif")],
    )
    def test_a_lost_picture_is_named_even_beside_a_text(
        self, fields: dict[str, Any], name: str
    ) -> None:
        run = run_of(result(text="shown", **fields))
        assert run.values.head == "shown"
        assert run.left_out == {(f"{name} output", "this format is not shown"): 1}

    def test_html_beside_a_text_or_a_picture_is_no_loss(self) -> None:
        run = run_of(
            result(text="table", html="<table>"),
            result(png=in_base64(picture()), html="x"),
        )
        assert not run.left_out


@pytest.mark.parametrize(
    ("name", "value"), [("", "v"), (None, None), ("E", ["a"]), ("E", {"a": 1})]
)
def test_an_error_of_odd_fields_is_still_an_error(name: object, value: object) -> None:
    run = run_of(line("error", name=name, value=value, traceback=None))
    assert run.error_name
