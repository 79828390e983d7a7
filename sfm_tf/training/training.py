"""From records to a defended model and the model that attacks it: the work of the train stage."""

import dataclasses
import pathlib

from absl import logging

from sfm_tf.artifacts import atomic_files
from sfm_tf.config import ModelConfig, TrainingConfig
from sfm_tf.records.schema import Schema
from sfm_tf.training import model_files
from sfm_tf.training.checkpoints import History
from sfm_tf.training.losses import LossWeights, sparsity_ratio
from sfm_tf.training.mask_collapse import describe_collapse
from sfm_tf.training.plan import defence_plan, source_plan
from sfm_tf.training.step_watch import Progress
from sfm_tf.training.timing import defence_timing, split_seconds
from sfm_tf.training.workplace import Workplace


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What training came to.

    Attributes:
        history: For `defence` and `source`, per epoch its `stage` and the metrics of `training`
            and `validation`.
        warning: Says what to change if the mask collapsed; else empty.
    """

    history: dict[str, History]
    warning: str

    @property
    def validation(self) -> dict[str, float]:
        """Metrics of the defended model on the validation images after the last epoch."""
        return self.history["defence"][-1]["validation"]


def train_defence(
    records: pathlib.Path,
    model_config: ModelConfig,
    config: TrainingConfig,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
) -> TrainingResult:
    """Trains classifier and masker by Algorithm 1, and an independent source model.

    Writes into `folder` the models (`classifier.keras`, `masker.keras`, `source.keras`), always in
    float32; `defence.json`, what `loading` needs beside them; `history.json`; `timing.json`, the
    seconds that each part took; checkpoints after each epoch; and TensorBoard logs. Called again
    with the same arguments after an interruption it goes on after the last epoch that was finished.

    Args:
        records: Folder that `datasets.ingestion` wrote; its training images are held in memory.
        model_config: Architectures and pre-processing.
        config: How they are trained.
        seed: Seed of initial weights, order and augmentation.
        folder: Folder to write into, made if it does not exist.
        progress: Is told of each step.

    Returns:
        The history, and a warning if the mask collapsed.

    Raises:
        SfmError: If the records are damaged, the settings do not fit them or the checkpoints in
            `folder`, or a loss is no number.
    """
    workplace = Workplace.open(records, model_config, config, seed, folder, progress)
    blueprint = workplace.blueprint
    seeds = blueprint.seeds
    _warn_of_ones(config, blueprint.schema)
    defended, defence_history = workplace.train(
        "defence", blueprint.defended, defence_plan(config), seeds.order
    )
    source, source_history = workplace.train(
        "source", blueprint.source, source_plan(config), seeds.source_order
    )
    defence_history, defence_seconds = split_seconds(defence_history)
    source_history, source_seconds = split_seconds(source_history)
    history = {"defence": defence_history, "source": source_history}
    model_files.save_models(folder, defended, source.classifier, blueprint.schema.class_names)
    atomic_files.write_json(folder / model_files.HISTORY_FILE, history)
    timing = defence_timing(defence_seconds, source_seconds)
    atomic_files.write_json(folder / model_files.TIMING_FILE, timing)
    return TrainingResult(history, describe_collapse(defence_history[-1]["validation"]))


def _warn_of_ones(config: TrainingConfig, schema: Schema) -> None:
    weights = LossWeights(
        config.sparsity_weight, config.semantic_weight, config.reconstruction_weight
    )
    ratio = sparsity_ratio(weights, schema.image_shape, config.loss_reduction, config.batch_size)
    if ratio <= 1.0:
        logging.warning(
            "sparsity_weight %g is %.2f of the least at which the loss is not smallest for a mask "
            "of ones; raise it or lower reconstruction_weight.",
            config.sparsity_weight,
            ratio,
        )
