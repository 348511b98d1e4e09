"""Who calls, by a request's headers: three checks, each against an attack. Pure.

It also says which session a request belongs to.
"""

import hmac
import re
import secrets
from base64 import b64decode

# Names that nobody on the internet can make lead here: "e2b-proxy:3001" (no dot),
# "a.localhost", "192.0.2.7:3001", "[2001:db8::1]", and no Host at all (HTTP/1.0).
# It also matches texts that are no address or name ("999.1.1.1"): a browser sends none.
# In the local network another machine may answer to a name without a dot; against that
# PROXY_API_KEY helps.
_LOCAL_HOST = re.compile(r"([^.:]*|.*\.localhost|\d+(\.\d+){3}|\[[0-9a-f:.]+\])(:\d+)?")
# Printable ASCII: `64f1c0ffee/5b6a0c1e-conversation`.
_SESSION_ID = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")
# LibreChat leaves a placeholder that it cannot fill empty or unreplaced: `64f1c0ffee/`,
# `64f1c0ffee/{{LIBRECHAT_BODY_CONVERSATIONID}}`. All users would share such an id.
_UNKNOWN_PART = re.compile(r"\A/|/\Z|\{\{")


def is_host_served(host: str, allowed_hosts: str) -> bool:
    """Whether a POST may name this host; `allowed_hosts` is ALLOWED_HOSTS.

    The attack is DNS rebinding: a page is served under a name that then resolves to
    this service; the visitor's browser takes both for one site.
    """
    host = host.lower()
    if _LOCAL_HOST.fullmatch(host):
        return True
    name = re.sub(r":\d+$", "", host)
    names = re.split("[, ]+", allowed_hosts.lower())
    return name in names


def is_origin_own(origin: str, host: str) -> bool:
    """Whether the page at `origin` comes from this service, which was asked as `host`.

    The attack is a forged request: a page of any site can have the visitor's browser
    POST here. The browser says where the page is from, and no script can change that.
    """
    host = host.lower()
    own_origins = (
        f"http://{host.removesuffix(':80')}",
        f"https://{host.removesuffix(':443')}",
    )
    return origin.lower() in own_origins


def as_bearer(authorization: str, api_key: str) -> str:
    """What carries a key to the code API, as `Bearer KEY`; anything else as it is.

    `Basic BASE64(USER:KEY)` is sent by a client whose address for this service is
    http://USER:KEY@HOST. The header X-API-Key, here `api_key`, is what LibreChat
    before 0.8.6 sends, and it counts where there is no Authorization.
    """
    if api_key and not authorization:
        return f"Bearer {api_key}"
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        credentials = b64decode(token).decode("latin-1")
    except ValueError:
        return authorization
    return "Bearer " + credentials.partition(":")[2]


def is_key_right(authorization: str, key: str) -> bool:
    """Whether the Authorization header carries `key`, as `Bearer KEY`.

    The attack is to guess the key character by character, from the time that comparing
    takes: this comparison takes the same time wherever the first difference is.
    """
    scheme, _, token = authorization.partition(" ")
    # Bytes are compared, because `compare_digest` takes no text beyond ASCII. Headers
    # arrive as latin-1.
    is_equal = secrets.compare_digest(token.encode("latin-1"), key.encode())
    return is_equal and scheme.lower() == "bearer"


def session_mark(session_id: str, key: str) -> str:
    """A keyed hash of the session id, which does not reveal the id.

    It marks the session's sandbox. It is empty if the text is no id: then the call has
    no session.
    """
    if not _SESSION_ID.fullmatch(session_id):
        return ""
    if _UNKNOWN_PART.search(session_id):
        return ""
    mark = hmac.new(key.encode(), session_id.encode(), "sha256")
    return mark.hexdigest()
