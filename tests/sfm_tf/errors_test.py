import pytest

from sfm_tf.errors import SfmError


def test_is_a_value_error_so_that_library_users_can_catch_it_as_one():
    with pytest.raises(ValueError, match="expected one of fgsm, pgd"):
        raise SfmError("Unknown attack 'pdg'; expected one of fgsm, pgd.")
