import pytest

from sfm_tf.artifacts.stage_names import ADVERSARIAL_STAGE, fit_stage
from sfm_tf.defences.catalogue import FITTED


def test_each_fit_and_each_training_has_a_folder_of_its_own():
    names = [ADVERSARIAL_STAGE, "train", *map(fit_stage, FITTED)]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
