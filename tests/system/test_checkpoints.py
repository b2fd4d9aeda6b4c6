"""What becomes of checkpoints when disks fill up, bits flip and S3 goes away."""

import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from studies.checkpoints import CheckpointDirectory, weights_name
from studies.storage import open_storage
from studies.stores import Folder, open_store
from tests.s3 import SECRET, new_bucket, s3_server
from tests.system.test_faults import HPSEARCH, Hpsearch, Status, running

# Fills the disk of the checkpoints before one epoch, and dies before another, each once what was
# trained until then is on the disk. A state is of 8 MB.
OBJECTIVES = """
import os
import resource
import time
from pathlib import Path
import torch
from model.trial import EpochResult

def fill_the_disk():
    if "LIMIT" in os.environ:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, hard))
    else:
        with open("disk/filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(65536)):
                    pass
            except OSError:
                pass

def wait_for_state(epoch):
    while not list(Path("disk").glob(f"*/trial-*-epoch-{epoch:05d}.state")):
        time.sleep(0.02)

def train(parameters, context):
    before = context.resume["epoch"] if context.resume else 0
    for epoch in range(before + 1, context.epochs + 1):
        if str(epoch) == os.environ.get("FILL_AT"):
            wait_for_state(epoch - 1)
            fill_the_disk()
        if str(epoch) == os.environ.get("DIE_AT"):
            if "FILL_AT" not in os.environ and Path("disk").exists():
                wait_for_state(epoch - 1)
            os.kill(os.getpid(), 9)
        time.sleep(float(os.environ.get("SECONDS", "0")))
        weights = {"epoch": torch.tensor(epoch), "large": torch.zeros(2_000_000)}
        state = {"epoch": epoch, "large": weights["large"]}
        yield EpochResult(epoch, (parameters["x"] + epoch) / 100, 1.0, 100.0, weights, state)
"""

STUDY = """
name = "own"
[trial]
epochs = 6
objective = "objectives:train"
[space]
x = [1, 10]
[sampler]
name = "grid"
[pruner]
name = "none"
[budget]
trials = 1
"""


@pytest.fixture
def study(write_own_study: Callable[[str, str], Path]) -> Path:
    return write_own_study(OBJECTIVES, STUDY)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'a.db'}"


