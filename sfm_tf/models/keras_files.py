"""Models in `.keras` files, read without running code from them."""

import pathlib
import zipfile

import keras

from sfm_tf.errors import SfmError

_DAMAGE = (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
"""What Keras and HDF5 raise on files that are missing, cut off or not theirs."""


def load_keras_file(path: pathlib.Path, remedy: str) -> keras.Model:
    """Reads a model in safe mode, and not compiled.

    Args:
        path: The file.
        remedy: What was expected, or what to do, as the message ends.

    Raises:
        SfmError: If the file is missing, damaged, or holds what safe mode refuses.
    """
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except _DAMAGE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SfmError(f"Cannot read {path} ({reason}); {remedy}.") from error
