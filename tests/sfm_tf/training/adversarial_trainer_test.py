"""Tests of adversarial training against NumPy, on a linear model, whose worst case is known."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.training.adversarial_trainer import (
    AdversarialTrainer,
    adversarial_images,
    divergences,
)
from sfm_tf.training.settings import TrainingConfig
from sfm_tf.training.trainer import Phase, SparseFeatureMaskerTrainer

_EPSILON = 0.1


def _images(low=0.2, high=0.8, count=5):
    generator = np.random.default_rng(0)
    return tf.constant(generator.uniform(low, high, (count, 4, 3, 2)), tf.float32)


def _slopes():
    return tf.constant(np.random.default_rng(1).normal(size=(4, 3, 2)), tf.float32)


def _linear(images):
    return tf.reduce_sum(_slopes() * images, axis=(1, 2, 3))


def _bent(images):
    """A measure whose gradient turns inside the ball: steps overshoot its maximum."""
    return tf.reduce_sum(tf.sin(12.0 * _slopes() * images), axis=(1, 2, 3))


def _attack(images, measure=_linear, step_size=0.05, iterations=5, seed=(3, 4)):
    return adversarial_images(images, measure, _EPSILON, step_size, iterations, tf.constant(seed))


def test_reaches_the_corner_that_is_worst_for_a_linear_model():
    images = _images()
    expected = images + _EPSILON * np.sign(_slopes())
    np.testing.assert_allclose(_attack(images), expected, atol=1e-6)


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("measure", [_linear, _bent])
def test_stays_in_the_ball_and_in_the_range_of_images(measure, iterations):
    images = _images(low=0.0, high=1.0)
    attacked = _attack(images, measure, step_size=0.08, iterations=iterations).numpy()
    assert np.abs(attacked - images).max() <= _EPSILON + 1e-6
    assert attacked.min() >= 0.0
    assert attacked.max() <= 1.0


def test_start_is_uniform_in_the_ball():
    images = tf.fill((50, 4, 3, 2), 0.5)
    noise = (_attack(images, iterations=0) - images).numpy().ravel()
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert noise.std() == pytest.approx(_EPSILON / np.sqrt(3), rel=0.05)
    assert np.abs(noise).max() > 0.99 * _EPSILON


@pytest.mark.parametrize("measure", [_linear, _bent])
def test_loss_is_no_smaller_than_at_the_start(measure):
    images = _images()
    start = _attack(images, measure, iterations=0)
    attacked = _attack(images, measure, step_size=0.01, iterations=10)
    assert np.all(measure(attacked).numpy() >= measure(start).numpy())


def test_depends_on_the_seed_alone():
    images = _images()
    first, again, other = (
        _attack(images, iterations=1, step_size=0.02, seed=seed).numpy()
        for seed in ((3, 4), (3, 4), (3, 5))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_is_the_same_inside_a_graph_for_batches_of_any_size():
    @tf.function(input_signature=[tf.TensorSpec((None, 4, 3, 2))])
    def attack(images):
        return _attack(images, _bent)

    for count in (1, 5):
        images = _images(count=count)
        np.testing.assert_allclose(attack(images), _attack(images, _bent), atol=1e-6)
    assert attack.get_concrete_function().output_shapes == (None, 4, 3, 2)


def test_no_gradient_flows_back_through_the_attack():
    images = _images()
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(_attack(images))
    assert tape.gradient(loss, images) is None


_SHAPE = (2, 2, 1)
_RADIUS = 0.05
_WEIGHT_DECAY = 0.1
_CONFIG = TrainingConfig(
    sparsity_weight=0.4,
    semantic_weight=3.0,
    reconstruction_weight=1.0,
    weight_decay=_WEIGHT_DECAY,
    adversarial_training="pgd",
    adversarial_epsilon=_RADIUS * 255,
    adversarial_step_size=0.03 * 255,
    adversarial_iterations=5,
)


def _data(count=6, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.uniform(0.2, 0.8, (count, *_SHAPE)).astype(np.float32)
    return images, generator.integers(0, 2, count)


def _classifier(normalised=False):
    inputs = keras.Input(_SHAPE)
    features = keras.layers.BatchNormalization()(inputs) if normalised else inputs
    initializer = keras.initializers.RandomNormal(stddev=0.5, seed=1)
    dense = keras.layers.Dense(2, kernel_initializer=initializer)
    return keras.Model(inputs, dense(keras.layers.Flatten()(features)))


def _masker():
    """The mask sigmoid(2 x - 0.5), which grows with x, so that G(x) x does."""
    inputs = keras.Input(_SHAPE)
    mask = keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid")(inputs))
    mask.set_weights([np.full((1, 1, 1, 1), 2.0), np.array([-0.5])])
    return mask


def _trainer(method="pgd", *, masked=True, normalised=False, rate=0.5, **changes):
    preprocessor = parse_preprocessor("bit_depth_4" if masked else "none")
    model = DefendedModel(_classifier(normalised), _masker() if masked else None, preprocessor)
    config = dataclasses.replace(_CONFIG, adversarial_training=method, **changes)
    trainer = AdversarialTrainer(model, config, seed=3)
    trainer.compile(keras.optimizers.SGD(rate), keras.optimizers.SGD(rate) if masked else None)
    return trainer


def _step(trainer, phase, data=None):
    """Takes one step on all the data, eagerly, for speed; returns what it measured."""
    trainer.phase = phase
    trainer.reset_metrics()
    images, labels = _data() if data is None else data
    measured = trainer.train_step((tf.constant(images), tf.constant(labels)))
    return {name: float(value) for name, value in measured.items()}


def _fit(trainer, phase):
    """Takes the same step in a graph."""
    trainer.phase = phase
    dataset = tf.data.Dataset.from_tensors(_data())
    history = trainer.fit(dataset, verbose=0, shuffle=False).history
    return {name: values[0] for name, values in history.items()}


def _seen(images, parameters=(2.0, -0.5)):
    """T(G(x) x) in NumPy: the mask times the images, in 4 bits."""
    mask = 1 / (1 + np.exp(-(parameters[0] * images + parameters[1])))
    return np.round(mask * images * 15) / 15


def _cross_entropies(kernel, bias, images, labels):
    logarithms = scipy.special.log_softmax(images.reshape(len(images), -1) @ kernel + bias, axis=1)
    return -logarithms[np.arange(len(labels)), labels]


def _worst(images, labels, kernel):
    """The corner of each ball at which a linear model of two classes is worst."""
    directions = (kernel[:, 1] - kernel[:, 0]).reshape(_SHAPE)
    towards_the_other = np.where(labels == 0, 1, -1)[:, None, None, None]
    return images + _RADIUS * np.sign(directions) * towards_the_other


def _gradient(objective, values, step=1e-5):
    """Central differences of a function of one array."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        moved = [values.copy(), values.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = (objective(moved[0]) - objective(moved[1])) / (2 * step)
    return gradient


