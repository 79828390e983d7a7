"""What an evaluation works on: models, images, settings and where adversarial images are kept."""

import dataclasses
import pathlib
from collections.abc import Mapping

import keras
import numpy as np

from sfm_tf.artifacts.progress import Progress
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.results import OWN_MODEL, UNDEFENDED
from sfm_tf.evaluation.samples import Samples, check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.subjects import ModelFolders, load_subjects
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split


@dataclasses.dataclass(frozen=True)
class Detector:
    """The feature squeezing detector in front of a bare classifier.

    Attributes:
        squeezers: A chain, of which each operation is a squeezer.
        validation_images: Clean images that the threshold is chosen on, float32 in [0, 1].
    """

    squeezers: str
    validation_images: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """One evaluation, checked when it is made.

    Attributes:
        models: The models that are scored, by the names of their defences.
        source: Independent model that black-box attacks start from; None if they are not asked for.
        samples: The images that are attacked.
        config: Attacks, threat models, radii, and the thresholds of the blessing.
        seed: Seed of the attacks.
        store: Adversarial images that evaluations share and go on from.
        progress: Told of each batch.
        detector: Detector whose scores are measured too; None for none.
        class_names: Names of the classes, in the order of the labels; empty where nobody knows.
    """

    models: Mapping[str, DefendedModel]
    source: keras.Model | None
    samples: Samples
    config: EvaluationConfig
    seed: int
    store: AdversarialStore
    progress: Progress
    detector: Detector | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises `SfmError` if the settings ask for nothing or a model is not in float32."""
        for name in ("attacks", "threat_models", "epsilons"):
            if not getattr(self.config, name):
                raise SfmError(f"Invalid {name} (); expected one or more.")
        for name, model in {**self.models, "source": self.source}.items():
            _check_precision(name, model)


def _check_precision(name: str, model: keras.Model | None) -> None:
    layers = [] if model is None else list(model.layers)
    while layers:
        layer = layers.pop()
        layers += layer.layers if isinstance(layer, keras.Model) else []
        if layer.compute_dtype != "float32":
            raise SfmError(
                f"Model {name} computes layer {layer.name!r} in {layer.compute_dtype}; expected "
                "float32. Build it anew under the float32 dtype policy with the same weights."
            )


def load_job(
    records: pathlib.Path,
    folders: ModelFolders,
    config: EvaluationConfig,
    compared: ComparedConfig,
    seed: int,
    store: pathlib.Path,
    progress: Progress,
) -> EvaluationJob:
    """Returns the evaluation of the models that earlier stages left.

    Args:
        records: Folder of the ingested images.
        folders: Where the models are.
        config: Names the defences, and the user's models, if any.
        compared: What the compared defences are made of.
        seed: Seed of the attacks.
        store: Folder of the adversarial images that evaluations share.
        progress: Told of each batch.

    Raises:
        SfmError: If a model cannot be read or does not fit the images, a defence is unknown or was
            not fitted, or there is nothing to evaluate.
    """
    schema = read_schema(records)
    subjects = load_subjects(config, compared, folders, schema)
    images, labels = load_split(records, "test", schema, config.num_examples)
    detector = None
    if "feature_squeezing" in subjects.models and guarded_model(subjects.models):
        validation_images, _ = load_split(records, "validation", schema)
        detector = Detector(compared.feature_squeezing, validation_images)
    first = next(iter(subjects.models.values()))
    return EvaluationJob(
        models=subjects.models,
        source=subjects.source,
        samples=check_samples(images, labels, first.classifier),
        config=config,
        seed=seed,
        store=AdversarialStore(store),
        progress=progress,
        detector=detector,
        class_names=tuple(schema.class_names),
    )


def guarded_model(models: Mapping[str, DefendedModel]) -> str | None:
    """Returns the name of the bare classifier that a detector can guard; None without one."""
    return next((name for name in (UNDEFENDED, OWN_MODEL) if name in models), None)
