"""SVGs are drawn in a process that can do nothing else; files and JSON are written
whole."""

from __future__ import annotations

import io
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import builders
import pytest
from builders import empty_run
from PIL import Image

from config import Config
from pictures import delivery as images
from pictures.children import rasterized
from pictures.picture import JPEG, PNG, SVG, Picture
from pictures.publishing import Publisher
from proxy import create_app
from run import Run

SVG_TO_PNG = Path(images.__file__).with_name("svg_to_png.py")
XMLNS = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
MARK = (255, 0, 255)  # of the picture that no SVG may show
GREEN = (0, 128, 0)


def svg(inside: str, size: str = 'width="20" height="20"', before: str = "") -> bytes:
    return f"{before}<svg {XMLNS} {size}>{inside}</svg>".encode()


def png(colour: tuple[int, int, int] = MARK, kind: str = "PNG") -> bytes:
    return builders.picture(kind, colour, size=(20, 20))


def run_with(*pictures: bytes, kind: str = SVG, **settings: Any) -> Run:
    run = empty_run(**settings)
    run.pictures = [Picture(kind, data) for data in pictures]
    return run


def drawn(*pictures: bytes) -> Run:
    return rasterized(run_with(*pictures))


def colours(data: bytes) -> set[object]:
    with Image.open(io.BytesIO(data)) as image:
        counted = image.convert("RGB").getcolors(image.width * image.height)
        return {colour for _, colour in counted}


def child(document: bytes) -> subprocess.CompletedProcess[bytes]:
    """The renderer alone, without the look that is taken at a document first."""
    command = [sys.executable, "-I", str(SVG_TO_PNG)]
    return subprocess.run(
        command, input=document, capture_output=True, env={}, timeout=30
    )


class TestDrawing:
    def test_an_svg_becomes_a_png_on_white(self) -> None:
        run = drawn(svg('<rect width="10" height="20" fill="green"/>'))
        [picture] = run.pictures
        assert picture.media_type == PNG
        assert colours(picture.data) == {GREEN, (255, 255, 255)}
        assert not run.left_out

    def test_a_figure_of_matplotlib_is_drawn_in_its_size(self) -> None:
        """Sizes in pt at 72 to the inch, a style sheet, clip paths and uses of
        paths."""
        figure = svg(
            '<defs><style type="text/css">*{stroke-linejoin: round; stroke-linecap: '
            "butt}</style>"
            '<path id="m" d="M 0 0 L 9 9" style="stroke: #008000"/>'
            '<clipPath id="p"><rect x="0" y="0" width="300" '
            'height="300"/></clipPath></defs>'
            '<g clip-path="url(#p)"><use xlink:href="#m" x="50" y="50"/>'
            '<rect width="90" height="90" style="fill: #008000"/></g>',
            'width="460.8pt" height="345.6pt" viewBox="0 0 460.8 345.6" version="1.1"',
            '<?xml version="1.0" encoding="utf-8" standalone="no"?>\n<!DOCTYPE svg '
            "PUBLIC "
            '"-//W3C//DTD SVG 1.1//EN"\n  '
            '"http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">\n',
        )
        run = drawn(figure)
        [picture] = run.pictures
        with Image.open(io.BytesIO(picture.data)) as image:
            assert image.size == (614, 461)  # 96 to the inch
        assert GREEN in colours(picture.data)
        assert not run.left_out

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_a_picture_inside_the_document_is_drawn(self, kind: str) -> None:
        data = builders.encoded(png(GREEN, kind))
        link = f"data:image/{kind.lower()};base64,{data}"
        run = drawn(svg(f'<image width="20" height="20" xlink:href="{link}"/>'))
        assert len(run.pictures) == 1
        assert any(
            abs(green - 128) < 3 for _, green, _ in colours(run.pictures[0].data)
        )

    def test_text_in_fonts_is_missed_with_a_note(self) -> None:
        run = drawn(svg('<text x="1" y="9">hello</text>'))
        assert len(run.pictures) == 1
        assert run.left_out == {
            ("SVG text", "text is drawn from paths only (svg.fonttype: path)"): 1
        }

    def test_other_pictures_are_left_as_they_are_and_in_their_order(self) -> None:
        run = run_with()
        run.pictures = [
            Picture(JPEG, png(GREEN, "JPEG")),
            Picture(SVG, svg("")),
            Picture(SVG, b"<svg"),
            Picture(PNG, png()),
        ]
        jpeg, _, _, last = run.pictures
        run = rasterized(run)
        assert [picture.media_type for picture in run.pictures] == [JPEG, PNG, PNG]
        assert run.pictures[0] is jpeg and run.pictures[2] is last

    def test_a_png_that_comes_out_too_large_is_left_out(self) -> None:
        # Small enough to be drawn in time on a machine that is very busy.
        circles = "".join(
            f'<circle cx="{n * 37 % 200}" cy="{n * 91 % 200}" r="{n % 31}" '
            f'fill="#{n * 4099:06x}"/>'
            for n in range(200)
        )
        large = svg(circles, 'width="200" height="200"')
        run = rasterized(run_with(large, svg(""), max_image_bytes=10_000))
        assert len(run.pictures) == 1
        [((what, why), count)] = run.left_out.items()
        assert (what, count) == ("picture", 1)
        assert "10,000" in why