def _weights(model):
    return [weight.astype(np.float64) for weight in model.get_weights()]


@pytest.mark.parametrize("masked", [True, False])
def test_pgd_descends_the_cross_entropy_of_the_worst_images_through_the_pipeline(masked):
    trainer = _trainer(masked=masked)
    kernel, bias = _weights(trainer.defended.classifier)
    images, labels = _data()
    worst = _worst(images, labels, kernel)
    seen = _seen(worst) if masked else worst

    def objective(values):
        penalty = _WEIGHT_DECAY / 2 * np.sum(values**2)
        return _cross_entropies(values, bias, seen, labels).mean() + penalty

    metrics = _step(trainer, Phase.CLASSIFIER)
    new_kernel = trainer.defended.classifier.get_weights()[0]
    np.testing.assert_allclose(new_kernel, kernel - 0.5 * _gradient(objective, kernel), atol=1e-4)
    expected = _cross_entropies(kernel, bias, seen, labels).mean()
    assert metrics["classification_loss"] == pytest.approx(expected, rel=1e-4)
    logits = seen.reshape(len(images), -1) @ kernel + bias
    assert metrics["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == labels))


def _masker_objective(parameters, worst, target_logits, kernel, bias):
    """Eq. 2 for the masked adversarial images, whose logits are to be those of clean images."""
    mask = 1 / (1 + np.exp(-(parameters[0] * worst + parameters[1])))
    masked = (mask * worst).reshape(len(worst), -1)
    logits = masked @ kernel + bias
    cosine = np.sum(target_logits * logits, axis=1) / (
        np.linalg.norm(target_logits, axis=1) * np.linalg.norm(logits, axis=1)
    )
    reconstruction = np.linalg.norm(worst.reshape(len(worst), -1) - masked, axis=1)
    return np.mean(0.4 * masked.sum(axis=1) + 3.0 * (1 - cosine) + reconstruction)


@pytest.mark.parametrize("preprocess", [True, False], ids=["behind_T", "without_T"])
@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_masker_descends_equation_2_on_the_worst_images(method, preprocess):
    trainer = _trainer(method, preprocess_training=preprocess)
    kernel, bias = _weights(trainer.defended.classifier)
    images, labels = _data()
    worst = _worst(images, labels, kernel)
    if preprocess:
        images, worst = (np.round(values * 15) / 15 for values in (images, worst))
    target_logits = images.reshape(len(images), -1) @ kernel + bias

    def objective(parameters):
        return _masker_objective(parameters, worst, target_logits, kernel, bias)

    parameters = np.array([2.0, -0.5])
    metrics = _step(trainer, Phase.MASKER)
    new = [np.ravel(weight)[0] for weight in trainer.defended.masker.get_weights()]
    np.testing.assert_allclose(new, parameters - 0.5 * _gradient(objective, parameters), atol=1e-4)
    assert metrics["mask_loss"] == pytest.approx(objective(parameters), rel=1e-4)


@pytest.mark.parametrize("statistics", ["moving", "batch"])
@pytest.mark.parametrize("phase", [Phase.MASKER, Phase.BOTH], ids=["masker", "both"])
@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_mask_of_ones_has_no_semantic_loss_where_the_attack_moves_nothing(
    method, phase, statistics
):
    still = {"adversarial_epsilon": 1e-6, "adversarial_iterations": 1}
    trainer = _trainer(method, normalised=True, target_statistics=statistics, **still)
    trainer.defended.masker.layers[-1].bias.assign([100.0])
    measured = [_step(trainer, phase, _data(seed=seed)) for seed in range(2)]
    assert [each["mask_mean"] for each in measured] == [1.0] * 2
    np.testing.assert_allclose([each["semantic"] for each in measured], 0.0, atol=1e-6)


def _trades_objective(kernel, bias, images, attacked, labels, beta):
    def logarithms(values):
        return scipy.special.log_softmax(values.reshape(len(values), -1) @ kernel + bias, axis=1)

    clean, moved = logarithms(images), logarithms(attacked)
    divergence = np.sum(np.exp(clean) * (clean - moved), axis=1)
    losses = _cross_entropies(kernel, bias, images, labels) + beta * divergence
    return losses.mean() + _WEIGHT_DECAY / 2 * np.sum(kernel**2)


def test_trades_descends_cross_entropy_and_divergence_to_a_worst_image():
    trainer = _trainer("trades", trades_beta=20.0, masked=False)
    kernel, bias = _weights(trainer.defended.classifier)
    images, labels = _data(count=3)
    metrics = _step(trainer, Phase.CLASSIFIER, (images, labels))
    decay = _WEIGHT_DECAY / 2 * np.sum(kernel**2)
    # The divergence has a maximum on either side; where an image goes depends on its start.
    candidates = [
        _worst(images, np.array(sides), kernel) for sides in itertools.product((0, 1), repeat=3)
    ]
    losses = [_trades_objective(kernel, bias, images, c, labels, 20.0) - decay for c in candidates]
    nearest = int(np.argmin(np.abs(np.array(losses) - metrics["classification_loss"])))
    assert metrics["classification_loss"] == pytest.approx(losses[nearest], rel=1e-5)

    def objective(values):
        return _trades_objective(values, bias, images, candidates[nearest], labels, 20.0)

    new_kernel = trainer.defended.classifier.get_weights()[0]
    np.testing.assert_allclose(new_kernel, kernel - 0.5 * _gradient(objective, kernel), atol=1e-4)


def test_trades_without_beta_is_plain_training_through_the_pipeline():
    trades = _trainer("trades", trades_beta=0.0)
    plain = SparseFeatureMaskerTrainer(DefendedModel(_classifier()), _CONFIG)
    plain.compile(keras.optimizers.SGD(0.5))
    images, labels = _data()
    seen = trades.defended.defended(images)
    losses = [
        _step(trainer, Phase.CLASSIFIER, data)["classification_loss"]
        for trainer, data in ((trades, (images, labels)), (plain, (seen, labels)))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    found, expected = (trainer.defended.classifier.get_weights() for trainer in (trades, plain))
    for pair in zip(found, expected, strict=True):
        np.testing.assert_allclose(*pair, atol=1e-6)


def test_graph_takes_the_same_steps_in_every_phase():
    eager, graph = (_trainer("trades") for _ in range(2))
    for phase in (Phase.CLASSIFIER, Phase.MASKER, Phase.BOTH):
        measured = _step(eager, phase), _fit(graph, phase)
        assert measured[1] == pytest.approx(measured[0], rel=1e-4)
    for pair in zip(eager.get_weights(), graph.get_weights(), strict=True):
        np.testing.assert_allclose(*pair, atol=1e-5)


@pytest.mark.parametrize("phase", Phase)
def test_pre_training_is_that_of_algorithm_1_until_it_ends(phase):
    trainer = _trainer()
    plain = SparseFeatureMaskerTrainer(
        DefendedModel(_classifier(), _masker(), parse_preprocessor("bit_depth_4")), _CONFIG
    )
    plain.compile(keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.5))
    name = "mask_loss" if phase == Phase.MASKER else "classification_loss"
    losses = [[], []]
    for is_pretraining in (True, True, False):
        trainer.is_pretraining = is_pretraining
        for each, measured in zip((trainer, plain), losses, strict=True):
            measured.append(_step(each, phase)[name])
    np.testing.assert_allclose(losses[0][:2], losses[1][:2], rtol=1e-5)
    assert abs(losses[0][2] - losses[1][2]) > 1e-4


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_attack_and_masker_phase_leave_the_classifier_s_statistics_alone(method):
    trainer = _trainer(method, normalised=True)
    classifier, masker = trainer.defended.classifier, trainer.defended.masker
    before = [np.copy(weight) for weight in classifier.get_weights()]
    _step(trainer, Phase.MASKER)
    for pair in zip(before, classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(*pair)
    before = [np.copy(weight) for weight in masker.get_weights()]
    _step(trainer, Phase.CLASSIFIER)
    for pair in zip(before, masker.get_weights(), strict=True):
        np.testing.assert_array_equal(*pair)


def test_each_step_starts_elsewhere_and_again_in_the_same_place():
    short = {"adversarial_iterations": 1, "adversarial_step_size": 0.255}
    first, again = (_trainer(rate=0.0, **short) for _ in range(2))
    losses = [
        [_step(each, Phase.CLASSIFIER)["classification_loss"] for _ in range(2)]
        for each in (first, again)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert abs(losses[0][0] - losses[0][1]) > 1e-5


def _balance(model, images):
    """Returns the biases that put half of the images into either class."""
    logits = model(images).numpy()
    return [0.0, np.median(logits[:, 0] - logits[:, 1])]


def test_evaluation_measures_the_accuracy_on_worst_images():
    trainer = _trainer()
    images, labels = _data(count=60)
    # Most images near the border between the classes.
    trainer.defended.classifier.layers[-1].bias.assign(_balance(trainer.defended, images))
    kernel, bias = _weights(trainer.defended.classifier)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(25)
    # Keras before 3.13 gives tensors.
    measured = trainer.evaluate(dataset, return_dict=True, verbose=0)

    def accuracy(values):
        return np.mean((values.reshape(len(values), -1) @ kernel + bias).argmax(1) == labels)

    worst = accuracy(_seen(_worst(images, labels, kernel)))
    assert float(measured["adversarial_accuracy"]) == pytest.approx(worst, abs=1e-6)
    assert float(measured["defended_accuracy"]) == pytest.approx(accuracy(_seen(images)), abs=1e-6)
    assert float(measured["adversarial_accuracy"]) < float(measured["defended_accuracy"])
    assert "mask_loss" in measured


def test_divergence_is_that_of_scipy_and_finite_where_answers_are_certain():
    generator = np.random.default_rng(0)
    logits, other = (tf.constant(generator.normal(size=(5, 4)), tf.float32) for _ in range(2))
    expected = scipy.special.rel_entr(
        scipy.special.softmax(logits, axis=1), scipy.special.softmax(other, axis=1)
    ).sum(axis=1)
    np.testing.assert_allclose(divergences(logits, other), expected, rtol=1e-4)
    certain = tf.constant([[200.0, 0.0]])
    np.testing.assert_allclose(divergences(certain, -certain), [200.0], rtol=1e-5)


def test_saving_keeps_what_the_training_is(tmp_path):
    trainer = _trainer("trades")
    _step(trainer, Phase.BOTH)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras", safe_mode=True)
    assert (loaded.config, loaded.seed) == (trainer.config, 3)
    metrics = [_step(each, Phase.BOTH) for each in (trainer, loaded)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


def test_training_without_a_method_is_refused():
    message = r"Unknown adversarial training 'none'; expected one of pgd, trades\."
    with pytest.raises(SfmError, match=message):
        _trainer("none")
