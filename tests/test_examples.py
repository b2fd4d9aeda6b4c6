"""The files for schedulers. There is neither a Slurm nor a Kubernetes in the tests: the script runs
with commands of Slurm's names that note how they were called, and the manifest is read."""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from search.broken import BROKEN_AT_FIRST_EXIT_CODE, BROKEN_EXIT_CODE
from search.cli import app
from search.launch import USER_ERROR_EXIT_CODE
from search.stop import GRACE_SECONDS
from studies.patience import STORAGE_LOST_EXIT_CODE

ROOT = Path(__file__).parents[1]
SLURM = ROOT / "examples" / "slurm.sh"
KUBERNETES = ROOT / "examples" / "kubernetes.yaml"

Run = Callable[[int], tuple[int, list[str]]]


def check_worker_command(words: Sequence[str]) -> None:
    """That hpsearch takes these words after its name, as a worker of a study."""
    command, *arguments = words
    assert command == "worker"
    worker = typer.main.get_command(app).commands["worker"]  # type: ignore[attr-defined]
    context = worker.make_context("worker", arguments)
    assert context.params["study"]


@pytest.fixture
def run_slurm(tmp_path: Path) -> Run:
    """Run the script as the third task of a job whose worker ends with this code: the script's own
    exit code, and the commands that it called."""
    calls = tmp_path / "calls"
    for name in ("srun", "scontrol"):
        command = tmp_path / name
        command.write_text(
            f'#!/bin/sh\necho {name} "$@" >>{calls}\n[ {name} != srun ] || exit $CODE'
        )
        command.chmod(0o755)

    def run(code: int) -> tuple[int, list[str]]:
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CODE": str(code),
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_JOB_ID": "10",
            "SLURM_ARRAY_JOB_ID": "10",
            "SLURM_ARRAY_TASK_ID": "3",
        }
        arguments = ["bash", str(SLURM), "cifar10", "--grace", "20"]
        result = subprocess.run(arguments, env=environment, check=False)
        return result.returncode, calls.read_text().splitlines()

    return run


def test_the_slurm_script_is_bash_and_an_array_that_is_signalled_and_requeued() -> None:
    subprocess.run(["bash", "-n", SLURM], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SLURM.read_text(), re.MULTILINE))
    assert {"array", "requeue", "gpus", "cpus-per-task", "time"} <= set(options)
    name, seconds = options["signal"].split("@")
    # To the step. The shell would die of it, and srun would kill the worker.
    assert name == "TERM"
    assert int(seconds) > GRACE_SECONDS


@pytest.mark.parametrize("code", [0, 1, USER_ERROR_EXIT_CODE, BROKEN_AT_FIRST_EXIT_CODE, 130])
def test_a_slurm_task_is_a_worker_and_ends_as_it_does(run_slurm: Run, code: int) -> None:
    ended, calls = run_slurm(code)
    assert ended == code
    (call,) = calls
    name, cores, hpsearch, *words = call.split()
    assert (name, cores, hpsearch) == ("srun", "--cpus-per-task=4", "hpsearch")
    check_worker_command(words)


@pytest.mark.parametrize("code", [143, STORAGE_LOST_EXIT_CODE, BROKEN_EXIT_CODE])
def test_a_slurm_task_that_was_told_to_stop_lost_its_storage_or_broke_at_work_queues_again(
    run_slurm: Run, code: int
) -> None:
    ended, calls = run_slurm(code)
    assert ended == code
    assert calls[1:] == ["scontrol requeue 10_3"]


@pytest.fixture
def job() -> dict[str, Any]:
    claim, job = yaml.safe_load_all(KUBERNETES.read_text())
    assert (claim["kind"], job["kind"]) == ("PersistentVolumeClaim", "Job")
    spec: dict[str, Any] = job["spec"]
    return spec


@pytest.fixture
def pod(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["template"]["spec"]
    return spec


def test_the_kubernetes_job_runs_workers_until_all_have_ended(
    job: dict[str, Any], pod: dict[str, Any]
) -> None:
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] > 1
    assert pod["restartPolicy"] == "Never"  # Without it, there is no policy of failures.
    lost, hopeless = job["podFailurePolicy"]["rules"]
    assert (lost["action"], lost["onPodConditions"]) == ("Ignore", [{"type": "DisruptionTarget"}])
    # Of one worker: it may be its node's fault. Kubernetes takes it only with such a limit.
    assert hopeless["action"] == "FailIndex"
    assert job["backoffLimitPerIndex"] > 0
    assert hopeless["onExitCodes"]["values"] == [USER_ERROR_EXIT_CODE, BROKEN_AT_FIRST_EXIT_CODE]
    assert pod["terminationGracePeriodSeconds"] > GRACE_SECONDS
    (container,) = pod["containers"]
    assert hopeless["onExitCodes"]["containerName"] == container["name"]
    assert "command" not in container  # The image's is hpsearch.
    check_worker_command(container["args"])


def test_the_kubernetes_workers_have_an_ordinary_user_and_write_to_volumes_alone(
    pod: dict[str, Any],
) -> None:
    (container,) = pod["containers"]
    (user,) = re.findall(r"useradd --uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {pod["securityContext"][key] for key in ("runAsUser", "fsGroup")} == {int(user)}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"var": "/app/var", "tmp": "/tmp"}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)


def test_the_kubernetes_manifest_holds_no_secret(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "hpsearch"}}]
    assert [variable["name"] for variable in container["env"]] == ["OMP_NUM_THREADS"]
    text = KUBERNETES.read_text()
    assert [line.strip() for line in text.splitlines() if "PASSWORD" in line] == [
        "#   PGPASSWORD=..."
    ]
