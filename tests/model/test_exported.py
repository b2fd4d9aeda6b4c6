import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

from data.dataset import CIFAR10_NORMALISATION
from data.errors import UserError
from data.sums import SUMS, sums
from data.weights import packed
from model.evaluate import normalise
from model.exported import load
from model.resnet import ResNet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported model of two classes."""
    torch.manual_seed(0)
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(packed(ResNet(2, width=4).state_dict(), {}))
    description = {
        "parameters": {"width": 4, "optimizer": "sgd"},
        "data": {"classes": ["cat", "dog"], "normalisation": asdict(CIFAR10_NORMALISATION)},
    }
    (folder / "trial.json").write_text(json.dumps(description))
    (folder / "README.md").write_text("# A model\n")
    list_digests(folder)
    return folder


def list_digests(folder: Path) -> None:
    """As if its files had been written so."""
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != SUMS}
    (folder / SUMS).write_bytes(sums(files))


def describe_anew(folder: Path, **parameters: object) -> None:
    """As if the trial had had these parameters too."""
    description = json.loads((folder / "trial.json").read_text())
    description["parameters"] |= parameters
    (folder / "trial.json").write_text(json.dumps(description))
    list_digests(folder)


def test_a_prediction_is_what_the_network_says(folder: Path, tmp_path: Path) -> None:
    images = torch.rand(3, 3, 32, 32).mul(255).round() / 255
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        save_image(image, paths[-1])
    classifier = load(folder)
    with torch.inference_mode():
        outputs = classifier.model(normalise(images, classifier.normalisation)).softmax(dim=1)
    for prediction, row in zip(classifier.predict(paths), outputs, strict=True):
        assert prediction.label == ("cat", "dog")[int(row.argmax())]
        assert prediction.probability == pytest.approx(float(row.max()), abs=1e-4)
    assert classifier.predict([]) == []


def test_a_model_from_scratch_predicts_what_one_of_torch_s_layers_does(folder: Path) -> None:
    theirs = load(folder).model
    describe_anew(folder, layers="scratch")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(load(folder).model(images), theirs(images))


def test_a_model_of_another_recipe_is_rebuilt_from_its_description(folder: Path) -> None:
    expected = ResNet(2, width=4, pooling="average", logit_scale=0.125, stem="whitening").eval()
    (folder / "model.safetensors").write_bytes(packed(expected.state_dict(), {}))
    recipe = {"pooling": "average", "logit_scale": 0.125, "initialization": "dirac"}
    describe_anew(folder, **recipe, batch_norm_momentum=0.4, ema=0.99, stem="whitening")
    found = load(folder).model
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(found(images), expected(images))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_a_folder_that_is_not_an_export_is_named(folder: Path) -> None:
    (folder / SUMS).unlink()
    with pytest.raises(UserError, match="best: not an exported model"):
        load(folder)


def test_of_a_folder_of_several_models_one_is_to_be_named(folder: Path) -> None:
    several = folder.parent / "best3"
    for name in ("2-trial-5", "1-trial-9"):
        shutil.copytree(folder, several / name)
    with pytest.raises(UserError, match=r"best3: exported models are .*best3/1-trial-9$"):
        load(several)


@pytest.mark.parametrize("missing", ["model.safetensors", "trial.json"])
def test_a_file_that_is_missing_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=rf"best: a damaged export \({missing} is missing\)"):
        load(folder)


@pytest.mark.parametrize("cut", [0, 10])
def test_damaged_weights_are_named(folder: Path, cut: int) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content[: len(content) - cut])
    with pytest.raises(
        UserError, match=r"best: a damaged export \(the digest of model\.safetensors is not"
    ):
        load(folder)


def test_a_description_that_was_changed_is_found_by_its_digest(folder: Path) -> None:
    trial = folder / "trial.json"
    trial.write_text(trial.read_text().replace('"cat", "dog"', '"dog", "cat"'))
    with pytest.raises(UserError, match=r"a damaged export \(the digest of trial\.json is not"):
        load(folder)


def test_the_model_card_may_be_edited(folder: Path) -> None:
    (folder / "README.md").write_text("# My model\n")
    assert load(folder).classes == ("cat", "dog")


@pytest.mark.parametrize("text", ["", "[]", '{"parameters": {"width": 8}, "data": {}}'])
def test_a_damaged_description_is_named(folder: Path, text: str) -> None:
    (folder / "trial.json").write_text(text)
    list_digests(folder)
    with pytest.raises(UserError, match="best: a damaged export") as error:
        load(folder)
    assert "\n" not in " ".join(str(error.value).split())


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(packed(ResNet(2, width=8).state_dict(), {}))
    list_digests(folder)
    with pytest.raises(UserError, match="best: a damaged export"):
        load(folder)


def test_an_image_that_cannot_be_read_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"trial\.json: not a readable image"):
        load(folder).predict([folder / "trial.json"])
