"""What is trained in which epoch: Algorithm 1 of Yu et al. 2022 as data."""

import dataclasses
from collections.abc import Sequence

from sfm_tf.training.phases import Phase
from sfm_tf.training_config import TrainingConfig

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
        sparsity_share: Share of w1 of Eq. 2 that is in force.
    """

    stage: str
    phases: tuple[Phase, ...]
    sparsity_share: float = 1.0


def defence_plan(config: TrainingConfig, first_share: float = 1.0) -> tuple[Epoch, ...]:
    """Returns the epochs of classifier and masker: pre-training (section 5.1), then Algorithm 1.

    Args:
        config: Counts of epochs, and how the parts take turns.
        first_share: Share of w1 at the first of `config.sparsity_ramp_epochs`; it rises evenly.
    """
    pretraining = Epoch("pretraining", (Phase.CLASSIFIER,))
    phases = (Phase.MASKER,) if config.freeze_classifier else _ALTERNATIONS[config.alternation]
    ramp = config.sparsity_ramp_epochs
    shares = [first_share + (1.0 - first_share) * epoch / ramp for epoch in range(ramp)]
    shares += [1.0] * config.epochs
    alternation = tuple(Epoch("alternation", phases, share) for share in shares[: config.epochs])
    return (pretraining,) * config.pretraining_epochs + alternation


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


def count_passes(plan: Sequence[Epoch], stage: str) -> int:
    """Returns how many passes over the images a stage takes."""
    return sum(len(epoch.phases) for epoch in plan if epoch.stage == stage)
