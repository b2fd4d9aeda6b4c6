"""The page of an evaluation: one HTML file that needs nothing else, of one model or of two."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.corrupt import CORRUPTIONS, OCCLUSION, SEVERITIES, corrupted
from data.dataset import Dataset
from model.metrics import epochs_to
from search import evaluation_figures as figures
from search.evaluate import CONVERGED, SEED, ChosenImage, Evaluation, paired
from search.pictures import colored_maps, picture, row_of
from studies.page import RISES, Figures, page, place, section, table, tiles
from studies.text import shortened

MAPS = 32
"""Feature maps of each part that are shown."""
LIKELY = 3
"""Classes that are named for the chosen image."""
LONGEST_VALUE = 100  # characters


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page is about, and the figures that it has so far."""

    evaluations: Sequence[Evaluation]
    dataset: Dataset
    image: ChosenImage
    drawn: Figures = field(default_factory=dict)

    def each(self, content: Callable[[int, Evaluation], str]) -> str:
        """The same of every model; two stand side by side, with their names."""
        parts = [content(number, item) for number, item in enumerate(self.evaluations)]
        if len(parts) == 1:
            return parts[0]
        named = [
            f"<div><h3>{html.escape(item.subject.name)}</h3>{part}</div>"
            for item, part in zip(self.evaluations, parts, strict=True)
        ]
        return f'<div class="side-by-side">{"".join(named)}</div>'


def evaluation_page(evaluations: Sequence[Evaluation], dataset: Dataset, image: ChosenImage) -> str:
    """The whole HTML file. Without a network it shows all that it has."""
    shown = Shown(evaluations, dataset, image)
    names = " and ".join(item.subject.name for item in evaluations)
    body = [
        f"<h1>{html.escape(names)}</h1>",
        f'<p class="about">evaluated on the {len(dataset.test)} test images of '
        f"{html.escape(dataset.source)}, which the search has never seen</p>",
        *(part(shown) for part in SECTIONS),
    ]
    return page(names, body, shown.drawn)


def _headlines(item: Evaluation) -> dict[str, float]:
    return {
        "test accuracy": item.test.plain,
        "averaged with mirror images": item.test.with_flips,
        "macro F1": item.metrics.macro.f1,
        "mean accuracy when corrupted": item.corrupted,
        "expected calibration error": item.metrics.calibration.error,
    }


def _summary(shown: Shown) -> str:
    first, *others = [_headlines(item) for item in shown.evaluations]
    if not others:
        return section(
            "summary",
            "In short",
            "All but the last are better when higher; the last is how far confidence and accuracy "
            "are apart.",
            tiles([(f"{value:.2%}", label) for label, value in first.items()]),
        )
    (second,) = others
    found = paired(shown.evaluations)
    assert found is not None
    rows = [
        [name, f"{value:.2%}", f"{second[name]:.2%}", f"{100 * (value - second[name]):+.2f}"]
        for name, value in first.items()
    ]
    return section(
        "summary",
        "In short",
        f"On the test images the accuracies differ by {100 * found.difference:+.2f} points, with a "
        f"95% interval from {100 * found.low:+.2f} to {100 * found.high:+.2f}: an interval with 0 "
        f"in it says that it may be chance (McNemar's test: p = {found.p:.2g}). "
        f"{found.first_alone} images only the first got right, {found.second_alone} only the "
        "second. The models' own seeds are not in this: another training of either differs too.",
        table(["", *(item.subject.name for item in shown.evaluations), "difference"], rows),
    )


def _confusion(shown: Shown) -> str:
    def of_model(number: int, item: Evaluation) -> str:
        figure = figures.confusion(item.metrics.confusion, shown.dataset.classes)
        return place(shown.drawn, f"confusion-{number}", figure)

    return section(
        "confusion",
        "What is taken for what",
        "A row is what the images are, a column what they were taken for. A dark field off the "
        "diagonal is a pair of classes that more or better images of would help.",
        shown.each(of_model),
    )


