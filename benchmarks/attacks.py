"""Compares this library's attacks with those of other libraries on the same model.

    python -m benchmarks.attacks
    python -m benchmarks.attacks --attacks=pgd,cw --rivals=art --batch_sizes=32,128 --repeats=5
    python -m benchmarks.attacks --slow_images=128 --apgd_iterations=100 --square_queries=5000

All attacks run in one process on one Keras classifier of digits. The attacks of torchattacks and of
AutoAttack's authors run on a copy of it in torch, with the same weights. In each pair ours and
theirs take turns, so that a busy machine slows both equally, and the median of the times counts.
Before that, ours runs on all images, which compiles it, and theirs on two. Both have the same
settings, those of `benchmarks/attack_libraries.py`.

The columns have our figure first and then theirs:

- images per second, their ratio, and the goal for the ratio;
- with --memory, the peak MiB while one batch is attacked: see
  `benchmarks/attack_measurement.py`. Each figure takes a process of its own and about a quarter of
  a minute;
- the share of images that fool the model, within the radius except for CW-L2. The model classified
  all of them correctly before. More is better, and matters more than speed;
- the median size of the perturbations of the images that both attacks broke: the L-infinity norm
  for FAB-T, otherwise the L2 norm;
- for attacks without randomness, the largest difference between a pixel of ours and of theirs.
  Gradients of two frameworks differ in their last bits, and so can the sign of a small gradient,
  which moves a pixel by two steps. foolbox's MIM sums signs of gradients instead of gradients.

The defaults take about ten minutes on two idle cores. The last command above uses AutoAttack's own
lengths and takes hours.
"""

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from benchmarks.attack_libraries import (
    KINDS,
    LIBRARIES,
    OWN,
    RIVALS,
    AttackedModel,
    Settings,
    attacked_by,
    build_attack,
    copy_to_torch,
)
from benchmarks.attack_measurement import Result, Side, measure, measure_memory
from sfm_tf.models.resnet import build_classifier

_GOALS = {("pgd", "art"): 4, ("cw", "art"): 20}
"""Ratios of speed to reach, where it is more than 1."""

_INSTALL = (
    "pip install --no-deps --extra-index-url https://download.pytorch.org/whl/cpu "
    "-r requirements-bench.txt"
)

_HEADER = (
    "attack     rival         batch  images     images/s        ratio  goal    peak MiB      "
    "success        median size     max |delta|"
)

SHAPE = (32, 32, 3)
CLASS_COUNT = 10

_SIDE = SHAPE[0]
_ATTACKED = 300
_LEARNING_RATE = 0.002
# Less than black and white, which a search in the tanh space hardly leaves.
_CONTRAST = 0.9
# Training on noise makes a model that 8/255 fools on some digits only: else all attacks look alike.
_NOISE = 0.25


class Target(NamedTuple):
    """What is attacked.

    Attributes:
        model: From float32 images in [0, 1] to float32 logits.
        images: Float32 `(count, 32, 32, 3)`, all of which the model knows.
        labels: Int64 `(count,)`.
    """

    model: keras.Model
    images: np.ndarray
    labels: np.ndarray


def _build_cnn(width: int) -> keras.Model:
    """Returns three convolutions and a linear layer: hardly more than the cost of a call."""
    images = keras.Input(SHAPE)
    features = keras.layers.Normalization(mean=[0.5] * 3, variance=[0.25] * 3)(images)
    for filters, strides in ((width, 1), (width, 2), (2 * width, 2)):
        features = keras.layers.Conv2D(filters, 3, strides=strides, padding="same")(features)
        features = keras.layers.ReLU()(features)
    features = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(images, keras.layers.Dense(CLASS_COUNT)(features))


def _build_resnet(name: str, width: int) -> keras.Model:
    return build_classifier(name, SHAPE, CLASS_COUNT, width, seed=0)


class Architecture(NamedTuple):
    """How to build a classifier, given the channels of its first stage, and how long to train."""

    build: Callable[[int], keras.Model]
    epochs: int


