import dataclasses
import functools
import inspect
import math
import re
import threading
from typing import ClassVar, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from art.attacks.attack import EvasionAttack
from art.defences.preprocessor import FeatureSqueezing
from art.estimators.classification.tensorflow import TensorFlowV2Classifier
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_tf.attacks import attack
from sfm_tf.attacks.adaptive import AdaptiveGradientDescent
from sfm_tf.attacks.apgd import AutoProjectedGradientDescent
from sfm_tf.attacks.attack import (
    COUNT,
    FLAG,
    NORM,
    NOT_FOUND,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    AttackOutcome,
    BatchOutcome,
    CompiledAttack,
    Scores,
    advance_unfinished,
    attack_in_parallel,
    better,
    bucket_size,
    choose,
    faults,
    join_outcomes,
    make_candidate,
    one_of,
    perturbation_sizes,
    score,
    usable_gradient,
    worst_candidate,
)
from sfm_tf.attacks.autoattack import AutoAttack
from sfm_tf.attacks.cw import CarliniWagner
from sfm_tf.attacks.diverse_inputs import DiverseInputsMethod
from sfm_tf.attacks.fab import FastAdaptiveBoundary
from sfm_tf.attacks.fgsm import FastGradientMethod
from sfm_tf.attacks.hop_skip_jump import HopSkipJump
from sfm_tf.attacks.mim import MomentumIterativeMethod
from sfm_tf.attacks.pgd import ProjectedGradientDescent
from sfm_tf.attacks.redraw import Redraw
from sfm_tf.attacks.square import SquareAttack
from sfm_tf.attacks.squeezing_aware import SqueezingAwareGradientDescent
from sfm_tf.attacks.uniform_noise import UniformNoise
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import wrap_classifier
from sfm_tf.models.defended_model import DefendedModel
from tests.attacked_models import (
    Linear,
    cross_entropy,
    linear_classifier,
    norms,
    predictions,
    samples,
)


@pytest.mark.parametrize(
    ("kind", "valid", "invalid"),
    [
        (NORM, [math.inf, "inf", 2, 2.0], [1, "l2", None, [2]]),
        (POSITIVE, [1e-9, 1, np.float32(0.5)], [0, -1, math.nan, math.inf, "1", True, None]),
        (NOT_NEGATIVE, [0, 0.0, np.float32(0.5)], [-1e-9, math.nan, math.inf, "0", False]),
        (SHARE, [1e-9, 1, np.float32(0.5)], [0, 1.001, -0.5, math.nan, math.inf, "1", True]),
        (COUNT, [1, np.int64(7)], [0, -1, 1.0, True, "1"]),
        (SEED, [0, 2**31 - 1], [-1, 2**31, 0.5]),
        (FLAG, [True, False], [0, 1, None]),
        (one_of({"dlr": 1, "ce": 2}), ["dlr", "ce"], ["d", 1, None, ["ce"]]),
    ],
    ids=["norm", "positive", "not_negative", "share", "count", "seed", "flag", "one_of"],
)
def test_each_kind_tells_valid_from_invalid_values(kind, valid, invalid):
    assert [kind.is_valid(value) for value in valid] == [True] * len(valid)
    assert [kind.is_valid(value) for value in invalid] == [False] * len(invalid)


def test_only_finite_entries_of_changeable_pixels_are_left():
    gradient = tf.constant([1.0, math.nan, math.inf, -math.inf, -2.0, 3.0])
    mask = tf.constant([1.0, 1.0, 1.0, 1.0, 0.5, 0.0])
    np.testing.assert_array_equal(usable_gradient(gradient, mask), [1, 0, 0, 0, -2, 0])


class Pair(NamedTuple):
    images: tf.Tensor
    losses: tf.Tensor


def test_chooses_whole_images_of_nested_structures():
    first = Pair(tf.ones((2, 1, 2, 1)), (tf.constant([1, 2]),))
    second = Pair(tf.zeros((2, 1, 2, 1)), (tf.constant([3, 4]),))
    chosen = choose(tf.constant([True, False]), first, second)
    assert isinstance(chosen, Pair)
    assert chosen.images.numpy().ravel().tolist() == [1, 1, 0, 0]
    assert chosen.losses[0].numpy().tolist() == [1, 4]


def _candidate(value, objectives, fooled, iteration):
    images = tf.fill((len(objectives), 1, 2, 1), value)
    scores = Scores(tf.constant(objectives), tf.constant(fooled))
    return make_candidate(images, scores, tf.constant(iteration))


