"""The model card of an exported folder: what the model is, how good, and how to use it.

With the front matter that the Hugging Face Hub reads
(huggingface.co/docs/hub/model-cards#model-card-metadata).
"""

import html
import json
import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

from studies.confirmation import TestResult
from studies.text import printable, shortened

LONGEST_CELL = 200  # characters
CIFAR10 = "uoft-cs/cifar10"
"""Its name on the Hub. The images that ship are copies of some, with loss, and not it."""
FORMATS = {"model.onnx": "onnx", "model.pt2": "torch-export"}


def model_card(
    description: Mapping[str, Any], name: str, evaluation: Mapping[str, Any] | None = None
) -> str:
    """The README.md of a folder called `name`, from what its `trial.json` says.

    Args:
        evaluation: what `evaluation.json` says of the model, if it was evaluated.
    """
    classes = description["data"]["classes"]
    lines = [
        *_front_matter(description, evaluation),
        "",
        f"# {printable(description['study'])}, trial {description['trial']}",
        "",
        f"An image classifier for {len(classes)} classes "
        f"({', '.join(map(_cell, classes))}), found by hpsearch on "
        f"{_cell(description['data']['source'])}.",
        *_accuracies(description),
        *_evaluated(evaluation),
        "",
        "## Parameters",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [
        f"| {_cell(key)} | {_cell(value)} |" for key, value in description["parameters"].items()
    ]
    if description["test_accuracy"] is not None:
        lines += _use(name)
        for file in _graphs(description):
            lines += _use_of_graph(description, name, file)
    return "\n".join([*lines, *_files(description), ""])


def test_accuracies(description: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What was measured on the test images, each with what it is; none if nothing was."""
    count = description["data"].get("test_images")  # Not in the first exports.
    images = f"{count:,} images " if count else ""
    found = [
        (f"test ({images}never seen by the search)", description["test_accuracy"]),
        (
            "test, each image averaged with its mirror image",
            description["test_accuracy_with_flips"],
        ),
    ]
    return [(what, value) for what, value in found if value is not None]


def evaluated(evaluation: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """What an evaluation has found on the test images: the Hub's type of metric, what it is, value.

    The accuracies are not among it; see `test_accuracies`.
    """
    macro, calibration = evaluation["macro"], evaluation["calibration"]
    return [
        ("f1", "test, macro F1: the mean over the classes", macro["f1"]),
        ("expected_calibration_error", "test, expected calibration error", calibration["error"]),
    ]


def corrupted(evaluation: Mapping[str, Any]) -> tuple[str, str, float]:
    """As `evaluated`, what it has found on test images that it had made worse."""
    return (
        "accuracy",
        "test, mean over images made worse (noise, blur, brightness, contrast, JPEG, occlusion, "
        "at five severities)",
        evaluation["mean_accuracy_corrupted"],
    )


def _front_matter(
    description: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> list[str]:
    """YAML. What others have chosen is written as in JSON, of which it has the strings."""

    def quoted(text: str) -> str:
        return json.dumps(printable(text), ensure_ascii=False)

    source = description["data"]["source"]
    tags = ["image-classification", "hpsearch", "pytorch", "safetensors"]
    tags += sorted({FORMATS[file] for file in _graphs(description)})
    lines = ["---", "library_name: hpsearch", "pipeline_tag: image-classification", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    lines += ["datasets:", f"- {CIFAR10}"] if source in ("cifar10", "cifar10-mini") else []
    clean = [("accuracy", what, value) for what, value in test_accuracies(description)]
    clean += evaluated(evaluation) if evaluation else []
    clean = [item for item in clean if math.isfinite(item[2])]
    worse = [corrupted(evaluation)] if evaluation else []
    worse = [item for item in worse if math.isfinite(item[2])]
    kinds = dict.fromkeys(["accuracy", *(kind for kind, _, _ in clean)])
    lines += ["metrics:", *(f"- {kind}" for kind in kinds)]
    if clean or worse:
        lines += ["model-index:", f"- name: {quoted(_title(description))}", "  results:"]
    hub = CIFAR10 if source == "cifar10" else "image-folder"
    # By type and configuration the Hub's tools tell data sets apart.
    for dataset, config, name, metrics in (
        (hub, None, source, clean),
        ("image-folder", "corrupted", f"{source}, made worse", worse),
    ):
        if metrics:
            lines += [
                "  - task:",
                "      type: image-classification",
                "      name: Image classification",
                "    dataset:",
                f"      type: {dataset}",
                f"      name: {quoted(name)}",
                *([f"      config: {config}"] if config else []),
                "      split: test",
                "    metrics:",
            ]
        for kind, what, value in metrics:
            lines += [f"    - type: {kind}", f"      value: {_number(value)}"]
            lines += [f"      name: {quoted(what)}"]
    return [*lines, "---"]


def _number(value: float) -> str:
    """As YAML 1.1 has it, to which 5e-05, without a point, is text."""
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


def _title(description: Mapping[str, Any]) -> str:
    return f"{description['study']}, trial {description['trial']}"


def _accuracies(description: Mapping[str, Any]) -> list[str]:
    before = description.get("before")
    searched = before or description
    accuracies = searched["validation_accuracy_per_epoch"]
    on_test = [f"| {what} | {value:.2%} |" for what, value in test_accuracies(description)]
    lines = ["", "| | accuracy |"]
    if before:
        lines = [
            "",
            f"It was trained anew on the training and validation images together, for "
            f"{len(accuracies)} epochs. The weights are those of the last epoch: no images were "
            "left to choose an epoch by, and it has no validation accuracy.",
            "",
            "| this model | accuracy |",
            "|---|---|",
            *on_test,
            "",
            "The search chose its parameters by another model, with the same seed but trained on "
            "the training images alone:",
            "",
            "| the model before | accuracy |",
        ]
    lines += [
        "|---|---|",
        f"| validation, epoch {searched['best_epoch']} of {len(accuracies)} "
        f"| {searched['validation_accuracy']:.2%} |",
        *([] if before else on_test),
        *_confirmed(searched.get("confirmation")),
        "",
    ]
    of_before = " of the model before" if before else ""
    curve = ", ".join(f"{accuracy:.2%}" for accuracy in accuracies)
    return [*lines, f"Validation accuracy{of_before} after each epoch: {curve}."]


def _evaluated(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        return []
    return [
        "",
        "## Evaluation",
        "",
        "By `hpsearch evaluate`:",
        "",
        "| | |",
        "|---|---|",
        *(
            f"| {what} | {value:.2%} |"
            for _, what, value in (*evaluated(evaluation), corrupted(evaluation))
        ),
    ]


def _confirmed(confirmation: Mapping[str, Any] | None) -> list[str]:
    """What the retrainings with other seeds have shown."""
    if not confirmation:
        return []
    seeds, diverged = confirmation["seeds"], confirmation["winner"]["diverged"]
    over = f"mean of {seeds} seeds" if seeds > 1 else "1 seed"
    lost = f", {diverged} diverged and counted as 0" if diverged else ""
    lines = [f"| validation, {over}{lost} | {confirmation['winner']['mean']:.2%} |"]
    test = confirmation["test"]
    if test:
        over = TestResult(**test).out_of(seeds) or over
        lines.append(f"| test, {over} | {test['mean']:.2%} |")
    return lines


def _use(name: str) -> list[str]:
    return [
        "",
        "## Use",
        "",
        "With hpsearch installed (in its folder: `pip install -e .`), beside this folder:",
        "",
        "```python",
        "from model.exported import load",
        "",
        f"classifier = load({json.dumps(name)})",
        'for prediction in classifier.predict(["photo.jpg"]):',
        '    print(f"{prediction.label} {prediction.probability:.1%}")',
        "```",
        "",
        f"or on the command line: `hpsearch predict {shlex.quote(name)} photo.jpg`.",
    ]


def _graphs(description: Mapping[str, Any]) -> list[str]:
    return [file for file in FORMATS if file in description.get("files", {})]


def _use_of_graph(description: Mapping[str, Any], name: str, file: str) -> list[str]:
    graph = description["files"][file]
    path = json.dumps(f"{name}/{file}")
    gives = "class probabilities" if graph["preprocessing"] else "logits"
    if graph["preprocessing"]:
        takes = "uint8"
        images = ["images = numpy.array(image).transpose(2, 0, 1)[None]"]
    else:
        takes = "normalised float32"
        constants = description["data"]["normalisation"]
        images = [
            f"mean, std = {list(constants['mean'])}, {list(constants['std'])}",
            "pixels = ((numpy.array(image) / 255 - mean) / std).astype(numpy.float32)",
            "images = pixels.transpose(2, 0, 1)[None]",
        ]
    if file == "model.onnx":
        library = "onnxruntime"
        run = [
            f"session = onnxruntime.InferenceSession({path})",
            'outputs = session.run(None, {"images": images})[0]',
        ]
    else:
        library = "torch"
        run = [
            f"graph = torch.export.load({path}).module()",
            "outputs = graph(torch.from_numpy(images)).detach().numpy()",
        ]
    return [
        "",
        f"### `{file}`, without hpsearch",
        "",
        f"It takes {takes} images of shape (N, 3, 32, 32), any N, and gives {gives} of shape "
        f"(N, {len(description['data']['classes'])}).",
        "",
        "```python",
        "import json",
        "",
        "import numpy",
        f"import {library}",
        "from PIL import Image, ImageOps",
        "",
        f'classes = json.load(open({json.dumps(f"{name}/trial.json")}))["data"]["classes"]',
        'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")',
        "image = image.resize((32, 32), Image.Resampling.BILINEAR)",
        *images,
        *run,
        "print(classes[outputs[0].argmax()])",
        "```",
    ]


def _files(description: Mapping[str, Any]) -> list[str]:
    checked = description.get("files", {})

    def line(file: str, what: str) -> str:
        if file in checked:
            difference, images = checked[file]["largest_difference"], checked[file]["images"]
            what += f"; on {images} training images its probabilities differ from the network's by "
            what += f"at most {difference:.2g}"
        return f"- `{file}`: {what}."

    return [
        "",
        "## Files",
        "",
        line("model.safetensors", "the weights, with the names of the PyTorch modules"),
        *(line(file, f"the graph of {FORMATS[file]}") for file in _graphs(description)),
        line(
            "trial.json",
            "parameters, seed, accuracies, data set with its digest and normalisation, versions",
        ),
        line("SHA256SUMS", "the digest of every file: `sha256sum --check SHA256SUMS`"),
    ]


def _cell(value: object) -> str:
    """As a cell of a table in Markdown, which is shown as it is whatever stands in it."""
    text = html.escape(printable(shortened(str(value), LONGEST_CELL)), quote=False)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split()))
