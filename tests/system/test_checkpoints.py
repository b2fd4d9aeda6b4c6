"""What becomes of checkpoints when disks fill up, bits flip and S3 goes away."""

import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState
from safetensors.torch import load_file

from data.dataset import load_dataset
from data.errors import UserError
from search.run import WorkerOptions, run_worker
from studies.checkpoints import CheckpointDirectory, open_checkpoints, weights_name
from studies.config import load_study_file
from studies.patience import Patience
from studies.storage import open_database, open_storage
from studies.stores import Folder
from studies.study import open_study
from tests.conftest import Hpsearch, forget_heartbeats
from tests.forked import HPSEARCH
from tests.s3 import SECRET, new_bucket, s3_server
from tests.system.processes import running

# Lets no file be larger than 6 MB from one epoch on, as if the disk were full, and dies before
# another. A state is of 8 MB.
OBJECTIVES = """
import os
import resource
import time
from pathlib import Path
import torch
from model.trial import EpochResult

def fill_the_disk(epoch):
    while not list(Path("disk").glob(f"*/trial-*-epoch-{epoch - 1:05d}.state")):
        time.sleep(0.02)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, hard))

def train(parameters, context):
    before = context.resume["epoch"] if context.resume else 0
    for epoch in range(before + 1, context.epochs + 1):
        if str(epoch) == os.environ.get("FILL_AT"):
            fill_the_disk(epoch)
        if str(epoch) == os.environ.get("DIE_AT"):
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
def environment(tmp_path: Path, data_cache: Path) -> dict[str, str]:
    """Checkpoints go to `disk`; the images are read already."""
    load_dataset("cifar10-mini", data_cache)
    return {
        "HPSEARCH_STORAGE": f"sqlite:///{tmp_path / 'a.db'}",
        "HPSEARCH_DIRECTORY": str(data_cache),
        "HPSEARCH_CHECKPOINTS": "disk",
    }


def test_on_a_full_disk_a_trial_goes_on_and_can_be_resumed_from_its_last_whole_state(
    hpsearch: Hpsearch, study: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    killed = hpsearch("worker", study, **environment, FILL_AT="3", DIE_AT="5")
    assert killed.returncode == -9, killed.stderr
    assert "trial 0: epoch 4 of 6" in killed.stderr
    why = r"File too large: \d+\.\d MB free, 8\.0 MB needed"
    file = r"disk/own-\w+/trial-00000"
    warning = rf"the checkpoint {file}\.safetensors cannot be written \({why}\)"
    assert re.search(warning, killed.stderr)
    warning = rf"its state cannot be written \({file}-epoch-00003\.state: {why}\)"
    assert re.search(warning, killed.stderr)
    assert "Traceback" not in killed.stderr

    forget_heartbeats(open_database(environment["HPSEARCH_STORAGE"]))
    resumed = hpsearch("worker", study, **environment, FILL_AT="5")
    assert resumed.returncode == 0, resumed.stderr
    assert "trial 0: goes on after epoch 2\n" in resumed.stderr
    assert "trial 0: complete, best validation accuracy 7.00%" in resumed.stderr
    (folder,) = (tmp_path / "disk").glob("own-*")
    assert CheckpointDirectory(Folder(folder)).load(0).epoch == 4
    assert [file.name for file in folder.iterdir()] == [weights_name(0)]


def test_a_search_goes_on_with_other_directories_and_the_same_bucket_and_past_damage(
    hpsearch: Hpsearch,
    study: Path,
    tmp_path: Path,
    data_cache: Path,
    environment: dict[str, str],
    s3_bucket: str,
) -> None:
    def machine(name: str) -> dict[str, str]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "datasets").symlink_to(data_cache / "datasets")
        own = {"HPSEARCH_DIRECTORY": name, "HPSEARCH_CHECKPOINTS": f"{s3_bucket}/night"}
        return {**environment, **own}

    killed = hpsearch("worker", study, **machine("one"), DIE_AT="5", SECONDS="0.1")
    assert killed.returncode == -9, killed.stderr
    opened = open_study("own", open_storage(environment["HPSEARCH_STORAGE"]))
    store = open_checkpoints(opened, tmp_path, f"{s3_bucket}/night").store

    def damage(name: str) -> None:
        store.write(name, store.read(name)[:-1])

    *_, before, newest = sorted(name for name in store.names() if name.endswith(".state"))
    damage(newest)
    damage(weights_name(0))
    forget_heartbeats(open_database(environment["HPSEARCH_STORAGE"]))
    trials = ("--trials", 2, "--workers", 1)
    searched = hpsearch("run", study, *trials, **machine("two"))
    assert searched.returncode == 0, searched.stderr
    damaged = f"cannot be used: {store.location(newest)}: its digest does not fit\n"
    assert damaged in searched.stderr
    epoch = int(before.removeprefix("trial-00000-epoch-").removesuffix(".state"))
    assert f"trial 0: goes on after epoch {epoch}\n" in searched.stderr
    (best,) = tmp_path.glob("two/own-*/best/model.safetensors")
    assert list(tmp_path.glob("*/own-*/**/*.s*t*")) == [best], "the rest is in the bucket"

    assert sorted(store.names()) == [weights_name(0), weights_name(1)]
    damage(weights_name(1))
    exported = hpsearch("export", "own", "--output", "best", **machine("three"))
    assert exported.returncode == 0, exported.stderr
    damaged = f"{store.location(weights_name(1))}: a damaged checkpoint (its digest does not fit)"
    assert f"{damaged}; the next best is trial 0\n" in exported.stderr
    lost = "best: trial 1, whose weights are lost; in its place trial 0, validation accuracy 7.00%"
    assert exported.stdout.startswith(lost)
    assert int(load_file(tmp_path / "best" / "model.safetensors")["epoch"]) == 6
    for result in (killed, searched, exported):
        assert SECRET not in result.stdout + result.stderr


def test_a_missing_bucket_is_told_before_anything_is_trained(
    tmp_path: Path, data_cache: Path, s3_bucket: str
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    config, missing = load_study_file("quickstart"), f"{s3_bucket}-2"
    with pytest.raises(UserError, match=f"--checkpoints {missing}: .*NoSuchBucket"):
        run_worker(
            storage,
            WorkerOptions("quickstart", config, data_cache, missing, grace=0),
            Patience(0),
        )
    trials = open_study("quickstart", storage).study.trials
    assert {trial.state for trial in trials} == {TrialState.WAITING}


def test_an_outage_of_s3_is_like_a_full_disk(
    study: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study.write_text(study.read_text().replace("epochs = 6", "epochs = 3"))
    with s3_server() as (server, server_url):
        bucket = new_bucket(server_url, monkeypatch)
        environment |= {"HPSEARCH_CHECKPOINTS": bucket, "SECONDS": "1"}
        with running(tmp_path, "worker", study, **environment) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                if "epoch 1 of 3" in line:
                    break
            server.kill()
            said, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0, said
    assert "trial 0: complete" in said
    file = rf"{bucket}/own-\w+/trial-00000"
    assert re.search(rf"the checkpoint {file}\.safetensors cannot be written \(Could not con", said)
    assert re.search(rf"its state cannot be written \({bucket}/own-\w+/\S*: Could not con", said)
    assert "Traceback" not in said


def test_a_worker_that_is_asked_to_stop_does_not_wait_for_a_bucket_that_does_not_answer(
    study: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compose and Kubernetes kill it after 30 s; the client of S3 would try for minutes."""
    with s3_server() as (server, server_url):
        environment |= {"HPSEARCH_CHECKPOINTS": new_bucket(server_url, monkeypatch)}
        environment |= {"SECONDS": "0.5"}
        with running(tmp_path, "worker", study, "--grace", 4, **environment) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                if "epoch 2 of 6" in line:
                    break
            server.send_signal(signal.SIGSTOP)  # Connections are made, and hear nothing.
            # The next epoch ends within the grace period, and its files are stuck.
            worker.terminate()
            said, _ = worker.communicate(timeout=40)
    assert worker.returncode == 143, said
    assert "trial 0: its last files are not waited for any longer" in said
    assert re.search(r"trial 0: interrupted after epoch \d, handed back", said)
    assert "Traceback" not in said
    trial, *_ = open_study("own", open_storage(environment["HPSEARCH_STORAGE"])).study.trials
    assert trial.state == TrialState.WAITING


def test_a_database_that_has_no_space_is_one_line(
    study: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    result = subprocess.run(
        [HPSEARCH, "run", study],
        cwd=tmp_path,
        env={**os.environ, **environment},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2
    assert re.fullmatch(r"hpsearch: storage sqlite:.*: cannot be opened: .*\n", result.stderr)


def test_a_log_that_has_no_space_does_not_stop_a_worker(
    study: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    with open("/dev/full", "w") as full:
        worker = subprocess.run(
            [HPSEARCH, "worker", study],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stderr=full,
            timeout=120,
            check=False,
        )
    assert worker.returncode == 0
    (folder,) = (tmp_path / "disk").glob("own-*")
    assert CheckpointDirectory(Folder(folder)).load(0).epoch == 6
