"""Assignment of images to splits by hash: without state, whatever the order of the images."""

import hashlib


def is_held_out(key: str, seed: int, fraction: float) -> bool:
    """Says whether the image named `key` is among the share that is held out.

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
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
