import collections
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.preprocessors.draws import FreshDraws, KeyedDraws, RepeatableFreshDraws

IMAGES = np.random.default_rng(0).random((6, 4, 5, 3), dtype=np.float32)
KEYED, OTHER = KeyedDraws(), KeyedDraws(bytes(range(16)))
SCORED, ATTACKED = RepeatableFreshDraws(), RepeatableFreshDraws().for_attacker()
REPEATABLE = {"keyed": KEYED, "other key": OTHER, "scored": SCORED, "attacked": ATTACKED}


def _seeds(images, draws):
    return draws.seeds(tf.constant(images)).numpy()


def _siphash(message, key):
    """SipHash-2-4 as Aumasson and Bernstein 2012, section 2, define it."""
    full = 2**64 - 1
    first, second = struct.unpack("<2Q", key)
    state = [
        first ^ 0x736F6D6570736575,
        second ^ 0x646F72616E646F6D,
        first ^ 0x6C7967656E657261,
        second ^ 0x7465646279746573,
    ]

    def turn(value, by):
        return (value << by | value >> (64 - by)) & full

    def rounds(count):
        for _ in range(count):
            a, b, c, d = state
            a, c = (a + b) & full, (c + d) & full
            b, d = turn(b, 13) ^ a, turn(d, 16) ^ c
            a = turn(a, 32)
            c, a = (c + b) & full, (a + d) & full
            b, d = turn(b, 17) ^ c, turn(d, 21) ^ a
            state[:] = [a, b, turn(c, 32), d]

    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for (word,) in struct.iter_unpack("<Q", padded):
        state[3] ^= word
        rounds(2)
        state[0] ^= word
    state[2] ^= 0xFF
    rounds(4)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def test_seeds_are_two_halves_of_siphash_of_the_whole_image():
    assert _siphash(bytes(range(15)), bytes(range(16))) == 0xA129CA6149BE45E5  # Their appendix A.
    found = _seeds(IMAGES, OTHER)
    for image, seeds in zip(IMAGES, found, strict=True):
        serialized = tf.io.serialize_tensor(image).numpy()
        assert image.tobytes() in serialized
        hashed = _siphash(serialized, OTHER.key) % 2**62
        assert seeds.tolist() == [hashed >> 31, hashed % 2**31]


@pytest.mark.parametrize("name", REPEATABLE)
def test_seeds_are_those_of_the_image_in_any_batch(name):
    draws = REPEATABLE[name]
    alone = [_seeds(IMAGES[i : i + 1], draws)[0] for i in range(6)]
    np.testing.assert_array_equal(_seeds(IMAGES, draws), alone)


@pytest.mark.parametrize("bit", [0, 1, 22, 31])
def test_any_bit_of_any_value_changes_both_seeds(bit):
    changed = IMAGES.copy()
    changed.view(np.uint32)[:, 1, 2, 0] ^= np.uint32(1 << bit)
    assert (_seeds(IMAGES, KEYED) != _seeds(changed, KEYED)).all()


def test_other_keys_and_other_drawers_have_other_seeds():
    found = [_seeds(IMAGES, draws) for draws in REPEATABLE.values()]
    for place, seeds in enumerate(found):
        assert all((seeds != other).all() for other in found[:place])
    assert len({draws.name for draws in REPEATABLE.values()}) == len(REPEATABLE)


def test_an_attacker_faces_the_keyed_function_itself_and_other_fresh_draws():
    assert OTHER.for_attacker() is OTHER
    assert SCORED.for_attacker() != SCORED
    assert KEYED.for_service(OTHER.key) == OTHER
    assert SCORED.for_service(OTHER.key) == FreshDraws()


def test_a_key_is_not_shown():
    key = b"\x5asecret-of-16-by"
    shown = f"{KeyedDraws(key)!r} {KeyedDraws(key)} {KeyedDraws(key).name}"
    assert "secret" not in shown
    assert key.hex() not in shown


def test_looks_at_one_image_are_drawn_for_anew_by_the_attacker_of_fresh_draws_alone():
    looks = np.repeat(IMAGES[:2], 3, axis=0)
    numbers = [len({tuple(s) for s in _seeds(looks, d)}) for d in (ATTACKED, SCORED, KEYED)]
    assert numbers == [6, 2, 2]
    first = {tuple(seeds) for seeds in _seeds(IMAGES[:2], ATTACKED)}
    assert first <= {tuple(seeds) for seeds in _seeds(looks, ATTACKED)}


@pytest.mark.parametrize("name", REPEATABLE)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_works_in_a_graph_of_unknown_batch(name, count):
    draws = REPEATABLE[name]
    spec = tf.TensorSpec((None, 4, 5, 3), tf.float32)
    compiled = tf.function(draws.seeds, input_signature=[spec])
    images = tf.constant(IMAGES[:count])
    np.testing.assert_array_equal(compiled(images), draws.seeds(images))
    assert compiled(images).shape == (count, 2)


def test_fresh_draws_differ_at_every_call_and_in_every_row_whatever_the_global_seed():
    equal = tf.constant(np.repeat(IMAGES[:1], 50, axis=0))
    seen = collections.Counter()
    for _ in range(2):
        keras.utils.set_random_seed(7)
        compiled = tf.function(FreshDraws().seeds)
        for _ in range(2):
            seeds = compiled(equal).numpy()
            assert (seeds.dtype, seeds.shape, seeds.min() >= 0) == (np.int32, (50, 2), True)
            seen.update(map(tuple, seeds))
    assert len(seen) == 200


def test_seeds_of_similar_images_look_random():
    # 2,000 images that differ in one pixel by one level: the seeds' low bits are as good as coins.
    images = np.zeros((2000, 8, 8, 1), np.float32)
    images[np.arange(2000), np.arange(2000) % 8, np.arange(2000) // 8 % 8, 0] = (
        np.arange(2000) // 64 + 1
    ) / 255.0
    seeds = _seeds(images, KEYED)
    assert len({tuple(seed) for seed in seeds}) == 2000
    assert seeds.min() >= 0
    # Four standard deviations of a fair coin thrown 2,000 times.
    assert abs((seeds % 2).mean(axis=0) - 0.5).max() < 4 * 0.5 / np.sqrt(2000)
