"""Measures two attacks that take turns: their speed and what they reach."""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sfm_tf.attacks.attack import perturbation_sizes

_TOLERANCE = 1e-6

Generate = Callable[[np.ndarray, np.ndarray], np.ndarray]
Predict = Callable[[np.ndarray], np.ndarray]


class Side(NamedTuple):
    """An attack, and the model that it attacks.

    Attributes:
        generate: From images and labels to adversarial images.
        predict: From images to the logits of that very model; a copy in another framework may
            differ about an image that lies on a boundary.
    """

    generate: Generate
    predict: Predict


class Criterion(NamedTuple):
    """When an attack has succeeded on an image.

    Attributes:
        epsilon: Largest change of a pixel that counts as success; `math.inf` for any.
        norm: Order of the norm in which fooling perturbations are measured: 2 or `math.inf`.
    """

    epsilon: float
    norm: float


class Run(NamedTuple):
    """One timed run."""

    seconds: float
    images: np.ndarray


class Result(NamedTuple):
    """What the runs of one side come to.

    Attributes:
        speed: Images per second, of the median run.
        success_rate: Share of the images that meet the criterion, in [0, 1].
        median_size: Median norm of its perturbations of the images that fool the model on both
            sides, or NaN.
        images: The adversarial images of the last run.
    """

    speed: float
    success_rate: float
    median_size: float
    images: np.ndarray


def measure(
    sides: tuple[Side, Side],
    images: np.ndarray,
    labels: np.ndarray,
    warm_ups: tuple[int, int],
    criterion: Criterion,
    repeats: int,
    seconds: float,
) -> list[Result]:
    """Lets both sides take turns, after each has attacked some images to warm up.

    Args:
        sides: This library's attack and another's.
        images: Float32 in [0, 1], `(count, height, width, channels)`, known to the model.
        labels: Int64 `(count,)`.
        warm_ups: How many images each side attacks before, untimed.
        criterion: What success is.
        repeats: Most turns of each.
        seconds: After how long no further turn begins.

    Returns:
        The result of each side, in their order.
    """
    for side, count in zip(sides, warm_ups, strict=True):
        side.generate(images[:count], labels[:count])
    runs: list[list[Run]] = [[], []]
    start = time.perf_counter()
    while len(runs[0]) < repeats and (not runs[0] or time.perf_counter() - start < seconds):
        for side, done in zip(sides, runs, strict=True):
            done.append(_run(side.generate, images, labels))
    fooled = [
        np.argmax(side.predict(done[-1].images), axis=1) != labels
        for side, done in zip(sides, runs, strict=True)
    ]
    return [
        _summarise(done, images, criterion, fools, fooled[0] & fooled[1])
        for done, fools in zip(runs, fooled, strict=True)
    ]


def _run(generate: Generate, images: np.ndarray, labels: np.ndarray) -> Run:
    start = time.perf_counter()
    adversarial_images = generate(images, labels)
    return Run(time.perf_counter() - start, adversarial_images)


def _summarise(
    runs: list[Run], images: np.ndarray, criterion: Criterion, fools: np.ndarray, both: np.ndarray
) -> Result:
    adversarial_images = runs[-1].images
    changes = perturbation_sizes(images, adversarial_images, np.inf)
    succeeds = fools & (changes <= criterion.epsilon + _TOLERANCE)
    sizes = perturbation_sizes(images, adversarial_images, criterion.norm)[both]
    return Result(
        len(images) / statistics.median(run.seconds for run in runs),
        float(succeeds.mean()),
        float(np.median(sizes)) if len(sizes) else math.nan,
        adversarial_images,
    )
