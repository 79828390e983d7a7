"""From records to a defended model and the model that attacks it: the work of the train stage."""

import dataclasses
import pathlib

from absl import logging

from sfm_tf.artifacts import atomic_files
from sfm_tf.config import ModelConfig
from sfm_tf.training import model_files
from sfm_tf.training.checkpoints import History, best_epoch
from sfm_tf.training.mask_collapse import describe_collapse
from sfm_tf.training.plan import defence_plan, source_plan
from sfm_tf.training.step_watch import Progress
from sfm_tf.training.timing import defence_timing, split_seconds
from sfm_tf.training.weight_ratios import WeightRatios, measure_ratios
from sfm_tf.training.workplace import Workplace
from sfm_tf.training_config import TrainingConfig, TrainingExecutionConfig


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What training came to.

    Attributes:
        history: For `defence` and `source`, per epoch its `stage` and the metrics of `training`
            and `validation`.
        validation: Metrics of the defended model that was kept on the validation images.
        warning: Says what to change if its mask collapsed; else empty.
    """

    history: dict[str, History]
    validation: dict[str, float]
    warning: str


def train_defence(
    records: pathlib.Path,
    model_config: ModelConfig,
    config: TrainingConfig,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
    execution: TrainingExecutionConfig | None = None,
) -> TrainingResult:
    """Trains classifier and masker by Algorithm 1, and an independent source model.

    Writes into `folder` the models (`classifier.keras`, `masker.keras`, `source.keras`), always in
    float32; `defence.json`, what `loading` needs beside them; `history.json`; `loss_weights.json`,
    the weights of Eq. 2 with their ratios; `timing.json`, the seconds that each part took;
    checkpoints; and TensorBoard logs. Called again with the same arguments after an interruption it
    goes on after the last checkpoint, to the same weights.

    Args:
        records: Folder that `datasets.ingestion` wrote; its training images are held in memory.
        model_config: Architectures and pre-processing.
        config: How they are trained.
        seed: Seed of initial weights, order and augmentation.
        folder: Folder to write into, made if it does not exist. Of several workers the first writes
            and all read.
        progress: Is told of each step.
        execution: Where training runs, and what it keeps and shows; None for the defaults.

    Returns:
        The history, and a warning if the mask collapsed.

    Raises:
        SfmError: If the records are damaged, the settings do not fit them, the devices or the
            checkpoints in `folder`, or a loss is no number.
    """
    workplace = Workplace.open(records, model_config, config, seed, folder, progress, execution)
    blueprint, seeds = workplace.blueprint, workplace.blueprint.seeds
    ratios = measure_ratios(config, workplace.training.images)
    if warning := ratios.warning():
        logging.warning(warning)
    defended, defence_history = workplace.train(
        "defence", blueprint.defended, defence_plan(config, ratios.first_share), seeds.order
    )
    source, source_history = workplace.train(
        "source", blueprint.source, source_plan(config), seeds.source_order
    )
    history = {"defence": defence_history, "source": source_history}
    if workplace.is_writer:
        model_files.save_models(folder, defended, source.classifier, blueprint.schema.class_names)
        _write_figures(folder, history, ratios)
    kept = best_epoch(defence_history) if config.kept_epoch == "best" else -1
    validation = defence_history[kept]["validation"]
    lasting = {name: split_seconds(epochs)[0] for name, epochs in history.items()}
    return TrainingResult(lasting, validation, describe_collapse(validation, config.semantic_loss))


def _write_figures(folder: pathlib.Path, history: dict[str, History], ratios: WeightRatios) -> None:
    """Writes what there is to say of a training beside its models."""
    lasting, seconds = {}, {}
    for name, epochs in history.items():
        lasting[name], seconds[name] = split_seconds(epochs)
    atomic_files.write_json(folder / model_files.HISTORY_FILE, lasting)
    timing = defence_timing(seconds["defence"], seconds["source"])
    atomic_files.write_json(folder / model_files.TIMING_FILE, timing)
    atomic_files.write_json(folder / model_files.LOSS_WEIGHTS_FILE, dataclasses.asdict(ratios))