ARCHITECTURES: Mapping[str, Architecture] = {
    "cnn": Architecture(_build_cnn, 25),
    "resnet18": Architecture(functools.partial(_build_resnet, "resnet18"), 5),
    "resnet20": Architecture(functools.partial(_build_resnet, "resnet20"), 5),
}
"""The classifiers by name."""


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-learn's digits as gray 32x32 images of three channels, and their labels."""
    digits, labels = load_digits(return_X_y=True)
    strokes = [cv2.resize(digit.reshape(8, 8) / 16.0, (_SIDE, _SIDE)) for digit in digits]
    images = 0.5 + _CONTRAST * (np.stack(strokes)[..., None] - 0.5)
    return np.repeat(images, 3, axis=3).astype(np.float32), labels.astype(np.int64)


def prepare_target(name: str, width: int, count: int) -> Target:
    """Trains a classifier and picks the images to attack.

    Args:
        name: A key of `ARCHITECTURES`.
        width: Channels of its first stage.
        count: Images to attack; fewer if the model knows fewer of those held out.
    """
    keras.utils.set_random_seed(0)
    images, labels = _digits()
    noise = np.random.default_rng(0).normal(0.0, _NOISE, images[_ATTACKED:].shape)
    noisy = np.clip(images[_ATTACKED:] + noise, 0.0, 1.0).astype(np.float32)
    architecture = ARCHITECTURES[name]
    model = architecture.build(width)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(_LEARNING_RATE), loss)
    model.fit(noisy, labels[_ATTACKED:], batch_size=64, epochs=architecture.epochs, verbose=0)
    images, labels = images[:_ATTACKED], labels[:_ATTACKED]
    predictions = np.argmax(model.predict(images, verbose=0), axis=1)
    known = np.flatnonzero(predictions == labels)[:count]
    return Target(model, images[known], labels[known])


class Plan(NamedTuple):
    """One line of the table: which attack is compared with whose, in which batches."""

    attack: str
    rival: str
    batch_size: int
    count: int


class Effort(NamedTuple):
    """How long to measure a pair; see `measure`."""

    repeats: int
    seconds: float


def plan_lines(options: argparse.Namespace, rivals: Sequence[str], known: int) -> Iterator[Plan]:
    """Yields the lines of the table, attack by attack.

    Args:
        options: The flags.
        rivals: Libraries that are installed.
        known: Images there are.
    """
    for attack in options.attacks:
        count = min(options.slow_images if KINDS[attack].is_slow else options.images, known)
        for batch_size in sorted({min(size, count) for size in options.batch_sizes}):
            for rival in rivals:
                yield Plan(attack, rival, batch_size, count)


def measure_line(
    plan: Plan, target: Target, copies: dict[str, AttackedModel], settings: Settings, effort: Effort
) -> list[Result] | None:
    """Returns our result and the rival's, or None if it has no such attack."""
    ours = attacked_by(OWN, target.model, target.images, plan.batch_size)
    theirs = copies.get(plan.rival, ours)
    attacks = [
        build_attack(owner, plan.attack, attacked, settings, plan.batch_size)
        for owner, attacked in ((OWN, ours), (plan.rival, theirs))
    ]
    if attacks[1] is None:
        return None
    sides = (Side(attacks[0], ours.predict), Side(attacks[1], theirs.predict))
    images, labels = target.images[: plan.count], target.labels[: plan.count]
    kind = KINDS[plan.attack]
    # Ours compile for every number of images that are left in a batch; theirs do not compile.
    warm_ups = (plan.count, min(2, plan.count))
    return measure(sides, images, labels, warm_ups, kind.criterion(settings.epsilon), *effort)


def format_line(plan: Plan, ours: Result, theirs: Result, mebibytes: Callable[[str], float]) -> str:
    """Returns a line of the table, given the memory that a library's attack takes."""
    kind = KINDS[plan.attack]
    difference = np.abs(ours.images - theirs.images).max() if kind.is_deterministic else None
    return (
        f"{kind.title:9}  {plan.rival:12}  {plan.batch_size:5}  {plan.count:6}  "
        f"{ours.speed:7.2f} {theirs.speed:7.2f}  {ours.speed / theirs.speed:6.2f}  "
        f"{_GOALS.get((plan.attack, plan.rival), 1):4}  "
        f"{mebibytes(OWN):6.0f} {mebibytes(plan.rival):6.0f}  "
        f"{ours.success_rate:6.3f} {theirs.success_rate:6.3f}  "
        f"{ours.median_size:8.4f} {theirs.median_size:8.4f}  "
        + ("-" if difference is None else f"{difference:.1e}")
    )


