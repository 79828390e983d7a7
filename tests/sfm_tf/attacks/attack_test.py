import dataclasses
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

from sfm_tf.attacks import attack
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
    fill_up,
    join_outcomes,
    make_candidate,
    one_of,
    perturbation_sizes,
    put,
    score,
    take,
    usable_gradient,
    worst_candidate,
)
from sfm_tf.errors import SfmError
from sfm_tf.models.art_classifier import wrap_classifier


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


def test_a_model_without_a_gradient_is_reported():
    with pytest.raises(SfmError, match="no gradient with respect to its input; give each operat"):
        usable_gradient(None, tf.ones(1))


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


def test_a_bucket_is_filled_up_with_its_last_image() -> None:
    np.testing.assert_array_equal(fill_up(np.array([4, 9]), 4), [4, 9, 9, 9])
    np.testing.assert_array_equal(fill_up(np.array([4, 9]), 2), [4, 9])


def test_rows_come_back_where_they_were_taken_from() -> None:
    tensors = {"a": tf.range(5), "b": (tf.reshape(tf.range(10.0), (5, 2)),)}
    rows = np.array([1, 3])
    taken = take(tensors, fill_up(rows, 4))
    np.testing.assert_array_equal(taken["a"], [1, 3, 3, 3])
    changed = tf.nest.map_structure(lambda tensor: tensor * 10, taken)
    result = put(tensors, rows, changed)
    np.testing.assert_array_equal(result["a"], [0, 10, 2, 30, 4])
    np.testing.assert_array_equal(result["b"][0], [[0, 1], [20, 30], [4, 5], [60, 70], [8, 9]])


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


def _outcome_at(batch, value):
    zeros = tf.zeros_like(batch.labels, tf.float32)
    return BatchOutcome(tf.fill(tf.shape(batch.images), value), zeros, zeros, zeros > 0.0)


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


def test_is_an_evasion_attack_of_art():
    attack = Shift(_classifier(), **OPTIONS)
    assert isinstance(attack, EvasionAttack)
    assert "epsilon=0.1" in repr(attack)
    assert attack.targeted is False


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


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("norm", 1, "'inf', math.inf or 2"),
        ("batch_size", 0, "an integer of at least 1"),
        ("seed", -1, "an integer from 0 to"),
        ("repeats", 0, "an integer of at least 1"),
    ],
)
def test_bad_values_are_refused(option, value, expected):
    message = f"Invalid {option} {value!r} of Repeated; expected {expected}"
    with pytest.raises(SfmError, match=message):
        Repeated(_classifier(), **{option: value})


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


def test_images_with_their_positions_have_the_seeds_they_have_in_the_whole():
    attack = Shift(_classifier(), **OPTIONS)
    attack.run(_images(3), np.zeros(3, int), positions=np.array([6, 2, 9]))
    assert attack.seeds.tolist() == [[5, 6], [5, 2], [5, 9], [5, 9]]


def test_each_image_has_the_seed_of_the_attack_and_its_position():
    attack = Shift(_classifier(), **OPTIONS)
    attack.run(_images(8), np.zeros(8, int))
    assert attack.seeds.tolist() == [[5, 4], [5, 5], [5, 6], [5, 7]]


def test_one_hot_and_index_labels_are_the_same():
    attack, labels = Shift(_classifier(), **OPTIONS), np.array([2, 0, 1])
    one_hot = attack.run(_images(3), np.eye(3)[labels])
    assert one_hot.loss.tolist() == attack.run(_images(3), labels).loss.tolist() == [2, 0, 1]


def test_without_labels_the_predictions_are_attacked():
    classifier, images = _classifier(), _images(10)
    outcome = Shift(classifier, **OPTIONS).run(images)
    assert outcome.loss.tolist() == classifier.model(images).numpy().argmax(axis=1).tolist()


def test_a_targeted_attack_needs_labels():
    with pytest.raises(SfmError, match="A targeted attack needs labels"):
        Shift(_classifier(), **{**OPTIONS, "targeted": True}).generate(_images(2))


def test_mask_reaches_the_attack_per_image():
    mask = np.zeros((10, *SHAPE), np.float32)
    mask[7, 1] = 1
    moved = Shift(_classifier(), **OPTIONS).generate(_images(10), np.zeros(10, int), mask=mask)
    np.testing.assert_allclose(moved - _images(10), 0.1 * mask, atol=1e-6)


def test_an_attack_that_breaks_its_limits_is_found_out():
    attack = Shift(_classifier(), **OPTIONS)
    attack.reach = 1.01
    with pytest.raises(
        RuntimeError, match=r"Shift\(.*made invalid images: a perturbation has norm"
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
        (np.full((2, *SHAPE), np.nan), [0, 0], "NaN"),
        (np.zeros((2, *SHAPE)), [0, 3], "expected 0 to 2"),
        (np.zeros((2, *SHAPE)), [0], "expected \\(2,\\)"),
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


def test_share_of_zero_gradients():
    flags = np.array([True, False, False, True])
    assert AttackOutcome(flags, flags, flags, flags).zero_gradient_share == 0.5


def test_an_image_is_found_unless_marked():
    iterations = np.array([0, NOT_FOUND, 7])
    outcome = AttackOutcome(iterations, iterations, iterations, iterations)
    assert outcome.found.tolist() == [True, False, True]


def test_without_a_radius_only_the_range_limits_the_images():
    attack = Shift(_classifier(), **OPTIONS)
    attack.epsilon = math.inf
    attack._attack_batch = lambda batch: _outcome_at(batch, 1.0)
    np.testing.assert_array_equal(attack.generate(_images(2), np.zeros(2, int)), 1.0)
    attack._attack_batch = lambda batch: _outcome_at(batch, 1.01)
    with pytest.raises(RuntimeError, match=r"to 1.0099\d* instead of within \[0, 1\]"):
        attack.generate(_images(2), np.zeros(2, int))


def test_takes_the_batched_classifier():
    model = _classifier().model
    outcome = Shift(wrap_classifier(model, 3, SHAPE, 2), **OPTIONS).run(_images(5))
    assert outcome.images.shape == (5, *SHAPE)
