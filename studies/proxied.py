"""A storage behind `hpsearch storage-proxy`: what a worker has in place of the database.

Reads and writes are Optuna's own gRPC service and client. A second service, in JSON, is for what
`studies.ownership` adds; and each write to a trial that this process has taken says its token,
which the proxy looks for in the transaction of the write. So all that is promised there holds here.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import GrpcStorageProxy
from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
from optuna.storages._grpc.client import GrpcClientCache
from optuna.trial import TrialState

from data.errors import UserError
from studies.ownership import NotOwned, OwnedStorage, Unreadable
from studies.patience import ProxyFailure
from studies.results import TrialRecord
from studies.standing import Ended, Reach, Standing, outline

SERVICE = "hpsearch.Ownership"
OWNER_KEY = "hpsearch-owner"
"""In the metadata of a write to a trial: the token of who has it."""
AUTHORIZATION_KEY = "authorization"
NOT_OWNED = grpc.StatusCode.ABORTED
TRIAL_UNREADABLE = grpc.StatusCode.DATA_LOSS
STUDY_UNREADABLE = grpc.StatusCode.OUT_OF_RANGE

SECRET = "HPSEARCH_PROXY_TOKEN"
SECRET_FILE = "HPSEARCH_PROXY_TOKEN_FILE"

CALL_SECONDS = 60.0
KEEPALIVE_SECONDS = 10
"""A proxy that vanished without a word is noticed after twice this time."""
LONGEST_RECONNECT_SECONDS = 5

# What Optuna's client makes exceptions of its own from.
KNOWN_TO_OPTUNA = (
    grpc.StatusCode.OK,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
)
EXCEPTIONS: Mapping[grpc.StatusCode, type[Exception]] = {
    grpc.StatusCode.NOT_FOUND: KeyError,
    grpc.StatusCode.FAILED_PRECONDITION: UpdateFinishedTrialError,
    grpc.StatusCode.INVALID_ARGUMENT: ValueError,
}
"""Of our service: how they come through."""
TRANSIENT = (
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
)


class ProxiedStorage(OwnedStorage, GrpcStorageProxy):
    """Optuna's client of a proxy, with trials that belong to whoever took them."""

    def __init__(self, host: str, port: int, secret: str | None) -> None:
        """
        Args:
            secret: that the proxy asks for, if it does.

        Raises:
            ProxyFailure: no proxy answers there, or it is another's.
        """
        OwnedStorage.__init__(self, stale_seconds=0)
        self._secret = secret
        GrpcStorageProxy.__init__(self, host=host, port=port)
        self._stale_seconds = self._ask("stale_seconds")

    def _setup(self) -> None:
        """Called by Optuna to make its channel."""
        channel = grpc.insecure_channel(
            address(self._host, self._port),
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.enable_http_proxy", 0),
                ("grpc.keepalive_time_ms", 1000 * KEEPALIVE_SECONDS),
                ("grpc.keepalive_timeout_ms", 1000 * KEEPALIVE_SECONDS),
                ("grpc.max_reconnect_backoff_ms", 1000 * LONGEST_RECONNECT_SECONDS),
            ],
        )
        self._channel = grpc.intercept_channel(channel, _Calls(self._tokens, self._secret))
        self._stub = StorageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._cache = GrpcClientCache(self._stub)

    def make(self, study_id: int, limit: int | None, token: str, again: bool) -> int | None:
        made: int | None = self._ask(
            "make", study_id=study_id, limit=limit, token=token, again=again
        )
        return made

    def give(self, trial_id: int, token: str) -> bool:
        return bool(self._ask("give", trial_id=trial_id, token=token))

    def owner(self, trial_id: int) -> str | None:
        owner: str | None = self._ask("owner", trial_id=trial_id)
        return owner

    def hand_back(self, trial_id: int) -> None:
        self._ask("hand_back", trial_id=trial_id)

    def beat(self, trial_id: int, token: str) -> bool:
        return bool(self._ask("beat", trial_id=trial_id, token=token))

    def take_away(
        self,
        trial_id: int,
        owner: str | None,
        most_losses: int,
        reason: str,
        if_silent: bool = False,
    ) -> bool:
        taken = self._ask(
            "take_away",
            trial_id=trial_id,
            owner=owner,
            most_losses=most_losses,
            reason=reason,
            if_silent=if_silent,
        )
        return bool(taken)

    def lost_trials(self, study_id: int) -> dict[int, str | None]:
        found = self._ask("lost_trials", study_id=study_id)
        return {int(trial_id): owner for trial_id, owner in found.items()}

    def silent_trials(self, study_id: int) -> dict[int, datetime]:
        found = self._ask("silent_trials", study_id=study_id)
        return {int(trial_id): datetime.fromisoformat(beat) for trial_id, beat in found.items()}

    def report(
        self,
        trial_id: int,
        accuracies: Mapping[int, float],
        attributes: Mapping[str, Any],
        parameters: Mapping[str, tuple[float, BaseDistribution]],
    ) -> None:
        self._ask(
            "report",
            trial_id=trial_id,
            accuracies={epoch: number_to_json(value) for epoch, value in accuracies.items()},
            attributes={key: json.dumps(value) for key, value in attributes.items()},
            parameters={
                name: (value, distribution_to_json(distribution))
                for name, (value, distribution) in parameters.items()
            },
        )

    def end(
        self,
        trial_id: int,
        state: TrialState,
        value: float | None = None,
        note: str | None = None,
    ) -> None:
        number = None if value is None else number_to_json(value)
        self._ask("end", trial_id=trial_id, state=state, value=number, note=note)

    def take_turn(self, study_id: int, pause_seconds: float) -> bool:
        return bool(self._ask("take_turn", study_id=study_id, pause_seconds=pause_seconds))

    def count(self, study_id: int) -> int:
        return int(self._ask("count", study_id=study_id))

    def open_trials(self, study_id: int) -> tuple[int, list[Standing]]:
        ended, found = self._ask("open_trials", study_id=study_id)
        return ended, [
            Standing(trial_id, number, TrialState(state)) for trial_id, number, state in found
        ]

    def last_ended(self, study_id: int, since: int, most: int) -> list[Ended]:
        found = self._ask("last_ended", study_id=study_id, since=since, most=most)
        return [Ended(number, TrialState(state), error) for number, state, error in found]

    def outlines(self, study_id: int, numbers: Collection[int], best: int) -> list[TrialRecord]:
        found = self._ask("outlines", study_id=study_id, numbers=list(numbers), best=best)
        return [outline(*row) for row in found]

    def reached(self, study_id: int, epoch: int, since: int) -> list[Reach]:
        found = self._ask("reached", study_id=study_id, epoch=epoch, since=since)
        return [Reach(*row) for row in found]

    def _ask(self, method: str, **arguments: Any) -> Any:
        call: grpc.UnaryUnaryMultiCallable[dict[str, Any], dict[str, Any]]
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: json.dumps(message, allow_nan=False).encode(),
            response_deserializer=json.loads,
        )
        try:
            return call(arguments)["answer"]
        except grpc.RpcError as error:
            if error.code() in EXCEPTIONS:
                raise EXCEPTIONS[error.code()](error.details()) from error
            raise


