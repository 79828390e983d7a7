import pytest

from sfm_tf import experiments
from sfm_tf.errors import SfmError
from sfm_tf.tuning.settings import AblationConfig, TuningConfig


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (TuningConfig, {"tuner": "annealing"}, "Unknown tuner 'annealing'; expected one of grid"),
        (
            TuningConfig,
            {"tried_sparsity_weights": (0.1, -0.1)},
            "Invalid tried_sparsity_weights -0.1; expected at least 0",
        ),
        (TuningConfig, {"tried_semantic_weights": (1.0, 1.0)}, "expected each value only once"),
        (AblationConfig, {"ablations": ("no_masker",)}, "Unknown ablations 'no_masker'; expected"),
    ],
)
def test_refuses_values_outside_the_declared_limits(section, values, message):
    with pytest.raises(SfmError, match=message):
        section(**values)


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_presets_try_the_weights_that_they_train_with(name):
    experiment = experiments.preset(name)
    assert experiment.training.sparsity_weight in experiment.tuning.tried_sparsity_weights
    assert experiment.training.semantic_weight in experiment.tuning.tried_semantic_weights
    tried = experiment.tuning.tried_reconstruction_weights
    assert experiment.training.reconstruction_weight in tried
