"""The model under test, whole, with parts taken away, and with parts that are known to fail."""

from typing import NamedTuple

from sfm_tf.models.defended_model import DefendedModel

NO_PREPROCESSOR = "none"
SERVED = "served"
ATTACKER = "attacker"
OTHER_SURROGATE = "other_surrogate"
BROKEN = "broken"


class Setup(NamedTuple):
    """Which parts stand before the classifier.

    Attributes:
        masker: Whether the masker does.
        preprocessor: `none`; `served` for the model's own, or `attacker` for the attacker's copy,
            whose draws are others; `other_surrogate` for that copy with the gradient of its other
            surrogate; or `broken` for `switched_model.BROKEN_DEFENCE`.
        factor: What the logits are multiplied by.
    """

    masker: bool
    preprocessor: str
    factor: float = 1.0


class Variant(NamedTuple):
    """A model and what an attacker who knows everything of it can differentiate.

    Attributes:
        scored: The model whose answers count.
        attacked: The same, but with other draws where its pre-processing is random.
    """

    scored: Setup
    attacked: Setup


class Variants(NamedTuple):
    """The model under test and what is left of it without a part; equal ones compare equal.

    Attributes:
        whole: Classifier behind masker and pre-processing T.
        masker_only: Without T.
        preprocessor_only: Without masker.
        bare: The classifier.
        other_surrogate: The whole with the gradient of T's other surrogate; None without T.
    """

    whole: Variant
    masker_only: Variant
    preprocessor_only: Variant
    bare: Variant
    other_surrogate: Variant | None

    @property
    def has_masker(self) -> bool:
        """Whether there is a masker."""
        return self.whole.scored.masker

    @property
    def has_preprocessor(self) -> bool:
        """Whether there is a pre-processing T."""
        return self.other_surrogate is not None


def make_variants(subject: DefendedModel) -> Variants:
    """Returns the model and what is left of it without a part."""
    has_masker = subject.masker is not None
    has_preprocessor = subject.preprocessor.spec != "none"
    whole = _variant(has_masker, has_preprocessor)
    other = Setup(has_masker, OTHER_SURROGATE)
    return Variants(
        whole=whole,
        masker_only=_variant(has_masker, False),
        preprocessor_only=_variant(False, has_preprocessor),
        bare=_variant(False, False),
        other_surrogate=Variant(whole.scored, other) if has_preprocessor else None,
    )


def _variant(masker: bool, preprocessor: bool) -> Variant:
    names = (SERVED, ATTACKER) if preprocessor else (NO_PREPROCESSOR, NO_PREPROCESSOR)
    return Variant(*(Setup(masker, name) for name in names))
