"""What a server says of a model: its versions and its signatures."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sfm_tf.errors import SfmError


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """State of one version of a model.

    Attributes:
        version: Its number.
        state: TensorFlow Serving's word: START, LOADING, AVAILABLE, UNLOADING or END.
        error_message: Why it could not be loaded; empty if it could.
    """

    version: int
    state: str
    error_message: str


@dataclasses.dataclass(frozen=True)
class TensorDescription:
    """An input or output of a signature.

    Attributes:
        dtype: TensorFlow's name, such as "DT_FLOAT".
        shape: Sizes, -1 where one is free; None if not even their number is fixed.
    """

    dtype: str
    shape: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class SignatureDescription:
    """What a signature takes and gives, by name."""

    inputs: Mapping[str, TensorDescription]
    outputs: Mapping[str, TensorDescription]


@dataclasses.dataclass(frozen=True)
class ModelMetadata:
    """A served model.

    Attributes:
        name: Name the server knows it by.
        version: Version the server answers with.
        signatures: Its signatures, by name.
    """

    name: str
    version: int
    signatures: Mapping[str, SignatureDescription]


def read_status(message: Any) -> tuple[VersionStatus, ...]:
    """Returns the versions in a `GetModelStatusResponse`.

    Args:
        message: The message as JSON, as TensorFlow Serving's REST interface writes it.

    Raises:
        SfmError: If it is not such a message.
    """
    try:
        return tuple(
            VersionStatus(
                int(entry["version"]),
                str(entry["state"]),
                str(entry.get("status", {}).get("error_message", "")),
            )
            for entry in message["model_version_status"]
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _malformed("status", error) from error


def read_metadata(message: Any) -> ModelMetadata:
    """Returns the model in a `GetModelMetadataResponse`.

    Args:
        message: The message as JSON, as TensorFlow Serving's REST interface writes it.

    Raises:
        SfmError: If it is not such a message.
    """
    try:
        signatures = message["metadata"]["signature_def"]["signature_def"]
        return ModelMetadata(
            str(message["model_spec"]["name"]),
            int(message["model_spec"]["version"]),
            {
                name: SignatureDescription(_tensors(value, "inputs"), _tensors(value, "outputs"))
                for name, value in signatures.items()
            },
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _malformed("metadata", error) from error


def _tensors(signature: Any, key: str) -> dict[str, TensorDescription]:
    return {
        name: TensorDescription(str(tensor["dtype"]), _shape(tensor.get("tensor_shape", {})))
        for name, tensor in signature.get(key, {}).items()
    }


def _shape(shape: Any) -> tuple[int, ...] | None:
    if shape.get("unknown_rank", False):
        return None
    return tuple(int(dimension["size"]) for dimension in shape.get("dim", ()))


def _malformed(kind: str, error: Exception) -> SfmError:
    return SfmError(
        f"The server's {kind} of the model cannot be read ({type(error).__name__}: {error}); check "
        "that it speaks TensorFlow Serving's protocol."
    )
