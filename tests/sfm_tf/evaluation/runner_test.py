import dataclasses
import math
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from sfm_tf.attacks.attack import AttackOutcome, CompiledAttack
from sfm_tf.errors import SfmError
from sfm_tf.evaluation import runner
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.attack_building import build_attack
from sfm_tf.evaluation.job import EvaluationJob
from sfm_tf.evaluation.results import Scenario
from sfm_tf.evaluation.runner import (
    attack_rows,
    clean_outcome,
    measure_costs,
    run_evaluation,
    score_clean,
    vanished_share,
    within_radii,
)
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import SURROGATES, parse_preprocessor

SHAPE = (1, 4, 1)


def _linear(kernel):
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([np.array(kernel, np.float32)])
    return model


SEEN = _linear([[1, 0], [1, 0], [0, 0], [1, 0]])
SAMPLES = check_samples(
    np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32), np.zeros(5, int), SEEN
)


@pytest.mark.parametrize(
    ("kernel", "share"),
    [
        ([[1, 0], [1, 0], [0, 0], [1, 0]], 0.0),
        ([[1, 0], [0, 0], [0, 0], [1, 0]], 1 / 3),
        ([[0, 0], [0, 0], [1, 0], [0, 0]], 1.0),
    ],
)
def test_only_entries_that_float32_shows_can_vanish(kernel, share):
    exact, rounded = SAMPLES.wrap(SEEN, 2), SAMPLES.wrap(_linear(kernel), 2)
    assert vanished_share(exact, rounded, SAMPLES, 2) == pytest.approx(share)


def test_a_model_without_any_gradient_loses_none():
    flat = SAMPLES.wrap(_linear(np.zeros((4, 2))), 2)
    assert vanished_share(flat, flat, SAMPLES, 2) == 0.0


SCORING_SHAPE = (1, 2, 1)


