import dataclasses
import functools
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
from tests.attacked_models import DIGIT_SHAPE, digit_model, digits, norms, predictions

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


SHAPE = DIGIT_SHAPE
# Of so large a batch the smallest bucket holds all images: each part compiles once.
SHORT = {"iterations": 5, "target_classes": 3, "queries": 150, "batch_size": 320}


class Switched(keras.Model):
    """Four logits linear in the pixels.

    Attributes:
        kernel: Float32 `(64, 4)`.
        lead: How much the first logit is raised.
        rounds: 1 for a model that sees eight levels of gray, without a gradient; else 0.
    """

    def __init__(self):
        super().__init__()
        self.kernel = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
        self.lead, self.rounds = tf.Variable(0.0), tf.Variable(0.0)

    def call(self, images):
        levels = tf.stop_gradient(tf.round(8.0 * images) / 8.0)
        seen = (1.0 - self.rounds) * images + self.rounds * levels
        bias = self.lead * tf.constant([1.0, 0.0, 0.0, 0.0])
        return tf.reshape(seen, (-1, 64)) @ self.kernel + bias


class Trembling(Switched):
    """Adds noise to the logits of each image that it is shown."""

    def call(self, images):
        logits = super().call(images)
        return logits + tf.random.normal(tf.shape(logits))


def _attack(model, class_count=4, **options):
    classifier = wrap_classifier(model, class_count, SHAPE, 64)
    return AutoAttack(classifier, **{"epsilon": 0.1, **SHORT, **options})


@functools.cache
def _compiled_once():
    model = Switched()
    return model, _attack(model)


def _switched_attack(epsilon, lead=0.0, rounds=0.0):
    model, attack = _compiled_once()
    model.lead.assign(lead)
    model.rounds.assign(rounds)
    attack.set_params(epsilon=epsilon)
    return model, attack


def _samples(model, count=40):
    images = np.random.default_rng(1).uniform(0.3, 0.7, (count, *SHAPE)).astype(np.float32)
    return images, predictions(model, images)


def _wrong(model, images, labels):
    return predictions(model, images) != labels


@pytest.fixture(name="runs")
def _runs(monkeypatch):
    """Lists the positions that each part was given, and its outcome."""
    listed, run = [], CompiledAttack.run

    def listing_run(self, images, labels, mask=None, positions=None):
        listed.append((positions.tolist(), run(self, images, labels, mask, positions)))
        return listed[-1][1]

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

    attack = AutoAttack(wrap_classifier(Switched(), 4, SHAPE, 64), epsilon=0.1, version=version)
    monkeypatch.setattr(CompiledAttack, "run", record)
    attack.set_params(**options)
    attack.run_named(*_samples(Switched(), 3))
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
    """Class j can win within the ball exactly if z_j + epsilon |w_j - w_y|_1 > z_y."""
    epsilon = 0.04
    model, attack = _switched_attack(epsilon)
    images, labels = _samples(model)
    logits = np.asarray(model(images))
    reach = np.abs(model.kernel[:, :, None] - model.kernel[:, None]).sum(axis=0)
    gains = logits - logits.max(axis=1, keepdims=True) + epsilon * reach[labels]
    gains[np.arange(40), labels] = -np.inf
    gain = gains.max(axis=1)
    clear = np.abs(gain) > 0.02
    assert 8 < np.sum(gain > 0) < 32
    outcome, names = attack.run_named(images, labels)
    np.testing.assert_array_equal(_wrong(model, outcome.images, labels)[clear], gain[clear] > 0)
    np.testing.assert_array_equal((names != STANDING)[clear], gain[clear] > 0)
    assert norms(outcome.images - images, math.inf).max() <= epsilon + 1e-6


