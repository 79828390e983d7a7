"""What an attacker knows: one row for each threat model, black, gray and white box first.

Settings read this table, so it imports neither TensorFlow nor a model.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.attack_catalogue import ATTACKS

if TYPE_CHECKING:
    import keras

    from sfm_tf.models.defended_model import DefendedModel

Access: TypeAlias = Literal["gradient", "scores", "decisions", "adaptive"]
"""What the attacked model tells: its gradient, its logits, its predicted class, or the gradient of
each of its parts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attacker:
    """What is known of one threat model.

    Attributes:
        title: Its name in reports.
        access: What the attacked model tells.
        attacker_knows: One sentence for reports.
        attacked: Returns the attacked model, from the defended one and the source model.
        applies: Tells whether it is an attack on this model that no other threat model is.
        tries_surrogates: Whether each stand-in of the pre-processing's gradient is followed.
        transfers: Whether images that fool an independent model are tried, too.
    """

    title: str
    access: Access
    attacker_knows: str
    attacked: "Callable[[DefendedModel, keras.Model | None], keras.Model]"
    applies: "Callable[[DefendedModel], bool]" = lambda defended: True
    tries_surrogates: bool = False
    transfers: bool = False


def _source(defended: "DefendedModel", source: "keras.Model | None") -> "keras.Model":
    del defended
    if source is None:
        raise SfmError(
            "The black-box threat model needs a source model; train one or leave it out."
        )
    return source


def _without_preprocessor(defended: "DefendedModel", source: "keras.Model | None") -> "keras.Model":
    del source
    return defended.without_preprocessor()


def _everything(defended: "DefendedModel", source: "keras.Model | None") -> "keras.Model":
    del source
    return defended.for_attacker()


def _everything_with_masker(
    defended: "DefendedModel", source: "keras.Model | None"
) -> "keras.Model":
    del source
    if not _has_masker(defended):
        raise SfmError(
            "The adaptive threat model needs a model with a masker; found one without. "
            "Attack it in the white box."
        )
    return defended.for_attacker()


def _bare_classifier(defended: "DefendedModel", source: "keras.Model | None") -> "keras.Model":
    del source
    return defended.without_defence()


def _has_masker(defended: "DefendedModel") -> bool:
    return defended.masker is not None


def _is_defended(defended: "DefendedModel") -> bool:
    return _has_masker(defended) or defended.preprocessor.spec != "none"