def _model(kernel=((1.0, 0.0), (0.0, 1.0))):
    """Predicts which of the two pixels is the brighter."""
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input(SCORING_SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([np.array(kernel, np.float32)])
    return DefendedModel(model)


MODEL = _model()
SCORING_SAMPLES = check_samples(
    np.array([[[[0.9], [0.1]]], [[[0.2], [0.8]]], [[[0.6], [0.5]]]], np.float32),
    np.array([0, 1, 1]),
    MODEL.classifier,
)
MOVED = np.array([[[[0.4], [0.6]]], [[[0.2], [0.7]]], [[[0.6], [0.5]]]], np.float32)
OUTCOME = AttackOutcome(
    MOVED,
    np.array([1.0, 2.0, 3.0], np.float32),
    np.array([4, 5, -1], np.int32),
    np.array([False, True, False]),
)


def test_fewer_images_are_scored_beside_their_own_clean_predictions():
    model = score_clean(MODEL, SCORING_SAMPLES, 2)
    first = AttackOutcome(*(getattr(OUTCOME, name)[:2] for name in vars(OUTCOME)))
    rows = attack_rows(
        Scenario("sfm", "decision_based"), "x", 8.0, first, model, SCORING_SAMPLES.first(2)
    )
    assert rows["clean_prediction"].to_pylist() == [0, 1]


@pytest.mark.parametrize(("norm", "radius"), [(math.inf, 0.1), (2, 0.1)])
def test_a_perturbation_beyond_a_radius_leaves_the_clean_image_there(norm, radius):
    clean = clean_outcome(SCORING_SAMPLES.wrap(MODEL, 2), SCORING_SAMPLES)
    epsilons = (255 * radius, 255 * 0.8)
    outcomes = dict(within_radii(OUTCOME, clean, SCORING_SAMPLES, epsilons, norm))
    assert list(outcomes) == [math.inf, *epsilons]
    assert outcomes[math.inf] is OUTCOME
    small = outcomes[epsilons[0]]
    np.testing.assert_array_equal(small.images[0], SCORING_SAMPLES.images[0])
    np.testing.assert_array_equal(small.images[1], MOVED[1])
    assert small.loss[0] == clean.loss[0]
    assert small.loss[1] == 2.0
    assert small.iterations.tolist() == [-1, 5, -1]
    np.testing.assert_array_equal(outcomes[epsilons[1]].images, MOVED)


def test_a_model_without_finite_logits_is_refused():
    with pytest.raises(SfmError, match="expected finite logits"):
        score_clean(_model([[np.nan, 0.0], [0.0, 1.0]]), SCORING_SAMPLES, 2)


IMAGES = np.zeros((50, 4, 4, 1), np.float32)


def _costs_model(seconds, seen):
    def predictions(images):
        seen.append(len(images))
        time.sleep(seconds)

    return SimpleNamespace(predictions=predictions)


def test_costs_are_scaled_to_a_thousand_images_and_to_the_bare_classifier():
    seen = []
    models = {"undefended": _costs_model(0.01, seen), "slow": _costs_model(0.05, seen)}
    bare, slow = measure_costs(models, IMAGES, batch_size=20)
    assert (bare.defence, slow.defence) == ("undefended", "slow")
    assert set(seen) == {20}
    assert bare.seconds_per_1000_images == pytest.approx(0.5, rel=0.5)
    assert bare.relative_to_undefended == 1.0
    ratio = slow.seconds_per_1000_images / bare.seconds_per_1000_images
    assert slow.relative_to_undefended == pytest.approx(ratio)
    assert ratio > 2


def test_without_the_bare_classifier_nothing_is_relative_to_it():
    (own,) = measure_costs({"model": _costs_model(0.0, [])}, IMAGES, batch_size=100)
    assert own.relative_to_undefended is None
    assert own.images == 50


def test_a_long_pass_is_measured_once(monkeypatch):
    monkeypatch.setattr("sfm_tf.evaluation.runner._ENOUGH_SECONDS", 0.01)
    seen = []
    measure_costs({"slow": _costs_model(0.02, seen)}, IMAGES, batch_size=10)
    assert seen == [10]


RUNNER_SHAPE = (4, 4, 1)
DEFENCES = ("undefended", "sfm")
COUNT = 10
CONFIG = EvaluationConfig(
    attack_batch_size=4, epsilons=(8.0, 24.0), iterations=4, step_size=4.0, attacks=("fgsm", "pgd")
)


def _runner_model(seed, *layers):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input(RUNNER_SHAPE), *layers])


def _classifier(seed=0):
    return _runner_model(
        seed, keras.layers.Flatten(), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)
    )


class Models:
    """A classifier, its defended form and an independent source."""

    def __init__(self):
        self.classifier = _classifier()
        self.masker = _runner_model(1, keras.layers.Conv2D(1, 1, activation="sigmoid"))
        self.source = _classifier(2)
        preprocessor = parse_preprocessor("bit_depth_3")
        self.sfm = DefendedModel(self.classifier, self.masker, preprocessor)
        self.undefended = DefendedModel(self.classifier)


def _samples():
    random = np.random.default_rng(0)
    images = random.uniform(0.0, 1.0, (COUNT, *RUNNER_SHAPE)).astype(np.float32)
    return images, random.integers(0, 3, COUNT)


def _evaluate(
    models, folder, config=CONFIG, seed=0, progress=lambda *_: None, defences=DEFENCES, **changes
):
    images, labels = _samples()
    parts = {
        "models": {name: getattr(models, name) for name in defences},
        "source": models.source,
        "samples": check_samples(
            changes.pop("images", images), changes.pop("labels", labels), models.classifier
        ),
        **changes,
    }
    store = AdversarialStore(folder)
    return run_evaluation(
        EvaluationJob(**parts, config=config, seed=seed, store=store, progress=progress)
    )


@pytest.fixture(scope="module")
def models():
    return Models()


@pytest.fixture(scope="module")
def told():
    """What the evaluation of the fixture `finished` told of its progress."""
    return []


