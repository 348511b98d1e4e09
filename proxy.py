"""The HTTP side, and the single module that knows Flask: routes, errors, `app`."""

import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlsplit

from flask import Blueprint, Flask, Response, after_this_request, g, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import (
    BadRequest,
    Forbidden,
    HTTPException,
    NotFound,
    RequestEntityTooLarge,
    RequestTimeout,
    ServiceUnavailable,
    Unauthorized,
    UnsupportedMediaType,
)
from werkzeug.http import dump_options_header

from access import as_bearer, is_host_served, is_key_right, is_origin_own, session_mark
from caller import Caller, Calls
from config import MAX_BODY_BYTES, MAX_EXEC_BODY_BYTES, VERSION, Config, log
from formatter import echo, format_plain, format_run
from in_flight import LARGE_BYTES, Hold, InFlight, NoRoom
from json_body import PARSE_FACTOR, BadBody, JsonBody, parse_json
from mcp_server import (
    PARSE_ERROR,
    JsonObject,
    Server,
    begins_session,
    error,
    handle,
    tool_result,
)
from metrics import (
    BUDGET_SECONDS,
    DOWNLOAD_BYTES,
    IDLE_SESSIONS,
    IN_FLIGHT,
    LOST_SANDBOXES,
    MAX_RUNS,
    PICTURE_BYTES,
    SPENT_SECONDS,
    WARM_READY,
)
from pictures.delivery import Delivery, deliver, without_pictures
from run import Run
from sandboxes.pool import RETRY_AFTER_S, Full, Pool
from sandboxes.sandbox import Unavailable, check_key
from texts.cell import Cell

if TYPE_CHECKING:
    from pictures.publishing import Publisher

_HERE = Path(__file__).parent
_PAGE_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
    "connect-src 'self'; img-src 'self' data: {images}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_IMAGE_HEADERS = {
    "Cache-Control": "public, max-age=31536000, immutable",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
# GET /ready asks E2B at most twice a minute, however many clients probe it.
_READY_CACHE_S = 30
# Hosts that mean the machine itself, so that on another machine they lead elsewhere:
# "localhost:3001", "a.localhost", "127.0.0.1", "0.0.0.0", "[::1]", and no Host at all.
_LOOPBACK = re.compile(
    r"(?i)(|(.*\.)?localhost|127(\.\d+){3}|0\.0\.0\.0|\[::1?\])(:\d+)?"
)
# The worker sends this much at once, and times a client anew for each piece: by smaller
# pieces a slow client would look quick.
_FILE_PIECE_BYTES = 64 * 1024
# The first stands in openapi.json. Without a network the second is told in its place.
_PIP_INSTALLS = "A line `%pip install NAME` before the imports adds a package."
_NO_NETWORK = "It has no network: nothing can be installed or loaded."
# The first two sentences stand in openapi.json. If sessions are on, clients of MCP are
# not told the first, and are told the third instead of the second.
_NOTHING_IS_KEPT_AND = (
    " Nothing is kept between calls, and no file can be handed to the user."
)
_NOTHING_IS_KEPT = (
    "Nothing is kept between calls: each call must import what it uses and hold all of"
    " its data. Files can be written to /mnt/data, for this call only."
)
_SESSIONS_ARE_KEPT = (
    "Variables, imports and files (in /mnt/data) are kept within a conversation until"
    " {minutes} minutes pass without a call; a note says when they are gone."
)
_NO_ROOM = (
    "Large requests and replies hold all of the memory that they may have. Try again in"
    f" {RETRY_AFTER_S} seconds."
)
_NO_ROOM_FOR_PICTURES = "other large replies held all of the memory that is for them"
# A large body or reply holds memory that others wait for. So it has to arrive, or be
# taken, within the slack and the time that its bytes take at this rate.
_LARGE_SLACK_S = 30
_LARGE_BYTES_PER_S = 512 * 1024
# The names that models give to the only language.
_PYTHON = re.compile(r"(?i)\s*+i?py(?:thon)?[ -]?(?:3(?:\.\d{1,2})?)?\s*+")
_MAX_SHOWN_CHARS = 40  # of a wrong value that a message names
_SLASHES = re.compile("/{2,}")
_UNREADABLE = "The body is no JSON that can be read."
_FULL = f"Every slot is taken. Try again in {RETRY_AFTER_S} seconds."


