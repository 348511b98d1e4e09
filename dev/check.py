"""Is it working? Has a running e2b-proxy draw a
sine wave, and says what is wrong if it does not.

    python dev/check.py [--url http://127.0.0.1:3001] [--key KEY] [--out sine.png]

Exits 0 with the text of the reply and the picture
in a file, else 1 with one line on stderr.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

HEALTH_TIMEOUT_S = 10
# Longer than the service's longest request: a run at its limit (at most a minute for
# any client that gives up near 60 s) and what comes around it.
RUN_TIMEOUT_S = 90
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
EXAMPLE = "It looks like http://127.0.0.1:3001."


class NotWorking(Exception):
    """What is wrong and what to do about it, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
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
    options = parser.parse_args(arguments)
    # An argument shows in the list of processes, a variable does not.
    key = options.key or os.environ.get("PROXY_API_KEY") or None
    try:
        text, where = check(options.url.rstrip("/"), key, options.out)
    except NotWorking as problem:
        print("Not working: " + " ".join(str(problem).split()), file=sys.stderr)
        return 1
    print(f"{text}\n\nIt works. {where}")
    return 0


def check(url: str, key: str | None, out: Path) -> tuple[str, str]:
    """The text of the reply and a sentence that
    says where the picture is; or NotWorking."""
    with _session(url, key) as session:
        _check_health(session, url)
        text, picture_url = _run(session, url, key)
        if PRINTED not in text:
            raise NotWorking(f"what the code printed is missing from the reply: {text}")
        png = _picture(session, url, picture_url)
    if png is None:
        return text, f"Picture published at {picture_url}, for LibreChat to serve."
    try:
        out.write_bytes(png)
    except OSError as error:
        raise NotWorking(
            f"the picture cannot be written to {out}: {error.strerror}. Name another "
            "with --out."
        ) from error
    return text, f"Picture saved: {out.resolve()}"


def _session(url: str, key: str | None) -> requests.Session:
    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        # Never to another host: a picture's address may name one.
        if key and urlsplit(request.url)[:2] == urlsplit(url)[:2]:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

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
    session = requests.Session()
    # Set even without a key: requests would look into ~/.netrc otherwise.
    session.auth = authorize
    session.trust_env = not _is_loopback(address.hostname)
    return session


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_health(session: requests.Session, url: str) -> None:
    answer = _ask(session, "GET", f"{url}/health", timeout_s=HEALTH_TIMEOUT_S)
    health = _json(answer)
    status = health.get("status") if isinstance(health, dict) else None
    if status is None:
        raise NotWorking(
            f"{url}/health answered {answer.status_code}, but not as e2b-proxy does: "
            "another program listens there. Look at PORT, or name the address with "
            "--url."
        )
    if answer.status_code != 200 or status != "healthy":
        raise NotWorking(
            f"{url}/health answered {answer.status_code} with status {status!r}: "
            "the service's log says why."
        )


def _run(session: requests.Session, url: str, key: str | None) -> tuple[str, str]:
    """The text of the reply and the address of its one picture."""
    answer = _ask(
        session, "POST", f"{url}/execute", json={"code": CODE}, timeout_s=RUN_TIMEOUT_S
    )
    if answer.status_code == 401:
        raise NotWorking(
            "the service refuses this key: give it the PROXY_API_KEY that it was "
            "started with."
            if key
            else "the service wants a key: set PROXY_API_KEY to the one that it was "
            "started with."
        )
    if answer.status_code == 503:
        seconds = answer.headers.get("Retry-After", "a few")
        raise NotWorking(
            f"the service is full: try again in {seconds} seconds, or raise "
            "MAX_CONCURRENT_RUNS."
        )
    reply = _json(answer)
    if answer.status_code != 200:
        error = reply.get("error") if isinstance(reply, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        raise NotWorking(
            f"{url}/execute answered {answer.status_code}: "
            f"{message or 'no reason given'}"
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


def _picture(session: requests.Session, url: str, picture_url: str) -> bytes | None:
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
        address = urljoin(f"{url}/", picture_url)
        answer = _ask(session, "GET", address, timeout_s=HEALTH_TIMEOUT_S)
        if answer.status_code != 200:
            if picture_url.startswith("/"):
                return None
            raise NotWorking(
                f"the picture's address {address} answered {answer.status_code}: look "
                "at IMAGE_URL."
            )
        png = answer.content
    if not png.startswith(PNG):
        raise NotWorking(f"the picture is no PNG: it begins with {png[:8]!r}.")
    return png


def _ask(
    session: requests.Session,
    method: str,
    url: str,
    *,
    timeout_s: float,
    json: Any = None,
) -> requests.Response:
    try:
        return session.request(
            method, url, json=json, timeout=timeout_s, allow_redirects=False
        )
    except requests.Timeout as error:
        raise NotWorking(
            f"no answer from {url} within {timeout_s} s: the service's log says where "
            "it hangs."
        ) from error
    except requests.ConnectionError as error:
        raise NotWorking(
            f"nothing answers at {url}: is the service running (make demo), and is the "
            "address "
            "right (--url)?"
        ) from error
    except requests.RequestException as error:
        raise NotWorking(f"{url} could not be asked: {error}") from error


def _json(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except requests.JSONDecodeError:
        return None


if __name__ == "__main__":
    sys.exit(main())
