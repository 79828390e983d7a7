"""Gathers what a report shows from the artifacts of the earlier stages."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.config import EvaluationConfig, ReportConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.blessing import read_blessing
from sfm_tf.evaluation.stored_evaluation import (
    ADVERSARIAL_FOLDER,
    METRICS_FILE,
    evaluation_settings,
)
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.records.reading import load_split
from sfm_tf.records.schema import read_schema
from sfm_tf.records.statistics import STATISTICS_FILE
from sfm_tf.report.report_inputs import Gallery, Perturbation, ReportInputs
from sfm_tf.training.loading import load_defended_model
from sfm_tf.training.model_files import HISTORY_FILE


def collect_inputs(
    experiment: str,
    records: Artifact,
    models: Artifact | None,
    evaluation: Artifact,
    config: ReportConfig,
) -> ReportInputs:
    """Returns the inputs of the report on one evaluation.

    Args:
        experiment: Name of the experiment.
        records: Artifact of the ingest stage.
        models: Artifact of the train stage, made from `records`; None where the evaluation is of
            the user's own model.
        evaluation: Artifact of the evaluate stage, made from both.
        config: How many images the figures show.

    Raises:
        SfmError: If a file of an artifact is missing or damaged.
    """
    schema = read_schema(records.folder)
    settings = evaluation_settings(evaluation)
    images, labels = load_split(records.folder, "test", schema, settings.num_examples)
    shown = images[: config.gallery_examples]
    metrics = read_json(evaluation.folder / METRICS_FILE)
    counts = Counter(schema.class_names[label] for label in labels)
    return ReportInputs(
        experiment=experiment,
        dataset=records.manifest.config["data"]["dataset"],
        statistics=read_json(records.folder / STATISTICS_FILE),
        class_counts={name: counts[name] for name in schema.class_names},
        evaluation=settings,
        metrics=metrics,
        blessing=read_blessing(evaluation.folder),
        history=read_json(models.folder / HISTORY_FILE) if models else {},
        manifests=[made.manifest for made in (records, models, evaluation) if made],
        gallery=_gallery(load_defended_model(models.folder), shown) if models else None,
        perturbations=list(
            _perturbations(evaluation, metrics["subject"], settings, images, len(shown))
        ),
    )


def _gallery(defended: DefendedModel, images: np.ndarray) -> Gallery:
    tensor = tf.constant(images)
    return Gallery(
        images=images,
        masks=defended.mask(tensor).numpy(),
        masked=defended.masked(tensor).numpy(),
        defended=defended.defended(tensor).numpy(),
    )


def _perturbations(
    evaluation: Artifact, subject: str, settings: EvaluationConfig, images: np.ndarray, count: int
) -> Iterator[Perturbation]:
    """Yields, for each threat model, the subject's images under the last attack at the radius."""
    store = AdversarialStore(evaluation.folder / ADVERSARIAL_FOLDER)
    epsilon = max(settings.epsilons)
    last = {
        entry.threat_model: entry
        for entry in store.read_index()
        if (entry.defence, entry.epsilon) == (subject, epsilon)
    }
    for entry in last.values():
        outcome = store.read(entry.name, images.shape)
        if outcome is None:
            raise SfmError(f"{store.path(entry.name)} is gone; run the evaluation with --force.")
        yield Perturbation(
            entry.threat_model, entry.attack, epsilon, images[:count], outcome.images[:count]
        )
