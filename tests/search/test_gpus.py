"""Which GPUs workers get, by what nvidia-smi says: its answers, cut down to what is read, are given
by a script of that name."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.errors import UserError
from search.device import take, taken_device
from search.gpus import check_found, named_gpus, visible_gpus
from search.launch import plan_slots
from search.run import RunOptions, WorkerOptions, run_study, run_worker
from studies.config import load_study_file
from studies.patience import Patience
from studies.storage import open_storage
from studies.study import study_names

PROCESS = """<process_info>
<gpu_instance_id>{instance}</gpu_instance_id><compute_instance_id>{compute}</compute_instance_id>
<pid>{pid}</pid><type>{kind}</type><process_name>{name}</process_name>
<used_memory>{used}</used_memory></process_info>"""


def process(pid: int, name: str, kind: str = "C", instance: str = "N/A") -> str:
    compute = "N/A" if instance == "N/A" else "0"
    return PROCESS.format(
        instance=instance, compute=compute, pid=pid, kind=kind, name=name, used="3072 MiB"
    )


def memory(used: str, free: str) -> str:
    return f"<fb_memory_usage><used>{used}</used><free>{free}</free></fb_memory_usage>"


def gpu(number: int, used: int, free: int, processes: str = "") -> str:
    return f"""<gpu id="00000000:0{number}:00.0">
<product_name>NVIDIA GeForce RTX 4090</product_name>
<mig_mode><current_mig>N/A</current_mig><pending_mig>N/A</pending_mig></mig_mode>
<mig_devices>
None
</mig_devices>
<uuid>GPU-{number}fee9b0a-d406-d45b-9481-8fcd694e6c9e</uuid>
{memory(f"{used} MiB", f"{free} MiB")}
<processes>{processes}</processes>
</gpu>"""


def instance(index: int, gpu_instance: int, used: int) -> str:
    return f"""<mig_device><index>{index}</index>
<gpu_instance_id>{gpu_instance}</gpu_instance_id><compute_instance_id>0</compute_instance_id>
{memory(f"{used} MiB", f"{4864 - used} MiB")}</mig_device>"""


def partitioned(number: int, processes: str = "") -> str:
    return f"""<gpu id="00000000:1{number}:00.0">
<product_name>NVIDIA A100-SXM4-40GB</product_name>
<mig_mode><current_mig>Enabled</current_mig><pending_mig>Enabled</pending_mig></mig_mode>
<mig_devices>{instance(0, 1, 12)}{instance(1, 5, 3084)}</mig_devices>
<uuid>GPU-{number}e7be40d-d724-01ff-b00f-3a439a28a6c7</uuid>
{memory("N/A", "N/A")}
<processes>{processes}</processes>
</gpu>"""


def listing(*kinds: str) -> str:
    lines = []
    for number, kind in enumerate(kinds):
        if kind == "whole":
            lines.append(
                f"GPU {number}: NVIDIA GeForce RTX 4090 "
                f"(UUID: GPU-{number}fee9b0a-d406-d45b-9481-8fcd694e6c9e)"
            )
            continue
        lines.append(
            f"GPU {number}: NVIDIA A100-SXM4-40GB "
            f"(UUID: GPU-{number}e7be40d-d724-01ff-b00f-3a439a28a6c7)"
        )
        for index in range(2):
            lines.append(
                f"  MIG 1g.5gb      Device  {index}: "
                f"(UUID: MIG-{number}{index}b17a5e-c194-5a8c-8c5e-e1cd5c8a4aa4)"
            )
    return "\n".join(lines) + "\n"


class Machine:
    """What nvidia-smi and PyTorch find."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("PATH", str(directory), prepend=":")
        self.names(None)
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")

    def has(self, *gpus: str, found: int) -> None:
        details = f'<?xml version="1.0" ?>\n<nvidia_smi_log>{"".join(gpus)}</nvidia_smi_log>'
        kinds = ["partitioned" if "<mig_device>" in item else "whole" for item in gpus]
        (self._directory / "details").write_text(details)
        (self._directory / "listing").write_text(listing(*kinds))
        self.says(
            f"case $1 in -q) cat {self._directory}/details;; -L) cat "
            f"{self._directory}/listing;; esac"
        )
        self.finds(found)

    def finds(self, count: int) -> None:
        """What PyTorch makes of it."""
        cuda = {
            "device_count": lambda: count,
            "is_available": lambda: count > 0,
            "get_device_properties": lambda index: SimpleNamespace(uuid=(GPU_0, GPU_1)[index][4:]),
        }
        for name, function in cuda.items():
            self._monkeypatch.setattr(torch.cuda, name, function)

    def says(self, script: str) -> None:
        command = self._directory / "nvidia-smi"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)

    def names(self, value: str | None) -> None:
        if value is None:
            self._monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            self._monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


