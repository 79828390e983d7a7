import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.apgd import AutoProjectedGradientDescent
from sfm_tf.attacks.attack import AttackOutcome, CompiledAttack
from sfm_tf.attacks.autoattack import CLEAN, STANDING, AutoAttack, Best, keep_better
from sfm_tf.attacks.fab import FastAdaptiveBoundary
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import wrap_classifier
from tests.attacked_models import digit_model, digits, norms

COUNT = 5


def _best(fooled, objective, value=0.0, iterations=0, attack="clean"):
    count = len(fooled)
    images = np.full((count, 2, 2, 1), value, np.float32)
    fooled, objective = (np.array(values, np.float32) for values in (fooled, objective))
    attacks = np.full(count, attack, "<U16")
    return Best(images, np.full(count, iterations), attacks, fooled, objective, objective + 10.0)


def test_fooling_more_comes_before_the_margin_and_a_tie_changes_nothing():
    best = _best([0.0, 0.0, 0.0, 0.5, 1.0], [-1.0, -1.0, -1.0, -1.0, 3.0])
    # Higher; lower; a tie; fools more though it is lower; fools less though it is higher.
    found = _best([0.0, 0.0, 0.0, 1.0, 0.5], [-0.5, -2.0, -1.0, -9.0, 9.0], 1.0, 7, "pgd")
    keep_better(best, np.arange(COUNT), found, np.full(COUNT, True))
    assert best.attacks.tolist() == ["pgd", "clean", "clean", "pgd", "clean"]
    assert best.images[:, 0, 0, 0].tolist() == [1, 0, 0, 1, 0]
    assert best.iterations.tolist() == [7, 0, 0, 7, 0]
    assert best.fooled.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert best.loss.tolist() == [9.5, 9.0, 9.0, 1.0, 13.0]


def test_only_allowed_images_of_the_given_rows_count():
    best = _best([0.0, 0.0, 0.0, 0.5, 1.0], [-1.0, -1.0, -1.0, -1.0, 3.0])
    found = _best([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], attack="cw")
    keep_better(best, np.array([3, 0, 1]), found, np.array([True, False, True]))
    assert best.attacks.tolist() == ["clean", "cw", "clean", "cw", "clean"]
    assert best.objective.tolist() == [-1.0, 2.0, -1.0, 2.0, 3.0]


SHAPE = (8, 8, 1)
# Of so large a batch the smallest bucket holds all images: each part compiles once.
SHORT = {"iterations": 5, "target_classes": 3, "queries": 40, "batch_size": 320}


class Linear(keras.Model):
    """Four logits linear in the pixels, of which the first is raised by `lead`."""

    def __init__(self, lead=0.0, class_count=4):
        super().__init__()
        self.kernel = np.random.default_rng(0).normal(size=(64, class_count)).astype(np.float32)
        self.bias = lead * np.eye(class_count, dtype=np.float32)[0]

    def call(self, images):
        return tf.reshape(images, (-1, 64)) @ self.kernel + self.bias


class Rounding(Linear):
    """Sees eight levels of gray; the gradient of rounding is zero."""

    def call(self, images):
        return super().call(0.0 * images + tf.stop_gradient(tf.round(8.0 * images) / 8.0))


class Trembling(Linear):
    """Adds noise to the logits of each image that it is shown."""

    def call(self, images):
        logits = super().call(images)
        return logits + tf.random.normal(tf.shape(logits))


def _attack(model, class_count=4, **options):
    classifier = wrap_classifier(model, class_count, SHAPE, 64)
    return AutoAttack(classifier, **{"epsilon": 0.1, **SHORT, **options})


def _samples(model, count=40):
    images = np.random.default_rng(1).uniform(0.3, 0.7, (count, *SHAPE)).astype(np.float32)
    return images, np.asarray(model(images)).argmax(axis=1)


def _wrong(model, images, labels):
    return np.asarray(model(images)).argmax(axis=1) != labels


@pytest.fixture
def calls(monkeypatch):
    """Lists what the parts were called with, as they are called."""
    listed, run = [], CompiledAttack.run

    def listing_run(self, images, labels, mask=None, positions=None):
        options = {name: getattr(self, name) for name in self.attack_params}
        listed.append((type(self), options, positions.tolist()))
        return run(self, images, labels, mask, positions)

    monkeypatch.setattr(CompiledAttack, "run", listing_run)
    return listed


def _unchanged(self, images, labels, mask, positions):
    zeros = np.zeros(len(images), np.float32)
    return AttackOutcome(images, zeros, zeros.astype(np.int32), zeros > 0)


def _parts(version, monkeypatch, **options):
    made = []

    def record(self, *arguments):
        made.append((type(self), {name: getattr(self, name) for name in self.attack_params}))
        return _unchanged(self, *arguments)

    attack = AutoAttack(wrap_classifier(Linear(), 4, SHAPE, 64), epsilon=0.1, version=version)
    monkeypatch.setattr(CompiledAttack, "run", record)
    attack.set_params(**options)
    attack.run_named(*_samples(Linear(), 3))
    return made


