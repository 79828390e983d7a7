"""Measures what training and defending cost beside the bare classifier, in one process.

    python -m benchmarks.training
    python -m benchmarks.training --classifier=resnet20 --maskers=8x4,8x3,4x3 --repeats=7

The ways of training take turns of a few steps each, so that a busy machine slows all alike; each
has been compiled and has run before. The tables:

- a step of the bare classifier, of an alternation by epochs (one step of the classifier and one of
  the masker) and of one by steps (one step for both), in milliseconds and as a ratio to the bare
  classifier in float32; in bfloat16 and compiled by XLA, too;
- the share of a bare step that making the batch would take, if the input pipeline did not work
  beside it;
- the largest size of a process that trains so and does nothing else;
- for each masker, WIDTHxDEPTH, its parameters, those ratios, and the time to classify images with
  the defence as a ratio to the bare classifier's.

The images are crops of photographs, 32x32 pixels of 3 channels; speed does not depend on what is on
them.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.defences import photograph_crops
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.settings import ModelConfig
from sfm_tf.records.schema import Schema
from sfm_tf.training.batches import training_batches
from sfm_tf.training.model_building import (
    ChannelStatistics,
    ModelFactory,
    Seeds,
    classifier_optimizer,
    dtype_policy,
    masker_optimizer,
)
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.trainer import Phase, SparseFeatureMaskerTrainer
from sfm_tf.training.training_loop import CompiledSteps

CLASSES = 10
IMAGES = 2000
WAYS: Mapping[str, tuple[Phase, ...]] = {
    "classifier": (Phase.CLASSIFIER,),
    "by epochs": (Phase.CLASSIFIER, Phase.MASKER),
    "by steps": (Phase.BOTH,),
}
"""The phases of which one step each is timed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One way of training, compiled in one way."""

    way: str
    policy: str = "float32"
    jit_compile: bool = False

    @property
    def name(self) -> str:
        """Its name in the table."""
        return f"{self.way}, {self.policy}{', XLA' if self.jit_compile else ''}"


ROWS = tuple(
    Row(way, policy, jit_compile)
    for policy, jit_compile in (("float32", False), ("mixed_bfloat16", False), ("float32", True))
    for way in WAYS
)


def build(options: argparse.Namespace, policy: str, masker: str) -> DefendedModel:
    """Returns an untrained defended model whose layers compute as the policy says."""
    width, depth = map(int, masker.split("x"))
    config = ModelConfig(
        classifier=options.classifier,
        classifier_width=options.classifier_width,
        masker_width=width,
        masker_depth=depth,
        preprocessor=options.preprocessor,
    )
    schema = Schema(32, 32, 3, tuple(map(str, range(CLASSES))), {"train": IMAGES})
    statistics_ = ChannelStatistics((0.5,) * 3, (0.06,) * 3)
    with dtype_policy(policy):
        return ModelFactory(config, schema, statistics_, Seeds.spawn(0)).defended()


def compiled_steps(model: DefendedModel, jit_compile: bool) -> CompiledSteps:
    """Returns what trains the model, by the settings that are the default."""
    config = TrainingConfig()
    trainer = SparseFeatureMaskerTrainer(model, config)
    trainer.compile(classifier_optimizer(config, 10_000), masker_optimizer(config))
    return CompiledSteps(trainer, tf.distribute.get_strategy(), jit_compile=jit_compile)


class Training:
    """A training that can be asked for a few more steps."""

    def __init__(self, way: str, steps: CompiledSteps, batch_size: int) -> None:
        """Takes no step yet."""
        self._steps = {phase: self._forever(steps, phase, batch_size) for phase in WAYS[way]}
        self._trainer = steps.trainer

    def seconds(self, count: int) -> float:
        """Returns how long `count` more steps of each phase take."""
        start = time.perf_counter()
        for phase, steps in self._steps.items():
            self._trainer.phase = phase
            measured = list(itertools.islice(steps, count))
            float(next(iter(measured[-1].values())))  # Waits for the last step.
        return time.perf_counter() - start

    @staticmethod
    def _forever(
        steps: CompiledSteps, phase: Phase, batch_size: int
    ) -> Iterator[Mapping[str, Any]]:
        for epoch in itertools.count():
            steps.trainer.phase = phase
            yield from steps.train(lambda _, epoch=epoch: batches(batch_size, epoch))


@functools.cache
def _images() -> np.ndarray:
    return photograph_crops(IMAGES)


def batches(batch_size: int, epoch: int) -> tf.data.Dataset:
    """Returns an epoch of augmented crops with labels that mean nothing."""
    images = _images()
    labels = np.arange(len(images)) % CLASSES
    return training_batches(
        images,
        labels,
        batch_size=batch_size,
        augmentation="crop_flip",
        seed=0,
        epoch=epoch,
    )


def take_turns(runs: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """Returns the median of what each run returns, all taking turns, after one that is not counted.

    The first run of each makes its graph.
    """
    for run in runs:
        run()
    turns = [[run() for run in runs] for _ in range(repeats)]
    return [statistics.median(values) for values in zip(*turns, strict=True)]


def defending(model: DefendedModel, images: np.ndarray) -> list[Callable[[], float]]:
    """Returns runs that classify images with the bare classifier and with the defended model."""
    bare = DefendedModel(model.classifier)
    signature = [tf.TensorSpec([None, *images.shape[1:]], tf.float32)]

    def run(compiled: Callable) -> float:
        start = time.perf_counter()
        for part in np.array_split(images, max(1, len(images) // 100)):
            compiled(tf.constant(part))
        return time.perf_counter() - start

    graphs = [tf.function(part, input_signature=signature) for part in (bare, model)]
    return [lambda graph=graph: run(graph) for graph in graphs]


def peak_memory(row: Row, options: argparse.Namespace) -> float:
    """Returns the largest MiB of a process that trains in this way alone."""
    program = [sys.executable, "-m", "benchmarks.training", f"--peak_of={row.name}"]
    names = ("classifier", "classifier_width", "preprocessor", "batch_size", "steps")
    flags = [f"--{name}={getattr(options, name)}" for name in names]
    flags.append(f"--maskers={options.maskers[0]}")
    done = subprocess.run(program + flags, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def _train_alone(options: argparse.Namespace) -> None:
    row = next(row for row in ROWS if row.name == options.peak_of)
    model = build(options, row.policy, options.maskers[0])
    training = Training(row.way, compiled_steps(model, row.jit_compile), options.batch_size)
    training.seconds(options.steps)
    # Not getrusage: its figure begins with the size of the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024.0)


def _print_ways(options: argparse.Namespace) -> None:
    trainings = []
    for row in ROWS:
        model = build(options, row.policy, options.maskers[0])
        steps = compiled_steps(model, row.jit_compile)
        trainings.append(Training(row.way, steps, options.batch_size))
    runs = [lambda each=each: each.seconds(options.steps) for each in trainings]
    seconds = take_turns(runs, options.repeats)
    print(f"{'way of training':44}  {'ms/step':>8}  {'ratio':>6}  {'peak MiB':>8}")
    for row, value in zip(ROWS, seconds, strict=True):
        peak = f"{peak_memory(row, options):8.0f}" if options.memory else f"{'-':>8}"
        milliseconds = 1000.0 * value / options.steps
        print(f"{row.name:44}  {milliseconds:8.1f}  {value / seconds[0]:6.2f}  {peak}", flush=True)
    start = time.perf_counter()
    count = len([None for _ in batches(options.batch_size, 0)])
    share = (time.perf_counter() - start) / count / (seconds[0] / options.steps)
    print(f"making a batch takes {share:.3f} of a step of the classifier\n")


def _print_maskers(options: argparse.Namespace) -> None:
    images = photograph_crops(options.defended_images)
    print(
        f"{'masker':8}  {'parameters':>10}  {'by epochs':>9}  {'by steps':>8}  "
        f"{'defending, ratio':>16}  {'images/s':>8}"
    )
    for masker in options.maskers:
        models = [build(options, "float32", masker) for _ in WAYS]
        trainings = [
            Training(way, compiled_steps(model, False), options.batch_size)
            for way, model in zip(WAYS, models, strict=True)
        ]
        runs = [lambda each=each: each.seconds(options.steps) for each in trainings]
        plain, by_epochs, by_steps = take_turns(runs, options.repeats)
        bare, defended = take_turns(defending(models[0], images), options.repeats)
        print(
            f"{masker:8}  {models[0].masker.count_params():10,}  {by_epochs / plain:9.2f}  "
            f"{by_steps / plain:8.2f}  {defended / bare:16.2f}  {len(images) / defended:8.0f}",
            flush=True,
        )


def _maskers(text: str) -> list[str]:
    maskers = text.split(",")
    for masker in maskers:
        if masker.count("x") != 1 or not all(part.isdigit() for part in masker.split("x")):
            raise argparse.ArgumentTypeError(f"unknown {masker!r}; expected WIDTHxDEPTH")
    return maskers


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.training", description=__doc__.splitlines()[0]
    )

    def add(name: str, default: object, meaning: str, **options: object) -> None:
        options.setdefault("type", type(default))
        parser.add_argument(
            f"--{name}", default=default, help=f"{meaning} (default: {default})", **options
        )

    add("classifier", "resnet18", "Architecture of the classifier.")
    add("classifier_width", 16, "Channels of its first stage.")
    add("maskers", "8x4", "Maskers, comma-separated, each WIDTHxDEPTH.", type=_maskers)
    add("preprocessor", "bit_depth_4", "Pre-processing T.")
    add("batch_size", 128, "Images per step.")
    add("steps", 4, "Steps of each turn.")
    add("repeats", 5, "Turns of each way.")
    add("defended_images", 500, "Images that are classified in a turn.")
    parser.add_argument("--memory", action="store_true", help="Measure memory, too (Linux).")
    parser.add_argument("--maskers_only", action="store_true", help="Leave the first table out.")
    parser.add_argument("--peak_of", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the tables."""
    options = parse_flags(arguments)
    if options.peak_of:
        _train_alone(options)
        return
    devices = [device.device_type for device in tf.config.get_visible_devices()]
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{'/'.join(devices)}, {os.cpu_count()} cores, load {load} before")
    print(f"{options.classifier}, width {options.classifier_width}, masker {options.maskers[0]}")
    if not options.maskers_only:
        _print_ways(options)
    _print_maskers(options)


if __name__ == "__main__":
    main()
