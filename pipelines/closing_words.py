"""What a run tells its user when a stage is done: the table, the report, the model."""

from collections.abc import Callable, Mapping

from pipelines.export import pushed_folder
from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.evaluation.stored_evaluation import METRICS_FILE, evaluation_settings
from sfm_tf.report.statements import shown_threat_models
from sfm_tf.report.tables import accuracy_table, render_text

_SERVING_PORT = 8501  # TensorFlow Serving's REST port.
_SERVING_IMAGE = "tensorflow/serving:2.20.0"


def _tables(evaluation: Artifact) -> str:
    metrics = read_json(evaluation.folder / METRICS_FILE)
    settings = evaluation_settings(evaluation)
    tables = [
        accuracy_table(metrics, name, f"Accuracy, {title}, 95% interval", settings.epsilons)
        for name, title in shown_threat_models(settings).items()
    ]
    return "\n\n".join(render_text(table.transposed()) for table in tables)


def _report(report: Artifact) -> str:
    return f"Report: {report.folder / 'report.html'}"


def _model(export: Artifact) -> str:
    folder = pushed_folder(export)
    name = folder.parent.name
    command = (
        f"docker run -p 127.0.0.1:{_SERVING_PORT}:{_SERVING_PORT} "
        f"-v '{folder.parent.resolve()}:/models/{name}' -e MODEL_NAME={name} {_SERVING_IMAGE}"
    )
    return f"SavedModel: {folder}\nServe it: {command}"


_WORDS: Mapping[str, Callable[[Artifact], str]] = {
    "evaluate": _tables,
    "report": _report,
    "export": _model,
}


def say(stage: str, artifact: Artifact) -> None:
    """Prints what to look at now that `stage` has made `artifact`."""
    if stage in _WORDS:
        print(f"\n{_WORDS[stage](artifact)}\n", flush=True)
