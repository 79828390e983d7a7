"""Notices that the raw images on disk have changed since they were ingested."""

import hashlib
import os
import pathlib

from sfm_tf.config import DataConfig


def source_version(config: DataConfig) -> str:
    """Returns a text that changes with the files that `config.source` names.

    It is made of names, sizes and times of change, not of contents, so that it costs no reading.
    Datasets of TensorFlow Datasets have versions and checksums of their own.

    Args:
        config: Its `source` is an archive or a folder; empty for datasets that need none.

    Returns:
        SHA-256 in hexadecimal; empty where there is no such file or folder, which ingesting
        reports.
    """
    root = pathlib.Path(config.source).expanduser()
    if not config.source or not root.exists():
        return ""
    digest = hashlib.sha256()
    for path in [root, *sorted(root.rglob("*"))]:
        status = os.stat(path)
        name = path.relative_to(root).as_posix()
        if path.is_file():
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