def test_standard_is_that_of_the_paper(monkeypatch):
    """Croce and Hein 2020, section 5, and the settings of their published code."""
    parts = _parts("standard", monkeypatch)
    kinds = [AutoProjectedGradientDescent] * 2 + [FastAdaptiveBoundary, SquareAttack]
    assert [kind for kind, _ in parts] == kinds
    apgd, targeted, fab, square = (options for _, options in parts)
    assert (apgd["loss"], apgd["iterations"], apgd["restarts"]) == ("cross_entropy", 100, 1)
    assert (targeted["loss"], targeted["iterations"]) == ("targeted_dlr", 100)
    assert (targeted["restarts"], targeted["target_classes"]) == (1, 9)
    assert (fab["iterations"], fab["restarts"], fab["target_classes"]) == (100, 1, 9)
    assert (square["queries"], square["p_init"], square["stretch_schedule"]) == (5000, 0.8, False)
    assert all(options["rho"] == 0.75 for options in (apgd, targeted))
    assert all(options.get("gradient_samples", 1) == 1 for _, options in parts)
    assert all(options["norm"] == math.inf for _, options in parts)
    assert all(options.get("epsilon", 0.1) == 0.1 for _, options in parts)


def test_rand_takes_twenty_samples_for_each_gradient(monkeypatch):
    parts = [options for _, options in _parts("rand", monkeypatch)]
    assert [options["loss"] for options in parts] == ["cross_entropy", "dlr"]
    assert [options["gradient_samples"] for options in parts] == [20, 20]
    assert [options["iterations"] for options in parts] == [100, 100]


def test_its_options_reach_every_part(monkeypatch):
    changed = {"norm": 2, "epsilon": 0.3, "iterations": 7, "target_classes": 2, "queries": 11}
    changed |= {"batch_size": 5, "seed": 6}
    parts = _parts("standard", monkeypatch, **changed)
    reached = [set(options) & set(changed) for _, options in parts]
    assert set().union(*reached) == set(changed)
    for (_, options), names in zip(parts, reached, strict=True):
        assert {name: options[name] for name in names} == {name: changed[name] for name in names}


def test_breaks_a_linear_model_exactly_where_it_can_be_broken():
    """Class j can win within the L2 ball exactly if z_j + epsilon |w_j - w_y| > z_y."""
    model, epsilon = Linear(class_count=6), 0.3
    images, labels = _samples(model, 40)
    logits = np.asarray(model(images))
    differences = model.kernel[:, :, None] - model.kernel[:, None]
    reach = np.linalg.norm(differences, axis=0)
    gains = logits - logits.max(axis=1, keepdims=True) + epsilon * reach[labels]
    gains[np.arange(40), labels] = -np.inf
    gain = gains.max(axis=1)
    clear = np.abs(gain) > 0.02
    assert 8 < np.sum(gain > 0) < 32
    outcome, names = _attack(model, 6, norm=2, epsilon=epsilon).run_named(images, labels)
    np.testing.assert_array_equal(_wrong(model, outcome.images, labels)[clear], gain[clear] > 0)
    np.testing.assert_array_equal((names != STANDING)[clear], gain[clear] > 0)
    assert norms(outcome.images - images, 2).max() <= epsilon + 1e-6


def test_each_part_only_sees_what_those_before_it_left_standing(calls):
    keras.utils.set_random_seed(0)
    model, (images, classes) = digit_model(), digits()
    images, labels, positions = images[:100], classes[:100], np.arange(50, 150)
    attack = _attack(model, 10, epsilon=0.08, batch_size=800)
    outcome, names = attack.run_named(images, labels, positions=positions)
    seen = [set(positions) for _, _, positions in calls]
    assert seen[0] == set(positions[names != CLEAN])
    assert seen[1] == seen[0] - set(positions[names == "apgd_ce"])
    assert seen[2] == seen[1] - set(positions[names == "apgd_t"])
    assert seen[3] == seen[2] - set(positions[names == "fab_t"])
    assert 10 < np.sum(names == STANDING) < len(seen[3]) + 1 <= len(seen[0]) - 10
    np.testing.assert_array_equal(names != STANDING, _wrong(model, outcome.images, labels))
    alone = AutoProjectedGradientDescent(
        attack.estimator, epsilon=0.08, iterations=5, batch_size=800
    ).run(images, labels, positions=positions)
    by_the_first = names == "apgd_ce"
    np.testing.assert_array_equal(outcome.images[by_the_first], alone.images[by_the_first])
    np.testing.assert_array_equal(outcome.iterations[by_the_first], alone.iterations[by_the_first])
    broken_alone = _wrong(model, alone.images, labels) & (names != CLEAN)
    np.testing.assert_array_equal(by_the_first, broken_alone)


