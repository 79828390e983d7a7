"""What is trained in which epoch: Algorithm 1 of Yu et al. 2022 as data."""

import dataclasses
from collections.abc import Sequence

from sfm_tf.config import TrainingConfig
from sfm_tf.training.sparse_feature_masker_trainer import Phase

_ALTERNATIONS = {
    "epoch": (Phase.CLASSIFIER, Phase.MASKER),
    "step": (Phase.BOTH,),
}


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch: a pass over the training images in each of its phases.

    Attributes:
        stage: What the epoch is part of: `pretraining`, `alternation`, `source`, `adversarial` or
            `adversarial_alternation`.
        phases: What is trained, in order.
    """

    stage: str
    phases: tuple[Phase, ...]


def defence_plan(config: TrainingConfig) -> tuple[Epoch, ...]:
    """Returns the epochs of classifier and masker: pre-training (section 5.1), then Algorithm 1."""
    pretraining = Epoch("pretraining", (Phase.CLASSIFIER,))
    alternation = Epoch("alternation", _ALTERNATIONS[config.alternation])
    return (pretraining,) * config.pretraining_epochs + (alternation,) * config.epochs


def source_plan(config: TrainingConfig) -> tuple[Epoch, ...]:
    """Returns the epochs of the independent model that black-box attacks start from."""
    return (Epoch("source", (Phase.CLASSIFIER,)),) * config.source_epochs


def adversarial_plan(config: TrainingConfig, *, has_masker: bool) -> tuple[Epoch, ...]:
    """Returns the epochs of training on adversarial images, and of pre-training on clean ones."""
    pretraining = Epoch("pretraining", (Phase.CLASSIFIER,))
    adversarial = Epoch("adversarial", (Phase.CLASSIFIER,))
    if has_masker:
        adversarial = Epoch("adversarial_alternation", _ALTERNATIONS[config.alternation])
    return (pretraining,) * config.pretraining_epochs + (adversarial,) * config.adversarial_epochs


def count_classifier_passes(plan: Sequence[Epoch]) -> int:
    """Returns how many passes over the images change the classifier."""
    return sum(phase != Phase.MASKER for epoch in plan for phase in epoch.phases)
