import copy
import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from data.augment import augment
from data.dataset import load_dataset
from data.split import TrainingData, split_for_training
from model.average import MovingAverage
from model.evaluate import Normaliser, accuracies, accuracy, logits, normalise
from model.hyperparameters import NOTEBOOK, parse_hyperparameters
from model.optimizers import make_optimizer, one_cycle
from model.precision import compute_dtype
from model.resnet import BLOCKS_PER_STAGE, ResNet
from model.train import _Training, build_model, mixed_loss, train
from model.trial import Diverged, EpochResult, TrialContext
from model.whitening import whitening_filters

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
    """All results of `SMALL` or what replaces it; with copies of the weights, which change."""
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
    **{"initialization": "dirac", "batch_norm_momentum": 0.4, "stem": "whitening"},
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


def test_each_image_is_mirrored_in_one_of_two_epochs(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def see(images: torch.Tensor, *arguments: Any) -> torch.Tensor:
        seen.append(augment(images, *arguments))
        return seen[-1]

    monkeypatch.setattr("model.train.augment", see)
    run(context, augmentation="alternating-flip")
    as_they_are = context.data.train.images.float() / 255
    both = torch.cat([as_they_are, as_they_are.flip(3)])
    assert sorted(map(_digest, torch.cat(seen))) == sorted(map(_digest, both))


def _digest(image: torch.Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()


def test_all_of_the_recipe_reaches_the_training(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the optimizer, the schedule and the loss are given in each of 14 steps."""
    rates: list[float] = []
    smoothings: set[float] = set()
    made: list[torch.optim.Optimizer] = []

    def make(*arguments: Any) -> torch.optim.Optimizer:
        made.append(make_optimizer(*arguments))
        return made[-1]

    def loss(*arguments: Any) -> torch.Tensor:
        rates.append(made[0].param_groups[0]["lr"])
        smoothings.add(arguments[-1])
        return mixed_loss(*arguments)

    monkeypatch.setattr("model.train.make_optimizer", make)
    monkeypatch.setattr("model.train.mixed_loss", loss)
    recipe = {"momentum": 0.6, "weight_decay": 0.125, "label_smoothing": 0.25}
    (_, last) = run(context, schedule="one-cycle", peak_fraction=0.5, **recipe)
    expected = [0.05 * one_cycle(step / 14, 0.5) for step in range(14)]
    assert rates == pytest.approx(expected)
    assert max(rates) == rates[7] == 0.05
    assert last.learning_rate == 0.0
    assert smoothings == {0.25}
    decayed, others = made[0].param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.125, 0.0)
    assert decayed["momentum"] == others["momentum"] == 0.6
    filters = [one for one in decayed["params"] if one.ndim == 4]
    assert len(filters) == 20
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in filters)


def test_whitening_filters_are_of_the_training_images_and_stay_as_they_are(
    context: TrialContext,
) -> None:
    first, last = run(context, **EVERYTHING)
    expected = whitening_filters(context.data.train.images, context.data.normalisation)
    for result in (first, last):
        assert torch.equal(result.weights["stem.0.weight"], expected)
    biases = [result.weights["stem.0.bias"] for result in (first, last)]
    assert not torch.equal(*biases), "which are trained"


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
    ones = functional.one_hot(labels, 3).float()
    targets = shares[:, None] * ones + (1 - shares[:, None]) * ones[partners]
    for smoothing in (0.0, 0.2):
        found = mixed_loss(logits, labels, labels[partners], shares, smoothing)
        # Cross-entropy takes whole distributions too, and smooths them.
        expected = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        torch.testing.assert_close(found, expected)


def test_smoothed_labels_leave_some_probability_to_the_other_classes() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    targets = 0.7 * functional.one_hot(labels, 3) + 0.3 / 3
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(mixed_loss(logits, labels, None, None, 0.3), expected)


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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "auto"])
def test_every_precision_trains(context: TrialContext, precision: str) -> None:
    results = run(replace(context, precision=precision))
    assert len(results) == 2
    assert results[1].training_loss < results[0].training_loss
    for name, tensor in results[0].weights.items():
        assert tensor.dtype in (torch.float32, torch.int64), name


def test_a_precision_that_is_asked_for_is_used() -> None:
    cpu = torch.device("cpu")
    assert compute_dtype("bf16", cpu) == torch.bfloat16
    assert compute_dtype("fp16", cpu) == torch.float16
    assert compute_dtype("fp32", cpu) == torch.float32


@pytest.mark.parametrize(
    ("capability", "name", "dtype"),
    [
        ((6, 1), "GeForce GTX 1080", torch.float32),
        ((7, 5), "Tesla T4", torch.float16),
        ((7, 5), "NVIDIA GeForce GTX 1660 Ti", torch.float32),
        ((8, 0), "NVIDIA A100", torch.bfloat16),
    ],
)
def test_a_gpu_computes_in_what_it_has_natively(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert compute_dtype("auto", torch.device("cuda")) == dtype


@pytest.mark.parametrize(
    ("avx512", "amx"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_a_cpu_computes_in_bfloat16_if_it_can_natively(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    expected = torch.bfloat16 if avx512 or amx else torch.float32
    assert compute_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [("sgd", "fp16"), ("adam", "bf16"), ("nadam", "fp32"), ("lion", "fp32"), ("muon", "fp32")],
)
def test_a_resumed_trial_goes_on_as_if_it_had_never_been_interrupted(
    context: TrialContext, tmp_path: Path, optimizer: str, precision: str
) -> None:
    """By a file, as it is kept, and with other random draws in between."""
    parameters = {**SMALL, **EVERYTHING, "optimizer": optimizer, "learning_rate": 0.01}
    few = replace(context.data, train=context.data.train.select(torch.arange(150)))
    context = replace(context, data=few, epochs=4, precision=precision)
    whole = run(context, **parameters)
    interrupted = train(parameters, context)
    next(interrupted)
    torch.save(next(interrupted).state, tmp_path / "state.pt")
    next(interrupted)
    torch.rand(7)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = list(zip(train(parameters, replace(context, resume=state)), whole[2:], strict=True))
    assert [result.epoch for result, _ in resumed] == [3, 4]
    for result, expected in resumed:
        assert result.training_loss == expected.training_loss
        assert result.validation_accuracy == expected.validation_accuracy
    # The generator has given its last weights; they are those of the fourth epoch.
    for name, tensor in resumed[-1][0].weights.items():
        assert torch.equal(tensor, whole[3].weights[name]), name


def test_what_nadam_keeps_on_the_cpu_is_there_again_in_a_resumed_trial(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if loading had sent it to a GPU, as it does where the weights are on one."""

    class Sent:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.cpu = lambda: tensor

    load = torch.optim.NAdam.load_state_dict

    def load_and_send(optimizer: torch.optim.NAdam, state: dict[str, Any]) -> None:
        load(optimizer, state)
        for kept in optimizer.state.values():
            kept["mu_product"] = Sent(kept["mu_product"])

    monkeypatch.setattr(torch.optim.NAdam, "load_state_dict", load_and_send)
    few = replace(context.data, train=context.data.train.select(torch.arange(64)))
    context, parameters = replace(context, data=few), {**SMALL, "optimizer": "nadam"}
    whole = train(parameters, context)
    state = copy.deepcopy(next(whole).state)
    (resumed,) = train(parameters, replace(context, resume=state))
    assert resumed.training_loss == next(whole).training_loss


@pytest.mark.parametrize(("before", "after"), [("bf16", "fp16"), ("fp16", "fp32")])
def test_a_trial_can_be_resumed_where_another_precision_is_used(
    context: TrialContext, before: str, after: str
) -> None:
    first = next(train(SMALL, replace(context, precision=before)))
    (resumed,) = train(SMALL, replace(context, precision=after, resume=first.state))
    assert resumed.epoch == 2
    assert resumed.training_loss < first.training_loss


def test_a_resumed_trial_keeps_the_size_of_parts(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a larger GPU too, since batch norm sees the parts."""
    with monkeypatch.context() as small:
        small.setattr(ResNet, "forward", _forward_of_at_most(32))
        whole = run(context)
        state = next(train(SMALL, context)).state
    (resumed,) = train(SMALL, replace(context, resume=state))
    assert resumed.training_loss == whole[1].training_loss
    assert len(caplog.messages) == 2


CUDA, CUBLAS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


@pytest.mark.parametrize("error", [CUDA, CUBLAS], ids=["cuda", "cublas"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_that_does_not_fit_is_trained_in_equal_parts_with_the_same_gradients(
    context: TrialContext,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    compiled: bool,
) -> None:
    """Without batch norm's statistics of the batch, which would be of the parts."""
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda images: model(images))
    context = replace(context, compile=compiled)
    fallbacks = ("batches in parts of 12 images at most", *["not compiled"] * compiled)

    def gradients(most: int) -> dict[str, torch.Tensor]:
        training = _Training(parse_hyperparameters({**SMALL, "label_smoothing": 0.1}), context)
        model, sizes = training._model.eval(), []
        model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        model.register_forward_pre_hook(_out_of_memory_above(most, error))
        torch.manual_seed(0)
        labels = torch.arange(50) % 10
        images, shares = torch.randn(50, 3, 32, 32), torch.rand(50)
        loss = training._backward(images, labels, labels.flip(0), shares)
        parts = [*[50] * (1 + compiled), 25, *[10] * 5]
        assert sizes == ([50] if most >= 50 else parts), "uncompiled it might have fitted"
        assert training.fallbacks == (() if most >= 50 else fallbacks)
        found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        return {**found, "loss": loss}

    whole = gradients(50)
    assert caplog.messages == []
    parts = gradients(20)
    assert caplog.messages == [
        *[f"the network is not compiled: {error}"] * compiled,
        "out of memory with 50 images at once; going on with 25 at once",
        "out of memory with 25 images at once; going on with 12 at once",
    ]
    assert len(whole) == 63
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, msg=name)


def test_a_network_that_was_compiled_stays_so_when_memory_runs_short_later(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda images: model(images))
    training = _Training(parse_hyperparameters(SMALL), replace(context, compile=True))
    images, labels = torch.randn(50, 3, 32, 32), torch.arange(50) % 10
    training._backward(images, labels, None, None)
    training._model.register_forward_pre_hook(_out_of_memory_above(25))
    training._backward(images, labels, None, None)
    assert training.fallbacks == ("batches in parts of 25 images at most",)


def _out_of_memory_above(most: int, error: Exception = CUDA) -> Any:
    def check(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > most:
            raise error

    return check


def _forward_of_at_most(most: int) -> Any:
    forward, check = ResNet.forward, _out_of_memory_above(most)

    def limited(model: ResNet, images: torch.Tensor) -> torch.Tensor:
        check(model, (images,))
        return forward(model, images)

    return limited


def test_a_trial_that_ran_out_of_memory_once_goes_on_in_parts(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ResNet, "forward", _forward_of_at_most(32))
    results = run(replace(context, epochs=4), augmentation="none")
    assert results[-1].training_loss < results[0].training_loss
    assert len(caplog.messages) == 1, "what fits is remembered; evaluation finds its own"


def test_what_does_not_fit_in_the_smallest_parts_either_is_an_error(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResNet, "forward", _forward_of_at_most(0))
    with pytest.raises(torch.OutOfMemoryError):
        run(context)


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
        ({"stem": "pca"}, "stem must be one of convolution, whitening, but is 'pca'"),
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
    model.register_forward_hook(lambda *_: modes.add(torch.is_inference_mode_enabled()))
    modes: set[bool] = set()
    predicted = logits(model, data.validation.images, data.normalisation).argmax(dim=1)
    correct = int((predicted == data.validation.labels).sum())
    assert accuracy(model, data.validation, data.normalisation) == correct / 100
    monkeypatch.setattr("model.evaluate.CPU_BATCH_SIZE", 7)
    assert accuracy(model, data.validation, data.normalisation) == correct / 100
    assert model.training, "the model is left in the mode that it was in"
    assert modes == {True}


def test_a_compiled_network_trains_as_well(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Of one block, as all other ones only give the C++ compiler more of the same to do.
    monkeypatch.setitem(BLOCKS_PER_STAGE, 18, (1,))
    few = replace(context.data, train=context.data.train.select(torch.arange(64)))
    context = replace(context, data=few)
    plain, _ = run(context, pooling="average", stem="whitening")
    graphs = _graphs()
    compiled, _ = run(replace(context, compile=True), pooling="average", stem="whitening")
    assert compiled.training_loss == pytest.approx(plain.training_loss, rel=1e-3)
    assert compiled.weights.keys() == plain.weights.keys()
    assert _said(caplog) == []
    assert _graphs() == graphs + 1, "both epochs use one"
    again, _ = run(replace(context, compile=True), pooling="average", stem="whitening")
    assert _graphs() == graphs + 1, "the next trial uses what this one has compiled"
    for name, tensor in again.weights.items():
        assert torch.equal(tensor, compiled.weights[name]), name


def _graphs() -> int:
    """How many have been compiled in this process."""
    from torch._dynamo.utils import counters  # It takes a second.

    return int(counters["stats"]["unique_graphs"])


def test_a_python_that_cannot_compile_trains_all_the_same(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Python 3.15+ not yet supported for torch.compile")

    monkeypatch.setattr(torch, "compile", refuse)
    training = _Training(parse_hyperparameters(SMALL), replace(context, compile=True))
    assert training._forward is training._model
    assert caplog.messages == [
        "the network is not compiled: Python 3.15+ not yet supported for torch.compile"
    ]


def test_a_network_that_cannot_be_compiled_trains_all_the_same(
    context: TrialContext,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(BLOCKS_PER_STAGE, 18, (1,))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch.compiler.reset()
    few = replace(context.data, train=context.data.train.select(torch.arange(64)))
    context = replace(context, data=few)
    plain = run(context, pooling="average")
    fallen_back = run(replace(context, compile=True), pooling="average")
    assert [one.training_loss for one in fallen_back] == [one.training_loss for one in plain]
    (said,) = _said(caplog)
    assert "the network is not compiled: " in said
    assert "no-such-compiler" in said
    torch.compiler.reset()


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without what the compiler says."""
    return [record.getMessage() for record in caplog.records if record.name == "model.train"]


def test_the_constants_of_normalisation_are_sent_once_for_each_training_and_evaluation(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.device] = []
    make = Normaliser.__init__

    def counted(normaliser: Normaliser, *arguments: Any) -> None:
        made.append(arguments[1])
        make(normaliser, *arguments)

    monkeypatch.setattr(Normaliser, "__init__", counted)
    run(context)
    assert made == [context.device] * 3, "of 14 steps and 2 evaluations"


def test_accuracy_with_flips_is_that_of_the_mean_of_both_views(data: TrainingData) -> None:
    torch.manual_seed(0)
    model = ResNet(10, width=4)
    images, labels = data.validation.images, data.validation.labels
    found = accuracies(model, data.validation, data.normalisation)
    assert found.plain == accuracy(model, data.validation, data.normalisation)
    model.eval()
    with torch.no_grad():
        views = [
            model(normalise(view.float() / 255, data.normalisation))
            for view in (images, images.flip(3))
        ]
    correct = (views[0] + views[1]).argmax(dim=1) == labels
    assert found.with_flips == int(correct.sum()) / 100


@pytest.mark.parametrize("error", [CUDA, CUBLAS], ids=["cuda", "cublas"])
def test_evaluation_goes_on_with_fewer_images_at_once_if_memory_is_short(
    data: TrainingData, error: Exception
) -> None:
    model = ResNet(10, width=4)
    expected = logits(model, data.validation.images, data.normalisation)
    model.register_forward_pre_hook(_out_of_memory_above(30, error))
    found = logits(model, data.validation.images, data.normalisation)
    torch.testing.assert_close(found, expected)
    model.register_forward_pre_hook(_out_of_memory_above(0, error))
    with pytest.raises(type(error)):
        logits(model, data.validation.images, data.normalisation)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_too(context: TrialContext) -> None:
    device = torch.device("cuda")
    on_gpu = replace(context, device=device, data=context.data.to(device), precision="auto")
    results = run(on_gpu, augmentation="flip+crop+cutout", color_jitter=True)
    assert len(results) == 2
    assert all(weights.device.type == "cuda" for weights in results[0].weights.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_not_waited_for_within_an_epoch(context: TrialContext) -> None:
    device = torch.device("cuda")
    on_gpu = replace(context, device=device, data=context.data.to(device), precision="auto")
    training = _Training(parse_hyperparameters({**SMALL, **EVERYTHING}), on_gpu)
    training.train_epoch()  # Compiles kernels, and allocates.
    loss = None
    images, labels = on_gpu.data.train.batch(torch.arange(64, device=device), device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = training._step(images, labels, torch.ones(64, dtype=torch.bool, device=device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_again_if_asked_to(context: TrialContext) -> None:
    device = torch.device("cuda")
    data = context.data.to(device)
    on_gpu = replace(context, device=device, data=data, precision="auto", deterministic=True)
    first, again = run(on_gpu, **EVERYTHING), run(on_gpu, **EVERYTHING)
    for one, two in zip(first, again, strict=True):
        for name, tensor in one.weights.items():
            assert torch.equal(tensor, two.weights[name]), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_data_that_stay_in_the_host_s_memory_give_the_same(context: TrialContext) -> None:
    device = torch.device("cuda")
    on_gpu = replace(context, device=device, precision="fp32", deterministic=True)
    hosted, there = run(on_gpu), run(replace(on_gpu, data=context.data.to(device)))
    assert [one.training_loss for one in hosted] == [one.training_loss for one in there]
