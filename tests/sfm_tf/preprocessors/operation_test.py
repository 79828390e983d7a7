import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.operation import Operation, Parameter, static_image_shape


def test_reads_height_width_and_channels():
    assert static_image_shape(tf.zeros([5, 4, 3, 1])) == (4, 3, 1)


def test_batch_may_be_unknown():
    shapes = []

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 9, 3])])
    def trace(images):
        shapes.append(static_image_shape(images))
        return images

    trace.get_concrete_function()
    assert shapes == [(8, 9, 3)]


@pytest.mark.parametrize("shape", [[None, None, 8, 3], [None, 8, 8, None], [8, 8, 3], None])
def test_rejects_unknown_sizes_and_other_ranks(shape):
    function = tf.function(static_image_shape, autograph=False)
    with pytest.raises(SfmError, match="expected .batch, height, width, channels. with a fixed"):
        function.get_concrete_function(tf.TensorSpec(shape))


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
