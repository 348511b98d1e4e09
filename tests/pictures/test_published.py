"""Pictures as files: IMAGE_DIR and IMAGE_URL, the links in a reply, and who may read
what."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import socket
import time
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import requests
from builders import RED_SVG, figure, picture, result
from local_e2b import LocalE2B
from PIL import Image

from conftest import OK_RUN, Service, http, text_of, urls_of

API_KEY = "a-key-that-is-long-enough-to-be-one"
ADDRESS = "https://pictures.example/images"
NAME = r"[A-Za-z0-9_-]{22,}\.(?:png|jpg)"
# What an outsider could try has the form of the service's own names.
OWN_NAME = "e2b-" + 32 * "A" + ".png"
SECRET = b"\x89PNG\r\n\x1a\n a secret outside of the folder"


# --- services -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that LibreChat serves."""
    return tmp_path_factory.mktemp("librechat") / "e2b"


@pytest.fixture(scope="module")
def linking_service(
    start_shared: Callable[..., Service], linked_folder: Path
) -> Service:
    """The service whose pictures LibreChat serves; as strict as a process can be about
    files."""
    linked_folder.mkdir()
    umask = os.umask(0o077)
    try:
        return start_shared(IMAGE_DIR=str(linked_folder), IMAGE_URL="/images/e2b")
    finally:
        os.umask(umask)


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the service serves: things lie in and beside it that are not its
    own."""
    outside = tmp_path_factory.mktemp("served")
    folder = outside / "images"
    folder.mkdir()
    (outside / OWN_NAME).write_bytes(SECRET)
    (outside / "secret.png").write_bytes(SECRET)
    (folder / "holiday.png").write_bytes(SECRET)
    (folder / f"{OWN_NAME}.part").write_bytes(SECRET)
    (folder / OWN_NAME.replace("AAA", "LLL")).symlink_to(outside / OWN_NAME)
    (folder / OWN_NAME.replace("AAA", "DDD")).mkdir()
    (folder / "folder").mkdir()
    (folder / "folder" / OWN_NAME).write_bytes(SECRET)
    return folder


@pytest.fixture(scope="module")
def keyed_serving_service(
    start_shared: Callable[..., Service], served_folder: Path
) -> Service:
    """The service that serves its pictures itself, and has an API key."""
    return start_shared(
        IMAGE_DIR=str(served_folder), IMAGE_URL=ADDRESS, PROXY_API_KEY=API_KEY
    )


# --- what a sandbox draws, and what is sent and read ----------------------------------


PNG, JPEG = picture("PNG"), picture("JPEG")


def shows(*pictures: bytes | str) -> dict[str, Any]:
    """A script with runs that print a line and show these pictures; a text is an
    SVG."""
    events: list[dict[str, Any]] = [*OK_RUN["events"]]
    for data in pictures:
        if isinstance(data, str):
            events.append(result("<Figure>", svg=data))
        else:
            events.append(figure(data))
    return {"run": {"events": events}}


def execute(service: Service, code: str = "draw()") -> requests.Response:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    body = {"code": code}
    return http.post(f"{service.url}/execute", json=body, headers=headers, timeout=30)


def name_of(url: str) -> str:
    return url.rpartition("/")[2]


def get_raw(service: Service, target: str | bytes) -> tuple[int, bytes]:
    """GET this target, sent as it is; returns the status and the body."""
    target = target.encode() if isinstance(target, str) else target
    with socket.create_connection(
        ("127.0.0.1", service.port), timeout=30
    ) as connection:
        connection.sendall(
            b"GET "
            + target
            + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        with contextlib.closing(HTTPResponse(connection)) as response:
            response.begin()
            return response.status, response.read()


# --- the reply ------------------------------------------------------------------------


def test_the_reply_carries_links_in_both_places_and_the_files_are_the_same_bytes(
    linking_service: Service, e2b: LocalE2B, linked_folder: Path
) -> None:
    e2b.set_script(shows(PNG, JPEG))
    before = set(linked_folder.iterdir())
    response = execute(linking_service)
    first, second = urls_of(response)
    assert re.fullmatch(rf"/images/e2b/{NAME}", first) and first.endswith(".png")
    assert re.fullmatch(rf"/images/e2b/{NAME}", second) and second.endswith(".jpg")
    assert (linked_folder / name_of(first)).read_bytes() == PNG
    assert (linked_folder / name_of(second)).read_bytes() == JPEG
    assert {file.name for file in set(linked_folder.iterdir()) - before} == {
        name_of(first),
        name_of(second),
    }
    output, links, echo = text_of(response).split("\n\n")
    assert output == "**Console Output:**\n```\nok\n```"
    ask, *lines = links.split("\n")
    assert "user" in ask and "image" in ask and len(ask) < 100
    assert lines == [f"![image 1]({first})", f"![image 2]({second})"]
    assert echo == "**Executed Code:**\n```python\ndraw()\n```"
    assert response.json()[1]["content"][0] == {
        "type": "image_url",
        "image_url": {"url": first},
    }
    assert "base64" not in response.text


def test_a_run_without_pictures_asks_for_nothing_to_be_shown(
    linking_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script(shows())
    response = execute(linking_service)
    assert text_of(response) == (
        "**Console Output:**\n```\nok\n```\n\n**Executed Code:**\n```python\n"
        "draw()\n```"
    )
    assert urls_of(response) == []


def test_a_picture_is_readable_by_another_user_whatever_the_umask(
    linking_service: Service, e2b: LocalE2B, linked_folder: Path
) -> None:
    e2b.set_script(shows(PNG))
    [url] = urls_of(execute(linking_service))
    assert (linked_folder / name_of(url)).stat().st_mode & 0o777 == 0o644


def test_the_same_picture_has_another_name_each_time_that_nobody_can_guess(
    linking_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script(shows(PNG))
    names = [name_of(urls_of(execute(linking_service))[0]) for _ in range(8)]
    assert len(set(names)) == 8
    # At 6 bits a character, those in which the names differ make 130 bits or more.
    assert 6 * sum(len(set(column)) > 1 for column in zip(*names, strict=True)) >= 130


def test_an_svg_is_published_as_a_png_and_never_as_itself(
    linking_service: Service, e2b: LocalE2B, linked_folder: Path
) -> None:
    e2b.set_script(shows(RED_SVG))
    [url] = urls_of(execute(linking_service))
    assert url.endswith(".png")
    with Image.open(linked_folder / name_of(url)) as image:
        assert (image.format, image.size) == ("PNG", (40, 30))
        assert image.convert("RGB").getcolors() == [(1200, (255, 0, 0))]
    assert not [
        file for file in linked_folder.iterdir() if b"<svg" in file.read_bytes()
    ]


def test_an_svg_that_cannot_be_drawn_costs_that_picture_only(
    linking_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script(
        shows(RED_SVG.replace("<rect", '<image href="/etc/passwd"/><rect'), PNG)
    )
    response = execute(linking_service)
    assert len(urls_of(response)) == 1
    assert re.search(
        "Note: 1 .*left out: .*refers to something outside itself", text_of(response)
    )


def test_over_mcp_pictures_stay_in_the_reply_and_nothing_is_written(
    linking_service: Service, e2b: LocalE2B, linked_folder: Path
) -> None:
    e2b.set_script(shows(PNG))
    before = set(linked_folder.iterdir())
    params = {"name": "execute_python", "arguments": {"code": "draw()"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    result = http.post(f"{linking_service.url}/mcp", json=message, timeout=10).json()[
        "result"
    ]
    text, image = result["content"]
    assert base64.b64decode(image["data"]) == PNG
    assert "![" not in text["text"]
    assert set(linked_folder.iterdir()) == before


def test_the_log_tells_of_pictures_and_never_their_names(
    linking_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script(shows(PNG))
    [url] = urls_of(execute(linking_service, "draw('this one')"))
    lines = linking_service.requests_logged()
    assert (lines[-1]["pictures"], lines[-1]["picture_bytes"]) == (1, len(PNG))
    assert name_of(url) not in "".join(linking_service.lines)


# --- served by the service itself -----------------------------------------------------


@pytest.mark.parametrize(
    ("data", "media_type"),
    [(PNG, "image/png"), (JPEG, "image/jpeg")],
    ids=["PNG", "JPEG"],
)
def test_a_picture_is_served_to_whoever_has_its_link_as_an_image_and_nothing_else(
    keyed_serving_service: Service, e2b: LocalE2B, data: bytes, media_type: str
) -> None:
    e2b.set_script(shows(data))
    [url] = urls_of(execute(keyed_serving_service))
    assert re.fullmatch(rf"{ADDRESS}/{NAME}", url)
    response = http.get(
        f"{keyed_serving_service.url}/images/{name_of(url)}", timeout=30
    )  # without the API key
    assert (response.status_code, response.content) == (200, data)
    assert response.headers["Content-Type"] == media_type
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "immutable" in response.headers["Cache-Control"]
    assert "max-age=31536000" in response.headers["Cache-Control"]
    policy = response.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "sandbox"} <= set(policy)


def test_the_page_may_show_the_pictures_that_the_service_serves(
    keyed_serving_service: Service, linking_service: Service
) -> None:
    def sources(service: Service) -> list[str]:
        policy = http.get(f"{service.url}/", timeout=30).headers[
            "Content-Security-Policy"
        ]
        [sources] = [
            rule.split()[1:]
            for rule in policy.split("; ")
            if rule.startswith("img-src")
        ]
        return sources

    assert sources(linking_service) == ["'self'", "data:"]
    *others, address = sources(keyed_serving_service)
    assert others == ["'self'", "data:"]
    # CSP: a path matches what is below it only when it ends in a slash.
    assert address in ("https://pictures.example", f"{ADDRESS}/")


def test_what_librechat_serves_is_served_here_under_an_address_of_its_own(
    linking_service: Service, e2b: LocalE2B
) -> None:
    e2b.set_script(shows(PNG))
    [url] = urls_of(execute(linking_service))
    own = http.get(f"{linking_service.url}/images/{name_of(url)}", timeout=30)
    assert (own.status_code, own.content) == (200, PNG)
    assert http.get(linking_service.url + url, timeout=30).status_code == 404


def test_a_name_that_is_none_of_a_picture_is_404(
    keyed_serving_service: Service,
) -> None:
    response = http.get(f"{keyed_serving_service.url}/images/{OWN_NAME}", timeout=30)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
    assert response.headers["Cache-Control"] == "no-store"


TARGETS = {
    "..": f"/images/../{OWN_NAME}",
    ".. twice": f"/images/x/../../{OWN_NAME}",
    "%2e%2e": f"/images/%2e%2e/{OWN_NAME}",
    "%2e%2e%2f": f"/images/%2e%2e%2f{OWN_NAME}",
    "%2E%2E%2Fsecret.png": "/images/%2E%2E%2Fsecret.png",
    "%252e%252e%252f": f"/images/%252e%252e%252f{OWN_NAME}",
    "..%5c": f"/images/..%5c{OWN_NAME}",
    "..%c0%af": f"/images/..%c0%af{OWN_NAME}",
    "..;": f"/images/..;/{OWN_NAME}",
    "a folder in it": f"/images/folder/{OWN_NAME}",
    "a folder in it, encoded": f"/images/folder%2f{OWN_NAME}",
    "//etc/passwd": "/images//etc/passwd",
    "%2fetc%2fpasswd": "/images/%2fetc%2fpasswd",
    "an absolute path": "/images/{folder}/holiday.png",
    "an absolute path, encoded": "/images/%2f{folder}%2fholiday.png",
    "an absolute address": f"http://localhost/images/../{OWN_NAME}",
    "a scheme": f"/images/file:///{OWN_NAME}",
    "a foreign file": "/images/holiday.png",
    "a .part file": f"/images/{OWN_NAME}.part",
    "a link to outside": f"/images/{OWN_NAME.replace('AAA', 'LLL')}",
    "a folder with such a name": f"/images/{OWN_NAME.replace('AAA', 'DDD')}",
    "a folder": "/images/folder",
    "the folder itself": "/images/",
    "the folder's dot": "/images/.",
    "the folder's parent": "/images/..",
    "NUL": "/images/%00",
    "a NUL after a name": f"/images/{OWN_NAME}%00",
    "a NUL and another suffix": f"/images/{OWN_NAME}.part%00.png",
    "a newline after a name": f"/images/{OWN_NAME}%0a",
    "a bare NUL": b"/images/\0.png",
    "bytes that are no UTF-8": b"/images/%ff%fe.png",
    "a name in another case": f"/images/{OWN_NAME.lower()}",
    "a wildcard": "/images/*.png",
    "4,000 characters": f"/images/{'A' * 4000}.png",
}


@pytest.mark.parametrize("row", TARGETS)
def test_nothing_but_a_picture_of_its_own_making_is_served(
    keyed_serving_service: Service, served_folder: Path, row: str
) -> None:
    target = TARGETS[row]
    if isinstance(target, str):
        target = target.replace("{folder}", str(served_folder))
    status, body = get_raw(keyed_serving_service, target)
    # A NUL that is not encoded, and a line this long, are no request to gunicorn.
    assert status == 404 or (
        row in ("a bare NUL", "4,000 characters") and status == 400
    )
    assert SECRET not in body and b"root:" not in body


def test_the_rows_above_fail_for_their_names_and_not_for_want_of_a_picture(
    keyed_serving_service: Service, e2b: LocalE2B, served_folder: Path
) -> None:
    e2b.set_script(shows(PNG))
    [url] = urls_of(execute(keyed_serving_service))
    name = name_of(url)
    for target in (
        f"/images/{name}",
        f"http://localhost/images/{name}",
        f"/images/{name}?x=/..",
        # Slashes too many change no path: `//` is `/`, and one at the end is none.
        f"//images/{name}/",
        f"/images/{name}%2f",
    ):
        assert get_raw(keyed_serving_service, target) == (200, PNG)
    for target in (f"/images/{name}%00", f"/images/{name}/x", f"/{name}"):
        assert get_raw(keyed_serving_service, target)[0] == 404
    assert (served_folder / name).is_file()


# --- a folder that cannot be written --------------------------------------------------


def test_a_folder_that_cannot_be_written_costs_the_picture_and_not_the_reply(
    start_shared: Callable[..., Service],
    e2b: LocalE2B,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("unwritable") / "images"
    path.mkdir()
    service = start_shared(IMAGE_DIR=str(path), IMAGE_URL=ADDRESS)
    # A file in its place: root, who may run this test, can write into every folder.
    path.rmdir()
    path.write_text("a file")
    e2b.set_script(shows(PNG, JPEG))
    response = execute(service)
    assert response.headers["X-Run-Outcome"] == "ok"
    assert urls_of(response) == []
    assert text_of(response).startswith(
        "**Console Output:**\n```\nok\n```\n\nNote: 2 pictures left"
    )
    assert "could not be stored by this service" in text_of(response)
    assert "![" not in text_of(response) and str(path) not in text_of(response)
    assert http.get(f"{service.url}/images/{OWN_NAME}", timeout=30).status_code == 404
    assert '"level": "error"' in service.wait_for_log("could not be published")
    # Once somebody has mended it, pictures are published again without a restart.
    path.unlink()
    path.mkdir()
    assert len(urls_of(execute(service))) == 2


# --- how long they are kept -----------------------------------------------------------


def own_name(letter: str, suffix: str = "png") -> str:
    return f"e2b-{32 * letter}.{suffix}"


@pytest.mark.parametrize("ttl_hours", [0, 1])
def test_old_pictures_are_removed_when_told_so_and_never_what_is_not_its_own(
    start_shared: Callable[..., Service],
    e2b: LocalE2B,
    tmp_path_factory: pytest.TempPathFactory,
    ttl_hours: int,
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    old = [own_name("a"), own_name("b", "jpg"), own_name("c") + ".part"]
    young = [own_name("d"), own_name("e") + ".part"]
    foreign = [
        "holiday.png",
        "e2b-short.png",
        own_name("f", "gif"),
        own_name("g") + ".part.part",
        own_name("h").replace("e2b-", "x2b-"),
        ".keep",
    ]
    for age_hours, names in ((1.1, old), (0.9, young), (1000, foreign)):
        for name in names:
            (folder / name).write_bytes(PNG)
            written_at = time.time() - age_hours * 3600
            os.utime(folder / name, (written_at, written_at))
    (folder / own_name("i")).mkdir()
    os.utime(folder / own_name("i"), (0, 0))
    service = start_shared(
        IMAGE_DIR=str(folder), IMAGE_URL="/images/e2b", IMAGE_TTL_HOURS=str(ttl_hours)
    )
    e2b.set_script(shows(JPEG))
    [url] = urls_of(execute(service))
    kept = {*young, *foreign, own_name("i"), name_of(url)}
    if not ttl_hours:
        kept |= set(old)
    give_up_at = time.monotonic() + 30
    while set(os.listdir(folder)) != kept and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert set(os.listdir(folder)) == kept
    # The next look at the folder is in a minute, whatever runs.
    (folder / old[0]).write_bytes(PNG)
    os.utime(folder / old[0], (0, 0))
    execute(service)
    assert old[0] in os.listdir(folder)