def __getattr__(name: str) -> Flask:
    # `app` is made when gunicorn asks for it: tests import this module without a key.
    if name == "app":
        return create_app(Config.from_env(os.environ))
    raise AttributeError(name)


@dataclass(frozen=True)
class _Service:
    """The settings and the objects that the views share."""

    config: Config
    pool: Pool
    publisher: "Publisher | None"  # of pictures; None if IMAGE_DIR is not set


def create_app(config: Config) -> Flask:
    """The WSGI application; `extensions["pool"].close()` ends its sandboxes."""
    app = Flask(__name__, static_folder=None)
    pool = _open_pool(config)
    service = _Service(config, pool, _publisher(config))
    app.extensions["pool"] = pool
    # A request that waits for memory holds a thread, as one that waits for a slot does.
    # So only about half as many may wait as may run.
    in_flight = InFlight(
        # The largest request may go beyond this, and has its part of the limit.
        max(0, config.max_in_flight_bytes - PARSE_FACTOR * MAX_EXEC_BODY_BYTES),
        max_waiting=config.max_concurrent_runs // 2,
    )
    app.before_request(partial(_start_request, in_flight))
    app.before_request(partial(_refuse_foreign_page, config))
    app.before_request(_refuse_packed_body)
    app.after_request(_finish_request)
    app.register_error_handler(HTTPException, _error)
    document = _load_document(config)
    _add_open_views(app, service, document)
    app.register_blueprint(_guarded_views(service, document))
    app.register_blueprint(_code_api(service))
    app.wsgi_app = partial(_with_plain_path, app.wsgi_app)  # type: ignore[method-assign]
    IN_FLIGHT.set_function(lambda: pool.count("running"))
    WARM_READY.set_function(pool.warm_ready)
    IDLE_SESSIONS.set_function(pool.idle_sessions)
    LOST_SANDBOXES.set_function(lambda: pool.count("lost"))
    SPENT_SECONDS.set_function(pool.seconds_spent)
    MAX_RUNS.set(config.max_concurrent_runs)
    BUDGET_SECONDS.set(config.sandbox_seconds_per_day)
    return app


def _publisher(config: Config) -> "Publisher | None":
    if not config.image_dir:
        return None
    from pictures.publishing import Publisher

    publisher = Publisher(config.image_dir, config.image_url)
    if config.image_ttl_hours:
        publisher.start_removing_old(config.image_ttl_hours)
    return publisher


def _open_pool(config: Config) -> Pool:
    """The pool that these settings need: the default one keeps no sandbox."""
    if config.session_idle_s or config.warm_sandboxes:
        from sandboxes.keeping import KeepingPool

        return KeepingPool(config, prepare_code=_prepare_code(config))
    return Pool(config)


def _prepare_code(config: Config) -> str:
    """What sandboxes made ahead run beforehand for scripts of the code interpreter."""
    if not config.files_dir or not config.warm_imports:
        return ""
    from code_api.cells import start_early_code

    return start_early_code(config.warm_imports)


# --- before and after each request


def _with_plain_path(
    wsgi_app: Callable[..., Iterable[bytes]], environ: JsonObject, start_response: Any
) -> Iterable[bytes]:
    """Serve `//` as `/`, and a path with a slash at its end as the one without.

    An address in LibreChat's settings may end in a slash. Flask would redirect, and a
    client that streams an upload cannot follow. It is done before anything looks at the
    path, so that all of the service sees one spelling only.
    """
    path = _SLASHES.sub("/", environ["PATH_INFO"])
    environ["PATH_INFO"] = path.rstrip("/") or "/"
    return wsgi_app(environ, start_response)


