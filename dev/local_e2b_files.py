"""The stand-in's file API: what E2B's envd answers to POST and GET /files.

A sandbox's files are those of its kernel: paths below /mnt, /home/user and /tmp are in
its temporary directory, and there are no others. All belong to the user of this
process, though there are the users that E2B's template has, `root` and `user`.

Read in envd's source (packages/envd/internal/api in e2b-dev/infra), and as there: an
existing file is written over in place, folders on the way are made, links are followed,
and what is asked for with gzip is compressed. A FIFO hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import Any, Self

from aiohttp import web
from local_e2b_script import Answer

USERS = ("root", "user")
# Bytes of a file that are sent, or stalled after.
PIECE_BYTES = 256 * 1024
PlaceOf = Callable[[str], Path]


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"code": status, "message": message}, status=status)


def check_user(request: web.BaseRequest) -> None:
    name = request.query.get("username", "user")
    if name not in USERS:
        raise Refused(401, f"error looking up user '{name}'")


def resolved(path: str) -> str:
    """An absolute path without dots; one that is not absolute is in the user's home."""
    parts: list[str] = []
    for part in PurePosixPath("/home/user", path).parts[1:]:
        if part == "..":
            parts[-1:] = []
        else:
            parts.append(part)
    return "/" + "/".join(parts)


# --- write ----------------------------------------------------------------------------


async def write(
    request: web.BaseRequest, place_of: PlaceOf, answer: Answer
) -> web.Response:
    """Write what a request brings. Raises Refused; what came before then stays."""
    check_user(request)
    written: list[dict[str, str]] = []
    given = request.query.get("path")
    pieces = _slowly(request.content.iter_any(), answer)
    if request.content_type == "application/octet-stream":
        if given is None:
            raise Refused(400, "path query parameter is required for raw body upload")
        with _File(given, place_of, written) as file:
            async for piece in pieces:
                file.write(piece)
    elif request.content_type == "multipart/form-data":
        boundary = _boundary(request.headers["Content-Type"])
        await _write_parts(pieces, boundary, given, place_of, written)
    else:
        raise Refused(400, f"unsupported content type: {request.content_type}")
    return web.json_response(written)


async def _slowly(pieces: AsyncIterator[bytes], answer: Answer) -> AsyncIterator[bytes]:
    """The body, at `bytes_per_s`; with the fault "stall" no more than its start."""
    async for piece in pieces:
        yield piece
        if answer.get("fault") == "stall":
            await asyncio.Event().wait()
        if rate := answer.get("bytes_per_s"):
            await asyncio.sleep(len(piece) / rate)


class _File:
    """A file that is being written."""

    def __init__(
        self, path: str, place_of: PlaceOf, written: list[dict[str, str]]
    ) -> None:
        path = resolved(path)
        if any(entry["path"] == path for entry in written):
            raise Refused(400, f"multiple files to the same path '{path}'")
        try:
            place = place_of(path)
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if place.is_dir():
                raise Refused(400, f"path is a directory: {path}")
            self._file = place.open("wb", buffering=0)
        except OSError as error:
            raise _of(error) from error
        entry = {"name": PurePosixPath(path).name, "type": "file", "path": path}
        written.append(entry)

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise _of(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _of(error: OSError) -> Refused:
    if error.errno == errno.ENOSPC:
        return Refused(507, "not enough disk space available")
    return Refused(500, f"error writing file: {error.strerror}")


def _boundary(content_type: str) -> bytes:
    _, _, boundary = content_type.partition("boundary=")
    return b"\r\n--" + boundary.strip('"').encode()


async def _write_parts(
    pieces: AsyncIterator[bytes],
    boundary: bytes,
    given: str | None,
    place_of: PlaceOf,
    written: list[dict[str, str]],
) -> None:
    """Write each part of a form that is named `file`, as its bytes come."""
    form = _Form(pieces)
    async for _ in form.until(boundary):
        pass
    while (await form.next(2)) != b"--":
        head = b"".join([data async for data in form.until(b"\r\n\r\n")])
        name, path = _names(head)
        with contextlib.ExitStack() as opened:
            file = None
            if name == "file":
                file = opened.enter_context(_File(given or path, place_of, written))
            async for data in form.until(boundary):
                if file:
                    file.write(data)


class _Form:
    """The bytes of a form, which is read from its start to its end."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b"\r\n"  # the first boundary has no line before it

    async def until(self, mark: bytes) -> AsyncGenerator[bytes, None]:
        """The bytes before the next mark, which is passed over."""
        while True:
            data, found, after = self._rest.partition(mark)
            if found:
                self._rest = after
                yield data
                return
            # The mark may have begun.
            kept = len(mark) - 1
            self._rest, data = self._rest[-kept:], self._rest[:-kept]
            if data:
                yield data
            await self._more()

    async def next(self, size: int) -> bytes:
        while len(self._rest) < size:
            await self._more()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def _more(self) -> None:
        try:
            self._rest += await anext(self._pieces)
        except StopAsyncIteration:
            raise Refused(500, "error reading form: unexpected EOF") from None


def _names(head: bytes) -> tuple[str, str]:
    """A part's own name, and the file's."""
    values: dict[str, str] = {}
    for item in head.decode().split(";"):
        key, _, value = item.partition("=")
        values[key.strip()] = value.split("\r\n")[0].strip().strip('"')
    return values.get("name", ""), values.get("filename", "")


# --- read -----------------------------------------------------------------------------


async def read(
    request: web.BaseRequest, place_of: PlaceOf, answer: Answer
) -> web.StreamResponse:
    """Send a file. Raises Refused.

    The faults "cut" and "stall" come in the middle of it."""
    check_user(request)
    path = resolved(request.query.get("path", ""))
    try:
        place = place_of(path)
        status = place.stat()
    except FileNotFoundError:
        raise Refused(404, f"path '{path}' does not exist") from None
    except OSError as error:
        raise Refused(500, f"error checking if path exists: {error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise Refused(400, f"path '{path}' is a directory")
    if stat.S_ISFIFO(status.st_mode):
        await asyncio.Event().wait()
    fault, rate = answer.get("fault"), answer.get("bytes_per_s")
    has_range = "Range" in request.headers
    has_gzip = "gzip" in request.headers.get("Accept-Encoding", "") and not has_range
    if not has_gzip and not fault and not rate:
        # It serves ranges, too.
        return web.FileResponse(place, headers={"Vary": "Accept-Encoding"})
    response = web.StreamResponse(headers={"Vary": "Accept-Encoding"})
    response.content_type = "application/octet-stream"
    if has_gzip:
        response.enable_compression(web.ContentCoding.gzip)
    else:
        response.content_length = status.st_size
    await response.prepare(request)
    with place.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            await response.write(piece)
            if fault == "stall":
                await asyncio.Event().wait()
            if fault == "cut":
                # What was sent must have been read: a reset throws it away.
                await asyncio.sleep(0.05)
                cut(request)
            if rate:
                await asyncio.sleep(len(piece) / rate)
    await response.write_eof()
    return response


def cut(request: web.BaseRequest) -> None:
    transport: Any = request.transport
    if transport is not None:
        transport.abort()
