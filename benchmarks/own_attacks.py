"""This library's attacks with the benchmark's settings."""

from collections.abc import Callable, Mapping
from typing import Any

from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from benchmarks.attack_settings import Settings
from sfm_tf.attacks.apgd import AutoProjectedGradientDescent
from sfm_tf.attacks.attack import CompiledAttack
from sfm_tf.attacks.cw import CarliniWagner
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.fab import FastAdaptiveBoundary
from sfm_tf.attacks.fgsm import FastGradientMethod
from sfm_tf.attacks.mim import MomentumIterativeMethod
from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.attacks.square import SquareAttack


def _momentum(settings: Settings) -> dict[str, Any]:
    return {
        "epsilon": settings.epsilon,
        "step_size": settings.momentum_step,
        "iterations": settings.momentum_iterations,
    }


def _apgd(settings: Settings) -> dict[str, Any]:
    return {"epsilon": settings.epsilon, "iterations": settings.apgd_iterations}


_OPTIONS: Mapping[str, tuple[type[CompiledAttack], Callable[[Settings], dict[str, Any]]]] = {
    "fgsm": (FastGradientMethod, lambda s: {"epsilon": s.epsilon}),
    "pgd": (
        ProjectedGradientDescent,
        lambda s: {
            "epsilon": s.epsilon,
            "step_size": s.pgd_step,
            "iterations": s.pgd_iterations,
        },
    ),
    "mim": (MomentumIterativeMethod, _momentum),
    "di2": (DiverseInputsMethod, lambda s: {**_momentum(s), "smallest_share": s.smallest_share}),
    "cw": (
        CarliniWagner,
        lambda s: {
            "binary_search_steps": s.cw_searches,
            "iterations": s.cw_iterations,
            "initial_constant": s.cw_constant,
            "learning_rate": s.cw_learning_rate,
        },
    ),
    "cw_fixed": (
        CarliniWagner,
        lambda s: {
            "binary_search_steps": 1,
            "iterations": s.cw_fixed_iterations,
            "initial_constant": 1.0,
            "learning_rate": s.cw_fixed_learning_rate,
        },
    ),
    "apgd_ce": (AutoProjectedGradientDescent, _apgd),
    "apgd_t": (
        AutoProjectedGradientDescent,
        lambda s: {**_apgd(s), "loss": "targeted_dlr", "target_classes": s.target_classes},
    ),
    "fab_t": (
        FastAdaptiveBoundary,
        lambda s: {"iterations": s.apgd_iterations, "target_classes": s.target_classes},
    ),
    "square": (SquareAttack, lambda s: {"epsilon": s.epsilon, "queries": s.square_queries}),
}


def build_own(
    name: str, classifier: TensorFlowV2Classifier, settings: Settings, batch_size: int
) -> CompiledAttack:
    """Returns this library's attack of a name among `KINDS`."""
    attack, options = _OPTIONS[name]
    return attack(classifier, **options(settings), batch_size=batch_size)