def _start_request(in_flight: InFlight) -> None:
    """Note a request's time and id. It has nothing to log and holds no memory yet."""
    g.started = monotonic()
    g.hold = Hold(in_flight)
    g.fields = {}
    g.request_id = _request_id(request.headers.get("X-Request-Id", ""))


def _request_id(given: str) -> str:
    """The caller's own id if it is fit for a header and a log, else a new one."""
    if re.fullmatch(r"[0-9A-Za-z_.-]{1,64}", given):
        return given
    return secrets.token_hex(16)


def _refuse_foreign_page(config: Config) -> None:
    """Raises Forbidden if a web page of another origin may have sent the request."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return  # these methods change nothing
    host = request.headers.get("Host", "")
    # If a key is needed any host will do, because a web page has no key to send.
    if not config.proxy_api_key and not is_host_served(host, config.allowed_hosts):
        raise Forbidden("This Host is not served: add it to ALLOWED_HOSTS.")
    origin = request.headers.get("Origin")
    if origin is not None and not is_origin_own(origin, host):
        raise Forbidden("A web page of another origin may not call this service.")


def _refuse_packed_body() -> None:
    """Raises UnsupportedMediaType for a body that would have to be unpacked first."""
    coding = request.headers.get("Content-Encoding", "")
    if request.method == "POST" and coding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Send the body as it is, without Content-Encoding: {coding[:40]}."
        )


def _require_key(config: Config) -> None:
    """Runs before each request that needs the key. Raises Unauthorized without it."""
    key = config.proxy_api_key
    authorization = request.headers.get("Authorization", "")
    if request.blueprint == "code_api":
        api_key = request.headers.get("X-API-Key", "")
        authorization = as_bearer(authorization, api_key)
    if not key or is_key_right(authorization, key):
        return
    raise Unauthorized(
        "Send this service's PROXY_API_KEY as Authorization: Bearer.",
        www_authenticate=WWWAuthenticate("bearer"),
    )


def _finish_request(response: Response) -> Response:
    """Add the headers that every response has, and log the request."""
    response.headers["X-Request-Id"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    response.call_on_close(g.hold.release)  # once the response is sent
    fields = {
        "request_id": g.request_id,
        "method": request.method,
        "path": request.path[:200],
        "status": response.status_code,
        "took_ms": _milliseconds(monotonic() - g.started),
        **g.fields,
    }
    is_probe = request.endpoint in ("health", "ready", "guarded.metrics")
    level = logging.DEBUG if is_probe and response.status_code < 400 else logging.INFO
    log.log(level, "request", extra={"fields": fields})
    return response


def _milliseconds(duration_s: float) -> float:
    return round(duration_s * 1000, 1)


# --- runs


def _guarded_views(service: _Service, document: JsonObject) -> Blueprint:
    """The views that need PROXY_API_KEY, if it is set."""
    views = Blueprint("guarded", __name__)
    views.before_request(partial(_require_key, service.config))
    server = _mcp_server(service, document)

    @views.post("/execute")
    def execute() -> Response:
        """Run code; answers with LibreChat's two-element array: text, then pictures."""
        arguments = _json_body()
        run = _run(arguments, service, _caller())
        text, delivery = _reply_parts(run, service, over_mcp=False)
        parts = [text, _markdown(delivery.links), echo(arguments["code"])]
        text = "\n\n".join(part for part in parts if part)
        body = [[{"type": "text", "text": text}], {"content": delivery.parts}]
        return _json(body, headers=_outcome_header(run.outcome))

    @views.post("/mcp")
    def mcp() -> Response:
        """Answer one MCP message; one that wants no answer gets 202 without a body."""
        try:
            message = _json_body()
        except BadRequest as exc:
            failure = error(None, PARSE_ERROR, str(exc.description))
            return _json(failure, 400)
        status, reply = handle(message, request.headers.get, server)
        if reply is None:
            return Response(status=status)
        new_session = {"Mcp-Session-Id": secrets.token_hex(16)}
        return _json(reply, status, new_session if begins_session(reply) else {})

    @views.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)

    return views


