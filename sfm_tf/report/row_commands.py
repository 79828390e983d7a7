"""The command that measures one row of accuracy under attack again, and nothing else."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from sfm_tf.artifacts.fingerprints import config_values
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.attacks.catalogue import attack_rank
from sfm_tf.attacks.threat_models import ThreatModel, default_attacks
from sfm_tf.config import Experiment
from sfm_tf.evaluation.metrics import ALL_THREATS
from sfm_tf.evaluation.right_answers import WORST_CASE, Condition

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
