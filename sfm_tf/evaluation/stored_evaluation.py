"""An evaluation on disk: the work of the evaluate stage, and the names of the files it leaves."""

import pathlib

import keras
import numpy as np

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation import blessing, metrics, results, runner
from sfm_tf.models.defended_model import DefendedModel

ADVERSARIAL_FOLDER = "adversarial"
METRICS_FILE = "metrics.json"
RESULTS_FILE = "results.parquet"


def write_evaluation(
    defended: DefendedModel,
    source: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    config: EvaluationConfig,
    seed: int,
    folder: pathlib.Path,
    progress: runner.Progress,
) -> blessing.Blessing:
    """Evaluates a model beside its own bare classifier and writes all there is to say about it.

    Args:
        defended: Classifier behind masker and pre-processing.
        source: Independent model that black-box attacks start from.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`.
        labels: Class indices of shape `(count,)`.
        config: Attacks, threat models, radii and the thresholds of the blessing.
        seed: Seed of the attacks.
        folder: Existing folder; adversarial images that an interrupted call left in it are used.
        progress: Told of each attack.

    Returns:
        The verdict, which is also written.
    """
    table = runner.evaluate(
        defended,
        DefendedModel(defended.classifier),
        source,
        images,
        labels,
        config,
        seed,
        folder / ADVERSARIAL_FOLDER,
        progress,
    )
    summary = metrics.summarise(table)
    verdict = blessing.decide(summary, config)
    results.write_results(folder / RESULTS_FILE, table)
    write_json(folder / METRICS_FILE, summary)
    blessing.write_blessing(folder, verdict)
    return verdict


def evaluation_settings(evaluation: Artifact) -> EvaluationConfig:
    """Returns the settings that an evaluation ran with."""
    values = evaluation.manifest.config["evaluation"]
    lists_as_tuples = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return EvaluationConfig(**lists_as_tuples)
