import math

import keras
import numpy as np
import pytest

from sfm_tf.attacks.attack import CompiledAttack, perturbation_sizes
from sfm_tf.attacks.pgd import GradientAttack
from sfm_tf.audit.probes.probed_models import SwitchedModel, make_ablations
from sfm_tf.audit.probes.probing import (
    Prober,
    equal_volume_radius,
    huge_radius,
    ladder_radii,
)
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel


def test_the_ladder_ends_where_every_image_can_become_grey():
    assert ladder_radii(8.0, "inf", 3072) == [2.0, 4.0, 8.0, 16.0, 127.5]
    assert ladder_radii(100.0, "inf", 3072) == [25.0, 50.0, 100.0, 127.5]


def test_the_grey_image_is_as_far_in_l2_as_the_root_of_its_values():
    # From the corner 0 of the cube [0, 1]^d to its centre.
    assert huge_radius("2", 64) == pytest.approx(255.0 * math.sqrt(64 * 0.5**2))


@pytest.mark.parametrize(
    ("dimensions", "ratio"),
    # Square and disc, cube and ball: (2 r)^2 = pi R^2 and (2 r)^3 = 4/3 pi R^3.
    [(1, 1.0), (2, 2.0 / math.sqrt(math.pi)), (3, (6.0 / math.pi) ** (1.0 / 3.0))],
)
def test_balls_of_both_norms_have_the_same_volume(dimensions, ratio):
    assert equal_volume_radius(8.0, "inf", dimensions) == pytest.approx(8.0 * ratio)
    assert equal_volume_radius(8.0 * ratio, "2", dimensions) == pytest.approx(8.0)


def test_eight_of_255_on_cifar10_compare_with_a_known_radius():
    assert equal_volume_radius(8.0, "inf", 3072) / 255.0 == pytest.approx(0.84, abs=0.01)


SHAPE = (4, 4, 1)
COUNT = 6
CONFIG = EvaluationConfig(
    epsilons=(8.0, 16.0), iterations=3, step_size=2.0, robust_accuracy_only=True, restarts=7
)


def _prober(config=CONFIG, progress=lambda *_: None):
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    random = np.random.default_rng(0)
    images = random.uniform(0.3, 0.7, (COUNT, *SHAPE)).astype(np.float32)
    samples = check_samples(images, random.integers(0, 3, COUNT), classifier)
    subject = DefendedModel(classifier)
    prober = Prober(SwitchedModel(subject), samples, config, 0, progress)
    return prober, subject, make_ablations(subject).whole


def test_the_same_attack_is_made_once(monkeypatch):
    prober, _, whole = _prober()
    runs, batches = [], CompiledAttack.batches

    def counted(self, *arguments, **named):
        runs.append(self.epsilon)
        return batches(self, *arguments, **named)

    monkeypatch.setattr(CompiledAttack, "batches", counted)
    first = prober.pgd(whole.attacked)
    assert prober.pgd(whole.attacked, epsilon=16.0) is first
    other = prober.pgd(whole.attacked, epsilon=8.0)
    assert prober.pgd(whole.attacked) is first
    assert runs == pytest.approx([16.0 / 255.0, 8.0 / 255.0])
    assert perturbation_sizes(prober.samples.images, other.images, np.inf).max() <= 8.001 / 255.0


def test_no_attack_is_compiled_twice(monkeypatch):
    compiled, loop = [], GradientAttack._loop

    def counted(self, *arguments):
        compiled.append(self)
        return loop(self, *arguments)

    monkeypatch.setattr(GradientAttack, "_loop", counted)
    prober, _, whole = _prober()
    classes = (prober.samples.labels + 1) % 3
    for changes in (
        {},
        {"classes": classes},
        {"norm": 2},
        {"iterations": 1, "random_start": False},
        {"classes": classes, "epsilon": 8.0},
        {"norm": 2, "seed": 1},
    ):
        prober.pgd(whole.attacked, **changes)
    assert len(compiled) == 3
    assert set(compiled) == set(prober._attacks.values())


def test_steps_are_long_enough_to_cross_the_ball_as_in_the_evaluation():
    prober, *_ = _prober()
    assert prober.step_size(3.0) == 2.0
    assert prober.step_size(30.0) == 10.0


def test_attacks_are_whole_whatever_the_evaluation_saves(monkeypatch):
    prober, _, whole = _prober()
    seen, batches = [], CompiledAttack.batches

    def recorded(self, *arguments, **named):
        seen.append((self.restarts, self.stop_when_fooled, self.batch_size))
        assert self.keep_best
        assert self.random_start
        return batches(self, *arguments, **named)

    monkeypatch.setattr(CompiledAttack, "batches", recorded)
    prober.pgd(whole.attacked)
    assert seen == [(1, False, COUNT)]


def test_right_is_by_the_labels():
    prober, subject, whole = _prober()
    logits = np.asarray(subject(prober.samples.images))
    expected = logits.argmax(axis=1) == prober.samples.labels
    assert prober.right(whole.scored, prober.samples.images).tolist() == expected.tolist()
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(COUNT), prober.samples.labels]
    np.testing.assert_allclose(prober.clean_loss(whole.scored), loss, rtol=1e-4)


def test_classes_are_reached_rather_than_left():
    config = EvaluationConfig(epsilons=(120.0,), iterations=20, step_size=20.0)
    prober, subject, whole = _prober(config)
    classes = (prober.samples.labels + 1) % 3
    made = prober.pgd(whole.attacked, classes=classes).images
    assert (np.asarray(subject(made)).argmax(axis=1) == classes).all()
    assert prober.pgd(whole.attacked).images is not made


def test_setups_and_other_models_are_told_apart():
    prober, subject, whole = _prober()
    scaled = whole.attacked._replace(factor=3.0)
    logits = np.asarray(subject(prober.samples.images))
    for target, expected in ((scaled, 3.0 * logits), (whole.attacked, logits), (subject, logits)):
        found = prober.logits(target, prober.samples.images)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        prober.pgd(subject).images, prober.pgd(whole.attacked).images, atol=1e-6
    )
    assert prober.pgd(subject) is not prober.pgd(whole.attacked)


def test_an_attack_of_some_images_makes_of_them_what_one_of_all_does():
    prober, _, whole = _prober()
    rows = np.array([1, 4])
    every = prober.run("noise", whole.attacked, np.arange(COUNT))
    np.testing.assert_array_equal(prober.run("noise", whole.attacked, rows), every[rows])


def test_progress_names_the_probe():
    told = []
    prober, *_ = _prober(progress=lambda *values: told.append(values))
    prober.report("PGD at rising radii")
    assert told == [("audit: PGD at rising radii", 0, COUNT)]
