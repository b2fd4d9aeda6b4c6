"""Which GPUs workers get: those that the user has named, checked before anything starts."""

import logging
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from xml.etree import ElementTree

from data.errors import UserError

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""That a number means the GPU that it means to nvidia-smi. CUDA itself begins with the fastest."""
NVIDIA_SMI_SECONDS = 60
"""It takes long on machines that keep no driver loaded."""
LEAST_FREE_MIB = 512
"""What CUDA itself takes, before there is anything of ours on the GPU."""
NOTICED_MIB = 1024
"""More is not what the driver has reserved for itself."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or an instance of one that is partitioned (MIG)."""

    index: int
    """Of the GPU, as nvidia-smi counts."""
    name: str
    """Its identifier: `GPU-…` or `MIG-…`."""
    model: str
    used_mib: int | None
    free_mib: int | None
    users: tuple[str, ...]
    """The processes that compute on it, but for this one."""


def visible_gpus(most: int | None = None) -> list[str]:
    """The GPUs for workers, as `CUDA_VISIBLE_DEVICES` names them; those in use are reported.

    Args:
        most: how many are wanted, if not all; no other one is looked at.

    Raises:
        UserError: the variable names one that is missing, or one has no memory left.
    """
    import torch  # Not needed by others who use this module, and takes seconds.

    named = named_gpus()
    wanted = None if named is None else named[:most]
    machine = nvidia_gpus()
    found = torch.cuda.device_count()
    # Before PyTorch's own count, because it can say which one is missing.
    chosen = None if machine is None else choose(wanted, machine)[:most]
    check_found(wanted, found)
    if chosen is None or found == 0:
        return wanted or [str(index) for index in range(found)][:most]
    for line in occupied(chosen):
        logger.warning("%s", line)
    return [gpu.name for gpu in chosen]


def check_occupation(identifier: str) -> None:
    """Report who uses a GPU beside this process.

    Args:
        identifier: as PyTorch has it, without `GPU-` or `MIG-`.

    Raises:
        UserError: it has no memory left.
    """
    machine = nvidia_gpus() or []
    for line in occupied([gpu for gpu in machine if gpu.name[4:] == identifier]):
        logger.warning("%s", line)


def named_gpus() -> list[str] | None:
    """What `CUDA_VISIBLE_DEVICES` names; None if it is not set."""
    value = os.environ.get(VARIABLE)
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    # As CUDA has it: what follows -1 is hidden. Slurm writes NoDevFiles where a job has no GPU.
    return list(takewhile(lambda name: name not in ("-1", "NoDevFiles"), names))


def check_found(named: Sequence[str] | None, found: int) -> None:
    """Refuse to go on with fewer GPUs than the user has named, or on the CPU.

    Args:
        found: how many PyTorch has found.
    """
    # CUDA shows a process one instance of a partitioned GPU, however many are named.
    if named and found < (1 if named[0].startswith("MIG-") else len(named)):
        raise UserError(
            f"{VARIABLE} names {', '.join(named)}, of which PyTorch can use {found or 'none'}; "
            f"correct it, or set {VARIABLE}= to train on the CPU"
        )


def choose(named: Sequence[str] | None, machine: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that are named, or all.

    Args:
        named: indices as nvidia-smi counts (of a partitioned GPU: its first instance), or
            identifiers of which the beginning will do.

    Raises:
        UserError: one is missing.
    """
    if named is None:
        return list(machine)
    chosen = []
    for name in named:
        if name.isdecimal():
            found = [gpu for gpu in machine if gpu.index == int(name)][:1]
        else:
            found = [gpu for gpu in machine if gpu.name.startswith(name)]
        if len(found) != 1:
            here = ", ".join(f"{gpu.index} ({gpu.model}, {gpu.name})" for gpu in machine)
            raise UserError(
                f"{VARIABLE} names {name}, which is {'several' if found else 'none'} of the GPUs "
                f"of this machine: {here or 'it has none'}"
            )
        chosen += found
    return chosen


def occupied(chosen: Sequence[Gpu]) -> Iterator[str]:
    """For each GPU that others use, a line that says who, and how much memory they leave.

    Raises:
        UserError: they leave none.
    """
    for gpu in chosen:
        users = ", ".join(gpu.users)
        if not users and gpu.used_mib is not None and gpu.used_mib > NOTICED_MIB:
            users = "processes that cannot be seen from here"  # Those outside of a container.
        if gpu.free_mib is not None and gpu.free_mib < LEAST_FREE_MIB:
            raise UserError(
                f"GPU {gpu.index} ({gpu.model}, {gpu.name}) has no memory left ({gpu.free_mib} "
                f"MiB), used by {users or 'others'}; name others in {VARIABLE}"
            )
        if users:
            free = "" if gpu.free_mib is None else f"; {gpu.free_mib:,} MiB are free"
            yield f"GPU {gpu.index} ({gpu.model}, {gpu.name}) is in use by {users}{free}"


def nvidia_gpus() -> list[Gpu] | None:
    """The GPUs of this machine; None if there is no nvidia-smi that could tell."""

    def ask(*options: str) -> str:
        return subprocess.run(
            ["nvidia-smi", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=NVIDIA_SMI_SECONDS,
        ).stdout

    try:
        return parse_gpus(ask("-q", "-x"), ask("-L"))
    except FileNotFoundError:
        return None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stdout.split() or error.stderr.split())
    except subprocess.TimeoutExpired as error:
        reason = str(error)
    except (ElementTree.ParseError, ValueError, IndexError) as error:
        reason = f"what it says is not understood ({error})"
    logger.warning("nvidia-smi: %s; whether the GPUs are in use is not known", reason)
    return None


def parse_gpus(details: str, listing: str) -> list[Gpu]:
    """Read what nvidia-smi says.

    Args:
        details: the XML of `nvidia-smi -q -x`.
        listing: of `nvidia-smi -L`, where alone all drivers give the identifiers of instances.
    """
    # Of each GPU, those of its instances in the order of their indices.
    identifiers = [re.findall(r"UUID: (MIG-[^)]+)\)", part) for part in listing.split("\nGPU ")]
    gpus = []
    for index, element in enumerate(ElementTree.fromstring(details).findall("gpu")):
        model = _text(element, "product_name")
        processes = element.findall("processes/process_info")
        if _text(element, "mig_mode/current_mig") != "Enabled":
            gpus.append(_gpu(index, _text(element, "uuid"), model, element, processes))
            continue
        instances = element.findall("mig_devices/mig_device")
        for name, instance in zip(identifiers[index], instances, strict=True):
            inside = [item for item in processes if _instance(item) == _instance(instance)]
            gpus.append(_gpu(index, name, model, instance, inside))
    return gpus


def _gpu(
    index: int,
    name: str,
    model: str,
    element: ElementTree.Element,
    processes: Sequence[ElementTree.Element],
) -> Gpu:
    users = [
        f"{_text(item, 'process_name')} (process {_text(item, 'pid')})"
        for item in processes
        if "C" in _text(item, "type")  # Not those that only draw.
        and _text(item, "pid") != str(os.getpid())
    ]
    used, free = (_mib(element, f"fb_memory_usage/{key}") for key in ("used", "free"))
    return Gpu(index, name, model, used, free, tuple(users))


def _instance(element: ElementTree.Element) -> tuple[str, str]:
    return _text(element, "gpu_instance_id"), _text(element, "compute_instance_id")


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _mib(element: ElementTree.Element, path: str) -> int | None:
    number = re.match(r"(\d+) MiB", _text(element, path))
    return int(number[1]) if number else None
