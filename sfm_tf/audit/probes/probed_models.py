"""One compiled model for all ablations: switches say which parts take part."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import SURROGATES, Preprocessor, parse_preprocessor

NO_PREPROCESSOR = "none"
SERVED = "served"
ATTACKER = "attacker"
OTHER_SURROGATE = "other_surrogate"
BROKEN = "broken"


class Switches(NamedTuple):
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


class Ablation(NamedTuple):
    """A model and what an attacker who knows everything of it can differentiate.

    Attributes:
        scored: The model whose answers count.
        attacked: The same, but with other draws where its pre-processing is random.
    """

    scored: Switches
    attacked: Switches


class Ablations(NamedTuple):
    """The model under test and what is left of it without a part; equal ones compare equal.

    Attributes:
        whole: Classifier behind masker and pre-processing T.
        masker_only: Without T.
        preprocessor_only: Without masker.
        bare: The classifier.
        other_surrogate: The whole with the gradient of T's other surrogate; None without T.
    """

    whole: Ablation
    masker_only: Ablation
    preprocessor_only: Ablation
    bare: Ablation
    other_surrogate: Ablation | None

    @property
    def has_masker(self) -> bool:
        """Whether there is a masker."""
        return self.whole.scored.masker

    @property
    def has_preprocessor(self) -> bool:
        """Whether there is a pre-processing T."""
        return self.other_surrogate is not None


def make_ablations(subject: DefendedModel) -> Ablations:
    """Returns the model and what is left of it without a part."""
    has_masker = subject.masker is not None
    has_preprocessor = subject.preprocessor.spec != "none"
    whole = _ablation(has_masker, has_preprocessor)
    other = Switches(has_masker, OTHER_SURROGATE)
    return Ablations(
        whole=whole,
        masker_only=_ablation(has_masker, False),
        preprocessor_only=_ablation(False, has_preprocessor),
        bare=_ablation(False, False),
        other_surrogate=Ablation(whole.scored, other) if has_preprocessor else None,
    )


def _ablation(masker: bool, preprocessor: bool) -> Ablation:
    names = (SERVED, ATTACKER) if preprocessor else (NO_PREPROCESSOR, NO_PREPROCESSOR)
    return Ablation(*(Switches(masker, name) for name in names))


BROKEN_DEFENCE = "bit_depth_3"
"""Broken by a straight-through gradient (He et al. 2017, Athalye et al. 2018)."""


class SwitchedModel:
    """A model under test with switches, each a variable of TensorFlow.

    Compiling an attack takes longer than running it on a hundred small images. A part that is
    switched off is not computed, and what is left is computed as without it.

    The logits can be scaled up: the same predictions from a model whose robustness is an illusion.
    Defensive distillation does this (Papernot et al. 2016): its softmax is so confident that
    float32 rounds the gradient of the cross-entropy to zero (Carlini and Wagner 2017, "Towards
    evaluating the robustness of neural networks"). An attack that is stopped by it is stopped by
    nothing.

    Attributes:
        model: The model, at first as it is served.
    """

    def __init__(self, subject: DefendedModel) -> None:
        """Makes the switches; the parts are shared with the caller, not copied."""
        self._masker = None if subject.masker is None else _SwitchedMasker(subject.masker)
        self._preprocessor = _SwitchedPreprocessor(subject.preprocessor)
        self._classifier = _ScaledClassifier(subject.classifier)
        self.model = DefendedModel(self._classifier, self._masker, self._preprocessor)

    def switch(self, switches: Switches) -> None:
        """Turns the model into what `switches` describes, for all calls from now on."""
        if self._masker is not None:
            self._masker.is_on.assign(switches.masker)
        self._preprocessor.chosen.assign(self._preprocessor.places[switches.preprocessor])
        self._classifier.factor.assign(switches.factor)


class _SwitchedMasker:
    """Stands in for a masker: its mask, or one of ones."""

    def __init__(self, masker: keras.Model) -> None:
        self._masker = masker
        self.is_on = tf.Variable(True, trainable=False)

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        del training
        return tf.cond(
            self.is_on.read_value(),
            lambda: self._masker(images, training=False),
            lambda: tf.ones_like(images[..., :1]),
        )


class _SwitchedPreprocessor:
    """Stands in for a `Preprocessor`: one of several, by its place."""

    def __init__(self, served: Preprocessor) -> None:
        self._choices: list[Preprocessor] = []
        self.places: dict[str, int] = {}
        self.chosen = tf.Variable(0, trainable=False)
        attacker = served.for_attacker()
        self._add(SERVED, served)
        self.places[ATTACKER] = 0
        if attacker is not served:
            self._add(ATTACKER, attacker)
        if served.spec != "none":
            (other,) = (name for name in SURROGATES if name != served.surrogate)
            self._add(OTHER_SURROGATE, attacker.with_surrogate(other))
        self._add(NO_PREPROCESSOR, parse_preprocessor("none"))
        self._add(BROKEN, parse_preprocessor(BROKEN_DEFENCE))

    def __call__(self, images: tf.Tensor, drawn_from: tf.Tensor | None = None) -> tf.Tensor:
        branches = [lambda choice=choice: choice(images, drawn_from) for choice in self._choices]
        return tf.switch_case(self.chosen.read_value(), branches)

    def _add(self, name: str, choice: Preprocessor) -> None:
        self.places[name] = len(self._choices)
        self._choices.append(choice)


class _ScaledClassifier(keras.Model):
    """The logits of a classifier times a factor."""

    def __init__(self, classifier: keras.Model, **options: Any) -> None:
        super().__init__(**{**options, "dtype": "float32"})
        self.classifier = classifier
        self.factor = tf.Variable(1.0, trainable=False)
        self.built = True

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return self.factor * tf.cast(self.classifier(images, training=False), tf.float32)
