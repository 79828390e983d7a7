"""The attacks that are compared: this library's and those of others, with settings they share."""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import art.attacks.evasion
import keras
import numpy as np
import tensorflow as tf
from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.apgd import AutoProjectedGradientDescent
from sfm_tf.attacks.cw import CarliniWagner
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.fab import FastAdaptiveBoundary
from sfm_tf.attacks.fgsm import FastGradientMethod
from sfm_tf.attacks.mim import MomentumIterativeMethod
from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.models.art_classifier import wrap_classifier

_LARGEST_DIFFERENCE = 1e-4

Generate = Callable[[np.ndarray, np.ndarray], np.ndarray]
Predict = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Lengths of the attacks, and their radius.

    Attributes:
        epsilon: Largest change of a pixel, of all attacks but CW-L2.
        pgd_iterations: Steps of PGD, each of 1/255.
        momentum_iterations: Steps of MIM and DI2, each of 2/255; both numbers are torchattacks'.
        smallest_share: Smallest size of DI2's views over the full size.
        cw_searches: Values of the constant that CW-L2 tries.
        cw_iterations: Steps of CW-L2 for each.
        cw_constant: First value of the constant.
        cw_fixed_iterations: Steps of CW-L2 with a constant of 1, torchattacks' only form.
        cw_learning_rate: Size of Adam's steps; so few of 0.01 do not reach every boundary. ART has
            a line search in place of it.
        cw_fixed_learning_rate: The same with a constant of 1; torchattacks' own.
        apgd_iterations: Steps of a run of APGD and FAB-T.
        target_classes: Classes that APGD-T and FAB-T go for.
        square_queries: Queries of Square.
    """

    epsilon: float = 8 / 255
    pgd_iterations: int = 30
    momentum_iterations: int = 10
    smallest_share: float = 0.9
    cw_searches: int = 5
    cw_iterations: int = 20
    cw_constant: float = 0.1
    cw_fixed_iterations: int = 50
    cw_learning_rate: float = 0.03
    cw_fixed_learning_rate: float = 0.01
    apgd_iterations: int = 100
    target_classes: int = 9
    square_queries: int = 5000

    @property
    def pgd_step(self) -> float:
        """Size of PGD's steps."""
        return 1 / 255

    @property
    def momentum_step(self) -> float:
        """Size of MIM's and DI2's steps."""
        return 2 / 255


class Criterion(NamedTuple):
    """When an attack has succeeded on an image.

    Attributes:
        epsilon: Largest change of a pixel that counts as success; `math.inf` for any.
        norm: Order of the norm in which fooling perturbations are measured: 2 or `math.inf`.
    """

    epsilon: float
    norm: float


class Kind(NamedTuple):
    """What the benchmark knows of an attack.

    Attributes:
        title: What the tables call it.
        is_slow: Whether it takes hundreds of steps per image, so that only a few are attacked.
        is_deterministic: Whether all libraries are to make the same images of it.
        norm: In which its perturbations are measured: 2 or `math.inf`.
        is_bounded: Whether success has to be within the radius.
    """

    title: str
    is_slow: bool = False
    is_deterministic: bool = False
    norm: float = 2
    is_bounded: bool = True

    def criterion(self, epsilon: float) -> Criterion:
        """Returns when it has succeeded."""
        return Criterion(epsilon if self.is_bounded else math.inf, self.norm)


KINDS: Mapping[str, Kind] = {
    "fgsm": Kind("FGSM", is_deterministic=True),
    "pgd": Kind("PGD", is_deterministic=True),
    "mim": Kind("MIM", is_deterministic=True),
    "di2": Kind("DI2"),
    "cw": Kind("CW-L2", is_slow=True, is_bounded=False),
    "cw_fixed": Kind("CW-L2 c=1", is_slow=True, is_bounded=False),
    "apgd_ce": Kind("APGD-CE", is_slow=True),
    "apgd_t": Kind("APGD-T", is_slow=True),
    "fab_t": Kind("FAB-T", is_slow=True, norm=math.inf),
    "square": Kind("Square", is_slow=True),
}
"""The attacks by name, in the order of the tables."""


class AttackedModel(NamedTuple):
    """The model as a library sees it."""

    model: Any
    predict: Predict


