"""`--tensorboard DIR`: what a trial is and how it goes, for TensorBoard."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from data.augment import augment, draw_first_flips, mirrored_in
from data.mix import mix
from model.evaluate import normalise, to_float
from model.hyperparameters import parse_hyperparameters
from model.trial import EpochResult, TrialContext

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PICTURED_IMAGES = 64

logger = logging.getLogger(__name__)


class TrialLog:
    """The events of one trial, in a folder of its own; a resumed one goes on in the same folder.

    What cannot be written is said once, and costs the trial nothing.

    Args:
        directory: of the study; None if nothing is to be written.
        number: of the trial.
        is_resnet: whether `parameters` are those of the default objective.
    """

    def __init__(
        self, directory: Path | None, number: int, parameters: Mapping[str, Any], is_resnet: bool
    ) -> None:
        self._path = directory / f"trial-{number:04d}" if directory else None
        self._number, self._parameters, self._is_resnet = number, parameters, is_resnet
        self._writer: SummaryWriter | None = None

    def begin(self, context: TrialContext, epochs_before: int) -> None:
        """Of a new trial of a ResNet, the graph, and images as it will see them.

        Args:
            epochs_before: of an earlier run; what was written of later ones is hidden.
        """
        path = self._path
        if path is None:
            return

        def write() -> None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(path), purge_step=epochs_before + 1)

        self._try(write)
        writer = self._writer
        if writer and self._is_resnet and not epochs_before:
            # Of memory there may be too little for it; the curves are written all the same.
            _or_warn(lambda: self._show(writer, context), self._number, "no picture")

    def _show(self, writer: "SummaryWriter", context: TrialContext) -> None:
        from model.train import build_model

        images = augmented_batch(self._parameters, context)
        writer.add_images("augmented batch", images, 0)
        # The layers written by hand have graphs in which nothing can be found.
        chosen = replace(parse_hyperparameters(self._parameters), layers="torch")
        model = build_model(chosen, len(context.data.classes)).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of the tracer, about sizes that are always the same.
            writer.add_graph(model, normalise(images[:1], context.data.normalisation))

    def epoch(self, result: EpochResult) -> None:
        """The loss, the accuracy, the learning rate and the speed of an epoch."""
        writer = self._writer
        if writer is None:
            return

        def write() -> None:
            for tag, value in (
                ("loss/training", result.training_loss),
                ("accuracy/validation", result.validation_accuracy),
                ("learning_rate", result.learning_rate),
                ("images_per_second", result.images_per_second),
            ):
                if value is not None:
                    writer.add_scalar(tag, value, result.epoch)
            writer.flush()

        self._try(write)

    def end(self, best_accuracy: float | None) -> None:
        """A line of the hparams page: the parameters, and the best accuracy if there is one."""
        writer = self._writer
        if writer is None:
            return

        def write() -> None:
            metrics = {} if best_accuracy is None else {"accuracy/best": best_accuracy}
            writer.add_hparams(dict(self._parameters), metrics, run_name=".")
            writer.close()

        self._try(write)

    def _try(self, write: Callable[[], None]) -> None:
        # A full disk, for instance.
        if not _or_warn(write, self._number, f"nothing more in {self._path}"):
            self._writer = None


def _or_warn(write: Callable[[], None], trial: int, lost: str) -> bool:
    """Whether it was written; if not, what is lost is said."""
    try:
        write()
    except Exception as error:  # noqa: BLE001
        logger.warning("trial %d: TensorBoard has %s (%s)", trial, lost, error)
        return False
    return True


def augmented_batch(parameters: Mapping[str, Any], context: TrialContext) -> Tensor:
    """The first images of the training data, augmented as in the first epoch of a trial.

    Returns:
        float32 of shape (N, 3, H, W), in [0, 1], on the CPU.
    """
    chosen, train = parse_hyperparameters(parameters), context.data.train
    indices = torch.arange(min(PICTURED_IMAGES, len(train)), device=train.images.device)
    images, _ = train.batch(indices, context.device)
    generator = Generator(context.device).manual_seed(context.seed)
    mirrored = mirrored_in(1, draw_first_flips(len(train), context.seed, context.device))
    augmented = augment(
        to_float(images),
        chosen.augmentation,
        chosen.color_jitter,
        generator,
        mirrored[: len(indices)],
    )
    return mix(augmented, chosen.mixing, generator).images.cpu()
