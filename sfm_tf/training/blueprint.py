"""How the models of a training are built, again and again alike: from settings, data and seed."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

import keras
import numpy as np

from sfm_tf.config import ModelConfig
from sfm_tf.errors import SfmError
from sfm_tf.models.attention_unet import build_masker
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.resnet import build_classifier
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.records.schema import Schema
from sfm_tf.records.statistics import STATISTICS_FILE


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
        """Returns seeds below 2**31 that follow from `seed` and look unrelated to it."""
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
class Blueprint:
    """Builds the models of a training, under Keras' current dtype policy.

    Attributes:
        config: Architectures.
        schema: Shape of the images and their classes.
        statistics: What the classifiers normalise by.
        seeds: Of the initial weights.
    """

    config: ModelConfig
    schema: Schema
    statistics: ChannelStatistics
    seeds: Seeds

    def defended(self) -> DefendedModel:
        """Returns the model to be trained by Algorithm 1."""
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
        """Returns the classifier of `defended`, the same weights, with nothing in front of it."""
        return DefendedModel(self._classifier(self.seeds.classifier))

    def source(self) -> DefendedModel:
        """Returns the independent model: same classifier, other weights, nothing in front of it."""
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
