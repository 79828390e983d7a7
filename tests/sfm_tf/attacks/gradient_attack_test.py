import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from sfm_tf.attacks.art_classifier import wrap_classifier
from sfm_tf.attacks.gradient_attack import GradientAttack, Schedule
from sfm_tf.errors import SfmError

SHAPE = (3, 2, 1)
OPTIONS = {
    "norm": math.inf,
    "epsilon": 0.1,
    "targeted": False,
    "batch_size": 4,
    "seed": 1,
    "random_start": False,
    "loss": "cross_entropy",
}


class Climb(GradientAttack):
    steps = Schedule(step_size=0.03, iterations=5, keep_best=False)

    def _schedule(self):
        return self.steps


class MomentumClimb(Climb):
    """The momentum iterative method of Dong et al. 2018 as a subclass might write it."""

    def _initial_memory(self, images):
        return tf.zeros_like(images)

    def _search_direction(self, gradient, memory):
        size = tf.reduce_sum(tf.abs(gradient), axis=(1, 2, 3), keepdims=True)
        memory = memory + gradient / size
        return memory, memory


class MarginClimb(Climb):
    def _losses(self, logits, labels):
        return -tf.gather(logits, labels, batch_dims=1)


class SampledClimb(Climb):
    gradient_samples = 3


class JitteredClimb(Climb):
    """Sees the image darker or brighter; steps up where it saw it brighter, else down."""

    uniforms_per_view = 1

    def _views(self, images, uniforms, memory):
        return images + (uniforms - 0.5)[:, :, None, None]

    def _search_direction(self, gradient, memory):
        return gradient - Exponential.slope * np.exp(0.5), memory


class Exponential(keras.Model):
    """Its loss at label 0 is steeper the brighter the image: `slope` times exp(pixel)."""

    slope = 0.5e-3

    def call(self, images):
        logit = tf.reduce_sum(2 * self.slope * tf.exp(images), axis=(1, 2, 3))
        return tf.stack([tf.zeros_like(logit), logit], axis=1)


class LinearModel(keras.Model):
    """Logits of fixed weights; counts how often Python runs its forward pass."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.kernel = scale * np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        self.calls = 0

    def call(self, images):
        self.calls += 1
        return tf.reshape(images, (-1, 6)) @ self.kernel


class Bumpy(LinearModel):
    """Logits that rise and fall within an attack's reach."""

    def call(self, images):
        return super().call(tf.sin(25.0 * images))


def _samples(count=10):
    random = np.random.default_rng(1)
    images = random.uniform(0.0, 1.0, (count, *SHAPE)).astype(np.float32)
    return images, random.integers(0, 3, count)


def _attack(kind=Climb, model=None, **options):
    classifier = wrap_classifier(model or LinearModel(), 3, SHAPE, 64)
    return kind(classifier, **{**OPTIONS, **options})


def _losses(model, images, labels):
    probabilities = softmax(np.asarray(model(images), np.float64), axis=1)
    return -np.log(probabilities[np.arange(len(labels)), labels])


def _momentum_by_hand(kernel, images, labels, epsilon, step_size, iterations):
    moved, momentum = images.astype(np.float64), 0.0
    for _ in range(iterations):
        error = softmax(moved.reshape(-1, 6) @ kernel, axis=1) - np.eye(3)[labels]
        gradient = (error @ kernel.T).reshape(images.shape)
        momentum = momentum + gradient / np.abs(gradient).sum(axis=(1, 2, 3), keepdims=True)
        moved = np.clip(moved + step_size * np.sign(momentum), 0, 1)
        moved = np.clip(moved, images - epsilon, images + epsilon)
    return moved


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", [math.inf, 2])
def test_images_do_not_depend_on_the_batch_size(norm, random_start):
    images, labels = _samples(45)
    options = {"norm": norm, "random_start": random_start}
    expected = _attack(batch_size=7, **options).generate(images, labels)
    for batch_size in (16, 32, 64):
        other = _attack(batch_size=batch_size, **options).generate(images, labels)
        np.testing.assert_allclose(other, expected, atol=1e-6)


