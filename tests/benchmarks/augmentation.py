"""How many images a second does each part of an augmentation take, beside torchvision's?

    python -m tests.benchmarks.augmentation

Batches of 128 images of 32 x 32 pixels that lie on the device: by `data.augment.augment`, a batch
at once, and by `torchvision.transforms.v2`, which draws once for all that it is given, and is
therefore given an image at a time. Both take turns; of each the median over the rounds is printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torchvision.transforms import v2

from data.augment import CROP_SHIFT, JITTER, PARTS, augment, draw_first_flips

BATCH_SIZE = 128
COLOR_JITTER = "color jitter"
TORCHVISION: Mapping[str, Callable[[Tensor], Tensor]] = {
    "flip": v2.RandomHorizontalFlip(),
    "crop": v2.RandomCrop(32, CROP_SHIFT, padding_mode="reflect"),
    "resized-crop": v2.RandomResizedCrop(32, antialias=False),
    "trivial": v2.TrivialAugmentWide(),
    COLOR_JITTER: v2.ColorJitter(JITTER, JITTER, JITTER),
}
"""By what they are called here; the others it does not have, or only alike."""


def seconds(call: Callable[[str], object], part: str, device: torch.device) -> float:
    started = time.perf_counter()
    call(part)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(device: torch.device, rounds: int) -> dict[str, tuple[float, float | None]]:
    """Images a second of each part: ours, and torchvision's; a round more is not counted."""
    generator = Generator(device).manual_seed(0)
    size = (BATCH_SIZE, 3, 32, 32)
    levels = torch.randint(256, size, device=device, generator=generator).to(torch.uint8)
    images, mirrored = levels / 255, draw_first_flips(BATCH_SIZE, 0, device)

    def ours(part: str) -> Tensor:
        known = part if part in PARTS else "none"
        return augment(images, known, part == COLOR_JITTER, generator, mirrored)

    def theirs(part: str) -> Tensor:
        # Some of its operations are for whole levels alone.
        given = levels if part == "trivial" else images
        return torch.stack([TORCHVISION[part](image) for image in given])

    found: dict[str, tuple[float, float | None]] = {}
    for part in (*PARTS, COLOR_JITTER):
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds + 1):
            first = seconds(ours, part, device)
            second = seconds(theirs, part, device) if part in TORCHVISION else 0.0
            if number:
                times[0].append(first)
                times[1].append(second)
        mine, others = (statistics.median(those) for those in times)
        found[part] = BATCH_SIZE / mine, BATCH_SIZE / others if part in TORCHVISION else None
    return found


def table(found: Mapping[str, tuple[float, float | None]]) -> list[str]:
    lines = ["| images/s | ours | torchvision's | ratio |", "|---|---|---|---|"]
    for part, (mine, others) in found.items():
        cells = (f"{others:,.0f}", f"{mine / others:.1f}") if others else ("", "")
        lines.append(f"| {part} | {mine:,.0f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(*table(measure(device, arguments.rounds)), sep="\n")
    print(f"\n{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
