"""Every attack in one table: what a report calls it, what it needs, and how an evaluation runs it.

Settings read this table. It names the classes without importing them, so that a program starts
without TensorFlow and a training does not depend on the code of attacks;
`evaluation.attack_building` imports them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sfm_tf.settings import PIXEL_LEVELS

if TYPE_CHECKING:
    from sfm_tf.evaluation.settings import EvaluationConfig
    from sfm_tf.models.defended_model import DefendedModel

# Confident models look robust to a gradient that float32 has rounded away.
_LOSS = "stable_cross_entropy"

NORMS: Mapping[str, float] = {"inf": math.inf, "2": 2}
"""The orders of norms by their names among the settings."""

Options: TypeAlias = "Callable[[EvaluationConfig], dict[str, Any]]"

AWARE_ATTACK = "squeezing_aware"
"""Name of the attack that knows the feature squeezing detector; `audit.detection` runs it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackKind:
    """An attack of the catalogue.

    Attributes:
        title: Its name as its authors or the paper write it.
        class_path: Its class, as `module.Class` of `sfm_tf.attacks`.
        options: Returns its options from the settings, beside those that all attacks have.
        uses_gradient: Whether it follows the gradient of the attacked model.
        is_iterated: Whether it takes many steps.
        is_bounded: Whether it looks in a ball, rather than for the smallest perturbation.
        is_configurable: Whether `--attacks` can name it.
        threat_models: The threat models that always run it, whatever `--attacks` says.
        continues: Whether it starts at what the attacks before it left.
        applies: Tells whether it is run on a model under a threat model.
    """

    title: str
    class_path: str
    options: Options = lambda config: {}
    uses_gradient: bool = True
    is_iterated: bool = True
    is_bounded: bool = True
    is_configurable: bool = True
    threat_models: tuple[str, ...] = ()
    continues: bool = False
    applies: "Callable[[DefendedModel, str], bool]" = lambda model, threat_model: True


def _steps(config: "EvaluationConfig") -> dict[str, Any]:
    return {
        "step_size": config.step_size / PIXEL_LEVELS,
        "iterations": config.iterations,
        "gradient_samples": config.gradient_samples,
        "stop_when_fooled": config.robust_accuracy_only,
        "loss": _LOSS,
    }


def _random_start(config: "EvaluationConfig") -> dict[str, Any]:
    return {**_steps(config), "random_start": True, "keep_best": True}


def _carlini_wagner(config: "EvaluationConfig") -> dict[str, Any]:
    return {
        "binary_search_steps": config.cw_searches,
        "iterations": config.cw_iterations,
        "learning_rate": config.cw_learning_rate,
        "initial_constant": config.cw_initial_constant,
    }


def _apgd(loss: str) -> Options:
    return lambda config: {
        "loss": loss,
        "iterations": config.apgd_iterations,
        "gradient_samples": config.gradient_samples,
    }


def _auto_attack(version: str) -> Options:
    return lambda config: {
        "version": version,
        "iterations": config.apgd_iterations,
        "queries": config.square_queries,
        # Slower where few images are left, but a run that is killed loses one batch at most.
        "batches_at_once": 1,
    }


def _tips(model: "DefendedModel", threat_model: str) -> bool:
    """Tells whether tiny noise makes the model draw anew or, in the white box, round otherwise."""
    preprocessor = model.preprocessor
    return preprocessor.is_random or (threat_model == "white_box" and preprocessor.quantises)


def _adaptive(objective: str, title: str) -> AttackKind:
    return AttackKind(
        title=title,
        class_path="adaptive.AdaptiveGradientDescent",
        options=lambda config: {**_random_start(config), "objective": objective},
        is_configurable=False,
        threat_models=("adaptive",),
    )


ATTACKS: Mapping[str, AttackKind] = {
    "noise": AttackKind(
        title="noise",
        class_path="uniform_noise.UniformNoise",
        uses_gradient=False,
        is_iterated=False,
    ),
    "fgsm": AttackKind(
        title="FGSM",
        class_path="fgsm.FastGradientMethod",
        options=lambda config: {"loss": _LOSS},
        is_iterated=False,
    ),
    "pgd": AttackKind(
        title="PGD",
        class_path="pgd.ProjectedGradientDescent",
        options=lambda config: {**_random_start(config), "restarts": config.restarts},
    ),
    "mim": AttackKind(
        title="MIM",
        class_path="mim.MomentumIterativeMethod",
        options=lambda config: {**_steps(config), "keep_best": True},
    ),
    "diverse": AttackKind(
        title="Diverse", class_path="diverse_inputs.DiverseInputsMethod", options=_steps
    ),
    "adaptive_mask_aware": _adaptive("mask_aware", "mask-aware PGD"),
    "adaptive_mask_stage": _adaptive("mask_stage", "PGD on the mask"),
    "adaptive_frozen_mask": _adaptive("frozen_mask", "PGD past the mask"),
    "cw": AttackKind(
        title="CW", class_path="cw.CarliniWagner", options=_carlini_wagner, is_bounded=False
    ),
    "apgd_ce": AttackKind(
        title="APGD-CE",
        class_path="apgd.AutoProjectedGradientDescent",
        options=_apgd("cross_entropy"),
    ),
    "apgd_dlr": AttackKind(
        title="APGD-DLR", class_path="apgd.AutoProjectedGradientDescent", options=_apgd("dlr")
    ),
    "fab_t": AttackKind(
        title="FAB-T",
        class_path="fab.FastAdaptiveBoundary",
        options=lambda config: {"iterations": config.apgd_iterations},
        is_bounded=False,
    ),
    "apgd_t": AttackKind(
        title="APGD-T",
        class_path="apgd.AutoProjectedGradientDescent",
        options=_apgd("targeted_dlr"),
    ),
    "square": AttackKind(
        title="Square",
        class_path="square.SquareAttack",
        options=lambda config: {"queries": config.square_queries},
        uses_gradient=False,
        threat_models=("score_based",),
    ),
    "autoattack": AttackKind(
        title="AutoAttack", class_path="autoattack.AutoAttack", options=_auto_attack("standard")
    ),
    "autoattack_rand": AttackKind(
        title="AutoAttack (rand)", class_path="autoattack.AutoAttack", options=_auto_attack("rand")
    ),
    "hop_skip_jump": AttackKind(
        title="HopSkipJump",
        class_path="hop_skip_jump.HopSkipJump",
        # Each image is kept as soon as it is done, for it takes seconds.
        options=lambda config: {"batch_size": 1},
        uses_gradient=False,
        is_bounded=False,
        is_configurable=False,
        threat_models=("decision_based",),
    ),
    "redraw": AttackKind(
        title="re-draws",
        class_path="redraw.Redraw",
        options=lambda config: {"draws": config.redraws},
        uses_gradient=False,
        is_iterated=False,
        is_configurable=False,
        threat_models=("white_box", "score_based", "decision_based"),
        continues=True,
        applies=_tips,
    ),
    AWARE_ATTACK: AttackKind(
        title="squeezing-aware PGD",
        class_path="squeezing_aware.SqueezingAwareGradientDescent",
        options=lambda config: {"iterations": config.iterations},
        is_configurable=False,
    ),
}
"""The attacks by name, cheap ones first: the order in which an evaluation runs them."""

CONFIGURABLE_ATTACKS = tuple(name for name, kind in ATTACKS.items() if kind.is_configurable)
"""The names that `--attacks` takes."""


def attack_rank(name: str) -> int:
    """Returns the place of an attack among all, cheap ones first."""
    return list(ATTACKS).index(name)