def test_other_numbers_do_not_compile_anew():
    images, labels = _samples()
    model = LinearModel()
    attack = _attack(model=model)
    attack.generate(images, labels)
    calls = model.calls
    for epsilon, iterations in ((0.2, 5), (0.05, 2), (0.3, 9)):
        attack.set_params(epsilon=epsilon)
        attack.steps = Schedule(epsilon / 4, iterations, keep_best=False)
        moved = attack.generate(images, labels)
        assert np.abs(moved - images).max() == pytest.approx(
            epsilon * min(1, iterations / 4), rel=1e-5
        )
    assert model.calls == calls


def test_a_mask_keeps_pixels_as_they_are():
    images, labels = _samples()
    mask = np.zeros((1, *SHAPE))
    mask[:, 0] = 1
    for random_start in (False, True):
        moved = _attack(random_start=random_start).generate(images, labels, mask=mask)
        np.testing.assert_array_equal(moved[:, 1:], images[:, 1:])
        assert np.abs(moved[:, 0] - images[:, 0]).max() > 0.09


def test_random_starts_follow_the_seed():
    images, labels = _samples()
    attack = _attack(model=Bumpy(), random_start=True)
    first = attack.generate(images, labels)
    np.testing.assert_array_equal(attack.generate(images, labels), first)
    attack.set_params(seed=2)
    assert np.abs(attack.generate(images, labels) - first).max() > 0.01


def test_targeted_attacks_raise_the_probability_of_the_target():
    images, labels = _samples()
    model = LinearModel()
    attack = _attack(model=model, targeted=True)
    outcome = attack.run(images, labels)
    after = _losses(model, outcome.images, labels)
    assert (after < _losses(model, images, labels)).all()
    np.testing.assert_allclose(outcome.loss, after, atol=1e-5)


def test_diagnostics_of_an_untargeted_attack():
    images, labels = _samples()
    model = LinearModel()
    outcome = _attack(model=model).run(images, labels)
    np.testing.assert_allclose(outcome.loss, _losses(model, outcome.images, labels), atol=1e-5)
    assert outcome.iterations.tolist() == [5] * 10
    assert not outcome.zero_gradient.any()


def test_a_confident_model_has_zero_gradients_and_stands_still():
    """The gradient of the cross-entropy underflows at a margin of over 104 in float32."""
    model = LinearModel(scale=1e4)
    images, _ = _samples()
    labels = np.asarray(model(images)).argmax(axis=1)
    margins = np.sort(np.asarray(model(images)), axis=1)
    assert (margins[:, -1] - margins[:, -2]).min() > 120
    outcome = _attack(model=model).run(images, labels)
    assert outcome.zero_gradient_share == 1.0
    np.testing.assert_array_equal(outcome.images, images)


def test_gradients_are_not_divided_by_the_batch():
    """exp(-85) is near the smallest normal float32: a 64th of it would be flushed to zero."""

    class Confident(keras.Model):
        def call(self, images):
            logit = tf.reduce_sum(images, axis=(1, 2, 3))
            return tf.stack([tf.fill(tf.shape(logit), 85.0), logit], axis=1)

    images = np.zeros((64, 1, 1, 1), np.float32)
    classifier = wrap_classifier(Confident(), 2, (1, 1, 1), 64)
    options = {**OPTIONS, "batch_size": 64}
    outcome = Climb(classifier, **options).run(images, np.zeros(64, int))
    assert outcome.zero_gradient_share == 0.0


