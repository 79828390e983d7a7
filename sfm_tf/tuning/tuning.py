"""The search for the weights of the masker's loss: the work of the tune stage."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.artifacts.fingerprints import code_version, config_values, fingerprint, package_versions
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.settings import ModelConfig
from sfm_tf.records.tfrecords import load_split
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.training import TrainingSession
from sfm_tf.tuning import trials
from sfm_tf.tuning.best import BEST_FILE, TRIALS_FILE, choose_best
from sfm_tf.tuning.search import Hyperparameters, Role, search
from sfm_tf.tuning.settings import WEIGHTS, TuningConfig

_SOURCE_FILE = "source_scores.json"
_NAME_LENGTH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """A search and what its trials share.

    Attributes:
        records: Folder that `datasets.ingestion` wrote.
        records_digest: Digest that identifies these records.
        model: Architectures and pre-processing.
        training: How a trial is trained, apart from what it tries.
        tuning: What is tried.
        scoring: Result of `scoring_settings`.
        seed: Seed of the trainings, the attacks and the search.
        store: Folder of trials that all tunings of a working directory share. A trial that one of
            them finished is not run again, and the processes of one search find it there.
        progress: Called after each step of trainings and attacks.
    """

    records: pathlib.Path
    records_digest: str
    model: ModelConfig
    training: TrainingConfig
    tuning: TuningConfig
    scoring: EvaluationConfig
    seed: int
    store: pathlib.Path
    progress: Callable[..., None]

    def run(self, role: Role) -> list[Hyperparameters]:
        """Runs the trials, or a worker's part of them; the chief hands them out instead.

        Returns:
            What was tried; nothing for a worker.

        Raises:
            SfmError: If records are damaged, or chief and workers do not find each other.
        """
        scorer = None if role is Role.CHIEF else self._scorer()
        epochs = self.tuning.trial_epochs or self.training.epochs
        return search(
            self.tuning, epochs, self.seed, role, lambda tried: self._trial(tried, scorer).run()
        )

    def write(self, tried: list[Hyperparameters], folder: pathlib.Path) -> dict[str, Any]:
        """Writes `trials.json`, all trials, and `best.json`, the best one.

        Args:
            tried: Result of `run`.
            folder: Folder to write into.

        Returns:
            The result of `choose_best`.

        Raises:
            SfmError: If every trial failed, or workers left them in another folder.
        """
        found = [self._result(hyperparameters) for hyperparameters in tried]
        source = read_json(self._folder(self._source_config) / _SOURCE_FILE)
        write_json(folder / TRIALS_FILE, {"source": source, "trials": found})
        best = choose_best(found)
        write_json(folder / BEST_FILE, best)
        return best

    def _result(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        folder = self._folder(self._config(hyperparameters))
        found = trials.read_trial(folder)
        if found is None:
            raise SfmError(
                f"No worker wrote its trial into {folder}. Start all workers again with the "
                "chief's --workdir, flags and code; give --mixed_precision if their devices differ."
            )
        return found

    def _scorer(self) -> trials.Scorer:
        """Trains and attacks the source model; returns what scores the trials."""
        folder = self._folder(self._source_config)
        with trials.exclusive_lock(folder):
            session = TrainingSession.open(
                self.records, self.model, self._source_config, self.seed, folder, self.progress
            )
            schema, count = session.factory.schema, self.tuning.tuning_examples
            images, labels = load_split(self.records, "validation", schema, count)
            scorer = trials.Scorer(
                source=trials.train_source_model(session),
                images=images,
                labels=labels,
                config=self.scoring,
                seed=self.seed,
                folder=folder / "adversarial",
                progress=self.progress,
            )
            if not (folder / _SOURCE_FILE).exists():
                write_json(folder / _SOURCE_FILE, scorer.source_scores())
        return scorer

    def _trial(self, hyperparameters: Hyperparameters, scorer: trials.Scorer) -> trials.Trial:
        weights = hyperparameters.weights.items()
        name = ", ".join(f"{field.removesuffix('_weight')} {value:g}" for field, value in weights)
        progress = trials.with_prefix(self.progress, name)
        config = self._config(hyperparameters)
        return trials.Trial(
            records=self.records,
            model=self.model,
            config=config,
            seed=self.seed,
            scorer=dataclasses.replace(scorer, progress=progress),
            folder=self._folder(config),
            progress=progress,
        )

    def _config(self, tried: Hyperparameters) -> TrainingConfig:
        # Hyperband's longer trials start again, since the learning rate depends on the epochs.
        config = trials.without_adversarial_settings(self.training)
        return dataclasses.replace(config, **tried.weights, epochs=tried.epochs)

    @property
    def _source_config(self) -> TrainingConfig:
        """The settings, with defaults for those that a model without a masker does not read."""
        defaults = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
        unread = {name: defaults[name] for name in (*WEIGHTS, "epochs")}
        return dataclasses.replace(trials.without_adversarial_settings(self.training), **unread)

    def _folder(self, config: TrainingConfig) -> pathlib.Path:
        """Returns the folder of a training, named by everything that its scores depend on."""
        name = fingerprint({**self._shared, "training": config_values(config)})
        return self.store / name[:_NAME_LENGTH]

    @functools.cached_property
    def _shared(self) -> dict[str, Any]:
        """What all trials of the search depend on; the code is that at the start of the search."""
        return {
            "records": self.records_digest,
            "model": config_values(self.model),
            "scoring": config_values(self.scoring),
            "examples": self.tuning.tuning_examples,
            "seed": self.seed,
            "code": code_version(trials.__name__),
            "packages": package_versions(),
        }
