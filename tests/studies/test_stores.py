import errno
import os
import re
import resource
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse

from data.errors import UserError
from studies.stores import S3_WRITES, Bucket, Folder, Store, open_store
from tests.s3 import PAGE, SECRET, new_bucket, s3_server


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "shared")
    return f"{request.getfixturevalue('s3_bucket')}/some/where"


@pytest.fixture
def store(place: str) -> Store:
    return open_store(place, "flowers-1234", to_write=True)


def test_what_is_written_is_there_until_it_is_removed(store: Store) -> None:
    assert store.names() == []
    large = os.urandom(9_000_000)  # More than boto3 sends to S3 in one part.
    store.write("a", large)
    store.write("b", b"first")
    store.write("b", memoryview(b"second"))
    assert not store.write("b", b"third", may_appear=lambda: False)
    assert store.write("b", memoryview(b"second"), may_appear=lambda: True)
    assert sorted(store.names()) == ["a", "b"], "nothing is left beside"
    assert store.read("a") == large
    assert store.read("b") == b"second"
    store.remove("a")
    store.remove("a")
    assert store.names() == ["b"]
    with pytest.raises(FileNotFoundError):
        store.read("a")


def test_each_study_has_its_own(place: str, store: Store) -> None:
    store.write("a", b"1")
    other = open_store(place, "flowers", to_write=True)
    assert other.names() == []
    other.write("a", b"2")
    assert store.read("a") == b"1"
    assert store.location("a").startswith(place)
    assert store.location("a").endswith("/flowers-1234/a")


def test_more_names_than_a_page_of_s3_are_all_there(s3_bucket: str) -> None:
    store = open_store(s3_bucket, "flowers", to_write=True)
    names = {f"{number}" for number in range(2 * PAGE + 1)}
    for name in names:
        store.write(name, b"")
    assert set(store.names()) == names


@pytest.fixture
def bucket(s3_bucket: str) -> Bucket:
    store = open_store(f"{s3_bucket}/some/where", "flowers", to_write=True)
    assert isinstance(store, Bucket)
    return store


def before_each_put(bucket: Bucket, act: Callable[[Any], AWSResponse | None]) -> None:
    """Let something happen when a request is on its way, or take the server's place."""

    def held(request: Any, **_: object) -> AWSResponse | None:
        return act(request)

    bucket.artifacts.client.meta.events.register("before-send.s3.PutObject", held)


def refusal(request: Any, status: int, code: str) -> AWSResponse:
    class Raw:
        def stream(self) -> Iterator[bytes]:
            yield f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()

    return AWSResponse(request.url, status, {}, Raw())


@pytest.mark.parametrize("before", [None, b"epoch 2"])
@pytest.mark.parametrize("size", [1, 9_000_000])
def test_who_was_frozen_while_it_sent_a_file_does_not_replace_its_successor_s(
    bucket: Bucket, s3_bucket: str, before: bytes | None, size: int
) -> None:
    successor = open_store(f"{s3_bucket}/some/where", "flowers", to_write=True)
    owner, sent = ["A"], []
    if before is not None:
        bucket.write("a", before)

    def freeze(request: Any) -> None:
        sent.append(request)
        if owner == ["A"]:
            owner[0] = "B"
            assert successor.write("a", b"epoch 9", lambda: owner == ["B"])

    before_each_put(bucket, freeze)
    assert not bucket.write("a", b"3" * size, lambda: owner == ["A"])
    assert len(sent) == 1
    assert bucket.read("a") == b"epoch 9"


def test_who_has_the_trial_still_replaces_what_appeared_or_went_meanwhile(bucket: Bucket) -> None:
    """As its own, whose answer was lost; or one of a worker that had the trial before."""
    other = boto3.client("s3")
    there = {"Bucket": bucket.artifacts.bucket, "Key": f"{bucket.prefix}a"}
    changes = [
        partial(other.put_object, **there, Body=b"late"),
        partial(other.delete_object, **there),
    ]

    def change(_: Any) -> None:
        if changes:
            changes.pop(0)()

    bucket.write("a", b"epoch 1")
    before_each_put(bucket, change)
    assert bucket.write("a", b"epoch 2", lambda: True)
    assert (bucket.read("a"), changes) == (b"epoch 2", [])


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "PreconditionFailed"])
def test_one_that_others_change_time_and_again_is_left(bucket: Bucket, code: str) -> None:
    asked = []
    status = 409 if code == "ConditionalRequestConflict" else 412
    before_each_put(bucket, lambda request: refusal(request, status, code))

    def is_ours() -> bool:
        asked.append(True)
        return True

    with pytest.raises(OSError, match=code) as error:
        bucket.write("a", b"1", is_ours)
    assert error.value.filename == bucket.location("a")
    assert len(asked) == S3_WRITES


