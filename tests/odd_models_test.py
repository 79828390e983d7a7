"""The audit on sound, odd and sabotaged models: each with the verdict that it must get.

All are made of one small network that was trained on digits.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.audit.audited_evaluation import write_evaluation
from sfm_tf.audit.blessing import Blessing
from sfm_tf.audit.verdict import AUDIT_FILE, AuditVerdict, read_audit
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.job import EvaluationJob
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.operation import Operation
from tests.attacked_models import DIGIT_SHAPE, digit_model, digits

COUNT = 100
PROBED = EvaluationConfig(
    epsilons=(8.0, 24.0),
    attacks=("pgd",),
    threat_models=("gray_box", "white_box", "adaptive"),
    iterations=10,
    step_size=6.0,
    square_queries=200,
    min_clean_accuracy=0.0,
    min_worst_case_accuracy=0.0,
)
"""What is blessed depends on the audit alone."""

UNPROBED = dataclasses.replace(PROBED, audit_examples=0, epsilons=(24.0,), iterations=2)


def _evaluate(
    model: DefendedModel, config: EvaluationConfig, folder: pathlib.Path
) -> tuple[Mapping[str, str], AuditVerdict, Blessing]:
    """Returns how each check came out, the verdict and the blessing."""
    images, labels = digits()
    job = EvaluationJob(
        models={"model": model},
        source=None,
        samples=check_samples(images[:COUNT], labels[:COUNT], model.classifier),
        config=config,
        seed=0,
        store=AdversarialStore(folder),
        progress=lambda *_: None,
    )
    blessing = write_evaluation(job, folder)
    findings, verdict = read_audit(folder / AUDIT_FILE)
    return {finding.rule: finding.status for finding in findings}, verdict, blessing


@keras.saving.register_keras_serializable("odd_models_test")
class Odd(keras.layers.Layer):
    """A function of images or of logits by its name, with a counter of the calls."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__(**options)
        self.kind = kind
        self.calls = tf.Variable(0.0, trainable=False)

    def call(self, values: tf.Tensor) -> tf.Tensor:
        self.calls.assign_add(1.0)
        return FUNCTIONS[self.kind](values, self.calls)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}


