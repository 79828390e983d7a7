"""One training of classifier and masker, scored: a trial of a tuning, or an ablation."""

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.config import ModelConfig
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training import model_files
from sfm_tf.training.checkpoints import History, best_epoch
from sfm_tf.training.mask_collapse import describe_collapse
from sfm_tf.training.plan import defence_plan
from sfm_tf.training.step_watch import Progress
from sfm_tf.training.weight_ratios import measure_ratios
from sfm_tf.training.workplace import Workplace
from sfm_tf.training_config import TrainingConfig
from sfm_tf.tuning.measurement import Measurement

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
    progress: Progress

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