class ThreatModel(enum.Enum):
    """The attacker's knowledge; what is scored is always the defended model.

    The boxes go by the names of Yu et al. 2022, section 6.1 (2). The others are the attackers that
    Carlini et al. 2019 ("On evaluating adversarial robustness") ask for beside them. Of the two
    parts of a member the first is its value, which settings and files have.
    """

    BLACK_BOX = (
        "black_box",
        Attacker(
            title="black box",
            access="gradient",
            attacker_knows=(
                "The attacker knows the task but nothing of the attacked model, follows the "
                "gradient of an independently trained one and transfers the images."
            ),
            attacked=_source,
        ),
    )
    GRAY_BOX = (
        "gray_box",
        Attacker(
            title="gray box",
            access="gradient",
            attacker_knows=(
                "The attacker knows classifier and masker but not the pre-processing, and follows "
                "the gradient of the two; robustness against that one alone is no evidence of "
                "security."
            ),
            attacked=_without_preprocessor,
        ),
    )
    WHITE_BOX = (
        "white_box",
        Attacker(
            title="white box",
            access="gradient",
            attacker_knows=(
                "The attacker knows everything and follows the gradient of the whole model, with "
                "each stand-in for that of the pre-processing in turn (BPDA), of which the worst "
                "counts, and where a key decides what the model draws, he has it."
            ),
            attacked=_everything,
            tries_surrogates=True,
        ),
    )
    ADAPTIVE = (
        "adaptive",
        Attacker(
            title="adaptive",
            access="adaptive",
            attacker_knows=(
                "The attacker knows everything and aims at the parts of the defence: at the mask, "
                "and at the classifier behind it."
            ),
            attacked=_everything_with_masker,
            applies=_has_masker,
        ),
    )
    UNDEFENDED = (
        "undefended",
        Attacker(
            title="unaware of the defence",
            access="gradient",
            attacker_knows=(
                "The attacker knows the classifier, is unaware of any defence before it, and "
                "follows the gradient of the bare classifier."
            ),
            attacked=_bare_classifier,
            applies=_is_defended,
        ),
    )
    SCORE_BASED = (
        "score_based",
        Attacker(
            title="score-based",
            access="scores",
            attacker_knows=(
                "The attacker knows nothing of the model but may ask the very model that is scored "
                "for the logits of any image."
            ),
            attacked=_everything,
            transfers=True,
        ),
    )
    DECISION_BASED = (
        "decision_based",
        Attacker(
            title="decision-based",
            access="decisions",
            attacker_knows=(
                "The attacker knows nothing of the model but may ask the very model that is scored "
                "for the predicted class of any image."
            ),
            attacked=_everything,
            transfers=True,
        ),
    )

    def __new__(cls, value: str, attacker: Attacker) -> "ThreatModel":
        """Makes a member with this value, so that `ThreatModel(value)` finds it."""
        member = object.__new__(cls)
        member._value_ = value
        member.attacker = attacker
        return member

    @property
    def title(self) -> str:
        """Its name in reports."""
        return self.attacker.title

    @property
    def access(self) -> Access:
        """What the attacked model tells the attacker."""
        return self.attacker.access

    @property
    def has_few_examples(self) -> bool:
        """Whether only `decision_examples` images are attacked, as each takes seconds."""
        return self.access == "decisions"

    @property
    def attacker_knows(self) -> str:
        """One sentence for reports."""
        return self.attacker.attacker_knows


def attacked_model(
    threat_model: ThreatModel, defended: "DefendedModel", source: "keras.Model | None"
) -> "keras.Model":
    """Returns the model that the attacker differentiates or asks (Yu et al. 2022, section 6.1 (2)).

    Black box: an independently trained source model; the paper's text also calls its attacker
    one who knows the target, "in a compromise way". Gray box: classifier behind masker, without
    the pre-processing T. White box: everything, with T's gradient by its surrogate (BPDA).
    Undefended: the bare classifier. Adaptive, score- and decision-based: everything. Everything is
    the very model that is scored, also where its draws follow from a key; only where T draws afresh
    at each call, the attacker meets other draws. For a model with neither masker nor T, gray and
    white box and undefended are all the bare classifier.

    Args:
        threat_model: What the attacker knows.
        defended: The model that will be scored.
        source: The independent model; None where the black box is not asked for.

    Raises:
        SfmError: If the black box is asked for without a source model, or the adaptive attacker
            for a model without a masker.
    """
    return threat_model.attacker.attacked(defended, source)


def default_attacks(threat_model: ThreatModel, configured: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the attacks that a threat model runs.

    Args:
        threat_model: What the attacker knows.
        configured: The attacks that an evaluation is asked for; those that follow the gradient of
            one model run them. The others have attacks of their own.

    Returns:
        Names of `ATTACKS`; not each applies to each model.
    """
    own = tuple(name for name, kind in ATTACKS.items() if threat_model.value in kind.threat_models)
    return (*configured, *own) if threat_model.access == "gradient" else own


def applies_to(threat_model: ThreatModel, defended: "DefendedModel") -> bool:
    """Tells whether a threat model adds anything to the others for this model.

    The adaptive attacker needs a masker to aim at. The one who is unaware of the defence is the
    white box where there is neither masker nor pre-processing T.
    """
    return threat_model.attacker.applies(defended)


def none_applies(names: Iterable[str]) -> SfmError:
    """Returns the error of an evaluation that asks for these threat models alone, in vain."""
    return SfmError(
        f"None of the threat models {', '.join(names)} applies to these models; add white_box."
    )