def _mcp_server(service: _Service, document: JsonObject) -> Server:
    """What is served over MCP. Its functions are called by the view, in a request."""
    tool = _mcp_tool(document, service.config)
    instructions = _with_sessions(document["info"]["description"], service.config)
    calls = Calls()

    def session() -> str:
        return request.headers.get("Mcp-Session-Id", "")

    def call_tool(arguments: JsonObject, call_id: int | str) -> JsonObject:
        caller = _caller()
        try:
            with calls.under_way(session(), call_id, caller):
                run = _run(arguments, service, caller)
            text, delivery = _reply_parts(run, service, over_mcp=True)
        except (BadRequest, ServiceUnavailable) as exc:
            return tool_result(str(exc.description), [], is_error=True)
        return tool_result(text, delivery.parts, is_error=run.outcome != "ok")

    def cancel(call_id: int | str) -> None:
        calls.cancel(session(), call_id)

    return Server(VERSION, tool, instructions, call_tool, cancel)


def _parse_arguments(arguments: object, config: Config) -> tuple[str, int]:
    """The code and the run's limit in seconds. Raises BadRequest, naming the field."""
    if not isinstance(arguments, dict):
        raise BadRequest('Expected a JSON object such as {"code": "print(1)"}.')
    code = _valid_code(arguments.get("code"), config.max_code_chars)
    language = arguments.get("language")
    is_named = language not in (None, "")
    if is_named and not (isinstance(language, str) and _PYTHON.fullmatch(language)):
        raise BadRequest(
            f"language is {_shown(language)}, but only python is served: leave it out."
        )
    timeout = arguments.get("timeout")
    limit_s = config.run_timeout_s if timeout in (None, "") else _whole(timeout)
    if limit_s is None or limit_s < 1:
        raise BadRequest(
            f"timeout is {_shown(timeout)}, but must be a whole number of seconds,"
            " 1 or more."
        )
    return code, min(limit_s, config.run_timeout_s)


def _whole(number: object) -> int | None:
    """A whole number, however a model writes it: 10, 10.0 or "10". None if it is none.

    To isinstance `true` would be an int."""
    if isinstance(number, str) and re.fullmatch(r"[0-9]{1,15}(\.0)?", number.strip()):
        number = float(number)
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number if type(number) is int else None


def _shown(value: object) -> str:
    """A value of JSON as a message names it."""
    if isinstance(value, list | dict):
        return "an array" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"


def _valid_code(code: object, max_chars: int) -> str:
    if not isinstance(code, str) or not code.strip():
        raise BadRequest("code must be a string that is not blank.")
    if len(code) > max_chars:
        raise BadRequest(f"code has {len(code):,} characters of {max_chars:,}.")
    if re.search("[\ud800-\udfff]", code):
        raise BadRequest("code must not hold a lone surrogate, which is no character.")
    return code


def _run(arguments: object, service: _Service, caller: Caller) -> Run:
    """Run the code sent. Raises BadRequest; ServiceUnavailable if no slot is free."""
    config = service.config
    code, limit_s = _parse_arguments(arguments, config)
    digest = hashlib.sha256(code.encode()).hexdigest()
    g.fields |= {"code_chars": len(code), "code_sha256": digest[:16]}
    mark = ""
    if config.session_idle_s:
        session_id = request.headers.get("X-Session-Id", "")
        mark = session_mark(session_id, config.e2b_api_key)
    try:
        return service.pool.run(Cell(code), limit_s, mark, caller)
    except Full:
        raise ServiceUnavailable(_FULL, retry_after=RETRY_AFTER_S) from None


def _caller() -> Caller:
    """Who waits for the reply. Only our own worker notices that they hang up."""
    client = request.environ.get("gunicorn.socket")
    return getattr(client, "caller", Caller())