def test_the_best_iterate_is_the_most_damaging_of_all():
    images, _ = _samples(60)
    model = Bumpy()
    labels = np.asarray(model(images)).argmax(axis=1)
    outcomes = {}
    for keep_best in (False, True):
        attack = _attack(model=model)
        attack.steps = Schedule(0.03, 8, keep_best)
        outcomes[keep_best] = attack.run(images, labels)
    prefixes = []
    for iterations in range(1, 9):
        attack = _attack(model=model)
        attack.steps = Schedule(0.03, iterations, keep_best=False)
        prefixes.append(attack.generate(images, labels))
    fooled = np.array([np.asarray(model(moved)).argmax(axis=1) != labels for moved in prefixes])
    losses = np.array([_losses(model, moved, labels) for moved in prefixes])
    best = np.where(fooled, losses + 1e3, losses).argmax(axis=0)
    assert (best < 7).any()
    assert (best == 7).any()
    assert outcomes[True].iterations.tolist() == (best + 1).tolist()
    expected = np.array(prefixes)[best, np.arange(60)]
    np.testing.assert_allclose(outcomes[True].images, expected, atol=1e-6)
    np.testing.assert_allclose(outcomes[False].images, prefixes[-1], atol=1e-6)


def test_an_iterate_that_fools_is_better_than_one_of_higher_loss():
    class Detour(keras.Model):
        """Class 1 wins at 0.1; at 0.2 class 0 wins again, with less of the probability."""

        def call(self, images):
            pixel = tf.reduce_sum(images, axis=(1, 2, 3))
            beyond = tf.nn.relu(pixel - 0.11)
            rivals = [-1.0 + 11.0 * pixel - 13.9 * beyond, -10.0 + 110.6 * beyond]
            return tf.stack([tf.zeros_like(pixel), *rivals], axis=1)

    model, images, labels = Detour(), np.zeros((1, 1, 1, 1), np.float32), np.array([0])
    expected = {False: 0.2, True: 0.1}
    for keep_best, pixel in expected.items():
        attack = Climb(wrap_classifier(model, 3, (1, 1, 1), 4), **{**OPTIONS, "epsilon": 0.2})
        attack.steps = Schedule(0.1, 2, keep_best)
        assert attack.generate(images, labels).item() == pytest.approx(pixel)
    fooling, higher = (np.full((1, 1, 1, 1), pixel, np.float32) for pixel in (0.1, 0.2))
    assert np.argmax(model(fooling)) == 1
    assert np.argmax(model(higher)) == 0
    assert _losses(model, higher, labels) > _losses(model, fooling, labels)


def test_a_subclass_can_carry_momentum():
    images, labels = _samples()
    model = LinearModel()
    moved = _attack(MomentumClimb, model).generate(images, labels)
    expected = _momentum_by_hand(model.kernel, images, labels, 0.1, 0.03, 5)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_several_looks_give_the_mean_of_their_gradients():
    """A model that draws anew for each image: here, one of three kernels by its position."""

    class Alternating(keras.Model):
        kernels = np.random.default_rng(3).normal(size=(3, 6, 3)).astype(np.float32)
        shapes = []

        def call(self, images):
            self.shapes.append(images.shape)
            kernels = tf.gather(self.kernels, tf.range(tf.shape(images)[0]) % 3)
            return tf.einsum("bi,bij->bj", tf.reshape(images, (-1, 6)), kernels)

    images, _ = _samples(8)
    images, labels = 0.4 * images + 0.3, np.arange(8) % 3
    model = Alternating()
    attack = _attack(SampledClimb, model, norm=2)
    attack.steps = Schedule(0.1, 1, keep_best=False)
    outcome = attack.run(images, labels)
    gradient = 0.0
    for kernel in model.kernels:
        error = softmax(images.reshape(8, 6) @ kernel, axis=1) - np.eye(3)[labels]
        gradient = gradient + error @ kernel.T
    expected = 0.1 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(outcome.images - images, expected.reshape(images.shape), atol=1e-6)
    logits = outcome.images.reshape(8, 6) @ model.kernels
    losses = -np.log(softmax(logits, axis=2))[:, np.arange(8), labels]
    np.testing.assert_allclose(outcome.loss, losses.mean(axis=0), atol=1e-5)
    assert (12, *SHAPE) in model.shapes


