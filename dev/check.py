"""Is it working? Has a running e2b-proxy draw a sine wave; says what is wrong if not.

    python dev/check.py [--url http://127.0.0.1:3001] [--key KEY] [--out sine.png]
                        [--table-out table.png]

Needs nothing but Python, no `requests` either: it is piped into the container, and run
by the Python of a VM. The service's API key, if it has one, is taken from --key,
PROXY_API_KEY or the file that PROXY_API_KEY_FILE names. Exits 0 with the text of the
reply and the picture in a file, else 1 with one line on stderr. With --table-out a
small table is uploaded to the code interpreter too, and the plot of it saved.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import http.client
import ipaddress
import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

PNG = b"\x89PNG\r\n\x1a\n"
DATA_URI = "data:image/png;base64,"
PRINTED = "The sine wave peaks at 1.000."
CODE = """\
import matplotlib.pyplot as plt
import numpy as np

x = np.linspace(0, 2 * np.pi, 201)
plt.plot(x, np.sin(x))
plt.title("A sine wave")
plt.xlabel("x")
plt.ylabel("sin(x)")
plt.grid(True)
plt.show()
print(f"The sine wave peaks at {np.sin(x).max():.3f}.")
"""


MALFORMED = (
    "the reply is not LibreChat's two-element array: is this the address of "
    "e2b-proxy itself?"
)
FILES_WORK = "LibreChat's code interpreter works too: a file went in, another came out."
TABLE = b"""\
month,shops,online
January,120,80
February,132,95
March,101,134
April,134,160
May,190,182
June,230,210
"""
PLOT_TABLE = """\
import matplotlib.pyplot as plt
import pandas as pd

