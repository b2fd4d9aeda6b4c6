"""The server of `hpsearch storage-proxy`: one process that speaks to the database, for many."""

import hmac
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._grpc.auto_generated.api_pb2_grpc import (
    add_StorageServiceServicer_to_server,
)
from optuna.storages._grpc.servicer import OptunaStorageProxyService
from optuna.trial import TrialState

from studies.database import DatabaseStorage
from studies.ownership import NotOwned, Unreadable
from studies.patience import STORAGE_ERRORS, is_transient, reason
from studies.proxied import (
    AUTHORIZATION_KEY,
    EXCEPTIONS,
    NOT_OWNED,
    OWNER_KEY,
    SERVICE,
    STUDY_UNREADABLE,
    TRIAL_UNREADABLE,
    address,
)
from studies.standing import UNREADABLE

THREADS = 15
"""Each of which uses one connection to the database at a time."""
STOP_SECONDS = 5.0
"""How long what has begun may take to end, when asked to stop."""
SHORTEST_PING_MILLISECONDS = 5000

logger = logging.getLogger(__name__)


def start(
    storage: DatabaseStorage, host: str, port: int, secret: str | None
) -> tuple[grpc.Server, int]:
    """Start to serve a database.

    Args:
        port: 0 for any.
        secret: that each client must say, if any.

    Returns:
        The server, and its port.

    Raises:
        OSError: the address is in use or not of this machine.
    """
    server = grpc.server(
        ThreadPoolExecutor(THREADS),
        interceptors=[_Gate(storage, secret)],
        options=[
            # Else a second proxy on the same port would take some of the connections.
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_MILLISECONDS),
        ],
    )
    service = OptunaStorageProxyService(SharedCache(storage))
    add_StorageServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_generic_rpc_handlers((_ownership(storage),))
    try:
        actual_port = server.add_insecure_port(address(host, port))
    except RuntimeError as error:
        raise OSError(str(error)) from error
    server.start()
    return server, actual_port


def wait(server: grpc.Server) -> None:
    """Serve until an exception, such as KeyboardInterrupt; what has begun is ended then."""
    try:
        server.wait_for_termination()
    finally:
        server.stop(STOP_SECONDS).wait()


class SharedCache(_CachedStorage):
    """Optuna's cache of trials, for many clients at once."""

    def __init__(self, storage: DatabaseStorage) -> None:
        super().__init__(storage)
        self._reading = threading.Lock()
        self._begun: dict[int, int] = {}  # By study: how many times its trials were read,
        self._read: dict[int, int] = {}  # and which was the last time that it went well.

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Optuna's knows no trial of before its start, and holds its lock while it writes."""
        self._backend.set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        """Read what is new. All who come while others read share the next time."""
        begun_before = self._begun.get(study_id, 0)
        with self._reading:
            if self._read.get(study_id, 0) > begun_before:
                return
            self._begun[study_id] = this_time = self._begun.get(study_id, 0) + 1
            super()._read_trials_from_remote_storage(study_id)
            self._read[study_id] = this_time


class _Gate(grpc.ServerInterceptor):
    """Lets in who knows the secret, says to the storage whose call it is, and names errors."""

    def __init__(self, storage: DatabaseStorage, secret: str | None) -> None:
        self._storage = storage
        self._expected = None if secret is None else f"Bearer {secret}".encode()

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        metadata = dict(details.invocation_metadata)
        if self._expected is not None:
            given = str(metadata.get(AUTHORIZATION_KEY, "")).encode()
            if not hmac.compare_digest(given, self._expected):
                return grpc.unary_unary_rpc_method_handler(_refuse)
        handler = continuation(details)
        if handler is None:
            return None
        token = metadata.get(OWNER_KEY)

        def answer(request: Any, context: Any) -> Any:
            try:
                with self._storage.on_behalf_of(token):
                    return handler.unary_unary(request, context)
            except NotOwned as error:
                context.abort(NOT_OWNED, str(error))
            except Unreadable as error:
                context.abort(TRIAL_UNREADABLE, str(error))
            except UNREADABLE as error:
                context.abort(STUDY_UNREADABLE, f"{type(error).__name__}: {reason(error)}")
            except STORAGE_ERRORS as error:
                code = grpc.StatusCode.INTERNAL
                if is_transient(error):
                    code = grpc.StatusCode.UNAVAILABLE
                context.abort(code, reason(error))

        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


def _refuse(_: bytes, context: Any) -> None:
    logger.warning("refused %s: without the token", context.peer())
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "the proxy wants a token, and not this one")


def _ownership(storage: DatabaseStorage) -> Any:
    """The service beside Optuna's: what `OwnedStorage` adds to it, in JSON."""

    def stale_seconds() -> int | None:
        return storage.grace_period

    def report(
        trial_id: int,
        accuracies: dict[str, str],
        attributes: dict[str, str],
        parameters: dict[str, tuple[float, str]],
    ) -> None:
        storage.report(
            trial_id,
            {int(epoch): float(value) for epoch, value in accuracies.items()},
            {key: json.loads(value) for key, value in attributes.items()},
            {
                name: (value, json_to_distribution(distribution))
                for name, (value, distribution) in parameters.items()
            },
        )

    def end(trial_id: int, state: int, value: str | None, note: str | None) -> None:
        number = None if value is None else float(value)
        storage.end(trial_id, TrialState(state), number, note)

    def outlines(study_id: int, numbers: list[int], best: int) -> list[Any]:
        found = storage.outlines(study_id, numbers, best)
        return [(trial.number, trial.state, trial.value) for trial in found]

    def silent_trials(study_id: int) -> dict[int, str]:
        found = storage.silent_trials(study_id)
        return {trial_id: beat.isoformat() for trial_id, beat in found.items()}

    def handler(function: Callable[..., Any]) -> Any:
        def call(arguments: dict[str, Any], context: Any) -> Any:
            try:
                return function(**arguments)
            except Unreadable:
                raise
            except tuple(EXCEPTIONS.values()) as error:
                code = next(code for code, kind in EXCEPTIONS.items() if isinstance(error, kind))
                context.abort(code, str(error))

        return grpc.unary_unary_rpc_method_handler(
            call, json.loads, lambda answer: json.dumps({"answer": answer}).encode()
        )

    functions: tuple[Callable[..., Any], ...] = (
        stale_seconds,
        storage.make,
        storage.give,
        storage.hand_back,
        storage.owner,
        storage.beat,
        storage.take_away,
        storage.lost_trials,
        silent_trials,
        report,
        end,
        storage.take_turn,
        storage.count,
        storage.open_trials,
        storage.last_ended,
        outlines,
        storage.reached,
    )
    handlers = {function.__name__: handler(function) for function in functions}
    return grpc.method_handlers_generic_handler(SERVICE, handlers)