def _with_gradient(gradient: Callable[[tf.Tensor], tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Returns the identity with another gradient."""

    @tf.custom_gradient
    def identity(images: tf.Tensor) -> Any:
        return tf.identity(images), gradient

    return lambda images, calls: identity(images)


def _drawn_from_a_hash(images: tf.Tensor, calls: tf.Tensor) -> tf.Tensor:
    """Adds noise that one bit of the image changes, and that no attack by gradient sees."""
    bits = tf.reshape(tf.cast(tf.bitcast(images, tf.int32), tf.int64), (-1, 64))
    factors = np.random.default_rng(0).integers(1, 2**31, (2, 64))
    hashes = tf.math.floormod(tf.reduce_sum(bits * factors[0], axis=1, keepdims=True), 2**31 - 1)
    uniform = tf.cast(tf.math.floormod(hashes * factors[1], 2**31 - 1), tf.float32) / 2**31
    return images + 0.8 * (tf.reshape(uniform, (-1, *DIGIT_SHAPE)) - 0.5)


def _mirrored(images: tf.Tensor, calls: tf.Tensor) -> tf.Tensor:
    coins = tf.random.uniform((tf.shape(images)[0], 1, 1, 1)) < 0.5
    return tf.where(coins, images, tf.reverse(images, [2]))


def _standardised_by_batch(images: tf.Tensor, calls: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(images, [0])
    return 0.3 + 0.3 * (images - mean) / tf.sqrt(variance + 0.01)


def _staircase(images: tf.Tensor, calls: tf.Tensor) -> tf.Tensor:
    return tf.floor(8.0 * images) / 8.0 + 1e-6 * images


Function = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

OF_IMAGES: Mapping[str, Function] = {
    "hashed": _drawn_from_a_hash,
    "noisy": lambda images, calls: images + 0.12 * tf.random.normal(tf.shape(images)),
    "dropout": lambda images, calls: tf.nn.dropout(images, 0.3),
    "mirrored": _mirrored,
    "by_batch": _standardised_by_batch,
    "counting": lambda images, calls: images * (1.0 - 0.3 * tf.math.floormod(calls, 2.0)),
    "drifting": lambda images, calls: images * tf.where(calls < 60.0, 1.0, 0.2),
    "clock": lambda images, calls: (
        images
        * tf.cast(0.6 + 0.4 * tf.sin(1e5 * tf.math.floormod(tf.timestamp(), 1.0)), tf.float32)
    ),
    "expects_bytes": lambda images, calls: images / 255.0,
    "inverted": lambda images, calls: 1.0 - images,
    "rounded": lambda images, calls: tf.round(8.0 * images) / 8.0,
    "staircase": _staircase,
    "zero_gradient": _with_gradient(tf.zeros_like),
    "nan_gradient": _with_gradient(lambda gradient: gradient * float("nan")),
    "flipped_gradient": _with_gradient(tf.negative),
    "random_gradient": _with_gradient(lambda gradient: tf.random.normal(tf.shape(gradient))),
    "stopped": lambda images, calls: tf.stop_gradient(images),
}
OF_LOGITS: Mapping[str, Function] = {
    "times_100": lambda logits, calls: 100.0 * logits,
    "times_10000": lambda logits, calls: 1e4 * logits,
    "over_1000": lambda logits, calls: logits / 1e3,
    "temperature": lambda logits, calls: 0.5 * logits,
    "log_softmax": lambda logits, calls: tf.nn.log_softmax(logits),
    "tanh": lambda logits, calls: tf.tanh(logits),
    "clipped": lambda logits, calls: tf.clip_by_value(logits, -2.0, 2.0),
    "relu": lambda logits, calls: tf.nn.relu(logits),
    "softmax": lambda logits, calls: tf.nn.softmax(logits),
    "sigmoid": lambda logits, calls: tf.sigmoid(logits),
    "scaled_sigmoid": lambda logits, calls: 10.0 * tf.sigmoid(logits),
    "sigmoid_over_10": lambda logits, calls: tf.sigmoid(logits / 10.0),
    "nan": lambda logits, calls: logits * float("nan"),
    "infinite": lambda logits, calls: 1e38 * logits,
    "permuted": lambda logits, calls: tf.roll(logits, 1, axis=1),
    "constant": lambda logits, calls: 0.0 * logits,
    "one_class": lambda logits, calls: logits + 1e3 * tf.one_hot(3, 10),
    "five_classes": lambda logits, calls: logits - 30.0 * tf.constant([0.0] * 5 + [1.0] * 5),
}
FUNCTIONS = {**OF_IMAGES, **OF_LOGITS}
"""Of images or logits, and of the number of calls."""


def _before(kind: str) -> DefendedModel:
    return DefendedModel(keras.Sequential([keras.Input(DIGIT_SHAPE), Odd(kind), digit_model()]))


def _after(kind: str) -> DefendedModel:
    return DefendedModel(keras.Sequential([keras.Input(DIGIT_SHAPE), digit_model(), Odd(kind)]))


def _normalised() -> DefendedModel:
    rescaling = keras.layers.Rescaling
    layers = [keras.Input(DIGIT_SHAPE), rescaling(2.0, -1.0), rescaling(0.5, 0.5), digit_model()]
    return DefendedModel(keras.Sequential(layers))


def _masked() -> DefendedModel:
    keras.utils.set_random_seed(0)
    masker = keras.Sequential(
        [keras.Input(DIGIT_SHAPE), keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )
    masker.layers[-1].bias.assign([4.0])  # Nearly transparent.
    return DefendedModel(digit_model(), masker)


@functools.cache
def _deeper(labels: str = "true") -> DefendedModel:
    """Returns a deeper network with batch normalisation, trained on true or on drawn labels."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input(DIGIT_SHAPE)])
    for width in (8, 16, 16):
        network.add(keras.layers.Conv2D(width, 3, padding="same"))
        network.add(keras.layers.BatchNormalization())
        network.add(keras.layers.ReLU())
    network.add(keras.layers.Flatten())
    network.add(keras.layers.Dense(10))
    images, answers = digits()
    if labels != "true":
        answers = np.random.default_rng(0).permutation(answers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(0.005), loss)
    network.fit(images[200:], answers[200:], batch_size=64, epochs=5, verbose=0)
    return DefendedModel(network)


class Case(NamedTuple):
    """A model and what the audit must say of it.

    Attributes:
        make: Makes it.
        level: The verdict.
        fires: Checks that must fail or give a warning.
        changes: Settings of the evaluation that differ.
    """

    make: Callable[[], DefendedModel]
    level: str
    fires: tuple[str, ...] = ()
    changes: Mapping[str, Any] = {}


def _case(kind: str, level: str, *fires: str, **changes: Any) -> Case:
    """Returns the case of a function before or, if it takes logits, after the network."""
    make = _after if kind in OF_LOGITS else _before
    return Case(functools.partial(make, kind), level, fires, changes)


def _blocked() -> DefendedModel:
    """Returns the network behind an operation whose stand-in has no gradient."""
    blocking = Operation(lambda images: images, lambda images: 0.0 * images, ())
    preprocessor = Preprocessor("blocking", "smooth", steps=((blocking, ()),))
    return DefendedModel(digit_model(), None, preprocessor)


def _behind(preprocessor: str, surrogate: str = "identity") -> DefendedModel:
    return DefendedModel(digit_model(), None, parse_preprocessor(preprocessor, surrogate))


NOT_BELIEVED = "not_credible"

UNPROBED_CASES = {
    # Nothing speaks against it, but that is little.
    "plain": Case(lambda: DefendedModel(digit_model()), "incomplete"),
    "Gaussian noise": _case("noisy", NOT_BELIEVED, "repeatable"),
    "Gaussian noise, attacked with EOT": _case("noisy", "incomplete", gradient_samples=8),
    "dropout that stays on": _case("dropout", NOT_BELIEVED, "repeatable"),
    "images mirrored at random": _case("mirrored", NOT_BELIEVED, "repeatable"),
    "batch normalisation in training mode": _case("by_batch", NOT_BELIEVED, "repeatable"),
    "every other call answered otherwise": _case("counting", NOT_BELIEVED, "repeatable"),
    "the time of day": _case("clock", NOT_BELIEVED, "repeatable"),
    "pixels from 0 to 255 expected": _case("expects_bytes", NOT_BELIEVED, "chance"),
    "black for white": _case("inverted", NOT_BELIEVED, "chance"),
    "classes in another order": _case("permuted", NOT_BELIEVED, "chance"),
    "one and the same answer": _case("constant", NOT_BELIEVED, "chance", "outputs"),
    "one class only": _case("one_class", NOT_BELIEVED, "chance"),
    "trained on drawn labels": Case(lambda: _deeper("drawn"), NOT_BELIEVED, ("chance",)),
    # Half as accurate, but no evaluation is wrong because a model is bad.
    "half of the classes": _case("five_classes", "incomplete"),
    "logits over 1000": _case("over_1000", "incomplete", "outputs"),
    "sigmoid of small logits": _case("sigmoid_over_10", "incomplete", "outputs"),
}
"""What has to be seen although the audit takes no measurements of attacks."""

QUICK_CASES = {
    "plain": Case(lambda: DefendedModel(digit_model()), "credible"),
    "draws from a hash of the image": _case("hashed", NOT_BELIEVED, "redrawn"),
    "no gradient": _case("zero_gradient", NOT_BELIEVED, "gradients", "gradient_free"),
    "surrogate without a gradient": Case(_blocked, NOT_BELIEVED, ("gradients", "huge_radius")),
    "logits times 100": _case("times_100", NOT_BELIEVED, "gradients", "margin"),
    "logits over 1000": _case("over_1000", NOT_BELIEVED, "margin", "outputs"),
}

SLOW_CASES = {
    "bit depth of 4": Case(lambda: _behind("bit_depth_4"), "credible"),
    "median, best surrogate": Case(lambda: _behind("median_2", "smooth"), "credible"),
    "normalised inside": Case(_normalised, "credible"),
    "masked": Case(_masked, "credible"),
    "deeper, with batch normalisation": Case(_deeper, "credible"),
    "log-softmax": _case("log_softmax", "credible"),
    "temperature": _case("temperature", "credible"),
    "half of the classes": _case("five_classes", "credible"),
    "changes after some calls": _case("drifting", NOT_BELIEVED, "no_radius"),
    "staircase with a faint slope": _case("staircase", "incomplete", "gradients"),
    "gradient that is no number": _case("nan_gradient", NOT_BELIEVED, "gradients"),
    "gradient of the other sign": _case("flipped_gradient", NOT_BELIEVED, "loss"),
    "drawn gradient": _case("random_gradient", NOT_BELIEVED, "gradient_free"),
    "logits times 10000": _case("times_10000", NOT_BELIEVED, "gradients", "margin"),
    "hyperbolic tangent": _case("tanh", NOT_BELIEVED, "gradient_free", "margin", "outputs"),
    "scaled sigmoid": _case("scaled_sigmoid", "incomplete", "margin", "outputs"),
    "clipped logits": _case("clipped", NOT_BELIEVED, "huge_radius"),
    # Odd, but PGD is as strong on it.
    "rectified logits": _case("relu", "credible", "outputs"),
    # Whoever may ask again gets another draw.
    "Gaussian noise, attacked with EOT": _case(
        "noisy", "incomplete", "redrawn", gradient_samples=8
    ),
}

REFUSED = {
    "softmax": "returns probabilities; expected logits",
    "sigmoid": "all in [0, 1], from 1.62e-10 to 1, as those of a sigmoid; expected logits",
    "nan": "NaN or infinite for 100 of 100 images",
    "infinite": "NaN or infinite for 100 of 100 images",
    "rounded": "no gradient with respect to its input; give each operation without one",
    "stopped": "no gradient with respect to its input",
}
"""What is refused before any attack, and why."""


def _check(case: Case, config: EvaluationConfig, folder: pathlib.Path) -> None:
    found, verdict, blessing = _evaluate(
        case.make(), dataclasses.replace(config, **case.changes), folder
    )
    noticed = {rule for rule, status in found.items() if status in ("fail", "warn")}
    assert verdict.level == case.level, f"{verdict.sentence} {noticed}"
    assert noticed >= set(case.fires), noticed
    assert blessing.blessed == (case.level != NOT_BELIEVED), blessing.reasons


@pytest.mark.parametrize("case", UNPROBED_CASES.values(), ids=UNPROBED_CASES)
def test_without_probes_nothing_random_or_collapsed_is_believed(case, tmp_path):
    _check(case, UNPROBED, tmp_path)


@pytest.mark.parametrize("case", QUICK_CASES.values(), ids=QUICK_CASES)
def test_a_model_gets_the_verdict_that_it_deserves(case, tmp_path):
    _check(case, PROBED, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES.values(), ids=SLOW_CASES)
def test_another_model_gets_the_verdict_that_it_deserves(case, tmp_path):
    _check(case, PROBED, tmp_path)


@pytest.mark.parametrize(("kind", "message"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_attacked_is_refused(kind, message, tmp_path):
    with pytest.raises(SfmError, match=re.escape(message)):
        _evaluate(_case(kind, NOT_BELIEVED).make(), UNPROBED, tmp_path)