@pytest.mark.parametrize(
    ("targeted", "objectives", "fooled"),
    [(False, [2.0, 4.0], [1.0, 0.5]), (True, [-2.0, -4.0], [0.0, 0.5])],
)
def test_several_samples_of_an_image_count_by_their_mean(targeted, objectives, fooled):
    losses = tf.constant([1.0, 3.0, 3.0, 5.0])
    logits = tf.constant([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0], [1.0, 0.0]])
    labels = tf.constant([0, 0, 1, 1], tf.int64)
    scores = score(losses, logits, labels, targeted, samples=2)
    assert scores.objective.numpy().tolist() == objectives
    assert scores.fooled.numpy().tolist() == fooled


def test_fooling_comes_before_the_objective_and_ties_go_to_the_first():
    first = _candidate(0.1, [1.0, 1.0, 1.0, 1.0, 9.0], [0.0, 1.0, 0.5, 0.5, 0.25], 3)
    second = _candidate(0.2, [0.5, 2.0, 1.0, 2.0, 1.0], [1.0, 0.0, 0.5, 0.5, 0.75], 4)
    best = better(first, second)
    assert best.iterations.numpy().tolist() == [4, 3, 3, 4, 4]
    assert best.objective.numpy().tolist() == [0.5, 1.0, 1.0, 2.0, 1.0]
    assert best.fooled.numpy().tolist() == [1.0, 1.0, 0.5, 0.5, 0.75]
    np.testing.assert_allclose(best.images[:, 0, 1, 0], [0.2, 0.1, 0.1, 0.2, 0.2], atol=1e-7)


def test_anything_is_better_than_the_worst():
    low = float(np.finfo(np.float32).min)
    best = better(
        worst_candidate(tf.zeros((2, 1, 2, 1))), _candidate(0.5, [low, 0.0], [0.0] * 2, 7)
    )
    assert best.iterations.numpy().tolist() == [7, 7]
    assert (best.images.numpy() == 0.5).all()


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (65, 128), (128, 128), (300, 128)],
)
def test_a_batch_of_128_has_four_buckets(count: int, expected: int) -> None:
    assert bucket_size(count, 128) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 100])
def test_a_bucket_holds_the_images_of_any_batch_size(batch_size: int) -> None:
    sizes = {count: bucket_size(count, batch_size) for count in range(1, batch_size + 1)}
    assert all(count <= size <= batch_size for count, size in sizes.items())
    assert len(set(sizes.values())) <= 4


class _Batch(NamedTuple):
    images: tf.Tensor
    labels: tf.Tensor


class _Outcome(NamedTuple):
    images: tf.Tensor
    doubled: tf.Tensor


def _batch(size):
    return _Batch(np.random.default_rng(0).uniform(size=(size, 2, 2, 1)), np.arange(size))


def _attack(sizes):
    def attack(batch):
        sizes.append(len(batch.labels))
        return _Outcome(-batch.images, 2 * batch.labels)

    return attack


@pytest.mark.parametrize(
    ("size", "parts", "expected"),
    [(64, 2, [32, 32]), (64, 4, [16] * 4), (64, 1, [64]), (30, 2, [30]), (33, 2, [33])],
)
def test_rows_keep_their_order_and_few_images_stay_together(size, parts, expected):
    batch, sizes = _batch(size), []
    outcome = attack_in_parallel(_attack(sizes), batch, parts)
    assert sizes == expected
    np.testing.assert_array_equal(outcome.images, -batch.images)
    np.testing.assert_array_equal(outcome.doubled, 2 * batch.labels)


def test_the_parts_are_attacked_at_the_same_time():
    both = threading.Barrier(2, timeout=30)

    def attack(batch):
        both.wait()
        return _Outcome(*batch)

    assert len(attack_in_parallel(attack, _batch(32), 2).images) == 32


def test_a_gpu_gets_the_whole_batch(monkeypatch):
    monkeypatch.setattr(attack.tf.config, "list_logical_devices", lambda kind: [kind])
    sizes = []
    attack_in_parallel(_attack(sizes), _batch(64), 2)
    assert sizes == [64]


def test_an_error_in_a_part_is_raised():
    def attack(batch):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    with pytest.raises(tf.errors.ResourceExhaustedError):
        attack_in_parallel(attack, _batch(32), 2)


def _unfinished_batch(count):
    return (tf.range(count), tf.reshape(tf.range(2 * count), (count, 2)))


