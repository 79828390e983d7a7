import keras
import numpy as np
import pytest

from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.probes.answers import right_images
from sfm_tf.evaluation.probes.attack_strength import (
    EFFORTS,
    probe_convergence,
    probe_curve,
    probe_ladder,
)
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.setups import make_variants
from sfm_tf.evaluation.probes.switched_model import SwitchedModel
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.defended_model import DefendedModel

SHAPE = (4, 4, 1)
COUNT = 40
CONFIG = EvaluationConfig(epsilons=(4.0, 8.0), iterations=12, step_size=4.0)


def _kernel(seed):
    """Weights that add up to nothing, so that grey images lie on the boundary."""
    kernel = np.random.default_rng(seed).normal(size=(16, 2)).astype(np.float32)
    return kernel - kernel.mean(axis=0)


KERNEL = _kernel(0)


def _linear_bench():
    """A linear model of two classes, always right without an attack."""
    dense = keras.layers.Dense(2, use_bias=False)
    classifier = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([KERNEL])
    random = np.random.default_rng(1)
    images = random.uniform(0.3, 0.7, (COUNT, *SHAPE)).astype(np.float32)
    labels = (images.reshape(COUNT, 16) @ KERNEL).argmax(axis=1)
    samples = check_samples(images, labels, classifier)
    subject = DefendedModel(classifier)
    bench = Bench(SwitchedModel(subject), samples, CONFIG, 0, lambda *_: None)
    return bench, make_variants(subject).whole


@pytest.fixture(scope="module")
def measured():
    bench, whole = _linear_bench()
    ladder = probe_ladder(bench, whole)
    return bench.samples, ladder, probe_convergence(bench, whole), probe_curve(bench, whole)


def test_a_linear_model_falls_where_the_ball_reaches_its_boundary(measured):
    samples, ladder, _, _ = measured
    assert [entry["epsilon"] for entry in ladder] == [0.0, 2.0, 4.0, 8.0, 16.0, 127.5]
    difference = KERNEL[:, 0] - KERNEL[:, 1]
    margins = np.abs(samples.images.reshape(COUNT, 16) @ difference)
    for entry in ladder[:-1]:  # In the last ball pixels end at 0 and 1.
        reach = entry["epsilon"] / 255.0 * np.abs(difference).sum()
        assert right_images(entry).tolist() == (margins > reach).tolist()
    assert ladder[0]["correct"] == COUNT > ladder[1]["correct"] > ladder[3]["correct"] > 0
    assert ladder[-1]["correct"] == 0


def test_no_effort_beats_an_attack_that_is_already_exact(measured):
    _, ladder, convergence, _ = measured
    assert set(convergence) == {*EFFORTS, "restarts"}
    for name in ("double_iterations", "more_restarts", "half_step", "double_step"):
        assert convergence[name]["right"] == ladder[3]["right"], name
    assert convergence["restarts"] == 4
    # From a random start one step of the radius seldom reaches a corner of the ball.
    assert convergence["single_step"]["correct"] > convergence["base"]["correct"]


def test_more_restarts_count_the_first():
    bench, whole = _linear_bench()
    convergence = probe_convergence(bench, whole)
    base, more = (right_images(convergence[name]) for name in ("base", "more_restarts"))
    assert not (more & ~base).any()


def test_the_curve_rises_from_the_clean_loss_to_the_attacks(measured):
    _, ladder, convergence, curve = measured
    assert [entry["steps"] for entry in curve] == [0, 1, 2, 5, 10, 12]
    losses = [entry["mean_loss"] for entry in curve]
    assert losses == sorted(losses)
    assert curve[0]["success"] == 0.0
    assert curve[-1]["success"] == pytest.approx(1.0 - convergence["base"]["correct"] / COUNT)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