def test_a_server_that_knows_no_conditions_is_written_to_without(bucket: Bucket) -> None:
    conditions = []

    def old(request: Any) -> AWSResponse | None:
        given = [name for name in request.headers if name.lower() in ("if-match", "if-none-match")]
        conditions.append(given)
        return refusal(request, 501, "NotImplemented") if given else None

    before_each_put(bucket, old)
    assert bucket.write("a", b"1", lambda: True)
    assert bucket.write("a", b"2", lambda: True)
    assert not bucket.write("a", b"3", lambda: False)
    assert bucket.read("a") == b"2"
    assert conditions == [["If-None-Match"], [], ["If-Match"], []]


@pytest.mark.parametrize("place", ["s3://", "s3://UPPER/x", "gs://bucket", "s3://me:word@bucket/x"])
def test_a_place_that_is_none_is_not_repeated(place: str) -> None:
    with pytest.raises(UserError, match="write s3://bucket/prefix, or the path of") as error:
        open_store(place, "flowers", to_write=True)
    assert "word" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "new")
    with pytest.raises(UserError, match=f"^--checkpoints {place}: {tmp_path / 'file'} is not a f"):
        open_store(place, "flowers", to_write=True)
    assert open_store(place, "flowers", to_write=False).names() == []


def test_a_missing_bucket_is_the_user_s_to_mend(s3_bucket: str) -> None:
    with pytest.raises(UserError, match=f"^--checkpoints {s3_bucket}-2/x: .*NoSuchBucket.* exist"):
        open_store(f"{s3_bucket}-2/x", "flowers", to_write=False)


def test_so_are_missing_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"Unable to locate credentials; .*AWS_ACCESS_KEY_ID"):
        open_store(s3_bucket, "flowers", to_write=False)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"profile \(nobody\) could not be found"):
        open_store(s3_bucket, "flowers", to_write=False)


@pytest.fixture
def suspicious_s3(s3_url: str, s3_bucket: str) -> Iterator[str]:
    """A bucket on a server that looks at credentials."""

    def look_after(requests: bytes) -> None:
        switch = f"{s3_url}/moto-api/reset-auth"
        kind = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(switch, requests, kind)).close()

    look_after(b"0")
    yield s3_bucket
    look_after(b"inf")


def test_so_are_wrong_credentials_which_are_not_shown(
    suspicious_s3: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="InvalidAccessKeyId") as error:
        open_store(suspicious_s3, "flowers", to_write=False)
    assert SECRET not in str(error.value) + caplog.text


def test_an_outage_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as (process, url):
        place = new_bucket(url, monkeypatch)
        store = open_store(place, "flowers", to_write=True)
        process.kill()
        process.wait()
        attempts: list[Callable[[], object]] = [
            store.names,
            lambda: store.read("a"),
            lambda: store.write("a", b"1"),
            lambda: store.remove("a"),
            lambda: open_store(place, "flowers", to_write=True),
        ]
        for attempt in attempts:
            with pytest.raises(OSError, match="Could not connect") as error:
                attempt()
            assert str(error.value.filename).startswith(f"{place}/flowers/")
            assert not isinstance(error.value, FileNotFoundError)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        # In CI a full disk must not pass for a tested one.
        assert "CI" not in os.environ, "a file system cannot be mounted here"
        pytest.skip("a file system cannot be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_on_a_full_disk_the_earlier_content_stays_and_the_error_says_what_is_needed(
    small_disk: Path,
) -> None:
    store = Folder(small_disk / "new")
    store.write("a", b"1" * 200_000)
    with pytest.raises(OSError, match="No space left") as error:
        store.write("a", b"2" * 150_000)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(small_disk / "new" / "a")
    assert re.fullmatch(
        r"No space left on device: 0\.1 MB free, 0\.1 MB needed", str(error.value.strerror)
    )
    assert store.read("a") == b"1" * 200_000
    assert store.names() == ["a"]


def test_so_beyond_a_limit(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    store.write("a", b"1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .* MB free, 2\.5 MB needed"):
            store.write("a", bytes(2_500_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.read("a") == b"1"
    assert store.names() == ["a"]
