import hashlib
import math

import pytest

from sfm_tf.records.splits import is_held_out

_KEYS = [f"image {index}" for index in range(4000)]


def test_follows_the_hash():
    # The first 16 hexadecimal digits as a number in [0, 1).
    position = int(hashlib.sha256(b"7:cat.png").hexdigest()[:16], 16) / 16**16
    assert not is_held_out("cat.png", 7, math.nextafter(position, 0.0) - 1e-9)
    assert is_held_out("cat.png", 7, position + 1e-9)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_share_is_the_fraction(fraction):
    count = sum(is_held_out(key, 0, fraction) for key in _KEYS)
    deviation = math.sqrt(len(_KEYS) * fraction * (1 - fraction))
    assert abs(count - len(_KEYS) * fraction) < 4 * deviation


def test_nothing_and_everything():
    assert not any(is_held_out(key, 0, 0.0) for key in _KEYS)
    assert all(is_held_out(key, 0, 1.0) for key in _KEYS)


def test_larger_fraction_keeps_what_was_held_out():
    few = {key for key in _KEYS if is_held_out(key, 3, 0.1)}
    many = {key for key in _KEYS if is_held_out(key, 3, 0.2)}
    assert few < many


def test_seeds_are_independent():
    both = sum(is_held_out(key, 1, 0.5) and is_held_out(key, 2, 0.5) for key in _KEYS)
    assert abs(both - len(_KEYS) / 4) < 4 * math.sqrt(len(_KEYS) * 3 / 16)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
