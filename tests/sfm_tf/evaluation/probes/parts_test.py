import keras
import numpy as np
import pytest

from sfm_tf.config import EvaluationConfig
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.parts import probe_parts, probe_surrogates
from sfm_tf.evaluation.probes.setups import make_variants
from sfm_tf.evaluation.probes.switched_model import SwitchedModel
from sfm_tf.evaluation.samples import check_samples
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.operation import Operation

SHAPE = (4, 4, 1)
COUNT = 20
CONFIG = EvaluationConfig(epsilons=(100.0,), iterations=5, step_size=30.0)


def _model(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(SHAPE), *layers])


CLASSIFIER = _model(keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False))
MASKER = _model(keras.layers.Conv2D(1, 1, activation="sigmoid"))
SQUEEZE = parse_preprocessor("bit_depth_4")


def _bench_and_variants(masker, preprocessor):
    subject = DefendedModel(CLASSIFIER, masker, preprocessor)
    images = np.random.default_rng(0).uniform(0.3, 0.7, (COUNT, *SHAPE)).astype(np.float32)
    labels = np.asarray(subject(images)).argmax(axis=1)
    samples = check_samples(images, labels, CLASSIFIER)
    bench = Bench(SwitchedModel(subject), samples, CONFIG, 0, lambda *_: None)
    return bench, make_variants(subject)


def test_a_wide_ball_breaks_every_combination_of_the_parts():
    parts = probe_parts(*_bench_and_variants(MASKER, SQUEEZE))
    assert [(entry["masker"], entry["preprocessor"]) for entry in parts] == [
        (False, False),
        (True, False),
        (False, True),
        (True, True),
    ]
    assert parts[-1]["clean"]["correct"] == COUNT
    assert [entry["attacked"]["correct"] for entry in parts] == [0] * 4


@pytest.mark.parametrize(
    ("masker", "preprocessor", "listed"),
    [
        (None, None, [(False, False)]),
        (MASKER, None, [(False, False), (True, False)]),
        (None, SQUEEZE, [(False, False), (False, True)]),
    ],
    ids=["bare", "masker", "preprocessor"],
)
def test_only_parts_that_are_there_are_listed(masker, preprocessor, listed):
    bench, variants = _bench_and_variants(masker, preprocessor)
    parts = probe_parts(bench, variants)
    assert [(entry["masker"], entry["preprocessor"]) for entry in parts] == listed
    if preprocessor is None:
        assert probe_surrogates(bench, variants, "identity") == []


def test_a_surrogate_without_a_gradient_is_found_out_by_the_others():
    blocking = Operation(lambda images: images, lambda images: 0.0 * images, ())
    blocked = Preprocessor("blocking", "smooth", steps=((blocking, ()),))
    surrogates = probe_surrogates(*_bench_and_variants(None, blocked), "smooth")
    found = {entry["surrogate"]: (entry["used"], entry["correct"]) for entry in surrogates}
    assert set(found) == {"identity", "smooth", "ignored"}
    assert found["identity"] == found["ignored"] == (False, 0)
    assert found["smooth"][0]
    assert found["smooth"][1] > COUNT // 2


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
