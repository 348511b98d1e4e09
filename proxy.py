"""The service's HTTP side: routes, who may call them, what errors look like. Runs: `pool.py`."""

import hashlib
import json
import logging
import os
import re
import secrets
from pathlib import Path
from time import monotonic
from typing import Any

import werkzeug.exceptions as http
from flask import Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.datastructures import WWWAuthenticate

import mcp_server
from config import MAX_BODY_BYTES, VERSION, Config, log
from formatter import echo, format_run
from images import BLOB, json_pieces, publish, published, rasterize
from metrics import IN_FLIGHT, PICTURE_BYTES, WARM_READY
from pool import RETRY_AFTER_S, Full, Pool
from run import Run
from sandbox import Unavailable, check_key

_HERE = Path(__file__).parent
_OPEN_ENDPOINTS = {None, "health", "ready", "openapi", "images", "page"}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; base-uri 'none'; "
    "connect-src 'self'; img-src 'self' data: {images}; form-action 'none'; frame-ancestors 'none'"
)
_IMAGE_HEADERS = {
    "Cache-Control": "public, max-age=31536000, immutable",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
_READY_CACHE_S = 30
# An attacker's page can have a name of its own resolve to this service, but no such as these.
_LOCAL_HOST = re.compile(r"([^.:]*|.*\.localhost|\d+(\.\d+){3}|\[[0-9a-f:.]+\])(:\d+)?")
_LOOPBACK = re.compile(r"(|(.*\.)?localhost|127(\.\d+){3}|0\.0\.0\.0|\[::1?\])(:\d+)?")
_ASK_FOR_KEY = "Send this service's PROXY_API_KEY as Authorization: Bearer."
_ASK_TO_SHOW = "To show the user these images, repeat these lines unchanged:"


def __getattr__(name: str) -> Flask:
    # `app` is made when gunicorn asks for it, so that this module can be imported without a key.
    if name == "app":
        return create_app(Config.from_env(os.environ))
    raise AttributeError(name)


def create_app(config: Config) -> Flask:
    app = Flask(__name__, static_folder=None)
    service = app.extensions["service"] = _Service(config)
    app.before_request(service.guard)
    app.after_request(service.finish)
    app.register_error_handler(http.HTTPException, service.error)
    for rule in ("/execute", "/mcp"):
        app.post(rule)(getattr(service, rule[1:]))
    for rule in (
        "/health",
        "/ready",
        "/metrics",
        "/openapi.json",
        "/images/<name>",
        "/",
    ):
        name = re.split(r"\W", rule)[1] or "page"
        app.get(rule, endpoint=name)(getattr(service, name))
    return app


def parse_arguments(body: object, config: Config) -> tuple[str, int]:
    """Return (code, the run's limit in seconds). Raises BadRequest, which names the field."""
    if not isinstance(body, dict):
        raise http.BadRequest('Expected a JSON object such as {"code": "print(1)"}.')
    code, language, timeout = (body.get(key) for key in ("code", "language", "timeout"))
    if not isinstance(code, str) or not code.strip():
        raise http.BadRequest("code must be a string that is not blank.")
    if len(code) > config.max_code_chars:
        raise http.BadRequest(
            f"code has {len(code):,} characters of {config.max_code_chars:,}."
        )
    if re.search("[\ud800-\udfff]", code):
        raise http.BadRequest(
            "code must not hold a lone surrogate, which is no character."
        )
    if language not in (None, "python"):
        raise http.BadRequest('language must be "python", the only one that is served.')
    limit_s = config.run_timeout_s if timeout is None else timeout
    if type(limit_s) is not int or limit_s < 1:
        raise http.BadRequest("timeout must be a whole number of seconds, 1 or more.")
    return code, min(limit_s, config.run_timeout_s)


class _Service:
    def __init__(self, config: Config) -> None:
        self._config = config
        self.pool = Pool(config)
        IN_FLIGHT.set_function(lambda: self.pool.count("running"))
        WARM_READY.set_function(lambda: self.pool.count("ready"))
        if config.image_dir and not os.access(config.image_dir, os.W_OK | os.X_OK):
            log.warning(
                "IMAGE_DIR cannot be written: pictures will be left out of replies"
            )
        self._page = (_HERE / "index.html").read_text("utf-8")
        self._document = json.loads((_HERE / "openapi.json").read_bytes())
        operation = self._document["paths"]["/execute"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        schema["properties"]["code"]["maxLength"] = config.max_code_chars
        schema["properties"]["timeout"]["default"] = config.run_timeout_s
        properties = {name: schema["properties"][name] for name in ("code", "timeout")}
        self._tool = {
            "name": operation["operationId"],
            "description": operation["description"],
        }
        self._tool["inputSchema"] = schema | {"properties": properties}
        self._ready_until, self._ready_problem = (
            0.0,
            "E2B is being asked. Try again in a moment.",
        )

    def guard(self) -> None:
        """Before each request: refuse who may not call. No page of another origin may POST."""
        g.started, g.fields = monotonic(), {}
        given_id = re.fullmatch(
            r"[0-9A-Za-z_.-]{1,64}", request.headers.get("X-Request-Id", "")
        )
        g.request_id = given_id[0] if given_id else secrets.token_hex(16)
        key, host = self._config.proxy_api_key, request.headers.get("Host", "").lower()
        if request.method == "POST":
            allowed_hosts = re.split("[, ]+", self._config.allowed_hosts.lower())
            is_allowed = re.sub(r":\d+$", "", host) in allowed_hosts
            if not (key or is_allowed or _LOCAL_HOST.fullmatch(host)):
                raise http.Forbidden(
                    "This Host is not served: add it to ALLOWED_HOSTS."
                )
            origin = request.headers.get("Origin", "").lower()
            own = (
                f"http://{host.removesuffix(':80')}",
                f"https://{host.removesuffix(':443')}",
            )
            if "Origin" in request.headers and origin not in own:
                raise http.Forbidden(
                    "A web page of another origin may not call this service."
                )
        if key and request.endpoint not in _OPEN_ENDPOINTS:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            is_key = secrets.compare_digest(token.encode("latin-1"), key.encode())
            if scheme.lower() != "bearer" or not is_key:
                raise http.Unauthorized(
                    _ASK_FOR_KEY, www_authenticate=WWWAuthenticate("bearer")
                )

    def error(self, exc: http.HTTPException) -> Response:
        code = (exc.name or "").lower().replace(" ", "_")
        body = {"code": code, "message": exc.description, "request_id": g.request_id}
        return _json({"error": body}, exc.code or 500, exc.get_headers())

    def finish(self, response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.setdefault("Cache-Control", "no-store")
        took_ms = round((monotonic() - g.started) * 1000, 1)
        fields = {
            "request_id": g.request_id,
            "method": request.method[:20],
            "path": request.path[:200],
            "status": response.status_code,
            "took_ms": took_ms,
            **g.fields,
        }
        level = logging.DEBUG if request.endpoint == "health" else logging.INFO
        log.log(level, "request", extra={"fields": fields})
        _limit_sending()
        return response

    def execute(self) -> Response:
        code, run = self._run(_json_body())
        links, blobs = "", []
        if self._config.image_dir:
            rasterize(run, self._config)
            urls = publish(run, self._config)
            lines = [f"![image {number}]({url})" for number, url in enumerate(urls, 1)]
            links = "\n".join([_ASK_TO_SHOW, *lines]) if urls else ""
        else:
            urls = [
                f"data:{picture.media_type};base64,{BLOB}" for picture in run.pictures
            ]
            blobs = [picture.data for picture in run.pictures]
        text = "\n\n".join(
            part for part in (self._text(run), links, echo(code)) if part
        )
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        body = [[{"type": "text", "text": text}], {"content": content}]
        return _json(body, 200, [("X-Run-Outcome", run.outcome)], blobs)

    def mcp(self) -> Response:
        blobs: list[bytes] = []

        def call(arguments: dict[str, Any]) -> dict[str, Any]:
            try:
                _, run = self._run(arguments)
            except (http.BadRequest, http.ServiceUnavailable) as exc:
                parts = [{"type": "text", "text": str(exc.description)}]
                return {"content": parts, "isError": True}
            rasterize(run, self._config)
            blobs.extend(picture.data for picture in run.pictures)
            text = self._text(run) or "The code ran; what it drew is shown to the user."
            images = (
                {"type": "image", "data": BLOB, "mimeType": p.media_type}
                for p in run.pictures
            )
            parts = [{"type": "text", "text": text}, *images]
            return {"content": parts, "isError": run.outcome != "ok"}

        try:
            message = _json_body()
        except http.BadRequest as exc:
            return _json(
                mcp_server.error(None, mcp_server.PARSE_ERROR, str(exc.description)),
                400,
            )
        answer = mcp_server.handle(
            message, self._tool, self._document["info"]["description"], call
        )
        return Response(status=202) if answer is None else _json(answer, blobs=blobs)

    def _run(self, arguments: object) -> tuple[str, Run]:
        code, limit_s = parse_arguments(arguments, self._config)
        _limit_sending()
        digest = hashlib.sha256(code.encode()).hexdigest()
        g.fields |= {"code_chars": len(code), "code_sha256": digest[:16]}
        try:
            return code, self.pool.run(code, limit_s)
        except Full:
            text = (
                f"Every place for a run is taken. Try again in {RETRY_AFTER_S} seconds."
            )
            raise http.ServiceUnavailable(text, retry_after=RETRY_AFTER_S) from None

    def _text(self, run: Run) -> str:
        """The text of a run whose pictures are settled; notes both for the log."""
        text = format_run(run, self._config.max_output_chars)
        picture_bytes = sum(len(picture.data) for picture in run.pictures)
        PICTURE_BYTES.inc(picture_bytes)
        g.fields |= {
            f"{step}_ms": round(s * 1000, 1) for step, s in run.durations_s.items()
        }
        g.fields |= {
            "outcome": run.outcome,
            "text_chars": len(text),
            "pictures": len(run.pictures),
            "picture_bytes": picture_bytes,
        }
        return text

    def health(self) -> Response:
        config, pool = self._config, self.pool
        return _json(
            {
                "status": "healthy",
                "version": VERSION,
                "e2b_key_configured": bool(config.e2b_api_key),
                "api_key_required": bool(config.proxy_api_key),
                "runs_in_flight": pool.count("running"),
                "max_concurrent_runs": config.max_concurrent_runs,
                "warm_ready": pool.count("ready"),
                "sandbox_seconds_today": round(pool.seconds_spent(), 1),
                "sandbox_seconds_per_day": config.sandbox_seconds_per_day,
            }
        )

    def ready(self) -> Response:
        if self._ready_until < monotonic():
            self._ready_until = (
                monotonic() + _READY_CACHE_S
            )  # who comes meanwhile does not ask
            try:
                check_key(self._config)
                self._ready_problem = ""
            except Unavailable as exc:
                self._ready_problem = str(exc)
        if self._ready_problem:
            raise http.ServiceUnavailable(
                self._ready_problem, retry_after=_READY_CACHE_S
            )
        return _json({"status": "ready"})

    def metrics(self) -> Response:
        return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)

    def openapi(self) -> Response:
        host = request.headers.get("Host", "")
        servers = {"servers": [{"url": f"{request.scheme}://{host}"}]}
        return _json(
            self._document | ({} if _LOOPBACK.fullmatch(host.lower()) else servers)
        )

    def page(self) -> Response:
        nonce = secrets.token_urlsafe(16)
        images = (
            f"{self._config.image_url.rstrip('/')}/"
            if "://" in self._config.image_url
            else ""
        )
        headers = {
            "Content-Security-Policy": _PAGE_POLICY.format(nonce=nonce, images=images)
        }
        return Response(
            self._page.replace("{nonce}", nonce), 200, headers, mimetype="text/html"
        )

    def images(self, name: str) -> Response:
        if not (found := published(name, self._config)):
            raise http.NotFound("There is no such picture.")
        return Response(found[0], 200, _IMAGE_HEADERS, content_type=found[1])


def _json(
    body: object, status: int = 200, headers: Any = (), blobs: Any = ()
) -> Response:
    return Response(
        json_pieces(body, blobs), status, headers, content_type="application/json"
    )


def _json_body() -> object:
    """The request's body. Raises UnsupportedMediaType, RequestEntityTooLarge, BadRequest."""
    if request.mimetype != "application/json":
        raise http.UnsupportedMediaType(
            "Send the body as Content-Type: application/json."
        )
    announced = request.content_length or 0
    try:
        if announced <= MAX_BODY_BYTES:
            body = request.stream.read(MAX_BODY_BYTES + 1)
            if len(body) < announced:
                raise EOFError
            if len(body) <= MAX_BODY_BYTES:
                return json.loads(body)
    except (
        Exception
    ) as exc:  # RecursionError, and what the server raises when chunks are malformed
        text = f"The body is no JSON that can be read ({type(exc).__name__})."
        raise http.BadRequest(text) from None
    raise http.RequestEntityTooLarge(
        f"The body has more than {MAX_BODY_BYTES:,} bytes."
    )


def _limit_sending() -> None:
    """Bound each step of sending. To gunicorn.conf.py it says that the request is all here."""
    if connection := request.environ.get("gunicorn.socket"):
        connection.settimeout(30)
