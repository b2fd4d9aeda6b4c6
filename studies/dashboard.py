"""optuna-dashboard on a study's storage, as a page that only shows."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import waitress
from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

READING_METHODS = ("GET", "HEAD")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

logger = logging.getLogger(__name__)


def application(storage: BaseStorage, allow_edits: bool) -> Application:
    """The dashboard as a WSGI application; without `allow_edits`, changes are answered by 403."""
    dashboard: Application = wsgi(storage)
    return dashboard if allow_edits else read_only(dashboard)


def read_only(inner: Application) -> Application:
    """Refuse every request that could change something."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in READING_METHODS:
            return inner(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [b'{"reason": "This dashboard is read-only; see hpsearch dashboard --help."}']

    return guarded


def serve(app: Application, host: str, port: int, started: Callable[[int], None]) -> None:
    """Serve until interrupted; `started` is called with the port once connections are taken.

    Raises:
        OSError: the address is in use or not of this machine.
    """
    server = waitress.create_server(app, host=host, port=port, threads=8)
    started(server.effective_port)
    try:
        server.run()
    finally:
        server.close()
