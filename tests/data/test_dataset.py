import dataclasses
import hashlib
import multiprocessing
import os
import re
from pathlib import Path

import pytest
import torch

from data.cifar10 import MINI_ARCHIVE, cifar10_mini_source, decode_archive
from data.cifar10_mini import make
from data.dataset import (
    CIFAR10_NORMALISATION,
    DecodedImages,
    Source,
    Split,
    load_dataset,
    load_source,
)
from data.errors import UserError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def noise(count: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 2)


class CountingSource:
    """A source that knows how often it was decoded."""

    def __init__(self, train: Split) -> None:
        self.train = train
        self.decoded = 0
        self.fingerprint = "one"

    def source(self) -> Source:
        return Source("noise", "noise", lambda: self.fingerprint, self.decode)

    def decode(self) -> DecodedImages:
        self.decoded += 1
        return DecodedImages(("a", "b"), self.train, noise(4, seed=1), notice="by the way")


def test_the_embedded_images_are_as_their_readme_says(data_cache: Path) -> None:
    dataset = load_dataset("cifar10-mini", data_cache)
    assert list(dataset.classes) == CLASSES
    assert dataset.normalisation == CIFAR10_NORMALISATION
    for split, count in ((dataset.train, 500), (dataset.test, 100)):
        assert split.images.shape == (10 * count, 3, 32, 32)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert torch.bincount(split.labels).tolist() == [count] * 10
    content = MINI_ARCHIVE.read_bytes()
    assert len(content) < 3_000_000
    digest = hashlib.sha256(content).hexdigest()
    assert digest in (MINI_ARCHIVE.parent / "README.md").read_text()


def test_the_embedded_images_are_photographs_not_noise(data_cache: Path) -> None:
    """Neighbouring pixels of a photograph are alike."""
    images = load_dataset("cifar10-mini", data_cache).train.images.float()
    steps = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean()
    assert 1 < steps < 20
    assert len({image.numpy().tobytes() for image in images[:500]}) > 490


def test_data_are_decoded_once_and_then_read_from_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting = CountingSource(noise(6))
    first = load_source(counting.source(), tmp_path)
    second = load_source(counting.source(), tmp_path)
    assert counting.decoded == 1
    assert first.digest == second.digest
    assert torch.equal(second.train.images, counting.train.images)
    assert torch.equal(second.train.labels, counting.train.labels)
    assert caplog.messages.count("noise: by the way") == 2, "the user is told each time"


def test_cached_images_are_mapped_not_copied(tmp_path: Path) -> None:
    counting = CountingSource(noise(6))
    load_source(counting.source(), tmp_path)
    dataset = load_source(counting.source(), tmp_path)
    address = dataset.train.images.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith(str(tmp_path / "noise.safetensors"))
            return
    pytest.fail("not mapped at all")


def test_of_images_in_the_host_s_memory_a_batch_is_sent_from_pinned_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    split = Split(torch.arange(5 * 3).view(5, 3, 1, 1).byte(), torch.arange(5))
    indices = torch.tensor([3, 0])
    images, labels = split.batch(indices, torch.device("cpu"))
    assert pinned == [], "they are there already"
    # A device that has no memory, but is another one.
    sent = split.batch(indices, torch.device("meta"))
    assert [one.device.type for one in sent] == ["meta", "meta"]
    assert [one.shape for one in sent] == [(2, 3, 1, 1), (2,)]
    assert torch.equal(pinned[0], images)
    assert torch.equal(pinned[1], labels)
    assert labels.tolist() == [3, 0]


def test_data_that_have_changed_are_decoded_again(tmp_path: Path) -> None:
    counting = CountingSource(noise(6))
    load_source(counting.source(), tmp_path)
    counting.fingerprint, counting.train = "two", noise(8)
    assert len(load_source(counting.source(), tmp_path).train) == 8


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    counting = CountingSource(noise(6))
    load_source(counting.source(), tmp_path)
    cache = tmp_path / "noise.safetensors"
    cache.write_bytes(cache.read_bytes()[:-100] if content is None else content)
    dataset = load_source(counting.source(), tmp_path)
    assert counting.decoded == 2
    assert torch.equal(dataset.train.images, counting.train.images)


def test_the_digest_depends_on_every_pixel_label_and_class(tmp_path: Path) -> None:
    split = noise(6)
    pixel, label = split.images.clone(), split.labels.clone()
    pixel[5, 2, 31, 31] ^= 1
    label[0] = 1
    variants = [split, Split(pixel, split.labels), Split(split.images, label)]
    digests = []
    for number, variant in enumerate(variants):
        source = dataclasses.replace(CountingSource(variant).source(), cache_name=str(number))
        digests.append(load_source(source, tmp_path).digest)
    assert len(set(digests)) == 3


def _load(directory: str) -> tuple[str, int]:
    dataset = load_dataset("cifar10-mini", Path(directory))
    return dataset.digest, int(dataset.train.images.sum())


def test_workers_that_start_at_once_do_not_disturb_one_another(
    tmp_path: Path, data_cache: Path
) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_load, [str(tmp_path)] * 3)
    assert set(found) == {_load(str(data_cache))}
    assert sorted(file.name for file in (tmp_path / "datasets").iterdir()) == [
        "cifar10-mini.lock",
        "cifar10-mini.safetensors",
    ]


def test_the_archive_is_made_by_a_fixed_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made from the embedded images themselves: the first 3 and 2 of each class by name."""
    monkeypatch.setattr(make, "IMAGES_PER_CLASS", {"train": 3, "test": 2})
    for name in ("one", "two"):
        make.make(MINI_ARCHIVE, tmp_path / name)
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    archive = cifar10_mini_source()
    source = dataclasses.replace(
        archive,
        fingerprint=lambda: "few",
        decode=lambda: decode_archive(content),
    )
    few = load_source(source, tmp_path)
    assert (len(few.train), len(few.test)) == (30, 20)
    mini = load_dataset("cifar10-mini", tmp_path / "all")
    assert torch.equal(few.train.images[:3], mini.train.images[:3])
    assert torch.equal(few.train.images[3:6], mini.train.images[500:503])


def test_a_download_that_fails_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(UserError) as error:
        load_dataset("cifar10", tmp_path)
    message = str(error.value)
    assert re.match(r"cifar10: cannot be downloaded \(.*\); instead, give a folder", message)
    assert "\n" not in message


def test_all_of_cifar10_is_read_as_torchvision_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set of the original's form with a few images in each of its files."""
    import pickle

    from torchvision.datasets import CIFAR10

    folder = tmp_path / "datasets" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    expected = noise(20)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str, start: int) -> tuple[str, str]:
        rows = expected.images[start : start + 4].reshape(4, -1).numpy()
        labels = expected.labels[start : start + 4].tolist()
        return name, write(name, {"data": rows, "labels": labels})

    train = [batch(f"data_batch_{number + 1}", 4 * number) for number in range(4)]
    test = [batch("test_batch", 16)]
    meta = {
        "filename": "batches.meta",
        "key": "label_names",
        "md5": write("batches.meta", {"label_names": CLASSES}),
    }
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", meta)
    dataset = load_dataset("cifar10", tmp_path)
    assert torch.equal(dataset.train.images, expected.images[:16])
    assert torch.equal(dataset.test.images, expected.images[16:])
    assert torch.equal(dataset.train.labels, expected.labels[:16])
    assert list(dataset.classes) == CLASSES
    assert os.listdir(tmp_path / "datasets").count("cifar10.safetensors") == 1