def _reply_parts(
    run: Run, service: _Service, *, over_mcp: bool
) -> tuple[str, Delivery]:
    """A run's text and its pictures for the reply. Figures on both go into the log.

    Raises ServiceUnavailable if other replies leave no memory for the pictures.
    """
    config = service.config
    delivery = deliver(run, config, service.publisher, over_mcp=over_mcp)
    run = delivery.run
    try:
        _hold(0 if delivery.links else run.picture_bytes)
    except ServiceUnavailable:
        # The code has run: its texts are not lost, and it is not to be run again.
        delivery = without_pictures(run, _NO_ROOM_FOR_PICTURES)
        run = delivery.run
    text_of = format_plain if over_mcp else format_run
    text = text_of(run, config.max_output_chars)
    PICTURE_BYTES.inc(run.picture_bytes)
    for step, duration_s in run.durations_s.items():
        g.fields[f"{step}_ms"] = _milliseconds(duration_s)
    g.fields |= {
        "outcome": run.outcome,
        "text_chars": len(text),
        "pictures": len(run.pictures),
        "picture_bytes": run.picture_bytes,
    }
    return text, delivery


def _outcome_header(outcome: str) -> dict[str, str]:
    """To callers a spent budget is one more reason why nothing ran, as it ever was."""
    return {"X-Run-Outcome": "unavailable" if outcome == "budget" else outcome}


def _markdown(urls: list[str]) -> str:
    """Markdown that shows the pictures at `urls`, for a model to repeat."""
    if not urls:
        return ""
    lines = ["To show the user these images, repeat these lines unchanged:"]
    for number, url in enumerate(urls, 1):
        lines.append(f"![image {number}]({url})")
    return "\n".join(lines)


# --- looking at the service


def _add_open_views(app: Flask, service: _Service, document: JsonObject) -> None:
    """The views that need no key."""
    config = service.config
    pool = service.pool
    # Without E2B_API_URL the SDK uses E2B on the internet.
    e2b_host = urlsplit(config.e2b_api_url or "https://e2b.dev").netloc
    is_e2b_local = bool(_LOOPBACK.fullmatch(e2b_host))
    page_template = (_HERE / "index.html").read_text("utf-8")
    documents = {path.name: path.read_bytes() for path in _HERE.glob("docs/*.md")}

    @app.get("/health")
    def health() -> Response:
        """Say that the service lives and how full it is, without asking E2B."""
        return _json(
            {
                "status": "healthy",
                "version": VERSION,
                "e2b_key_configured": bool(config.e2b_api_key),
                "e2b_on_this_machine": is_e2b_local,
                "api_key_required": bool(config.proxy_api_key),
                "code_api": bool(config.files_dir),
                "runs_in_flight": pool.count("running"),
                "max_concurrent_runs": config.max_concurrent_runs,
                "warm_ready": pool.warm_ready(),
                "idle_sessions": pool.idle_sessions(),
                "lost_sandboxes": pool.count("lost"),
                "sandbox_seconds_today": round(pool.seconds_spent(), 1),
                "sandbox_seconds_per_day": config.sandbox_seconds_per_day,
                "budget_is_spent": pool.budget_is_spent(),
            }
        )

    key_asked_at = -math.inf
    key_problem = "E2B is being asked. Try again in a moment."

    @app.get("/ready")
    def ready() -> Response:
        """Say whether E2B takes this service's key; many callers share one question."""
        nonlocal key_asked_at, key_problem
        if monotonic() - key_asked_at > _READY_CACHE_S:
            # Set before the question, so that other callers do not ask it meanwhile.
            key_asked_at = monotonic()
            try:
                check_key(config)
                key_problem = ""
            except Unavailable as exc:
                key_problem = str(exc)
        if key_problem:
            raise ServiceUnavailable(key_problem, retry_after=_READY_CACHE_S)
        return _json({"status": "ready"})

    @app.get("/openapi.json")
    def openapi() -> Response:
        """The document, with the address of this service that the client used.

        An address that means the client's own machine is of no use to others."""
        host = request.headers.get("Host", "")
        if _LOOPBACK.fullmatch(host):
            return _json(document)
        servers = [{"url": f"{request.scheme}://{host}"}]
        return _json({**document, "servers": servers})

    @app.get("/")
    def page() -> Response:
        """The page to try the service on; only its own script and style run there."""
        nonce = secrets.token_urlsafe(16)
        url = config.image_url
        images = f"{url.rstrip('/')}/" if "://" in url else ""
        policy = _PAGE_POLICY.format(nonce=nonce, images=images)
        return Response(
            page_template.replace("{nonce}", nonce),
            headers={"Content-Security-Policy": policy},
            mimetype="text/html",
        )

    @app.get("/docs/<name>")
    def documentation(name: str) -> Response:
        """A page of the documentation, as it is written: the page at / links to it."""
        if name not in documents:
            raise NotFound("There is no such page.")
        return Response(documents[name], content_type="text/plain; charset=utf-8")

    @app.get("/images/<name>")
    def image(name: str) -> Response:
        """A picture that was published here."""
        publisher = service.publisher
        found = publisher.find(name) if publisher else None
        if not found:
            raise NotFound("There is no such picture.")
        path, media_type = found
        try:
            file = path.open("rb")
        except FileNotFoundError:  # it was removed meanwhile
            raise NotFound("There is no such picture.") from None
        return _file(file, media_type, _IMAGE_HEADERS)


