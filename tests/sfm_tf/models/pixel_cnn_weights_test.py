"""Tests of reading a PixelCNN's weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.pixel_cnn import build_pixel_cnn
from sfm_tf.models.pixel_cnn_weights import read_weights


def test_reads_every_weight_of_the_model_once():
    model = build_pixel_cnn((4, 5, 3), 4, 2, 2, seed=0)
    weights = read_weights(model)
    blocks = [*weights.down_blocks, *weights.right_blocks]
    convolutions = [weights.down_input, weights.right_input_above, weights.right_input_left]
    convolutions += [each for block in blocks for each in (block.first, block.second)]
    convolutions += [*(block.across for block in weights.right_blocks), weights.parameters]
    kernels = {each.kernel.tobytes() for each in convolutions}
    assert kernels == {layer.kernel.numpy().tobytes() for layer in model.layers if layer.weights}
    assert sum(each.kernel.size + each.bias.size for each in convolutions) == model.count_params()
    assert weights.image_shape == (4, 5, 3)


def test_blocks_are_in_the_order_of_the_model():
    model = build_pixel_cnn((4, 4, 1), 2, 11, 2, seed=0)
    for number, block in enumerate(read_weights(model).right_blocks, start=1):
        kernel = model.get_layer(f"right{number}_second").kernel.numpy()
        np.testing.assert_array_equal(block.second.kernel, kernel)


def test_later_training_does_not_change_them():
    model = build_pixel_cnn((4, 4, 1), 2, 1, 2, seed=0)
    weights = read_weights(model)
    digest = weights.digest()
    model.get_layer("parameters").bias.assign(np.ones(6))
    assert weights.digest() == digest
    assert read_weights(model).digest() != digest


def test_digest_tells_weights_and_architectures_apart_but_not_files(tmp_path):
    model = build_pixel_cnn((4, 4, 1), 2, 1, 2, seed=0)
    model.save(tmp_path / "pixel_cnn.keras")
    loaded = keras.saving.load_model(tmp_path / "pixel_cnn.keras", safe_mode=True)
    others = [
        build_pixel_cnn((4, 4, 1), 2, 1, 2, seed=1),
        build_pixel_cnn((4, 5, 1), 2, 1, 2, seed=0),
        build_pixel_cnn((4, 4, 1), 2, 1, 3, seed=0),
    ]
    assert read_weights(loaded).digest() == read_weights(model).digest()
    assert len({read_weights(each).digest() for each in [model, *others]}) == 4


def test_are_readable_while_a_graph_is_built():
    model = build_pixel_cnn((4, 4, 1), 2, 1, 2, seed=0)

    @tf.function
    def read():
        return read_weights(model).parameters.kernel

    np.testing.assert_array_equal(read(), model.get_layer("parameters").kernel.numpy())


def test_rejects_another_model():
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs), name="other")
    with pytest.raises(SfmError, match="'other' is no PixelCNN; expected .* build_pixel_cnn"):
        read_weights(model)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