@pytest.mark.parametrize(
    ("finished", "size"), [([], 16), ([1], 16), (range(1, 9), 8), (range(1, 13), 4), (range(15), 2)]
)
def test_only_what_is_unfinished_goes_on_in_the_smallest_bucket(finished, size):
    done = np.isin(np.arange(16), list(finished))
    sizes = []

    def advance(batch, state):
        sizes.append(len(batch[0]))
        return {"steps": state["steps"] + 1, "place": batch[1] + 100}

    state = {"steps": tf.zeros(16, tf.int32), "place": _unfinished_batch(16)[1]}
    new = advance_unfinished(advance, _unfinished_batch(16), state, tf.constant(done), 16)
    assert sizes == [size]
    np.testing.assert_array_equal(new["steps"], np.where(done, 0, 1))
    expected = np.arange(32).reshape(16, 2) + np.where(done, 0, 100)[:, None]
    np.testing.assert_array_equal(new["place"], expected)


def test_nothing_runs_once_all_are_finished():
    state = tf.zeros(3)
    new = advance_unfinished(None, _unfinished_batch(3), state, tf.constant([True] * 3), 4)
    assert new is state


def test_the_buckets_are_those_of_the_batch_size_not_of_the_batch():
    sizes = []

    def advance(batch, state):
        sizes.append(len(batch[0]))
        return state

    advance_unfinished(advance, _unfinished_batch(5), tf.zeros(5), tf.constant([False] * 5), 64)
    assert sizes == [8]


IMAGES = np.full((2, 2, 2, 1), 0.5, np.float32)


def _moved(*changes):
    adversarial_images = IMAGES.copy()
    for index, change in enumerate(changes):
        adversarial_images[1].flat[index] += change
    return adversarial_images


def test_sizes_are_norms_per_image():
    adversarial_images = _moved(0.25, -0.5)
    expected = [0.0, 0.5]
    np.testing.assert_array_equal(
        perturbation_sizes(IMAGES, adversarial_images, math.inf), expected
    )
    expected = [0.0, math.sqrt(0.3125)]
    np.testing.assert_allclose(perturbation_sizes(IMAGES, adversarial_images, 2.0), expected)


@pytest.mark.parametrize(("norm", "epsilon"), [(math.inf, 0.1), (2.0, 0.2)])
def test_a_perturbation_on_the_sphere_is_valid(norm, epsilon):
    assert faults(IMAGES, _moved(0.1, -0.1, 0.1, 0.1), epsilon, norm) == []


def test_without_a_radius_any_perturbation_inside_the_range_is_valid():
    assert faults(IMAGES, _moved(0.5, -0.5, 0.5, -0.5), math.inf, 2.0) == []
    assert len(faults(IMAGES, _moved(0.51), math.inf, 2.0)) == 1


@pytest.mark.parametrize(
    ("adversarial_images", "epsilon", "phrase"),
    [
        (_moved(0.125), 0.1, "norm 0.125 instead of at most 0.1"),
        (_moved(0.6), 1.0, r"to 1.1.* instead of within \[0, 1\]"),
        (_moved(math.nan), 1.0, "NaN"),
        (IMAGES[:1], 1.0, "shape"),
    ],
    ids=["too_far", "out_of_range", "nan", "shape"],
)
def test_each_fault_is_named(adversarial_images, epsilon, phrase):
    found = faults(IMAGES, adversarial_images, epsilon, math.inf)
    assert len(found) == 1
    assert re.search(phrase, found[0])


SHAPE = (2, 2, 1)
OPTIONS = {"norm": "inf", "epsilon": 0.1, "targeted": False, "batch_size": 4, "seed": 5}


class Shift(CompiledAttack):
    """Adds `epsilon` times `reach`; reports what it was given through the diagnostics."""

    reach = 1.0

    def _attack_batch(self, batch):
        self.shapes = [*getattr(self, "shapes", []), batch.images.shape[0]]
        self.seeds = batch.seeds.numpy()
        moved = batch.images + self.reach * self.epsilon * batch.mask
        loss = tf.cast(batch.labels, tf.float32)
        return BatchOutcome(moved, loss, batch.seeds[:, 1], batch.labels == 0)


class BrokenLoss(Shift):
    def _attack_batch(self, batch):
        loss = tf.where(batch.seeds[:, 1] == 12, float("nan"), 1.0)
        return super()._attack_batch(batch)._replace(loss=loss)


def _classifier(activation=None, clip_values=(0.0, 1.0), **options):
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3, activation)]
    model = keras.Sequential(layers)
    return TensorFlowV2Classifier(model, 3, SHAPE, clip_values=clip_values, **options)


def _images(count):
    return np.random.default_rng(0).uniform(0.2, 0.8, (count, *SHAPE)).astype(np.float32)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Repeated(Shift):
    """Has an option of its own, and none of two that others have."""

    epsilon: ClassVar[float] = math.inf
    targeted: ClassVar[bool] = False
    repeats: int = 2

    def _check_params(self):
        super()._check_params()
        self._check(COUNT, "repeats")


