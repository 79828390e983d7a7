import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.evasion import AutoProjectedGradientDescent as ArtAutoProjectedGradientDescent
from scipy.special import log_softmax

from sfm_tf.attacks.apgd import (
    AutoProjectedGradientDescent,
    Iterate,
    RunSettings,
    StepSizes,
    checkpoint_periods,
    checkpoints,
    halve_at_checkpoint,
    run_apgd,
)
from sfm_tf.attacks.attack import AttackBatch, Scores
from sfm_tf.attacks.norm_balls import BALLS
from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import wrap_classifier
from tests.attacked_models import (
    DIGIT_SHAPE,
    Linear,
    Masked,
    accuracy,
    advance_all,
    digit_model,
    digits,
    predictions,
    samples,
)

NO_CHECKPOINT = -1


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        # Croce and Hein 2020: 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of the iterations.
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (1000, [220, 410, 570, 700, 800, 870, 930, 990]),
        (10, [3, 5, 6, 7, 8, 9, 10]),
        (1, [1]),
    ],
)
def test_checkpoints_are_those_of_the_paper(iterations, expected):
    assert checkpoints(iterations) == [0, *expected]
    periods = checkpoint_periods(iterations)
    assert periods.shape == (iterations + 1,)
    assert periods[[0, *expected]].tolist() == np.diff([0, 0, *expected]).tolist()
    assert (np.delete(periods, [0, *expected]) == NO_CHECKPOINT).all()


@pytest.mark.parametrize(
    ("increases", "increased", "f_max", "was_halved", "period", "halves"),
    [
        # Condition 1: 0.75 of 20 steps is 15.
        (14.0, False, 9.0, False, 20, True),
        (15.0, False, 9.0, False, 20, False),
        (14.0, True, 9.0, False, 20, False),
        # Condition 2: since the last checkpoint, where f_max was 5, nothing has changed.
        (20.0, True, 5.0, False, 20, True),
        (20.0, True, 5.0, True, 20, False),
        (20.0, True, 5.5, False, 20, False),
        # Between two checkpoints.
        (0.0, True, 5.0, False, NO_CHECKPOINT, False),
        (0.0, False, 9.0, False, NO_CHECKPOINT, False),
    ],
)
def test_eta_is_halved_at_a_checkpoint_where_a_condition_holds(
    increases, increased, f_max, was_halved, period, halves
):
    sizes = StepSizes(*(tf.constant([v]) for v in (0.4, increases, 5.0, was_halved)))
    new, halved = halve_at_checkpoint(
        sizes, tf.constant([increased]), tf.constant([f_max]), period, tf.constant(0.75)
    )
    assert halved.numpy().tolist() == [halves]
    assert new.eta.numpy() == pytest.approx(0.2 if halves else 0.4)
    between = period == NO_CHECKPOINT
    counted = (increases + increased, 5.0, was_halved) if between else (0.0, f_max, halves)
    assert tuple(tensor.numpy().item() for tensor in new[1:]) == counted


SHAPE = (2, 2, 1)
COUNT = 40
WEIGHTS = np.array([1.0, 2.0, 3.0, -1.5])


def _bumps(images):
    """A sum of waves, with many maxima, so that the way to one depends on every step."""
    flat = images.reshape(-1, 4)
    values, slopes = np.sin(12.0 * flat) @ WEIGHTS, 12.0 * np.cos(12.0 * flat) * WEIGHTS
    return values, slopes.reshape(images.shape)


def _evaluate(images):
    waves = tf.sin(12.0 * tf.reshape(images, (-1, 4)))
    objective = tf.linalg.matvec(waves, tf.constant(WEIGHTS, tf.float32))
    slopes = 12.0 * tf.cos(12.0 * images) * WEIGHTS.reshape(SHAPE).astype(np.float32)
    return Iterate(images, objective, slopes), Scores(objective, tf.zeros_like(objective))


def _samples(epsilon, norm):
    random = np.random.default_rng(2)
    images = random.uniform(0.0, 1.0, (COUNT, *SHAPE)).astype(np.float32)
    change = random.uniform(-1.0, 1.0, images.shape)
    sizes = np.linalg.norm(change.reshape(COUNT, -1), ord=norm, axis=1)
    starts = images + 0.9 * epsilon * change / sizes[:, None, None, None]
    return images, np.clip(starts, 0.0, 1.0).astype(np.float32)


def _run(images, starts, norm, epsilon, iterations, evaluate=_evaluate, first_iteration=0):
    batch = AttackBatch(tf.constant(images), tf.zeros(len(images), tf.int64), None, None)
    settings = RunSettings(
        tf.constant(epsilon), tf.constant(0.75), tf.constant(checkpoint_periods(iterations))
    )
    return run_apgd(
        tf.constant(starts), batch, BALLS[norm], settings, evaluate, tf.constant(first_iteration)
    )