@pytest.fixture(params=["limit", "disk"])
def filling(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which the objective fills `disk`: a file system, or what may be written.

    Mounting is not allowed everywhere; a limit has another error, but is everywhere.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    if request.param == "limit":
        yield {"LIMIT": "yes"}
        return
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield {}
    subprocess.run(["umount", str(disk)], check=True)


def take_for_lost(url: str) -> None:
    """The running trials, as if their workers had not been heard of for long."""
    with open_storage(url).engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")


def test_on_a_full_disk_a_trial_goes_on_and_can_be_resumed_from_its_last_whole_state(
    hpsearch: Hpsearch,
    status: Status,
    study: Path,
    tmp_path: Path,
    url: str,
    filling: dict[str, str],
) -> None:
    def work(**environment: str) -> subprocess.CompletedProcess[str]:
        place = {"HPSEARCH_STORAGE": url, "HPSEARCH_CHECKPOINTS": "disk"}
        return hpsearch("worker", study, **place, **filling, **environment)

    killed = work(FILL_AT="3", DIE_AT="5")
    assert killed.returncode == -9, killed.stderr
    assert "trial 0: epoch 4 of 6" in killed.stderr
    why = "File too large" if filling else "No space left on device"
    space = r"\d+\.\d MB free, 8\.0 MB needed"
    weights, state = (
        r"disk/own-\w+/trial-00000\.safetensors",
        r"disk/own-\w+/trial-00000-epoch-00003\.state",
    )
    assert re.search(
        rf"the checkpoint {weights} cannot be written \({why}: {space}\)", killed.stderr
    )
    assert re.search(rf"its state cannot be written \({state}: {why}: {space}\)", killed.stderr)
    assert "Traceback" not in killed.stderr
    (tmp_path / "disk" / "filler").unlink(missing_ok=True)

    take_for_lost(url)
    resumed = work(FILL_AT="5")
    assert resumed.returncode == 0, resumed.stderr
    assert "trial 0: goes on after epoch 2\n" in resumed.stderr
    assert "trial 0: complete" in resumed.stderr
    assert status("own", url)["complete"] == 1

    (folder,) = (tmp_path / "disk").glob("own-*")
    assert CheckpointDirectory(Folder(folder)).load(0).epoch == 4
    assert [file.name for file in folder.iterdir()] == [weights_name(0)]
    exported = hpsearch(
        "export", "own", "--output", "best", "--storage", url, "--checkpoints", "disk"
    )
    assert exported.returncode == 2
    assert exported.stderr.splitlines() == [
        "hpsearch: the checkpoint of trial 0 is of 5.00%, but the study recorded 7.00%: that of "
        "its best epoch was not written"
    ]


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_state_costs_an_epoch_and_two_the_trial(
    hpsearch: Hpsearch, study: Path, tmp_path: Path, url: str, damaged: int
) -> None:
    (tmp_path / "disk").mkdir()
    place = {"HPSEARCH_STORAGE": url, "HPSEARCH_CHECKPOINTS": "disk"}
    killed = hpsearch("worker", study, **place, DIE_AT="5")
    assert killed.returncode == -9, killed.stderr
    states = sorted((tmp_path / "disk").glob("*/*.state"), reverse=True)
    assert [file.name[-11:] for file in states] == ["00004.state", "00003.state"]
    for file in states[:damaged]:
        file.write_bytes(file.read_bytes()[:-1])
    (weights,) = (tmp_path / "disk").glob("*/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    take_for_lost(url)
    resumed = hpsearch("run", study, "--workers", 1, **place)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("cannot be used: ") == damaged
    assert f"{states[0].relative_to(tmp_path)}: its digest does not fit" in resumed.stderr
    assert "Traceback" not in resumed.stderr
    if damaged == 1:
        assert "trial 0: goes on after epoch 3\n" in resumed.stderr
    else:
        assert "trial 0 begins anew: no state of it can be used" in resumed.stderr
        assert "trial 0: epoch 1 of 6" in resumed.stderr
    (model,) = tmp_path.glob("var/own-*/best/model.safetensors")
    assert int(load_file(model)["epoch"]) == 6, "what was damaged has been replaced"


def test_a_search_goes_on_with_other_directories_and_the_same_bucket(
    hpsearch: Hpsearch, study: Path, tmp_path: Path, url: str, s3_bucket: str
) -> None:
    place = {"HPSEARCH_STORAGE": url, "HPSEARCH_CHECKPOINTS": f"{s3_bucket}/night"}
    trials = ("--trials", 2, "--workers", 1)
    killed = hpsearch("worker", study, "--directory", "one", **place, DIE_AT="5", SECONDS="0.1")
    assert killed.returncode == -9, killed.stderr
    take_for_lost(url)
    searched = hpsearch("run", study, "--directory", "two", *trials, **place)
    assert searched.returncode == 0, searched.stderr
    assert re.search(r"trial 0: goes on after epoch [34]\n", searched.stderr)
    assert list(tmp_path.glob("two/own-*/best/model.safetensors"))
    assert list(tmp_path.glob("*/own-*/*/*.s*t*")) == list(tmp_path.glob("two/own-*/best/*.s*t*"))

    export = ("export", "own", "--output", "best", "--storage", url, "--directory", "three")
    exported = hpsearch(*export, "--checkpoints", f"{s3_bucket}/night")
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith("best: trial 1, validation accuracy 16.00%")
    assert int(load_file(tmp_path / "best" / "model.safetensors")["epoch"]) == 6

    (folder,) = tmp_path.glob("two/own-*")
    store = open_store(f"{s3_bucket}/night", folder.name, to_write=True)
    assert sorted(store.names()) == [weights_name(0), weights_name(1)]
    store.write(weights_name(1), store.read(weights_name(1))[:-1])
    exported = hpsearch(*export, "--checkpoints", f"{s3_bucket}/night")
    assert exported.returncode == 0, exported.stderr
    damaged = f"{s3_bucket}/night/{folder.name}/{weights_name(1)}: a damaged checkpoint"
    assert f"{damaged} (its digest does not fit); the next best is trial 0\n" in exported.stderr
    lost = "best: trial 1, whose weights are lost; in its place trial 0, validation accuracy 7.00%"
    assert exported.stdout.startswith(lost)
    for result in (killed, searched, exported):
        assert SECRET not in result.stdout + result.stderr


def test_a_missing_bucket_is_told_before_anything_is_trained(
    hpsearch: Hpsearch, study: Path, url: str, s3_bucket: str
) -> None:
    missing = {"HPSEARCH_STORAGE": url, "HPSEARCH_CHECKPOINTS": f"{s3_bucket}-2"}
    for command in ("run", "worker"):
        result = hpsearch(command, study, **missing)
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.splitlines()[-1].startswith(f"hpsearch: --checkpoints {s3_bucket}-2: ")
        assert "trial 0" not in result.stderr


def test_an_outage_of_s3_is_like_a_full_disk(
    study: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.write_text(study.read_text().replace("epochs = 6", "epochs = 3"))
    with s3_server() as (server, server_url):
        bucket = new_bucket(server_url, monkeypatch)
        place = {"HPSEARCH_STORAGE": url, "HPSEARCH_CHECKPOINTS": bucket, "SECONDS": "1"}
        with running(tmp_path, "worker", study, **place) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                if "epoch 1 of 3" in line:
                    break
            server.kill()
            said, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0, said
    assert "trial 0: complete" in said
    assert re.search(rf"the checkpoint {bucket}/own-\w+/trial-00000.safetensors cannot be wr", said)
    assert re.search(rf"its state cannot be written \({bucket}/own-\w+/trial-00000-epoch-", said)
    assert "Could not connect to the endpoint" in said
    assert "Traceback" not in said


def limited() -> None:
    """Let no file be larger than 8 kB, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))


def test_a_database_that_has_no_space_is_one_line(study: Path, tmp_path: Path, url: str) -> None:
    result = subprocess.run(
        [HPSEARCH, "run", study, "--storage", url],
        cwd=tmp_path,
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert re.fullmatch(r"hpsearch: storage sqlite:.*: cannot be opened: .*\n", result.stderr)


def test_a_log_that_has_no_space_does_not_stop_a_worker(
    study: Path, status: Status, tmp_path: Path, url: str
) -> None:
    with open("/dev/full", "w") as full:
        command = [HPSEARCH, "worker", str(study), "--storage", url]
        worker = subprocess.run(command, cwd=tmp_path, stderr=full, timeout=120, check=False)
    assert worker.returncode == 0
    assert status("own", url)["complete"] == 1
