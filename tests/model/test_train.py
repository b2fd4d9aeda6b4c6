import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from data.dataset import load_dataset
from data.mix import Mixed
from data.split import TrainingData, split_for_training
from model.average import MovingAverage
from model.evaluate import accuracy, logits
from model.resnet import ResNet
from model.train import (
    NOTEBOOK,
    build_model,
    mixed_loss,
    parse_hyperparameters,
    train,
    uses_bfloat16,
)
from model.trial import Diverged, EpochResult, TrialContext

SMALL = {"width": 4, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.05}


@pytest.fixture(scope="module")
def data(data_cache: Path) -> TrainingData:
    """400 training and 100 validation images of all classes."""
    whole = split_for_training(load_dataset("cifar10-mini", data_cache), 0.1, seed=0)
    return replace(
        whole,
        train=whole.train.select(torch.arange(0, 4400, 11)),
        validation=whole.validation.select(torch.arange(0, 500, 5)),
    )


@pytest.fixture
def context(data: TrainingData) -> TrialContext:
    return TrialContext(data, torch.device("cpu"), epochs=2, seed=0, precision="fp32")


def run(context: TrialContext, **parameters: Any) -> list[EpochResult]:
    """All results, each with a copy of its weights: they change with the next epoch."""
    results = []
    for result in train({**SMALL, **parameters}, context):
        weights = {name: tensor.clone() for name, tensor in result.weights.items()}
        results.append(replace(result, weights=weights))
    return results


def test_each_epoch_yields_a_result(context: TrialContext) -> None:
    results = run(context)
    assert [result.epoch for result in results] == [1, 2]
    assert all(result.images_per_second > 0 for result in results)


def test_training_lowers_the_loss(context: TrialContext) -> None:
    results = run(replace(context, epochs=6), augmentation="none")
    assert results[-1].training_loss < 0.85 * results[0].training_loss


def test_the_weights_of_an_epoch_have_its_accuracy(context: TrialContext) -> None:
    for result in run(context):
        model = build_model(parse_hyperparameters(SMALL), 10)
        model.load_state_dict(dict(result.weights))
        found = accuracy(model, context.data.validation, context.data.normalisation)
        assert found == result.validation_accuracy


def test_without_validation_images_the_accuracy_is_not_a_number(context: TrialContext) -> None:
    none = context.data.validation.select(torch.empty(0, dtype=torch.int64))
    without = run(replace(context, data=replace(context.data, validation=none)))
    for one, two in zip(without, run(context), strict=True):
        assert math.isnan(one.validation_accuracy)
        assert one.training_loss == two.training_loss, "validation leaves the training alone"


EVERYTHING = {
    **{"optimizer": "muon", "schedule": "one-cycle-cosine", "peak_fraction": 0.1},
    **{"momentum": 0.6, "weight_decay": 5e-4, "label_smoothing": 0.1, "ema": 0.99},
    **{"augmentation": "alternating-flip+crop2+trivial+cutout", "color_jitter": True},
    **{"mixing": "cutmix", "dropout": 0.3, "pooling": "average", "logit_scale": 0.125},
    **{"initialization": "dirac", "batch_norm_momentum": 0.4},
}


