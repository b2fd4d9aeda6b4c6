"""Which device a worker trains on, where nobody has assigned one, and the memory of it."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from data.split import TrainingData
from model.memory import give_back, is_out_of_memory
from model.precision import compute_dtype
from search.gpus import ORDER, check_found, check_occupation, named_gpus

logger = logging.getLogger(__name__)


@contextmanager
def taken_device(root: Path) -> Iterator[torch.device]:
    """The GPU that the fewest workers use, taken for as long as the context lasts; else the CPU.

    `hpsearch run` shows each of its workers one GPU only. Workers that are started one by one, or
    as containers that all see all GPUs, find out by locks in a directory that they share.

    Args:
        root: the directory for what a run makes.

    Raises:
        UserError: the user has named GPUs of which one is missing; or others than workers leave
            no memory on the one that is taken.
    """
    os.environ.update(ORDER)
    check_found(named_gpus(), torch.cuda.device_count())
    if not torch.cuda.is_available():
        yield torch.device("cpu")
        return
    count = torch.cuda.device_count()
    # By identifier, not by index: other machines may share the directory.
    gpus = [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]
    index, lock = take(gpus, root / "gpus")
    try:
        # Other workers may share it, and what they use is not to be wondered at.
        if not _others(gpus[index], root / "gpus", lock):
            check_occupation(gpus[index])
        yield torch.device("cuda", index)
    finally:
        lock.release()


def device_name(device: torch.device) -> str:
    """What a device is called in a trial's record: `cpu`, or the GPU's model."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def dtype_name(precision: str, device: torch.device) -> str:
    """What a precision of `[trial]` means on a device, for instance `bfloat16`."""
    return str(compute_dtype(precision, device)).removeprefix("torch.")


def take(gpus: Sequence[str], directory: Path) -> tuple[int, FileLock]:
    """Take a place on the GPU that the fewest processes have taken; of equals the first.

    A place is a locked file. The operating system unlocks the files of a process that dies.

    Returns:
        An index of `gpus`, and the lock, to be held for as long as the GPU is used.
    """
    directory.mkdir(parents=True, exist_ok=True)
    place = 0
    while True:
        for index, gpu in enumerate(gpus):
            lock = FileLock(directory / f"{gpu}-{place}.lock", blocking=False)
            try:
                lock.acquire()
            except Timeout:
                continue
            return index, lock
        place += 1


def _others(gpu: str, directory: Path, own: FileLock) -> bool:
    """Whether another process has taken a place on this GPU."""
    files = {str(file) for file in directory.glob(f"{gpu}-*.lock")} - {own.lock_file}
    for file in files:
        try:
            FileLock(file, blocking=False).acquire().lock.release()
        except Timeout:
            return True
    return False


def placed(data: TrainingData, device: torch.device) -> TrainingData:
    """The images on the device; if they do not fit, where they are: batches are sent one by one."""
    try:
        return data.to(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logger.warning(
            "the images do not fit into the memory of %s; they stay in the host's, and each batch "
            "is sent by itself",
            device_name(device),
        )
    give_back(device)
    return data
