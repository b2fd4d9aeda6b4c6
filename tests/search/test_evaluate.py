"""The figures of an evaluation, each beside one computed by hand."""

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from data.corrupt import CORRUPTIONS, SEVERITIES, corrupted
from data.dataset import Dataset, load_dataset
from data.errors import UserError
from model.evaluate import normalise
from model.exported import load
from search.evaluate import SEED, STEPS, ChosenImage, Evaluation, Subject, as_document, evaluate
from search.run_evaluate import evaluate_models
from search.run_export import export_study
from studies.ownership import OwnedStorage
from studies.storage import open_storage
from tests.search.trained import EPOCHS, PARAMETERS, SECONDS, trained_study

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """A study `flowers`, its export `best`, and where its data are kept."""

    storage: OwnedStorage
    root: Path
    source: str
    curve: Sequence[float]

    @property
    def best(self) -> Path:
        return self.root / "best"

    def run(self, *models: object, **changes: Any) -> str:
        arguments: dict[str, Any] = {
            **{"storage": lambda: self.storage, "root": self.root, "place": None},
            **{"output": None, "source": None, "chosen": "0"},
        }
        return evaluate_models([str(model) for model in models], **arguments | changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, few_images: Path) -> Place:
    root = tmp_path_factory.mktemp("evaluated")
    storage = open_storage(f"sqlite:///{root / 'a.db'}", create=True)
    curve = trained_study(storage, "flowers", str(few_images), root)
    export_study(storage, "flowers", root, None, root / "best", None)
    return Place(storage, root, str(few_images), curve)


@pytest.fixture(scope="module")
def dataset(place: Place) -> Dataset:
    return load_dataset(place.source, place.root)


@dataclass(frozen=True)
class Found:
    evaluation: Evaluation
    image: ChosenImage
    told: Sequence[str]


@pytest.fixture(scope="module")
def found(place: Place, dataset: Dataset) -> Found:
    description = json.loads((place.best / "trial.json").read_text())
    subject = Subject("best", load(place.best), description)
    image = ChosenImage("an image", dataset.test.images[3])
    told: list[str] = []
    return Found(evaluate(subject, dataset.test, image, CPU, told.append), image, told)


def by_hand(place: Place, images: torch.Tensor) -> torch.Tensor:
    """Logits, by the plainest way."""
    classifier = load(place.best)
    with torch.no_grad():
        logits: torch.Tensor = classifier.model.eval()(
            normalise(images.float() / 255, classifier.normalisation)
        )
    return logits


def share_right(logits: torch.Tensor, dataset: Dataset) -> float:
    return float(numpy.mean(logits.numpy().argmax(axis=1) == dataset.test.labels.numpy()))


def test_the_accuracies_are_those_computed_by_hand(
    place: Place, dataset: Dataset, found: Found
) -> None:
    evaluation, images = found.evaluation, dataset.test.images
    plain, mirrored = by_hand(place, images), by_hand(place, images.flip(3))
    assert evaluation.test.plain == pytest.approx(share_right(plain, dataset))
    assert evaluation.test.with_flips == pytest.approx(share_right(plain + mirrored, dataset))
    assert evaluation.test.plain > 0.15, "it has learnt something, so that figures differ"
    assert evaluation.metrics.accuracy == pytest.approx(evaluation.test.plain)
    right = plain.argmax(dim=1) == dataset.test.labels
    assert list(evaluation.right) == right.tolist()
    everything = []
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            worse = corrupted(images, corruption, severity, SEED)
            accuracy = share_right(by_hand(place, worse), dataset)
            assert evaluation.robustness[corruption][severity - 1] == pytest.approx(accuracy)
            everything.append(accuracy)
    assert evaluation.corrupted == pytest.approx(numpy.mean(everything))


