"""The models and optimizers of a training: their seeds, statistics and precision."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.attention_unet import build_masker
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.resnet import build_classifier
from sfm_tf.models.settings import ModelConfig
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.records.schema import Schema
from sfm_tf.records.statistics import STATISTICS_FILE
from sfm_tf.training.settings import TrainingConfig


class Seeds(NamedTuple):
    """Independent seeds of the parts of a training."""

    classifier: int
    masker: int
    order: int
    source: int
    source_order: int
    attack: int

    @classmethod
    def spawn(cls, seed: int) -> "Seeds":
        """Returns independent seeds below 2**31, derived from `seed`."""
        states = np.random.SeedSequence(seed).generate_state(len(cls._fields))
        return cls(*(int(state) >> 1 for state in states))


class ChannelStatistics(NamedTuple):
    """Mean and variance of the training images, per channel, for images in [0, 1]."""

    mean: tuple[float, ...]
    variance: tuple[float, ...]


def read_channel_statistics(records: pathlib.Path) -> ChannelStatistics:
    """Returns the statistics of the training images that were computed at ingest.

    Raises:
        SfmError: If they are missing or damaged.
    """
    path = records / STATISTICS_FILE
    try:
        statistics = json.loads(path.read_text(encoding="utf-8"))["train"]
        variance = tuple(float(value) ** 2 for value in statistics["std"])
        return ChannelStatistics(tuple(map(float, statistics["mean"])), variance)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SfmError(f"Cannot read {path} ({error}); run the ingest again.") from error


@dataclasses.dataclass(frozen=True)
class ModelFactory:
    """Builds the models of a training under Keras' current dtype policy.

    Attributes:
        config: Architectures.
        schema: Shape of the images and their classes.
        statistics: Mean and variance by which the classifiers normalise.
        seeds: Seeds of the initial weights.
    """

    config: ModelConfig
    schema: Schema
    statistics: ChannelStatistics
    seeds: Seeds

    def defended(self) -> DefendedModel:
        """Returns the model that Algorithm 1 trains."""
        masker = build_masker(
            self.schema.image_shape,
            self.config.masker_width,
            self.config.masker_depth,
            self.seeds.masker,
            self.config.mask_bias,
        )
        preprocessor = parse_preprocessor(self.config.preprocessor, self.config.surrogate)
        return DefendedModel(self._classifier(self.seeds.classifier), masker, preprocessor)

    def bare(self) -> DefendedModel:
        """Returns the classifier of `defended`, with the same weights, without masker and T."""
        return DefendedModel(self._classifier(self.seeds.classifier))

    def source(self) -> DefendedModel:
        """Returns the independent model: the same classifier with other weights, alone."""
        return DefendedModel(self._classifier(self.seeds.source))

    def _classifier(self, seed: int) -> keras.Model:
        return build_classifier(
            self.config.classifier,
            self.schema.image_shape,
            len(self.schema.class_names),
            self.config.classifier_width,
            self.statistics.mean,
            self.statistics.variance,
            seed,
        )


_MOMENTUM = 0.9
_WARM_UP_SHARE = 0.05
"""Share of the steps over which the classifier's learning rate rises to its peak."""
_MASKER_OPTIMIZERS: Mapping[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": keras.optimizers.Adam,
    "sgd": keras.optimizers.SGD,
}


def classifier_optimizer(config: TrainingConfig, steps: int) -> keras.optimizers.Optimizer:
    """Returns SGD with Nesterov momentum, a linear warm-up and a cosine decay to zero.

    Args:
        config: Holds the peak learning rate.
        steps: Steps of the classifier in all.
    """
    warm_up_steps = max(1, round(_WARM_UP_SHARE * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, steps - warm_up_steps),
        warmup_target=config.classifier_learning_rate,
        warmup_steps=warm_up_steps,
    )
    return keras.optimizers.SGD(schedule, momentum=_MOMENTUM, nesterov=True)


def masker_optimizer(config: TrainingConfig, replicas: int = 1) -> keras.optimizers.Optimizer:
    """Returns Adam (Kingma and Ba 2015), or the paper's SGD, at a constant learning rate.

    Its gradients are clipped by their common norm, because Eq. 5 bends sharply where a mask
    saturates; norm 0 does not clip.

    Args:
        config: Names the optimizer, its rate and the norm.
        replicas: Number of devices, each of which applies an equal part of the gradient.
    """
    norm = config.masker_gradient_norm / replicas
    make = _MASKER_OPTIMIZERS[config.masker_optimizer]
    return make(config.masker_learning_rate, global_clipnorm=norm if norm > 0.0 else None)


_BFLOAT16_CAPABILITY = (8, 0)
"""CUDA compute capability of Ampere, the first GPUs that multiply bfloat16 natively."""


def resolve_precision(name: str) -> str:
    """Returns the name of a Keras dtype policy.

    Args:
        name: A policy's name, or `auto`: `mixed_bfloat16` where every GPU has native bfloat16,
            else, and without a GPU, `float32`.
    """
    if name != "auto":
        return name
    gpus = tf.config.list_physical_devices("GPU")
    capabilities = [
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in gpus
    ]
    native = bool(gpus) and all(found >= _BFLOAT16_CAPABILITY for found in capabilities)
    return "mixed_bfloat16" if native else "float32"


def with_resolved_precision(config: TrainingConfig) -> TrainingConfig:
    """Returns the settings with `auto` resolved for this machine, as the weights depend on it."""
    return dataclasses.replace(config, mixed_precision=resolve_precision(config.mixed_precision))


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Makes layers inside the block use the policy; restores the previous one afterwards."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
