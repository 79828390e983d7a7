"""Trains the model with one part of the method left out at a time, and scores each training.

    python -m pipelines.ablate --workdir=runs/cifar10
    python -m pipelines.ablate --workdir=runs/cifar10 --ablations=frozen_target --ablation_epochs=10

It compares the complete training with five others: no semantic loss, no reconstruction loss,
cross-entropy in place of the cosine distance, a classifier that is frozen after its pre-training,
and no pre-processing T in training (Yu et al. 2022, sections 4.2, 4.3, 5.2 and 6.6).

Reads the records that `pipelines.validate` passed. The black box starts from the source model of
`pipelines.train` if that stage has run on these records; otherwise a source model is trained. The
scores are those of `pipelines.tune`: accuracy on validation images, clean and under PGD at the
smallest of --epsilons. Writes <workdir>/ablate/<fingerprint>/: ablations.json and, for each
training, a folder of models. An interrupted run continues; finished trainings are not repeated.
"""

import pathlib
import sys
from typing import Any

from pipelines import command_line
from pipelines.stage_execution import ProgressLine, execute_stage
from pipelines.validate import check_validated
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.experiments import Experiment
from sfm_tf.training.model_building import with_resolved_precision
from sfm_tf.training.model_files import load_source_model
from sfm_tf.tuning.ablations import AblationStudy
from sfm_tf.tuning.settings import SHARED_SETTINGS
from sfm_tf.tuning.trials import scoring_settings, without_adversarial_settings

MODULE = "pipelines.ablate"
command_line.define_flags(["ablation"], MODULE)


def ablate(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact:
    """Returns the models that were trained without something, and their scores."""
    records = run_directory.latest("ingest")
    check_validated(run_directory, records)
    inputs = {"ingest": records, **_trained(run_directory, records)}
    configs = _configs(experiment)

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        study = AblationStudy(
            records=records.folder,
            **configs,
            seed=experiment.seed,
            source=load_source_model(inputs["train"].folder) if "train" in inputs else None,
            progress=progress.update,
        )
        for result in study.run(folder):
            if result["collapse"] or result["failure"]:
                words = f"{result['words']}: {result['collapse'] or result['failure']}"
                print(f"ablate: {words}", file=sys.stderr)

    execution = Execution(
        stage="ablate",
        modules=["sfm_tf.tuning.ablations"],
        configs=configs,
        seed=experiment.seed,
        inputs=inputs,
        resumable=True,
    )
    return execute_stage(execution, run_directory, produce, force)


def _configs(experiment: Experiment) -> dict[str, Any]:
    return {
        "model": experiment.model,
        "training": with_resolved_precision(without_adversarial_settings(experiment.training)),
        "ablation": experiment.ablation,
        "scoring": scoring_settings(experiment.evaluation, gray_box=True),
    }


def _trained(run_directory: RunDirectory, records: Artifact) -> dict[str, Artifact]:
    """Returns the artifact of the latest training on these records, if there is one."""
    if not run_directory.has_finished("train"):
        return {}
    models = run_directory.latest("train")
    same = models.manifest.inputs["ingest"] == records.manifest.fingerprint
    return {"train": models} if same else {}


if __name__ == "__main__":
    # Settings that other stages take as well, so not where those are imported.
    command_line.define_flags(["model", "training"], MODULE)
    command_line.define_flags(["evaluation"], MODULE, SHARED_SETTINGS)
    command_line.start([MODULE], ablate)
