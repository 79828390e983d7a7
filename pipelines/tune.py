"""Searches for the best weights of the masker's loss on validation images.

    python -m pipelines.tune --workdir=runs/cifar10 --tried_sparsity_weights=0.02,0.03,0.04
    python -m pipelines.tune --workdir=runs/cifar10 --tuner=bayesian --max_trials=10

TFX counterpart: Tuner; the search itself is KerasTuner's. Each trial trains classifier and masker
on the records that `pipelines.validate` passed. The best trial has the largest sum of clean
accuracy and black-box accuracy, under PGD at the smallest of --epsilons (Yu et al. 2022, section
6.2).

Writes <workdir>/tune/<fingerprint>/: best.json with the weights of the best trial, and trials.json
with all trials. Finished trials are kept in <workdir>/tune/trials/, and later searches reuse them.
An interrupted trial continues after its last finished epoch. --force deletes all kept trials.

Several processes can share the trials by KerasTuner's own protocol, on one machine or on several
that share --workdir. Start the chief first: it trains nothing, hands out the trials and writes the
artifact. Then start the workers with the same flags; give --mixed_precision if their devices
differ. Workers write no artifact and end when no trial is left:

    export KERASTUNER_ORACLE_IP=127.0.0.1 KERASTUNER_ORACLE_PORT=8000
    KERASTUNER_TUNER_ID=chief   python -m pipelines.tune --workdir=runs/cifar10 &
    KERASTUNER_TUNER_ID=worker0 CUDA_VISIBLE_DEVICES=0 python -m pipelines.tune --workdir=... &
    KERASTUNER_TUNER_ID=worker1 CUDA_VISIBLE_DEVICES=1 python -m pipelines.tune --workdir=... &

If a worker dies, start it again under the same name; the chief waits for it. If the chief dies,
start it again and then the workers; finished trials are kept. The protocol is neither encrypted nor
authenticated, so use an address in a private network.
"""

import importlib.metadata
import os
import pathlib
import shutil
import sys
from typing import Any

from pipelines import command_line
from pipelines.stage_execution import ProgressLine, execute_stage
from pipelines.validate import check_validated
from sfm_tf.artifacts.execution import Execution
from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.experiments import Experiment
from sfm_tf.training.model_building import with_resolved_precision
from sfm_tf.tuning.search import Role, role_of
from sfm_tf.tuning.settings import SHARED_SETTINGS
from sfm_tf.tuning.trials import scoring_settings, without_adversarial_settings
from sfm_tf.tuning.tuning import Tuning

MODULE = "pipelines.tune"
command_line.define_flags(["tuning"], MODULE)

_TRIALS = "trials"


def tune(run_directory: RunDirectory, experiment: Experiment, force: bool) -> Artifact | None:
    """Returns the weights that won and all trials; None from a worker, which has no artifact."""
    records, role = run_directory.latest("ingest"), role_of(os.environ)
    check_validated(run_directory, records)
    if role is Role.WORKER:
        with ProgressLine("tune") as progress:
            _tuning(run_directory, records, experiment, progress).run(role)
        print("tune: no trial is left for this worker; the chief has the results", file=sys.stderr)
        return None
    store = run_directory.shared_folder("tune", _TRIALS)

    def produce(folder: pathlib.Path, progress: ProgressLine) -> None:
        if force and store.exists():
            shutil.rmtree(store)
        tuning = _tuning(run_directory, records, experiment, progress)
        best = tuning.write(tuning.run(role), folder)
        if best["collapse"]:
            print(f"tune: warning: the best trial, too: {best['collapse']}", file=sys.stderr)

    execution = Execution(
        stage="tune",
        modules=["sfm_tf.tuning.tuning"],
        configs=_configs(experiment),
        seed=experiment.seed,
        inputs={"ingest": records},
        source=f"keras-tuner {importlib.metadata.version('keras-tuner')}",
    )
    return execute_stage(execution, run_directory, produce, force)


def _configs(experiment: Experiment) -> dict[str, Any]:
    tuning = experiment.tuning
    return {
        "model": experiment.model,
        "training": with_resolved_precision(without_adversarial_settings(experiment.training)),
        "tuning": tuning,
        "scoring": scoring_settings(experiment.evaluation, gray_box=tuning.tune_gray_box),
    }


def _tuning(
    run_directory: RunDirectory, records: Artifact, experiment: Experiment, progress: ProgressLine
) -> Tuning:
    return Tuning(
        records=records.folder,
        records_digest=f"{records.manifest.fingerprint} {records.manifest.content}",
        **_configs(experiment),
        seed=experiment.seed,
        store=run_directory.shared_folder("tune", _TRIALS),
        progress=progress.update,
    )


if __name__ == "__main__":
    # Settings that other stages take as well, so not where those are imported.
    command_line.define_flags(["model", "training"], MODULE)
    command_line.define_flags(["evaluation"], MODULE, SHARED_SETTINGS)
    command_line.start([MODULE], tune)