@pytest.fixture(scope="module")
def finished(models, told, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adversarial")
    return _evaluate(models, folder, progress=lambda *step: told.append(step)), folder


@pytest.fixture
def made(monkeypatch):
    """Counts the attacks that are run rather than read from disk."""
    runs, batches = [], CompiledAttack.batches

    def counted(self, images, *arguments, **named):
        runs.append((type(self).__name__, round(self.epsilon * 255)))
        return batches(self, images, *arguments, **named)

    monkeypatch.setattr(CompiledAttack, "batches", counted)
    return runs


def _rows(results, **keys):
    rows = [row for row in results.to_pylist() if all(row[k] == v for k, v in keys.items())]
    assert [row["image_index"] for row in rows] == list(range(COUNT))
    return rows


def _column(results, name, **keys):
    return np.array([row[name] for row in _rows(results, **keys)])


def _index(evaluation):
    return {
        (entry.defence, entry.threat_model, entry.attack, entry.epsilon): entry.name
        for entry in evaluation.sets
    }


def test_there_is_one_row_per_image_defence_threat_model_attack_and_radius(finished):
    results = finished[0].results
    # Two clean rows; two models, threat models, attacks and radii; re-draws of the defended one.
    assert results.num_rows == COUNT * (2 + 2 * 3 * 2 * 2 + 2)
    keys = ["image_index", "defence", "threat_model", "attack", "epsilon"]
    assert results.group_by(keys).aggregate([]).num_rows == results.num_rows


@pytest.mark.parametrize("defence", ["sfm", "undefended"])
def test_clean_rows_score_the_model_itself(finished, models, defence):
    images, labels = _samples()
    model = {"sfm": models.sfm, "undefended": models.undefended}[defence]
    logits = np.asarray(model(images))
    keys = {"defence": defence, "attack": "clean", "threat_model": "none", "epsilon": 0.0}
    prediction = _column(finished[0].results, "prediction", **keys)
    assert prediction.tolist() == logits.argmax(axis=1).tolist()
    assert _column(finished[0].results, "clean_prediction", **keys).tolist() == prediction.tolist()
    assert _column(finished[0].results, "label", **keys).tolist() == labels.tolist()
    expected = -log_softmax(logits, axis=1)[np.arange(COUNT), labels]
    np.testing.assert_allclose(_column(finished[0].results, "loss", **keys), expected, atol=1e-5)
    assert not _column(finished[0].results, "linf", **keys).any()


def test_attacked_rows_score_the_stored_images(finished, models):
    (evaluation, folder), (images, _) = finished, _samples()
    results = evaluation.results
    scored = {"sfm": models.sfm, "undefended": models.undefended}
    store = AdversarialStore(folder)
    assert len(evaluation.sets) == 26
    for entry in evaluation.sets:
        stored = store.read(entry.name, images.shape)
        moved = stored.images
        keys = {name: getattr(entry, name) for name in ("defence", "threat_model", "attack")}
        keys["epsilon"] = entry.epsilon
        expected = np.asarray(scored[entry.defence](moved)).argmax(axis=1)
        assert _column(results, "prediction", **keys).tolist() == expected.tolist()
        assert _column(results, "iterations", **keys).tolist() == stored.iterations.tolist()
        change = (moved - images).reshape(COUNT, -1)
        linf = _column(results, "linf", **keys)
        np.testing.assert_allclose(linf, np.abs(change).max(axis=1), atol=1e-7)
        np.testing.assert_allclose(
            _column(results, "l2", **keys), np.linalg.norm(change, axis=1), atol=1e-5
        )
        assert 0 < linf.max() <= entry.epsilon / 255 + 1e-6


@pytest.mark.parametrize(
    ("threat_model", "attacked"),
    [("black_box", "source"), ("gray_box", "gray"), ("white_box", "defended")],
)
def test_losses_are_those_of_the_model_the_attacker_knows(finished, models, threat_model, attacked):
    (evaluation, folder), (images, labels) = finished, _samples()
    store = AdversarialStore(folder)
    keys = {"defence": "sfm", "threat_model": threat_model, "attack": "pgd", "epsilon": 24.0}
    name = _index(evaluation)[tuple(keys.values())]
    moved = store.read(name, images.shape).images
    gray = DefendedModel(models.classifier, models.masker)
    model = {"source": models.source, "gray": gray, "defended": models.sfm}[attacked]
    expected = -log_softmax(np.asarray(model(moved)), axis=1)[np.arange(COUNT), labels]
    losses = _column(evaluation.results, "loss", **keys)
    np.testing.assert_allclose(losses, expected, atol=1e-5)


def test_images_are_made_once_per_gradient_source(finished):
    evaluation, folder = finished
    # Source, bare classifier, masked classifier, full defence by either surrogate and the worse of
    # both; times 2 attacks and 2 radii. Re-draws of the full defence.
    assert len(list(folder.glob("*.tfrecord"))) == 26
    names = {}
    for entry in evaluation.sets:
        names.setdefault(entry.name, set()).add((entry.defence, entry.threat_model))
    assert sorted(map(sorted, names.values())) == sorted(
        4 * [[("sfm", "gray_box")]]
        + 6 * [[("sfm", "white_box")]]
        + 4 * [[("sfm", "black_box"), ("undefended", "black_box")]]
        + 4 * [[("undefended", "gray_box"), ("undefended", "white_box")]]
    )


def _right(results, **keys):
    return _column(results, "prediction", **keys) == _column(results, "label", **keys)


def test_the_white_box_of_any_defence_is_the_worst_of_all_surrogates_per_image(models, tmp_path):
    models.median = DefendedModel(models.classifier, None, parse_preprocessor("median_3"))
    config = dataclasses.replace(CONFIG, threat_models=("white_box",), attacks=("pgd",))
    found = _evaluate(models, tmp_path, config, defences=("median",))
    (images, labels), samples = _samples(), check_samples(*_samples(), models.classifier)
    for epsilon in CONFIG.epsilons:
        by_surrogate = []
        for surrogate in SURROGATES:
            chain = parse_preprocessor("median_3", surrogate)
            attacked = samples.wrap(DefendedModel(models.classifier, None, chain), 4)
            attack = build_attack("pgd", attacked, epsilon / 255, config, 0)
            attack.set_params(step_size=max(4.0, epsilon / 4) / 255)
            outcome = attack.run(images, labels)
            fooled = attacked.predict(outcome.images).argmax(axis=1) != labels
            by_surrogate.append((fooled, outcome))
        (first, one), (second, other) = by_surrogate
        assert np.abs(one.images - other.images).max() > 1e-3
        keys = {"defence": "median", "threat_model": "white_box", "epsilon": epsilon}
        right = _right(found.results, attack="pgd", **keys)
        assert right.tolist() == (~first & ~second).tolist()
        # Of two that fool, or do not, the higher loss.
        alike = np.maximum(one.loss, other.loss)
        expected = np.where(first == second, alike, np.where(first, one.loss, other.loss))
        losses = _column(found.results, "loss", attack="pgd", **keys)
        np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6)
        stored = AdversarialStore(tmp_path).read(
            _index(found)["median", "white_box", "pgd", epsilon], images.shape
        )
        is_other = (losses == other.loss)[:, None, None, None]
        np.testing.assert_array_equal(stored.images, np.where(is_other, other.images, one.images))


