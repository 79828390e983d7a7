"""Serves exported models over TensorFlow Serving's REST and gRPC APIs, without a container.

    python -m pipelines.serve --workdir=runs/cifar10
    python -m pipelines.serve --model_dir=models/cifar10 --rest_port=8501 --grpc_port=8500

Serves the model that --workdir exported last, or the model in each folder of --model_dir under the
name of its folder. It always serves the newest version and loads a new version when one is pushed.
It needs the packages of requirements-ray.txt and runs until Ctrl-C or SIGTERM.

By default only this machine can reach the server. With another --host it answers everyone who can
reach that address; there is no authentication. A SavedModel is a program: serve only models that
you trust.
"""

import asyncio
import pathlib
import signal
import sys
from collections.abc import Sequence

from absl import app, flags

import pipelines.quiet_start  # noqa: F401  Before the library, which imports TensorFlow.
from pipelines import command_line
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.serving.push_record import read_push
from sfm_tf.serving.ray_server import ServerSettings, running_server
from sfm_tf.serving.versions import is_remote

MODULE = "pipelines.serve"
_MODEL_DIR = flags.DEFINE_list(
    "model_dir",
    [],
    "Folders of models, each with its versions in it. The default is the last export of --workdir.",
    module_name=MODULE,
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all interfaces.", module_name=MODULE
)
_REST_PORT = flags.DEFINE_integer("rest_port", 8501, "Port of REST.", 1, 65535, module_name=MODULE)
_GRPC_PORT = flags.DEFINE_integer("grpc_port", 8500, "Port of gRPC.", 1, 65535, module_name=MODULE)
_GPUS = flags.DEFINE_float("gpus", 0, "GPUs to use; 0 for the CPU.", 0, module_name=MODULE)


def find_models(workdir: str | None, model_dirs: Sequence[str]) -> dict[str, pathlib.Path]:
    """Returns the folders of the models to serve, by the models' names.

    Args:
        workdir: Working directory whose last export to serve where no folder is given.
        model_dirs: Folders of models.

    Raises:
        SfmError: If both or neither are given, two models have one name, or nothing was exported.
    """
    if bool(workdir) == bool(model_dirs):
        raise SfmError("Give either --workdir or --model_dir.")
    if workdir:
        root = pathlib.Path(workdir)
        versions = read_push(RunDirectory(root).latest("export").folder, root).versions
        _refuse_address(versions)
        folder = pathlib.Path(versions).resolve()
        return {folder.name: folder}
    for model_dir in model_dirs:
        _refuse_address(model_dir)
    folders = [pathlib.Path(model_dir).resolve() for model_dir in model_dirs]
    models = {folder.name: folder for folder in folders}
    if len(models) < len(folders):
        raise SfmError(
            f"Two folders in --model_dir={','.join(model_dirs)} have the same name; rename one."
        )
    return models


def _refuse_address(folder: str) -> None:
    if is_remote(folder):
        raise SfmError(
            f"Cannot serve {folder}: this server reads local folders; copy the model into one, or "
            "use TensorFlow Serving."
        )


async def serve(settings: ServerSettings) -> None:
    """Serves until SIGINT or SIGTERM; prints where, once the models answer.

    Raises:
        CancelledError: If it is told to stop before.
    """
    stop, starting = asyncio.Event(), asyncio.current_task()

    def end() -> None:
        if not stop.is_set():
            print("Stopping ...", flush=True)
        stop.set()
        if starting is not None:
            starting.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    print("Starting Ray Serve ...", flush=True)
    async with running_server(settings) as (rest, grpc):
        starting = None
        for name in settings.models:
            print(f"REST: http://{rest}/v1/models/{name}:predict")
        print(f"gRPC: {grpc}\nCtrl-C stops the server.", flush=True)
        await stop.wait()


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    try:
        if len(argv) > 1:
            raise SfmError(f"Unexpected argument {argv[1]!r}; settings are given as --name=value.")
        settings = ServerSettings(
            models=find_models(flags.FLAGS.workdir, _MODEL_DIR.value),
            host=_HOST.value,
            rest_port=_REST_PORT.value,
            grpc_port=_GRPC_PORT.value,
            gpus=_GPUS.value,
        )
        asyncio.run(serve(settings))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except SfmError as error:
        print(f"Error: {command_line.describe(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    app.run(main)
