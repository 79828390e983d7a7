from typing import NamedTuple

import pytest
import tensorflow as tf

from sfm_tf.attacks.selection import choose


class Pair(NamedTuple):
    images: tf.Tensor
    losses: tf.Tensor


def test_chooses_whole_images_of_nested_structures():
    first = Pair(tf.ones((2, 1, 2, 1)), (tf.constant([1, 2]),))
    second = Pair(tf.zeros((2, 1, 2, 1)), (tf.constant([3, 4]),))
    chosen = choose(tf.constant([True, False]), first, second)
    assert isinstance(chosen, Pair)
    assert chosen.images.numpy().ravel().tolist() == [1, 1, 0, 0]
    assert chosen.losses[0].numpy().tolist() == [1, 4]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
