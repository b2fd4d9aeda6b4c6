"""The evaluation: each figure beside one computed by hand, and the page in a real browser."""

import functools
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from optuna.trial import TrialState
from PIL import Image
from playwright.sync_api import Browser, Page

from data.corrupt import CORRUPTIONS, SEVERITIES, corrupted
from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.sums import digest
from data.weights import packed, unpacked
from model.evaluate import normalise
from model.exported import load
from search.evaluate import SEED, STEPS, ChosenImage, Evaluation, Subject, as_document, evaluate
from search.evaluation_page import evaluation_page
from search.export import any_device, export_best
from search.prepare import join
from search.run_evaluate import Evaluated, _names, evaluate_models, in_a_line
from search.run_export import export_study
from studies.artifacts import CONFIRMED, EVALUATION, EXPORTED, kept_evaluation
from studies.checkpoints import open_checkpoints
from studies.config import parse_study
from studies.export import WEIGHTS
from studies.ownership import OwnedStorage
from studies.storage import open_storage
from studies.study import create_or_continue, open_study
from tests.model.test_exported import list_digests
from tests.system.served import serving
from tests.system.trained import EPOCHS, PARAMETERS, SECONDS, trained_study

Hpsearch = Callable[..., subprocess.CompletedProcess[str]]

CPU = torch.device("cpu")

SECTIONS = (
    *("summary", "confusion", "classes", "calibration", "robustness"),
    *("convergence", "speed", "mistakes", "features", "models"),
)
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 800},
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}


def opened(browser: Browser, file: Path, options: dict[str, Any]) -> Page:
    """The page, when all of its figures are drawn; nothing went wrong and nothing was fetched."""
    page = browser.new_context(offline=True, **options).new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: wrong.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function(
        "Object.keys(page.figures).every((id) => document.getElementById(id).querySelector('svg'))"
    )
    assert [said for said in wrong if not said.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], "only tables scroll sideways"
    for section in SECTIONS:
        assert page.locator(f"section#{section}").is_visible()
    assert page.locator("section").count() == len(SECTIONS)
    return page


@dataclass(frozen=True)
class Place:
    """A study `flowers`, its export `best`, and where its data are kept."""

    storage: OwnedStorage
    root: Path
    source: str
    curve: Sequence[float]

    url: str

    @property
    def best(self) -> Path:
        return self.root / "best"

    def run(self, *models: Path | str, **changes: Any) -> Evaluated:
        """Of folders, and studies by their names."""
        given = [
            open_study(model, self.storage) if isinstance(model, str) else model for model in models
        ]
        return evaluate_models(given, root=self.root, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, few_images: Path) -> Place:
    root = tmp_path_factory.mktemp("evaluated")
    url = f"sqlite:///{root / 'a.db'}"
    storage = open_storage(url, create=True)
    curve = trained_study(storage, "flowers", str(few_images), root)
    export_study(open_study("flowers", storage), root / "best", root)
    return Place(storage, root, str(few_images), curve, url)


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
    subject = Subject("best", load(place.best), description, digest(place.best / WEIGHTS))
    image = ChosenImage("an image", dataset.test.images[3])
    told: list[str] = []
    return Found(evaluate(subject, dataset.test, image, CPU, told.append), image, told)


def tables(text: str, section: str) -> list[list[str]]:
    """The rows of all tables in a section of the page."""
    (content,) = re.findall(rf'<section id="{section}">(.*?)</section>', text, re.S)
    rows = re.findall(r"<tr>(.*?)</tr>", content)
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in rows
    ]