def test_options_are_keywords_with_defaults_and_what_art_calls_attack_params():
    assert str(inspect.signature(Repeated)).startswith("(estimator: ")
    parameters = inspect.signature(Repeated).parameters
    kinds = {parameter.kind for name, parameter in parameters.items() if name != "estimator"}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    attack = Repeated(_classifier(), seed=3)
    assert list(parameters) == ["estimator", *attack.attack_params]
    values = {name: getattr(attack, name) for name in attack.attack_params}
    assert values == {"norm": math.inf, "batch_size": 128, "seed": 3, "repeats": 2}
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'epsilon'"):
        Shift(_classifier())


def test_options_change_by_name_all_or_none():
    attack = Shift(_classifier(), **OPTIONS)
    attack.set_params(epsilon=0.2, targeted=True)
    assert (attack.epsilon, attack.targeted) == (0.2, True)
    with pytest.raises(SfmError, match="Unknown option 'eps' of Shift; expected one of norm, eps"):
        attack.set_params(epsilon=0.3, eps=0.3)
    with pytest.raises(SfmError, match="Invalid batch_size 0 of Shift; expected an integer of at"):
        attack.set_params(epsilon=0.3, batch_size=0)
    assert attack.epsilon == 0.2


def test_every_batch_has_one_size_and_only_true_images_come_back():
    attack = Shift(_classifier(), **OPTIONS)
    outcome = attack.run(_images(10), np.arange(10) % 3)
    assert attack.shapes == [4, 4, 4]
    np.testing.assert_allclose(outcome.images, _images(10) + 0.1, atol=1e-6)
    assert outcome.loss.tolist() == [index % 3 for index in range(10)]
    assert outcome.iterations.tolist() == list(range(10))
    assert outcome.zero_gradient_share == 0.4


@pytest.mark.parametrize(("count", "size"), [(3, 4), (2, 2), (1, 1)])
def test_fewer_images_than_a_batch_are_one_batch_of_the_smallest_bucket(count, size):
    attack = Shift(_classifier(), **OPTIONS)
    assert attack.generate(_images(count), np.zeros(count, int)).shape == (count, *SHAPE)
    assert attack.shapes == [size]


def test_batches_come_one_by_one_and_make_up_the_whole():
    attack, labels = Shift(_classifier(), **OPTIONS), np.arange(10) % 3
    outcomes = list(attack.batches(_images(10), labels))
    assert [len(outcome.images) for outcome in outcomes] == [4, 4, 2]
    whole = Shift(_classifier(), **OPTIONS).run(_images(10), labels)
    for field in dataclasses.fields(AttackOutcome):
        joined = getattr(join_outcomes(outcomes), field.name)
        np.testing.assert_array_equal(joined, getattr(whole, field.name))


def test_each_image_has_the_seed_of_the_attack_and_its_position():
    attack = Shift(_classifier(), **OPTIONS)
    attack.run(_images(3), np.zeros(3, int), positions=np.array([6, 2, 9]))
    assert attack.seeds.tolist() == [[5, 6], [5, 2], [5, 9], [5, 9]]
    attack.run(_images(8), np.zeros(8, int))
    assert attack.seeds.tolist() == [[5, 4], [5, 5], [5, 6], [5, 7]]


def test_without_labels_the_predictions_are_attacked():
    classifier, images = _classifier(), _images(10)
    outcome = Shift(classifier, **OPTIONS).run(images)
    assert outcome.loss.tolist() == classifier.model(images).numpy().argmax(axis=1).tolist()


def test_a_targeted_attack_needs_labels():
    with pytest.raises(SfmError, match="A targeted attack needs labels"):
        Shift(_classifier(), **{**OPTIONS, "targeted": True}).generate(_images(2))


def test_a_graph_is_made_anew_for_another_value_of_an_option_that_shapes_it():
    traced = []

    def method(number):
        traced.append(attack.repeats)
        return attack.repeats * number

    attack = Repeated(_classifier())
    compiled = attack._compiled(method, "repeats")
    for repeats in (2, np.int64(3), 3, np.int64(2)):
        attack.set_params(repeats=repeats)
        assert [compiled(tf.constant(x)).numpy() for x in (5, 7)] == [5 * repeats, 7 * repeats]
    assert traced == [2, 3]


def test_an_attack_that_breaks_its_limits_is_found_out():
    attack = Shift(_classifier(), **OPTIONS)
    attack.reach = 1.01
    with pytest.raises(
        RuntimeError, match=r"Shift\(.*epsilon=0.1.*made invalid images: a perturbation has norm"
    ):
        attack.generate(_images(2), np.zeros(2, int))


