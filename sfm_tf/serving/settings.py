"""Settings of the stage `export`."""

import dataclasses
import re

from sfm_tf.errors import SfmError
from sfm_tf.settings import Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Where `pipelines.export` puts the model that a server loads."""

    serving_dir: str = setting("", "Folder of served models; empty for <workdir>/serving.")
    model_name: str = setting("sfm_defended", "Name of the model on the server.")
    precision: str = setting(
        "float32",
        "Precision of the served model. In bfloat16 its answers differ from the evaluated ones; "
        "pushed.json says by how much.",
        choices=("float32", "bfloat16"),
    )
    draw_key_file: str = setting(
        "",
        "File with the secret key of a random defence, 32 hexadecimal digits; empty for a new key "
        "at each export. Only the SavedModel holds it. --force exports again with another one.",
        is_place=True,
    )
    keep_versions: int = setting(0, "Number of versions kept after a push; 0 keeps all.", minimum=0)
    allow_not_blessed: bool = setting(False, "Export the model even if it is NOT_BLESSED.")

    def __post_init__(self) -> None:
        """Raises `SfmError` also for a model name that is no plain folder name."""
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.model_name):
            raise SfmError(
                f"Invalid model_name {self.model_name!r}; expected letters, digits, '_', '-', '.'."
            )