def _classes(shown: Shown) -> str:
    def of_model(number: int, item: Evaluation) -> str:
        metrics = item.metrics
        rows = [
            [name, str(sum(row)), *(f"{value:.1%}" for value in (of.precision, of.recall, of.f1))]
            for name, row, of in zip(
                shown.dataset.classes, metrics.confusion, metrics.classes, strict=True
            )
        ]
        macro = (metrics.macro.precision, metrics.macro.recall, metrics.macro.f1)
        rows.append(
            ["mean (macro)", str(len(shown.dataset.test)), *(f"{value:.1%}" for value in macro)]
        )
        figure = figures.of_classes(metrics.classes, shown.dataset.classes)
        return (
            f'<div class="side-by-side">{place(shown.drawn, f"classes-{number}-figure", figure)}'
            f"{table(['class', 'images', 'precision', 'recall', 'F1'], rows)}</div>"
        )

    return section(
        "classes",
        "Each class",
        "Precision: of what was taken for the class, how much is of it. Recall: of the class, how "
        "much was found. Low precision with high recall is a class that is named too readily.",
        shown.each(of_model),
    )


def _calibration(shown: Shown) -> str:
    def of_model(number: int, item: Evaluation) -> str:
        found = item.metrics.calibration
        return (
            f"<p>Expected calibration error {found.error:.2%}; mean confidence "
            f"{found.confidence:.2%}, accuracy {item.metrics.accuracy:.2%}.</p>"
            f"{place(shown.drawn, f'reliability-{number}', figures.reliability(found.bins))}"
        )

    return section(
        "calibration",
        "Is it as sure as it is right?",
        "Bars below the dashed line: the model is surer than it should be, above it less sure. "
        "Bars of few images (below) are mostly chance.",
        shown.each(of_model),
    )


def _robustness(shown: Shown) -> str:
    plain = [item.test.plain for item in shown.evaluations]
    cards = []
    for number, corruption in enumerate(CORRUPTIONS):
        curves = {item.subject.name: item.robustness[corruption] for item in shown.evaluations}
        worse = [
            corrupted(shown.image.pixels[None], corruption, severity, SEED)[0]
            for severity in SEVERITIES
        ]
        examples = picture(row_of([shown.image.pixels, *worse]))
        cards.append(
            f"<figure><h3>{corruption.capitalize().replace('Jpeg', 'JPEG')}</h3>"
            f"{place(shown.drawn, f'robustness-{number}', figures.robustness(plain, curves))}"
            f'<img src="{examples}" alt="the chosen image at severities 0 to 5"></figure>'
        )
    sides = ", ".join(map(str, OCCLUSION))
    return section(
        "robustness",
        "How much it bears",
        "A curve that falls at severity 1 already says that images a little worse than those of "
        "the data set will surprise the model. As in CIFAR-10-C, whose constants these are; "
        f"occlusion is a grey square of {sides} pixels' side. Below each: the chosen image, as "
        "it is and at each severity.",
        f'<div class="small">{"".join(cards)}</div>',
    )


def _convergence(shown: Shown) -> str:
    curves = {item.subject.name: item.curve for item in shown.evaluations}
    header = ["", *(f"epochs to {share:.0%}" for share in CONVERGED), "last accuracy"]
    rows = [
        [name, *(_value(epochs_to(curve, share)) for share in CONVERGED), f"{curve[-1]:.2%}"]
        for name, curve in curves.items()
        if curve
    ]
    again = any("before" in item.subject.description for item in shown.evaluations)
    return section(
        "convergence",
        "How fast it learnt",
        "Diamonds: when the validation accuracy first came to 80, 90 and 95% of what it was after "
        f"the last epoch. If it still rises there, {RISES}."
        + (
            " Of a model that was trained anew on all images, this is the search's, before."
            if again
            else ""
        ),
        place(shown.drawn, "convergence-figure", figures.convergence(curves)) + table(header, rows)
        if rows
        else '<p class="empty">No curve is recorded.</p>',
    )


