"""Fits the two compared defences that learn from training images: quilting and PixelDefend.

    python -m pipelines.fit_defences --workdir=runs/cifar10
    python -m pipelines.fit_defences --workdir=runs/cifar10 --defences=quilting

TFX counterpart: Trainer. Reads the ingested training images. Writes
<workdir>/fit_quilting/<fingerprint>/patches.npz and
<workdir>/fit_pixel_defend/<fingerprint>/pixel_cnn.keras. These are two artifacts, so that a change
of one defence's settings does not fit the other again.
"""

import pathlib

from pipelines import command_line
from pipelines.stage_execution import ProgressLine, execute_stage
from pipelines.validate import check_validated
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory, fit_stage
from sfm_tf.defences.catalogue import FITTED
from sfm_tf.defences.chains import fits_needed
from sfm_tf.defences.fitting import fit_operation, settings_of
from sfm_tf.experiments import Experiment

MODULE = "pipelines.fit_defences"


def fit_defences(
    run_directory: RunDirectory, experiment: Experiment, force: bool
) -> tuple[Artifact, ...]:
    """Returns what the defences that are evaluated were fitted to, none where none learns."""
    names = fits_needed(experiment.evaluation.defences, experiment.compared)
    return tuple(_fit(name, run_directory, experiment, force) for name in names)


def fit_all(
    run_directory: RunDirectory, experiment: Experiment, force: bool
) -> tuple[Artifact, ...]:
    """Returns what the defences named, or all that learn where none is named, were fitted to."""
    return fit_defences(run_directory, experiment, force) or tuple(
        _fit(name, run_directory, experiment, force) for name in FITTED
    )


def _fit(name: str, run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    records = run_directory.latest("ingest")
    check_validated(run_directory, records)
    config = settings_of(name, experiment.compared)

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        fit_operation(name, records.folder, config, experiment.seed, folder, progress.update)

    execution = Execution(
        stage=fit_stage(name),
        modules=["sfm_tf.defences.fitting"],
        configs={"compared": config},
        seed=experiment.seed,
        inputs={"ingest": records},
    )
    return execute_stage(execution, run_directory, produce, force)


if __name__ == "__main__":
    command_line.define_flags(["compared"], MODULE)
    command_line.define_flags(["evaluation"], MODULE, ["defences"])
    command_line.start([MODULE], fit_all)
