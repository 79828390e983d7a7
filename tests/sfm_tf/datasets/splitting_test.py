import collections
import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_tf.datasets.splitting import hashed_split, is_held_out, stratified_split

_BOTH = {"test": 0.2, "validation": 0.1}


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 1.0])
def test_what_is_held_out_follows_the_hash(fraction):
    for key in (f"image {index}" for index in range(500)):
        digest = hashlib.sha256(f"7:{key}".encode()).hexdigest()
        # The first 16 hexadecimal digits as a number in [0, 1).
        assert is_held_out(key, 7, fraction) == (int(digest[:16], 16) / 16**16 < fraction)


def test_hashed_split_looks_at_the_hash_of_each_split_in_turn():
    for identity in map(str, range(300)):
        expected = "train"
        for split in ("validation", "test"):
            digest = hashlib.sha256(f"3:{split} {identity}".encode()).hexdigest()
            if int(digest[:16], 16) / 16**16 < _BOTH[split]:
                expected = split
        assert hashed_split(identity, _BOTH, 3) == expected


def _images(counts):
    return [
        (f"{label} {index}", label) for label, count in enumerate(counts) for index in range(count)
    ]


def _class_counts(images, splits):
    return collections.Counter((label, splits[identity]) for identity, label in images)


@pytest.mark.parametrize(
    ("count", "fractions", "expected"),
    [
        (100, _BOTH, {"train": 72, "validation": 8, "test": 20}),
        (14, _BOTH, {"train": 10, "validation": 1, "test": 3}),
        (3, _BOTH, {"train": 1, "validation": 1, "test": 1}),
        (4, {"test": 0.5, "validation": 0.5}, {"train": 1, "validation": 1, "test": 2}),
        (3, {"test": 0.5, "validation": 0.5}, {"train": 1, "validation": 1, "test": 1}),
        (2, _BOTH, {"train": 1, "validation": 1}),
        (1, _BOTH, {"train": 1}),
        (2, {"validation": 0.1}, {"train": 1, "validation": 1}),
        (10, {"test": 0.3}, {"train": 7, "test": 3}),
        (2, {}, {"train": 2}),
    ],
    ids=str,
)
def test_each_class_has_its_share(count, fractions, expected):
    images = _images([count, 40])
    counts = _class_counts(images, stratified_split(images, fractions, 0))
    assert {split: counts[0, split] for split in expected} == expected
    assert sum(expected.values()) == count


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
    st.floats(0.01, 0.5),
    st.floats(0.01, 0.5),
    st.integers(0, 2**31 - 1),
    st.randoms(use_true_random=False),
)
def test_class_of_three_is_in_every_split_whatever_the_order(counts, test, validation, seed, order):
    images = _images(counts)
    fractions = {"test": test, "validation": validation}
    splits = stratified_split(images, fractions, seed)
    order.shuffle(images)
    assert stratified_split(images, fractions, seed) == splits
    found = _class_counts(images, splits)
    for label, split in itertools.product(range(len(counts)), ("train", "validation", "test")):
        assert found[label, split] >= (1 if counts[label] >= 3 else 0)


def test_choice_depends_on_the_seed_and_not_on_other_classes():
    images = _images([50, 50])
    splits = stratified_split(images, _BOTH, 0)
    assert splits != stratified_split(images, _BOTH, 1)
    assert stratified_split(images[:50], _BOTH, 0).items() <= splits.items()


def test_copies_of_several_labels_count_for_the_lowest():
    images = [*_images([10, 10]), ("0 3", 1), ("1 3", 0)]
    splits = stratified_split(images, _BOTH, 0)
    assert set(splits) == {identity for identity, _ in images}
    assert splits == stratified_split(images[::-1], _BOTH, 0)


def test_limit_divides_the_first_images():
    images = _images([1] * 100)[::-1]
    one_class = [(identity, 0) for identity, _ in images]
    splits = stratified_split(one_class, _BOTH, 0, max_train_examples=30)
    rest = [identity for identity, _ in images if splits[identity] != "test"]
    assert collections.Counter(splits[each] for each in rest[:30]) == {"train": 27, "validation": 3}
    assert {splits[each] for each in rest[30:]} == {"train"}
