"""What stands between the network and a server that trusts everybody, as the dashboard does.

Each guard is a WSGI application around another one.
"""

import ipaddress
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any
from urllib.parse import urlsplit

from data.errors import UserError
from studies.password import LONGEST_PAUSE_SECONDS, Login, Verdict

READING_METHODS = ("GET", "HEAD")

# A page of another site may not show this one in a frame, and let a visitor click into it.
SECURITY_HEADERS = [
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Content-Security-Policy", "frame-ancestors 'self'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
]

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d*)?")

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

logger = logging.getLogger(__name__)


def is_of_this_machine(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_only(inner: Application) -> Application:
    """Refuse every request that could change something."""

    def guarded(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in READING_METHODS:
            return inner(environ, start_response)
        reason = "This dashboard is read-only; see hpsearch dashboard --help."
        return _refuse(start_response, "403 Forbidden", reason)

    return guarded


def same_site(inner: Application) -> Application:
    """Refuse changes that a browser asks for in the name of another site's page."""

    def guarded(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in READING_METHODS or _is_from_here(environ):
            return inner(environ, start_response)
        reason = "This change was asked for by a page of another site."
        return _refuse(start_response, "403 Forbidden", reason)

    return guarded


def _is_from_here(environ: Environ) -> bool:
    """By what browsers add to a change; a program that is none needs no visitor's rights."""
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
        return False
    origin = environ.get("HTTP_ORIGIN")
    # The scheme may differ: who speaks HTTPS is a proxy in front.
    return origin is None or _netloc(origin) == environ.get("HTTP_HOST", "").lower()


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def known_hosts(inner: Application, names: Collection[str]) -> Application:
    """Refuse requests for other names: a site may let its own name point to this address."""

    def guarded(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        match = _AUTHORITY.fullmatch(environ.get("HTTP_HOST", "").lower())
        if match and match[1] in names:
            return inner(environ, start_response)
        name = match[1] if match else "NAME"
        reason = (
            "This dashboard does not go by that name. If it should: "
            f"hpsearch dashboard --allow-host {name}"
        )
        return _refuse(start_response, "400 Bad Request", reason)

    return guarded


def host_name(text: str) -> str:
    """A name as a browser sends it, for `known_hosts`.

    Raises:
        UserError: it cannot be a host's name.
    """
    name = text.lower()
    name = f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name
    match = _AUTHORITY.fullmatch(name)
    if match is None or match[1] != name:
        raise UserError(f"{text!r}: not a host name; write it without a port, as in gpu1.lab.org")
    return name


def logged_in(inner: Application, login: Login) -> Application:
    """Let nobody in without the password."""

    def guarded(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        address = str(environ["REMOTE_ADDR"])
        authorization = environ.get("HTTP_AUTHORIZATION")
        verdict = login.judge(authorization, address)
        if verdict is Verdict.ADMITTED:
            return inner(environ, start_response)
        if verdict is Verdict.TOO_SOON:
            reason = (
                "A password was wrong, or another is being checked: try again, in half a minute "
                "at the latest."
            )
            wait = ("Retry-After", f"{LONGEST_PAUSE_SECONDS:.0f}")
            return _refuse(start_response, "429 Too Many Requests", reason, wait)
        if authorization is not None:
            logger.warning("dashboard: a wrong password from %s", address)
        reason = "The dashboard's password is needed; any user name will do."
        ask = ("WWW-Authenticate", 'Basic realm="hpsearch dashboard", charset="UTF-8"')
        return _refuse(start_response, "401 Unauthorized", reason, ask)

    return guarded


def with_security_headers(inner: Application) -> Application:
    """Tell browsers what other sites may not do with these pages."""

    def guarded(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            # The dashboard gives artifacts to the pages of any site.
            own = [header for header in headers if not header[0].startswith("Access-Control-")]
            return start_response(status, [*own, *SECURITY_HEADERS], *more)

        return inner(environ, start)

    return guarded


def _refuse(
    start_response: StartResponse, status: str, reason: str, *headers: tuple[str, str]
) -> Iterable[bytes]:
    """Answer as the dashboard does, whose page shows the reason."""
    start_response(status, [("Content-Type", "application/json"), *headers])
    return [json.dumps({"reason": reason}).encode()]