@pytest.mark.parametrize("epsilon", CONFIG.epsilons)
def test_redraws_go_on_from_the_worst_image_of_the_attacks_before(finished, epsilon):
    (evaluation, folder), (images, _) = finished, _samples()
    keys = {"defence": "sfm", "threat_model": "white_box", "epsilon": epsilon}
    right, loss, moved = {}, {}, {}
    for attack in ("fgsm", "pgd", "redraw"):
        right[attack] = _right(evaluation.results, attack=attack, **keys)
        loss[attack] = _column(evaluation.results, "loss", attack=attack, **keys)
        name = _index(evaluation)["sfm", "white_box", attack, epsilon]
        moved[attack] = AdversarialStore(folder).read(name, images.shape).images
    before = right["fgsm"] & right["pgd"]
    assert not (right["redraw"] & ~before).any()
    unbroken = right["redraw"]
    highest = np.maximum(loss["fgsm"], loss["pgd"])[unbroken]
    assert (loss["redraw"][unbroken] >= highest - 1e-6).all()
    distances = [np.abs(moved["redraw"] - moved[each]).max(axis=(1, 2, 3)) for each in moved]
    assert np.minimum(*distances[:2]).max() <= 0.26 / 255 + 1e-6


def test_who_may_only_ask_for_decisions_redraws_what_transfers(models, tmp_path, monkeypatch):
    models.random = DefendedModel(
        models.classifier, None, parse_preprocessor("total_variation_50_30")
    )
    plan = runner.plan_attacks
    monkeypatch.setattr(
        runner, "plan_attacks", lambda *job: [p for p in plan(*job) if "hop" not in p.attack_name]
    )
    config = EvaluationConfig(
        threat_models=("black_box", "decision_based"),
        attacks=("fgsm",),
        epsilons=(24.0,),
        decision_examples=3,
    )
    found = _evaluate(models, tmp_path, config, defences=("random",))
    store, (images, _) = AdversarialStore(tmp_path), _samples()
    index = _index(found)
    transferred = store.read(index["random", "black_box", "fgsm", 24.0], images.shape).images
    redrawn = store.read(index["random", "decision_based", "redraw", 24.0], images[:3].shape)
    assert np.abs(redrawn.images - transferred[:3]).max() <= 0.26 / 255 + 1e-6
    assert np.abs(redrawn.images - images[:3]).max() > 20 / 255


