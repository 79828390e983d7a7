"""What a report is made of."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.audit.blessing import Blessing
from sfm_tf.audit.finding import Finding
from sfm_tf.audit.probes.measurements import Probes
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.metrics import Accuracy, Metrics
from sfm_tf.evaluation.paired_answers import Condition
from sfm_tf.evaluation.runner import Cost
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.imported_model import MODEL_SUFFIXES


@dataclasses.dataclass(frozen=True)
class RowCommand:
    """A row of the metrics, of every defence, and what measures it again.

    Attributes:
        threat_model: Value of a `ThreatModel`, or `all`.
        attack: Name of the attack, or `worst_case` for every attack of the threat model.
        epsilon: Radius in 1/255; None for all radii and for an attack that finds its own.
        command: A line for a POSIX shell; words in capitals stand for places to fill in.
    """

    threat_model: str
    attack: str
    epsilon: float | None
    command: str

    @property
    def condition(self) -> Condition:
        """What is done to the images."""
        return Condition(self.threat_model, self.attack, self.epsilon)


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images with what the defence makes of them, all float32 in [0, 1], channels last.

    Attributes:
        images: Inputs x.
        masks: G(x), of one channel.
        masked: G(x) * x.
        defended: T(G(x) * x).
    """

    images: np.ndarray
    masks: np.ndarray
    masked: np.ndarray
    defended: np.ndarray


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """Images with what an attack makes of them.

    Attributes:
        threat_model: What the attacker knows.
        attack: Name of the attack.
        epsilon: Radius of the L-infinity ball in 1/255.
        images: Clean images, float32 in [0, 1], channels last.
        adversarial_images: Of the same shape.
    """

    threat_model: str
    attack: str
    epsilon: float
    images: np.ndarray
    adversarial_images: np.ndarray


@dataclasses.dataclass(frozen=True)
class PerceivedPerturbation:
    """What an attack changes, where the classifier sees it; float32 of the images' shape.

    Attributes:
        attacked: Images x with what the attack makes of them, x'.
        undefended: x' - x.
        preprocessed: T(x') - T(x).
        defended: T(G(x') * x') - T(G(x) * x).
        is_random: Whether T draws, so that it differs between x' and x by chance, too.
    """

    attacked: Perturbation
    undefended: np.ndarray
    preprocessed: np.ndarray
    defended: np.ndarray
    is_random: bool = False


@dataclasses.dataclass(frozen=True)
class FailureGallery:
    """The worst failures with their images.

    Attributes:
        failures: What `sfm_tf.report.example_images.find_failures` returned.
        images: The clean images, float32 in [0, 1], channels last; in the order of the failures.
        adversarial_images: What turned them wrong.
    """

    failures: Sequence[Mapping[str, Any]]
    images: np.ndarray
    adversarial_images: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadiusAccuracy(Accuracy):
    """The accuracy of a defence after every attack of every threat model up to a radius.

    Attributes:
        defence: Name of the model that is scored.
        epsilon: The radius in 1/255; 0 without an attack.
    """

    defence: str
    epsilon: float