def _own_attacks(
    classifier: TensorFlowV2Classifier, settings: Settings, batch_size: int
) -> Mapping[str, Generate]:
    """Returns this library's attacks."""
    bounded = {"epsilon": settings.epsilon}
    momentum = {
        **bounded,
        "step_size": settings.momentum_step,
        "iterations": settings.momentum_iterations,
    }
    apgd = {**bounded, "iterations": settings.apgd_iterations}
    targets = {"target_classes": settings.target_classes}
    attacks = {
        "fgsm": (FastGradientMethod, bounded),
        "pgd": (
            ProjectedGradientDescent,
            {**bounded, "step_size": settings.pgd_step, "iterations": settings.pgd_iterations},
        ),
        "mim": (MomentumIterativeMethod, momentum),
        "di2": (DiverseInputsMethod, {**momentum, "smallest_share": settings.smallest_share}),
        "cw": (
            CarliniWagner,
            {
                "binary_search_steps": settings.cw_searches,
                "iterations": settings.cw_iterations,
                "initial_constant": settings.cw_constant,
                "learning_rate": settings.cw_learning_rate,
            },
        ),
        "cw_fixed": (
            CarliniWagner,
            {
                "binary_search_steps": 1,
                "iterations": settings.cw_fixed_iterations,
                "initial_constant": 1.0,
                "learning_rate": settings.cw_fixed_learning_rate,
            },
        ),
        "apgd_ce": (AutoProjectedGradientDescent, apgd),
        "apgd_t": (AutoProjectedGradientDescent, {**apgd, "loss": "targeted_dlr", **targets}),
        "fab_t": (FastAdaptiveBoundary, {"iterations": settings.apgd_iterations, **targets}),
        "square": (SquareAttack, {**bounded, "queries": settings.square_queries}),
    }
    return {
        name: attack(classifier, **options, batch_size=batch_size).generate
        for name, (attack, options) in attacks.items()
    }


def _art_attacks(
    classifier: TensorFlowV2Classifier, settings: Settings, batch_size: int
) -> Mapping[str, Generate]:
    """Returns ART's attacks; its MIM refuses to run on a TensorFlow classifier."""
    evasion, quiet = art.attacks.evasion, {"batch_size": batch_size, "verbose": False}
    attacks = {
        "fgsm": evasion.FastGradientMethod(classifier, eps=settings.epsilon, batch_size=batch_size),
        "pgd": evasion.ProjectedGradientDescent(
            classifier,
            eps=settings.epsilon,
            eps_step=settings.pgd_step,
            max_iter=settings.pgd_iterations,
            **quiet,
        ),
        "cw": evasion.CarliniL2Method(
            classifier,
            binary_search_steps=settings.cw_searches,
            max_iter=settings.cw_iterations,
            initial_const=settings.cw_constant,
            **quiet,
        ),
        "apgd_ce": evasion.AutoProjectedGradientDescent(
            classifier,
            eps=settings.epsilon,
            eps_step=2 * settings.epsilon,
            max_iter=settings.apgd_iterations,
            nb_random_init=1,
            loss_type="cross_entropy",
            **quiet,
        ),
        "square": evasion.SquareAttack(
            classifier, eps=settings.epsilon, max_iter=settings.square_queries, **quiet
        ),
    }
    return {name: attack.generate for name, attack in attacks.items()}


def _foolbox_attacks(
    classifier: TensorFlowV2Classifier, settings: Settings, batch_size: int
) -> Mapping[str, Generate]:
    """Returns foolbox's attacks, which are given one batch after another."""
    import foolbox

    momentum = {
        "abs_stepsize": settings.momentum_step,
        "steps": settings.momentum_iterations,
        "random_start": False,
    }
    attacks = {
        "fgsm": foolbox.attacks.LinfFastGradientAttack(random_start=False),
        "pgd": foolbox.attacks.LinfProjectedGradientDescentAttack(
            abs_stepsize=settings.pgd_step, steps=settings.pgd_iterations, random_start=False
        ),
        "mim": foolbox.attacks.LinfMomentumIterativeFastGradientMethod(**momentum),
        "cw": foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=settings.cw_searches,
            steps=settings.cw_iterations,
            stepsize=settings.cw_learning_rate,
            initial_const=settings.cw_constant,
            abort_early=False,
        ),
    }
    device = "/GPU:0" if tf.config.list_physical_devices("GPU") else "/CPU:0"
    model = foolbox.TensorFlowModel(classifier.model, bounds=(0, 1), device=device)
    return {
        name: _in_batches(attack, model, None if name == "cw" else settings.epsilon, batch_size)
        for name, attack in attacks.items()
    }


