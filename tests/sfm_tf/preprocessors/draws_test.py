import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.preprocessors.draws import Draws, image_seeds

IMAGES = np.random.default_rng(0).random((6, 4, 5, 3), dtype=np.float32)


@pytest.mark.parametrize("draws", Draws)
def test_seeds_are_those_of_the_image_in_any_batch(draws):
    together = image_seeds(tf.constant(IMAGES), draws).numpy()
    alone = [image_seeds(tf.constant(IMAGES[i : i + 1]), draws).numpy()[0] for i in range(6)]
    np.testing.assert_array_equal(together, alone)


def test_the_smallest_change_of_one_value_changes_both_seeds():
    changed = IMAGES.copy()
    changed[:, 1, 2, 0] = np.nextafter(changed[:, 1, 2, 0], np.float32(2.0))
    before = image_seeds(tf.constant(IMAGES), Draws.SERVED)
    after = image_seeds(tf.constant(changed), Draws.SERVED)
    assert (before.numpy() != after.numpy()).all()


def test_the_attacker_has_other_seeds_than_are_served():
    served = image_seeds(tf.constant(IMAGES), Draws.SERVED)
    assert (served.numpy() != image_seeds(tf.constant(IMAGES), Draws.ATTACKER).numpy()).all()


def test_looks_at_one_image_are_drawn_for_anew_by_the_attacker_alone():
    looks = tf.repeat(tf.constant(IMAGES[:2]), 3, axis=0)
    attacker = {tuple(seed) for seed in image_seeds(looks, Draws.ATTACKER).numpy()}
    served = {tuple(seed) for seed in image_seeds(looks, Draws.SERVED).numpy()}
    assert (len(attacker), len(served)) == (6, 2)
    first = image_seeds(tf.constant(IMAGES[:2]), Draws.ATTACKER).numpy()
    assert {tuple(seed) for seed in first} <= attacker


@pytest.mark.parametrize("draws", Draws)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_works_in_a_graph_of_unknown_batch(draws, count):
    compiled = tf.function(
        lambda images: image_seeds(images, draws),
        input_signature=[tf.TensorSpec((None, 4, 5, 3), tf.float32)],
    )
    images = tf.constant(IMAGES[:count])
    np.testing.assert_array_equal(compiled(images), image_seeds(images, draws))
    assert compiled(images).shape == (count, 2)


def test_seeds_of_similar_images_look_random():
    # 2,000 images that differ in one pixel by one level: the seeds' low bits are as good as coins.
    images = np.zeros((2000, 8, 8, 1), np.float32)
    images[np.arange(2000), np.arange(2000) % 8, np.arange(2000) // 8 % 8, 0] = (
        np.arange(2000) // 64 + 1
    ) / 255.0
    seeds = image_seeds(tf.constant(images), Draws.SERVED).numpy()
    assert len({tuple(seed) for seed in seeds}) == 2000
    assert seeds.min() >= 0
    # Four standard deviations of a fair coin thrown 2,000 times.
    assert abs((seeds % 2).mean(axis=0) - 0.5).max() < 4 * 0.5 / np.sqrt(2000)
