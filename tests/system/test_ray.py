"""Workers on a Ray cluster: one of two nodes, which are processes of this machine, and one that the
command starts for itself."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from data.errors import UserError
from search.ray_engine import ray_engine  # Before Ray itself: it says how Ray is to behave.
from studies.results import LOSSES
from studies.storage import open_storage
from studies.study import open_study
from tests.forked import HPSEARCH
from tests.system.processes import trained, wait_for
from tests.system.terminal import Terminal

from ray.cluster_utils import Cluster  # isort: skip

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]
Status = Callable[..., dict[str, Any]]

# Ray runs workers behind all else that the machine does, which may be much while tests run.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

PASSWORD = "horse-battery-staple"

OBJECTIVES = """
import os
import time
from model.trial import EpochResult

def train(parameters, context):
    before = context.resume["epoch"] if context.resume else 0
    for epoch in range(before + 1, context.epochs + 1):
        time.sleep(0.3)
        with open("epochs", "a") as file:
            file.write(f"{parameters['x']} {epoch} {os.getpid()}\\n")
        yield EpochResult(epoch, epoch / 100, 1.0, 100.0, {}, {"epoch": epoch})
"""

STUDY = """
name = "own"
[trial]
epochs = 20
objective = "objectives:train"
[space]
x = [1, 2, 3]
[sampler]
name = "grid"
[pruner]
name = "none"
[budget]
trials = 3
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A node with one core."""
    cluster = start_cluster()
    yield cluster
    cluster.shutdown()


def start_cluster() -> Cluster:
    """Ray itself gives its server half a minute to start, which is short on a busy machine."""
    node = {"num_cpus": 1, "include_dashboard": False}
    for _ in range(2):
        with contextlib.suppress(RuntimeError):
            return Cluster(initialize_head=True, head_node_args=node)
    return Cluster(initialize_head=True, head_node_args=node)


@pytest.fixture
def cluster(head: Cluster) -> Cluster:
    """Two nodes with one core each."""
    if not head.worker_nodes:
        head.add_node(num_cpus=1)
    return head


@pytest.fixture
def study(write_own_study: Callable[[str, str], Path]) -> Path:
    return write_own_study(OBJECTIVES, STUDY)


@pytest.fixture
def restored_signals() -> Iterator[None]:
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in signals]
    yield
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


def test_a_study_outlives_a_node(
    cluster: Cluster, status: Status, study: Path, tmp_path: Path, postgres_url: str
) -> None:
    secret = sqlalchemy.make_url(postgres_url).set(password=PASSWORD)
    options = ["--engine", "ray", "--address", cluster.address, "--workers", "3"]
    with (tmp_path / "output").open("w") as output:
        search = subprocess.Popen(
            [HPSEARCH, "run", study, *options],
            cwd=tmp_path,
            env={
                **os.environ,
                "HPSEARCH_STORAGE": secret.render_as_string(hide_password=False),
                "PGPASSFILE": str(tmp_path / PASSWORD),
            },
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: len({process for _, _, process in trained(tmp_path)}) == 2)
        commands = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        lost = time.monotonic()
        assert search.wait(100) == 0
    finally:
        search.kill()
    said = (tmp_path / "output").read_text()
    # Its heartbeat would have been missed after a minute.
    assert time.monotonic() - lost < 50
    assert re.search(r"worker \d: its node, or Ray's process there, was lost; it is sta", said)
    assert "Ray has not started it yet; it wants 1 CPU, free in the cluster are 0 of" in said

    found = status("own", postgres_url)
    assert (found["complete"], found["failed"], found["running"]) == (3, 0, 0)
    assert all(trial["accuracies"] == [0.01 * e for e in range(1, 21)] for trial in found["top"])
    trials = open_study("own", open_storage(postgres_url)).study.trials
    assert sorted(trial.user_attrs.get(LOSSES, 0) for trial in trials) == [0, 0, 1]
    epochs = [(x, epoch) for x, epoch, _ in trained(tmp_path)]
    assert len(epochs) <= len(set(epochs)) + 1, "at most one epoch is trained twice"
    for process in {process for _, _, process in trained(tmp_path)}:
        assert not Path(f"/proc/{process}").exists(), "no worker goes on without its node"
    (exported,) = tmp_path.glob("var/own-*/best/trial.json")
    assert exported.exists()

    written = Path(cluster.head_node.get_session_dir_path()).rglob("*")
    logs = [path.read_bytes() for path in written if path.is_file()]
    assert any(b"joined study own" in log for log in logs)
    for text in (commands, said.encode(), *logs):
        assert PASSWORD.encode() not in text


def test_ctrl_c_on_a_ray_of_its_own_hands_the_trials_back(
    status: Status, study: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    options = ["--engine", "ray", "--workers", 1, "--storage", url]
    terminal = Terminal("run", study, *options, cwd=tmp_path)
    try:
        terminal.read_until(r"[1-9]/20")
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 130
    finally:
        terminal.close()
    assert "to continue: hpsearch run" in terminal.output
    found = status("own", url)
    assert (found["running"], found["failed"]) == (0, 0)
    assert found["waiting"] >= 1
    (log,) = tmp_path.glob("var/own-*/logs/worker-*.log")
    assert "handed back" in log.read_text()
    for process in {process for _, _, process in trained(tmp_path)}:
        assert not Path(f"/proc/{process}").exists()


@pytest.mark.usefixtures("restored_signals")
def test_an_sqlite_file_is_refused_on_several_nodes(cluster: Cluster) -> None:
    several = pytest.raises(UserError, match="has 2 nodes, which cannot share an SQLite file")
    with several, ray_engine(cluster.address, "sqlite:///a.db", None, 1):
        pass


@pytest.mark.usefixtures("restored_signals")
def test_workers_have_a_gpu_each_and_the_launcher_s_settings(
    head: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray takes our word that the node has two GPUs."""
    monkeypatch.setenv("AWS_REGION", "here")  # The nodes were started without it.
    node = head.add_node(num_cpus=2, num_gpus=2)
    nowhere = {"HPSEARCH_STORAGE": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    try:
        with ray_engine(head.address, nowhere["HPSEARCH_STORAGE"], None, 2) as engine:
            workers = [
                engine.start(slot, ["none"], nowhere, tmp_path / "log") for slot in engine.slots
            ]
            wait_for(lambda: all(worker.ended() is None and worker.name for worker in workers))
            numbers = [worker.name.rpartition("-")[2] for worker in workers]
            environments = [Path(f"/proc/{number}/environ").read_bytes() for number in numbers]
            for worker in workers:
                worker.send_signal(signal.SIGKILL)
            wait_for(lambda: all(worker.ended() == -signal.SIGKILL for worker in workers))
    finally:
        head.remove_node(node)
    seen = [re.findall(rb"\0CUDA_VISIBLE_DEVICES=([^\0]*)", text) for text in environments]
    assert sorted(seen) == [[b"0"], [b"0"], [b"1"], [b"1"]]
    assert all(b"\0AWS_REGION=here\0" in text for text in environments)


def test_an_address_without_a_cluster_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # And does not listen.
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        nobody = pytest.raises(UserError, match=f"--address {address}: no Ray cluster there")
        with nobody, ray_engine(address, "sqlite:///a.db", None, 1):
            pass


def test_ray_that_is_not_installed_is_said_with_the_remedy(study: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['ray'] = None")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [HPSEARCH, "run", study, "--engine", "ray"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "hpsearch: --engine ray: Ray is not installed: pip install -e '.[ray]'" in (
        result.stderr
    )


@pytest.mark.parametrize("command", ["run", "confirm"])
def test_an_address_is_for_ray_alone(hpsearch: Hpsearch, command: str) -> None:
    result = hpsearch(command, "quickstart", "--address", "auto")
    assert result.returncode == 2
    assert "add --engine ray" in result.stderr