def _project(image, center, norm, epsilon):
    change = image - center
    if norm == 2:
        change = change * min(1.0, epsilon / np.linalg.norm(change))
    return np.clip(center + np.clip(change, -epsilon, epsilon), 0.0, 1.0)


def _apgd_by_the_book(center, start, norm, epsilon, checkpoints, iterations):
    """Algorithm 1 of Croce and Hein 2020 for one image, with the paper's names."""

    def value(image):
        return float(_bumps(image)[0][0])

    x, f, eta = [start], [value(start)], 2.0 * epsilon
    x_max, f_max, increases, last_w, last_eta, last_f_max = start, f[0], 0, 0, eta, f[0]
    for k in range(iterations):
        gradient = _bumps(x[k])[1]
        step = np.sign(gradient) if norm == math.inf else gradient / np.linalg.norm(gradient)
        z = _project(x[k] + eta * step, center, norm, epsilon)
        moved = z
        if k > 0:
            moved = x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1])
        x.append(_project(moved, center, norm, epsilon))
        f.append(value(x[-1]))
        increases += f[-1] > f[-2]
        if f[-1] > f_max:
            x_max, f_max = x[-1], f[-1]
        if k + 1 in checkpoints:
            unchanged = last_eta == eta and last_f_max == f_max
            last_eta, last_f_max = eta, f_max
            if increases < 0.75 * (k + 1 - last_w) or unchanged:
                eta, x[-1], f[-1] = eta / 2.0, x_max, f_max
            increases, last_w = 0, k + 1
    return x_max


@pytest.mark.parametrize(("norm", "epsilon"), [(math.inf, 0.3), (2, 0.5)])
def test_takes_the_steps_of_the_paper(norm, epsilon):
    images, starts = _samples(epsilon, norm)
    checkpoints = (7, 13, 18, 21, 24, 27, 28, 30)
    expected = [
        _apgd_by_the_book(center[None], start[None], norm, epsilon, checkpoints, 30)[0]
        for center, start in zip(images.astype(np.float64), starts, strict=True)
    ]
    end = _run(images, starts, norm, epsilon, 30)
    distances = np.abs(end.best.images - expected).max(axis=(1, 2, 3))
    # Where two losses are as good as equal, float32 and float64 may go separate ways.
    assert np.mean(distances < 1e-3) >= 0.95
    np.testing.assert_array_equal(end.x_max.x, end.best.images)


def test_the_best_images_are_those_that_fool_however_high_others_are():
    """Fooled is what lies below the top: the best is then the highest of those that fool."""
    images, starts = _samples(0.3, math.inf)
    seen = []

    def evaluate(images):
        iterate, _ = _evaluate(images)
        seen.append(iterate.f.numpy())
        return iterate, Scores(iterate.f, tf.cast(iterate.f < 3.0, tf.float32))

    end = _run(images, starts, math.inf, 0.3, 10, evaluate)
    objectives = np.stack(seen)
    below = np.where(objectives < 3.0, objectives, -np.inf).max(axis=0)
    expected = np.where(np.isfinite(below), below, objectives.max(axis=0))
    assert (expected < objectives.max(axis=0)).any()
    np.testing.assert_allclose(end.best.objective, expected, rtol=1e-6)


def test_images_whose_first_gradient_is_zero_are_stuck():
    images, starts = _samples(0.3, math.inf)

    def evaluate(images, is_flat):
        iterate, scores = _evaluate(images)
        slopes = tf.where(is_flat[:, None, None, None], 0.0, iterate.gradient)
        return iterate._replace(gradient=slopes), scores

    is_flat = np.arange(COUNT) % 3 == 0
    flat = functools.partial(evaluate, is_flat=tf.constant(is_flat))
    end = _run(images, starts, math.inf, 0.3, 3, flat)
    np.testing.assert_array_equal(end.is_stuck, is_flat)
    np.testing.assert_allclose(end.best.images[is_flat], starts[is_flat], atol=1e-6)


ART_LOSSES = {"cross_entropy": "cross_entropy", "dlr": "difference_logits_ratio"}


def _digit_samples(model, count=60):
    """Images well inside [0, 1] with the labels that the model gives them."""
    images, _ = samples(2, 0.3, 0.7, count)
    return images, predictions(model, images)


# Of so large a batch the smallest bucket holds all images: an attack compiles once.
def _attack(model, class_count=10, **options):
    classifier = wrap_classifier(model, class_count, DIGIT_SHAPE, 100)
    return AutoProjectedGradientDescent(
        classifier, **{"epsilon": 0.1, "iterations": 20, "batch_size": 480, **options}
    )


# Each model has one attack, so that it compiles once for all tests of the same options.
@functools.cache
def _trained_attack():
    return _attack(digit_model())


