"""Using an exported model: `load(directory).predict(paths)`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.dataset import Normalisation
from data.errors import UserError
from data.images import read_image
from data.sums import check_sums
from data.weights import unpacked
from model.evaluate import logits
from model.graph import WEIGHTS_FILE
from model.hyperparameters import parse_hyperparameters
from model.resnet import ResNet
from model.train import build_model

TRIAL_FILE = "trial.json"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most likely class of an image, and how likely it is (in [0, 1])."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classifier:
    """A trained model with all that is needed to use it on image files."""

    model: ResNet
    classes: tuple[str, ...]
    normalisation: Normalisation

    def predict(self, paths: Sequence[str | Path]) -> list[Prediction]:
        """Classify image files of any size.

        Raises:
            UserError: a file is missing or not an image; the message names it.
        """
        if not paths:
            return []
        return self.classify(torch.stack([read_image(Path(path)) for path in paths]))

    def classify(self, images: Tensor) -> list[Prediction]:
        """Classify uint8 images of shape (N, 3, 32, 32), N > 0."""
        probabilities = logits(self.model, images, self.normalisation).softmax(dim=1)
        return [
            Prediction(self.classes[int(row.argmax())], float(row.max())) for row in probabilities
        ]


def load(directory: str | Path) -> Classifier:
    """Load a folder that `hpsearch export` wrote.

    Raises:
        UserError: it is not such a folder, or one of its files is damaged.
    """
    directory = Path(directory)
    try:
        check_sums(directory, frozenset({TRIAL_FILE, WEIGHTS_FILE}))
        trial = json.loads((directory / TRIAL_FILE).read_text())
        classes = tuple(trial["data"]["classes"])
        model = build_model(parse_hyperparameters(trial["parameters"]), len(classes))
        weights, _ = unpacked((directory / WEIGHTS_FILE).read_bytes())
        model.load_state_dict(weights)
        normalisation = Normalisation(**trial["data"]["normalisation"])
    except (FileNotFoundError, NotADirectoryError) as error:
        several = sorted(file.parent for file in directory.glob(f"*/{TRIAL_FILE}"))
        if several:
            raise UserError(
                f"{directory}: exported models are in folders of it; name one, as {several[0]}"
            ) from error
        raise UserError(
            f"{directory}: not an exported model ({error.filename or error} is missing); "
            "make one with hpsearch export"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{directory}: a damaged export ({error}); export it again") from error
    model.to(memory_format=torch.channels_last)
    return Classifier(model.eval(), classes, normalisation)