table = pd.read_csv("sales.csv", index_col="month")
table.plot.bar(stacked=True, title="Sales by month", rot=0)
plt.savefig("sales.png")
"""
EXAMPLE = "It looks like http://127.0.0.1:3001."


@dataclass(frozen=True)
class Patience:
    """How long check.py waits for an answer."""

    short_s: float = 10
    # Longer than the service's longest request: a run at its limit (at most a minute
    # for any client that gives up near 60 s) and what comes around it.
    run_s: float = 90


PATIENCE = Patience()


class NotWorking(Exception):
    """What is wrong and what to do about it, in one line."""


def main(arguments: Sequence[str] | None = None, patience: Patience = PATIENCE) -> int:
    parser = argparse.ArgumentParser(
        description="Ask a running e2b-proxy to draw a sine wave."
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:3001", help="default: %(default)s"
    )
    parser.add_argument("--key", help="the service's API key; default: PROXY_API_KEY")
    parser.add_argument(
        "--out", type=Path, default=Path("sine.png"), help="default: %(default)s"
    )
    parser.add_argument(
        "--table-out", type=Path, help="where to save the plot of an uploaded table"
    )
    options = parser.parse_args(arguments)
    try:
        key = options.key or _key_of_environment()
        client = _client(options.url.rstrip("/"), key, patience)
        text, where = check(client, options.out)
        if options.table_out:
            where += f"\n{_plot_table(client, options.table_out)}"
    except NotWorking as problem:
        print("Not working: " + " ".join(str(problem).split()), file=sys.stderr)
        return 1
    print(f"{text}\n\nIt works. {where}")
    return 0


def _key_of_environment() -> str:
    """The API key; "" when there is none. An argument
    shows in the list of processes, these do not."""
    path = os.environ.get("PROXY_API_KEY_FILE")
    if not path:
        return os.environ.get("PROXY_API_KEY", "")
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        raise NotWorking(
            f"PROXY_API_KEY_FILE: {path} cannot be read: {error}"
        ) from error


def check(client: Client, out: Path) -> tuple[str, str]:
    """The text of the reply and a sentence that
    says where the picture is; or NotWorking."""
    health = _check_health(client)
    text, picture_url = _run(client)
    if PRINTED not in text:
        raise NotWorking(f"what the code printed is missing from the reply: {text}")
    png = _picture(client, picture_url)
    if health.get("code_api"):
        _check_files(client)
        text += f"\n{FILES_WORK}"
    if png is None:
        return text, f"Picture published at {picture_url}, for LibreChat to serve."
    return text, f"Picture saved: {_save(png, out, '--out')}"


def _save(png: bytes, out: Path, option: str) -> str:
    """Where the picture is now, as seen from the folder that this was started in."""
    try:
        out.write_bytes(png)
    except OSError as error:
        raise NotWorking(
            f"the picture cannot be written to {out}: {error.strerror}. Name another "
            f"with {option}."
        ) from error
    path, here = out.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        """What the body holds; None when it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: the service never sends one."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Client:
    """How the service at `url` is asked."""

    url: str
    key: str
    opener: urllib.request.OpenerDirector
    patience: Patience

    def ask(
        self,
        url: str,
        timeout_s: float,
        body: Any = None,
        media_type: str = "application/json",
    ) -> Answer:
        """GET, or POST with a body: bytes are sent as they are.

        Raises NotWorking when no answer comes.
        """
        request = urllib.request.Request(url)
        if body is not None:
            is_raw = isinstance(body, bytes)
            request.data = body if is_raw else json.dumps(body).encode()
            request.add_header("Content-Type", media_type)
        # Never to another host: a picture's address may name one.
        if self.key and urlsplit(url)[:2] == urlsplit(self.url)[:2]:
            request.add_header("Authorization", f"Bearer {self.key}")
        try:
            return self._answer_to(request, timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotWorking(_why_no_answer(url, timeout_s, error)) from error

    def _answer_to(self, request: urllib.request.Request, timeout_s: float) -> Answer:
        try:
            with self.opener.open(request, timeout=timeout_s) as reply:
                return Answer(reply.status, reply.headers, reply.read())
        except HTTPError as reply:
            with reply:
                return Answer(reply.code, reply.headers, reply.read())


def _why_no_answer(url: str, timeout_s: float, error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, TimeoutError):
        return (
            f"no answer from {url} within {timeout_s} s: the service's log says where "
            "it hangs."
        )
    if isinstance(reason, OSError):
        return (
            f"nothing answers at {url}: is the service running (make demo), and is the "
            "address right (--url)?"
        )
    return f"{url} could not be asked: {reason}"


def _client(url: str, key: str, patience: Patience) -> Client:
    try:
        address = urlsplit(url)
        _ = address.port
    except ValueError as error:
        raise NotWorking(f"{url!r} is no address ({error}). {EXAMPLE}") from error
    if address.scheme not in ("http", "https") or not address.hostname:
        raise NotWorking(f"{url!r} is no address. {EXAMPLE}")
    if key and not (key.isascii() and key.isprintable()):
        raise NotWorking(
            "the key has characters that no header can carry; see PROXY_API_KEY."
        )
    proxies: dict[str, str] | None = {} if _is_loopback(address.hostname) else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), NoRedirect
    )
    return Client(url, key, opener, patience)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_health(client: Client) -> dict[str, Any]:
    url = f"{client.url}/health"
    answer = client.ask(url, client.patience.short_s)
    health = answer.json()
    status = health.get("status") if isinstance(health, dict) else None
    if status is None:
        raise NotWorking(
            f"{url} answered {answer.status}, but not as e2b-proxy does: "
            "another program listens there. Look at PORT, or name the address with "
            "--url."
        )
    if answer.status != 200 or status != "healthy":
        raise NotWorking(
            f"{url} answered {answer.status} with status {status!r}: "
            "the service's log says why."
        )
    return dict(health)


def _check_files(client: Client) -> None:
    """A file goes up, a script writes another, that comes back; or NotWorking."""
    url, written = _run_with_file(
        client, "in.txt", b"sine", "bash", "rev in.txt >out.txt"
    )
    if written.strip() != b"enis":
        raise NotWorking(f"{url} answered 200, not with the file.")


def _plot_table(client: Client, out: Path) -> str:
    """Has the code interpreter plot a table, and says where the picture is now."""
    url, png = _run_with_file(client, "sales.csv", TABLE, "py", PLOT_TABLE)
    if not png.startswith(PNG):
        raise NotWorking(f"{url} is no PNG: it begins with {png[:8]!r}.")
    return f"A table was uploaded and plotted: {_save(png, out, '--table-out')}"


