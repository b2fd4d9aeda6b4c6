"""Where the checkpoints of a study lie: in a folder, or in a bucket of an S3-compatible storage."""

import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data.errors import UserError
from data.files import always, nearest, unwritable, write_whole

if TYPE_CHECKING:
    from optuna.artifacts import Boto3ArtifactStore

WEIGHTS_NAME = re.compile(r"trial-(\d+)\.safetensors")
"""Of the file with the weights of a trial's best epoch."""

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

S3_LOCATION = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
S3_CONNECT_SECONDS = 5
S3_READ_SECONDS = 20
S3_ATTEMPTS = 3
S3_WRITES = 5
"""Of one object, while others change it in between."""


class Store(Protocol):
    """Contents by name. Each appears whole or not at all.

    Every method but `location` raises OSError if it cannot do it; its `filename` says where, its
    `strerror` why.
    """

    def location(self, name: str) -> str:
        """Where it is, for people."""

    def names(self) -> list[str]:
        """Of all that is there, in no order; none if there is no such place yet."""

    def read(self, name: str) -> bytes:
        """
        Raises:
            FileNotFoundError: there is nothing of that name.
        """

    def write(
        self, name: str, content: bytes | memoryview, may_appear: Callable[[], bool] = always
    ) -> bool:
        """In place of what has that name; if it cannot be written, that is left as it was.

        Args:
            may_appear: if not, nothing is written. In a folder it is asked when all is on the disk,
                just before the renaming. In a bucket it is asked before the content is sent, which
                may take minutes; what another has written there meanwhile is not replaced, but it
                is asked again.

        Returns:
            Whether it was written.
        """

    def remove(self, name: str) -> None:
        """Nothing, if another process was faster."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, made when it is written to; all machines with workers of the study share it."""

    path: Path

    def location(self, name: str) -> str:
        return str(self.path / name)

    def names(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(
        self, name: str, content: bytes | memoryview, may_appear: Callable[[], bool] = always
    ) -> bool:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return write_whole(self.path / name, content, may_appear)
        except OSError as error:
            reason = error.strerror
            if error.errno in OUT_OF_SPACE:
                free = shutil.disk_usage(nearest(self.path)).free
                reason = f"{reason}: {megabytes(free)} free, {megabytes(len(content))} needed"
            raise OSError(error.errno, reason, self.location(name)) from error

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@dataclass(frozen=True, slots=True)
class Bucket:
    """What begins with `prefix` in a bucket, read through Optuna's artifact store for S3.

    That cannot write under a condition.
    """

    artifacts: "Boto3ArtifactStore"
    prefix: str
    """Ends in a slash."""

    def location(self, name: str) -> str:
        return f"s3://{self.artifacts.bucket}/{self.prefix}{name}"

    def names(self) -> list[str]:
        with self._as_os_error(""):
            pages = self.artifacts.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.artifacts.bucket, Prefix=self.prefix
            )
            keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return [key.removeprefix(self.prefix) for key in keys]

    def read(self, name: str) -> bytes:
        with self._as_os_error(name):
            return self.artifacts.open_reader(self.prefix + name).read()

    def write(
        self, name: str, content: bytes | memoryview, may_appear: Callable[[], bool] = always
    ) -> bool:
        from botocore.exceptions import ClientError

        key = self.prefix + name
        with self._as_os_error(name):
            if may_appear is always:
                self._put(key, content)
                return True
            for attempt in range(1, S3_WRITES + 1):
                condition = self._as_it_is(key)
                if not may_appear():
                    return False
                try:
                    self._put_if(condition, key, content)
                    break
                except ClientError as error:
                    if not _was_changed(error) or attempt == S3_WRITES:
                        raise
        return True

    def _put_if(self, condition: dict[str, str], key: str, content: bytes | memoryview) -> None:
        from botocore.exceptions import ClientError

        try:
            self._put(key, content, **condition)
        except ClientError as error:
            if _status(error) != 501 and _code(error) != "NotImplemented":
                raise
            # Not every server knows of conditions.
            self._put(key, content)

    def _put(self, key: str, content: bytes | memoryview, **condition: str) -> None:
        # As a file it is sent in pieces, each with a timeout of its own; and at once, in no parts
        # that stay if this process is killed.
        self.artifacts.client.put_object(
            Bucket=self.artifacts.bucket, Key=key, Body=io.BytesIO(content), **condition
        )

    def _as_it_is(self, key: str) -> dict[str, str]:
        """The condition that nobody has written there since."""
        from botocore.exceptions import ClientError

        try:
            found = self.artifacts.client.head_object(Bucket=self.artifacts.bucket, Key=key)
        except ClientError as error:
            if _status(error) == 404:
                return {"IfNoneMatch": "*"}
            raise
        return {"IfMatch": found["ETag"]}

    def remove(self, name: str) -> None:
        with self._as_os_error(name):
            self.artifacts.remove(self.prefix + name)

    @contextmanager
    def _as_os_error(self, name: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError
        from optuna.artifacts.exceptions import ArtifactNotFound

        try:
            yield
        except ArtifactNotFound as error:
            missing = os.strerror(errno.ENOENT)
            raise FileNotFoundError(errno.ENOENT, missing, self.location(name)) from error
        except (BotoCoreError, ClientError) as error:
            reason = " ".join(str(error).split())
            raise OSError(errno.EIO, reason, self.location(name)) from error


def study_store(folder: Path, place: str | None, to_write: bool) -> Store:
    """Where the checkpoints of one study are.

    Args:
        folder: of the study.
        place, to_write: as `open_store`; without a place, they are in the folder.

    Raises:
        UserError, OSError: see `open_store`.
    """
    return open_store(place, folder.name, to_write) if place else Folder(folder / "checkpoints")


def open_store(place: str, study: str, to_write: bool) -> Store:
    """Where the checkpoints of one study are, below the place that all its workers share.

    Args:
        place: a folder, or `s3://bucket/prefix`.
        study: a name that no other study has.
        to_write: whether it is not enough to read there.

    Raises:
        UserError: there is no such bucket, or it or the folder may not be used.
        OSError: the place cannot be reached at the moment.
    """
    if "://" not in place:
        folder = Path(place) / study
        reason = unwritable(folder) if to_write else None
        if reason:
            raise UserError(f"--checkpoints {place}: {reason}")
        return Folder(folder)
    match = S3_LOCATION.fullmatch(place)
    if not match:
        # It is not shown: there might be a password in it.
        raise UserError("--checkpoints: write s3://bucket/prefix, or the path of a folder")
    prefix = (match["prefix"] or "").strip("/")
    bucket = Bucket(_artifacts(match["bucket"]), f"{prefix}/{study}/".lstrip("/"))
    try:
        bucket.names()
        if to_write:
            bucket.write("writable", b"")
            bucket.remove("writable")
    except OSError as error:
        if _will_pass(error.__cause__):
            raise
        raise UserError(
            f"--checkpoints {place}: {error.strerror}; the bucket has to exist, and boto3 to find "
            "credentials for it, in the environment (AWS_ACCESS_KEY_ID, …) or in ~/.aws"
        ) from error
    return bucket


def _artifacts(bucket: str) -> "Boto3ArtifactStore":
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise UserError("--checkpoints: for S3, boto3 is needed: pip install -e '.[s3]'") from error
    from optuna.artifacts import Boto3ArtifactStore

    config = Config(
        connect_timeout=S3_CONNECT_SECONDS,
        read_timeout=S3_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": S3_ATTEMPTS},
    )
    try:
        client = boto3.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:  # A profile, a region, an endpoint's URL.
        raise UserError(f"--checkpoints: {' '.join(str(error).split())}") from error
    return Boto3ArtifactStore(bucket, client)


def _will_pass(error: Any) -> bool:
    """Whether an error of S3 says nothing about the bucket or the credentials."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

    if isinstance(error, ClientError):
        return _status(error) >= 500 or _status(error) == 429
    return isinstance(error, ConnectionError | HTTPClientError)


def _was_changed(error: Any) -> bool:
    """Whether an object is not as the condition has it: changed, being changed, or removed."""
    return _status(error) in (409, 412) or _code(error) == "NoSuchKey"


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
