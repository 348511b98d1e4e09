"""The service's HTTP side: routes, who may call them, and what errors look like.

`create_app(config)` makes the Flask application; gunicorn serves `proxy:app`. E2B's SDK is not
known here: a run comes from `pool.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import threading
import uuid
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import werkzeug.exceptions as http
from flask import Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.datastructures import WWWAuthenticate

import mcp_server
from config import MAX_BODY_BYTES, VERSION, Config
from formatter import echo, format_run
from images import BLOB, Publisher, json_pieces, rasterize
from metrics import Metrics
from pool import Full, Pool
from run import Run
from sandbox import Unavailable, check_key

log = logging.getLogger("e2b_proxy")

_HERE = Path(__file__).parent
_OPEN_ENDPOINTS = {None, "health", "ready", "openapi", "page", "images"}
_READY_CACHE_S = 30
_SEND_TIMEOUT_S = 30
_ASK_TO_SHOW = "Show the user these images: repeat the following lines unchanged in your answer."


def __getattr__(name: str) -> Any:
    # `app` is made when gunicorn asks for it, so that this module can be imported without a key.
    if name == "app":
        return create_app(Config.from_env(os.environ))
    raise AttributeError(name)


def create_app(config: Config) -> Flask:
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    service = app.extensions["service"] = _Service(config)
    app.before_request(service.guard)
    app.after_request(service.finish)
    app.register_error_handler(http.HTTPException, service.error)
    for rule in ("/execute", "/mcp"):
        app.post(rule)(getattr(service, rule[1:]))
    for rule in ("/health", "/ready", "/metrics", "/openapi.json", "/images/<name>", "/"):
        name = re.split(r"\W", rule)[1] or "page"
        app.get(rule, endpoint=name)(getattr(service, name))
    return app


def parse_arguments(body: object, config: Config) -> tuple[str, int]:
    """Return (code, the run's limit in seconds). Raises BadRequest."""
    if not isinstance(body, dict):
        raise http.BadRequest('Expected a JSON object such as {"code": "print(1)"}.')
    code, language, timeout = (body.get(key) for key in ("code", "language", "timeout"))
    if not isinstance(code, str) or not code.strip():
        raise http.BadRequest("code must be a string that is not blank.")
    if len(code) > config.max_code_chars:
        raise http.BadRequest(f"code has {len(code):,} characters of {config.max_code_chars:,}.")
    if not code.isascii() and code != code.encode("utf-8", "replace").decode():
        raise http.BadRequest("code must not hold a lone surrogate: it is no character.")
    if language not in (None, "python"):
        raise http.BadRequest('language must be "python", the only one that is served.')
    if timeout is None:
        return code, config.run_timeout_s
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not math.isfinite(timeout) or timeout != int(timeout) or timeout < 1:
        raise http.BadRequest("timeout must be a whole number of seconds, 1 or more.")
    return code, min(int(timeout), config.run_timeout_s)


class _Service:
    """The views, and what they share."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._metrics = Metrics()
        self.pool = Pool(config, self._metrics)
        self._metrics.in_flight.set_function(lambda: self.pool.count("running"))
        self._metrics.warm_ready.set_function(lambda: self.pool.count("ready"))
        self._publisher = Publisher(config) if config.image_dir else None
        self._page = (_HERE / "index.html").read_text("utf-8")
        self._document = json.loads((_HERE / "openapi.json").read_bytes())
        operation = self._document["paths"]["/execute"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        schema["properties"]["code"]["maxLength"] = config.max_code_chars
        schema["properties"]["timeout"]["default"] = config.run_timeout_s
        self._tool = {
            "name": operation["operationId"],
            "title": self._document["info"]["title"],
            "description": operation["description"],
            "inputSchema": schema,
        }
        self._ready_lock = threading.Lock()
        self._ready_until = 0.0
        self._ready_problem = "E2B is being asked for the first time. Try again in some seconds."

    # Every request

    def guard(self) -> None:
        """Refuse who may not call; a web page of another origin may not make any POST."""
        g.started, g.fields = monotonic(), {}
        given_id = request.headers.get("X-Request-Id", "")
        is_id = re.fullmatch(r"[\w.-]{1,64}", given_id, re.ASCII)
        g.request_id = given_id if is_id else uuid.uuid4().hex
        host, origin = request.headers.get("Host", "").lower(), request.headers.get("Origin")
        key = self._config.proxy_api_key
        if request.method == "POST":
            name = _host_name(host)
            # An attacker's page can have a name of its own resolve to this service, but no such.
            if not (key or "." not in name or _address(name) or name in self._config.allowed_hosts):
                raise http.Forbidden("This Host is not served: add it to ALLOWED_HOSTS.")
            if origin is not None and not _is_same_origin(origin, host):
                raise http.Forbidden("A web page of another origin may not call this service.")
        if key and request.endpoint not in _OPEN_ENDPOINTS:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            is_key = hmac.compare_digest(token.encode("latin-1"), key.encode())
            if scheme.lower() != "bearer" or not is_key:
                raise http.Unauthorized(
                    "Send this service's PROXY_API_KEY as Authorization: Bearer.",
                    www_authenticate=WWWAuthenticate("bearer"),
                )

    def error(self, exc: http.HTTPException) -> Response:
        code = (exc.name or "").lower().replace(" ", "_")
        body = {"code": code, "message": exc.description, "request_id": g.request_id}
        headers = [(name, value) for name, value in exc.get_headers() if name != "Content-Type"]
        return _json({"error": body}, exc.code or 500, headers)

    def finish(self, response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.setdefault("Cache-Control", "no-store")
        fields = {
            "request_id": g.request_id,
            "method": request.method[:20],
            "path": request.path[:200],
            "status": response.status_code,
            "took_ms": round((monotonic() - g.started) * 1000, 1),
        }
        level = logging.DEBUG if request.endpoint == "health" else logging.INFO
        log.log(level, "request", extra={"fields": fields | g.fields})
        _limit_sending()
        return response

    # Running code

    def execute(self) -> Response:
        code, run = self._run(_json_body())
        links, blobs = "", []
        if self._publisher:
            rasterize(run, self._config)
            urls = self._publisher.publish(run)
            images = [f"![image {number}]({url})" for number, url in enumerate(urls, 1)]
            links = "\n".join([_ASK_TO_SHOW, *images]) if images else ""
        else:
            urls = [f"data:{picture.media_type};base64,{BLOB}" for picture in run.pictures]
            blobs = [picture.data for picture in run.pictures]
        text = "\n\n".join(part for part in (self._text(run), links, echo(code)) if part)
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        body = [[{"type": "text", "text": text}], {"content": content}]
        return _json(body, 200, [("X-Run-Outcome", run.outcome)], blobs)

    def mcp(self) -> Response:
        blobs: list[bytes] = []

        def call(arguments: dict[str, Any]) -> dict[str, Any]:
            try:
                _, run = self._run(arguments)
            except (http.BadRequest, http.ServiceUnavailable) as exc:
                return _tool_result(str(exc.description), is_error=True)
            rasterize(run, self._config)
            blobs.extend(picture.data for picture in run.pictures)
            text = self._text(run) or "The code ran; what it drew is shown to the user."
            return _tool_result(text, run.outcome != "ok", run)

        version = request.headers.get("MCP-Protocol-Version", mcp_server.PROTOCOL_VERSIONS[0])
        try:
            message = _json_body()
        except http.BadRequest as exc:
            return _json(mcp_server.error(None, mcp_server.PARSE_ERROR, str(exc.description)), 400)
        if version not in mcp_server.PROTOCOL_VERSIONS:
            text = "This protocol version is not served: " + ", ".join(mcp_server.PROTOCOL_VERSIONS)
            return _json(mcp_server.error(None, mcp_server.INVALID_REQUEST, text), 400)
        instructions = self._document["info"]["description"]
        answer = mcp_server.handle(message, self._tool, instructions, call)
        return Response(status=202) if answer is None else _json(answer, 200, (), blobs)

    def _run(self, arguments: object) -> tuple[str, Run]:
        code, limit_s = parse_arguments(arguments, self._config)
        _limit_sending()
        g.fields["code_chars"] = len(code)
        g.fields["code_sha256"] = hashlib.sha256(code.encode()).hexdigest()[:16]
        try:
            return code, self.pool.run(code, limit_s)
        except Full as exc:
            text = f"Every place for a run is taken. Try again in {exc.retry_after_s} seconds."
            raise http.ServiceUnavailable(text, retry_after=exc.retry_after_s) from None

    def _text(self, run: Run) -> str:
        """The text of a run that is over, which is noted for the log."""
        text = format_run(run, self._config.max_output_chars)
        picture_bytes = sum(len(picture.data) for picture in run.pictures)
        self._metrics.picture_bytes.inc(picture_bytes)
        g.fields |= {f"{step}_ms": round(s * 1000, 1) for step, s in run.durations_s.items()}
        g.fields |= {"outcome": run.outcome, "text_chars": len(text)}
        g.fields |= {"pictures": len(run.pictures), "picture_bytes": picture_bytes}
        return text

    # Looking at the service

    def health(self) -> Response:
        config = self._config
        return _json({
            "status": "healthy", "version": VERSION,
            "e2b_key_configured": bool(config.e2b_api_key),
            "api_key_required": bool(config.proxy_api_key),
            "runs_in_flight": self.pool.count("running"),
            "max_concurrent_runs": config.max_concurrent_runs,
            "warm_ready": self.pool.count("ready"),
            "sandbox_seconds_today": round(self.pool.seconds_spent(), 1),
            "sandbox_seconds_per_day": config.sandbox_seconds_per_day,
        })  # fmt: skip

    def ready(self) -> Response:
        # Only one request asks E2B; whoever comes meanwhile gets the answer before that.
        if self._ready_until < monotonic() and self._ready_lock.acquire(blocking=False):
            try:
                check_key(self._config)
                self._ready_problem = ""
            except Unavailable as exc:
                self._ready_problem = str(exc)
            finally:
                self._ready_until = monotonic() + _READY_CACHE_S
                self._ready_lock.release()
        if self._ready_problem:
            raise http.ServiceUnavailable(self._ready_problem, retry_after=_READY_CACHE_S)
        return _json({"status": "ready"})

    def metrics(self) -> Response:
        return Response(generate_latest(self._metrics.registry), content_type=CONTENT_TYPE_LATEST)

    def openapi(self) -> Response:
        host = request.headers.get("Host", "")
        name = _host_name(host.lower())
        address = _address(name)
        is_loopback = address and (address.is_loopback or address.is_unspecified)
        if not host or is_loopback or re.fullmatch(r"(.*\.)?localhost", name):
            return _json(self._document)
        return _json(self._document | {"servers": [{"url": f"{request.scheme}://{host}"}]})

    def page(self) -> Response:
        nonce = secrets.token_urlsafe(16)
        pictures = urlsplit(self._config.image_url)
        origin = f"{pictures.scheme}://{pictures.netloc}" if self._config.serves_images else ""
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            f"img-src 'self' data: {origin}; connect-src 'self'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
        return Response(self._page.replace("{nonce}", nonce), headers=headers, mimetype="text/html")

    def images(self, name: str) -> Response:
        is_served = self._publisher and self._config.serves_images
        found = self._publisher.read(name) if self._publisher and is_served else None
        if not found:
            raise http.NotFound
        headers = {
            "Cache-Control": "public, max-age=31536000, immutable",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        }
        return Response(found[0], headers=headers, content_type=found[1])


def _json(
    body: object,
    status: int = 200,
    headers: Iterable[tuple[str, str]] = (),
    blobs: Sequence[bytes] = (),
) -> Response:
    length, pieces = json_pieces(body, blobs)
    response = Response(pieces, status, headers, content_type="application/json")
    response.content_length = length
    return response


def _json_body() -> object:
    """The request's body. Raises UnsupportedMediaType, RequestEntityTooLarge, BadRequest."""
    if request.mimetype != "application/json":
        raise http.UnsupportedMediaType("Send the body as Content-Type: application/json.")
    try:
        return json.loads(request.get_data(cache=False))
    except (ValueError, RecursionError) as exc:
        text = f"The body is no JSON that can be read ({type(exc).__name__})."
        raise http.BadRequest(text) from None


def _tool_result(text: str, is_error: bool, run: Run | None = None) -> dict[str, Any]:
    parts = [{"type": "text", "text": text}]
    for picture in run.pictures if run else ():
        parts.append({"type": "image", "data": BLOB, "mimeType": picture.media_type})
    return {"content": parts, "isError": is_error}


def _limit_sending() -> None:
    """Bound the sending of the reply. To gunicorn.conf.py it says that the request is all here."""
    if connection := request.environ.get("gunicorn.socket"):
        connection.settimeout(_SEND_TIMEOUT_S)


def _host_name(host: str) -> str:
    return re.sub(r":\d*$", "", host).strip("[]")


def _address(name: str) -> Any:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _is_same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return bool(parts.netloc) and parts.netloc == host.removesuffix(default_port or "\0")