def test_each_part_only_sees_what_those_before_it_left_standing(runs):
    model, (images, classes) = digit_model(), digits()
    images, labels, positions = images[:100], classes[:100], np.arange(50, 150)
    attack = _attack(model, 10, norm=2, epsilon=0.5, batch_size=800)
    outcome, names = attack.run_named(images, labels, positions=positions)
    standing = names != CLEAN
    for (seen, found), part in zip(runs, ["apgd_ce", "apgd_t", "fab_t", "square"], strict=True):
        assert seen == positions[standing].tolist()
        broken, is_broken = names == part, names[standing] == part
        np.testing.assert_array_equal(outcome.images[broken], found.images[is_broken])
        np.testing.assert_array_equal(outcome.iterations[broken], found.iterations[is_broken])
        standing &= ~broken
    assert 10 < np.sum(names == STANDING) <= np.sum(names != CLEAN) - 10
    np.testing.assert_array_equal(names != STANDING, _wrong(model, outcome.images, labels))
    np.testing.assert_array_equal(standing, names == STANDING)
    assert norms(outcome.images - images, 2).max() <= 0.5 + 1e-5


def test_hidden_gradients_fall_to_square_alone():
    model, attack = _switched_attack(0.125, rounds=1.0)
    images, labels = _samples(model)
    outcome, names = attack.run_named(images, labels)
    assert outcome.zero_gradient_share == 1.0
    assert np.mean(_wrong(model, outcome.images, labels)) > 0.7
    assert np.sum(names == "square") > 0.5 * len(images)
    # Random starts move, too; what follows the gradient does not.
    assert np.sum(np.isin(names, ["apgd_ce", "apgd_t", "fab_t"])) < 0.3 * len(images)


def test_what_cannot_be_broken_stands_and_what_is_misclassified_is_left_alone(runs):
    """Half of the labels are wrong of a model that nothing gets away from its first class."""
    model, attack = _switched_attack(0.1, lead=1000.0)
    images, _ = _samples(model, 10)
    mask = np.zeros((1, *SHAPE))
    mask[:, :4] = 1
    outcome, names = attack.run_named(images, np.arange(10) % 2, mask=mask)
    assert names.tolist() == [STANDING, CLEAN] * 5
    assert [positions for positions, _ in runs] == [[0, 2, 4, 6, 8]] * 4
    np.testing.assert_array_equal(outcome.images[1::2], images[1::2])
    assert outcome.iterations[1::2].tolist() == [0] * 5
    logits = (np.asarray(model(x)) for x in (images[::2], outcome.images[::2]))
    before, after = (x[:, 0] - x[:, 1:].max(axis=1) for x in logits)
    assert np.all(after < before - 0.5)
    np.testing.assert_allclose(outcome.images[:, 4:], images[:, 4:], atol=1e-6)


@pytest.mark.parametrize(("share", "name"), [(0.99, "fab_t"), (1.01, STANDING)])
def test_fab_counts_within_the_radius_only(monkeypatch, share, name):
    model, attack = _switched_attack(0.2)
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
    outcome, names = attack.run_named(images, labels)
    assert names.tolist() == [name] * 4
    np.testing.assert_array_equal(outcome.images, moved if name else images)


def test_eight_batches_come_at_a_time_and_make_up_the_whole(monkeypatch):
    model = Switched()
    images, labels = _samples(model, 10)

    def run(self, images, labels, mask, positions):
        outcome = _unchanged(self, images, labels, mask, positions)
        changes = np.reshape(0.01 * (positions % 7 - 3), (-1, 1, 1, 1)).astype(np.float32)
        return dataclasses.replace(outcome, images=images + changes)

    monkeypatch.setattr(CompiledAttack, "run", run)
    attack = _attack(model, batch_size=1)
    whole, _ = attack.run_named(images, labels)
    assert np.abs(whole.images - images).max() > 0.02
    outcomes = list(attack.batches(images, labels))
    assert [len(outcome.images) for outcome in outcomes] == [8, 2]
    joined = np.concatenate([outcome.images for outcome in outcomes])
    np.testing.assert_array_equal(joined, whole.images)


def test_rand_breaks_a_model_that_draws_and_judges_by_new_draws():
    tf.random.set_seed(0)
    model, still = Trembling(), Switched()
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
        _attack(Switched(), fewest - 1, version=version)
    _attack(Switched(), fewest, version=version)


def test_another_version_is_refused_where_the_one_before_is_not():
    attack = _attack(Switched(), 3, version="rand")
    with pytest.raises(SfmError, match="needs at least 4 classes"):
        attack.set_params(epsilon=0.3, version="standard")
    assert (attack.epsilon, attack.version) == (0.1, "rand")
