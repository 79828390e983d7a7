"""Patches cut from training images, of which image quilting builds images (Guo et al. 2018)."""

import dataclasses
import hashlib
import io
import pathlib
import zipfile
import zlib

import numpy as np

from sfm_tf.artifacts import atomic_files
from sfm_tf.errors import SfmError

_ARRAY = "patches"
_DAMAGES = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True, eq=False)
class PatchDatabase:
    """Square pieces of images.

    Attributes:
        patches: Uint8, or float32 in [0, 1], of shape `(count, size, size, channels)`; at least
            one patch, of one or three channels.

    Raises:
        SfmError: If they are not such an array.
    """

    patches: np.ndarray

    def __post_init__(self) -> None:
        """Checks the patches."""
        patches = self.patches
        if patches.dtype not in (np.uint8, np.float32) or not _is_square(patches.shape):
            raise SfmError(
                f"Invalid patches, {patches.dtype} of shape {patches.shape}; expected uint8 or "
                "float32 of shape (count, size, size, 1 or 3)."
            )
        # Written so that NaN fails.
        if patches.dtype == np.float32 and not (patches.min() >= 0.0 and patches.max() <= 1.0):
            raise SfmError(
                f"Invalid patches with values from {patches.min()} to {patches.max()}; expected "
                "numbers from 0 to 1."
            )

    @property
    def count(self) -> int:
        """Number of patches."""
        return self.patches.shape[0]

    @property
    def size(self) -> int:
        """Height and width of a patch in pixels."""
        return self.patches.shape[1]

    @property
    def channels(self) -> int:
        """Number of channels, 1 or 3."""
        return self.patches.shape[3]

    def digest(self) -> str:
        """Returns a SHA-256, in hexadecimal, of the patches, their type and their order."""
        description = f"{self.patches.dtype.name} {self.patches.shape}"
        digest = hashlib.sha256(description.encode("utf-8"))
        digest.update(self.patches.tobytes())
        return digest.hexdigest()

    def save(self, path: pathlib.Path) -> None:
        """Writes a NumPy archive, whole or not at all, into a folder that exists."""
        file = io.BytesIO()
        np.savez_compressed(file, **{_ARRAY: self.patches})
        atomic_files.write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, path: pathlib.Path) -> "PatchDatabase":
        """Reads what `save` wrote.

        Raises:
            SfmError: If the file is missing or damaged, or holds something else.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                # The checksum is compared before anything in the array's header is believed.
                data = archive.read(f"{_ARRAY}.npy")
            return cls(np.load(io.BytesIO(data), allow_pickle=False))
        except _DAMAGES as error:
            raise SfmError(
                f"Cannot read the patches in {path} ({error}); collect them again."
            ) from error


def collect_patches(images: np.ndarray, count: int, patch_size: int, seed: int) -> PatchDatabase:
    """Cuts patches out of images at random positions (Guo et al. 2018, section 4.4).

    No position is taken twice while there are others: where `count` is larger than the number of
    positions, each is taken equally often, up to one.

    Args:
        images: Uint8, or float32 in [0, 1], of shape `(number, height, width, channels)`.
        count: Number of patches.
        patch_size: Their height and width in pixels.
        seed: Determines the positions, together with the shape of `images` and the two above.

    Returns:
        The patches, of the type of `images`.

    Raises:
        SfmError: If a number is not positive, or there is no image that holds a patch.
    """
    shape = images.shape
    if count < 1 or patch_size < 1:
        raise SfmError(
            f"Cannot collect {count} patches of size {patch_size}; expected positive numbers."
        )
    if len(shape) != 4 or not shape[0] or min(shape[1:3]) < patch_size:
        raise SfmError(
            f"Cannot collect patches of {patch_size}x{patch_size} pixels from images of shape "
            f"{shape}; expected (number, height, width, channels) of at least that size."
        )
    positions = (shape[0], shape[1] - patch_size + 1, shape[2] - patch_size + 1)
    number, top, left = np.unravel_index(_choose(np.prod(positions), count, seed), positions)
    windows = np.lib.stride_tricks.sliding_window_view(images, (patch_size,) * 2, axis=(1, 2))
    # A window's pixels come last, after the channels.
    return PatchDatabase(np.ascontiguousarray(np.moveaxis(windows[number, top, left], 1, -1)))


def _is_square(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and min(shape) > 0 and shape[1] == shape[2] and shape[3] in (1, 3)


def _choose(total: int, count: int, seed: int) -> np.ndarray:
    """Chooses `count` numbers below `total`, none more than once oftener than another."""
    rest = np.random.default_rng(seed).choice(total, count % total, replace=False)
    return np.concatenate([np.tile(np.arange(total), count // total), rest])