def test_a_finished_evaluation_is_read_back(finished, models, made):
    evaluation, folder = finished
    again = _evaluate(models, folder)
    assert again.results.equals(evaluation.results)
    assert again.sets == evaluation.sets
    assert made == []


@pytest.mark.parametrize("batch_size", [4, 7])
def test_the_same_settings_make_the_same_results(finished, models, tmp_path, batch_size):
    config = dataclasses.replace(
        CONFIG, threat_models=("white_box",), epsilons=(24.0,), attack_batch_size=batch_size
    )
    again = _evaluate(models, tmp_path, config, defences=("sfm",)).results
    results = finished[0].results
    for attack in ("fgsm", "pgd"):
        keys = {"defence": "sfm", "threat_model": "white_box", "attack": attack, "epsilon": 24.0}
        if batch_size == CONFIG.attack_batch_size:
            assert _rows(again, **keys) == _rows(results, **keys)
        for name in ("prediction", "zero_gradient", "iterations"):
            assert _column(again, name, **keys).tolist() == _column(results, name, **keys).tolist()
        np.testing.assert_allclose(
            _column(again, "l2", **keys), _column(results, "l2", **keys), atol=1e-5
        )


def test_only_what_is_missing_is_made(models, tmp_path, made):
    config = EvaluationConfig(threat_models=("white_box",), attacks=("fgsm",), epsilons=(8.0,))
    # Without a black box no source is needed.
    _evaluate(models, tmp_path, config, source=None)
    made.clear()
    further = dataclasses.replace(
        config, attacks=("noise", "fgsm"), epsilons=(8.0, 16.0), min_clean_accuracy=0.9
    )
    results = _evaluate(models, tmp_path, further, source=None).results
    new = [("UniformNoise", 8), ("UniformNoise", 16), ("FastGradientMethod", 16)]
    # The defended one has two surrogates, and re-draws go on from what is new.
    defended = [("FastGradientMethod", 16), ("Redraw", 8), ("Redraw", 16)]
    assert sorted(made) == sorted(2 * new + defended)
    made.clear()
    for path in tmp_path.glob("fgsm-16-*.tfrecord"):
        path.unlink()
    assert _evaluate(models, tmp_path, further, source=None).results.equals(results)
    assert made == 3 * [("FastGradientMethod", 16)]


