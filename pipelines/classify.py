"""Classifies a folder of images with a served model, into a CSV or JSON file.

    python -m pipelines.classify --images=photos --output=answers.csv
    python -m pipelines.classify --images=photos --output=answers.json --protocol=grpc \\
        --server=10.0.0.7:8500 --model_name=sfm_defended --class_names=class_names.json

The server must speak TensorFlow Serving's REST or gRPC protocol. Every PNG and JPEG file in the
folder and its subfolders gets one row. A file that cannot be read or decoded gets a row with the
reason. The output file is written once, when all rows are complete.
"""

import logging
import pathlib
import sys

from absl import flags

from pipelines import command_line
from pipelines.progress_line import ProgressLine
from sfm_tf.serving.client.folder_classification import (
    FileRow,
    check_output,
    classify_folder,
    read_class_names,
    write_rows,
)
from sfm_tf.serving.client.grpc_client import GrpcClient
from sfm_tf.serving.client.model_client import ModelClient
from sfm_tf.serving.client.rest_client import RestClient

MODULE = "pipelines.classify"

CLIENTS: dict[str, tuple[type[ModelClient], str]] = {
    "rest": (RestClient, "http://127.0.0.1:8501"),
    "grpc": (GrpcClient, "127.0.0.1:8500"),
}
"""The client of each protocol and the server it asks unless told otherwise."""


def define_flags() -> None:
    """Defines the flags; only as a program, for some of them are named as a stage's."""
    servers = ", ".join(f"{server} ({protocol})" for protocol, (_, server) in CLIENTS.items())
    for name, default, words in (
        ("images", None, "Folder of PNG and JPEG files."),
        ("output", None, "File to write; ends in .csv or .json."),
        ("server", None, f"Address of the server. The default is {servers}."),
        ("model_name", "sfm_defended", "Name of the model on the server."),
        ("class_names", None, "JSON list of class names. Without it, classes are numbers."),
    ):
        flags.DEFINE_string(name, default, words, module_name=MODULE)
    flags.DEFINE_enum("protocol", "rest", list(CLIENTS), "Protocol to use.", module_name=MODULE)
    flags.DEFINE_integer(
        "version", None, "Model version. The default is the latest.", module_name=MODULE
    )
    flags.DEFINE_integer(
        "batch_size", 32, "Largest number of images in a request.", module_name=MODULE
    )
    flags.DEFINE_float(
        "deadline_seconds",
        60.0,
        "Time limit for one request, retries included.",
        module_name=MODULE,
    )
    flags.mark_flags_as_required(["images", "output"])


def classify(
    client: ModelClient,
    images: pathlib.Path,
    output: pathlib.Path,
    class_names: pathlib.Path | None = None,
) -> list[FileRow]:
    """Writes how each image in a folder was classified, and returns it.

    Args:
        client: Of the served model.
        images: The folder.
        output: File to write; ends in .csv or .json.
        class_names: File of class names; None to write none.

    Raises:
        SfmError: If a path is not usable or the server does not answer.
    """
    check_output(output)
    names = read_class_names(class_names) if class_names else ()
    with ProgressLine("classify", "images") as progress:
        rows = classify_folder(
            client,
            images,
            client.batch_size,
            lambda done, total: progress.update("images", done, total),
        )
    write_rows(output, rows, names)
    return rows


def main() -> None:
    """Classifies what the flags say."""
    values = flags.FLAGS
    # It warns of each retry, where the error at the end is enough.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    if values.protocol == "grpc":
        import pipelines.quiet_start  # noqa: F401  Loads TensorFlow, which REST does without.
    kind, default_server = CLIENTS[values.protocol]
    client = kind(
        values.server or default_server,
        values.model_name,
        values.version,
        values.batch_size,
        deadline_seconds=values.deadline_seconds,
    )
    output = pathlib.Path(values.output)
    class_names = pathlib.Path(values.class_names) if values.class_names else None
    rows = classify(client, pathlib.Path(values.images), output, class_names)
    missed = sum(row.class_id is None for row in rows)
    print(f"classify: {len(rows)} images, {missed} not classified: {output}", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    command_line.start_tool([MODULE], main)
