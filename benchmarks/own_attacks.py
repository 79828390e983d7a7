"""This library's attacks with the benchmark's settings."""

from collections.abc import Callable, Mapping
from typing import Any

from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from benchmarks.attack_settings import Settings
from sfm_tf.attacks.auto_projected_gradient import AutoProjectedGradientDescent
from sfm_tf.attacks.carlini_wagner import CarliniWagner
from sfm_tf.attacks.compiled_attack import CompiledAttack
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.fast_adaptive_boundary import FastAdaptiveBoundary
from sfm_tf.attacks.fast_gradient import FastGradientMethod
from sfm_tf.attacks.momentum_iterative import MomentumIterativeMethod
from sfm_tf.attacks.projected_gradient import ProjectedGradientDescent
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
