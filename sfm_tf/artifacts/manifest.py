"""The manifest of an artifact: what made it, in the vocabulary of ML Metadata.

ML Metadata calls what a stage leaves an Artifact, the act of making it an Execution, and each link
between the two an Event. Its package does not install beside TensorFlow 2.21, so a manifest is a
JSON file with the same three parts.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sfm_tf.artifacts.atomic_files import write_json
from sfm_tf.errors import SfmError

FILE_NAME = "manifest.json"
_SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What made an artifact.

    Attributes:
        stage: Name of the stage, such as `train`.
        fingerprint: SHA-256 of what the stage started from: all below but contents and times.
        config: The stage's settings.
        seed: Seed of its random choices.
        inputs: Fingerprints of the artifacts it read, by stage.
        content: Digest of the artifact's files; it is not part of the fingerprint, but of those of
            the stages that read the artifact.
        code_version: Digest of the library code it ran.
        package_versions: Installed versions of the numerical packages.
        started: Start of the execution, ISO 8601 in UTC.
        wall_seconds: How long the last, completing execution took.
    """

    stage: str
    fingerprint: str
    config: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, str]
    content: str
    code_version: str
    package_versions: Mapping[str, str]
    started: str
    wall_seconds: float


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into `folder`."""
    events = [
        {"type": "INPUT", "stage": stage, "fingerprint": fingerprint}
        for stage, fingerprint in sorted(manifest.inputs.items())
    ]
    output = {"type": "OUTPUT", "stage": manifest.stage, "fingerprint": manifest.fingerprint}
    execution_fields = ("config", "seed", "code_version", "package_versions", "started")
    execution = {name: getattr(manifest, name) for name in execution_fields}
    value = {
        "schema_version": _SCHEMA_VERSION,
        "artifact": {
            "stage": manifest.stage,
            "fingerprint": manifest.fingerprint,
            "content": manifest.content,
        },
        "execution": {**execution, "wall_seconds": manifest.wall_seconds},
        "events": [*events, output],
    }
    write_json(folder / FILE_NAME, value)


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Reads `manifest.json` from `folder`.

    Raises:
        SfmError: If the file is missing or is not a manifest of this version.
    """
    path = folder / FILE_NAME
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        inputs = {e["stage"]: e["fingerprint"] for e in value["events"] if e["type"] == "INPUT"}
        return Manifest(**value["artifact"], **value["execution"], inputs=inputs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SfmError(
            f"Cannot read {path} ({error}); expected the manifest of a finished stage. "
            "Run the stage again with --force."
        ) from error
