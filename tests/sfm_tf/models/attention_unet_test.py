"""Tests of the masker against a published parameter count and by opening and closing its gates."""

import keras
import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.models.attention_unet import build_masker


def _trainable_parameters(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def _images(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def test_has_as_many_parameters_as_the_public_implementation():
    # github.com/LeeJunHyun/Image_Segmentation, AttU_Net(img_ch=3, output_ch=1).
    assert _trainable_parameters(build_masker((32, 32, 3), 64, 4)) == 34_878_573


def _convolution_count(inputs, outputs, size):
    return size * size * inputs * outputs + outputs + 2 * outputs  # Kernel, bias, gamma and beta.


@pytest.mark.parametrize(("channels", "width", "depth"), [(1, 8, 2), (3, 16, 1), (3, 4, 3)])
def test_parameters_follow_from_width_and_depth(channels, width, depth):
    expected, inputs = 0, channels
    for level in range(depth + 1):
        filters = width * 2**level
        expected += _convolution_count(inputs, filters, 3) + _convolution_count(filters, filters, 3)
        inputs = filters
    for level in range(depth):
        filters = width * 2**level
        expected += _convolution_count(2 * filters, filters, 3)  # After upsampling.
        expected += 2 * _convolution_count(filters, filters // 2, 1)  # Of gate and skip.
        expected += _convolution_count(filters // 2, 1, 1)
        expected += _convolution_count(2 * filters, filters, 3)
        expected += _convolution_count(filters, filters, 3)
    expected += width + 1
    assert _trainable_parameters(build_masker((16, 16, channels), width, depth)) == expected


@pytest.mark.parametrize("input_shape", [(8, 8, 1), (16, 24, 3)])
def test_mask_has_one_channel_and_lies_between_0_and_1(input_shape):
    mask = build_masker(input_shape, 4, 2)(_images((3, *input_shape))).numpy()
    assert mask.shape == (3, *input_shape[:2], 1)
    assert mask.dtype == np.float32
    assert 0.0 <= mask.min() < mask.max() <= 1.0


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mask_is_float32_under_mixed_precision(policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build_masker((8, 8, 1), 2, 1)
    finally:
        keras.config.set_dtype_policy(previous)
    assert model.output.dtype == "float32"
    assert model.get_layer("encoder0_1_convolution").compute_dtype == policy.removeprefix("mixed_")


def _attended_skip(bias):
    """Returns the full resolution's skip and what its gate, pushed by `bias`, lets through."""
    model = build_masker((8, 8, 1), 4, 2, seed=0)
    gate = model.get_layer("decoder0_gate_attention_normalization")
    gate.gamma.assign([0.0])
    gate.beta.assign([bias])
    outputs = [
        model.get_layer(name).output for name in ("encoder0_2_relu", "decoder0_gate_multiply")
    ]
    return [value.numpy() for value in keras.Model(model.input, outputs)(_images((2, 8, 8, 1)))]


@pytest.mark.parametrize(("bias", "share"), [(-100.0, 0.0), (100.0, 1.0)])
def test_a_gate_hides_the_skip_or_lets_it_pass(bias, share):
    skip, attended = _attended_skip(bias)
    assert np.abs(skip).max() > 0.1
    np.testing.assert_allclose(attended, share * skip, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    ("height", "width", "depth", "largest"), [(30, 30, 2, 1), (15, 15, 1, 0), (8, 12, 3, 2)]
)
def test_size_that_cannot_be_halved_names_the_largest_depth(height, width, depth, largest):
    message = f"{height}x{width} pixels cannot be halved {depth} times; .* at most {largest}"
    with pytest.raises(SfmError, match=message):
        build_masker((height, width, 3), 4, depth)
    if largest:
        assert build_masker((height, width, 3), 4, largest).output.shape[1:3] == (height, width)


def test_seed_decides_the_initial_weights():
    first, second, other = (
        build_masker((8, 8, 1), 4, 1, seed=seed).get_weights() for seed in (5, 5, 6)
    )
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(first, other, strict=True))


def test_survives_saving_and_loading(tmp_path):
    model = build_masker((8, 8, 1), 4, 2)
    model.save(tmp_path / "masker.keras")
    loaded = keras.saving.load_model(tmp_path / "masker.keras", safe_mode=True)
    images = _images((2, 8, 8, 1))
    np.testing.assert_allclose(loaded(images).numpy(), model(images).numpy(), atol=1e-6)