@pytest.mark.parametrize(
    ("parameters", "precision"),
    [
        ({"augmentation": "flip+crop+cutout", "color_jitter": True, "dropout": 0.3}, "fp32"),
        (EVERYTHING, "bf16"),
        ({**EVERYTHING, "optimizer": "lion", "learning_rate": 1e-3, "mixing": "mixup"}, "fp32"),
    ],
    ids=["sgd", "muon", "lion"],
)
def test_the_seed_decides_everything(
    context: TrialContext, parameters: dict[str, Any], precision: str
) -> None:
    context = replace(context, precision=precision)
    first, again = run(context, **parameters), run(context, **parameters)
    other = run(replace(context, seed=1), **parameters)
    for one, two, three in zip(first, again, other, strict=True):
        assert one.training_loss == two.training_loss != three.training_loss
        for name, tensor in one.weights.items():
            assert torch.equal(tensor, two.weights[name]), name


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 7 steps an epoch, those after 5 and 7 are averaged, with weights by hand."""
    states: list[tuple[int, dict[str, torch.Tensor]]] = []
    update = MovingAverage.update

    def spy(average: MovingAverage, model: torch.nn.Module, steps: int) -> None:
        states.append((steps, {k: v.clone() for k, v in model.state_dict().items()}))
        update(average, model, steps)

    monkeypatch.setattr(MovingAverage, "update", spy)
    averaged, raw = run(context, ema=0.9), run(context)
    assert [steps for steps, _ in states] == [5, 2, 5, 2]
    for result, plain, last in zip(averaged, raw, (2, 4), strict=True):
        assert result.training_loss == plain.training_loss, "the training is the same"
        mean = {name: torch.zeros_like(tensor) for name, tensor in plain.weights.items()}
        total = 0.0
        for steps, state in states[:last]:
            total = total * 0.9**steps + (1 - 0.9**steps)
            for name, tensor in state.items():
                if tensor.is_floating_point():
                    mean[name] = mean[name] * 0.9**steps + tensor * (1 - 0.9**steps)
        for name, tensor in result.weights.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, mean[name] / total, msg=name)
        model = build_model(parse_hyperparameters(SMALL), 10)
        model.load_state_dict(dict(result.weights))
        found = accuracy(model, context.data.validation, context.data.normalisation)
        assert found == result.validation_accuracy
    for name, tensor in raw[-1].weights.items():
        assert torch.equal(tensor, states[-1][1][name]), "without it the last weights are kept"


def test_with_fewer_steps_than_an_update_the_average_is_there_all_the_same(
    context: TrialContext,
) -> None:
    averaged, raw = run(context, ema=0.99, batch_size=400), run(context, batch_size=400)
    for name, tensor in averaged[0].weights.items():
        assert torch.equal(tensor, raw[0].weights[name]), "the average of one state is that state"
    assert not torch.equal(averaged[1].weights["head.3.weight"], raw[1].weights["head.3.weight"])


def test_labels_are_mixed_as_the_images_are() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    partners, shares = torch.tensor([1, 2, 3, 0]), torch.tensor([0.0, 0.25, 0.5, 1.0])
    mixed = Mixed(torch.empty(4, 3, 32, 32), partners, shares)
    ones = functional.one_hot(labels, 3).float()
    targets = shares[:, None] * ones + (1 - shares[:, None]) * ones[partners]
    for smoothing in (0.0, 0.2):
        found = mixed_loss(logits, labels, mixed, smoothing)
        # Cross-entropy takes whole distributions too, and smooths them.
        expected = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        torch.testing.assert_close(found, expected)


def test_smoothed_labels_leave_some_probability_to_the_other_classes() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    unmixed = Mixed(torch.empty(4, 3, 32, 32), None, None)
    targets = 0.7 * functional.one_hot(labels, 3) + 0.3 / 3
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(mixed_loss(logits, labels, unmixed, 0.3), expected)


def test_a_loss_that_is_not_finite_ends_the_trial_with_the_reason(context: TrialContext) -> None:
    with pytest.raises(Diverged, match="the training loss was no longer finite in epoch 1"):
        run(context, learning_rate=1e30)


def test_the_last_incomplete_batch_is_trained_on(data: TrainingData) -> None:
    few = replace(data, train=data.train.select(torch.arange(10)))
    context = TrialContext(few, torch.device("cpu"), epochs=1, seed=0, precision="fp32")
    steps = {}
    for batch_size in (4, 8, 64):
        (result,) = run(context, batch_size=batch_size)
        steps[batch_size] = int(result.weights["stem.0.1.num_batches_tracked"])
    assert steps == {4: 3, 8: 2, 64: 1}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_every_precision_trains(context: TrialContext, precision: str) -> None:
    results = run(replace(context, precision=precision))
    assert len(results) == 2
    assert all(weights.dtype != torch.bfloat16 for weights in results[0].weights.values())


def test_a_precision_that_is_asked_for_is_used() -> None:
    cpu = torch.device("cpu")
    assert uses_bfloat16("bf16", cpu)
    assert not uses_bfloat16("fp32", cpu)
    assert uses_bfloat16("auto", cpu) == torch.cpu._is_avx512_bf16_supported()


def test_the_defaults_are_the_notebook_s_configuration() -> None:
    assert (NOTEBOOK["optimizer"], NOTEBOOK["learning_rate"]) == ("adam", 1e-3)
    assert (NOTEBOOK["batch_size"], NOTEBOOK["augmentation"]) == (64, "flip+resized-crop")
    assert (NOTEBOOK["schedule"], NOTEBOOK["weight_decay"]) == ("constant", 0.0)
    assert (NOTEBOOK["depth"], NOTEBOOK["width"], NOTEBOOK["dropout"]) == (18, 64, 0.0)
    assert NOTEBOOK["layers"] == "torch"
    assert (NOTEBOOK["momentum"], NOTEBOOK["peak_fraction"]) == (0.9, 0.25), "as they were fixed"
    assert (NOTEBOOK["label_smoothing"], NOTEBOOK["ema"], NOTEBOOK["mixing"]) == (0.0, 0.0, "none")
    assert (NOTEBOOK["pooling"], NOTEBOOK["logit_scale"]) == ("max", 1.0)
    assert (NOTEBOOK["initialization"], NOTEBOOK["batch_norm_momentum"]) == ("default", 0.1)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"optimiser": "adam"}, "unknown hyperparameter 'optimiser'; known are learning_rate"),
        ({"optimizer": "adan"}, "optimizer must be one of sgd, adam, .* but is 'adan'"),
        ({"schedule": "cosine"}, "schedule must be one of constant, one-cycle, .* is 'cosine'"),
        ({"augmentation": "flip+crop3"}, "augmentation must be one of none, flip, .* 'flip.crop3'"),
        ({"mixing": "mix"}, "mixing must be one of none, mixup, cutmix, but is 'mix'"),
        ({"pooling": "mean"}, "pooling must be one of max, average, but is 'mean'"),
        ({"initialization": "zero"}, "initialization must be one of default, .* but is 'zero'"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1, but is 1"),
        ({"peak_fraction": 1.0}, "peak_fraction must be from 0 to below 1, but is 1"),
        ({"label_smoothing": -0.1}, "label_smoothing must be from 0 to below 1, but is -0.1"),
        ({"ema": True}, "ema must be a number, but is True"),
        ({"ema": 1.0}, "ema must be from 0 to below 1, but is 1"),
        ({"logit_scale": 0.0}, "logit_scale must be from 0.001 to below 1000, but is 0"),
        ({"batch_norm_momentum": 0.0}, "batch_norm_momentum must be from 0.001 to below 1, but"),
        ({"color_jitter": 1}, "color_jitter must be true or false, but is 1"),
        ({"depth": 20}, "depth must be one of 18, 34, 50, but is 20"),
        ({"layers": "numpy"}, "layers must be one of torch, scratch, but is 'numpy'"),
        ({"width": 0}, "width must be a whole number from 1, but is 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number from 1, but is 1.5"),
        ({"learning_rate": -1.0}, "learning_rate must be from 0 to below inf, but is -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be from 0 to below inf, but is nan"),
        ({"weight_decay": "low"}, "weight_decay must be a number, but is 'low'"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, but is 1"),
    ],
)
def test_an_impossible_hyperparameter_is_named(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_hyperparameters(parameters)


def test_accuracy_is_the_fraction_of_correct_images(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ResNet(10, width=4).train()
    predicted = logits(model, data.validation.images, data.normalisation).argmax(dim=1)
    correct = int((predicted == data.validation.labels).sum())
    assert accuracy(model, data.validation, data.normalisation) == correct / 100
    monkeypatch.setattr("model.evaluate.BATCH_SIZE", 7)
    assert accuracy(model, data.validation, data.normalisation) == correct / 100
    assert model.training, "the model is left in the mode that it was in"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_too(context: TrialContext) -> None:
    device = torch.device("cuda")
    on_gpu = replace(context, device=device, data=context.data.to(device), precision="auto")
    results = run(on_gpu, augmentation="flip+crop+cutout", color_jitter=True)
    assert len(results) == 2
    assert all(weights.device.type == "cuda" for weights in results[0].weights.values())