def _known_attack(**options):
    """Returns the attack on the trained model, with these options and otherwise the defaults."""
    attack = _trained_attack()
    defaults = {"norm": math.inf, "epsilon": 0.1, "loss": "cross_entropy"}
    attack.set_params(**{**defaults, "iterations": 20, "restarts": 1, **options})
    return attack


def test_fools_a_linear_model_wherever_it_can_be_fooled():
    """Class j can win within the ball exactly if z_j + epsilon |w_j - w_y|_1 > z_y."""
    model = Linear(5)
    images, labels = _digit_samples(model, 200)
    logits = np.asarray(model(images))
    reach = np.abs(model.kernel[:, :, None] - model.kernel[:, None]).sum(axis=0)
    gains = logits - logits.max(axis=1, keepdims=True) + 0.03 * reach[labels]
    gains[np.arange(200), labels] = -np.inf
    gain = gains.max(axis=1)
    clear = np.abs(gain) > 0.02
    assert 30 < np.sum(gain > 0) < 170
    attack = _attack(model, 5, epsilon=0.03)
    for loss in ("cross_entropy", "dlr", "targeted_dlr"):
        attack.set_params(loss=loss)
        fooled = predictions(model, attack.generate(images, labels)) != labels
        np.testing.assert_array_equal(fooled[clear], gain[clear] > 0)


@pytest.mark.parametrize(
    ("norm", "epsilon", "loss"), [(math.inf, 0.1, "dlr"), (2, 0.5, "cross_entropy")]
)
def test_is_as_strong_as_art(norm, epsilon, loss):
    model, (images, labels) = digit_model(), (array[:50] for array in digits())
    attack = _known_attack(norm=norm, epsilon=epsilon, loss=loss, iterations=12)
    reference = ArtAutoProjectedGradientDescent(
        attack.estimator,
        norm=norm,
        eps=epsilon,
        eps_step=2 * epsilon,
        max_iter=12,
        nb_random_init=1,
        batch_size=50,
        loss_type=ART_LOSSES[loss],
        verbose=False,
    )
    expected = accuracy(model, reference.generate(images, labels), labels)
    assert 0.2 < expected < 0.7
    found = accuracy(model, attack.generate(images, labels), labels)
    assert expected - 0.1 <= found <= expected + 0.05


def test_is_at_least_as_strong_as_pgd_of_as_many_steps():
    norm, epsilon = 2, 0.5
    model, (images, labels) = digit_model(), (array[:60] for array in digits())
    attack = _known_attack(norm=norm, epsilon=epsilon)
    reference = ProjectedGradientDescent(
        attack.estimator,
        norm=norm,
        epsilon=epsilon,
        step_size=epsilon / 4,
        iterations=20,
        random_start=True,
        keep_best=True,
        loss="stable_cross_entropy",
    )
    expected = accuracy(model, reference.generate(images, labels), labels)
    accuracies = []
    for loss in ("cross_entropy", "targeted_dlr"):
        attack.set_params(loss=loss, target_classes=5)
        accuracies.append(accuracy(model, attack.generate(images, labels), labels))
    assert max(accuracies) <= expected < accuracy(model, images, labels) - 0.2
    assert accuracies[1] <= accuracies[0]


def test_masked_gradients_do_not_stop_it():
    """A model known to be no more robust validates the attack (Carlini et al. 2019)."""
    model, (images, labels) = digit_model(), (array[:60] for array in digits())
    masked = Masked(model)
    attack = _attack(masked, epsilon=0.15, loss="dlr")
    blinded = ProjectedGradientDescent(
        attack.estimator, epsilon=0.15, step_size=0.04, iterations=20
    ).run(images, labels)
    clean = accuracy(masked, images, labels)
    assert blinded.zero_gradient_share > 0.8
    assert accuracy(masked, blinded.images, labels) > clean - 0.1
    found = accuracy(masked, attack.generate(images, labels), labels)
    unmasked = _known_attack(epsilon=0.15, loss="dlr").generate(images, labels)
    assert found == pytest.approx(accuracy(model, unmasked, labels), abs=0.02)
    assert found < clean - 0.5


@pytest.mark.parametrize(("norm", "epsilon"), [(math.inf, 0.04), (2, 0.25)])
def test_fooled_images_leave_the_batch_and_nothing_else_changes(monkeypatch, norm, epsilon):
    model = Linear(5)
    images, labels = _digit_samples(model, 64)
    options = {"epsilon": epsilon, "loss": "targeted_dlr", "iterations": 5, "batch_size": 64}
    attack = _attack(model, 5, norm=norm, target_classes=4, **options)
    outcome, rows = attack.run(images, labels), int(model.rows)
    assert 0.05 < accuracy(model, outcome.images, labels) < 0.5
    monkeypatch.setattr("sfm_tf.attacks.apgd.advance_unfinished", advance_all)
    model.rows.assign(0)
    whole = attack.run(images, labels)
    assert int(model.rows) >= 64 * 4 * 6
    assert rows < 0.75 * int(model.rows)
    np.testing.assert_allclose(outcome.images, whole.images, atol=1e-6)
    np.testing.assert_array_equal(outcome.iterations, whole.iterations)


