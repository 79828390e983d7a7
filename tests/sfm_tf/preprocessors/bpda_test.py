import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.preprocessors.bpda import with_surrogate_gradient

IMAGES = np.random.default_rng(0).random((2, 3, 3, 1), dtype=np.float32)


def _gradient(function, images, upstream=None):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        values = function(images)
    return values, tape.gradient(values, images, output_gradients=upstream)


@pytest.mark.parametrize(("surrogate", "slope"), [(tf.identity, 1.0), (tf.square, 2.0 * IMAGES)])
def test_values_are_those_of_one_function_and_gradients_those_of_the_other(surrogate, slope):
    upstream = tf.constant(IMAGES + 1.0)
    rounded = with_surrogate_gradient(tf.round, surrogate)
    values, gradient = _gradient(rounded, IMAGES, upstream)
    np.testing.assert_array_equal(values, np.rint(IMAGES))
    np.testing.assert_allclose(gradient, slope * upstream, rtol=1e-6)


@pytest.mark.parametrize("compile_it", [False, True])
def test_weights_that_the_forward_function_reads_get_no_gradient(compile_it):
    weight = tf.Variable(3.0)
    scaled = with_surrogate_gradient(lambda images: weight * images, tf.square)
    scaled = tf.function(scaled) if compile_it else scaled
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        values = scaled(images)
    of_images, of_weight = tape.gradient(values, [images, weight])
    np.testing.assert_allclose(values, 3.0 * IMAGES, rtol=1e-6)
    np.testing.assert_allclose(of_images, 2.0 * IMAGES, rtol=1e-6)
    assert of_weight is None or not of_weight.numpy().any()


def test_works_inside_nested_compiled_functions():
    rounded = with_surrogate_gradient(tf.round, tf.square)
    inner = tf.function(lambda images: rounded(images) * 2.0)

    @tf.function
    def outer(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            values = inner(images)
        return values, tape.gradient(values, images)

    values, gradient = outer(tf.constant(IMAGES))
    np.testing.assert_array_equal(values, np.rint(IMAGES) * 2.0)
    np.testing.assert_allclose(gradient, 4.0 * IMAGES, rtol=1e-6)


def test_chains_by_the_chain_rule_at_the_forward_values():
    first = with_surrogate_gradient(tf.round, lambda images: 3.0 * images)
    second = with_surrogate_gradient(tf.floor, tf.square)
    _, gradient = _gradient(lambda images: second(first(images)), IMAGES)
    np.testing.assert_allclose(gradient, 2.0 * np.rint(IMAGES) * 3.0, rtol=1e-6)


def test_surrogate_is_not_evaluated_without_a_gradient():
    def surrogate(images):
        raise AssertionError

    rounded = with_surrogate_gradient(tf.round, surrogate)
    np.testing.assert_array_equal(rounded(tf.constant(IMAGES)), np.rint(IMAGES))
