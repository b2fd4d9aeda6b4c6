"""The dashboard's password: known by its hash alone, and not to be guessed in a hurry."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Self

from data.errors import UserError

HASH_VARIABLE = "HPSEARCH_DASHBOARD_PASSWORD_HASH"

# https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html: 16 MB, 0.2 s
SCRYPT = {"n": 2**14, "r": 8, "p": 5}
SALT_BYTES = 16
DIGEST_BYTES = 32

LONGEST_PAUSE_SECONDS = 30.0
"""After a wrong password; the first pause is 1 s, each further one twice as long."""
MOST_ADDRESSES = 10_000
"""Of which wrong passwords are remembered."""


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """What is kept of a password: enough to recognise it."""

    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str) -> Self:
        salt = secrets.token_bytes(SALT_BYTES)
        return cls(salt, _derive(password, salt))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` of a hash gives.

        Raises:
            UserError: it is something else.
        """
        try:
            method, salt, digest = text.strip().split(":")
            found = cls(bytes.fromhex(salt), bytes.fromhex(digest))
        except ValueError:
            method, found = "", cls(b"", b"")
        if method != "scrypt" or len(found.digest) != DIGEST_BYTES or not found.salt:
            raise UserError(
                f"{HASH_VARIABLE}: not a hash; hpsearch dashboard --hash-password makes one"
            )
        return found

    def __str__(self) -> str:
        return f"scrypt:{self.salt.hex()}:{self.digest.hex()}"

    def matches(self, password: str) -> bool:
        """Whether it is the password; takes as long if it is not."""
        return hmac.compare_digest(_derive(password, self.salt), self.digest)


def _derive(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password.encode(errors="surrogatepass"), salt=salt, dklen=DIGEST_BYTES, **SCRYPT
    )


def read_password_file(path: Path) -> PasswordHash:
    """The hash of the password in a file, which is all of its text but the last line end.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise UserError(f"--password-file {path}: {why}") from error
    if not password:
        raise UserError(f"--password-file {path}: it is empty; write the password into it")
    return PasswordHash.of(password)


class Verdict(Enum):
    """What becomes of a request."""

    ADMITTED = auto()
    REFUSED = auto()
    TOO_SOON = auto()
    """After a wrong password, or while another one is checked; it was not even looked at."""


class Login:
    """Checks the passwords of requests, by HTTP's Basic scheme; any user name will do.

    After a wrong password, further ones from the same address are not looked at for a while. Who
    has shown the right one is not slowed by what others try, not even from the same address. One
    password is checked at a time, which takes a while on purpose, and none waits for that: guesses
    never keep more than one of the server's threads busy.
    """

    def __init__(self, password: PasswordHash, clock: Callable[[], float] = time.monotonic) -> None:
        self._password = password
        self._clock = clock
        self._turn = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}
        """By address: how many in a row, and until when nothing is looked at."""
        self._key = secrets.token_bytes(32)
        self._known: bytes = b""
        """A quick digest of the right password, once it was shown."""

    def judge(self, authorization: str | None, address: str) -> Verdict:
        """Decide by a request's `Authorization` and the address that it came from."""
        if authorization is None:
            return Verdict.REFUSED
        given = _password_in(authorization)
        quick = hashlib.blake2b(given.encode(errors="surrogatepass"), key=self._key).digest()
        if hmac.compare_digest(quick, self._known):
            return Verdict.ADMITTED
        if not self._turn.acquire(blocking=False):
            return Verdict.TOO_SOON
        try:
            network = _network(address)
            count, until = self._failures.get(network, (0, 0.0))
            if self._clock() < until:
                return Verdict.TOO_SOON
            if self._password.matches(given):
                self._known = quick
                self._failures.pop(network, None)
                return Verdict.ADMITTED
            pause = min(2.0**count, LONGEST_PAUSE_SECONDS)
            # At the end, for the oldest are forgotten first.
            self._failures.pop(network, None)
            self._failures[network] = (min(count + 1, 10), self._clock() + pause)
            if len(self._failures) > MOST_ADDRESSES:
                del self._failures[next(iter(self._failures))]
            return Verdict.REFUSED
        finally:
            self._turn.release()


def _password_in(authorization: str) -> str:
    """What stands after the user name; nothing, which matches no password, if it is malformed."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        decoded = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(":")[2] if scheme.lower() == "basic" else ""


def _network(address: str) -> str:
    """Whom an address belongs to: in IPv6, the first half says it."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
