"""Measures two attacks that take turns: their speed, what they reach, and the memory they take.

    python -m benchmarks.attack_measurement MODEL IMAGES OWNER ATTACK BATCH_SIZE SETTINGS

`measure_memory` starts this program, because a process that has run other attacks may still hold
memory that they freed. It reads the model and calls it once, resets the peak memory of the process
(Linux: 5 to `/proc/self/clear_refs`), and attacks one batch. The figure is the peak memory after
that (`VmHWM` of `/proc/self/status`) minus the memory before. It includes the compilation of the
attack, but not the libraries and not a GPU's memory.
"""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from benchmarks.attack_libraries import (
    Criterion,
    Generate,
    Predict,
    Settings,
    attacked_by,
    build_attack,
)
from sfm_tf.attacks.attack import perturbation_sizes

_TOLERANCE = 1e-6


class Side(NamedTuple):
    """An attack, and the model that it attacks.

    Attributes:
        generate: From images and labels to adversarial images.
        predict: From images to the logits of that very model; a copy in another framework may
            differ about an image that lies on a boundary.
    """

    generate: Generate
    predict: Predict


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


def measure_memory(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    owner: str,
    attack: str,
    settings: Settings,
) -> float:
    """Returns the MiB that an attack of one batch adds to a process that holds the model.

    Args:
        model: Classifier.
        images: Float32 in [0, 1], `(batch, height, width, channels)`: the batch.
        labels: Int64 `(batch,)`.
        owner: A key of `LIBRARIES`.
        attack: A key of `KINDS` that the owner has.
        settings: Settings of the attack.

    Raises:
        subprocess.CalledProcessError: If the other process fails; what it wrote is passed on.
    """
    with tempfile.TemporaryDirectory() as folder:
        model_file, images_file = Path(folder, "model.keras"), Path(folder, "images.npz")
        model.save(model_file)
        np.savez(images_file, images=images, labels=labels)
        lengths = json.dumps(dataclasses.asdict(settings))
        program = [sys.executable, "-m", "benchmarks.attack_measurement"]
        arguments = [str(model_file), str(images_file), owner, attack, str(len(images)), lengths]
        done = subprocess.run(program + arguments, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def main(arguments: list[str]) -> None:
    """Attacks one batch and prints the MiB that took as the last word."""
    model_file, images_file, owner, attack, batch_size, lengths = arguments
    model = keras.models.load_model(model_file, compile=False)
    with np.load(images_file, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    settings, size = Settings(**json.loads(lengths)), int(batch_size)
    attacked = attacked_by(owner, model, images, size)
    generate = build_attack(owner, attack, attacked, settings, size)
    attacked.predict(images)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    generate(images, labels)
    print(_status("VmHWM") - before)


def _status(name: str) -> float:
    """Returns a size from the process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
