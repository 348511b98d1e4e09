"""openapi.json, held against its specification, LibreChat and the running service."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from builders import error
from hypothesis import Phase, assume, given, settings
from local_e2b import LocalE2B
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth

from config import LIFETIME_MARGIN_S, MAX_BODY_BYTES, VERSION
from conftest import OK_RUN, Service, http, one_run_under_way, text_of

pytestmark = pytest.mark.usefixtures("untraced", "runs_print_ok")

DOCUMENT = json.loads(
    Path(__file__).parents[2].joinpath("openapi.json").read_text("utf-8")
)
API_KEY = "a-key-that-is-long-enough-to-be-one"
MAX_CODE_CHARS, RUN_TIMEOUT_S = 2000, 20
EXAMPLES = 120


# --- services -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited_service(start_shared: Callable[..., Service]) -> Service:
    """The service with limits of its own and one slot."""
    limits = {
        "MAX_CODE_CHARS": str(MAX_CODE_CHARS),
        "RUN_TIMEOUT_S": str(RUN_TIMEOUT_S),
    }
    return start_shared(MAX_CONCURRENT_RUNS="1", **limits)


@pytest.fixture(scope="module")
def keyed_service(start_shared: Callable[..., Service]) -> Service:
    """The service with an API key."""
    return start_shared(PROXY_API_KEY=API_KEY)


@pytest.fixture
def served_document(limited_service: Service) -> Any:
    """The document as the service serves it."""
    response = http.get(f"{limited_service.url}/openapi.json", timeout=30)
    assert (response.status_code, response.headers["Content-Type"]) == (
        200,
        "application/json",
    )
    return response.json()


# --- the document by itself -----------------------------------------------------------


def operation_of(document: Any) -> Any:
    """The one operation of a document."""
    [operation] = [
        each for path in document["paths"].values() for each in path.values()
    ]
    return operation


def fields_of(document: Any) -> Any:
    body = operation_of(document)["requestBody"]["content"]
    assert body.keys() == {"application/json"}
    return body["application/json"]["schema"]["properties"]


def keys_in(value: Any) -> Iterator[str]:
    """Every key of every object in a document."""
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            yield from keys_in(inner)


def test_the_document_is_valid_openapi(served_document: Any) -> None:
    import openapi_spec_validator  # takes long, and every worker collects this file

    openapi_spec_validator.validate(DOCUMENT)
    openapi_spec_validator.validate(served_document)


def test_nothing_stands_behind_a_ref_or_an_alternative() -> None:
    # LibreChat resolves $ref at three places, and makes "unknown" of an alternative.
    assert not {"$ref", "anyOf", "oneOf", "allOf"} & set(keys_in(DOCUMENT))


def test_there_is_one_operation_for_every_operation_becomes_a_tool() -> None:
    assert DOCUMENT["paths"].keys() == {"/execute"}
    assert DOCUMENT["paths"]["/execute"].keys() == {"post"}


def test_no_summary_hides_the_description_that_is_written_for_a_model() -> None:
    assert "summary" not in set(keys_in(DOCUMENT))
    for words in (
        "plt.show()",
        "Nothing is kept between calls",
        "traceback",
        "time limit",
    ):
        assert words in operation_of(DOCUMENT)["description"]


def test_the_name_that_librechat_makes_of_the_operation_fits() -> None:
    name = f"{operation_of(DOCUMENT)['operationId']}_action_{10 * 'x'}"
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,63}", name)


def test_the_document_names_the_service_as_the_compose_file_does() -> None:
    assert DOCUMENT["servers"] == [{"url": "http://e2b-proxy:3001"}]
    assert DOCUMENT["info"]["version"] == VERSION


# --- where it is served ---------------------------------------------------------------

ADDRESSES = {
    "code.example.com": "http://code.example.com",
    "code.example.com:8443": "http://code.example.com:8443",
    "e2b-proxy:3001": "http://e2b-proxy:3001",
    "other-name:3001": "http://other-name:3001",
    "192.168.1.5:3001": "http://192.168.1.5:3001",
    "[fd00::5]:3001": "http://[fd00::5]:3001",
    "localhost.example.com": "http://localhost.example.com",
    "notlocalhost:3001": "http://notlocalhost:3001",
    "localhost": "http://e2b-proxy:3001",
    "LocalHost:3001": "http://e2b-proxy:3001",
    "code.localhost:3001": "http://e2b-proxy:3001",
    "127.0.0.1:3001": "http://e2b-proxy:3001",
    "127.8.9.1": "http://e2b-proxy:3001",
    "0.0.0.0:3001": "http://e2b-proxy:3001",
    "[::1]:3001": "http://e2b-proxy:3001",
    "[::1]": "http://e2b-proxy:3001",
    "[::]:3001": "http://e2b-proxy:3001",
}


@pytest.mark.parametrize("host", ADDRESSES)
def test_the_document_carries_the_address_that_it_was_asked_at_but_no_loopback_one(
    limited_service: Service, host: str
) -> None:
    document = http.get(
        f"{limited_service.url}/openapi.json", headers={"Host": host}, timeout=30
    ).json()
    assert document["servers"] == [{"url": ADDRESSES[host]}]


def test_behind_a_tls_proxy_on_this_machine_the_address_is_https(
    limited_service: Service,
) -> None:
    headers = {"Host": "code.example.com", "X-Forwarded-Proto": "https"}
    document = http.get(
        f"{limited_service.url}/openapi.json", headers=headers, timeout=30
    ).json()
    assert document["servers"] == [{"url": "https://code.example.com"}]


def test_but_for_the_address_and_the_limits_the_document_is_the_file(
    served_document: Any,
) -> None:
    fields = fields_of(served_document)
    assert fields["code"]["maxLength"] == MAX_CODE_CHARS
    assert fields["timeout"]["default"] == RUN_TIMEOUT_S
    fields["code"]["maxLength"] = fields_of(DOCUMENT)["code"]["maxLength"]
    fields["timeout"]["default"] = fields_of(DOCUMENT)["timeout"]["default"]
    assert served_document | {"servers": DOCUMENT["servers"]} == DOCUMENT


def test_the_file_has_the_default_limits(keyed_service: Service) -> None:
    document = http.get(f"{keyed_service.url}/openapi.json", timeout=30).json()
    assert fields_of(document) == fields_of(DOCUMENT)


# --- held against the running service -------------------------------------------------


def execute(service: Service, body: Any, **headers: str) -> requests.Response:
    return http.post(f"{service.url}/execute", json=body, headers=headers, timeout=30)


def test_the_fields_are_those_that_the_service_knows(
    limited_service: Service, served_document: Any
) -> None:
    wrong = {"code": 1, "timeout": 0, "language": "none"}
    assert fields_of(served_document).keys() == wrong.keys()
    for field, value in wrong.items():
        response = execute(limited_service, {"code": "1", field: value})
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(field)
    for field, about in fields_of(served_document).items():
        for value in about.get("enum", []):
            assert (
                execute(limited_service, {"code": "1", field: value}).status_code == 200
            )


def test_the_limits_are_those_that_hold(
    limited_service: Service, served_document: Any, e2b: LocalE2B
) -> None:
    longest = fields_of(served_document)["code"]["maxLength"]
    assert execute(limited_service, {"code": "x" * longest}).status_code == 200
    assert execute(limited_service, {"code": "x" * (longest + 1)}).status_code == 400
    shortest = fields_of(served_document)["timeout"]["minimum"]
    assert (
        execute(limited_service, {"code": "1", "timeout": shortest - 1}).status_code
        == 400
    )
    assert fields_of(served_document)["timeout"]["nullable"] is True
    for timeout_s in (shortest, None):
        answer = execute(limited_service, {"code": "1", "timeout": timeout_s})
        assert answer.status_code == 200
        created = [each for each in e2b.state()["requests"] if each["kind"] == "create"]
        limit_s = timeout_s or fields_of(served_document)["timeout"]["default"]
        assert created[-1]["body"]["timeout"] == limit_s + LIFETIME_MARGIN_S


def test_each_documented_answer_can_be_had_and_is_as_documented(
    limited_service: Service,
    keyed_service: Service,
    served_document: Any,
    e2b: LocalE2B,
) -> None:
    good = {"code": "1"}
    too_long = http.prepare_request(
        requests.Request("POST", f"{limited_service.url}/execute", json=good)
    )
    # The answer comes before the body, which is never sent.
    too_long.headers["Content-Length"] = str(MAX_BODY_BYTES + 1)
    too_long.headers["Connection"] = "close"
    with one_run_under_way(e2b, limited_service):
        full = execute(limited_service, good)
    e2b.set_script({"run": OK_RUN})
    responses = [
        execute(limited_service, good),
        execute(limited_service, {}),
        execute(keyed_service, good),
        execute(limited_service, good, Origin="http://evil.example"),
        http.send(too_long, timeout=30),
        http.post(f"{limited_service.url}/execute", data="print(1)", timeout=30),
        full,
    ]
    operation = schemathesis.openapi.from_dict(served_document)["/execute"]["POST"]
    for response in responses:
        operation.validate_response(response)
        documented = operation_of(served_document)["responses"][
            str(response.status_code)
        ]
        assert documented.get("headers", {}).keys() <= response.headers.keys()
    # A 500 would be a fault of the service that nobody knows of.
    answered = {str(response.status_code) for response in responses}
    assert operation_of(served_document)["responses"].keys() - answered == {"500"}
    assert len(answered) == len(responses)


@pytest.mark.parametrize("outcome", ["ok", "error", "timeout", "unavailable"])
def test_each_documented_outcome_can_be_had(
    limited_service: Service, served_document: Any, e2b: LocalE2B, outcome: str
) -> None:
    e2b.set_script(
        {
            "ok": {"run": OK_RUN},
            "error": {"run": {"events": [error("ValueError", "no")]}},
            "timeout": {"run": {"fault": "silent"}},
            "unavailable": {"create": {"status": 500}},
        }[outcome]
    )
    response = execute(limited_service, {"code": "1", "timeout": 1})
    assert response.headers["X-Run-Outcome"] == outcome
    header = operation_of(served_document)["responses"]["200"]["headers"][
        "X-Run-Outcome"
    ]
    assert outcome in header["schema"]["enum"]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_is_sent_the_answer_is_a_documented_one(
    limited_service: Service, served_document: Any, mode: GenerationMode
) -> None:
    """Schemathesis makes requests out of the document, good ones and bad ones.

    What gunicorn's parser answers to bytes that are no request (400, 408, 431) is not
    of concern here: the document is about requests.
    """
    operation = schemathesis.openapi.from_dict(served_document)["/execute"]["POST"]
    statuses = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        fields = case.body if isinstance(case.body, dict) else {}
        # The document is stricter than the service in two ways (a field that is null or
        # "" counts as left out, and a timeout may be "10") and laxer in another (code
        # must not be blank).
        assume(mode.is_positive or None not in fields.values())
        texts = [fields.get(name) for name in ("language", "timeout")]
        are_taken = [isinstance(t, str) and not t.strip(" .0123456789") for t in texts]
        assume(mode.is_positive or not any(are_taken))
        assume(mode.is_negative or fields["code"].strip())
        response = case.call(base_url=limited_service.url, session=http, timeout=30)
        # ignored_auth: this service has no key, which the document allows.
        case.validate_response(response, excluded_checks=[ignored_auth])
        statuses.add(response.status_code)

    check()
    assert statuses == ({200} if mode.is_positive else {400})


# --- what is said of the network ------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "told", "hint"),
    [
        ("true", "A line `%pip install NAME` before", "`%pip install -q polars`"),
        ("false", "It has no network", "there is no network to get it from"),
    ],
)
def test_a_model_is_told_of_pip_only_where_there_is_a_network(
    start_service: Callable[..., Service],
    scripted_e2b: LocalE2B,
    setting: str,
    told: str,
    hint: str,
) -> None:
    failure = error("ModuleNotFoundError", "No module named 'polars'")
    scripted_e2b.set_script({"run": {"events": [failure]}})
    service = start_service(ALLOW_INTERNET=setting)
    document = http.get(f"{service.url}/openapi.json", timeout=30).text
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    tools = http.post(f"{service.url}/mcp", json=message, timeout=30).text
    assert told in document
    assert told in tools
    assert hint in text_of(service.execute("import polars"))
    for text in (document, tools):
        assert ("%pip" in text) == (setting == "true")
        assert "opencv" not in text
