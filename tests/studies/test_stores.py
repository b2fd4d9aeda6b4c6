import errno
import os
import re
import resource
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.errors import UserError
from studies.stores import Folder, Store, open_store
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
    large = os.urandom(9_000_000)  # Sent to S3 in parts.
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