# --- LibreChat's code interpreter


def _code_api(service: _Service) -> Blueprint:
    """The views of LibreChat's code interpreter; without FILES_DIR each answers 404."""
    config = service.config
    views = Blueprint("code_api", __name__, url_prefix="/v1")
    if not config.files_dir:

        @views.route("/<path:_path>", methods=["GET", "POST", "DELETE"])
        def off(_path: str) -> Response:
            raise NotFound("The code API is off: its operator has to set FILES_DIR.")

        return views
    from code_api.service import CodeApi, StoreError, fields_to_log

    api = CodeApi(config, service.pool)
    views.before_request(partial(_require_key, config))
    object_path = "/sessions/<session_id>/objects/<file_id>"

    @views.post("/exec")
    def run_script() -> Response:
        profile = request.headers.get("X-CodeAPI-Expected-Profile")
        if profile == "stateful" and not config.session_idle_s:
            return _code_api_error(
                409,
                "execution_profile_mismatch",
                "Each exec has a sandbox of its own here, for SESSION_IDLE_S is 0.",
            )
        given = api.request(_json_body(MAX_EXEC_BODY_BYTES, api.parse))
        _hold(len(given.code))
        report = api.run(given, _caller())
        _when_sent(report.close)
        _hold(0)
        g.fields |= fields_to_log(given, report)
        return _json(api.reply(report), headers=_outcome_header(report.outcome))

    @views.post("/exec/programmatic")
    def run_program() -> Response:
        return _code_api_error(
            400,
            "unsupported_capability",
            "Programs that call tools are not supported: use /exec.",
        )

    @views.post("/upload")
    @views.post("/upload/batch")
    def upload() -> Response:
        reply, size = api.upload(
            request.stream,
            request.headers.get("Content-Type", ""),
            is_batch=request.path.endswith("/batch"),
        )
        g.fields |= {
            "session_id": reply["storage_session_id"],
            "files_in": len(reply["files"]),
            "files_refused": reply["failed"],
            "bytes_in": size,
        }
        return _json(reply)

    @views.get(object_path)
    def status(session_id: str, file_id: str) -> Response:
        """LibreChat asks before each turn whether it has to upload the file again."""
        stored = api.store.find(session_id, file_id)
        fields = {"lastModified": stored.last_modified(), "size": stored.size}
        if stored.original_name:
            fields["originalFilename"] = stored.original_name
        return _json(fields)

    @views.get("/download/<session_id>/<file_id>")
    def download(session_id: str, file_id: str) -> Response:
        stored = api.store.find(session_id, file_id)
        return _file(
            stored.open(),
            "application/octet-stream",
            {"Content-Disposition": _attachment(stored.original_name)},
            DOWNLOAD_BYTES.inc,
        )

    @views.delete(object_path)
    @views.delete("/files/<session_id>/<file_id>")
    def delete(session_id: str, file_id: str) -> Response:
        api.store.delete(session_id, file_id)
        return _json({"message": "deleted"})

    @views.errorhandler(StoreError)
    def storage_failed(exc: StoreError) -> Response:
        return _code_api_error(500, "storage_failed", str(exc))

    @views.errorhandler(Full)
    def full(_exc: Full) -> Response:
        return rate_limited(_FULL)

    @views.errorhandler(ServiceUnavailable)
    def no_room(exc: ServiceUnavailable) -> Response:
        return rate_limited(str(exc.description))

    def rate_limited(message: str) -> Response:
        body = {
            "error": "rate_limited",
            "message": message,
            "retry_after_seconds": RETRY_AFTER_S,
        }
        return _json(body, 429, {"Retry-After": str(RETRY_AFTER_S)})

    return views


