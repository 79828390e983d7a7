"""One training of classifier and masker, scored: a trial of a tuning, or an ablation."""

import contextlib
import dataclasses
import fcntl
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import Progress
from sfm_tf.evaluation.metrics import summarise
from sfm_tf.evaluation.results import DEFENDED, UNDEFENDED
from sfm_tf.evaluation.runner import evaluate
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.imported_model import load_classifier
from sfm_tf.models.settings import ModelConfig
from sfm_tf.training import model_files
from sfm_tf.training.checkpoints import History, best_epoch
from sfm_tf.training.losses import measure_ratios
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.training import Workplace
from sfm_tf.training.training_loop import Progress as TrainingProgress
from sfm_tf.training.training_loop import defence_plan, describe_collapse, source_plan

_BLACK_BOX = "black_box"
_GRAY_BOX = "gray_box"
_ATTACK = "pgd"

SHARED_SETTINGS = ("epsilons", "iterations", "step_size", "gradient_samples", "attack_batch_size")
"""Settings of an evaluation that a measurement takes over."""


def measurement_settings(evaluation: EvaluationConfig, *, gray_box: bool) -> EvaluationConfig:
    """Returns the settings of PGD at the smallest radius of an evaluation (section 6.2).

    That is 8/255 in the L-infinity norm, as in Yu et al. 2022, unless the experiment has other
    radii.

    Args:
        evaluation: The experiment's own settings; what they say beside radii, steps and batches is
            left out, so that it changes no measurement.
        gray_box: Whether the gray box is measured too.
    """
    shared = {name: getattr(evaluation, name) for name in SHARED_SETTINGS}
    shared["epsilons"] = (min(evaluation.epsilons),)
    threat_models = (_BLACK_BOX, _GRAY_BOX) if gray_box else (_BLACK_BOX,)
    return EvaluationConfig(
        num_examples=0, attacks=(_ATTACK,), threat_models=threat_models, **shared
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """The images and attacks that are the same for all trainings that are compared.

    Attributes:
        source: Independent model that the black box starts from.
        images: Validation images, float32 in [0, 1], `(count, height, width, channels)`.
        labels: Their class indices, `(count,)`.
        config: What `measurement_settings` returned.
        seed: Seed of the attacks.
        folder: Where the images of the black box are kept, made once for all.
        progress: Told of each batch.
    """

    source: keras.Model
    images: np.ndarray
    labels: np.ndarray
    config: EvaluationConfig
    seed: int
    folder: pathlib.Path
    progress: Progress

    def source_scores(self) -> dict[str, float]:
        """Makes the images of the black box; returns how the source model itself fares on them.

        Returns:
            Accuracies `clean` and `attacked`. Where the second is high, the radius is too small for
            the black box to tell models apart.
        """
        model = DefendedModel(self.source)
        clean, attacked = self._accuracies(UNDEFENDED, model, _BLACK_BOX, self.folder)
        return {"clean": clean, "attacked": attacked}

    def scores(self, defended: DefendedModel, folder: pathlib.Path) -> dict[str, Any]:
        """Returns what a trained model is worth.

        Args:
            defended: Classifier behind masker and pre-processing T.
            folder: Where the images are kept that are made for this model alone.

        Returns:
            Accuracies `clean`, `black_box` and `gray_box`, the last one None where it is not asked
            for; `examples`, the number of images; and `epsilon`, the radius in 1/255.
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
        evaluation = evaluate(
            {name: model},
            self.source if threat_model == _BLACK_BOX else None,
            self.images,
            self.labels,
            dataclasses.replace(self.config, threat_models=(threat_model,)),
            self.seed,
            folder,
            self.progress,
        )
        metrics = summarise(evaluation.results)
        (clean,), (attacked,) = metrics.clean, metrics.under_attack
        return clean.accuracy, attacked.accuracy


_LOCK = ".lock"


@contextlib.contextmanager
def waiting_turn(folder: pathlib.Path) -> Iterator[None]:
    """Lets one process after the other do what belongs into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def source_model(workplace: Workplace) -> keras.Model:
    """Returns the source model in the workplace's folder, trained now or earlier.

    Args:
        workplace: Where it is trained; an interrupted training is gone on with.

    Returns:
        Model from float32 images in [0, 1] to float32 logits.

    Raises:
        SfmError: If the model was left by another program, or its loss became no number.
    """
    blueprint = workplace.blueprint
    path = workplace.folder / model_files.SOURCE_FILE
    if not path.exists():
        trained, _ = workplace.train(
            "source", blueprint.source, source_plan(workplace.config), blueprint.seeds.source_order
        )
        model_files.save_model(path, trained.classifier)
        shutil.rmtree(workplace.folder / model_files.CHECKPOINT_FOLDER, ignore_errors=True)
    schema = blueprint.schema
    return load_classifier(path, schema.image_shape, len(schema.class_names))


TRIAL_FILE = "trial.json"
_ADVERSARIAL_FOLDER = "adversarial"

WEIGHTS = ("sparsity_weight", "semantic_weight", "reconstruction_weight")
"""Fields of `TrainingConfig`: w1, w2 and w3 of Eq. 2."""

_NOT_MEASURED = dict.fromkeys(
    ("clean", "black_box", "gray_box", "examples", "epsilon", "mask_mean", "mask_spread")
)


def comparable(config: TrainingConfig) -> TrainingConfig:
    """Returns the settings as if nobody had asked for training on adversarial images.

    Trials do not read those settings, so they are not to tell one trial from another.
    """
    unread = [
        field
        for field in dataclasses.fields(config)
        if field.name.startswith(("adversarial_", "trades_"))
    ]
    return dataclasses.replace(config, **{field.name: field.default for field in unread})


def resumed_trial(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns what an earlier call of `Trial.run` in this folder returned, None if none ended."""
    path = folder / TRIAL_FILE
    return read_json(path) if path.exists() else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One training to be done and scored.

    Attributes:
        records: Folder that `datasets.ingestion` wrote.
        model: Architectures and pre-processing.
        config: How they are trained.
        seed: Seed of the training.
        measurement: What it is scored on.
        folder: Folder of its own; what an interrupted run left there is gone on from.
        progress: Told of each step.
    """

    records: pathlib.Path
    model: ModelConfig
    config: TrainingConfig
    seed: int
    measurement: Measurement
    folder: pathlib.Path
    progress: TrainingProgress

    def run(self, *, keep_models: bool = False) -> dict[str, Any]:
        """Trains and scores, or returns what an earlier run found.

        Writes `trial.json`, `history.json` and TensorBoard logs; `keep_models` leaves the files of
        `model_files.save_models` besides. Checkpoints are there only until it has ended.

        Returns:
            Weights, `epochs` and `rho`, the ratio of `losses.sparsity_ratio` (None where w3 is 0);
            what `Measurement.scores` returns; `mask_mean` and `mask_spread` on all validation
            images; `collapse`, the warning if the mask learnt nothing, else empty; `failure`, why
            the training broke off, else empty, with None for all that was then not measured; and
            the `seconds` since the last interruption.

        Raises:
            SfmError: If the records are damaged, or the trained model cannot be attacked.
        """
        earlier = resumed_trial(self.folder)
        if earlier is not None:
            return earlier
        start = time.monotonic()
        workplace = Workplace.open(
            self.records, self.model, self.config, self.seed, self.folder, self.progress
        )
        ratios = measure_ratios(self.config, workplace.training.images)
        result = {
            **{name: getattr(self.config, name) for name in WEIGHTS},
            "rho": ratios.sparsity_ratio,
            "epochs": self.config.epochs,
            **self._train_and_score(workplace, ratios.first_share, keep_models),
        }
        result["seconds"] = round(time.monotonic() - start, 3)
        write_json(self.folder / TRIAL_FILE, result)
        for name in (model_files.CHECKPOINT_FOLDER, _ADVERSARIAL_FOLDER):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return result

    def _train_and_score(
        self, workplace: Workplace, first_share: float, keep_models: bool
    ) -> dict[str, Any]:
        blueprint, plan = workplace.blueprint, defence_plan(self.config, first_share)
        try:
            defended, history = workplace.train(
                "defence", blueprint.defended, plan, blueprint.seeds.order
            )
        except SfmError as error:
            # Weights that let a loss overflow are an answer, too, and no reason to stop the others.
            return {**_NOT_MEASURED, "collapse": "", "failure": str(error)}
        scores = self.measurement.scores(defended, self.folder / _ADVERSARIAL_FOLDER)
        self._keep(defended, history, blueprint.schema.class_names, keep_models)
        kept = best_epoch(history) if self.config.kept_epoch == "best" else -1
        return {**scores, **self._mask(history[kept]["validation"]), "failure": ""}

    def _mask(self, validation: Mapping[str, float]) -> dict[str, Any]:
        """Returns what the mask is like, from the figures of the epoch whose models are scored."""
        return {
            "mask_mean": validation["mask_mean"],
            "mask_spread": validation["mask_spread"],
            "collapse": describe_collapse(validation, self.config.semantic_loss),
        }

    def _keep(
        self,
        defended: DefendedModel,
        history: History,
        class_names: tuple[str, ...],
        keep_models: bool,
    ) -> None:
        write_json(self.folder / model_files.HISTORY_FILE, {"defence": history})
        if keep_models:
            model_files.save_models(self.folder, defended, self.measurement.source, class_names)