BROKEN = {
    "no XML": b"<svg but not one",
    "not UTF-8": svg("").replace(b"</svg>", b"\xff</svg>"),
    "UTF-16": svg("").decode().encode("utf-16"),
    "no size": svg("", 'width="0" height="0"'),
    "below zero": svg("", 'width="-5" height="5"'),
    "huge": svg("", 'width="100000" height="100000"'),
    "huger": svg("", 'width="1e9" height="1e9"'),
    "nested 200,000 deep": svg("<g>" * 200_000 + "</g>" * 200_000),
    "uses that multiply": svg(
        '<g id="a0"><rect width="1" height="1"/></g>'
        + "".join(
            f'<g id="a{n}">' + f'<use href="#a{n - 1}"/>' * 10 + "</g>"
            for n in range(1, 12)
        )
    ),
}


class TestLimits:
    @pytest.mark.parametrize("name", BROKEN)
    def test_an_svg_that_cannot_be_drawn_costs_that_picture_only(
        self, name: str
    ) -> None:
        for _ in range(3):
            started = time.monotonic()
            good = svg('<rect width="20" height="20" fill="green"/>')
            run = drawn(BROKEN[name], good)
            took_s = time.monotonic() - started
            assert took_s < 15
            if run.pictures:
                break
        if not run.pictures and took_s > 4:
            pytest.skip("this machine is too busy: no time was left for the good one")
        assert [colours(picture.data) for picture in run.pictures][-1:] == [{GREEN}]
        assert len(run.pictures) == 1
        [((what, why), count)] = run.left_out.items()
        assert (what, count) == ("picture", 1)
        assert "SVG" in why

    def test_a_slow_one_ends_with_the_time_that_a_request_has_left(self) -> None:
        slow = svg(
            '<filter id="f"><feTurbulence baseFrequency="0.001" '
            'numOctaves="2000000"/></filter>'
            '<rect width="20" height="20" filter="url(#f)"/>'
        )
        run = run_with(slow, slow)
        run.durations_s = {"create": 9.5, "run": 50.0}
        started = time.monotonic()
        run = rasterized(run)
        assert (
            time.monotonic() - started < 4
        )  # half a second is left, and 5 s would be the most
        assert run.pictures == []
        assert sum(run.left_out.values()) == 2

    def test_many_at_once_wait_for_each_other(self) -> None:
        runs = [run_with(svg("")) for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            all_drawn = list(threads.map(rasterized, runs))
        assert [len(run.pictures) for run in all_drawn] == [1] * 4

    def test_the_child_has_the_limits_that_it_promises(self) -> None:
        """Asked in a child that has set them, as the renderer does before it reads
        anything."""
        probe = (
            f"import sys; sys.path.insert(0, {str(SVG_TO_PNG.parent)!r})\n"
            "import runpy, resource, io\n"
            "class In: buffer = io.BytesIO(b'<svg/>')\n"
            "sys.stdin = In\n"
            "try: runpy.run_path(sys.argv[1], run_name='__main__')\n"
            "except BaseException: pass\n"
            "for what in (resource.RLIMIT_AS, resource.RLIMIT_CPU, "
            "resource.RLIMIT_NOFILE):\n"
            "    print(*resource.getrlimit(what), file=sys.stderr)\n"
        )
        command = [sys.executable, "-c", probe, str(SVG_TO_PNG)]
        child = subprocess.run(
            command, capture_output=True, check=True, timeout=30, env={}
        )
        told = child.stderr.decode()
        limits = [tuple(map(int, line.split())) for line in told.splitlines()]
        assert limits == [(1024**3, 1024**3), (5, 5), (3, 3)]
        assert (
            resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3
        )  # here nothing has changed


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that show the mark, and a listener that would serve nothing else."""
    folder = tmp_path_factory.mktemp("secret")
    (folder / "mark.png").write_bytes(png())
    (folder / "mark.svg").write_bytes(
        svg('<rect id="r" width="20" height="20" fill="#ff00ff"/>')
    )
    (folder / "mark.css").write_text("rect, svg { fill: #ff00ff }")
    return {
        "png": f"{folder}/mark.png",
        "svg": f"{folder}/mark.svg",
        "css": f"{folder}/mark.css",
    }


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


RECT = '<rect width="20" height="20"'
SQUARE = f'<svg {XMLNS} width="20" height="20">{RECT}/></svg>'
IMAGE = '<image width="20" height="20" '
ENTITY = '<?xml version="1.0"?><!DOCTYPE svg [%s]>'
# FILE, DRAWING, SHEET and HTTP stand for addresses; each row is inside of an svg, or
# all of it.
REFERENCES = {
    "href": IMAGE + 'href="FILE"/>',
    "xlink:href": IMAGE + 'xlink:href="FILE"/>',
    "file address": IMAGE + 'href="file://FILE"/>',
    "file address with a host": IMAGE + 'href="file://localhostFILE"/>',
    "relative path": IMAGE + 'href="../../../../../../../../../..FILE"/>',
    "single quotes": IMAGE + "href='FILE'/>",
    "spaces": IMAGE + 'href \n = \t "  FILE  "/>',
    "capitals": IMAGE + 'HREF="FILE" Xlink:Href="FILE"/>',
    "character references": IMAGE + 'href="&#47;FILE"/>',
    "all of it in character references": IMAGE + 'href="REFERENCES"/>',
    "another prefix": '<g xmlns:x="http://www.w3.org/1999/xlink">'
    + IMAGE
    + 'x:href="FILE"/></g>',
    "src": IMAGE + 'src="FILE"/>',
    "data and then a file": IMAGE + 'href="data:image/png;base64," xlink:href="FILE"/>',
    "data of no type": IMAGE + 'href="data:,FILE"/>',
    "a newline in the scheme": IMAGE + 'href="fi&#10;le://FILE"/>',
    "svg as an image": IMAGE + 'href="DRAWING"/>',
    "svg in data, with a file": IMAGE + 'href="data:image/svg+xml;base64,NESTED"/>',
    "svg in data called png": IMAGE + 'href="data:image/png;base64,NESTED"/>',
    "svg in data, not in base64": IMAGE
    + "href=\"data:image/svg+xml;utf8,&lt;svg xmlns='http://"
    "www.w3.org/2000/svg'>&lt;image width='20' height='20' href='FILE'/>&lt;/svg>\"/>",
    "use": '<use href="DRAWING#r"/>',
    "feImage": '<filter id="f"><feImage href="FILE"/></filter>'
    + RECT
    + ' filter="url(#f)"/>',
    "fill": RECT + ' fill="url(DRAWING#r)"/>',
    "quoted fill": RECT + " fill=\"url( 'FILE' )\"/>",
    "mask": RECT + ' mask="url(file://DRAWING#r)"/>',
    "style": RECT + ' style="fill: url(FILE); background: u\\72l(FILE)"/>',
    "pattern": '<pattern id="p" href="DRAWING#r"/>' + RECT + ' fill="url(#p)"/>',
    "font": "<style>@font-face { font-family: a; src: url(FILE) }</style>"
    + RECT
    + "/>",
    "@import": "<style>@import 'SHEET';</style>" + RECT + "/>",
    "@IMPORT": "<style>@IMPORT url(SHEET);</style>" + RECT + "/>",
    "escaped import": "<style>@\\69mport 'SHEET';</style>" + RECT + "/>",
    "import in CDATA": "<style><![CDATA[@import 'SHEET';]]></style>" + RECT + "/>",
    "foreignObject": f'<foreignObject><img xmlns="http://www.w3.org/1999/xhtml" '
    f'src="FILE"/>'
    f"</foreignObject>{RECT} fill-opacity='0'/>",
    "script": f'<script href="FILE">document.write(1)</script>{RECT}/>',
    "http": IMAGE + 'href="HTTP/mark.png"/>',
    "http without a scheme": IMAGE + 'href="//HOST/mark.png"/>',
    "http in a style": RECT + ' style="fill: url(HTTP/mark.svg#r)"/>',
    "http import": "<style>@import url(HTTP/mark.css);</style>" + RECT + "/>",
    "entity": ENTITY % "<!ENTITY e SYSTEM 'FILE'>" + f"<svg {XMLNS}>&e;</svg>",
    "entity in an attribute": ENTITY
    % "<!ENTITY e 'FILE'>"
    + f"<svg {XMLNS} width='20' "
    "height='20'><image width='20' height='20' href='&e;'/></svg>",
    "parameter entity": ENTITY % "<!ENTITY % e SYSTEM 'SHEET'> %e;" + f"<svg {XMLNS}/>",
    "stylesheet": '<?xml-stylesheet href="SHEET"?>' + SQUARE,
    "doctype": '<!DOCTYPE svg SYSTEM "HTTP/x.dtd">' + SQUARE,
}


def document(row: str, files: dict[str, str], listener: socket.socket) -> bytes:
    host = f"127.0.0.1:{listener.getsockname()[1]}"
    nested = builders.encoded(svg(f'{IMAGE} href="{files["png"]}"/>'))
    text = (
        row.replace("NESTED", nested)
        .replace("HTTP", f"http://{host}")
        .replace("HOST", host)
    )
    text = text.replace("REFERENCES", "".join(f"&#x{ord(c):x};" for c in files["png"]))
    text = text.replace("FILE", files["png"]).replace("DRAWING", files["svg"])
    text = text.replace("SHEET", files["css"])
    return text.encode() if "<svg" in row and "data:" not in row else svg(text)


def assert_not_shown(data: bytes, listener: socket.socket) -> None:
    assert MARK not in colours(data)
    with pytest.raises(BlockingIOError):
        listener.accept()


class TestReferences:
    def test_the_mark_would_be_seen(self, files: dict[str, str]) -> None:
        data = builders.encoded(Path(files["png"]).read_bytes())
        told = child(svg(f'{IMAGE} href="data:image/png;base64,{data}"/>'))
        assert MARK in colours(told.stdout)
        assert MARK in colours(child(Path(files["svg"]).read_bytes()).stdout)

    @pytest.mark.parametrize("name", REFERENCES)
    def test_nothing_outside_is_shown_or_asked(
        self, name: str, files: dict[str, str], listener: socket.socket
    ) -> None:
        run = drawn(document(REFERENCES[name], files, listener))
        for picture in run.pictures:
            assert_not_shown(picture.data, listener)
        assert run.pictures or sum(run.left_out.values()) == 1

    @pytest.mark.parametrize("name", REFERENCES)
    def test_nor_by_the_renderer_alone(
        self, name: str, files: dict[str, str], listener: socket.socket
    ) -> None:
        told = child(document(REFERENCES[name], files, listener))
        if told.returncode == 0:
            assert_not_shown(told.stdout, listener)
        else:
            assert told.stdout == b""

    @pytest.mark.parametrize(
        "name", ["href", "xlink:href", "spaces", "fill", "@import", "http"]
    )
    def test_such_an_svg_is_not_even_given_to_it(
        self, name: str, files: dict[str, str], listener: socket.socket
    ) -> None:
        run = drawn(document(REFERENCES[name], files, listener))
        assert run.pictures == []
        [(_, why)] = run.left_out
        assert "outside itself" in why


class TestPublishing:
    url = "http://pictures.example/x"

    def test_a_picture_has_a_name_of_its_own_that_nobody_can_guess(
        self, tmp_path: Path
    ) -> None:
        publisher = Publisher(tmp_path, self.url)
        run = run_with(png(), png(GREEN), kind=PNG)
        run.pictures.append(Picture(JPEG, png(kind="JPEG")))
        names = [
            url.removeprefix("http://pictures.example/x/")
            for url in publisher.publish(run)
        ]
        assert [name.rpartition(".")[2] for name in names] == ["png", "png", "jpg"]
        assert all(re.fullmatch(r"e2b-[\w-]{32}\.(png|jpg)", name) for name in names)
        assert sorted(os.listdir(tmp_path)) == sorted(set(names))
        for name, picture in zip(names, run.pictures, strict=True):
            assert publisher.find(name) == (tmp_path / name, picture.media_type)
            assert (tmp_path / name).read_bytes() == picture.data

    @pytest.mark.parametrize("umask", [0o077, 0o000, 0o777])
    def test_it_can_be_read_by_all_and_written_by_none_whatever_the_umask(
        self, tmp_path: Path, umask: int
    ) -> None:
        before = os.umask(umask)
        try:
            [url] = Publisher(tmp_path, self.url).publish(run_with(png(), kind=PNG))
        finally:
            os.umask(before)
        assert (tmp_path / url.rpartition("/")[2]).stat().st_mode & 0o7777 == 0o644

    def test_it_is_never_seen_half_written(self, tmp_path: Path) -> None:
        """Whoever lists the folder meanwhile finds whole pictures under their names."""
        data, done, torn = png() + bytes(3_000_000), threading.Event(), []

        def watch() -> None:
            while not done.is_set():
                for path in tmp_path.glob("*.png"):
                    if path.stat().st_size != len(data):
                        torn.append(path.name)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            Publisher(tmp_path, self.url).publish(run_with(*[data] * 20, kind=PNG))
        finally:
            done.set()
            watcher.join()
        assert torn == []

    def test_what_is_past_its_time_goes_and_nothing_that_is_not_its_own(
        self, tmp_path: Path
    ) -> None:
        own = "e2b-" + "A" * 32
        gone = [f"{own}.png", f"{own}.jpg", f"{own}.png.part"]
        kept = [
            "mine.png",
            "e2b-short.png",
            f"{own}.gif",
            f"x{own}.png",
            f"{own}.png.bak",
        ]
        young = f"e2b-{'B' * 32}.png"
        for name in (*gone, *kept, young):
            (tmp_path / name).write_bytes(b"x")
        for name in (*gone, *kept):
            os.utime(tmp_path / name, (0, time.time() - 2 * 3600 - 60))
        os.utime(tmp_path / young, (0, time.time() - 2 * 3600 + 60))
        Publisher(tmp_path, self.url).remove_old(ttl_hours=2)
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, young])

    def test_without_a_folder_nothing_is_removed(self) -> None:
        before = threading.active_count()
        app = create_app(Config(e2b_api_key="e2b_0", image_ttl_hours=1))
        assert threading.active_count() == before
        app.extensions["pool"].close()

    def test_a_folder_that_is_not_there_costs_the_pictures(
        self, tmp_path: Path
    ) -> None:
        run = run_with(png(), png(GREEN), kind=PNG)
        assert Publisher(tmp_path / "none", self.url).publish(run) == []
        assert run.left_out == {
            ("picture", "it could not be stored by this service"): 2
        }

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "../mark.png",
            "/etc/passwd",
            "mark.png",
            "e2b-.png",
            f"e2b-{'A' * 32}.png\n",
        ],
    )
    def test_nothing_else_is_served(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "mark.png").write_bytes(png())
        assert Publisher(tmp_path, self.url).find(name) is None

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        name = f"e2b-{'A' * 32}.png"
        (tmp_path / "secret").write_bytes(png())
        (tmp_path / name).symlink_to(tmp_path / "secret")
        assert Publisher(tmp_path, self.url).find(name) is None


def test_a_check_of_references_is_linear_in_the_length_of_the_svg() -> None:
    """Quadratic, it would hold every thread of the service for hours here."""
    blanks = " " * 4_000_000
    for text in (f"url({blanks}#a)", f'href={blanks}"#a"', f"href{blanks}= '#a'"):
        made = rasterized(run_with(f"<svg>{text}</svg>".encode()))
        assert len(made.pictures) + made.left_out.total() == 1
