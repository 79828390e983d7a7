"""What an attacker knows: which model is attacked, and by which attacks."""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import keras

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.attack_catalogue import ATTACK_KINDS, attack_rank
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.subjects import model_digest
from sfm_tf.models.defended_model import DefendedModel

Access = Literal["gradient", "scores", "decisions", "adaptive"]
"""What the attacked model tells: its gradient, its logits, its predicted class, or the gradient of
each of its parts."""


class ThreatModel(enum.Enum):
    """The attacker's knowledge; what is scored is always the defended model.

    The boxes go by the names of Yu et al. 2022, section 6.1 (2). The others are the attackers that
    Carlini et al. 2019 ("On evaluating adversarial robustness") ask for beside them.
    """

    BLACK_BOX = "black_box"
    GRAY_BOX = "gray_box"
    WHITE_BOX = "white_box"
    ADAPTIVE = "adaptive"
    UNDEFENDED = "undefended"
    SCORE_BASED = "score_based"
    DECISION_BASED = "decision_based"

    @property
    def access(self) -> Access:
        """What the attacked model tells the attacker."""
        return _ATTACKERS[self].access

    @property
    def attacker_knows(self) -> str:
        """One sentence for reports."""
        return _ATTACKERS[self].attacker_knows


class _Attacker(NamedTuple):
    """One threat model.

    Attributes:
        access: What the attacked model tells.
        attacker_knows: One sentence for reports.
        attacked: Picks the attacked model out of the defended one and the source model.
        attacks: The attacks that belong to it; None for those that an evaluation is asked for.
        applies: Tells whether it is an attack on this model that no other threat model is.
    """

    access: Access
    attacker_knows: str
    attacked: Callable[[DefendedModel, keras.Model | None], keras.Model]
    attacks: tuple[str, ...] | None = None
    applies: Callable[[DefendedModel], bool] = lambda defended: True


def _independent(defended: DefendedModel, source: keras.Model | None) -> keras.Model:
    del defended
    if source is None:
        raise SfmError(
            "The black-box threat model needs a source model; train one or leave it out."
        )
    return source


def _whole(defended: DefendedModel, source: keras.Model | None) -> keras.Model:
    del source
    return defended.for_attacker()


def _with_masker(defended: DefendedModel, source: keras.Model | None) -> keras.Model:
    del source
    if not _has_masker(defended):
        raise SfmError(
            "The adaptive threat model needs a model with a masker; found one without. "
            "Attack it in the white box."
        )
    return defended.for_attacker()


def _has_masker(defended: DefendedModel) -> bool:
    return defended.masker is not None


def _is_defended(defended: DefendedModel) -> bool:
    return _has_masker(defended) or defended.preprocessor.spec != "none"


_ATTACKERS: Mapping[ThreatModel, _Attacker] = {
    ThreatModel.BLACK_BOX: _Attacker(
        access="gradient",
        attacker_knows=(
            "The attacker knows the task but nothing of the attacked model, follows the gradient "
            "of an independently trained one and transfers the images."
        ),
        attacked=_independent,
    ),
    ThreatModel.GRAY_BOX: _Attacker(
        access="gradient",
        attacker_knows=(
            "The attacker knows classifier and masker but not the pre-processing, and follows the "
            "gradient of the two; robustness against that one alone is no evidence of security."
        ),
        attacked=lambda defended, source: defended.without_preprocessor(),
    ),
    ThreatModel.WHITE_BOX: _Attacker(
        access="gradient",
        attacker_knows=(
            "The attacker knows everything and follows the gradient of the whole model, with a "
            "stand-in for that of the pre-processing (BPDA)."
        ),
        attacked=_whole,
    ),
    ThreatModel.ADAPTIVE: _Attacker(
        access="adaptive",
        attacker_knows=(
            "The attacker knows everything and aims at the parts of the defence: at the mask, at "
            "the classifier behind it, and through the pre-processing's other stand-in."
        ),
        attacked=_with_masker,
        attacks=(
            "adaptive_mask_aware",
            "adaptive_mask_stage",
            "adaptive_frozen_mask",
            "adaptive_other_surrogate",
        ),
        applies=_has_masker,
    ),
    ThreatModel.UNDEFENDED: _Attacker(
        access="gradient",
        attacker_knows=(
            "The attacker knows the classifier, is unaware of any defence before it, and follows "
            "the gradient of the bare classifier."
        ),
        attacked=lambda defended, source: DefendedModel(defended.classifier),
        applies=_is_defended,
    ),
    ThreatModel.SCORE_BASED: _Attacker(
        access="scores",
        attacker_knows=(
            "The attacker knows nothing of the model but may ask it for the logits of any image."
        ),
        attacked=_whole,
        attacks=("square",),
    ),
    ThreatModel.DECISION_BASED: _Attacker(
        access="decisions",
        attacker_knows=(
            "The attacker knows nothing of the model but may ask it for the predicted class of "
            "any image."
        ),
        attacked=_whole,
        attacks=("hop_skip_jump",),
    ),
}


