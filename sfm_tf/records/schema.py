"""What every record of an ingested dataset has in common."""

import dataclasses
import json
import pathlib
from typing import Any

from sfm_tf.artifacts import atomic_files
from sfm_tf.errors import SfmError

SCHEMA_FILE = "schema.json"


@dataclasses.dataclass(frozen=True)
class Schema:
    """Shape, classes and split sizes of an ingested dataset.

    Attributes:
        height: Pixels from top to bottom of every image.
        width: Pixels from left to right of every image.
        channels: 1 for grey images, 3 for RGB.
        class_names: Name of class `i` at position `i`.
        split_sizes: Number of records in each split, by the split's name.
    """

    height: int
    width: int
    channels: int
    class_names: tuple[str, ...]
    split_sizes: dict[str, int]

    def __post_init__(self) -> None:
        """Raises `SfmError` if the fields do not describe a dataset."""
        if min(self.height, self.width) < 1 or self.channels not in (1, 3):
            shape = f"{self.height}x{self.width}x{self.channels}"
            raise SfmError(f"Invalid image shape {shape}; expected HxWx1 or HxWx3.")
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise SfmError(f"Invalid class names {self.class_names}; expected distinct names.")
        if not self.split_sizes or min(self.split_sizes.values()) < 1:
            raise SfmError(f"Invalid split sizes {self.split_sizes}; expected at least 1 each.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return (self.height, self.width, self.channels)

    def to_json(self) -> str:
        """Returns the schema as the text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Returns the schema that `to_json` wrote.

        Raises:
            SfmError: If `text` is not a schema.
        """
        try:
            value = json.loads(text)
            return cls(
                height=_integer(value["height"]),
                width=_integer(value["width"]),
                channels=_integer(value["channels"]),
                class_names=tuple(_string(name) for name in value["class_names"]),
                split_sizes={
                    name: _integer(size) for name, size in dict(value["split_sizes"]).items()
                },
            )
        except SfmError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise SfmError(f"Not a schema of records ({error!r}); run the ingest again.") from error


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def write_schema(schema: Schema, folder: pathlib.Path) -> None:
    """Writes `schema` beside the shards it describes."""
    atomic_files.write_text(folder / SCHEMA_FILE, schema.to_json())


def read_schema(folder: pathlib.Path) -> Schema:
    """Returns the schema of the shards in `folder`.

    Raises:
        SfmError: If there is none, or it is damaged.
    """
    path = folder / SCHEMA_FILE
    if not path.is_file():
        raise SfmError(f"No {SCHEMA_FILE} in {folder}; expected records written by ingest.")
    try:
        return Schema.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SfmError(f"Cannot read {path}: {error}") from error
