"""The paper's ablations as trainings: each takes one thing out (Yu et al. 2022, Figure 5)."""

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
from sfm_tf.training.training import Workplace
from sfm_tf.tuning.settings import AblationConfig
from sfm_tf.tuning.trials import Measurement, Trial, comparable, source_model

ABLATIONS_FILE = "ablations.json"
_SOURCE_FOLDER = "source"
_ADVERSARIAL_FOLDER = "adversarial"


class Ablation(NamedTuple):
    """What is taken out of the training: its name in words, and other values of its settings."""

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
"""Name of the training that lacks nothing, and which the others are compared with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationStudy:
    """Trainings that each lack something, beside the complete one.

    Attributes:
        records: Folder that `datasets.ingestion` wrote.
        model: Architectures and pre-processing.
        training: How the complete one is trained.
        ablation: What is taken out.
        scoring: What `measurement_settings` returned.
        seed: Seed of the trainings and the attacks.
        source: Independent model that the black box starts from; None to train one.
        progress: Told of each step of trainings and attacks.
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
        """Trains and scores each, going on from what an interrupted run left in `folder`.

        Writes a folder for each with what `Trial.run` leaves, its models among it, and
        `ablations.json`.

        Returns:
            What that holds, the complete training first: for each its `name`, `words`, `overrides`
            and what `Trial.run` returned.

        Raises:
            SfmError: If the records are damaged, or a trained model cannot be attacked.
        """
        measurement = self._measurement(folder)
        measurement.source_scores()  # Makes the images of the black box, which all share.
        kinds = {name: ABLATION_KINDS[name] for name in self.ablation.ablations}
        results = [
            {
                "name": name,
                "words": kind.words,
                "overrides": dict(kind.overrides),
                **self._trial(name, kind, measurement, folder).run(keep_models=True),
            }
            for name, kind in {COMPLETE: Ablation(COMPLETE, {}), **kinds}.items()
        ]
        write_json(folder / ABLATIONS_FILE, results)
        shutil.rmtree(folder / _ADVERSARIAL_FOLDER, ignore_errors=True)
        return results

    def _measurement(self, folder: pathlib.Path) -> Measurement:
        schema, count = read_schema(self.records), self.ablation.ablation_examples
        images, labels = load_split(self.records, "validation", schema, count)
        return Measurement(
            source=self._trained_source(folder) if self.source is None else self.source,
            images=images,
            labels=labels,
            config=self.scoring,
            seed=self.seed,
            folder=folder / _ADVERSARIAL_FOLDER,
            progress=self.progress,
        )

    def _trained_source(self, folder: pathlib.Path) -> keras.Model:
        config, place = comparable(self.training), folder / _SOURCE_FOLDER
        return source_model(
            Workplace.open(self.records, self.model, config, self.seed, place, self.progress)
        )

    def _trial(
        self, name: str, kind: Ablation, measurement: Measurement, folder: pathlib.Path
    ) -> Trial:
        def progress(phase: str, *figures: Any) -> None:
            self.progress(f"{kind.words}: {phase}", *figures)

        epochs = self.ablation.ablation_epochs or self.training.epochs
        return Trial(
            records=self.records,
            model=self.model,
            config=dataclasses.replace(comparable(self.training), epochs=epochs, **kind.overrides),
            seed=self.seed,
            measurement=dataclasses.replace(measurement, progress=progress),
            folder=folder / name,
            progress=progress,
        )


def read_ablations(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what `AblationStudy.run` left in `folder`.

    Raises:
        SfmError: If the file is missing or damaged.
    """
    return read_json(folder / ABLATIONS_FILE)
