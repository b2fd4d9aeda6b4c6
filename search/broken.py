"""A worker that can go on with no trial, through no fault of the trial's: that is for another."""

BROKEN_EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h: of a worker that had trained before; a new process may again."""
BROKEN_AT_FIRST_EXIT_CODE = 71
"""EX_OSERR: of one that has not trained a single epoch; so it may be with each."""

BROKEN = ("CUDA error", "CUDA driver error", "HIP error", "Triton Error [")
"""What torch, and what it calls, say of a device of which this process can make no more use."""


class WorkerBroken(Exception):
    """What went wrong in a trial is of this process or its machine.

    Once a kernel has failed, each later call of CUDA fails in that process, whatever the trial.
    """

    has_trained: bool
    """Whether this process has trained an epoch, of this trial or of one before."""

    def __init__(self, message: str, has_trained: bool) -> None:
        super().__init__(message)
        self.has_trained = has_trained

    @property
    def exit_code(self) -> int:
        return BROKEN_EXIT_CODE if self.has_trained else BROKEN_AT_FIRST_EXIT_CODE


def is_broken(error: BaseException) -> bool:
    """Whether what a trial has raised says that this process or its machine is broken.

    A GPU without memory for the trial is not: a smaller one has room.
    """
    # Not needed by others who use this module, and takes seconds.
    import torch

    from model.memory import is_out_of_memory

    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in BROKEN)
    )