def test_whatever_changes_the_images_makes_them_anew_and_nothing_else(tmp_path, made):
    config = EvaluationConfig(threat_models=("white_box",), attacks=("noise",), epsilons=(8.0,))
    models, (images, labels) = Models(), _samples()

    def made_by(**changes):
        made.clear()
        _evaluate(models, tmp_path, **{"config": config, **changes})
        return len(made)

    # Noise against either model, and re-draws of the defended one.
    assert made_by() == 3
    assert made_by() == 0
    assert made_by(config=dataclasses.replace(config, attack_batch_size=7)) == 0
    assert made_by(config=dataclasses.replace(config, norm="2")) == 3
    assert made_by(seed=1) == 3
    assert made_by(labels=(labels + 1) % 3) == 3
    assert made_by(images=1 - images) == 3
    models.masker.layers[-1].bias.assign([0.5])
    assert made_by() == 2
    models.classifier.layers[-1].bias.assign([0.5, 0.0, 0.0])
    assert made_by() == 3


def test_a_stored_set_that_is_not_valid_is_refused(models, tmp_path):
    config = EvaluationConfig(threat_models=("white_box",), attacks=("fgsm",), epsilons=(8.0,))
    images, _ = _samples()
    store = AdversarialStore(tmp_path)
    name = _evaluate(models, tmp_path, config).sets[0].name
    outcome = store.read(name, images.shape)
    outcome.images[0] = 1 - images[0]
    store.write(name, outcome)
    with pytest.raises(SfmError, match="Stored set .* is not valid: a perturbation has norm"):
        _evaluate(models, tmp_path, config)


def test_progress_numbers_the_attacks_and_counts_their_images(finished, told):
    assert told[0] == ("clean images", 0, COUNT)
    # Cheap attacks first, and both radii of each.
    attacks = [phrase for phrase, done, _ in told[1:] if done == 0]
    assert attacks[0] == "[1/9] fgsm 8/255 (undefended black_box, sfm black_box)"
    assert attacks[-3:] == [
        "[8/9] pgd 24/255 2 of 2 (sfm white_box)",
        "[9/9] redraw 8/255 (sfm white_box)",
        "[9/9] redraw 24/255 (sfm white_box)",
    ]
    assert len(attacks) == 22
    assert [done for phrase, done, _ in told if phrase == attacks[3]] == [0, 4, 8, 10]


def test_a_smallest_perturbation_has_a_row_at_every_radius_and_at_none(models, tmp_path):
    config = EvaluationConfig(
        threat_models=("white_box",), attacks=("cw",), epsilons=(8.0, 250.0), cw_learning_rate=0.1
    )
    evaluation = _evaluate(models, tmp_path, config, defences=("undefended",))
    keys = {"defence": "undefended", "threat_model": "white_box", "attack": "cw"}
    free = _rows(evaluation.results, **keys, epsilon=np.inf)
    small = _rows(evaluation.results, **keys, epsilon=8.0)
    assert any(row["linf"] > 8 / 255 for row in free)
    for row, bounded in zip(free, small, strict=True):
        kept = row["linf"] <= 8 / 255
        assert bounded["linf"] == (row["linf"] if kept else 0.0)
        assert bounded["prediction"] == row["prediction" if kept else "clean_prediction"]
    assert {entry.epsilon for entry in evaluation.sets} == {None}