def test_a_loss_that_is_not_a_number_is_reported():
    attack = BrokenLoss(_classifier(), **OPTIONS)
    with pytest.raises(
        SfmError, match="NaN or infinite for 1 of 4 attacked images, first image 12"
    ):
        attack.run(_images(6), np.zeros(6, int), positions=np.arange(10, 16))


def test_probabilities_are_refused_before_any_work():
    attack = Shift(_classifier(activation="softmax"), **OPTIONS)
    with pytest.raises(SfmError, match="probabilities; expected logits"):
        attack.generate(_images(2), np.zeros(2, int))
    assert not hasattr(attack, "shapes")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((2, *SHAPE), 1.5), [0, 0], r"expected \[0, 1\]"),
        (np.zeros((2, *SHAPE)), [0, 3], "expected 0 to 2"),
    ],
)
def test_bad_images_and_labels_are_refused(images, labels, message):
    with pytest.raises(SfmError, match=message):
        Shift(_classifier(), **OPTIONS).generate(images, np.array(labels))


@pytest.mark.parametrize("clip_values", [None, (0, 255)])
def test_another_range_of_images_is_refused(clip_values):
    with pytest.raises(SfmError, match="clip_values"):
        Shift(_classifier(clip_values=clip_values), **OPTIONS)


def test_a_preprocessor_outside_tensorflow_is_refused():
    squeezing = FeatureSqueezing(clip_values=(0, 1), bit_depth=4)
    with pytest.raises(SfmError, match="PreprocessorTensorFlowV2"):
        Shift(_classifier(preprocessing_defences=squeezing), **OPTIONS)


def test_an_image_is_found_unless_marked():
    iterations = np.array([0, NOT_FOUND, 7])
    outcome = AttackOutcome(iterations, iterations, iterations, iterations)
    assert outcome.found.tolist() == [True, False, True]


CONTRACT_SHAPE = (6, 5, 1)
STEPS = {"epsilon": 0.15, "step_size": 0.05, "iterations": 4}
OTHER_STEPS = {"epsilon": 0.2, "step_size": 0.1, "iterations": 3, "restarts": 2}
GRADIENT_DEFAULTS = {
    "random_start": False,
    "keep_best": False,
    "restarts": 1,
    "stop_when_fooled": False,
    "gradient_samples": 1,
    "loss": "cross_entropy",
    "targeted": False,
}
ADAPTIVE_DEFAULTS = {
    **GRADIENT_DEFAULTS,
    "random_start": True,
    "keep_best": True,
    "loss": "stable_cross_entropy",
}
SHARED_DEFAULTS = {"norm": math.inf, "batch_size": 128, "seed": 0}
AT_LEAST_1, POSITIVE_NUMBER = "an integer of at least 1", "a finite number above 0"
NONE_BELOW_0, ABOVE_0 = "a finite number of at least 0", "a number above 0, at most 1"
BOOLEAN = "True or False"


class Contract(NamedTuple):
    """What an attack takes; its options are those given and those with a default, and no others.

    Attributes:
        attack: The class.
        options: Some that make it short, among them those without a default.
        defaults: All its defaults, but for the shared ones.
        numbers: Options that change without compiling anew.
        follows_seed: Whether another seed makes other images.
    """

    attack: type
    options: dict
    defaults: dict
    numbers: dict
    follows_seed: bool = True