class _Calls(grpc.UnaryUnaryClientInterceptor):
    """Gives each call what Optuna's client leaves out: a deadline, the token, the secret."""

    def __init__(self, tokens: dict[int, str], secret: str | None) -> None:
        self._tokens = tokens
        self._secret = [] if secret is None else [(AUTHORIZATION_KEY, f"Bearer {secret}")]

    def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], details: Any, request: Any
    ) -> Any:
        fields = request if isinstance(request, dict) else {}
        token = self._tokens.get(fields.get("trial_id", getattr(request, "trial_id", -1)))
        owner = [] if token is None else [(OWNER_KEY, token)]
        details = details._replace(timeout=CALL_SECONDS, metadata=[*self._secret, *owner])
        call = continuation(details, request)
        code = call.code()
        if code in KNOWN_TO_OPTUNA:
            return call
        if code == NOT_OWNED:
            raise NotOwned(call.details())
        if code == TRIAL_UNREADABLE:
            raise Unreadable(call.details())
        if code == STUDY_UNREADABLE:
            raise ValueError(call.details())
        said = call.details()
        if code == grpc.StatusCode.UNIMPLEMENTED:
            said = "what answers there is not hpsearch storage-proxy, or an older one"
        raise ProxyFailure(said, code in TRANSIENT)


def number_to_json(value: float) -> str:
    """In JSON are no infinities; `float` reads it."""
    return repr(float(value))


def address(host: str, port: int) -> str:
    """As gRPC and URLs write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_proxied(url: str) -> ProxiedStorage:
    """Open `grpc://host:port`.

    Raises:
        ProxyFailure: no proxy answers there, or it does not accept our token.
        UserError: the URL is malformed, or the token cannot be read.
    """
    parsed = urlsplit(url)
    try:
        host, port = parsed.hostname, parsed.port
    except ValueError:
        host, port = None, None
    if not host or not port or parsed.netloc.lower() != address(host, port):
        raise UserError(f"storage: write grpc://host:port (a token belongs in {SECRET})")
    storage = ProxiedStorage(host, port, proxy_secret())
    storage.url = url
    return storage


def proxy_secret(file: Path | None = None) -> str | None:
    """What a proxy and its clients share, if they do: of a file, or of the environment.

    Raises:
        UserError: the file cannot be read, or there is no token in it.
    """
    named = file or os.environ.get(SECRET_FILE)
    where = f"token file {named}" if named else SECRET
    try:
        secret = Path(named).read_text().strip() if named else os.environ.get(SECRET)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from error
    if secret is not None and not (secret.isascii() and secret.isprintable() and secret):
        raise UserError(f"{where}: a token is one line of ASCII; for example: openssl rand -hex 32")
    return secret
