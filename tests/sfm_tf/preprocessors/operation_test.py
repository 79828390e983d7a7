import pytest
import tensorflow as tf

from sfm_tf.preprocessors.operation import Operation, Parameter

OPERATION = Operation(
    tf.identity, tf.identity, (Parameter("window", 2, 7), Parameter("reach", 3, 9, odd=True))
)


def test_form_names_the_parameters_in_their_order():
    assert OPERATION.form("blur") == "blur_WINDOW_REACH"


def test_values_are_allowed_within_their_ranges_only():
    assert OPERATION.allows([2, 3])
    assert OPERATION.allows([7, 9])
    for values in ([1, 3], [8, 3], [2, 4], [2, 11], [2], [2, 3, 3], []):
        assert not OPERATION.allows(values)


def test_a_parameter_says_what_it_allows():
    window, reach = OPERATION.parameters
    assert window.describe() == "window a number from 2 to 7"
    assert reach.describe() == "reach an odd number from 3 to 9"


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