GPU_0 = "GPU-0fee9b0a-d406-d45b-9481-8fcd694e6c9e"
GPU_1 = "GPU-1fee9b0a-d406-d45b-9481-8fcd694e6c9e"
INSTANCE_0 = "MIG-00b17a5e-c194-5a8c-8c5e-e1cd5c8a4aa4"
INSTANCE_1 = "MIG-01b17a5e-c194-5a8c-8c5e-e1cd5c8a4aa4"


@pytest.mark.parametrize(
    ("names", "found", "gpus"),
    [
        (None, 2, [GPU_0, GPU_1]),
        ("1", 1, [GPU_1]),
        ("1, 0", 2, [GPU_1, GPU_0]),
        ("GPU-1fee", 1, [GPU_1]),
        ("0,-1,1", 1, [GPU_0]),
        ("", 0, []),
        ("NoDevFiles", 0, []),
    ],
)
def test_gpus_may_be_named_by_index_and_identifier(
    machine: Machine, names: str | None, found: int, gpus: list[str]
) -> None:
    machine.has(gpu(0, 4, 24000), gpu(1, 4, 24000), found=found)
    machine.names(names)
    assert visible_gpus() == gpus


@pytest.mark.parametrize(
    ("names", "gpus"),
    [
        (None, [INSTANCE_0, INSTANCE_1, GPU_1]),
        (f"{INSTANCE_1},{INSTANCE_0}", [INSTANCE_1, INSTANCE_0]),
        ("MIG-01b1", [INSTANCE_1]),
        ("0", [INSTANCE_0]),
    ],
)
def test_the_instances_of_a_partitioned_gpu_are_gpus(
    machine: Machine, names: str | None, gpus: list[str]
) -> None:
    # CUDA shows one of them, and no whole GPU beside it.
    machine.has(partitioned(0), gpu(1, 4, 24000), found=1)
    machine.names(names)
    assert visible_gpus() == gpus


@pytest.mark.parametrize("names", ["2", "GPU-7", f"{GPU_0},MIG-11", "0,2"])
def test_a_gpu_that_is_missing_is_named(machine: Machine, names: str) -> None:
    machine.has(gpu(0, 4, 24000), gpu(1, 4, 24000), found=1)
    machine.names(names)
    missing = names.split(",")[-1]
    with pytest.raises(
        UserError, match=f"names {missing}, which is none of the GPUs .* 1 \\(NVIDIA.*{GPU_1}"
    ):
        visible_gpus()


def test_a_beginning_that_fits_several_is_refused(machine: Machine) -> None:
    machine.has(gpu(0, 4, 24000), gpu(1, 4, 24000), found=0)
    machine.names("GPU-")
    with pytest.raises(UserError, match="names GPU-, which is several of the GPUs"):
        visible_gpus()


def test_a_gpu_that_pytorch_cannot_use_is_refused_by_launcher_and_worker(
    machine: Machine, tmp_path: Path
) -> None:
    machine.has(gpu(0, 4, 24000), found=0)  # An old driver, or a PyTorch for the CPU alone.
    machine.names("0")
    with pytest.raises(UserError, match="names 0, of which PyTorch can use none; correct it"):
        visible_gpus()
    with pytest.raises(UserError, match="names 0, of which PyTorch"), taken_device(tmp_path):
        pass


