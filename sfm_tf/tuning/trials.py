"""One training of classifier and masker with its scores: a trial of a tuning, or an ablation."""

import contextlib
import dataclasses
import fcntl
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.artifacts.progress import Progress
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.job import EvaluationJob
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.results import DEFENDED, UNDEFENDED
from sfm_tf.evaluation.runner import run_evaluation
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.imported_model import load_classifier
from sfm_tf.models.settings import ModelConfig
from sfm_tf.training import model_files
from sfm_tf.training.losses import measure_ratios
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.training import TrainingSession, collapse_warning, kept_validation
from sfm_tf.training.training_loop import defence_schedule, source_schedule
from sfm_tf.tuning.settings import SHARED_SETTINGS, WEIGHTS

_BLACK_BOX = "black_box"
_GRAY_BOX = "gray_box"
_ATTACK = "pgd"
_TRIAL_FILE = "trial.json"
_ADVERSARIAL_FOLDER = "adversarial"
_LOCK = ".lock"
_NOT_MEASURED = dict.fromkeys(
    ("clean", "black_box", "gray_box", "examples", "epsilon", "mask_mean", "mask_spread")
)


def scoring_settings(evaluation: EvaluationConfig, *, gray_box: bool) -> EvaluationConfig:
    """Returns the settings of PGD at the smallest radius of an evaluation (section 6.2).

    As in Yu et al. 2022 that is 8/255 in the L-infinity norm, unless the experiment has other
    radii.

    Args:
        evaluation: The experiment's own settings. Only radii, steps and batches are taken from it,
            so that its other settings do not change the scores.
        gray_box: Whether the gray box is measured too.
    """
    shared = {name: getattr(evaluation, name) for name in SHARED_SETTINGS}
    shared["epsilons"] = (min(evaluation.epsilons),)
    threat_models = (_BLACK_BOX, _GRAY_BOX) if gray_box else (_BLACK_BOX,)
    return EvaluationConfig(
        num_examples=0, attacks=(_ATTACK,), threat_models=threat_models, **shared
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """The images and attacks with which all compared trainings are scored.

    Attributes:
        source: Independent model that the black-box attack uses.
        images: Validation images, float32 in [0, 1], `(count, height, width, channels)`.
        labels: Their class indices, `(count,)`.
        config: Result of `scoring_settings`.
        seed: Seed of the attacks.
        folder: Folder of the black-box images, which are made once for all trainings.
        progress: Called after each batch.
    """

    source: keras.Model
    images: np.ndarray
    labels: np.ndarray
    config: EvaluationConfig
    seed: int
    folder: pathlib.Path
    progress: Progress

    def source_scores(self) -> dict[str, float]:
        """Makes the black-box images; returns the accuracies of the source model itself.

        Returns:
            Accuracies `clean` and `attacked`. If the second is high, the radius is too small for
            the black box to tell models apart.
        """
        model = DefendedModel(self.source)
        clean, attacked = self._accuracies(UNDEFENDED, model, _BLACK_BOX, self.folder)
        return {"clean": clean, "attacked": attacked}

    def scores(self, defended: DefendedModel, folder: pathlib.Path) -> dict[str, Any]:
        """Returns the accuracies of a trained model.

        Args:
            defended: Classifier behind masker and pre-processing T.
            folder: Folder of the adversarial images that are made for this model alone.

        Returns:
            Accuracies `clean`, `black_box` and `gray_box`, the last one None where it is not
            measured; `examples`, the number of images; and `epsilon`, the radius in 1/255.
        """
        clean, black_box = self._accuracies(DEFENDED, defended, _BLACK_BOX, self.folder)
        gray_box = None
        if _GRAY_BOX in self.config.threat_models:
            _, gray_box = self._accuracies(DEFENDED, defended, _GRAY_BOX, folder)
        return {
            "clean": clean,
            "black_box": black_box,
            "gray_box": gray_box,
            "examples": len(self.labels),
            "epsilon": self.config.epsilons[0],
        }

    def _accuracies(
        self, name: str, model: DefendedModel, threat_model: str, folder: pathlib.Path
    ) -> tuple[float, float]:
        """Returns the accuracy on clean images, and on those of one threat model."""
        job = EvaluationJob(
            models={name: model},
            source=self.source if threat_model == _BLACK_BOX else None,
            samples=check_samples(self.images, self.labels, model.classifier),
            config=dataclasses.replace(self.config, threat_models=(threat_model,)),
            seed=self.seed,
            store=AdversarialStore(folder),
            progress=self.progress,
        )
        metrics = summarise(run_evaluation(job).results)
        (clean,), (attacked,) = metrics.clean, metrics.under_attack
        return clean.accuracy, attacked.accuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One training that is then scored.

    Attributes:
        records: Folder that `datasets.ingestion` wrote.
        model: Architectures and pre-processing.
        config: How they are trained.
        seed: Seed of the training.
        scorer: Scores the trained model.
        folder: Folder of this trial alone; an interrupted run is continued there.
        progress: Called after each step.
    """

    records: pathlib.Path
    model: ModelConfig
    config: TrainingConfig
    seed: int
    scorer: Scorer
    folder: pathlib.Path
    progress: Progress

    def run(self, *, keep_models: bool = False) -> dict[str, Any]:
        """Trains and scores, or returns the result of an earlier run.

        Writes `trial.json`, `history.json` and TensorBoard logs; `keep_models` keeps the files of
        `model_files.save_models` too. Checkpoints are deleted at the end.

        Returns:
            Weights, `epochs` and `rho`, the ratio of `losses.sparsity_ratio` (None where w3 is 0);
            the result of `Scorer.scores`; `mask_mean` and `mask_spread` on all validation images;
            `collapse`, the warning if the mask collapsed, else empty; `failure`, the error of the
            training, else empty, with None for all that could then not be measured; and the
            `seconds` since the last interruption.

        Raises:
            SfmError: If the records are damaged, or the trained model cannot be attacked.
        """
        earlier = read_trial(self.folder)
        if earlier is not None:
            return earlier
        start = time.monotonic()
        session = TrainingSession.open(
            self.records, self.model, self.config, self.seed, self.folder, self.progress
        )
        ratios = measure_ratios(self.config, session.training.images)
        result = {
            **{name: getattr(self.config, name) for name in WEIGHTS},
            "rho": ratios.sparsity_ratio,
            "epochs": self.config.epochs,
            **self._train_and_score(session, ratios.first_share, keep_models),
        }
        result["seconds"] = round(time.monotonic() - start, 3)
        write_json(self.folder / _TRIAL_FILE, result)
        for name in (model_files.CHECKPOINT_FOLDER, _ADVERSARIAL_FOLDER):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return result

    def _train_and_score(
        self, session: TrainingSession, first_share: float, keep_models: bool
    ) -> dict[str, Any]:
        factory, schedule = session.factory, defence_schedule(self.config, first_share)
        try:
            defended, history = session.train(
                "defence", factory.defended, schedule, factory.seeds.order
            )
        except SfmError as error:
            # Weights with which a loss overflows are a result too; the other trials continue.
            return {**_NOT_MEASURED, "collapse": "", "failure": str(error)}
        scores = self.scorer.scores(defended, self.folder / _ADVERSARIAL_FOLDER)
        write_json(self.folder / model_files.HISTORY_FILE, {"defence": history})
        if keep_models:
            class_names = factory.schema.class_names
            model_files.save_models(self.folder, defended, self.scorer.source, class_names)
        validation = kept_validation(history, self.config)
        return {
            **scores,
            "mask_mean": validation["mask_mean"],
            "mask_spread": validation["mask_spread"],
            "collapse": collapse_warning(history, self.config),
            "failure": "",
        }


def read_trial(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the result that `Trial.run` left in this folder; None if it has not finished."""
    path = folder / _TRIAL_FILE
    return read_json(path) if path.exists() else None


def without_adversarial_settings(config: TrainingConfig) -> TrainingConfig:
    """Returns the settings with those of adversarial training at their defaults.

    Trials do not read these settings, so trials that differ in them only are the same trial.
    """
    unread = [
        field
        for field in dataclasses.fields(config)
        if field.name.startswith(("adversarial_", "trades_"))
    ]
    return dataclasses.replace(config, **{field.name: field.default for field in unread})


def train_source_model(session: TrainingSession) -> keras.Model:
    """Returns the source model in the session's folder, trained now or earlier.

    Args:
        session: Session that trains it; an interrupted training is continued.

    Returns:
        Model from float32 images in [0, 1] to float32 logits.

    Raises:
        SfmError: If the file of the model is damaged, or its loss is not finite.
    """
    factory, path = session.factory, session.folder / model_files.SOURCE_FILE
    if not path.exists():
        schedule = source_schedule(session.config)
        trained, _ = session.train("source", factory.source, schedule, factory.seeds.source_order)
        model_files.save_model(path, trained.classifier)
        shutil.rmtree(session.folder / model_files.CHECKPOINT_FOLDER, ignore_errors=True)
    return load_classifier(path, factory.schema.image_shape, len(factory.schema.class_names))


def with_prefix(progress: Callable[..., None], prefix: str) -> Callable[..., None]:
    """Returns a progress function that puts the name of a trial before each phase."""
    return lambda phase, *figures: progress(f"{prefix}: {phase}", *figures)


@contextlib.contextmanager
def exclusive_lock(folder: pathlib.Path) -> Iterator[None]:
    """Makes `folder` and lets only one process at a time work in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
