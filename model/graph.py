"""A trained network in the forms that it is given away in, each of which can be run and compared.

Weights as safetensors, for hpsearch; a graph that needs none of its code, as ONNX or by
`torch.export`.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from data.dataset import IMAGE_SIZE, Normalisation
from data.errors import UserError
from data.weights import packed, unpacked
from model.evaluate import normalise, to_float
from model.hyperparameters import Hyperparameters
from model.train import build_model

WEIGHTS_FILE = "model.safetensors"
GRAPH_FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}
"""By the names of their formats."""
LARGEST_DIFFERENCE = 1e-3
"""Of probabilities, between a file and the network. What rounding makes is a thousandth of it."""


class Preprocessed(nn.Module):
    """uint8 images of shape (N, 3, 32, 32) to class probabilities of shape (N, classes)."""

    def __init__(self, network: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        self.normalisation = normalisation

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(normalise(to_float(images), self.normalisation))
        return logits.softmax(dim=1)


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with all that makes predictions of it."""

    hyperparameters: Hyperparameters
    weights: Mapping[str, Tensor]
    classes: int
    normalisation: Normalisation

    def network(self, layers: str | None = None) -> nn.Module:
        """On the CPU, for evaluation; with layers of another kind, which share the weights.

        Raises:
            RuntimeError: the weights are of another network.
        """
        layers = layers or self.hyperparameters.layers
        network = build_model(replace(self.hyperparameters, layers=layers), self.classes)
        network.load_state_dict(dict(self.weights))
        return network.eval()


def written(
    trained: Trained, formats: frozenset[str], preprocessing: bool, images: Tensor
) -> tuple[dict[str, bytes], dict[str, float]]:
    """The files of a network, and how far each is from it: the largest difference of probabilities.

    Args:
        formats: of the graphs, from `GRAPH_FILES`; the weights are always there.
        preprocessing: whether the graphs take uint8 images and give probabilities. If not, they
            take normalised ones and give logits. Either takes any number of images.
        images: real ones to compare with, uint8, shape (N, 3, 32, 32).

    Raises:
        UserError: a file is further from the network than `LARGEST_DIFFERENCE`.
    """
    # Layers written by hand compute the same, but their graph takes minutes to make.
    network = trained.network(layers="torch")
    graph = Preprocessed(network, trained.normalisation).eval() if preprocessing else network
    files = {WEIGHTS_FILE: packed(trained.weights, {})}
    for name in sorted(formats):
        files[GRAPH_FILES[name]] = (_onnx if name == "onnx" else _exported)(graph, preprocessing)
    with torch.inference_mode():
        normalised = normalise(to_float(images), trained.normalisation)
        expected = trained.network()(normalised).softmax(dim=1)
        differences = {}
        for name, content in files.items():
            if name == WEIGHTS_FILE:
                loaded = replace(trained, weights=unpacked(content)[0]).network()
                found = loaded(normalised).softmax(dim=1)
            elif preprocessing:
                found = _runner(name, content)(images)
            else:
                found = _runner(name, content)(normalised).softmax(dim=1)
            differences[name] = float((found - expected).abs().max())
    for name, difference in differences.items():
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"{name}: its probabilities differ from the network's by up to {difference:.2g}; "
                "nothing was written; try other versions of torch and onnxruntime"
            )
    return files, differences


def _example(preprocessing: bool) -> Tensor:
    # Two: of one image the number might be taken for a constant.
    shape = (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.zeros(shape, dtype=torch.uint8 if preprocessing else torch.float32)


def _shapes() -> dict[str, dict[int, object]]:
    return {"images": {0: torch.export.Dim("images", min=1)}}


def _exported(graph: nn.Module, preprocessing: bool) -> bytes:
    program = torch.export.export(graph, (_example(preprocessing),), dynamic_shapes=_shapes())
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _onnx(graph: nn.Module, preprocessing: bool) -> bytes:
    program = torch.onnx.export(
        graph,
        (_example(preprocessing),),
        dynamo=True,
        dynamic_shapes=_shapes(),
        input_names=["images"],
        output_names=["probabilities" if preprocessing else "logits"],
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _runner(name: str, content: bytes) -> Callable[[Tensor], Tensor]:
    """What computes the outputs of a graph's file, as its user will."""
    if name == GRAPH_FILES["torch-export"]:
        module: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(content)).module()
        return module
    import onnxruntime  # An extra.

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
