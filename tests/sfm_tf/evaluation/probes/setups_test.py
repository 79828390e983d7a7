import keras
import pytest

from sfm_tf.evaluation.probes.setups import Setup, make_variants
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor

SHAPE = (4, 4, 1)
CLASSIFIER = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3)])
MASKER = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(1, 1, activation="sigmoid")])
SQUEEZE = parse_preprocessor("bit_depth_2", "smooth")


def test_each_variant_lacks_its_part():
    variants = make_variants(DefendedModel(CLASSIFIER, MASKER, SQUEEZE))
    assert [variant.attacked for variant in variants] == [
        Setup(True, "attacker"),
        Setup(True, "none"),
        Setup(False, "attacker"),
        Setup(False, "none"),
        Setup(True, "other_surrogate"),
    ]
    served = [variant.scored.preprocessor for variant in variants]
    assert served == ["served", "none", "served", "none", "served"]


@pytest.mark.parametrize(
    ("masker", "preprocessor", "same"),
    [
        (None, None, [("whole", "masker_only", "preprocessor_only", "bare")]),
        (MASKER, None, [("whole", "masker_only"), ("preprocessor_only", "bare")]),
        (None, SQUEEZE, [("whole", "preprocessor_only"), ("masker_only", "bare")]),
    ],
    ids=["bare", "masker", "preprocessor"],
)
def test_equal_variants_compare_equal(masker, preprocessor, same):
    variants = make_variants(DefendedModel(CLASSIFIER, masker, preprocessor))
    for names in same:
        assert len({getattr(variants, name) for name in names}) == 1
    assert variants.has_masker == (masker is not None)
    assert variants.has_preprocessor == (preprocessor is not None)
    assert (variants.other_surrogate is None) == (preprocessor is None)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