def test_hidden_gradients_fall_to_square_alone():
    model = Rounding()
    images, labels = _samples(model)
    attack = _attack(model, epsilon=0.125, queries=150)
    apgd = AutoProjectedGradientDescent(attack.estimator, epsilon=0.125, iterations=20)
    alone = apgd.run(images, labels)
    outcome, names = attack.run_named(images, labels)
    assert alone.zero_gradient_share == outcome.zero_gradient_share == 1.0
    assert np.mean(_wrong(model, alone.images, labels)) < 0.3
    assert np.mean(_wrong(model, outcome.images, labels)) > 0.7
    assert np.sum(names == "square") > 0.5 * len(images)
    # Random starts move, too; what follows the gradient does not.
    assert np.sum(np.isin(names, ["apgd_ce", "apgd_t", "fab_t"])) < 0.3 * len(images)


def test_what_cannot_be_broken_stands_and_what_is_misclassified_is_left_alone(calls):
    """Half of the labels are wrong of a model that nothing gets away from its first class."""
    model = Linear(lead=1000.0)
    images, _ = _samples(model, 10)
    mask = np.zeros((1, *SHAPE))
    mask[:, :4] = 1
    outcome, names = _attack(model).run_named(images, np.arange(10) % 2, mask=mask)
    assert names.tolist() == [STANDING, CLEAN] * 5
    assert [positions for _, _, positions in calls] == [[0, 2, 4, 6, 8]] * 4
    np.testing.assert_array_equal(outcome.images[1::2], images[1::2])
    assert outcome.iterations[1::2].tolist() == [0] * 5
    logits = (np.asarray(model(x)) for x in (images[::2], outcome.images[::2]))
    before, after = (x[:, 0] - x[:, 1:].max(axis=1) for x in logits)
    assert np.all(after < before - 0.5)
    np.testing.assert_allclose(outcome.images[:, 4:], images[:, 4:], atol=1e-6)


@pytest.mark.parametrize(("share", "name"), [(0.99, "fab_t"), (1.01, STANDING)])
def test_fab_counts_within_the_radius_only(monkeypatch, share, name):
    model = Linear()
    images, labels = _samples(model, 4)
    target = (labels + 1) % 4
    slope = (model.kernel[:, target] - model.kernel[:, labels]).T.reshape(images.shape)
    moved = images + share * 0.2 * np.sign(slope)
    assert _wrong(model, moved, labels).all()

    def run(self, images, labels, mask, positions):
        outcome = _unchanged(self, images, labels, mask, positions)
        is_fab = isinstance(self, FastAdaptiveBoundary)
        return dataclasses.replace(outcome, images=moved) if is_fab else outcome

    monkeypatch.setattr(CompiledAttack, "run", run)
    outcome, names = _attack(model, epsilon=0.2).run_named(images, labels)
    assert names.tolist() == [name] * 4
    np.testing.assert_array_equal(outcome.images, moved if name else images)


def test_eight_batches_come_at_a_time_and_make_up_the_whole():
    model = Linear()
    images, labels = _samples(model, 10)
    attack = _attack(model, epsilon=0.05, iterations=2, queries=5, batch_size=1)
    whole, names = attack.run_named(images, labels)
    assert {"apgd_ce", STANDING} <= set(names)
    outcomes = list(attack.batches(images, labels))
    assert [len(outcome.images) for outcome in outcomes] == [8, 2]
    joined = np.concatenate([outcome.images for outcome in outcomes])
    np.testing.assert_array_equal(joined, whole.images)
    part = attack.run(images[3:], labels[3:], positions=np.arange(3, 10))
    np.testing.assert_allclose(part.images, whole.images[3:], atol=1e-6)


def test_rand_breaks_a_model_that_draws_and_judges_by_new_draws():
    tf.random.set_seed(0)
    model, still = Trembling(), Linear()
    images, labels = _samples(still, 30)
    attack = _attack(model, version="rand", epsilon=0.05, batch_size=240)
    outcome, names = attack.run_named(images, labels)
    shares = np.stack([_wrong(model, outcome.images, labels) for _ in range(200)]).mean(axis=0)
    assert {"apgd_ce", STANDING} <= set(names) <= {"apgd_ce", "apgd_dlr", CLEAN, STANDING}
    assert shares[~np.isin(names, [CLEAN, STANDING])].min() > 0.25
    assert shares[names == STANDING].max() < 0.75
    clean = np.stack([_wrong(model, images, labels) for _ in range(200)]).mean(axis=0)
    assert shares.mean() > clean.mean() + 0.3


@pytest.mark.parametrize(("version", "fewest"), [("standard", 4), ("rand", 3)])
def test_a_model_of_too_few_classes_is_refused(version, fewest):
    message = (
        f"version '{version}' needs at least {fewest} classes for its DLR loss; found {fewest - 1}"
    )
    with pytest.raises(SfmError, match=message):
        _attack(Linear(class_count=fewest - 1), fewest - 1, version=version)
    _attack(Linear(class_count=fewest), fewest, version=version)


def test_another_version_is_refused_where_the_one_before_is_not():
    attack = _attack(Linear(class_count=3), 3, version="rand")
    with pytest.raises(SfmError, match="needs at least 4 classes"):
        attack.set_params(epsilon=0.3, version="standard")
    assert (attack.epsilon, attack.version) == (0.1, "rand")