def test_mistakes_and_the_chosen_image_are_those_computed_by_hand(
    place: Place, dataset: Dataset, found: Found
) -> None:
    probabilities = by_hand(place, dataset.test.images).softmax(dim=1)
    confidences, predicted = probabilities.max(dim=1)
    wrong = (predicted != dataset.test.labels).nonzero().flatten().tolist()
    wrong.sort(key=lambda index: -float(confidences[index]))
    mistakes = found.evaluation.mistakes
    assert [mistake.index for mistake in mistakes] == wrong[: len(mistakes)]
    assert [mistake.probability for mistake in mistakes] == pytest.approx(
        [float(confidences[index]) for index in wrong[: len(mistakes)]], abs=1e-5
    )
    assert found.evaluation.probabilities == pytest.approx(probabilities[3].tolist(), abs=1e-5)
    assert [tuple(part.maps.shape) for part in found.evaluation.features] == [
        *((4, 32, 32), (4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)),
    ]


def test_the_document_has_every_figure(place: Place, dataset: Dataset, found: Found) -> None:
    assert len(found.told) == STEPS
    document = as_document([found.evaluation], dataset, found.image)
    (model,) = json.loads(json.dumps(document, allow_nan=False))["models"]
    guessed = by_hand(place, dataset.test.images).argmax(dim=1).tolist()
    labels = dataset.test.labels.tolist()
    for index, name in enumerate(dataset.classes):
        of_class = model["classes"][index]
        hits = sum(pair == (index, index) for pair in zip(guessed, labels, strict=True))
        assert (of_class["class"], of_class["images"]) == (name, labels.count(index))
        assert of_class["recall"] == pytest.approx(hits / labels.count(index))
        assert of_class["precision"] == pytest.approx(hits / max(1, guessed.count(index)))
        assert model["confusion_matrix"][index][index] == hits
    assert model["test_accuracy"] == found.evaluation.test.plain
    assert model["validation_accuracy_per_epoch"] == list(place.curve)
    for share in (0.8, 0.9, 0.95):
        expected = next(
            epoch
            for epoch in range(1, EPOCHS + 1)
            if place.curve[epoch - 1] >= share * place.curve[-1]
        )
        assert model["epochs_to_share_of_final_accuracy"][f"{share:.0%}"] == expected
    assert model["training"]["images_per_second"] == 1234
    assert model["training"]["training_seconds"] == SECONDS
    assert model["validation_fraction"] == 0.2
    assert model["parameters"].items() >= PARAMETERS.items()
    one, many = model["queries"]["sizes"]
    assert (one["batch_size"], many["batch_size"]) == (1, 256)
    assert one["p99_seconds"] >= one["median_seconds"] > 0
    assert many["images_per_second"] > one["images_per_second"] > 0
    assert [part["shape"][0] for part in model["feature_maps"]] == [4, 4, 8, 16, 32]
    assert sum(model["probabilities_of_image"].values()) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def alarm() -> Iterator[None]:
    """What SIGALRM does, is Ctrl-C."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_ctrl_c_leaves_nothing_behind(place: Place, tmp_path: Path) -> None:
    earlier = {file.name for file in place.root.iterdir()}
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    with pytest.raises(KeyboardInterrupt):
        place.run("flowers", output=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    assert {file.name for file in place.root.iterdir()} == earlier


def test_other_images_than_those_of_the_model_are_refused(place: Place, tmp_path: Path) -> None:
    message = r"best was trained on other data: .*cifar10-mini.* here.*with --data"
    with pytest.raises(UserError, match=message):
        place.run(place.best, source="cifar10-mini", output=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_not_there_is_said_in_a_line(place: Place) -> None:
    with pytest.raises(UserError, match="--image 100: there are 100 test images, from 0 on"):
        place.run(place.best, chosen="100")
    with pytest.raises(UserError, match=r"no\.png: cannot be read"):
        place.run(place.best, chosen="no.png")


def test_what_is_no_model_is_said_in_a_line(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study 'roses' in this storage; there: flowers"):
        place.run("roses")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: not an exported model"):
        place.run(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder that can be written to"):
        place.run(place.best, output=tmp_path / "file")
    assert {file.name for file in tmp_path.iterdir()} == {"empty", "file"}
