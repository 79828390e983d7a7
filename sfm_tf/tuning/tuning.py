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
from sfm_tf.training.training import Workplace
from sfm_tf.tuning import trials as trials
from sfm_tf.tuning.best import BEST_FILE, TRIALS_FILE, choose_best
from sfm_tf.tuning.search import Assignment, Role, search
from sfm_tf.tuning.settings import TuningConfig
from sfm_tf.tuning.trials import Measurement, Trial, source_model, waiting_turn

_SOURCE_FILE = "source_scores.json"
_NAME_LENGTH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """A search and what its trials share.

    Attributes:
        records: Folder that `datasets.ingestion` wrote.
        records_digest: Tells these records from others.
        model: Architectures and pre-processing.
        training: How a trial is trained, but for what it tries.
        tuning: What is tried.
        scoring: What `measurement_settings` returned.
        seed: Seed of the trainings, the attacks and the search.
        store: Folder of trials that all tunings of a working directory share: a trial that any of
            them finished is not done again, and the processes of one search find it there.
        progress: Told of each step of trainings and attacks.
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

    def run(self, role: Role) -> list[Assignment]:
        """Does all trials, or those that the chief hands out, or as the chief hands them out.

        Returns:
            What was tried; nothing for a worker.

        Raises:
            SfmError: If records are damaged, or chief and workers do not find each other.
        """
        measurement = None if role is Role.CHIEF else self._measurement()

        def run(assignment: Assignment) -> dict[str, Any]:
            return self._trial(assignment, measurement).run()

        epochs = self.tuning.trial_epochs or self.training.epochs
        return search(self.tuning, epochs, self.seed, role, run)

    def write(self, assignments: list[Assignment], folder: pathlib.Path) -> dict[str, Any]:
        """Writes `trials.json`, all that was tried, and `best.json`, what won.

        Args:
            assignments: What `run` returned.
            folder: Where to.

        Returns:
            What `choose_best` returned.

        Raises:
            SfmError: If every trial failed, or workers left them elsewhere.
        """
        found = [self._found(assignment) for assignment in assignments]
        source = read_json(self._folder(self._source_config) / _SOURCE_FILE)
        write_json(folder / TRIALS_FILE, {"source": source, "trials": found})
        best = choose_best(found)
        write_json(folder / BEST_FILE, best)
        return best

    def _found(self, assignment: Assignment) -> dict[str, Any]:
        folder = self._folder(self._config(assignment))
        found = trials.resumed_trial(folder)
        if found is None:
            raise SfmError(
                f"No worker wrote its trial into {folder}. Start all workers again with the "
                "chief's --workdir, flags and code; give --mixed_precision if their devices differ."
            )
        return found

    def _measurement(self) -> Measurement:
        """Returns what trials are scored on, the source model trained and attacked."""
        folder = self._folder(self._source_config)
        with waiting_turn(folder):
            workplace = Workplace.open(
                self.records, self.model, self._source_config, self.seed, folder, self.progress
            )
            schema, count = workplace.blueprint.schema, self.tuning.tuning_examples
            images, labels = load_split(self.records, "validation", schema, count)
            measurement = Measurement(
                source=source_model(workplace),
                images=images,
                labels=labels,
                config=self.scoring,
                seed=self.seed,
                folder=folder / "adversarial",
                progress=self.progress,
            )
            if not (folder / _SOURCE_FILE).exists():
                write_json(folder / _SOURCE_FILE, measurement.source_scores())
        return measurement

    def _trial(self, assignment: Assignment, measurement: Measurement) -> Trial:
        words = ", ".join(f"{name[:-7]} {value:g}" for name, value in assignment.weights.items())

        def progress(phase: str, *figures: Any) -> None:
            self.progress(f"{words}: {phase}", *figures)

        config = self._config(assignment)
        return Trial(
            records=self.records,
            model=self.model,
            config=config,
            seed=self.seed,
            measurement=dataclasses.replace(measurement, progress=progress),
            folder=self._folder(config),
            progress=progress,
        )

    def _config(self, assignment: Assignment) -> TrainingConfig:
        # Hyperband's longer trials begin anew, for the learning rate follows the number of epochs.
        config = trials.comparable(self.training)
        return dataclasses.replace(config, **assignment.weights, epochs=assignment.epochs)

    @property
    def _source_config(self) -> TrainingConfig:
        """The settings with those reset that make no difference to a model without a masker."""
        defaults = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
        unread = {name: defaults[name] for name in (*trials.WEIGHTS, "epochs")}
        return dataclasses.replace(trials.comparable(self.training), **unread)

    def _folder(self, config: TrainingConfig) -> pathlib.Path:
        """Returns the folder of a training, named by everything that its scores depend on."""
        name = fingerprint({**self._shared, "training": config_values(config)})
        return self.store / name[:_NAME_LENGTH]

    @functools.cached_property
    def _shared(self) -> dict[str, Any]:
        """What all trials of the search depend on, the code as it was when it began."""
        return {
            "records": self.records_digest,
            "model": config_values(self.model),
            "scoring": config_values(self.scoring),
            "examples": self.tuning.tuning_examples,
            "seed": self.seed,
            "code": code_version(trials.__name__),
            "packages": package_versions(),
        }
