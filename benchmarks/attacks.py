"""Compares this library's attacks with those of other libraries on the same model.

    python -m benchmarks.attacks
    python -m benchmarks.attacks --attacks=pgd,cw --rivals=art --batch_sizes=32,128 --repeats=5
    python -m benchmarks.attacks --slow_images=128 --apgd_iterations=100 --square_queries=5000

All attacks run in one process on one Keras classifier of digits. The attacks of torchattacks and of
AutoAttack's authors run on a copy of it in torch, with the same weights. In each pair ours and
theirs take turns, so that a busy machine slows both equally, and the median of the times counts.
Before that, ours runs on all images, which compiles it, and theirs on two. Both have the same
settings, those of `benchmarks/attack_settings.py`.

The columns have our figure first and then theirs:

- images per second, their ratio, and the goal for the ratio;
- with --memory, the peak MiB while one batch is attacked: see `benchmarks/attack_memory.py`. Each
  figure takes a process of its own and about a quarter of a minute;
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
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmarks.attack_memory import OWN, measure_memory
from benchmarks.attack_rivals import RIVALS, AttackedModel, build_rival, copy_to_torch, wrap_model
from benchmarks.attack_settings import KINDS, Settings
from benchmarks.attacked_model import ARCHITECTURES, Target, prepare_target
from benchmarks.measuring import Result, Side, measure
from benchmarks.own_attacks import build_own

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
    keras_model = wrap_model(target.model, plan.batch_size)
    attacked = copies.get(plan.rival, keras_model)
    theirs = build_rival(plan.rival, attacked, settings, plan.batch_size).get(plan.attack)
    if theirs is None:
        return None
    ours = build_own(plan.attack, keras_model.model, settings, plan.batch_size).generate
    sides = (Side(ours, keras_model.predict), Side(theirs, attacked.predict))
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
        if RIVALS[name].missing:
            print(
                f"{name}: left out, {' and '.join(RIVALS[name].missing)} not installed; "
                f"try: {_INSTALL}"
            )
    return [name for name in names if not RIVALS[name].missing]


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
    in_torch = [name for name in rivals if RIVALS[name].is_torch]
    copies = {}
    if in_torch:
        copies = dict.fromkeys(in_torch, copy_to_torch(target.model, target.images))
    effort = Effort(options.repeats, options.seconds)

    @functools.cache
    def mebibytes(attack: str, batch_size: int, owner: str) -> float:
        if not options.memory:
            return math.nan
        return measure_memory(target, owner, attack, batch_size, settings)

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
