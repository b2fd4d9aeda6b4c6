import csv
import io
import json
import os
import pty
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.dataset import CIFAR10_NORMALISATION, load_dataset
from data.errors import UserError
from data.weights import packed
from model.exported import load
from model.resnet import ResNet
from search.run_predict import BATCH_SIZE, predict_images
from studies.export import Model, write_export

CLASSES = ["cat", "dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of two classes."""
    torch.manual_seed(0)
    description = {
        "study": "pets",
        "trial": 3,
        "parameters": {"width": 4},
        "validation_accuracy": 0.5,
        "validation_accuracy_per_epoch": [0.5],
        "best_epoch": 1,
        "test_accuracy": 0.5,
        "test_accuracy_with_flips": 0.5,
        "data": {
            "source": "pets",
            "classes": CLASSES,
            "normalisation": asdict(CIFAR10_NORMALISATION),
        },
    }
    output = tmp_path_factory.mktemp("exported") / "best"
    weights = packed(ResNet(2, width=4).state_dict(), {})
    write_export(output, Model({"model.safetensors": weights}, description))
    return output


@pytest.fixture
def photos(tmp_path: Path, data_cache: Path) -> Path:
    """A directory of more real images than a batch has, in two folders, one with a broken one."""
    images = load_dataset("cifar10-mini", data_cache).test.images[: BATCH_SIZE + 40]
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, image in enumerate(images):
        place = tmp_path / "photos" / ("more" if number % 3 == 0 else "")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    (tmp_path / "photos" / "more" / "broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_a_directory_is_classified_and_an_image_that_cannot_be_read_is_named(
    folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict_images(folder, [photos], "json") == 1
    out, err = capsys.readouterr()
    rows = json.loads(out)
    paths = sorted(str(path) for path in photos.rglob("*.png") if path.name != "broken.png")
    assert [row["image"] for row in rows] == paths
    expected = load(folder).predict(paths)
    assert [row["label"] for row in rows] == [found.label for found in expected]
    for row, found in zip(rows, expected, strict=True):
        assert row["probability"] == pytest.approx(found.probability, abs=1e-5)
    assert err.splitlines() == [
        f"hpsearch: {photos / 'more' / 'broken.png'}: not a readable image (not an image); mend or "
        "remove it",
        f"hpsearch: 1 could not be read; {len(paths) + 1} were tried",
    ]


def test_csv_holds_the_same_as_json_whatever_the_names(
    folder: Path,
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strange = [tmp_path / 'a, "b"\n.png', tmp_path / os.fsdecode(b"\xff.png"), tmp_path / "ü.png"]
    for path in strange:
        shutil.copy(photos / "1.png", path)
    assert predict_images(folder, strange, "json") == 0
    rows = json.loads(capsys.readouterr().out)
    with (tmp_path / "out.csv").open("w", encoding="utf-8") as out:
        monkeypatch.setattr("sys.stdout", out)
        assert predict_images(folder, strange, "csv") == 0
    text = (tmp_path / "out.csv").read_bytes().decode(errors="surrogateescape")
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["image", "label", "probability"],
        *([str(value) for value in row.values()] for row in rows),
    ]
    assert [row["image"] for row in rows] == list(map(str, strange))


def test_text_is_a_line_an_image_and_all_well_is_0(
    folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [photos / "1.png", photos / "2.png", photos / "1.png"]
    assert predict_images(folder, chosen, "text") == 0
    expected = load(folder).predict(chosen)
    assert capsys.readouterr() == (
        "".join(
            f"{path}: {found.label} {found.probability:.1%}\n"
            for path, found in zip(chosen, expected, strict=True)
        ),
        "",
    )


def test_what_is_missing_or_empty_is_named_and_the_rest_done(
    folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    asked = [tmp_path / "empty", tmp_path / "missing.png", photos / "1.png"]
    assert predict_images(folder, asked, "text") == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{photos / '1.png'}: ")
    assert f"{tmp_path / 'empty'}: no images in this directory\n" in err
    assert "missing.png: cannot be read (No such file or directory)\n" in err


def test_a_damaged_export_is_refused_in_a_line(
    folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged: a damaged export .*; export it again$"):
        predict_images(damaged, [photos], "text")
    assert capsys.readouterr().out == ""


def test_the_bar_is_on_a_terminal_s_stderr_and_what_is_written_elsewhere_has_none_of_it(
    folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(writer, "w") as terminal, (tmp_path / "out.csv").open("w") as out:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setattr("sys.stdout", out)
        assert predict_images(folder, [photos / "more"], "csv") == 1
        terminal.flush()
        shown = os.read(reader, 1 << 20).decode()
    os.close(reader)
    count = len(list((photos / "more").iterdir()))
    assert f"0/{count}" in shown
    assert ".png,cat," not in shown
    assert ".png,dog," not in shown
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("image,label,probability", count)
    assert all(len(line.split(",")) == 3 for line in lines)
