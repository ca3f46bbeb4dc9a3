"""What a random crop and flip of an image costs: image by image, as in IndexedDataset, or the whole batch at once.

    python -m benchmarks.crops [--batches 30]

Prediction, before the first run: about twenty times as much image by image, as each of a dozen torch calls costs
microseconds whatever the size, and a 3 x 32 x 32 image is 12 kB. (It was more.) Image by image: ``draw(1)`` and
``apply`` for each, as IndexedDataset does. Whole batch: ``draw`` and ``apply`` once. The two take turns; medians.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import tyro

from soatfast.memory import CropFlip


@dataclass(frozen=True)
class Options:
    """How long to measure."""

    batches: int = 30
    """Batches measured of each."""
    batch: int = 128
    """Images in a batch."""
    size: int = 32
    """Height and width of the images (3, size, size)."""


def measured(options: Options) -> tuple[float, float]:
    """(image by image, whole batch): median microseconds an image."""
    torch.manual_seed(0)
    images, augment = torch.rand(options.batch, 3, options.size, options.size), CropFlip(padding=4)

    def single() -> None:
        for image in images:
            augment.apply(image[None], augment.draw(1))

    def whole() -> None:
        augment.apply(images, augment.draw(len(images)))

    times: dict[str, list[float]] = {"single": [], "whole": []}
    for _ in range(options.batches + 1):  # the first is not counted
        for way in (single, whole):
            start = time.perf_counter()
            way()
            times[way.__name__].append(1e6 * (time.perf_counter() - start) / options.batch)
    return statistics.median(times["single"][1:]), statistics.median(times["whole"][1:])


def main(options: Options) -> None:
    torch.set_num_threads(1)
    single, whole = measured(options)
    print(f"crop and flip of 3 x {options.size} x {options.size}, batches of {options.batch}, one thread")
    print(f"image by image  {single:7.1f} us an image")
    print(f"whole batch     {whole:7.1f} us an image, {single / whole:.0f} times as fast")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