def _speed(shown: Shown) -> str:
    def of_model(_: int, item: Evaluation) -> str:
        description = item.subject.description
        seconds = description.get("training_seconds")
        rate = description.get("images_per_second")
        trained = "not recorded" if seconds is None else f"{seconds:,.1f} s"
        at = "" if rate is None else f", {rate:,.0f} images/s"
        rows = [
            [
                str(speed.batch_size),
                f"{1000 * speed.median_seconds:,.2f} ms",
                f"{1000 * speed.p99_seconds:,.2f} ms",
                f"{speed.images_per_second:,.0f}",
                str(speed.queries),
            ]
            for speed in item.speeds
        ]
        return (
            f"<p>Training: {trained}{at}. Queries, on {html.escape(item.device)}"
            f"{f' with {item.threads} threads' if item.device == 'cpu' else ''}:</p>"
            + table(["images", "median", "99th percentile", "images/s", "queries"], rows)
        )

    return section(
        "speed",
        "How long it takes",
        "From uint8 images in memory to probabilities. A 99th percentile far above the median is "
        "a busy machine.",
        shown.each(of_model),
    )


def _mistakes(shown: Shown) -> str:
    classes = shown.dataset.classes

    def of_model(_: int, item: Evaluation) -> str:
        cards = [
            f'<figure><img src="{picture(shown.dataset.test.images[mistake.index])}" '
            f'alt="test image {mistake.index}"><figcaption>'
            f"{html.escape(classes[mistake.predicted])} {mistake.probability:.1%}<br>is "
            f"{html.escape(classes[mistake.label])} "
            f"({mistake.probability_of_label:.1%}), image {mistake.index}</figcaption></figure>"
            for mistake in item.mistakes
        ]
        if not cards:
            return '<p class="empty">Every test image was classified rightly.</p>'
        return f'<div class="gallery">{"".join(cards)}</div>'

    return section(
        "mistakes",
        "The most confident mistakes",
        "What the model took each for, and how sure it was. Look for wrong labels, cropped or odd "
        "images, and for what the images have in common.",
        shown.each(of_model),
    )


def _features(shown: Shown) -> str:
    def of_model(_: int, item: Evaluation) -> str:
        order = sorted(range(len(item.probabilities)), key=lambda index: -item.probabilities[index])
        likely = ", ".join(
            f"{html.escape(shown.dataset.classes[index])} {item.probabilities[index]:.1%}"
            for index in order[:LIKELY]
        )
        parts = [
            f'<figure><h3>Image</h3><img class="one" src="{picture(shown.image.pixels)}" '
            f'alt="the chosen image"><figcaption>{html.escape(shown.image.name)}, taken for '
            f"{likely}</figcaption></figure>"
        ]
        for part in item.features:
            count, height, width = part.maps.shape
            chosen = part.strongest(MAPS)
            kept = f"the {len(chosen)} strongest of {count}" if len(chosen) < count else f"{count}"
            parts.append(
                f"<figure><h3>{part.part.capitalize()}</h3>"
                f'<img src="{picture(colored_maps(part.maps[chosen]))}" '
                f'alt="feature maps of the {part.part}"><figcaption>{kept} channels of '
                f"{height}x{width}, {part.dead} of them dead</figcaption></figure>"
            )
        return f'<div class="side-by-side">{"".join(parts)}</div>'

    return section(
        "features",
        "What it sees in an image",
        f"The output of the stem and of each stage for {html.escape(shown.image.name)}, one square "
        "a channel, each from 0 (dark) to its largest value (yellow). Early ones show edges and "
        "colours, late ones where something is; many dead ones, 0 everywhere, are a network that "
        "is wider than need be. Another image: <code>--image</code>.",
        shown.each(of_model),
    )


def _models(shown: Shown) -> str:
    facts = [_facts(item.subject.description) for item in shown.evaluations]
    names = dict.fromkeys(name for of_model in facts for name in of_model)
    rows = [[name, *(_value(of_model.get(name)) for of_model in facts)] for name in names]
    return section(
        "models",
        "What was evaluated",
        "Where the model comes from, and its hyperparameters.",
        table(["", *(item.subject.name for item in shown.evaluations)], rows),
    )


def _facts(description: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "study": description["study"],
        "trial": description["trial"],
        "trained on": description.get("trained_on"),
        "best epoch": description.get("best_epoch"),
        "validation fraction": description["data"].get("validation_fraction"),
        **description["parameters"],
    }


def _value(value: object) -> str:
    return "-" if value is None else shortened(str(value), LONGEST_VALUE)


SECTIONS = (
    _summary,
    _confusion,
    _classes,
    _calibration,
    _robustness,
    _convergence,
    _speed,
    _mistakes,
    _features,
    _models,
)
