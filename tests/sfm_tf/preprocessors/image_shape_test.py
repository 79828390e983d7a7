import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.image_shape import static_image_shape


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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