CONTRACTS = {
    "fgsm": Contract(
        FastGradientMethod,
        {"epsilon": 0.1},
        {"random_start": False, "loss": "cross_entropy", "targeted": False},
        {"epsilon": 0.2},
        follows_seed=False,
    ),
    "pgd": Contract(
        ProjectedGradientDescent,
        STEPS,
        GRADIENT_DEFAULTS,
        OTHER_STEPS,
        follows_seed=False,
    ),
    "mim": Contract(
        MomentumIterativeMethod,
        {**STEPS, "norm": 2},
        {**GRADIENT_DEFAULTS, "momentum": 1.0},
        {**OTHER_STEPS, "momentum": 0.5},
        follows_seed=False,
    ),
    "diverse": Contract(
        DiverseInputsMethod,
        STEPS,
        {**GRADIENT_DEFAULTS, "momentum": 0.0, "probability": 0.5, "smallest_share": 299 / 330},
        {**OTHER_STEPS, "momentum": 0.5, "probability": 0.9, "smallest_share": 0.5},
    ),
    "adaptive": Contract(
        AdaptiveGradientDescent,
        {**STEPS, "objective": "mask_aware"},
        {**ADAPTIVE_DEFAULTS, "mask_weight": 0.03},
        {**OTHER_STEPS, "mask_weight": 5.0},
    ),
    "squeezing_aware": Contract(
        SqueezingAwareGradientDescent,
        {**STEPS, "squeezers": ("bit_depth_1",)},
        {
            **ADAPTIVE_DEFAULTS,
            "distance_weight": 3.0,
            "threshold": 2.0,
            "squeezers": (),
            "surrogate": "smooth",
        },
        {**OTHER_STEPS, "distance_weight": 5.0, "threshold": 0.5},
    ),
    "noise": Contract(
        UniformNoise,
        {"epsilon": 0.2, "draws": 4},
        {"draws": 100, "points": "uniform", "targeted": False},
        {"epsilon": 0.1, "draws": 9},
    ),
    "redraw": Contract(
        Redraw,
        {"epsilon": 0.2, "draws": 4, "noise": 0.1},
        {"draws": 30, "noise": 0.26 / 255, "targeted": False},
        {"epsilon": 0.1, "draws": 9, "noise": 0.2},
    ),
    "cw": Contract(
        CarliniWagner,
        {
            "binary_search_steps": 3,
            "iterations": 20,
            "initial_constant": 1.0,
            "learning_rate": 0.1,
        },
        {
            "confidence": 0.0,
            "learning_rate": 0.01,
            "abort_early": False,
            "targeted": False,
            "batch_size": 128,
        },
        {"binary_search_steps": 2, "iterations": 7, "initial_constant": 0.5, "confidence": 0.1},
        follows_seed=False,
    ),
    "apgd": Contract(
        AutoProjectedGradientDescent,
        {"epsilon": 0.1, "iterations": 5},
        {
            "loss": "cross_entropy",
            "iterations": 100,
            "restarts": 1,
            "target_classes": 9,
            "rho": 0.75,
            "gradient_samples": 1,
        },
        {"epsilon": 0.2, "rho": 0.5, "restarts": 2},
    ),
    "fab": Contract(
        FastAdaptiveBoundary,
        {"iterations": 5, "restarts": 2, "target_classes": 2},
        {
            "iterations": 100,
            "restarts": 1,
            "target_classes": 9,
            "alpha_max": 0.1,
            "eta": 1.05,
            "beta": 0.9,
        },
        {"iterations": 7, "restarts": 3, "target_classes": 3, "alpha_max": 0.2, "eta": 1},
        follows_seed=False,  # A linear model leaves no choice.
    ),
    "square": Contract(
        SquareAttack,
        {"epsilon": 0.2, "queries": 20, "norm": 2},
        {"queries": 5000, "p_init": 0.8, "stretch_schedule": True},
        {"epsilon": 0.1, "p_init": 0.3},
    ),
    "autoattack": Contract(
        AutoAttack,
        {"epsilon": 0.1, "iterations": 3, "queries": 10, "target_classes": 2},
        {
            "version": "standard",
            "iterations": 100,
            "target_classes": 9,
            "queries": 5000,
            "batches_at_once": 8,
        },
        {"epsilon": 0.2},
    ),
    "hop_skip_jump": Contract(
        HopSkipJump,
        {"iterations": 1, "max_evaluations": 30, "initial_evaluations": 10, "init_size": 30},
        {
            "norm": 2,
            "iterations": 50,
            "max_evaluations": 10_000,
            "initial_evaluations": 100,
            "init_size": 100,
            "batch_size": 1,
        },
        {"iterations": 2, "init_size": 20},
    ),
}


class Masker(keras.Model):
    def call(self, images):
        return tf.sigmoid(4.0 * images)


@functools.cache
def _contract(name):
    """Returns the attack, made once so that it compiles once, its linear model, images and labels.

    Of so large a batch the smallest bucket holds all images.
    """
    kind, linear = CONTRACTS[name], Linear(4, 30)
    model = DefendedModel(linear, Masker()) if name == "adaptive" else linear
    classifier = wrap_classifier(model, 4, CONTRACT_SHAPE, 64)
    images = np.random.default_rng(2).uniform(-0.2, 1.2, (8, *CONTRACT_SHAPE)).clip(0, 1)
    images = images.astype(np.float32)
    labels = predictions(model, images)
    labels[3] = (labels[3] + 1) % 4
    return kind.attack(classifier, **{**kind.options, "batch_size": 64}), linear, images, labels


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_attack_makes_allowed_images_and_tells_their_loss(name):
    attack, _, images, labels = _contract(name)
    mask = np.ones((1, *CONTRACT_SHAPE))
    mask[:, 0] = 0
    outcome = attack.run(images, labels, mask)
    assert faults(images, outcome.images, attack.epsilon, float(attack.norm)) == []
    np.testing.assert_array_equal(outcome.images[:, 0], images[:, 0])
    assert (outcome.images != images).any(axis=(1, 2, 3)).mean() > 0.7
    expected = cross_entropy(attack.estimator.model, outcome.images, labels)
    np.testing.assert_allclose(outcome.loss, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CONTRACTS)
