"""Tests of the training step against NumPy: analytic gradients and finite differences."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.trainer import TRAINING_METRICS, Phase, SparseFeatureMaskerTrainer

_SHAPE = (2, 2, 1)
_WEIGHT_DECAY = 0.1
_CONFIG = TrainingConfig(
    sparsity_weight=0.4,
    semantic_weight=3.0,
    reconstruction_weight=1.0,
    weight_decay=_WEIGHT_DECAY,
)


def _data(count=6, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.uniform(0.1, 1.0, (count, *_SHAPE)).astype(np.float32)
    return images, generator.integers(0, 3, count)


def _squeezed(images):
    """The 2-bit pre-processing that all trainers here use, in NumPy."""
    return np.round(images * 3) / 3


def _classifier(normalised=False):
    inputs = keras.Input(_SHAPE)
    features = keras.layers.BatchNormalization()(inputs) if normalised else inputs
    initializer = keras.initializers.RandomNormal(seed=1)
    dense = keras.layers.Dense(3, kernel_initializer=initializer)
    logits = dense(keras.layers.Flatten()(features))
    return keras.Model(inputs, keras.layers.Activation("linear", dtype="float32")(logits))


def _masker(normalised=False):
    inputs = keras.Input(_SHAPE)
    features = keras.layers.BatchNormalization()(inputs) if normalised else inputs
    initializer = keras.initializers.RandomNormal(stddev=1.0, seed=2)
    return keras.Model(
        inputs,
        keras.layers.Conv2D(
            1, 1, activation="sigmoid", kernel_initializer=initializer, dtype="float32"
        )(features),
    )


def _trainer(normalised=False, rate=0.5, **changes):
    preprocessor = parse_preprocessor("bit_depth_2")
    model = DefendedModel(_classifier(normalised), _masker(normalised), preprocessor)
    trainer = SparseFeatureMaskerTrainer(model, dataclasses.replace(_CONFIG, **changes))
    trainer.compile(keras.optimizers.SGD(rate), keras.optimizers.SGD(rate))
    return trainer


def _fit(trainer, phase, data=None):
    """Takes one step on all the data; returns what it measured."""
    images, labels = _data() if data is None else data
    trainer.phase = phase
    dataset = tf.data.Dataset.from_tensors((images, labels))
    history = trainer.fit(dataset, verbose=0, shuffle=False).history
    return {name: values[0] for name, values in history.items()}


def _softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_classifier_step_descends_cross_entropy_and_decay_on_pre_processed_images():
    trainer = _trainer()
    kernel, bias = (np.copy(weight) for weight in trainer.defended.classifier.get_weights())
    images, labels = _data()
    rows = _squeezed(images).reshape(len(images), -1)
    probabilities = _softmax(rows @ kernel + bias)
    errors = (probabilities - np.eye(3)[labels]) / len(images)
    metrics = _fit(trainer, Phase.CLASSIFIER)
    new_kernel, new_bias = trainer.defended.classifier.get_weights()
    decayed = rows.T @ errors + _WEIGHT_DECAY * kernel
    np.testing.assert_allclose(new_kernel, kernel - 0.5 * decayed, atol=1e-6)
    np.testing.assert_allclose(new_bias, bias - 0.5 * errors.sum(axis=0), atol=1e-6)
    cross_entropy = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert metrics["classification_loss"] == pytest.approx(cross_entropy, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(probabilities.argmax(1) == labels))


def _mask(parameters, images):
    return 1 / (1 + np.exp(-(parameters[0] * images + parameters[1])))


def _masker_objective(parameters, images, kernel, bias, target=None):
    """Eq. 2 to 5 in NumPy for the masker sigmoid(a x + b) and a linear classifier."""
    count = len(images)
    masked = _mask(parameters, images) * images
    masked_logits = masked.reshape(count, -1) @ kernel + bias
    target_kernel, target_bias = (kernel, bias) if target is None else target
    logits = images.reshape(count, -1) @ target_kernel + target_bias
    cosine = np.sum(logits * masked_logits, axis=1) / (
        np.linalg.norm(logits, axis=1) * np.linalg.norm(masked_logits, axis=1)
    )
    sparsity = np.abs(masked).reshape(count, -1).sum(axis=1)
    reconstruction = np.linalg.norm((images - masked).reshape(count, -1), axis=1)
    return np.mean(0.4 * sparsity + 3.0 * (1 - cosine) + reconstruction)


def _masker_gradient(parameters, images, kernel, bias, target=None):
    def objective(values):
        return _masker_objective(values, images, kernel, bias, target)

    steps = 1e-5 * np.eye(2)
    return np.array(
        [(objective(parameters + step) - objective(parameters - step)) / 2e-5 for step in steps]
    )


def test_masker_step_descends_equation_2_on_pre_processed_images():
    trainer = _trainer()
    kernel, bias = (w.astype(np.float64) for w in trainer.defended.classifier.get_weights())
    parameters = np.array([np.ravel(w)[0] for w in trainer.defended.masker.get_weights()], float)
    images = _squeezed(_data()[0].astype(np.float64))
    gradient = _masker_gradient(parameters, images, kernel, bias)
    metrics = _fit(trainer, Phase.MASKER)
    new = [np.ravel(weight)[0] for weight in trainer.defended.masker.get_weights()]
    assert np.abs(gradient).min() > 1e-3
    np.testing.assert_allclose(new, parameters - 0.5 * gradient, atol=1e-5)
    objective = _masker_objective(parameters, images, kernel, bias)
    assert metrics["mask_loss"] == pytest.approx(objective, rel=1e-5)
    assert metrics["mask_mean"] == pytest.approx(_mask(parameters, images).mean(), rel=1e-5)
    assert metrics["mask_spread"] == pytest.approx(_mask(parameters, images).std(), rel=1e-4)


@pytest.mark.parametrize(
    ("phase", "classifier_changes", "masker_changes"),
    [(Phase.CLASSIFIER, True, False), (Phase.MASKER, False, True), (Phase.BOTH, True, True)],
)
def test_frozen_part_keeps_weights_and_batch_statistics(phase, classifier_changes, masker_changes):
    trainer = _trainer(normalised=True)
    parts = (trainer.defended.classifier, trainer.defended.masker)
    before = [[np.copy(weight) for weight in part.get_weights()] for part in parts]
    metrics = _fit(trainer, phase)
    changed = [
        [not np.array_equal(*pair) for pair in zip(old, part.get_weights(), strict=True)]
        for old, part in zip(before, parts, strict=True)
    ]
    # gamma, beta, moving mean, moving variance, kernel, bias: all of them, or none.
    assert changed == [[classifier_changes] * 6, [masker_changes] * 6]
    parts = [Phase.CLASSIFIER] * classifier_changes + [Phase.MASKER] * masker_changes
    assert set(metrics) == {name for part in parts for name in TRAINING_METRICS[part]}
    assert all(value != 0.0 for name, value in metrics.items() if name != "accuracy")


def test_share_of_the_sparsity_weight_is_what_counts():
    whole, half = _trainer(), _trainer(sparsity_weight=0.8)
    half.sparsity_share.assign(0.5)
    for trainer in (whole, half):
        _fit(trainer, Phase.MASKER)
    for pair in zip(whole.get_weights()[1:], half.get_weights()[1:], strict=True):
        np.testing.assert_allclose(*pair, rtol=1e-6)


def test_cross_entropy_can_stand_in_for_the_cosine_distance():
    trainer = _trainer(semantic_loss="cross_entropy")
    kernel, bias = trainer.defended.classifier.get_weights()
    images, labels = _data()
    slope, offset = (np.ravel(weight)[0] for weight in trainer.defended.masker.get_weights())
    squeezed = _squeezed(images)
    masked = _mask((slope, offset), squeezed) * squeezed
    probabilities = _softmax(masked.reshape(len(images), -1) @ kernel + bias)
    expected = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert _fit(trainer, Phase.MASKER)["semantic"] == pytest.approx(expected, rel=1e-5)


def test_images_are_pre_processed_for_training_only_if_it_says_so():
    trainer = _trainer(preprocess_training=False)
    images = _data()[0]
    mask = _mask([np.ravel(w)[0] for w in trainer.defended.masker.get_weights()], images)
    sparsity = (mask * images).reshape(len(images), -1).sum(axis=1).mean()
    assert _fit(trainer, Phase.MASKER)["sparsity"] == pytest.approx(sparsity, rel=1e-5)


@pytest.mark.parametrize("statistics", ["moving", "batch"])
def test_masker_learns_from_the_statistics_that_it_is_to(statistics):
    trainer = _trainer(normalised=True, target_statistics=statistics)
    classifier, masker = trainer.defended.classifier, trainer.defended.masker
    images = _squeezed(_data()[0])
    masked = masker(images, training=True).numpy() * images
    kernel, bias = classifier.layers[-2].get_weights()

    def logits(values):
        if statistics == "batch":
            deviations = np.sqrt(values.var(axis=(0, 1, 2)) + 1e-3)
            values = (values - values.mean(axis=(0, 1, 2))) / deviations
        else:
            values = values / np.sqrt(1 + 1e-3)
        return values.reshape(len(values), -1) @ kernel + bias

    pair = logits(images), logits(masked)
    norms = np.linalg.norm(pair[0], axis=1) * np.linalg.norm(pair[1], axis=1)
    expected = np.mean(1 - np.sum(pair[0] * pair[1], axis=1) / norms)
    averages = [np.copy(weight) for weight in classifier.get_weights()]
    assert _fit(trainer, Phase.MASKER)["semantic"] == pytest.approx(expected, rel=1e-4)
    for before, after in zip(averages, classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_step_of_both_is_one_of_the_classifier_then_one_of_the_masker():
    together, in_turn = (_trainer(normalised=True) for _ in range(2))
    measured = _fit(together, Phase.BOTH)
    parts = {**_fit(in_turn, Phase.CLASSIFIER), **_fit(in_turn, Phase.MASKER)}
    assert measured == pytest.approx(parts, rel=1e-5)
    for pair in zip(together.get_weights(), in_turn.get_weights(), strict=True):
        np.testing.assert_allclose(*pair, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "rounding"),
    [("float32", 1e-6), ("mixed_bfloat16", 1e-4), ("mixed_float16", 1e-5)],
)
@pytest.mark.parametrize("statistics", ["moving", "batch"])
@pytest.mark.parametrize("phase", [Phase.MASKER, Phase.BOTH], ids=["masker", "both"])
def test_mask_of_ones_has_no_semantic_loss(phase, statistics, policy, rounding):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        trainer = _trainer(normalised=True, target_statistics=statistics)
    finally:
        keras.config.set_dtype_policy(previous)
    trainer.defended.masker.layers[-1].bias.assign([100.0])
    measured = [_fit(trainer, phase, _data(seed=seed)) for seed in range(3)]
    assert [each["mask_mean"] for each in measured] == [1.0] * 3
    np.testing.assert_allclose([each["semantic"] for each in measured], 0.0, atol=rounding)


def test_evaluation_measures_bare_and_defended_accuracy():
    trainer = _trainer()
    classifier, masker = trainer.defended.classifier, trainer.defended.masker
    masker.layers[-1].bias.assign([-0.5])
    classifier.layers[-2].bias.assign([0.3, -0.1, -0.2])
    images, labels = _data(count=50)
    kernel, bias = classifier.get_weights()
    slope, offset = (np.ravel(weight)[0] for weight in masker.get_weights())

    def accuracy(values):
        return np.mean((values.reshape(len(values), -1) @ kernel + bias).argmax(1) == labels)

    defended = _squeezed(_mask((slope, offset), images) * images)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(20)
    # Keras before 3.13 gives tensors.
    results = trainer.evaluate(dataset, return_dict=True, verbose=0).items()
    measured = {name: float(value) for name, value in results}
    assert measured["bare_accuracy"] == pytest.approx(accuracy(images), abs=1e-6)
    assert measured["defended_accuracy"] == pytest.approx(accuracy(defended), abs=1e-6)
    objective = _masker_objective((slope, offset), _squeezed(images), kernel, bias)
    assert measured["mask_loss"] == pytest.approx(objective, rel=1e-4)


def test_evaluation_changes_nothing():
    trainer = _trainer(normalised=True)
    before = [np.copy(weight) for weight in trainer.get_weights()]
    trainer.evaluate(*_data(), verbose=0)
    after = trainer.get_weights()
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def _plain_trainer():
    trainer = SparseFeatureMaskerTrainer(DefendedModel(_classifier()), _CONFIG)
    trainer.compile(keras.optimizers.SGD(0.5))
    return trainer


def test_model_without_masker_is_trained_as_a_plain_classifier():
    trainer = _plain_trainer()
    before = np.copy(trainer.defended.classifier.get_weights()[0])
    _fit(trainer, Phase.CLASSIFIER)
    assert not np.array_equal(before, trainer.defended.classifier.get_weights()[0])
    measured = trainer.evaluate(*_data(), verbose=0, return_dict=True)
    assert set(measured) == {"bare_accuracy", "defended_accuracy", "classification_loss"}


def test_16_bit_training_scales_both_losses_and_steps_as_far():
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        trainer = _trainer()
    finally:
        keras.config.set_dtype_policy(previous)
    for optimizer in (trainer.optimizer, trainer.masker_optimizer):
        assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    exact = _trainer()
    start = [np.copy(weight) for weight in exact.get_weights()[1:]]
    for phase in (Phase.CLASSIFIER, Phase.MASKER):
        _fit(trainer, phase)
        _fit(exact, phase)
    for old, half, full in zip(
        start, trainer.get_weights()[1:], exact.get_weights()[1:], strict=True
    ):
        np.testing.assert_allclose(half - old, full - old, rtol=0.05, atol=2e-3)


def test_saving_keeps_weights_settings_and_the_state_of_both_optimizers(tmp_path):
    trainer = _trainer(normalised=True)
    trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.01))
    _fit(trainer, Phase.BOTH)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras", safe_mode=True)
    assert loaded.defended.preprocessor == trainer.defended.preprocessor
    assert loaded.config == _CONFIG
    loaded.phase = Phase.BOTH
    for each in (trainer, loaded):
        _fit(each, Phase.BOTH, _data(seed=1))
    for optimizer in ("optimizer", "masker_optimizer"):
        expected, found = (getattr(each, optimizer).variables for each in (trainer, loaded))
        assert len(found) == len(expected) > 2
        for pair in zip(found, expected, strict=True):
            np.testing.assert_allclose(*(variable.numpy() for variable in pair), atol=1e-6)
    for pair in zip(loaded.get_weights(), trainer.get_weights(), strict=True):
        np.testing.assert_allclose(*pair, atol=1e-6)


def test_masker_without_optimizer_is_refused():
    trainer = _trainer()
    with pytest.raises(SfmError, match="Give both a masker and a masker_optimizer"):
        trainer.compile(keras.optimizers.SGD())