def installed_rivals(names: Sequence[str]) -> list[str]:
    """Returns the libraries that are installed, and prints a line for each that is not."""
    for name in names:
        if LIBRARIES[name].missing:
            print(
                f"{name}: left out, {' and '.join(LIBRARIES[name].missing)} not installed; "
                f"try: {_INSTALL}"
            )
    return [name for name in names if not LIBRARIES[name].missing]


def _names(choices: Sequence[str], text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in choices]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown {', '.join(unknown)}; expected some of {','.join(choices)}"
        )
    return names


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(prog="benchmarks.attacks", description=__doc__.splitlines()[0])

    def add(name: str, default: object, meaning: str, **options: object) -> None:
        options.setdefault("type", type(default))
        parser.add_argument(
            f"--{name}", default=default, help=f"{meaning} (default: {default})", **options
        )

    def some_of(names: Sequence[str]) -> functools.partial:
        return functools.partial(_names, list(names))

    add("model", "resnet20", "Attacked classifier.", choices=list(ARCHITECTURES))
    add("width", 16, "Channels of the classifier's first stage.")
    add("attacks", ",".join(KINDS), "Attacks, comma-separated.", type=some_of(KINDS))
    add("rivals", ",".join(RIVALS), "Libraries, comma-separated.", type=some_of(RIVALS))
    add("batch_sizes", "32,128", "Batch sizes, comma-separated.", type=_sizes)
    add("images", 128, "Images for FGSM, PGD, MIM and DI2.")
    add("slow_images", 8, "Images for the other attacks.")
    add("repeats", 3, "Largest number of turns of each side of a pair.")
    add("seconds", 10.0, "Seconds after which a pair takes no further turns.")
    add("apgd_iterations", 25, "Iterations of APGD and FAB-T.")
    add("square_queries", 300, "Queries of Square.")
    parser.add_argument("--memory", action="store_true", help="Also measure the memory.")
    return parser.parse_args(arguments)


def print_table(
    options: argparse.Namespace, rivals: Sequence[str], target: Target, settings: Settings
) -> None:
    """Prints a line for each attack, batch size and library that has the attack."""
    in_torch = [name for name in rivals if LIBRARIES[name].is_torch]
    copies = {}
    if in_torch:
        copies = dict.fromkeys(in_torch, copy_to_torch(target.model, target.images))
    effort = Effort(options.repeats, options.seconds)

    @functools.cache
    def mebibytes(attack: str, batch_size: int, owner: str) -> float:
        if not options.memory:
            return math.nan
        batch = (target.images[:batch_size], target.labels[:batch_size])
        return measure_memory(target.model, *batch, owner, attack, settings)

    print(_HEADER)
    for plan in plan_lines(options, rivals, len(target.images)):
        results = measure_line(plan, target, copies, settings, effort)
        if results:
            memory = functools.partial(mebibytes, plan.attack, plan.batch_size)
            print(format_line(plan, *results, memory), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the model and compares the attacks on it."""
    options = parse_flags(arguments)
    # It sums gradients in another order than ART's eager steps do, at no gain in speed; the sign of
    # a small one then differs, and with it the images that are to be compared.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    rivals = installed_rivals(options.rivals)
    count = max(options.images, options.slow_images)
    target = prepare_target(options.model, options.width, count)
    devices = [device.device_type for device in tf.config.get_visible_devices()]
    print(f"{options.model} of width {options.width} on {'/'.join(devices)}")
    settings = Settings(
        apgd_iterations=options.apgd_iterations, square_queries=options.square_queries
    )
    print_table(options, rivals, target, settings)


if __name__ == "__main__":
    main()