def test_an_image_depends_on_its_seed_and_position_and_not_on_those_beside_it(name):
    attack, _, images, labels = _contract(name)
    first = attack.generate(images, labels)
    np.testing.assert_array_equal(attack.generate(images, labels), first)
    rows = np.array([6, 1, 4])
    part = attack.run(images[rows], labels[rows], positions=rows).images
    np.testing.assert_allclose(part, first[rows], atol=1e-5)
    if "seed" in attack.attack_params:
        attack.set_params(seed=1)
        assert (np.abs(attack.generate(images, labels) - first).max() > 0.01) == (
            CONTRACTS[name].follows_seed
        )
        attack.set_params(seed=0)


@pytest.mark.parametrize("name", [name for name in CONTRACTS if name != "hop_skip_jump"])
def test_no_attack_compiles_anew_for_other_numbers(name):
    attack, linear, images, labels = _contract(name)
    attack.run(images, labels)
    before = linear.calls
    attack.run(images, labels)
    per_run = linear.calls - before  # Some show the model the images between compiled parts.
    attack.set_params(**CONTRACTS[name].numbers)
    attack.run(images, labels)
    assert linear.calls == before + 2 * per_run
    attack.set_params(**CONTRACTS[name].options)


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_ball_of_radius_0_holds_the_image_alone(name):
    attack, _, images, labels = _contract(name)
    if "epsilon" not in attack.attack_params:
        pytest.skip("It finds its own radius.")
    attack.set_params(epsilon=0.0)
    np.testing.assert_array_equal(attack.generate(images, labels), images)
    attack.set_params(**CONTRACTS[name].options)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([name for name in CONTRACTS if name != "hop_skip_jump"]),
    epsilon=st.floats(1e-6, 2.0),
    seed=st.integers(0, 2**31 - 1),
    levels=st.sampled_from([1, 2, 255]),
)
def test_any_radius_and_images_give_allowed_images_twice_the_same(name, epsilon, seed, levels):
    attack, _, images, labels = _contract(name)
    for option, value in {"epsilon": epsilon, "seed": seed}.items():
        if option in attack.attack_params:
            attack.set_params(**{option: value})
    images = np.random.default_rng(seed).integers(0, levels + 1, images.shape) / levels
    outcome = attack.run(images, labels)
    assert np.isfinite(outcome.loss).all()
    change = outcome.images - images.astype(np.float32)
    assert norms(change, float(attack.norm)).max() <= attack.epsilon * (1 + 1e-5) + 1e-6
    np.testing.assert_array_equal(attack.run(images, labels).images, outcome.images)


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_attack_takes_exactly_its_own_options(name):
    kind, attack = CONTRACTS[name], _contract(name)[0]
    defaults = {**SHARED_DEFAULTS, **kind.defaults}
    if name == "cw":
        del defaults["norm"], defaults["seed"]
    found = {field.name: field.default for field in dataclasses.fields(kind.attack)}
    assert {n: v for n, v in found.items() if v is not dataclasses.MISSING} == defaults
    assert set(attack.attack_params) == set(found) == set(defaults) | set(kind.options)
    assert isinstance(attack, EvasionAttack)
    assert attack.targeted is False