def _in_batches(attack: Any, model: Any, epsilon: float | None, batch_size: int) -> Generate:
    def generate(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), batch_size):
            batch = tf.constant(images[start : start + batch_size])
            criterion = tf.constant(labels[start : start + batch_size])
            _, clipped, _ = attack(model, batch, criterion, epsilons=epsilon)
            # CW-L2 returns black images in place of those it has not fooled the model on.
            is_black = tf.reduce_all(clipped == 0.0, axis=(1, 2, 3), keepdims=True)
            parts.append(tf.where(is_black, batch, clipped).numpy())
        return np.concatenate(parts)

    return generate


def _torch_attacks(function: str) -> Callable[..., Mapping[str, Generate]]:
    """Returns a function of `benchmarks.torch_attacks`, which is imported when it is called."""

    def build(*arguments: Any) -> Mapping[str, Generate]:
        from benchmarks import torch_attacks

        return getattr(torch_attacks, function)(*arguments)

    return build


class Library(NamedTuple):
    """A library of attacks.

    Attributes:
        build: From the attacked model, the settings and the batch size to its attacks, by their
            names among `KINDS`.
        packages: What it imports.
        is_torch: Whether it attacks the copy in torch.
    """

    build: Callable[[Any, Settings, int], Mapping[str, Generate]]
    packages: Sequence[str]
    is_torch: bool = False

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


OWN = "own"
"""Name of this library."""

LIBRARIES: Mapping[str, Library] = {
    OWN: Library(_own_attacks, []),
    "art": Library(_art_attacks, ["art"]),
    "foolbox": Library(_foolbox_attacks, ["foolbox"]),
    "torchattacks": Library(
        _torch_attacks("build_torchattacks"), ["torch", "torchattacks"], is_torch=True
    ),
    "autoattack": Library(
        _torch_attacks("build_autoattack"), ["torch", "pyautoattack"], is_torch=True
    ),
}
"""This library and those it is compared with, by name."""

RIVALS = [name for name in LIBRARIES if name != OWN]
"""Names of the others."""


def build_attack(
    owner: str, attack: str, attacked: AttackedModel, settings: Settings, batch_size: int
) -> Generate | None:
    """Returns a library's attack of a name among `KINDS`, or None if it has no such attack."""
    return LIBRARIES[owner].build(attacked.model, settings, batch_size).get(attack)


def attacked_by(
    owner: str, model: keras.Model, images: np.ndarray, batch_size: int
) -> AttackedModel:
    """Returns the model as a library attacks it: as ART's classifier, or as a copy in torch.

    Args:
        owner: A key of `LIBRARIES`.
        model: Classifier.
        images: Float32 in [0, 1], to compare the copy's logits on.
        batch_size: Most images that the model is shown at a time.

    Raises:
        ValueError: If a logit of the copy differs by more than 1e-4.
    """
    if LIBRARIES[owner].is_torch:
        return copy_to_torch(model, images)
    shape, class_count = model.input_shape[1:], model.output_shape[-1]
    classifier = wrap_classifier(model, class_count, shape, batch_size)
    return AttackedModel(classifier, classifier.predict)


def copy_to_torch(model: keras.Model, images: np.ndarray) -> AttackedModel:
    """Copies a model to torch, says how far the logits differ, and refuses if it is too far.

    Args:
        model: Classifier.
        images: Float32 in [0, 1], to compare the logits on.

    Raises:
        ValueError: If a logit differs by more than 1e-4.
    """
    from benchmarks import torch_copy

    copy = torch_copy.TorchCopy(model)
    predict = functools.partial(torch_copy.predict, copy)
    difference = float(np.abs(model.predict(images, verbose=0) - predict(images)).max())
    print(f"copy in torch on {torch_copy.DEVICE}: logits differ by at most {difference:.1e}")
    if not difference <= _LARGEST_DIFFERENCE:
        raise ValueError(f"Logits of both models differ by {difference}; expected at most 1e-4.")
    return AttackedModel(copy, predict)
