import io
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from data.dataset import CIFAR10_NORMALISATION, load_dataset
from data.errors import UserError
from model.evaluate import logits, normalise, to_float
from model.graph import GRAPH_FILES, WEIGHTS_FILE, Trained, written
from model.hyperparameters import Hyperparameters
from model.train import build_model


@pytest.fixture(scope="module")
def images(data_cache: Path) -> Tensor:
    """120 of the test images that ship."""
    test = load_dataset("cifar10-mini", data_cache).test
    return test.images[torch.arange(0, len(test), len(test) // 120)[:120]]


@pytest.fixture(scope="module")
def trained(data_cache: Path) -> Trained:
    """A network after a few steps, so that its classes are not all as likely."""
    torch.manual_seed(0)
    hyperparameters = Hyperparameters(width=4, stem="whitening")
    network = build_model(hyperparameters, 10)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    split = load_dataset("cifar10-mini", data_cache).train
    for indices in torch.randperm(len(split))[: 30 * 64].view(30, 64):
        batch = normalise(to_float(split.images[indices]), CIFAR10_NORMALISATION)
        loss = torch.nn.functional.cross_entropy(network(batch), split.labels[indices])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return Trained(hyperparameters, network.state_dict(), 10, CIFAR10_NORMALISATION)


def probabilities(trained: Trained, images: Tensor) -> Tensor:
    return logits(trained.network(), images, trained.normalisation).softmax(dim=1)


def test_the_weights_are_written_bit_for_bit(trained: Trained, images: Tensor) -> None:
    files, differences = written(trained, frozenset(), False, images)
    assert differences == {WEIGHTS_FILE: 0.0}
    found = load(files[WEIGHTS_FILE])
    assert found.keys() == trained.weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.weights.items())
    again = replace(trained, weights=found)
    assert torch.equal(probabilities(again, images), probabilities(trained, images))


@pytest.mark.parametrize(("layers", "preprocessing"), [("torch", True), ("scratch", False)])
def test_each_graph_gives_the_network_s_probabilities_of_any_number_of_real_images(
    trained: Trained, images: Tensor, layers: str, preprocessing: bool
) -> None:
    chosen = replace(trained.hyperparameters, layers=layers)
    trained = replace(trained, hyperparameters=chosen)
    files, differences = written(trained, frozenset(GRAPH_FILES), preprocessing, images)
    assert files.keys() == differences.keys() == {WEIGHTS_FILE, "model.onnx", "model.pt2"}

    expected = probabilities(trained, images)
    assert expected.max() > 0.5, "of a network that knows something"
    assert 0 <= max(differences.values()) < 1e-5
    graph = torch.export.load(io.BytesIO(files["model.pt2"])).module()
    session = onnxruntime.InferenceSession(files["model.onnx"])
    (takes,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (takes.type, takes.shape[1:]) == (
        "tensor(uint8)" if preprocessing else "tensor(float)",
        [3, 32, 32],
    )
    assert (gives.name, gives.shape[1:]) == ("probabilities" if preprocessing else "logits", [10])
    given = images if preprocessing else normalise(to_float(images), CIFAR10_NORMALISATION)
    for count in (1, 3, len(images)):
        by_torch = graph(given[:count]).detach()
        by_onnx = torch.from_numpy(session.run(None, {"images": given[:count].numpy()})[0])
        for found in (by_torch, by_onnx):
            found = found if preprocessing else found.softmax(dim=1)
            torch.testing.assert_close(found, expected[:count], rtol=0, atol=1e-5)


def test_a_file_that_computes_something_else_is_refused(trained: Trained, images: Tensor) -> None:
    weights = {**trained.weights, "head.3.bias": torch.full((10,), torch.nan)}
    with pytest.raises(UserError, match=r"model\.safetensors: its probabilities differ .* by up"):
        written(replace(trained, weights=weights), frozenset(), False, images)