# Of each option a bad value, and what is expected in place of it.
BAD_VALUES = {
    "abort_early": (None, BOOLEAN),
    "alpha_max": (1.5, ABOVE_0),
    "batch_size": (0, AT_LEAST_1),
    "batches_at_once": (0, AT_LEAST_1),
    "beta": (0.0, ABOVE_0),
    "binary_search_steps": (0, AT_LEAST_1),
    "confidence": (-0.5, NONE_BELOW_0),
    "distance_weight": (-1.0, NONE_BELOW_0),
    "draws": (0, AT_LEAST_1),
    "epsilon": (-1, NONE_BELOW_0),
    "eta": (0.9, "a finite number of at least 1"),
    "gradient_samples": (2.0, AT_LEAST_1),
    "init_size": (None, AT_LEAST_1),
    "initial_constant": (0.0, POSITIVE_NUMBER),
    "initial_evaluations": (-1, AT_LEAST_1),
    "iterations": (1.5, AT_LEAST_1),
    "keep_best": (1, BOOLEAN),
    "learning_rate": (-1, POSITIVE_NUMBER),
    "loss": ("hinge", "one of cross_entropy, stable_cross_entropy"),
    "mask_weight": (-1.0, NONE_BELOW_0),
    "max_evaluations": (0.5, AT_LEAST_1),
    "momentum": (math.inf, NONE_BELOW_0),
    "noise": (0.0, POSITIVE_NUMBER),
    "norm": (1, "'inf', math.inf or 2"),
    "objective": ("mask", "one of mask_aware, mask_stage, frozen_mask"),
    "p_init": (1.1, ABOVE_0),
    "points": ("gaussian", "one of uniform, extreme"),
    "probability": (True, "a number from 0 to 1"),
    "queries": (0, AT_LEAST_1),
    "random_start": (1, BOOLEAN),
    "restarts": (0, AT_LEAST_1),
    "rho": (1.5, ABOVE_0),
    "seed": (-1, "an integer from 0 to"),
    "smallest_share": (1.0, "a number above 0 and below 1"),
    "squeezers": ("median_2", "a tuple of specifications such as 'bit_depth_5'"),
    "step_size": (0, POSITIVE_NUMBER),
    "stop_when_fooled": (1, BOOLEAN),
    "stretch_schedule": (1, BOOLEAN),
    "surrogate": ("none", "one of identity, smooth"),
    "target_classes": (1.5, AT_LEAST_1),
    "targeted": (1, BOOLEAN),
    "threshold": (2.5, "a number from 0 to 2"),
    "version": ("plus", "one of standard, rand"),
}
OTHER_BAD_VALUES = {
    ("apgd", "loss"): ("hinge", "one of cross_entropy, dlr, targeted_dlr"),
    ("fab", "target_classes"): (-1, "an integer of at least 0"),
}
REFUSED = [
    (name, field.name, *OTHER_BAD_VALUES.get((name, field.name), BAD_VALUES[field.name]))
    for name, kind in CONTRACTS.items()
    for field in dataclasses.fields(kind.attack)
]


@pytest.mark.parametrize(("name", "option", "value", "expected"), REFUSED)
def test_every_attack_refuses_bad_values_of_its_options(name, option, value, expected):
    attack = _contract(name)[0]
    before = getattr(attack, option)
    message = f"Invalid {option} {value!r} of {type(attack).__name__}; expected {expected}"
    with pytest.raises(SfmError, match=re.escape(message)):
        attack.set_params(**{option: value})
    assert getattr(attack, option) == before


LINF, L2 = {"norm": math.inf}, {"norm": 2}
STARTED = {"step_size": 0.05, "iterations": 9, "random_start": True}
PLAIN = {"step_size": 0.05, "iterations": 9}


@pytest.mark.parametrize(
    ("attack", "options", "targeted"),
    [
        (FastGradientMethod, LINF, True),
        (FastGradientMethod, L2, False),
        (ProjectedGradientDescent, {**LINF, **STARTED, "keep_best": True}, False),
        (ProjectedGradientDescent, {**L2, **PLAIN, "keep_best": True}, False),
        (MomentumIterativeMethod, {**LINF, **STARTED, "keep_best": True}, True),
        (MomentumIterativeMethod, {**L2, **PLAIN}, False),
        (AutoProjectedGradientDescent, {**LINF, "iterations": 1}, False),
        (AutoProjectedGradientDescent, {**LINF, "iterations": 20}, False),
        (AutoProjectedGradientDescent, {**L2, "iterations": 30}, False),
    ],
)
def test_finds_the_worst_perturbation_of_a_linear_model(attack, options, targeted):
    kernel = np.random.default_rng(0).normal(scale=0.2, size=(64, 2)).astype(np.float32)
    images, labels = samples(2, 0.3, 0.7)
    slope = (kernel[:, 1 - labels] - kernel[:, labels]).T.reshape(images.shape)
    slope = -slope if targeted else slope
    lengths = norms(slope, 2)[:, None, None, None]
    worst = {math.inf: np.sign(slope), 2: slope / lengths}[options["norm"]]
    options = {**options, "targeted": True} if targeted else options
    moved = attack(linear_classifier(kernel), epsilon=0.2, **options).generate(images, labels)
    # APGD nears the end of the round ball in ever smaller steps.
    is_near = attack is AutoProjectedGradientDescent and options["norm"] == 2
    np.testing.assert_allclose(moved, images + 0.2 * worst, atol=1e-3 if is_near else 1e-6)
