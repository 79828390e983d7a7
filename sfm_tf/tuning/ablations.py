"""The paper's ablations: trainings that each leave one thing out (Yu et al. 2022, Figure 5)."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.settings import ModelConfig
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.training import TrainingSession
from sfm_tf.tuning.settings import AblationConfig
from sfm_tf.tuning.trials import (
    Scorer,
    Trial,
    train_source_model,
    with_prefix,
    without_adversarial_settings,
)

ABLATIONS_FILE = "ablations.json"
_SOURCE_FOLDER = "source"
_ADVERSARIAL_FOLDER = "adversarial"


class Ablation(NamedTuple):
    """A training that leaves something out: its name in words, and the settings that change."""

    words: str
    overrides: Mapping[str, Any]


ABLATION_KINDS: Mapping[str, Ablation] = {
    "no_semantic_loss": Ablation("no semantic loss", {"semantic_weight": 0.0}),
    "no_reconstruction_loss": Ablation("no reconstruction loss", {"reconstruction_weight": 0.0}),
    "cross_entropy": Ablation("cross-entropy for cosine", {"semantic_loss": "cross_entropy"}),
    "frozen_target": Ablation("frozen target", {"freeze_classifier": True}),
    "no_training_preprocessing": Ablation("no T in training", {"preprocess_training": False}),
}
"""The ablations of sections 4.2, 4.3, 5.2 and 6.6."""

COMPLETE = "complete"
"""Name of the training that leaves nothing out, with which the others are compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationStudy:
    """The complete training, and trainings that each leave one thing out.

    Attributes:
        records: Folder that `datasets.ingestion` wrote.
        model: Architectures and pre-processing.
        training: Settings of the complete training.
        ablation: What is left out.
        scoring: Result of `scoring_settings`.
        seed: Seed of the trainings and the attacks.
        source: Independent model that the black-box attack uses; None to train one.
        progress: Called after each step of trainings and attacks.
    """

    records: pathlib.Path
    model: ModelConfig
    training: TrainingConfig
    ablation: AblationConfig
    scoring: EvaluationConfig
    seed: int
    source: keras.Model | None
    progress: Callable[..., None]

    def run(self, folder: pathlib.Path) -> list[dict[str, Any]]:
        """Trains and scores each; continues an interrupted run in the same `folder`.

        Writes `ablations.json`, and for each training a folder with its models and the other files
        of `Trial.run`.

        Returns:
            The content of `ablations.json`, the complete training first: for each its `name`,
            `words`, `overrides` and the result of `Trial.run`.

        Raises:
            SfmError: If the records are damaged, or a trained model cannot be attacked.
        """
        scorer = self._scorer(folder)
        scorer.source_scores()  # Makes the black-box images that all trainings share.
        kinds = {name: ABLATION_KINDS[name] for name in self.ablation.ablations}
        results = [
            {
                "name": name,
                "words": kind.words,
                "overrides": dict(kind.overrides),
                **self._trial(kind, scorer, folder / name).run(keep_models=True),
            }
            for name, kind in {COMPLETE: Ablation(COMPLETE, {}), **kinds}.items()
        ]
        write_json(folder / ABLATIONS_FILE, results)
        shutil.rmtree(folder / _ADVERSARIAL_FOLDER, ignore_errors=True)
        return results

    def _scorer(self, folder: pathlib.Path) -> Scorer:
        schema, count = read_schema(self.records), self.ablation.ablation_examples
        images, labels = load_split(self.records, "validation", schema, count)
        return Scorer(
            source=self._trained_source(folder) if self.source is None else self.source,
            images=images,
            labels=labels,
            config=self.scoring,
            seed=self.seed,
            folder=folder / _ADVERSARIAL_FOLDER,
            progress=self.progress,
        )

    def _trained_source(self, folder: pathlib.Path) -> keras.Model:
        config, place = without_adversarial_settings(self.training), folder / _SOURCE_FOLDER
        return train_source_model(
            TrainingSession.open(self.records, self.model, config, self.seed, place, self.progress)
        )

    def _trial(self, kind: Ablation, scorer: Scorer, folder: pathlib.Path) -> Trial:
        progress = with_prefix(self.progress, kind.words)
        epochs = self.ablation.ablation_epochs or self.training.epochs
        config = without_adversarial_settings(self.training)
        return Trial(
            records=self.records,
            model=self.model,
            config=dataclasses.replace(config, epochs=epochs, **kind.overrides),
            seed=self.seed,
            scorer=dataclasses.replace(scorer, progress=progress),
            folder=folder,
            progress=progress,
        )


def read_ablations(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the content of `ablations.json` in `folder`.

    Raises:
        SfmError: If the file is missing or damaged.
    """
    return read_json(folder / ABLATIONS_FILE)
