import logging
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.dataset import Dataset, load_dataset
from data.errors import UserError
from data.images import read_image


def save(path: Path, color: tuple[int, int, int] = (200, 100, 50), size: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, five training and two test images each."""
    folder = tmp_path / "photos"
    for index in range(5):
        save(folder / "train" / "cat" / f"{index}.png", (255, 10 * index, 0))
        save(folder / "train" / "dog" / f"{index}.jpg", (0, 10 * index, 255))
    for index in range(2):
        save(folder / "test" / "cat" / f"{index}.png")
        save(folder / "test" / "dog" / f"{index}.png")
    return folder


def load(photos: Path) -> Dataset:
    return load_dataset(str(photos), photos.parent / "var")


def test_classes_are_folders_and_images_of_any_size_become_32_by_32(photos: Path) -> None:
    save(photos / "train" / "cat" / "deep" / "er.bmp", size=7)
    dataset = load(photos)
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.images.shape == (11, 3, 32, 32)
    assert dataset.test.images.shape == (4, 3, 32, 32)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 5
    assert dataset.notice is None
    assert dataset.train.images[1, :, 16, 16].tolist() == [255, 10, 0]


def test_what_is_not_an_image_is_passed_over(photos: Path) -> None:
    (photos / "train" / "cat" / "notes.txt").write_text("x")
    (photos / "train" / "cat" / ".hidden.png").write_text("x")
    (photos / "train" / ".git").mkdir()
    assert len(load(photos).train) == 10


@pytest.mark.parametrize("change", ["added", "removed", "rewritten", "renamed"])
def test_the_cache_follows_the_folder(photos: Path, change: str) -> None:
    before = load(photos)
    image = photos / "train" / "cat" / "3.png"
    if change == "added":
        save(photos / "train" / "cat" / "9.png")
    elif change == "removed":
        image.unlink()
    elif change == "rewritten":
        save(image, (1, 2, 3))
        os.utime(image, (1, 1))
    else:
        (photos / "train" / "dog").rename(photos / "train" / "wolf")
        (photos / "test" / "dog").rename(photos / "test" / "wolf")
    assert load(photos).digest != before.digest


def test_an_unchanged_folder_is_not_read_again(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert load(photos).digest == load(photos).digest
    assert caplog.text.count("reading the images") == 1


def test_folders_of_the_same_name_do_not_share_a_cache(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "photos"
    for name in ("x", "y"):
        for index in range(3):
            save(other / "train" / name / f"{index}.png")
            save(other / "test" / name / f"{index}.png")
    directory = tmp_path / "var"
    assert load_dataset(str(photos), directory).classes == ("cat", "dog")
    assert load_dataset(str(other), directory).classes == ("x", "y")
    assert load_dataset(str(photos), directory).classes == ("cat", "dog")


def test_without_test_images_some_are_set_aside_and_the_user_is_told(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in (photos / "test").rglob("*.png"):
        file.unlink()
    for name in ("cat", "dog"):
        (photos / "test" / name).rmdir()
    (photos / "test").rmdir()
    dataset = load(photos)
    assert torch.bincount(dataset.test.labels).tolist() == [1, 1]
    assert torch.bincount(dataset.train.labels).tolist() == [4, 4]
    assert "no folder test/: 2 of 10 training images" in caplog.text


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("train", "no folder train/ in it"),
        ("train/dog", "needs two or more folders, one a class; found only 'cat'"),
    ],
)
def test_a_folder_of_another_form_is_refused(photos: Path, missing: str, said: str) -> None:
    (photos / missing).rename(photos.parent / "away")
    with pytest.raises(UserError, match=said):
        load(photos)


def test_a_class_without_images_is_named(photos: Path) -> None:
    (photos / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="train/empty: no images in this class"):
        load(photos)


def test_a_class_that_only_the_test_images_have_is_named(photos: Path) -> None:
    save(photos / "test" / "horse" / "0.png")
    with pytest.raises(UserError, match=r"class 'horse' is not in .*train"):
        load(photos)


def test_a_path_that_does_not_exist_is_named_with_the_choices() -> None:
    with pytest.raises(UserError, match="'nowhere': no such folder; give cifar10-mini, cifar10"):
        load_dataset("nowhere", Path("var"))


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(photos: Path, content: bytes | None) -> None:
    broken = photos / "train" / "dog" / "3.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(broken)
    broken.write_bytes(broken.read_bytes()[:-300] if content is None else content)
    with pytest.raises(UserError, match=r"train/dog/3\.jpg: not a readable image") as error:
        load(photos)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "F"])
def test_images_of_every_mode_keep_their_brightness(tmp_path: Path, mode: str) -> None:
    """A left half that is dark and a right half that is bright."""
    grey = Image.new("L", (64, 48), 30)
    grey.paste(220, (32, 0, 64, 48))
    if mode == "I;16":
        image = Image.fromarray(
            (torch.tensor(list(grey.tobytes())).reshape(48, 64) * 257).numpy().astype("uint16")
        )
    else:
        rgb = grey.convert("RGB")
        image = grey.convert("F") if mode == "F" else rgb.convert(mode, dither=Image.Dither.NONE)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "F") else "a.png")
    image.save(path)
    pixels = read_image(path)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert (pixels[:, :, :14] < 60).all()
    assert (pixels[:, :, 18:] > 190).all()


def test_a_photograph_is_turned_as_its_camera_was(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 40), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 60, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png")
    assert pixels[:, :10].max() == 0
    assert pixels[:, -10:].min() == 255


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.png: cannot be read \(No such file"):
        read_image(tmp_path / "absent.png")
