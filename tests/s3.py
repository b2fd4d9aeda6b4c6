"""A server that speaks S3, in a process of its own."""

import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI-a-secret-that-nobody-shows"
PAGE = 10
"""So many names are listed in one answer; of AWS, 1000."""
MOTO_SERVER = Path(sys.executable).parent / "moto_server"


@contextmanager
def s3_server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its URL; it takes any credentials, and forgets all when it ends."""
    with tempfile.NamedTemporaryFile() as log:
        command = [str(MOTO_SERVER), "-H", "127.0.0.1", "-p", "0"]
        pages = {"MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
        process = subprocess.Popen(command, env={**os.environ, **pages}, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not (running := re.search(r"Running on (\S+)", Path(log.name).read_text())):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process, running[1]
        finally:
            process.kill()
            process.wait()


def new_bucket(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, `s3://NAME`, and the environment in which boto3 finds it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # Of the machine that runs the tests, nothing.
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET
    ).create_bucket(Bucket=name)
    return f"s3://{name}"
