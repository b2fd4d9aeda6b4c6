"""Each figure beside one computed by hand, with numpy alone."""

import math

import numpy
import pytest
import torch
from torch import Tensor

from model.metrics import BINS, compare, epochs_to, measure, most_confident_mistakes

CLASSES = 4


@pytest.fixture(scope="module")
def predictions() -> tuple[Tensor, Tensor]:
    """Of 200 images; class 3 has none, but is sometimes predicted."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=generator)
    scores = torch.randn(200, CLASSES, generator=generator)
    scores[torch.arange(200), labels] += 1.5
    return (3 * scores).softmax(dim=1), labels


def test_the_figures_of_each_class_are_those_computed_by_hand(
    predictions: tuple[Tensor, Tensor],
) -> None:
    probabilities, labels = predictions
    guessed, true = probabilities.numpy().argmax(axis=1), labels.numpy()
    found = measure(probabilities, labels)
    assert found.accuracy == pytest.approx(numpy.mean(guessed == true))
    f1s = []
    for index, figures in enumerate(found.classes):
        hits = numpy.sum((guessed == index) & (true == index))
        precision = hits / numpy.sum(guessed == index)
        recall = hits / numpy.sum(true == index) if index < 3 else 0.0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert figures.precision == pytest.approx(precision)
        assert figures.recall == pytest.approx(recall)
        assert figures.f1 == pytest.approx(f1)
        f1s.append(f1)
        for other in range(CLASSES):
            expected = numpy.sum((true == index) & (guessed == other))
            assert found.confusion[index][other] == expected
    assert found.macro.f1 == pytest.approx(numpy.mean(f1s))
    assert found.macro.recall == pytest.approx(numpy.mean([of.recall for of in found.classes]))
    assert found.macro.precision == pytest.approx(
        numpy.mean([of.precision for of in found.classes])
    )


def test_a_class_that_is_nowhere_does_not_count(predictions: tuple[Tensor, Tensor]) -> None:
    probabilities, labels = predictions
    wider = torch.cat([probabilities, torch.zeros(200, 1)], dim=1)
    without, with_it = measure(probabilities, labels), measure(wider, labels)
    assert with_it.macro == without.macro
    assert with_it.classes[:CLASSES] == without.classes
    assert with_it.classes[CLASSES].f1 == 0.0


def test_the_calibration_is_that_computed_by_hand(predictions: tuple[Tensor, Tensor]) -> None:
    probabilities, labels = predictions
    confidences = probabilities.numpy().max(axis=1).astype(float)
    right = probabilities.numpy().argmax(axis=1) == labels.numpy()
    found = measure(probabilities, labels).calibration
    error = 0.0
    for index, item in enumerate(found.bins):
        assert (item.low, item.high) == pytest.approx((index / BINS, (index + 1) / BINS))
        inside = (confidences >= index / BINS) & (confidences < (index + 1) / BINS)
        assert item.images == inside.sum()
        if inside.any():
            assert item.accuracy == pytest.approx(right[inside].mean())
            assert item.confidence == pytest.approx(confidences[inside].mean())
            error += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
        else:
            assert item.accuracy is item.confidence is None
    assert found.error == pytest.approx(error, abs=1e-6)
    assert found.confidence == pytest.approx(confidences.mean())


def test_what_is_quite_sure_is_in_the_last_bin() -> None:
    """Three of four are right: 0.25 away from a confidence of 1, and 0.05 from one of 0.95."""
    sure = torch.tensor([[1.0, 0.0]] * 4)
    labels = torch.tensor([0, 0, 0, 1])
    found = measure(sure, labels).calibration
    assert (found.bins[-1].images, found.bins[-1].accuracy) == (4, 0.75)
    assert found.error == pytest.approx(0.25, abs=1e-6)
    # With another prediction in that bin it is one bin still.
    mixed = torch.cat([sure, torch.tensor([[0.95, 0.05]] * 4)])
    found = measure(mixed, torch.tensor([0, 0, 0, 1, 0, 0, 0, 0])).calibration
    assert found.error == pytest.approx(abs(7 / 8 - 0.975), abs=1e-6)


def test_the_most_confident_mistakes_come_first() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.05, 0.95]])
    labels = torch.tensor([1, 1, 1, 0, 0])
    found = most_confident_mistakes(probabilities, labels, 3)
    assert [(item.index, item.label, item.predicted) for item in found] == [
        (4, 0, 1),
        (0, 1, 0),
        (3, 0, 1),
    ]
    assert found[0].probability == pytest.approx(0.95)
    assert found[0].probability_of_label == pytest.approx(0.05)
    assert most_confident_mistakes(probabilities, probabilities.argmax(dim=1), 3) == ()


def test_two_models_are_compared_by_the_images_that_only_one_got_right() -> None:
    first = [True] * 70 + [True] * 12 + [False] * 4 + [False] * 14
    second = [True] * 70 + [False] * 12 + [True] * 4 + [False] * 14
    found = compare(first, second)
    assert (found.first_alone, found.second_alone) == (12, 4)
    assert found.difference == pytest.approx(0.08)
    # McNemar's exact test: 12 or more, or 4 or fewer, heads of 16 tosses.
    assert found.p == pytest.approx(2 * sum(math.comb(16, heads) for heads in range(5)) / 2**16)
    middle = 8 / 102
    half = 1.959964 / 102 * math.sqrt(17 - 8**2 / 102)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    swapped = compare(second, first)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_the_interval_covers_the_difference_as_often_as_it_says() -> None:
    """Two models that are right with 0.7 and 0.6, on 150 images; 600 times."""
    generator = numpy.random.default_rng(0)
    covered = 0
    for _ in range(600):
        draws = generator.random((2, 150))
        found = compare((draws[0] < 0.7).tolist(), (draws[1] < 0.6).tolist())
        covered += found.low < 0.1 < found.high
    assert 0.93 < covered / 600 < 0.975


def test_models_that_always_agree_differ_by_nothing_with_an_interval() -> None:
    found = compare([True, False] * 10, [True, False] * 10)
    assert (found.difference, found.p) == (0.0, 1.0)
    assert found.low == -found.high
    assert 0 < found.high < 0.12


def test_convergence_is_the_first_epoch_that_comes_close_enough_to_the_last() -> None:
    curve = [0.3, 0.41, 0.35, 0.46, 0.475, 0.5]
    assert [epochs_to(curve, share) for share in (0.8, 0.9, 0.95, 1.0)] == [2, 4, 5, 6]
    assert epochs_to([0.6, 0.5], 0.95) == 1
    assert epochs_to([], 0.8) is None
    assert epochs_to([0.5, math.nan], 0.8) is None
