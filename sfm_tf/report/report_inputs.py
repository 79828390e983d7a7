"""What a report is made of."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.audit.blessing import Blessing
from sfm_tf.audit.finding import Finding
from sfm_tf.audit.verdict import AuditVerdict
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.attack_catalogue import attack_rank
from sfm_tf.evaluation.metrics import ALL_THREATS, WORST_CASE, Condition
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel, default_attacks
from sfm_tf.experiments import Experiment

_PLACES = ("data_dir", "source", "model", "source_model")
"""Settings that name files of the machine at hand, which go out to nobody."""


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


def row_commands(
    preset: Experiment, manifest: Manifest, metrics: Mapping[str, Any]
) -> Iterator[RowCommand]:
    """Yields a command for each row under attack: that of all attackers, then by threat model.

    Where attacks only went on with what the others left (`robust_accuracy_only`), a row depends on
    those before it, so its command runs them too.

    Args:
        preset: What the settings of the evaluation started from.
        manifest: Of the evaluation.
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
    """
    order = [ALL_THREATS, *manifest.config["evaluation"]["threat_models"]]
    for condition in sorted(_conditions(metrics), key=lambda each: order.index(each.threat_model)):
        yield RowCommand(*condition, command=_command(preset, manifest, condition))


def _conditions(metrics: Mapping[str, Any]) -> list[Condition]:
    """Returns the rows in order of first appearance; those of several defences are one."""
    worst_cases = ({**entry, "attack": WORST_CASE} for entry in metrics["worst_case"])
    any_radius = ({**entry, "epsilon": None} for entry in metrics["minimum_norm"])
    rows = (*metrics["under_attack"], *any_radius, *worst_cases)
    return list(dict.fromkeys(Condition(*map(row.get, Condition._fields)) for row in rows))


def _command(preset: Experiment, manifest: Manifest, condition: Condition) -> str:
    settings = manifest.config["evaluation"]
    asked = {**settings, **_narrowed(settings, condition)}
    return shlex.join(
        [
            "python",
            "-m",
            "pipelines.evaluate",
            "--workdir=WORKDIR",
            f"--experiment={preset.name}",
            f"--seed={manifest.seed}",
            *changed_flags(config_values(preset.evaluation), asked),
            *changed_flags(config_values(preset.compared), manifest.config.get("compared", {})),
        ]
    )


def _narrowed(settings: Mapping[str, Any], condition: Condition) -> dict[str, list[Any]]:
    """Returns what of the settings is to be one row's only."""
    narrowed: dict[str, list[Any]] = {}
    if condition.epsilon is not None:
        narrowed["epsilons"] = [condition.epsilon]
    if condition.threat_model == ALL_THREATS:
        return narrowed
    # Which images are left to an attack depends on all who share it, so none can be left out.
    if not settings["robust_accuracy_only"]:
        narrowed["threat_models"] = [condition.threat_model]
    if condition.attack in default_attacks(ThreatModel(condition.threat_model), ()):
        return narrowed  # An attack that belongs to the threat model is not asked for by name.
    if condition.attack != WORST_CASE:
        narrowed["attacks"] = _needed_attacks(settings, condition.attack)
    return narrowed


def _needed_attacks(settings: Mapping[str, Any], attack: str) -> list[str]:
    if not settings["robust_accuracy_only"]:
        return [attack]
    rank = attack_rank(attack)
    return [name for name in settings["attacks"] if attack_rank(name) <= rank]


def changed_flags(preset: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Yields a flag for each setting that is not the preset's; others are of another version."""
    for name, default in preset.items():
        value = values.get(name, default)
        if value != default:
            yield f"--{name}={name.upper() if name in _PLACES else _written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_written, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


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
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
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
        commands: What measures each row under attack again; empty where it is not known from which
            preset the settings started.
    """

    experiment: str
    dataset: str
    statistics: Mapping[str, Mapping[str, Any]]
    class_counts: Mapping[str, int]
    evaluation: EvaluationConfig
    metrics: Mapping[str, Any]
    blessing: Blessing
    history: Mapping[str, Sequence[Mapping[str, Any]]]
    manifests: Sequence[Manifest]
    gallery: Gallery | None
    perturbations: Sequence[Perturbation] = ()
    costs: Sequence[Mapping[str, Any]] = ()
    detection: Mapping[str, Any] | None = None
    training_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    audit: Audit | None = None
    probes: Mapping[str, Any] | None = None
    paired: Sequence[Mapping[str, Any]] = ()
    breakdown: Mapping[str, Any] | None = None
    failures: FailureGallery | None = None
    masks: Mapping[str, Any] | None = None
    perceived: PerceivedPerturbation | None = None
    tuning: Sequence[Mapping[str, Any]] | None = None
    ablations: Mapping[str, Gallery] = dataclasses.field(default_factory=dict)
    ablation_scores: Sequence[Mapping[str, Any]] = ()
    commands: Sequence[RowCommand] = ()

    def __post_init__(self) -> None:
        """Raises `SfmError` if the figures are not of the images that were counted."""
        counted = sum(self.class_counts.values())
        parts = {
            part: {entry["examples"] for entry in self.metrics[part]}
            for part in ("clean", "under_attack", "worst_case")
        }
        # A decision-based attacker spends its queries on the first few images.
        if parts["clean"] != {counted} or max({counted}.union(*parts.values())) > counted:
            raise SfmError(
                f"The figures are of {sorted(set().union(*parts.values()))} images but the classes "
                f"count {counted}; run the evaluation again."
            )