def test_robust_accuracy_alone_is_the_same_with_less_work(models, tmp_path, monkeypatch):
    settings = {
        "threat_models": ("white_box", "score_based"),
        "attacks": ("fgsm", "pgd"),
        "epsilons": (48.0,),
        "iterations": 4,
        "step_size": 12.0,
        "square_queries": 3,
    }
    attacked, batches = [], CompiledAttack.batches

    def counted(self, images, *arguments, **named):
        attacked.append(len(images))
        return batches(self, images, *arguments, **named)

    monkeypatch.setattr(CompiledAttack, "batches", counted)

    def worst(config, folder):
        attacked.clear()
        rows = _evaluate(models, folder, config, defences=("sfm",)).results.to_pylist()
        right = {}
        for row in rows:
            key = (row["threat_model"], row["image_index"])
            right[key] = right.get(key, True) and row["prediction"] == row["label"]
        return right, sum(attacked)

    full, full_work = worst(EvaluationConfig(**settings), tmp_path / "full")
    short, short_work = worst(
        EvaluationConfig(robust_accuracy_only=True, **settings), tmp_path / "short"
    )
    for key, right in full.items():
        # An image that is wrong to begin with is not attacked.
        before = full["none", key[1]]
        assert (short[key] and before) == (right and before)
    assert short_work < full_work


def test_steps_are_longer_where_they_would_not_cross_the_ball(models, tmp_path):
    config = EvaluationConfig(
        threat_models=("white_box",),
        attacks=("mim",),
        epsilons=(200.0,),
        iterations=4,
        step_size=1.0,
    )
    linf = _evaluate(models, tmp_path, config, defences=("sfm",)).results.to_pydict()["linf"]
    assert max(linf) > 100 / 255


def test_a_smallest_perturbation_is_of_the_model_in_float32(models, tmp_path):
    settings = {"threat_models": ("white_box",), "attacks": ("cw",), "cw_learning_rate": 0.1}
    exact, rounded = (
        _evaluate(
            models,
            tmp_path / precision,
            EvaluationConfig(attack_precision=precision, **settings),
            defences=("undefended",),
        )
        for precision in ("float32", "bfloat16")
    )
    assert rounded.results.equals(exact.results)


def test_what_16_bits_lose_is_measured_for_each_use(models, tmp_path):
    config = EvaluationConfig(
        threat_models=("white_box",),
        attacks=("fgsm",),
        epsilons=(8.0,),
        attack_precision="bfloat16",
    )
    vanished = _evaluate(models, tmp_path, config).vanished
    assert {str(scenario) for scenario in vanished} == {"undefended white_box", "sfm white_box"}
    assert all(0.0 <= share <= 1.0 for share in vanished.values())


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            EvaluationConfig(attacks=("fgsm", "autoattack"), threat_models=("white_box",)),
            {},
            "needs at least 4 classes",
        ),
        (
            EvaluationConfig(attacks=("fgsm",)),
            {"source": _runner_model(0, keras.layers.Flatten(), keras.layers.Dense(3, "softmax"))},
            "probabilities",
        ),
        (
            EvaluationConfig(attacks=("fgsm",)),
            {
                "source": _runner_model(
                    0,
                    keras.layers.Flatten(),
                    keras.layers.Dense(3, dtype="mixed_bfloat16", name="half"),
                )
            },
            "Model source computes layer 'half' in bfloat16",
        ),
        (CONFIG, {"source": None}, "needs a source model"),
        (EvaluationConfig(attacks=()), {}, "Invalid attacks"),
        (EvaluationConfig(epsilons=()), {}, "Invalid epsilons"),
    ],
)
def test_what_cannot_be_run_to_the_end_is_not_begun(models, tmp_path, config, changes, message):
    with pytest.raises(SfmError, match=message):
        _evaluate(models, tmp_path, config, **changes)
    assert not list(tmp_path.iterdir())


def test_a_threat_model_that_applies_to_no_model_is_refused(tmp_path):
    models = Models()
    models.sfm = models.undefended
    config = EvaluationConfig(threat_models=("adaptive",))
    with pytest.raises(SfmError, match="None of the threat models adaptive applies to these mod"):
        _evaluate(models, tmp_path, config)
