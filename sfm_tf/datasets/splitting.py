"""Which images are held out for validation and testing, where a dataset does not say it itself."""

import collections
import hashlib
from collections.abc import Mapping, Sequence


def is_held_out(key: str, seed: int, fraction: float) -> bool:
    """Tells whether the image named `key` is among those that are held out.

    The SHA-256 of seed and key, read as a number in [0, 1), is compared with `fraction`: the same
    image is held out at every run, and what is held out at a smaller fraction is held out at a
    larger one.

    Args:
        key: Name of the image. Two independent choices about one image need two keys.
        seed: Seed of the choice.
        fraction: Expected share of the images held out, in [0, 1].

    Returns:
        True for about `fraction` of all keys.
    """
    return _draw(key, seed) < fraction * 2**64


def hashed_split(identity: str, fractions: Mapping[str, float], seed: int) -> str:
    """Returns the split of one training image, whatever the others are.

    Args:
        identity: Text that is the same for copies of the image.
        fractions: Share of each split that is wanted, the first choice first; each is a share of
            what the choices before it leave.
        seed: Seed of the choice.
    """
    for split, fraction in fractions.items():
        # Each choice needs its own key, or the validation share would lie within the test share.
        if is_held_out(f"{split} {identity}", seed, fraction):
            return split
    return "train"


def _draw(key: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def stratified_split(
    images: Sequence[tuple[str, int]],
    fractions: Mapping[str, float],
    seed: int,
    max_train_examples: int = 0,
) -> dict[str, str]:
    """Divides training images class by class, so that each split has its share of each class.

    Of each class those with the lowest SHA-256 of seed and identity are held out. The order of
    the images has no influence, except that a limit takes the first.

    Args:
        images: Identity and label of each image. Images of one identity stay together; where they
            have several labels, the lowest counts.
        fractions: Share of each split that is wanted, as for `hashed_split`.
        seed: Seed of the choice.
        max_train_examples: Images in train and validation together; 0 for all.

    Returns:
        Name of the split of each identity. Each split, and train, has at least one of each class
        that has as many distinct images as there are splits, provided that there is no limit.
    """
    labels: dict[str, int] = {}
    for identity, label in images:
        labels[identity] = min(label, labels.get(identity, label))
    assigned = dict.fromkeys(labels, "train")
    pool = set(labels)
    for place, (split, fraction) in enumerate(fractions.items()):
        if split == "validation" and max_train_examples:
            remaining = [identity for identity, _ in images if identity in pool]
            pool = set(remaining[:max_train_examples])
        kept = len(fractions) - place
        wanted = {identity: labels[identity] for identity in pool}
        held_out = _held_out(wanted, split, fraction, seed, kept)
        assigned |= dict.fromkeys(held_out, split)
        pool -= held_out
    return assigned


def _held_out(
    labels: Mapping[str, int], split: str, fraction: float, seed: int, kept: int
) -> set[str]:
    """Returns the identities held out for `split`; leaves at least `kept` of each class."""
    classes = collections.defaultdict(list)
    for identity, label in labels.items():
        classes[label].append(identity)
    held_out: set[str] = set()
    for members in classes.values():
        members.sort(key=lambda identity: _draw(f"{split} {identity}", seed))
        share = max(1, round(fraction * len(members)))
        held_out.update(members[: max(0, min(share, len(members) - kept))])
    return held_out
