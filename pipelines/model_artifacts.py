"""Which artifacts hold the models of an evaluation, and where they are in them."""

from collections.abc import Mapping

import pipelines.quiet_start  # noqa: F401  Before the library, which imports TensorFlow.
from sfm_tf.artifacts.run_directory import ADVERSARIAL_STAGE, Artifact, RunDirectory, fit_stage
from sfm_tf.defences.catalogue import ADVERSARIALLY_TRAINED, ALL, FITTED
from sfm_tf.defences.chains import fits_needed
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.subjects import ModelFolders
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.experiments import Experiment


def model_inputs(run_directory: RunDirectory, experiment: Experiment) -> dict[str, Artifact]:
    """Returns the artifacts that an evaluation reads, by stage: records, models and fits.

    Raises:
        SfmError: If a stage has not finished; the message has the command that runs it.
    """
    config = experiment.evaluation
    fits = {
        fit_stage(name): run_directory.latest(fit_stage(name), f"fit_defences --defences={name}")
        for name in fits_needed(config.defences, experiment.compared)
    }
    if config.model:
        records = run_directory.latest("ingest")
        return _of_one_ingest(
            {"ingest": records, **_source(run_directory, config, records), **fits}
        )
    models = run_directory.latest("train")
    inputs = {"ingest": run_directory.input_of(models, "ingest"), "train": models, **fits}
    asked_for = not set(ADVERSARIALLY_TRAINED).isdisjoint(config.defences)
    if asked_for or (ALL in config.defences and run_directory.has_finished(ADVERSARIAL_STAGE)):
        program = "train --adversarial_training=trades"
        inputs[ADVERSARIAL_STAGE] = run_directory.latest(ADVERSARIAL_STAGE, program)
    return _of_one_ingest(inputs)


def _source(
    run_directory: RunDirectory, config: EvaluationConfig, records: Artifact
) -> dict[str, Artifact]:
    """Returns the trained models, if the black box of a user's model can start from them."""
    is_asked_for = ThreatModel.BLACK_BOX.value in config.threat_models and not config.source_model
    if not (is_asked_for and run_directory.has_finished("train")):
        return {}
    models = run_directory.latest("train")
    is_of_records = models.manifest.inputs["ingest"] == records.manifest.fingerprint
    return {"train": models} if is_of_records else {}


def _of_one_ingest(inputs: dict[str, Artifact]) -> dict[str, Artifact]:
    """Returns the artifacts if all that learnt did so from the same records.

    Raises:
        SfmError: If one did not: its test images may be among what it learnt from.
    """
    records = inputs["ingest"].manifest.fingerprint
    for stage, artifact in inputs.items():
        if artifact.manifest.inputs.get("ingest", records) != records:
            raise SfmError(
                f"{artifact.folder} was trained on other records than {inputs['ingest'].folder}; "
                f"run stage {stage} again."
            )
    return inputs


def model_folders(inputs: Mapping[str, Artifact]) -> ModelFolders:
    """Returns where the models are in the artifacts that `model_inputs` found."""
    trained, adversarial = inputs.get("train"), inputs.get(ADVERSARIAL_STAGE)
    fits = {name: fit_stage(name) for name in FITTED}
    return ModelFolders(
        trained and trained.folder,
        adversarial and adversarial.folder,
        {name: inputs[stage].folder for name, stage in fits.items() if stage in inputs},
    )
