"""Compares the speed of this library's attacks with that of ART's on the same model.

    python -m benchmarks.attacks --batch_sizes=32,128 --images=128 --digits=32

Both attack one small Keras classifier on the same images in one process. After a warm-up they
take turns, so that a busy machine slows both alike; each gets the median of its times.

Of FGSM and PGD, which make the same images in both, the last column is the largest difference
between a pixel of ours and of theirs. CW-L2 does not: ART descends by line search. There both have
the same numbers of searches and iterations, on digits that a trained classifier knows, and the
table tells how many they fool and the median L2 norm of those perturbations.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
from art.attacks.evasion import CarliniL2Method
from art.attacks.evasion import FastGradientMethod as ArtFastGradientMethod
from art.attacks.evasion import ProjectedGradientDescent as ArtProjectedGradientDescent
from art.estimators.classification.tensorflow import TensorFlowV2Classifier
from sklearn.datasets import load_digits

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.carlini_wagner import PAPER_SETTINGS, CarliniWagner
from sfm_tf.attacks.fast_gradient import FastGradientMethod
from sfm_tf.attacks.projected_gradient import ProjectedGradientDescent
from sfm_tf.attacks.validity import perturbation_sizes

_SHAPE = (32, 32, 3)
_CLASS_COUNT = 10
_EPSILON = 8 / 255
_STEP_SIZE = 1 / 255
_ITERATIONS = 30
_DIGIT_SHAPE = (8, 8, 1)
_ATTACKED_DIGITS = 300
# Digits are drawn in black and white, which steps of 0.01 hardly leave.
_LEARNING_RATE = 0.1

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


class Reach(NamedTuple):
    """Images per second, share of them that fool the model, and the median norm of those."""

    speed: float
    success_rate: float
    median_distance: float


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


def train_digits_model(images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """Returns a small convolutional classifier of digits, trained for a few seconds."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(_DIGIT_SHAPE),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(_CLASS_COUNT),
    ]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    model.fit(images, labels, batch_size=64, epochs=8, verbose=0)
    return model


def build_carlini_wagner(classifier: TensorFlowV2Classifier, batch_size: int) -> Pair:
    """Returns CW-L2 of both libraries with the paper's numbers of searches and iterations."""
    ours = CarliniWagner(
        classifier, **PAPER_SETTINGS, learning_rate=_LEARNING_RATE, batch_size=batch_size
    )
    theirs = CarliniL2Method(
        classifier,
        binary_search_steps=PAPER_SETTINGS["binary_search_steps"],
        max_iter=PAPER_SETTINGS["iterations"],
        initial_const=PAPER_SETTINGS["initial_constant"],
        batch_size=batch_size,
        verbose=False,
    )
    return Pair("CW-L2", ours.generate, theirs.generate)


def measure_reach(
    generate: Generate, classifier: TensorFlowV2Classifier, images: np.ndarray, labels: np.ndarray
) -> Reach:
    """Times one run of an attack that has run before, and scores what it makes."""
    start = time.perf_counter()
    adversarial_images = generate(images, labels)
    seconds = time.perf_counter() - start
    fools = np.argmax(classifier.predict(adversarial_images), axis=1) != labels
    distances = perturbation_sizes(images, adversarial_images, 2.0)[fools]
    median = float(np.median(distances)) if len(distances) else float("nan")
    return Reach(len(images) / seconds, float(fools.mean()), median)


def print_bounded_attacks(batch_sizes: Sequence[int], count: int, repeats: int) -> None:
    """Measures FGSM and PGD at every batch size and prints a table."""
    random = np.random.default_rng(0)
    images = random.random((count, *_SHAPE), dtype=np.float32)
    labels = random.integers(0, _CLASS_COUNT, count)
    model = build_model()
    print("attack  batch  ours [images/s]  ART [images/s]  ratio  largest difference")
    for batch_size in batch_sizes:
        classifier = wrap_classifier(model, _CLASS_COUNT, _SHAPE, batch_size)
        for pair in build_pairs(classifier, batch_size):
            ours, theirs, difference = measure(pair, images, labels, repeats)
            print(
                f"{pair.name:6}  {batch_size:5}  {ours:15.1f}  {theirs:14.1f}  "
                f"{ours / theirs:5.1f}  {difference:.1e}"
            )


def print_carlini_wagner(batch_sizes: Sequence[int], count: int) -> None:
    """Measures CW-L2 at every batch size and prints a table."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).reshape(-1, *_DIGIT_SHAPE).astype(np.float32)
    model = train_digits_model(images[_ATTACKED_DIGITS:], labels[_ATTACKED_DIGITS:])
    images, labels = images[:_ATTACKED_DIGITS], labels[:_ATTACKED_DIGITS]
    known = np.flatnonzero(np.argmax(model(images), axis=1) == labels)[:count]
    images, labels = images[known], labels[known]
    print("attack  batch  library  [images/s]  success rate  median L2  ratio")
    for batch_size in batch_sizes:
        classifier = wrap_classifier(model, _CLASS_COUNT, _DIGIT_SHAPE, batch_size)
        pair = build_carlini_wagner(classifier, batch_size)
        pair.ours(images, labels)
        ours, theirs = (measure_reach(g, classifier, images, labels) for g in pair[1:])
        for library, reach, ratio in (
            ("ours", ours, ours.speed / theirs.speed),
            ("ART", theirs, 1.0),
        ):
            print(
                f"{pair.name:6}  {batch_size:5}  {library:7}  {reach.speed:10.2f}  "
                f"{reach.success_rate:12.3f}  {reach.median_distance:9.3f}  {ratio:5.1f}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every attack at every batch size and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_sizes", default="32,128", help="Batch sizes, comma-separated.")
    parser.add_argument("--images", type=int, default=128, help="Images for FGSM and PGD.")
    parser.add_argument("--digits", type=int, default=32, help="Images for CW-L2, at most 250.")
    parser.add_argument("--repeats", type=int, default=3, help="Timed runs of FGSM and PGD.")
    options = parser.parse_args(arguments)
    batch_sizes = [int(size) for size in options.batch_sizes.split(",")]
    print_bounded_attacks(batch_sizes, options.images, options.repeats)
    print_carlini_wagner(batch_sizes, options.digits)


if __name__ == "__main__":
    main()