def _attachment(name: str) -> str:
    """A Content-Disposition, with the name if there is one (RFC 6266)."""
    quoted = quote(name, safe="")
    field = {"filename": name} if name.isascii() else {"filename*": f"UTF-8''{quoted}"}
    return dump_options_header("attachment", field if name else {})


# --- what a model is told


def _load_document(config: Config) -> JsonObject:
    """openapi.json with the limits that are set."""
    document: JsonObject = json.loads((_HERE / "openapi.json").read_bytes())
    operation = _operation(document)
    if not config.allow_internet:
        text = operation["description"]
        operation["description"] = text.replace(_PIP_INSTALLS, _NO_NETWORK)
    fields = _body_schema(operation)["properties"]
    fields["code"]["maxLength"] = config.max_code_chars
    fields["timeout"]["default"] = config.run_timeout_s
    return document


def _operation(document: JsonObject) -> Any:
    return document["paths"]["/execute"]["post"]


def _body_schema(operation: JsonObject) -> Any:
    return operation["requestBody"]["content"]["application/json"]["schema"]


def _mcp_tool(document: JsonObject, config: Config) -> JsonObject:
    """The document's operation as MCP's tool."""
    operation = _operation(document)
    schema = _body_schema(operation)
    fields = schema["properties"]
    # The tool's schema has no `language`: a model has no choice there. It has no
    # bounds: LibreChat would reject a call that breaks them itself, and the model would
    # not see our explanation. And no field may be null: Gemini refuses every tool of a
    # chat if one of them has a list of types.
    offered = {
        "code": {
            "type": "string",
            "description": f"{fields['code']['description']} "
            f"At most {config.max_code_chars:,} characters.",
        },
        "timeout": {
            "type": "integer",
            "default": config.run_timeout_s,
            "description": f"{fields['timeout']['description']} 1 or more.",
        },
    }
    return {
        "name": operation["operationId"],
        "title": "Run Python code",
        "description": _with_sessions(operation["description"], config),
        "inputSchema": {**schema, "properties": offered},
        "annotations": {
            "readOnlyHint": False,
            "idempotentHint": False,
            "openWorldHint": config.allow_internet,
        },
    }


