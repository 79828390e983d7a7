"""Compares the speed of this library's defence operations with that of the usual libraries.

    python -m benchmarks.defences
    python -m benchmarks.defences --images=500 --repeats=9 --only=non_local_means_13_3_4,jpeg_75

Both sides of a pair take turns in one process, so that a busy machine slows both equally, and the
median of the times counts. Each has run on all images before, which compiles ours. Both start from
a NumPy array and end with the tensor that a TensorFlow classifier takes. Ours is the compiled
operation on one batch of all images. Theirs is what a user would call, on as many cores as it uses
by default. The images are crops of photographs: 32x32 pixels, 3 channels, 256 levels.

The columns:

- images per second of ours and of theirs, their ratio, and the quartiles of the turns' ratios;
- where both compute the same, the share of values that differ from theirs by at most one of 256
  levels. ART's total variation drops other values, and takes 10 steps of L-BFGS-B.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import sklearn.datasets
import tensorflow as tf
from art.defences.preprocessor import (
    FeatureSqueezing,
    JpegCompression,
    SpatialSmoothing,
    TotalVarMin,
)

from sfm_tf.preprocessors.chain import parse_preprocessor

SHAPE = (32, 32, 3)
LEVELS = 255.0

Defend = Callable[[np.ndarray], np.ndarray | tf.Tensor]


class Rival(NamedTuple):
    """What another library offers for an operation.

    Attributes:
        name: Whose it is, and with which settings.
        defend: From float32 images in [0, 1] to such images.
        is_same: Whether it computes the same values.
    """

    name: str
    defend: Defend
    is_same: bool = True


def _use_art(preprocessor: Callable[[np.ndarray], tuple[np.ndarray, None]]) -> Defend:
    return lambda images: preprocessor(images)[0]


def _compress_by_art(quality: int) -> Defend:
    compress = JpegCompression(clip_values=(0, 255), quality=quality)
    # Given images in [0, 1], ART drops the fractions of their levels, 28.999 becomes 28.
    return lambda images: compress(np.rint(images * LEVELS))[0] / np.float32(LEVELS)


def _denoise_by_opencv(images: np.ndarray) -> np.ndarray:
    levels = np.rint(images * LEVELS).astype(np.uint8)
    denoised = [cv2.fastNlMeansDenoisingColored(image, None, 4, 4, 3, 13) for image in levels]
    return np.stack(denoised).astype(np.float32) / np.float32(LEVELS)


RIVALS: Mapping[str, Rival] = {
    "bit_depth_4": Rival(
        "ART FeatureSqueezing(bit_depth=4)",
        _use_art(FeatureSqueezing(clip_values=(0, 1), bit_depth=4)),
    ),
    "median_2": Rival(
        "ART SpatialSmoothing(window_size=2)", _use_art(SpatialSmoothing(window_size=2))
    ),
    "median_3": Rival(
        "ART SpatialSmoothing(window_size=3)", _use_art(SpatialSmoothing(window_size=3))
    ),
    "jpeg_75": Rival("ART JpegCompression(quality=75)", _compress_by_art(75)),
    "non_local_means_13_3_4": Rival("OpenCV fastNlMeansDenoisingColored", _denoise_by_opencv),
    "total_variation_50_30": Rival(
        "ART TotalVarMin(prob=.5, lamb=.03)",
        _use_art(TotalVarMin(prob=0.5, lamb=0.03, clip_values=(0, 1))),
        is_same=False,
    ),
}
"""By the name of our operation with its parameters."""


def compile_own(spec: str) -> Defend:
    """Returns this library's operation of a name, compiled for any batch size."""
    compiled = tf.function(
        parse_preprocessor(spec), input_signature=[tf.TensorSpec([None, *SHAPE], tf.float32)]
    )
    return lambda images: compiled(tf.constant(images))


def _then_to_tensor(defend: Defend) -> Defend:
    return lambda images: tf.constant(defend(images))


def photograph_crops(count: int) -> np.ndarray:
    """Returns float32 `(count, 32, 32, 3)` in [0, 1], of 256 levels."""
    photographs = sklearn.datasets.load_sample_images().images
    generator = np.random.default_rng(0)
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        limits = np.subtract(photograph.shape[:2], SHAPE[:2])
        row, column = generator.integers(0, limits + 1)
        crops.append(photograph[row : row + SHAPE[0], column : column + SHAPE[1]])
    return np.stack(crops).astype(np.float32) / np.float32(LEVELS)


def measure_pair(
    sides: tuple[Defend, Defend], images: np.ndarray, options: argparse.Namespace
) -> tuple[tuple[list[float], list[float]], list[np.ndarray]]:
    """Lets both sides take turns; returns the seconds of each turn, and the images they made."""
    defended = [np.asarray(defend(images)) for defend in sides]
    seconds: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(seconds[0]) < options.repeats and (
        not seconds[0] or time.perf_counter() - start < options.seconds
    ):
        for defend, times in zip(sides, seconds, strict=True):
            begin = time.perf_counter()
            defend(images)
            times.append(time.perf_counter() - begin)
    return seconds, defended


def format_line(
    spec: str, rival: Rival, seconds: tuple[list[float], list[float]], defended: list[np.ndarray]
) -> str:
    """Returns a line of the table."""
    count = len(defended[0])
    own_time, their_time = map(statistics.median, seconds)
    ratios = np.divide(seconds[1], seconds[0])
    low, high = np.quantile(ratios, [0.25, 0.75])
    agreement = "-"
    if rival.is_same:
        agreement = f"{np.mean(np.abs(defended[0] - defended[1]) * LEVELS < 1.01):.5f}"
    return (
        f"{spec:22}  {rival.name:36}  {count / own_time:9.1f} {count / their_time:9.1f}  "
        f"{their_time / own_time:7.2f}  {low:7.2f} - {high:7.2f}  {len(ratios):5}  {agreement:>9}"
    )


def _specs(text: str) -> list[str]:
    specs = text.split(",")
    unknown = [spec for spec in specs if spec not in RIVALS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown {', '.join(unknown)}; expected some of {','.join(RIVALS)}"
        )
    return specs


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.defences",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--only", type=_specs, default=",".join(RIVALS), help="Operations, comma-separated.")
    add("--images", type=int, default=100, help="Images in the batch.")
    add("--repeats", type=int, default=7, help="Most turns of each side of a pair.")
    add("--seconds", type=float, default=60.0, help="Time after which a pair takes no more turns.")
    return parser.parse_args(arguments)


def _load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the pairs and prints the table."""
    options = parse_flags(arguments)
    images = photograph_crops(options.images)
    devices = [device.device_type for device in tf.config.get_visible_devices()]
    print(f"{'/'.join(devices)}, {os.cpu_count()} cores, load {_load()} before")
    print(
        f"{'operation':22}  {'rival':36}  {'images/s':>19}  {'ratio':>7}  {'its quartiles':>17}  "
        f"{'turns':>5}  {'agreement':>9}"
    )
    for spec in options.only:
        rival = RIVALS[spec]
        sides = (compile_own(spec), _then_to_tensor(rival.defend))
        seconds, defended = measure_pair(sides, images, options)
        print(format_line(spec, rival, seconds, defended), flush=True)
    print(f"load {_load()} after")


if __name__ == "__main__":
    main()
