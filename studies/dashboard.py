"""optuna-dashboard on a study's storage, behind guards: it has none of its own."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import waitress
from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from data.errors import UserError
from studies.artifacts import StudyFiles
from studies.guard import (
    Application,
    Environ,
    StartResponse,
    host_name,
    is_of_this_machine,
    known_hosts,
    logged_in,
    read_only,
    same_site,
    with_security_headers,
)
from studies.password import HASH_VARIABLE, Login, PasswordHash, read_password_file

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
ALL_ADDRESSES = ("0.0.0.0", "::")
LARGEST_REQUEST_BYTES = 2**20
"""A note with its text is the largest; without a limit, anybody can fill the disk."""

_STUDY_PAGE = re.compile(r"/dashboard/studies/([0-9]+)")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what."""

    names: frozenset[str]
    """By which the dashboard may be called."""
    password: PasswordHash | None
    allow_edits: bool


def plan_access(
    host: str,
    allowed_hosts: Iterable[str] = (),
    password_file: Path | None = None,
    password_hash: str | None = None,
    no_password: bool = False,
    allow_edits: bool = False,
) -> Access:
    """Decide who may use a dashboard that listens on `host`.

    Args:
        allowed_hosts: names beside `host` and those of the machine itself.
        password_hash: as in the environment.
        no_password: whether the user wants none.

    Raises:
        UserError: other machines could reach it without a password, which nobody has asked for;
            or what was asked for is contradictory or malformed.
    """
    password = None
    if password_file:
        password = read_password_file(password_file)
    elif password_hash:
        password = PasswordHash.parse(password_hash)
    if password and no_password:
        raise UserError(f"--no-password, but there is one (--password-file or {HASH_VARIABLE})")
    if password is None and not no_password and not is_of_this_machine(host):
        raise UserError(
            f"--host {host}: other machines can reach it; give --password-file FILE (or "
            f"{HASH_VARIABLE} in the environment), or --no-password if all of them may look"
        )
    bound = [] if host in ALL_ADDRESSES else [host]
    names = frozenset([*LOCAL_NAMES, *map(host_name, [*bound, *allowed_hosts])])
    return Access(names, password, allow_edits)


def application(storage: BaseStorage, access: Access, files: StudyFiles) -> Application:
    """The dashboard as a WSGI application that answers those who have access.

    Args:
        files: what they may download.
    """
    dashboard = _with_early_data(wsgi(storage, artifact_store=files))
    guarded = same_site(dashboard) if access.allow_edits else read_only(dashboard)
    if access.password:
        guarded = logged_in(guarded, Login(access.password))
    return with_security_headers(known_hosts(guarded, access.names))


def _with_early_data(inner: Application) -> Application:
    """Let the browser ask for a study's importances with its page, before it has read the script.

    They make the dashboard read the trials, which the script's own question then finds in memory,
    unless it comes too soon.

    Source: https://html.spec.whatwg.org/multipage/links.html#link-type-preload
    """

    def answer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        page = _STUDY_PAGE.fullmatch(environ["PATH_INFO"])
        if page is None:
            return inner(environ, start_response)
        path = f"/api/studies/{page[1]}/param_importances"
        link = ("Link", f"<{path}>; rel=preload; as=fetch; crossorigin=anonymous")

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [*headers, link], *more)

        return inner(environ, start)

    return answer


def serve(app: Application, host: str, port: int, started: Callable[[int], None]) -> None:
    """Serve until interrupted; `started` is called with the port once connections are taken.

    Raises:
        OSError: the address is in use or not of this machine.
    """
    server = waitress.create_server(
        app, host=host, port=port, threads=8, max_request_body_size=LARGEST_REQUEST_BYTES
    )
    # A name may stand for several addresses, of which each has a listener of its own.
    listeners = getattr(server, "effective_listen", None)
    try:
        started(listeners[0][1] if listeners else server.effective_port)
        server.run()
    finally:
        server.close()