def _with_sessions(text: str, config: Config) -> str:
    """The text that a model is told over MCP, changed if sessions are on."""
    if not config.session_idle_s:
        return text
    kept = _SESSIONS_ARE_KEPT.format(minutes=config.session_idle_s // 60)
    return text.replace(_NOTHING_IS_KEPT_AND, "").replace(_NOTHING_IS_KEPT, kept)


# --- errors, and JSON


def _error(exc: HTTPException) -> Response:
    """An error in the one form that all have, except those of the code API."""
    status = exc.code or 500
    code = exc.name.lower().replace(" ", "_")
    headers = exc.get_headers()
    if f"{request.path}/".startswith("/v1/"):
        return _code_api_error(status, code, exc.description, headers)
    error = {"code": code, "message": exc.description, "request_id": g.request_id}
    return _json({"error": error}, status, headers)


def _code_api_error(
    status: int, code: str, message: str | None, headers: Any = None
) -> Response:
    """An error in the form that LibreChat reads."""
    return _json({"error": code, "message": message}, status, headers)


def _json(body: object, status: int = 200, headers: Any = None) -> Response:
    data = JsonBody(body)
    response = Response(
        _within_time(data), status, headers, content_type="application/json"
    )
    response.content_length = data.size_bytes
    return response


def _file(
    file: BinaryIO,
    media_type: str,
    headers: dict[str, str],
    count: Callable[[float], None] = lambda _size_bytes: None,
) -> Response:
    """A file, sent in pieces. `count` is called with the size of each piece sent."""
    response = Response(_pieces(file, count), headers=headers, content_type=media_type)
    response.content_length = os.fstat(file.fileno()).st_size
    response.call_on_close(file.close)
    return response


def _pieces(file: BinaryIO, count: Callable[[float], None]) -> Iterator[bytes]:
    while piece := file.read(_FILE_PIECE_BYTES):
        yield piece
        count(len(piece))


def _within_time(data: JsonBody) -> Iterable[bytes]:
    """The pieces of a reply. One that holds memory must not be taken too slowly."""
    held_bytes = g.hold.size_bytes
    if not held_bytes:
        return data
    return _until(monotonic() + _large_limit_s(held_bytes), data)


def _until(deadline: float, pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if monotonic() > deadline:
            # gunicorn takes this for a client that has gone, and closes the connection.
            raise BrokenPipeError(errno.EPIPE, "the reply was taken too slowly")
        yield piece


def _large_limit_s(size_bytes: int) -> float:
    return _LARGE_SLACK_S + size_bytes / _LARGE_BYTES_PER_S


def _when_sent(action: Callable[[], None]) -> None:
    """Call `action` once the reply is sent, even if the reply is an error."""

    @after_this_request
    def _add(response: Response) -> Response:
        response.call_on_close(action)
        return response


def _hold(size_bytes: int) -> None:
    """Hold this much memory until the reply is sent. Raises ServiceUnavailable."""
    try:
        g.hold.resize(size_bytes)
    except NoRoom:
        raise ServiceUnavailable(_NO_ROOM, retry_after=RETRY_AFTER_S) from None


def _json_body(
    max_bytes: int = MAX_BODY_BYTES, parse: Callable[[bytearray], Any] = parse_json
) -> Any:
    """The request's body, parsed.

    Raises UnsupportedMediaType, RequestEntityTooLarge, RequestTimeout, BadRequest;
    and ServiceUnavailable if other large bodies leave no memory for this one.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as Content-Type: application/json.")
    body = _received(max_bytes)
    if len(body) < (request.content_length or 0):
        raise BadRequest(_UNREADABLE)
    try:
        return parse(body)
    except BadBody as exc:
        raise BadRequest(str(exc)) from None
    except (ValueError, RecursionError):
        raise BadRequest(_UNREADABLE) from None


def _received(max_bytes: int) -> bytearray:
    """Read the body. Memory is held for as much of it as has come."""
    # Each exception is made where it is raised. If it were a variable, it and this
    # frame would be a cycle, which keeps the body until Python looks for cycles.
    too_large = f"The body has more than {max_bytes:,} bytes."
    announced_bytes = request.content_length or 0
    if announced_bytes > max_bytes:
        raise RequestEntityTooLarge(too_large)
    # A body in chunks does not say beforehand how large it will be.
    limit_s = _large_limit_s(announced_bytes or max_bytes)
    deadline = monotonic() + limit_s
    body = bytearray()
    while piece := _next_piece(max_bytes + 1 - len(body)):
        body += piece
        if len(body) > max_bytes:
            raise RequestEntityTooLarge(too_large)
        _hold(len(body))
        if g.hold.size_bytes and monotonic() > deadline:
            raise RequestTimeout(f"The body took longer than {limit_s:.0f} s.")
    if g.hold.size_bytes:
        _hold(PARSE_FACTOR * len(body))
    return body


def _next_piece(max_bytes: int) -> bytes:
    try:
        piece: bytes = request.stream.read(min(max_bytes, LARGE_BYTES))
    except Exception as exc:  # gunicorn's own errors, for malformed chunks
        raise BadRequest(f"The body could not be read: {exc}.") from None
    return piece
