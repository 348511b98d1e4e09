"""What the tests of faults share: a call's reply with its time, and what it may say."""

from __future__ import annotations

import time
from typing import Any

import requests
from local_e2b import LocalE2B

from conftest import E2B_KEY, Service, of_kind, text_of

UPSTREAM = "words of upstream: the token tok_5e1f of team blue"


def timed_execute(
    service: Service, code: str, **fields: Any
) -> tuple[requests.Response, float]:
    """The reply, and the seconds that it took."""
    started = time.monotonic()
    response = service.execute(code, **fields)
    return response, time.monotonic() - started


def assert_reply(
    response: requests.Response, outcome: str, *words: str, e2b: LocalE2B | None = None
) -> str:
    """It is a 200 of this outcome that says these words and nothing of E2B's own."""
    text = text_of(response)
    assert response.headers["X-Run-Outcome"] == outcome
    for word in words:
        assert word in text
    private = [E2B_KEY, UPSTREAM, "tok_5e1f"]
    if e2b:
        private += [sandbox["id"] for sandbox in e2b.state()["sandboxes"]]
    for secret in private:
        assert secret not in response.text
        assert secret not in str(response.headers)
    return text


class Since:
    """What came to E2B since this was made."""

    def __init__(self, e2b: LocalE2B) -> None:
        self._e2b = e2b
        self._at_s = time.monotonic()
        self._before = e2b.state()

    def requests(self, kind: str) -> list[dict[str, Any]]:
        return [r for r in of_kind(self._e2b, kind) if r["at_s"] >= self._at_s]

    def count(self, name: str) -> int:
        return int(self._e2b.state()[name] - self._before[name])