def _run_with_file(
    client: Client, name: str, data: bytes, language: str, code: str
) -> tuple[str, bytes]:
    """The address and the bytes of the one file that the code writes; or NotWorking."""
    form = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
        b"\r\n%s\r\n--x--\r\n" % (name.encode(), data)
    )
    media_type = "multipart/form-data; boundary=x"
    url = f"{client.url}/v1/upload"
    uploaded = _code_api_reply(
        url, client.ask(url, client.patience.run_s, form, media_type)
    )
    match uploaded:
        case {"storage_session_id": session_id, "files": [{"fileId": file_id}]}:
            file = {"name": name, "id": file_id, "storage_session_id": session_id}
        case _:
            raise NotWorking(f"{url} answered {uploaded}, not with the file's id.")
    url = f"{client.url}/v1/exec"
    body = {"lang": language, "code": code, "files": [file]}
    reply = _code_api_reply(url, client.ask(url, client.patience.run_s, body))
    match reply:
        case {"session_id": session_id, "files": [{"id": file_id}]}:
            url = f"{client.url}/v1/download/{session_id}/{file_id}"
        case {"files": [], "stderr": reason}:
            raise NotWorking(f"a script that wrote a file brought none: {reason}")
        case _:
            raise NotWorking(f"{url} answered {reply}, not with the file's id.")
    written = client.ask(url, client.patience.short_s)
    if written.status != 200:
        raise NotWorking(f"{url} answered {written.status}, not with the file.")
    return url, written.body


def _code_api_reply(url: str, answer: Answer) -> dict[str, Any]:
    reply = answer.json()
    if answer.status == 200 and isinstance(reply, dict):
        return reply
    message = reply.get("message") if isinstance(reply, dict) else None
    raise NotWorking(f"{url} answered {answer.status}: {message or 'no reason given'}")


def _run(client: Client) -> tuple[str, str]:
    """The text of the reply and the address of its one picture."""
    url = f"{client.url}/execute"
    answer = client.ask(url, client.patience.run_s, {"code": CODE})
    if answer.status == 401:
        raise NotWorking(
            "the service refuses this key: give it the PROXY_API_KEY that it was "
            "started with."
            if client.key
            else "the service wants a key: set PROXY_API_KEY to the one that it was "
            "started with."
        )
    if answer.status == 503:
        seconds = answer.headers.get("Retry-After", "a few")
        raise NotWorking(
            f"the service is full: try again in {seconds} seconds, or raise "
            "MAX_CONCURRENT_RUNS."
        )
    reply = answer.json()
    if answer.status != 200:
        error = reply.get("error") if isinstance(reply, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        raise NotWorking(
            f"{url} answered {answer.status}: {message or 'no reason given'}"
        )
    text, pictures = _parts(reply)
    outcome = answer.headers.get("X-Run-Outcome")
    if outcome != "ok":
        raise NotWorking(
            f"the run ended with X-Run-Outcome {outcome}: {_before_the_code(text)}"
            if outcome
            else "the reply has no X-Run-Outcome header: is this the address of "
            "e2b-proxy itself?"
        )
    if len(pictures) != 1:
        raise NotWorking(
            f"the reply has {len(pictures)} pictures instead of one: "
            f"{_before_the_code(text)}"
        )
    return text, pictures[0]


def _parts(reply: Any) -> tuple[str, list[str]]:
    """The text and the pictures' addresses in LibreChat's two-element array."""
    match reply:
        case [[{"type": "text", "text": str(text)}], {"content": list(content)}]:
            pictures = []
        case _:
            raise NotWorking(MALFORMED)
    for item in content:
        match item:
            case {"type": "image_url", "image_url": {"url": str(picture_url)}}:
                pictures.append(picture_url)
            case _:
                raise NotWorking(MALFORMED)
    return text, pictures


def _before_the_code(text: str) -> str:
    return text.partition("**Executed Code:**")[0].strip()


def _picture(client: Client, picture_url: str) -> bytes | None:
    """The picture's bytes; None when it is published
    at a path that this service does not serve."""
    if picture_url.startswith("data:"):
        if not picture_url.startswith(DATA_URI):
            raise NotWorking(
                f"the picture is no PNG: its address begins {picture_url[:30]!r}."
            )
        try:
            png = base64.b64decode(picture_url[len(DATA_URI) :], validate=True)
        except binascii.Error as error:
            raise NotWorking(
                f"the picture's data URI is no base64 ({error})."
            ) from error
    else:
        address = urljoin(f"{client.url}/", picture_url)
        if not address.startswith(("http:", "https:")):
            raise NotWorking(f"the picture's address is {address!r}.")
        answer = client.ask(address, client.patience.short_s)
        if answer.status != 200:
            if picture_url.startswith("/"):
                return None
            raise NotWorking(
                f"the picture's address {address} answered {answer.status}: look "
                "at IMAGE_URL."
            )
        png = answer.body
    if not png.startswith(PNG):
        raise NotWorking(f"the picture is no PNG: it begins with {png[:8]!r}.")
    return png


if __name__ == "__main__":
    sys.exit(main())
