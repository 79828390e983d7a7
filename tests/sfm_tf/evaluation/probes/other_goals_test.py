import keras
import numpy as np
import pytest

from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.probes.answers import right_images
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.other_goals import _targets, probe_other_norm, probe_targeted
from sfm_tf.evaluation.probes.radii import equal_volume_radius
from sfm_tf.evaluation.probes.setups import make_variants
from sfm_tf.evaluation.probes.switched_model import SwitchedModel
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.defended_model import DefendedModel

SHAPE = (4, 4, 1)
COUNT = 30


def _kernel(seed):
    """Weights that add up to nothing, so that grey images lie on the boundary."""
    kernel = np.random.default_rng(seed).normal(size=(16, 2)).astype(np.float32)
    return kernel - kernel.mean(axis=0)


KERNEL = _kernel(0)


def _bench(norm, epsilon):
    dense = keras.layers.Dense(2, use_bias=False)
    classifier = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    dense.set_weights([KERNEL])
    images = np.random.default_rng(1).uniform(0.3, 0.7, (COUNT, *SHAPE)).astype(np.float32)
    labels = (images.reshape(COUNT, 16) @ KERNEL).argmax(axis=1)
    config = EvaluationConfig(norm=norm, epsilons=(epsilon,), iterations=20, step_size=4.0)
    subject, samples = DefendedModel(classifier), check_samples(images, labels, classifier)
    bench = Bench(SwitchedModel(subject), samples, config, 0, lambda *_: None)
    return bench, make_variants(subject).whole


def test_with_two_classes_the_target_is_the_other_one():
    bench, whole = _bench("inf", 8.0)
    targeted = probe_targeted(bench, whole)
    assert targeted["reached"] == COUNT - targeted["correct"] > 0
    assert targeted["correct"] == bench.right_under_pgd(whole).sum()


def test_targets_are_wrong_classes_and_all_of_them():
    labels = np.repeat(np.arange(4), 50)
    targets = _targets(labels, 4, 0)
    assert not (targets == labels).any()
    assert {(a, b) for a, b in zip(labels, targets, strict=True)} == {
        (a, b) for a in range(4) for b in range(4) if a != b
    }


@pytest.mark.parametrize(
    ("norm", "epsilon", "other", "dual"), [("inf", 6.0, "2", 2), ("2", 15.0, "inf", 1)]
)
def test_a_linear_model_falls_where_the_other_ball_reaches_its_boundary(norm, epsilon, other, dual):
    bench, whole = _bench(norm, epsilon)
    found = probe_other_norm(bench, whole)
    assert found["norm"] == other
    assert found["epsilon"] == equal_volume_radius(epsilon, norm, 16)
    difference = KERNEL[:, 0] - KERNEL[:, 1]
    margins = np.abs(bench.samples.images.reshape(COUNT, 16) @ difference)
    reach = found["epsilon"] / 255.0 * np.linalg.norm(difference, ord=dual)
    right = right_images(found)
    assert 0 < right.sum() < COUNT
    assert right[margins > reach].all()
    # Where the random start still shows in L2, the last per cent is not reached.
    assert not right[margins < 0.97 * reach].any()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