class Alternating(keras.Model):
    """Draws one of three linear models for each image, by its position; nearly equal logits."""

    kernels = np.random.default_rng(3).normal(scale=1e-3, size=(3, 64, 2)).astype(np.float32)

    def __init__(self, lead=0.0):
        super().__init__()
        self.lead = np.array([lead, 0.0], np.float32)
        self.rows = tf.Variable(0)

    def call(self, images):
        self.rows.assign_add(tf.shape(images)[0])
        kernels = tf.gather(self.kernels, tf.range(tf.shape(images)[0]) % 3)
        return tf.einsum("bi,bij->bj", tf.reshape(images, (-1, 64)), kernels) + self.lead


def test_several_samples_maximise_the_mean_of_their_losses():
    """Next to zero the cross-entropy is half the margin, so the worst case is that of the mean."""
    images, _ = _digit_samples(Linear(2), 8)
    attack = _attack(Alternating(), 2, epsilon=0.1, gradient_samples=3, batch_size=8)
    outcome = attack.run(images, np.zeros(8, int))
    mean = Alternating.kernels.mean(axis=0)
    slope = (mean[:, 1] - mean[:, 0]).reshape(DIGIT_SHAPE)
    clear = np.abs(slope) > 5e-5
    assert clear.mean() > 0.9
    expected = images + 0.1 * np.sign(slope)
    np.testing.assert_allclose(outcome.images[:, clear], expected[:, clear], atol=1e-6)
    logits = np.einsum("bi,kij->kbj", outcome.images.reshape(8, 64), Alternating.kernels)
    losses = -log_softmax(logits.astype(np.float64), axis=2)[..., 0]
    np.testing.assert_allclose(outcome.loss, losses.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(("lead", "runs"), [(1.0, 4), (-1.0, 1)])
def test_an_image_is_done_with_when_every_sample_is_wrong(lead, runs):
    """With a lead of 1 no sample ever is; with -1 each is to begin with."""
    images, _ = _digit_samples(Linear(2), 8)
    model = Alternating(lead)
    options = {"gradient_samples": 3, "batch_size": 8, "iterations": 5, "restarts": 4}
    _attack(model, 2, **options).run(images, np.zeros(8, int))
    check, looks = 8, 2 * 3 * 8
    assert int(model.rows) == check + looks + runs * 6 * 3 * 8


def test_more_runs_never_fool_less_and_leave_fooled_images_alone():
    model, (images, labels) = digit_model(), (array[:60] for array in digits())
    attack = _known_attack(loss="dlr", iterations=5)
    outcomes, fooled = [], []
    for restarts in (1, 2, 8):
        attack.set_params(restarts=restarts)
        outcomes.append(attack.run(images, labels))
        fooled.append(predictions(model, outcomes[-1].images) != labels)
        assert outcomes[-1].iterations.max() <= 5 * restarts
    first, last = outcomes[0], outcomes[-1]
    assert (fooled[0] <= fooled[1]).all()
    assert (fooled[1] <= fooled[2]).all()
    assert 10 < fooled[0].sum() < fooled[2].sum()
    assert last.iterations.max() > 10
    np.testing.assert_array_equal(last.images[fooled[0]], first.images[fooled[0]])
    assert last.iterations[fooled[0]].max() <= 5


def test_an_image_that_cannot_be_made_worse_stays_as_it_is():
    """At the corner of [0, 1] that the label's logit falls towards, every step is a step back."""
    model = Linear(2)
    slope = (model.kernel[:, 1] - model.kernel[:, 0]).reshape(1, *DIGIT_SHAPE)
    corner = (slope > 0).astype(np.float32)
    outcome = _attack(model, 2, epsilon=0.05).run(corner, np.array([0]))
    np.testing.assert_array_equal(outcome.images, corner)
    assert outcome.iterations.tolist() == [0]


@pytest.mark.parametrize(("loss", "fewest"), [("dlr", 3), ("targeted_dlr", 4)])
def test_a_loss_that_needs_more_classes_is_refused(loss, fewest):
    message = f"{loss} loss needs a model of at least {fewest} classes; found {fewest - 1}"
    with pytest.raises(SfmError, match=message):
        _attack(Linear(fewest - 1), fewest - 1, loss=loss)
    attack = _attack(Linear(fewest - 1), fewest - 1)
    with pytest.raises(SfmError, match=message):
        attack.set_params(epsilon=0.3, loss=loss)
    assert attack.epsilon == 0.1
    _attack(Linear(fewest), fewest, loss=loss)
