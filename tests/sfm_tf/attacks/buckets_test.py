import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks.buckets import bucket_size, fill_up, put, take


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (65, 128), (128, 128), (300, 128)],
)
def test_a_batch_of_128_has_four_buckets(count: int, expected: int) -> None:
    assert bucket_size(count, 128) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 100])
def test_a_bucket_holds_the_images_of_any_batch_size(batch_size: int) -> None:
    sizes = {count: bucket_size(count, batch_size) for count in range(1, batch_size + 1)}
    assert all(count <= size <= batch_size for count, size in sizes.items())
    assert len(set(sizes.values())) <= 4


def test_a_bucket_is_filled_up_with_its_last_image() -> None:
    np.testing.assert_array_equal(fill_up(np.array([4, 9]), 4), [4, 9, 9, 9])
    np.testing.assert_array_equal(fill_up(np.array([4, 9]), 2), [4, 9])


def test_rows_come_back_where_they_were_taken_from() -> None:
    tensors = {"a": tf.range(5), "b": (tf.reshape(tf.range(10.0), (5, 2)),)}
    rows = np.array([1, 3])
    taken = take(tensors, fill_up(rows, 4))
    np.testing.assert_array_equal(taken["a"], [1, 3, 3, 3])
    changed = tf.nest.map_structure(lambda tensor: tensor * 10, taken)
    result = put(tensors, rows, changed)
    np.testing.assert_array_equal(result["a"], [0, 10, 2, 30, 4])
    np.testing.assert_array_equal(result["b"][0], [[0, 1], [20, 30], [4, 5], [60, 70], [8, 9]])


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