def test_several_instances_are_one_gpu_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{INSTANCE_0},{INSTANCE_1}")
    check_found(named_gpus(), 1)
    with pytest.raises(UserError, match="can use none"):
        check_found(named_gpus(), 0)


def test_who_uses_a_gpu_is_said(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    others = process(41394, "python") + process(8389, "/usr/bin/gnome-shell", "G")
    machine.has(gpu(0, 3100, 20900, others), gpu(1, 400, 23600, ""), found=2)
    assert len(visible_gpus()) == 2
    assert caplog.messages == [
        f"GPU 0 (NVIDIA GeForce RTX 4090, {GPU_0}) is in use by python (process 41394); "
        "20,900 MiB are free"
    ]


def test_who_uses_an_instance_is_said_of_that_instance(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.has(partitioned(0, process(41394, "python", instance="5")), found=1)
    visible_gpus()
    (message,) = caplog.messages
    assert INSTANCE_1 in message
    assert "python (process 41394); 1,780 MiB are free" in message


def test_users_outside_of_a_container_are_told_by_their_memory(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.has(gpu(0, 20000, 4000), found=1)
    visible_gpus()
    assert "is in use by processes that cannot be seen from here; 4,000 MiB" in caplog.text


def test_a_gpu_without_free_memory_is_refused(machine: Machine) -> None:
    machine.has(gpu(0, 4, 24000), gpu(1, 23800, 200, process(41394, "python")), found=2)
    with pytest.raises(
        UserError, match=r"has no memory left \(200 MiB\), used by python \(process 41394\)"
    ):
        visible_gpus()
    machine.names("0")
    assert visible_gpus() == [GPU_0]


def test_of_gpus_that_no_worker_will_use_nothing_is_asked(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.has(gpu(0, 4, 24000), gpu(1, 23800, 200, process(41394, "python")), found=2)
    (slot,) = plan_slots(workers=1, workers_per_gpu=1)
    assert slot.environment["CUDA_VISIBLE_DEVICES"] == GPU_0
    machine.names("0,7")  # As CUDA has it, what is missing hides what follows.
    machine.finds(1)
    assert visible_gpus(1) == [GPU_0]
    assert caplog.messages == []


def test_a_run_that_lacks_its_gpus_is_refused_before_there_is_a_study(
    machine: Machine, tmp_path: Path
) -> None:
    machine.has(gpu(0, 23800, 200), found=1)
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    options = RunOptions(root=tmp_path / "var")
    with pytest.raises(UserError, match="has no memory left"):
        run_study(load_study_file("quickstart"), storage, options)
    worker = WorkerOptions("quickstart", load_study_file("quickstart"), tmp_path / "var")
    with pytest.raises(UserError, match="has no memory left"):
        run_worker(storage, worker, Patience(0))
    assert study_names(storage) == []
    assert not (tmp_path / "var" / "cifar10-mini").exists()


def test_a_worker_says_who_uses_its_gpu_unless_that_is_another_worker(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine.has(
        gpu(0, 3100, 20900, process(41394, "python") + process(os.getpid(), "python")),
        gpu(1, 23800, 200),
        found=2,
    )
    with taken_device(tmp_path) as device:
        assert device == torch.device("cuda", 0)
        (message,) = caplog.messages
        assert message.endswith("in use by python (process 41394); 20,900 MiB are free")
        # The second worker gets the second GPU, a third one shares the first.
        with pytest.raises(UserError, match="has no memory left"), taken_device(tmp_path):
            pass
        lock = take([GPU_1[4:]], tmp_path / "gpus")[1]
        with taken_device(tmp_path) as device:
            assert device == torch.device("cuda", 0)
        lock.release()
    assert len(caplog.messages) == 1
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    "script",
    ["echo NVIDIA-SMI has failed because it cannot talk to the driver; exit 9", "echo '<gpu'"],
)
def test_an_nvidia_smi_that_fails_is_said_and_the_search_goes_on(
    machine: Machine, caplog: pytest.LogCaptureFixture, script: str
) -> None:
    machine.has(found=2)
    machine.says(script)
    assert visible_gpus() == ["0", "1"]
    assert "whether the GPUs are in use is not known" in caplog.text