def attacked_model(
    threat_model: ThreatModel, defended: DefendedModel, source: keras.Model | None
) -> keras.Model:
    """Returns the model that the attacker differentiates or asks (Yu et al. 2022, section 6.1 (2)).

    Black box: an independently trained source model; the paper's text also calls its attacker
    one who knows the target, "in a compromise way". Gray box: classifier behind masker, without
    the pre-processing T. White box: everything, with T's gradient by its surrogate (BPDA) and,
    where T draws, other draws than those that will be scored. Undefended: the bare classifier.
    Adaptive, score- and decision-based: everything. For a model with neither masker nor T, gray
    and white box and undefended are all the bare classifier.

    Args:
        threat_model: What the attacker knows.
        defended: The model that will be scored.
        source: The independent model; None where the black box is not asked for.

    Raises:
        SfmError: If the black box is asked for without a source model, or the adaptive attacker
            for a model without a masker.
    """
    return _ATTACKERS[threat_model].attacked(defended, source)


def default_attacks(threat_model: ThreatModel, configured: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the attacks that a threat model runs.

    Args:
        threat_model: What the attacker knows.
        configured: The attacks that an evaluation is asked for; those that follow the gradient of
            one model run them. The others have attacks of their own.
    """
    attacks = _ATTACKERS[threat_model].attacks
    return configured if attacks is None else attacks


def applies_to(threat_model: ThreatModel, defended: DefendedModel) -> bool:
    """Tells whether a threat model adds anything to the others for this model.

    The adaptive attacker needs a masker to aim at. The one who is unaware of the defence is the
    white box where there is neither masker nor pre-processing T.
    """
    return _ATTACKERS[threat_model].applies(defended)


@dataclasses.dataclass(frozen=True)
class Use:
    """What an attack's images are for: a defence that is scored under a threat model."""

    defence: str
    threat_model: str

    def __str__(self) -> str:
        """Returns both words."""
        return f"{self.defence} {self.threat_model}"


@dataclasses.dataclass(frozen=True)
class PlannedAttack:
    """One attack on one model.

    Attributes:
        attack_name: A name of the catalogue.
        model: The model that is attacked.
        digest: The model's digest.
        uses: Every use of the images it makes.
        is_scored: Whether all uses score the very model that is attacked.
        examples: How many of the images are attacked, the first ones; None for all.
    """

    attack_name: str
    model: keras.Model
    digest: str
    uses: tuple[Use, ...]
    is_scored: bool
    examples: int | None

    @property
    def is_bounded(self) -> bool:
        """Whether it looks in a ball, rather than for the smallest perturbation."""
        return ATTACK_KINDS[self.attack_name].is_bounded


def plan_attacks(
    models: Mapping[str, DefendedModel], source: keras.Model | None, config: EvaluationConfig
) -> list[PlannedAttack]:
    """Returns the attacks of an evaluation, cheap ones first.

    Two threat models that come to the same attack on the same model share its images: both models
    share those of the black box, and gray and white box of a bare classifier are the same.

    Args:
        models: The models that are scored, by the names of their defences.
        source: Independent model of the black box; None where it is not asked for.
        config: Attacks and threat models.

    Raises:
        SfmError: If the black box is asked for without a source model.
    """
    digests = {defence: model_digest(model) for defence, model in models.items()}
    attacked: dict[str, keras.Model] = {}
    uses: dict[tuple[str, str], list[Use]] = {}
    for defence, model in models.items():
        for threat_model in map(ThreatModel, config.threat_models):
            if not applies_to(threat_model, model):
                continue
            target = attacked_model(threat_model, model, source)
            digest = model_digest(target)
            attacked.setdefault(digest, target)
            for name in default_attacks(threat_model, config.attacks):
                uses.setdefault((digest, name), []).append(Use(defence, threat_model.value))
    plan = [
        PlannedAttack(
            attack_name=name,
            model=attacked[digest],
            digest=digest,
            uses=tuple(shared),
            is_scored=all(digests[use.defence] == digest for use in shared),
            examples=config.decision_examples if ATTACK_KINDS[name].is_slow else None,
        )
        for (digest, name), shared in uses.items()
    ]
    return sorted(plan, key=lambda attack: attack_rank(attack.attack_name))