@pytest.fixture
def known(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model measures as this one, which takes no time."""

    def measured(subject: Subject, *_: Any) -> Evaluation:
        return replace(found.evaluation, subject=subject)

    monkeypatch.setattr("search.run_evaluate.evaluate", measured)


loaded = functools.cache(load)


def by_hand(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """Logits of an exported model, by the plainest way."""
    classifier = loaded(folder)
    with torch.no_grad():
        logits: torch.Tensor = classifier.model.eval()(
            normalise(images.float() / 255, classifier.normalisation)
        )
    return logits


def share_right(logits: torch.Tensor, dataset: Dataset) -> float:
    return float(numpy.mean(logits.numpy().argmax(axis=1) == dataset.test.labels.numpy()))


SHARES = (0.8, 0.9, 0.95)
BINS = 15


def first_epochs(curve: Sequence[float]) -> list[int]:
    """Those that first come to each of `SHARES` of the last accuracy."""
    return [
        next(epoch for epoch, value in enumerate(curve, start=1) if value >= share * curve[-1])
        for share in SHARES
    ]


class ByHand:
    """What the page is to show of a model, from its logits, with numpy alone."""

    def __init__(
        self, folder: Path, dataset: Dataset, worse: Sequence[Sequence[torch.Tensor]]
    ) -> None:
        images, labels = dataset.test.images, dataset.test.labels.numpy()
        logits = by_hand(folder, images)
        powers = numpy.exp(logits.numpy().astype(float))
        self.probabilities = powers / powers.sum(axis=1, keepdims=True)
        self.guessed = self.probabilities.argmax(axis=1)
        self.confidences = self.probabilities.max(axis=1)
        self.right = self.guessed == labels
        self.accuracy = self.right.mean()
        self.with_flips = share_right(logits + by_hand(folder, images.flip(3)), dataset)
        self.robustness = [
            [share_right(by_hand(folder, these), dataset) for these in of_corruption]
            for of_corruption in worse
        ]
        count = len(dataset.classes)
        self.confusion = numpy.zeros((count, count), dtype=int)
        numpy.add.at(self.confusion, (labels, self.guessed), 1)
        self.images, taken = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        hits = self.confusion.diagonal()
        self.precision, self.recall = hits / taken.clip(1), hits / self.images
        self.f1 = 2 * hits / (self.images + taken)
        places = (self.confidences * BINS).astype(int).clip(max=BINS - 1)
        inside = [places == number for number in range(BINS)]
        self.in_bins = [int(part.sum()) for part in inside]
        self.right_in_bins = [self.right[part].mean() if part.any() else None for part in inside]
        self.calibration_error = sum(
            abs(self.right[part].mean() - self.confidences[part].mean()) * part.mean()
            for part in inside
            if part.any()
        )

    def headlines(self) -> list[float]:
        mean = float(numpy.mean(self.robustness))
        return [self.accuracy, self.with_flips, self.f1.mean(), mean, self.calibration_error]


@pytest.fixture(scope="module")
def worse(dataset: Dataset) -> Sequence[Sequence[torch.Tensor]]:
    """The test images with each corruption at each severity."""
    return [
        [corrupted(dataset.test.images, corruption, severity, SEED) for severity in SEVERITIES]
        for corruption in CORRUPTIONS
    ]


@pytest.fixture(scope="module")
def expected(place: Place, dataset: Dataset, worse: Sequence[Sequence[torch.Tensor]]) -> ByHand:
    """Of `best`."""
    return ByHand(place.best, dataset, worse)


def near(values: Sequence[float | None]) -> list[Any]:
    """As they are rounded in a figure."""
    return [value and pytest.approx(value, rel=1e-3) for value in values]


def percents(texts: Sequence[str]) -> list[float]:
    return [float(text.rstrip("%")) for text in texts]


def in_percent(values: Sequence[float], digits: int) -> Any:
    """Either neighbour of what lies in the middle of two."""
    return pytest.approx([100 * value for value in values], abs=0.501 / 10**digits)


def test_the_accuracies_are_those_computed_by_hand(found: Found, expected: ByHand) -> None:
    evaluation = found.evaluation
    assert evaluation.test.plain == pytest.approx(expected.accuracy)
    assert evaluation.test.with_flips == pytest.approx(expected.with_flips)
    assert evaluation.test.plain > 0.15, "it has learnt something, so that figures differ"
    assert evaluation.metrics.accuracy == pytest.approx(evaluation.test.plain)
    assert list(evaluation.right) == expected.right.tolist()
    for corruption, accuracies in zip(CORRUPTIONS, expected.robustness, strict=True):
        assert evaluation.robustness[corruption] == pytest.approx(accuracies)
    assert evaluation.corrupted == pytest.approx(numpy.mean(expected.robustness))


def test_mistakes_and_the_chosen_image_are_those_computed_by_hand(
    place: Place, dataset: Dataset, found: Found
) -> None:
    probabilities = by_hand(place.best, dataset.test.images).softmax(dim=1)
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
    guessed = by_hand(place.best, dataset.test.images).argmax(dim=1).tolist()
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
    reached = dict(zip(("80%", "90%", "95%"), first_epochs(place.curve), strict=True))
    assert model["epochs_to_share_of_final_accuracy"] == reached
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


def test_of_a_model_that_was_trained_anew_the_curve_is_that_of_the_search(found: Found) -> None:
    subject = found.evaluation.subject
    description = {"before": {"validation_accuracy_per_epoch": [0.25, 0.5]}}
    anew = replace(found.evaluation, subject=replace(subject, description=description))
    assert anew.curve == (0.25, 0.5)


def test_the_file_of_the_chosen_image_is_named_as_it_is(dataset: Dataset, found: Found) -> None:
    image = replace(found.image, name="IMG_0042.JPG")
    text = evaluation_page([found.evaluation], dataset, image)
    assert text.count("IMG_0042.JPG") == 2, "above the maps, and below the image"


def test_ctrl_c_leaves_nothing_behind(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = {file.name for file in place.root.iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.run_evaluate.evaluation_page", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.run("flowers", output=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    assert {file.name for file in place.root.iterdir()} == earlier


def test_other_images_than_those_of_the_model_are_refused(place: Place, tmp_path: Path) -> None:
    for index, name in enumerate(("train/cat/0", "train/cat/1", "train/dog/2", "train/dog/3")):
        file = tmp_path / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (index, 0, 0)).save(file)
    message = r"best was trained on other data: .*photos.* here, but .*with --data"
    with pytest.raises(UserError, match=message):
        place.run(place.best, source=str(tmp_path / "photos"), output=tmp_path / "new")
    assert {file.name for file in tmp_path.iterdir()} == {"photos"}


def test_an_image_that_is_not_there_is_said_in_a_line(place: Place) -> None:
    with pytest.raises(UserError, match="--image 100: there are 100 test images, from 0 on"):
        place.run(place.best, chosen="100")
    with pytest.raises(UserError, match=r"no\.png: cannot be read"):
        place.run(place.best, chosen="no.png")


def test_what_is_no_model_is_said_in_a_line(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study 'roses' in this storage; there: flowers"):
        place.run("roses")
    own = {
        **{"name": "own", "trial": {"objective": "mine:train"}},
        **{"space": {"x": [1, 2]}, "budget": {"trials": 1}},
    }
    create_or_continue(place.storage, parse_study(own, "the test"), "0" * 64, [])
    with pytest.raises(UserError, match="'own' runs 'mine:train': only models of"):
        place.run("own")
    space = {"space": {"learning_rate": [0.1, 0.2]}, "budget": {"trials": 1}}
    for name in ("waiting", "pruned"):
        config = parse_study({"name": name, **space}, "the test")
        opened, _ = create_or_continue(place.storage, config, "0" * 64, [{"learning_rate": 0.1}])
        if name == "pruned":
            opened.study.tell(opened.study.ask(), state=TrialState.PRUNED)
        with pytest.raises(UserError, match=f"'{name}': no trial is complete yet, so there is no"):
            place.run(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: not an exported model"):
        place.run(tmp_path / "empty")
    shutil.copytree(place.best, tmp_path / "cut")
    description = json.loads((place.best / "trial.json").read_text())
    del description["data"]["digest"]
    (tmp_path / "cut" / "trial.json").write_text(json.dumps(description))
    list_digests(tmp_path / "cut")
    with pytest.raises(UserError, match=r"cut: a damaged export \(no digest in trial.json\)"):
        place.run(tmp_path / "cut")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder that can be written to"):
        place.run(place.best, output=tmp_path / "file")
    assert {file.name for file in tmp_path.iterdir()} == {"empty", "cut", "file"}


def test_an_export_and_a_study_side_by_side(
    place: Place,
    dataset: Dataset,
    worse: Sequence[Sequence[torch.Tensor]],
    expected: ByHand,
    hpsearch: Hpsearch,
    browser: Browser,
    tmp_path: Path,
) -> None:
    """The folder's model is the study's, with some noise in its weights."""
    torch.manual_seed(0)
    shutil.copytree(place.best, tmp_path / "other")
    weights, _ = unpacked((tmp_path / "other" / "model.safetensors").read_bytes())
    for name, tensor in sorted(weights.items()):  # They come in another order each time.
        if tensor.ndim == 4:
            weights[name] = tensor + 0.3 * tensor.std() * torch.randn(tensor.shape)
    (tmp_path / "other" / "model.safetensors").write_bytes(packed(weights, {}))
    list_digests(tmp_path / "other")
    result = hpsearch(
        *("evaluate", "other", "--against", "flowers", "--directory", place.root),
        *("--image", Path(place.source) / "test/cat/0.png"),
        HPSEARCH_STORAGE=place.url,
        CUDA_VISIBLE_DEVICES="",  # A GPU computes a little otherwise.
    )
    assert result.returncode == 0, result.stderr
    # Without a terminal, in place of the bar.
    told = result.stderr.splitlines()
    assert len(told) == 2 * STEPS
    assert told[0].endswith(f"test images: 1 of {2 * STEPS} done")
    assert told[-1].endswith(f"feature maps: {2 * STEPS} of {2 * STEPS} done")
    assert {file.name for file in tmp_path.iterdir()} == {"other", "other-evaluation"}
    output = tmp_path / "other-evaluation"
    assert {file.name for file in output.iterdir()} == {"evaluation.html", "evaluation.json"}

    document = json.loads((output / "evaluation.json").read_text())
    first, second = document["models"]
    assert (first["name"], second["name"]) == ("other", "flowers")
    assert second["test_accuracy"] == pytest.approx(expected.accuracy)
    compared = document["comparison"]
    difference = first["test_accuracy"] - second["test_accuracy"]
    assert compared["difference"] == pytest.approx(difference)
    assert compared["first_alone"] + compared["second_alone"] > 0
    assert compared["low"] <= difference <= compared["high"]
    (line,) = result.stdout.splitlines()
    assert f"flowers: test accuracy {second['test_accuracy']:.2%}" in line
    assert f"difference {100 * difference:+.2f} points" in line
    assert line.endswith("; other-evaluation/evaluation.html")

    card = yaml.safe_load((tmp_path / "other" / "README.md").read_text().split("---\n")[1])
    clean, made_worse = (
        [metric["value"] for metric in result["metrics"]]
        for result in card["model-index"][0]["results"]
    )
    assert clean[2:] == [first["macro"]["f1"], first["calibration"]["error"]]
    assert made_worse == [first["mean_accuracy_corrupted"]]

    page = opened(browser, output / "evaluation.html", DESKTOP)
    page.screenshot(path=tmp_path / "evaluation.png", full_page=True)
    assert page.title() == "other and flowers"
    # The image, and the stem and the stages, of each.
    assert page.locator("#features img").count() == 2 * 6
    assert page.locator("#features").get_by_text("0.png").first.is_visible()
    drawn = {name: figure["data"] for name, figure in page.evaluate("page.figures").items()}
    shown = {name: page.locator(f"#{name}").inner_text() for name in SECTIONS}
    rows = page.evaluate(
        """Object.fromEntries([...document.querySelectorAll('section')].map((section) => [
            section.id,
            [...section.querySelectorAll('tr')].map((row) =>
                [...row.cells].map((cell) => cell.textContent)),
        ]))"""
    )
    both = [ByHand(tmp_path / "other", dataset, worse), expected]
    check_figures(drawn, both, dataset, place.curve)
    check_tables(rows, shown, both, dataset, place.curve)
    for number, model in enumerate((first, second)):
        sizes = model["queries"]["sizes"]
        assert [[row[0], row[1], row[4]] for row in rows["speed"][3 * number + 1 :][:2]] == [
            [str(of["batch_size"]), f"{1000 * of['median_seconds']:,.2f} ms", str(of["queries"])]
            for of in sizes
        ]


def check_figures(
    drawn: dict[str, Any], both: Sequence[ByHand], dataset: Dataset, curve: Sequence[float]
) -> None:
    """Both models have the same curve."""
    checked = {"convergence-figure"}
    for number, model in enumerate(both):
        (confusion,) = drawn[f"confusion-{number}"]
        assert confusion["x"] == confusion["y"] == list(dataset.classes)
        assert confusion["text"] == model.confusion.tolist()
        assert confusion["z"] == [near(row) for row in model.confusion / model.images[:, None]]
        classes = drawn[f"classes-{number}-figure"]
        assert [trace["name"] for trace in classes] == ["precision", "recall", "F1"]
        for trace, values in zip(classes, (model.precision, model.recall, model.f1), strict=True):
            assert (trace["y"], trace["x"]) == (list(dataset.classes), near(values.tolist()))
        right, _, images = drawn[f"reliability-{number}"]
        assert right["x"] == images["x"] == near([(bar + 0.5) / BINS for bar in range(BINS)])
        assert (right["y"], images["y"]) == (near(model.right_in_bins), model.in_bins)
        assert right["hovertext"] == [str(count) for count in model.in_bins]
        for position, accuracies in enumerate(model.robustness):
            line = drawn[f"robustness-{position}"][number]
            assert (line["x"], line["y"]) == ([0, *SEVERITIES], near([model.accuracy, *accuracies]))
        line, marks = drawn["convergence-figure"][2 * number :][:2]
        assert (line["x"], line["y"]) == (list(range(1, EPOCHS + 1)), near(list(curve)))
        first = first_epochs(curve)
        assert marks["x"] == sorted(set(first))
        assert marks["y"] == near([curve[epoch - 1] for epoch in sorted(set(first))])
        assert ", ".join(marks["text"]) == "80%, 90%, 95%"
        checked |= {f"confusion-{number}", f"classes-{number}-figure", f"reliability-{number}"}
    assert drawn.keys() == checked | {f"robustness-{number}" for number in range(len(CORRUPTIONS))}


def check_tables(
    rows: dict[str, Any],
    shown: dict[str, str],
    both: Sequence[ByHand],
    dataset: Dataset,
    curve: Sequence[float],
) -> None:
    """All but the times of queries."""
    assert {name for name, found in rows.items() if found} == {
        *("summary", "classes", "convergence", "speed", "models")
    }
    headlines = [model.headlines() for model in both]
    assert len(rows["summary"]) == 1 + len(headlines[0])
    for row, first, second in zip(rows["summary"][1:], *headlines, strict=True):
        assert percents(row[1:]) == in_percent([first, second, first - second], 2)
    alone = [int((both[0].right > both[1].right).sum()), int((both[0].right < both[1].right).sum())]
    assert f" {alone[0]} images only the first got right, {alone[1]} only the" in shown["summary"]
    reached = [str(epoch) for epoch in first_epochs(curve)]
    assert rows["convergence"][1:] == [
        [name, *reached, f"{curve[-1]:.2%}"] for name in ("other", "flowers")
    ]
    assert shown["speed"].count(f"Training: {SECONDS} s, 1,234 images/s.") == 2
    facts = {name: values for name, *values in rows["models"]}
    assert facts["trial"] == ["0", "0"]
    assert facts["validation fraction"] == ["0.2", "0.2"]
    for name, value in PARAMETERS.items():
        assert facts[name] == [str(value)] * 2
    length = len(dataset.classes) + 2
    for number, model in enumerate(both):
        _, *of_classes, mean = rows["classes"][number * length :][:length]
        columns = numpy.stack([model.precision, model.recall, model.f1], axis=1)
        for row, name, images, values in zip(
            of_classes, dataset.classes, model.images, columns, strict=True
        ):
            assert (row[0], row[1], percents(row[2:])) == (name, str(images), in_percent(values, 1))
        assert mean[:2] == ["mean (macro)", str(len(dataset.test))]
        assert percents(mean[2:]) == in_percent(columns.mean(axis=0), 1)
        said = r"calibration error (\S+%); mean confidence (\S+%), accuracy (\S+%)\."
        found = re.findall(said, shown["calibration"])[number]
        expected = [model.calibration_error, model.confidences.mean(), model.accuracy]
        assert percents(found) == in_percent(expected, 2)
        index = int(numpy.where(model.right, 0, model.confidences).argmax())
        taken = dataset.classes[model.guessed[index]]
        assert f"{taken} {model.confidences[index]:.1%}\n" in shown["mistakes"]
        assert f"%), image {index}\n" in shown["mistakes"]


@pytest.mark.usefixtures("known")
def test_two_models_of_one_folder_name_are_told_apart(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in ("old", "new"):
        shutil.copytree(place.best, tmp_path / folder / "best")
    monkeypatch.chdir(tmp_path / "old")
    evaluated = place.run(Path("best"), Path("../new/best"), output=Path("compared"))
    names = ["old/best", "new/best"]
    document = json.loads((evaluated.page.parent / "evaluation.json").read_text())
    assert [model["name"] for model in document["models"]] == names
    assert all(f"{name}: test accuracy" in in_a_line(evaluated.evaluations) for name in names)
    text = evaluated.page.read_text()
    assert "<title>old/best and new/best</title>" in text
    curves = re.findall(r'"name":"([^"]*/best)"', text)
    assert curves == names * (len(CORRUPTIONS) + 1), "each has a line in each figure"


@pytest.mark.usefixtures("known")
def test_of_two_models_the_page_and_the_document_say_the_validation_fractions(
    place: Place, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(place.best, other)
    description = json.loads((other / "trial.json").read_text())
    description["data"]["validation_fraction"] = 0.35
    (other / "trial.json").write_text(json.dumps(description))
    list_digests(other)
    folder = place.run(place.best, other, output=tmp_path / "compared").page.parent
    models = json.loads((folder / "evaluation.json").read_text())["models"]
    assert [model["validation_fraction"] for model in models] == [0.2, 0.35]
    rows = tables((folder / "evaluation.html").read_text(), "models")
    assert ["validation fraction", "0.2", "0.35"] in rows


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a/best"], ["best"]),
        (["a/best", "b/final"], ["best", "final"]),
        (["a/x/best", "b/x/best"], ["a/x/best", "b/x/best"]),
        (["a/best", "a/b/best"], ["a/best", "b/best"]),
        (["a/flowers", "flowers"], ["a/flowers", "flowers"]),
        (["a/best", "a/../a/best"], ["best (1)", "best (2)"]),
    ],
)
def test_as_much_of_a_path_is_said_as_tells_models_apart(
    place: Place, tmp_path: Path, given: Sequence[str], names: Sequence[str]
) -> None:
    study = open_study("flowers", place.storage)
    models = [study if item == "flowers" else tmp_path / item for item in given]
    assert _names(models) == names


@pytest.mark.usefixtures("known")
def test_the_evaluation_of_a_study_can_be_seen_and_downloaded_in_the_dashboard(
    place: Place,
    dataset: Dataset,
    found: Found,
    browser: Browser,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = open_study("flowers", place.storage)
    of_run = study.directory(place.root) / EXPORTED
    export_study(study, of_run, place.root)
    damaged = of_run.with_name(CONFIRMED)
    shutil.copytree(of_run, damaged)
    (damaged / "trial.json").write_text("{}")
    written = place.run("flowers", output=tmp_path / "evaluated").page.parent
    assert {file.name for file in written.iterdir()} == {"evaluation.html", "evaluation.json"}
    assert f"{damaged / 'README.md'}: left as it is (trial.json is damaged)" in caplog.text
    export_study(study, tmp_path / "later", place.root)
    (several,) = export_study(study, tmp_path / "several", place.root, best=1)
    checkpoints = open_checkpoints(study, place.root, None)
    kept = kept_evaluation(study, place.root)
    again = tmp_path / "again"
    export_best(join(study, place.root), checkpoints, again, kept, any_device())
    line = f"macro F1: the mean over the classes | {found.evaluation.metrics.macro.f1:.2%} |"
    for folder in (of_run, tmp_path / "later", several.output, again):
        assert line in (folder / "README.md").read_text()
        load(folder)  # Its digests are those of its files.
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    with serving(place.url, "--directory", str(place.root)) as address:
        page.goto(f"{address}/studies/1")
        for name in EVALUATION:
            page.get_by_text(name).first.wait_for(timeout=20_000)
        page.wait_for_function(
            "[...document.images].filter((image) => image.src.includes('/artifacts/')"
            " && image.naturalWidth > 0).length == 2"
        )
        root = address.removesuffix("/dashboard")
        files = {}
        for shown in page.request.get(f"{root}/api/studies/1").json()["artifacts"]:
            answer = page.request.get(f"{root}/artifacts/1/{shown['artifact_id']}")
            files[shown["filename"]] = (answer.headers["content-type"], answer.body())
    assert {name: kind for name, (kind, _) in files.items()} == {
        "evaluation.html": "application/octet-stream",  # It has scripts.
        "evaluation.json": "application/json",
        "feature-maps.png": "image/png",
        "mistakes.png": "image/png",
    }
    for name in ("evaluation.html", "evaluation.json"):
        assert files[name][1] == (written / name).read_bytes()
    with Image.open(io.BytesIO(files["mistakes.png"][1])) as picture:
        mistakes = numpy.array(picture)
    first = dataset.test.images[found.evaluation.mistakes[0].index].permute(1, 2, 0)
    assert (mistakes[4:68:2, 4:68:2] == first.numpy()).all(), "the most confident one is the first"
    with Image.open(io.BytesIO(files["feature-maps.png"][1])) as picture:
        rows = (1, 1, 1, 2, 4)  # Of the stem and of each stage, of 8 maps.
        assert picture.size == (8 * 68 - 4, sum(68 * count - 4 + 16 for count in rows))


def test_what_a_class_is_called_is_shown_and_not_run_on_a_phone_too(
    found: Found, dataset: Dataset, browser: Browser, tmp_path: Path
) -> None:
    hostile = "<img src=x onerror=alert(1)></script><b>" + "x" * 300
    classes = tuple(f"{hostile}\x1b[2J{index}" for index in range(len(dataset.classes)))
    description = {
        **{"study": hostile, "trial": 0, "parameters": {hostile: hostile}},
        **{"data": {}, "validation_accuracy_per_epoch": []},
    }
    subject = Subject(hostile, found.evaluation.subject.classifier, description, "00")
    evaluation = replace(found.evaluation, subject=subject)
    named = replace(dataset, classes=classes, source=hostile)
    (tmp_path / "page.html").write_text(
        evaluation_page([evaluation], named, replace(found.image, name=hostile))
    )
    page = opened(browser, tmp_path / "page.html", PHONE)
    assert page.title() == hostile
    assert page.get_by_text("No curve is recorded").is_visible()
    assert page.locator("#mistakes img").count() == len(evaluation.mistakes) > 0
