import threading
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.attacks import lanes
from sfm_tf.attacks.lanes import attack_in_lanes


class _Batch(NamedTuple):
    images: tf.Tensor
    labels: tf.Tensor


class _Outcome(NamedTuple):
    images: tf.Tensor
    doubled: tf.Tensor


def _batch(size):
    return _Batch(np.random.default_rng(0).uniform(size=(size, 2, 2, 1)), np.arange(size))


def _attack(sizes):
    def attack(batch):
        sizes.append(len(batch.labels))
        return _Outcome(-batch.images, 2 * batch.labels)

    return attack


@pytest.mark.parametrize(
    ("size", "lanes_asked", "expected"),
    [(64, 2, [32, 32]), (64, 4, [16] * 4), (64, 1, [64]), (30, 2, [30]), (33, 2, [33])],
)
def test_rows_keep_their_order_and_few_images_stay_together(size, lanes_asked, expected):
    batch, sizes = _batch(size), []
    outcome = attack_in_lanes(_attack(sizes), batch, lanes_asked)
    assert sizes == expected
    np.testing.assert_array_equal(outcome.images, -batch.images)
    np.testing.assert_array_equal(outcome.doubled, 2 * batch.labels)


def test_the_parts_are_attacked_at_the_same_time():
    both = threading.Barrier(2, timeout=30)

    def attack(batch):
        both.wait()
        return _Outcome(*batch)

    assert len(attack_in_lanes(attack, _batch(32), 2).images) == 32


def test_a_gpu_gets_the_whole_batch(monkeypatch):
    monkeypatch.setattr(lanes.tf.config, "list_logical_devices", lambda kind: [kind])
    sizes = []
    attack_in_lanes(_attack(sizes), _batch(64), 2)
    assert sizes == [64]


def test_an_error_in_a_part_is_raised():
    def attack(batch):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    with pytest.raises(tf.errors.ResourceExhaustedError):
        attack_in_lanes(attack, _batch(32), 2)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