def _steps_up(seed, batch_size, steps):
    images = np.full((60, 1, 1, 1), 0.5, np.float32)
    classifier = wrap_classifier(Exponential(), 2, (1, 1, 1), 64)
    attack = JitteredClimb(classifier, **{**OPTIONS, "seed": seed, "batch_size": batch_size})
    attack.steps = Schedule(1e-4, steps, keep_best=False)
    moved = attack.generate(images, np.zeros(60, int)).ravel()
    return np.round((moved - 0.5) / 1e-4).astype(int)


def test_views_differ_from_image_to_image_and_from_step_to_step():
    first = _steps_up(seed=1, batch_size=60, steps=1)
    assert set(first) == {-1, 1}
    assert abs(first.sum()) < 32
    total = _steps_up(seed=1, batch_size=60, steps=7)
    # Of seven fair steps up or down, a sum of 7 or -7 has a probability of 1/64.
    assert {-3, -1, 1, 3} <= set(total) <= set(range(-7, 8, 2))
    assert np.mean(np.abs(total) == 7) < 0.1


def test_views_follow_the_seed_and_not_the_batch_size():
    expected = _steps_up(seed=1, batch_size=60, steps=7)
    assert _steps_up(seed=1, batch_size=7, steps=7).tolist() == expected.tolist()
    assert _steps_up(seed=2, batch_size=60, steps=7).tolist() != expected.tolist()


def test_the_stable_loss_moves_confident_predictions_in_the_right_direction():
    model = LinearModel(scale=100.0)
    images = _samples(40)[0] * 0.4 + 0.3
    labels = np.asarray(model(images)).argmax(axis=1)
    logits = np.sort(np.asarray(model(images)), axis=1)
    margins = logits[:, 2] - logits[:, 1]
    confident = (margins > 18) & (margins < 80)
    assert confident.sum() > 5
    slope = np.asarray(softmax(np.asarray(model(images), np.float64), axis=1))
    slope[np.arange(40), labels] = 0
    slope[np.arange(40), labels] = -slope.sum(axis=1)
    expected = images + 0.1 * np.sign((slope @ model.kernel.T).reshape(images.shape))
    wrong = {}
    attack = _attack(model=model)
    attack.steps = Schedule(0.1, 1, keep_best=False)
    for loss in ("cross_entropy", "stable_cross_entropy"):
        attack.set_params(loss=loss)
        wrong[loss] = np.abs(attack.generate(images, labels) - expected)[confident] > 1e-3
    assert not wrong["stable_cross_entropy"].any()
    assert wrong["cross_entropy"].mean() > 0.05


def test_an_unknown_loss_is_refused():
    with pytest.raises(SfmError, match="Invalid loss 'hinge' of Climb; expected one of cross_ent"):
        _attack(loss="hinge")


def test_a_subclass_can_have_another_loss():
    images, labels = _samples()
    model = LinearModel()
    outcome = _attack(MarginClimb, model).run(images, labels)
    slope = -np.sign(model.kernel[:, labels].T).reshape(images.shape)
    np.testing.assert_allclose(outcome.images, np.clip(images + 0.1 * slope, 0, 1), atol=1e-6)
    logits = np.asarray(model(outcome.images))
    np.testing.assert_allclose(outcome.loss, -logits[np.arange(10), labels], atol=1e-5)


def test_a_model_without_gradient_is_refused():
    class Rounding(LinearModel):
        def call(self, images):
            return super().call(tf.round(images))

    with pytest.raises(SfmError, match="no gradient with respect to its input"):
        _attack(model=Rounding()).generate(*_samples())


def test_gradients_that_are_not_numbers_count_as_zero():
    class Undefined(LinearModel):
        def call(self, images):
            # The square root has an infinite slope at 0, times 0 by the chain rule: NaN.
            return super().call(images + tf.sqrt(0.0 * images))

    images, labels = _samples()
    outcome = _attack(model=Undefined()).run(images, labels)
    assert outcome.zero_gradient_share == 1.0
    np.testing.assert_array_equal(outcome.images, images)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
