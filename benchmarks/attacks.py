"""Compares the speed of this library's attacks with that of ART's on the same model.

    python -m benchmarks.attacks --batch_sizes=32,128 --images=128

Both attack one small Keras classifier on the same images in one process. After a warm-up they
take turns, so that a busy machine slows both alike; each gets the median of its times. The last
column is the largest difference between a pixel of ours and of theirs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
from art.attacks.evasion import FastGradientMethod as ArtFastGradientMethod
from art.attacks.evasion import ProjectedGradientDescent as ArtProjectedGradientDescent
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.fast_gradient import FastGradientMethod
from sfm_tf.attacks.projected_gradient import ProjectedGradientDescent

_SHAPE = (32, 32, 3)
_CLASS_COUNT = 10
_EPSILON = 8 / 255
_STEP_SIZE = 1 / 255
_ITERATIONS = 30

Generate = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Pair(NamedTuple):
    """The same attack twice."""

    name: str
    ours: Generate
    theirs: Generate


class Timing(NamedTuple):
    """Images per second of both, and the largest difference between their images."""

    ours: float
    theirs: float
    difference: float


def build_model() -> keras.Model:
    """Returns a small convolutional classifier of 32x32 colour images, untrained."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(_SHAPE),
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(_CLASS_COUNT),
    ]
    return keras.Sequential(layers)


def build_pairs(classifier: TensorFlowV2Classifier, batch_size: int) -> list[Pair]:
    """Returns FGSM and PGD of both libraries with equal settings."""
    iterated = {"batch_size": batch_size, "targeted": False}
    return [
        Pair(
            "FGSM",
            FastGradientMethod(classifier, epsilon=_EPSILON, batch_size=batch_size).generate,
            ArtFastGradientMethod(classifier, eps=_EPSILON, batch_size=batch_size).generate,
        ),
        Pair(
            f"PGD-{_ITERATIONS}",
            ProjectedGradientDescent(
                classifier,
                epsilon=_EPSILON,
                step_size=_STEP_SIZE,
                iterations=_ITERATIONS,
                **iterated,
            ).generate,
            ArtProjectedGradientDescent(
                classifier,
                eps=_EPSILON,
                eps_step=_STEP_SIZE,
                max_iter=_ITERATIONS,
                verbose=False,
                **iterated,
            ).generate,
        ),
    ]


def measure(pair: Pair, images: np.ndarray, labels: np.ndarray, repeats: int) -> Timing:
    """Times both attacks of `pair` in turns, after one warm-up each."""
    difference = np.abs(pair.ours(images, labels) - pair.theirs(images, labels)).max()
    seconds: dict[Generate, list[float]] = {pair.ours: [], pair.theirs: []}
    for _ in range(repeats):
        for generate, times in seconds.items():
            start = time.perf_counter()
            generate(images, labels)
            times.append(time.perf_counter() - start)
    speeds = [len(images) / statistics.median(times) for times in seconds.values()]
    return Timing(*speeds, float(difference))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every attack at every batch size and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_sizes", default="32,128", help="Batch sizes, comma-separated.")
    parser.add_argument("--images", type=int, default=128, help="Number of images.")
    parser.add_argument("--repeats", type=int, default=3, help="Timed runs of each attack.")
    options = parser.parse_args(arguments)
    random = np.random.default_rng(0)
    images = random.random((options.images, *_SHAPE), dtype=np.float32)
    labels = random.integers(0, _CLASS_COUNT, options.images)
    model = build_model()
    print("attack  batch  ours [images/s]  ART [images/s]  ratio  largest difference")
    for batch_size in (int(size) for size in options.batch_sizes.split(",")):
        classifier = wrap_classifier(model, _CLASS_COUNT, _SHAPE, batch_size)
        for pair in build_pairs(classifier, batch_size):
            ours, theirs, difference = measure(pair, images, labels, options.repeats)
            print(
                f"{pair.name:6}  {batch_size:5}  {ours:15.1f}  {theirs:14.1f}  "
                f"{ours / theirs:5.1f}  {difference:.1e}"
            )


if __name__ == "__main__":
    main()
