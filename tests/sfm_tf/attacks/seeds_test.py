import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.seeds import numbered, uniforms_by_step


def test_the_number_is_above_the_bits_of_the_seed():
    seeds = tf.constant([[7, 0], [2**31 - 1, 5]], tf.int32)
    expected = [[7 + 3 * 4294967296, 0], [2147483647 + 3 * 4294967296, 5]]
    assert numbered(seeds, tf.constant(3)).numpy().tolist() == expected


def test_number_zero_draws_what_the_seed_itself_draws():
    seeds = tf.constant([[7, 3]], tf.int32)
    expected = tf.random.stateless_normal((4,), seeds[0])
    drawn = tf.random.stateless_normal((4,), numbered(seeds, tf.constant(0))[0])
    np.testing.assert_array_equal(drawn, expected)


def test_an_image_has_its_numbers_in_any_batch():
    seeds = tf.constant([[1, 0], [1, 1], [1, 2]])
    together = uniforms_by_step(seeds, tf.constant(5), 2, 4)
    alone = uniforms_by_step(seeds[1:2], tf.constant(5), 2, 4)
    assert together.shape == (5, 6, 4)
    np.testing.assert_array_equal(together[:, 2:4], alone)


def test_all_numbers_are_uniform_and_differ():
    seeds = tf.stack([tf.fill(30, 1), tf.range(30)], axis=1)
    numbers = uniforms_by_step(seeds, tf.constant(10), 2, 4).numpy().ravel()
    assert len(np.unique(numbers)) > 2390
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    # The mean of 2400 has a deviation of 0.006, the share below 1/4 one of 0.009.
    assert numbers.mean() == pytest.approx(0.5, abs=0.024)
    assert np.mean(numbers < 0.25) == pytest.approx(0.25, abs=0.036)


def test_nothing_is_drawn_where_nothing_is_needed():
    seeds = tf.constant([[1, 0], [1, 1]])
    assert uniforms_by_step(seeds, tf.constant(3), 5, 0).shape == (3, 10, 0)
