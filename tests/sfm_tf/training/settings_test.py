import pytest

from sfm_tf.errors import SfmError
from sfm_tf.training.settings import TrainingConfig, TrainingExecutionConfig


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (TrainingConfig, {"sparsity_weight": float("inf")}, "sparsity_weight inf; expected"),
        (TrainingConfig, {"epochs": 0}, "Invalid epochs 0; expected at least 1"),
        (
            TrainingConfig,
            {"adversarial_training": "mart"},
            "Unknown adversarial_training 'mart'; expected one of none, pgd, trades",
        ),
        (
            TrainingConfig,
            {"adversarial_iterations": 0},
            "Invalid adversarial_iterations 0; expected at least 1",
        ),
        (TrainingConfig, {"recipe": "papers"}, "Unknown recipe 'papers'; expected one of stable"),
        (TrainingExecutionConfig, {"strategy": "tpu"}, "Unknown strategy 'tpu'; expected one of"),
        (TrainingExecutionConfig, {"keep_checkpoints": 0}, "Invalid keep_checkpoints 0"),
    ],
)
def test_refuses_values_outside_the_declared_limits(section, values, message):
    with pytest.raises(SfmError, match=message):
        section(**values)