@dataclasses.dataclass(frozen=True)
class Audit:
    """What the audit says of the evaluation.

    Attributes:
        findings: What each rule found.
        verdict: Whether the evaluation can be believed.
    """

    findings: Sequence[Finding]
    verdict: AuditVerdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything a report shows; it measures nothing itself.

    Attributes:
        experiment: Name of the experiment.
        dataset: Name of the dataset as in `sfm_tf.datasets.settings.DataConfig`.
        statistics: What `sfm_tf.records.statistics.compute_statistics` returned.
        class_counts: How many of the evaluated images are of each class, by class name.
        evaluation: Settings the evaluation ran with.
        metrics: Figures of the evaluation.
        blessing: The evaluation's verdict.
        history: For `defence` and `source`, per epoch its `stage`, `training` and `validation`;
            empty for a model that was not trained here.
        manifests: Manifests of the stages, in the order they ran.
        gallery: Test images with their masks; None for a model without a defence.
        perturbations: Test images under attack.
        costs: What `sfm_tf.evaluation.runner.measure_costs` returned; empty where it was not run.
        detection: What `sfm_tf.audit.detection.detection_summary` returned; None where the
            detector was not run.
        training_seconds: Seconds that the training of each defence took, the classifier's
            included, where they are known.
        audit: What the audit says; None where none is stored with the evaluation.
        probes: What `sfm_tf.audit.probes.suite.run_probes` returned; None where it was not
            run.
        accuracy_by_radius: What `sfm_tf.report.collection.accuracy_by_radius` returned; empty where
            the results of single images are not known.
        paired: What `sfm_tf.evaluation.significance.paired_differences` returned.
        breakdown: What `sfm_tf.evaluation.metrics.break_down` returned; None where the results
            of single images are not known.
        failures: The worst failures; None where the results of single images are not known.
        masks: What `sfm_tf.report.example_images.mask_statistics` returned; None without a masker.
        perceived: An attack as the classifier sees it; None without a masker or such an attack.
        tuning: For each weight of the sparsity loss that was tried `sparsity_weight` and the
            accuracies `clean`, `black_box` and `gray_box`, None where not measured; may have
            `examples`, the number of images. None where no tuning was run.
        ablations: The images of `gallery` with what trainings that lack something make of them, by
            their names in words; `complete` may be among them, the one they are compared with.
        ablation_scores: What `sfm_tf.tuning.ablations.AblationStudy.run` returned; empty where it
            was not run.
        commands: What measures each row under attack again; may be empty.
    """

    experiment: str
    dataset: str
    statistics: Mapping[str, Mapping[str, Any]]
    class_counts: Mapping[str, int]
    evaluation: EvaluationConfig
    metrics: Metrics
    blessing: Blessing
    history: Mapping[str, Sequence[Mapping[str, Any]]]
    manifests: Sequence[Manifest]
    gallery: Gallery | None
    perturbations: Sequence[Perturbation] = ()
    costs: Sequence[Cost] = ()
    detection: Mapping[str, Any] | None = None
    training_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    audit: Audit | None = None
    probes: Probes | None = None
    accuracy_by_radius: Sequence[RadiusAccuracy] = ()
    paired: Sequence[Mapping[str, Any]] = ()
    breakdown: Mapping[str, Any] | None = None
    failures: FailureGallery | None = None
    masks: Mapping[str, Any] | None = None
    perceived: PerceivedPerturbation | None = None
    tuning: Sequence[Mapping[str, Any]] | None = None
    ablations: Mapping[str, Gallery] = dataclasses.field(default_factory=dict)
    ablation_scores: Sequence[Mapping[str, Any]] = ()
    commands: Sequence[RowCommand] = ()

    @property
    def own_model(self) -> str:
        """Name of the file or folder of the user's model that was evaluated; empty without one."""
        path = pathlib.PurePath(self.evaluation.model)
        # A SavedModel in a server's folder goes by its version.
        return path.parent.name if path.name.isdigit() else path.name

    @property
    def model_name(self) -> str:
        """What a title calls the model under test."""
        own = pathlib.PurePath(self.own_model)
        return (own.stem if own.suffix in MODEL_SUFFIXES else own.name) or "SFM-Defence"

    def __post_init__(self) -> None:
        """Raises `SfmError` if the figures are not of the images that were counted."""
        counted = sum(self.class_counts.values())
        clean = {entry.examples for entry in self.metrics.clean}
        attacks = (*self.metrics.under_attack, *self.metrics.worst_case)
        found = clean.union(entry.examples for entry in attacks)
        # A decision-based attacker spends its queries on the first few images.
        if clean != {counted} or max(found) > counted:
            raise SfmError(
                f"The metrics are of {sorted(found)} images, but their classes add up to "
                f"{counted}; run the evaluation again."
            )
