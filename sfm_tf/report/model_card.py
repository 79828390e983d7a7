"""A robustness model card, in Markdown: what a user of the model has to know before relying on it.

The parts of a model card are those of Mitchell et al. 2019, "Model Cards for Model Reporting"; what
is said of attacks follows the checklist of Carlini et al. 2019, "On Evaluating Adversarial
Robustness".
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.audit.audited_evaluation import METRICS_FILE, evaluation_settings
from sfm_tf.audit.blessing import read_blessing
from sfm_tf.audit.verdict import AUDIT_FILE, read_audit
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.records.schema import read_schema
from sfm_tf.records.statistics import STATISTICS_FILE
from sfm_tf.records.tfrecords import load_split
from sfm_tf.report.document import markdown_environment
from sfm_tf.report.report_inputs import Audit, ReportInputs
from sfm_tf.report.statements import (
    THREAT_MODEL_NAMES,
    precision_statement,
    shown_threat_models,
    summary,
    threat_model_statement,
    verdict,
)
from sfm_tf.report.tables import (
    Row,
    Table,
    accuracy_cell,
    defences,
    find_entry,
    plain_table,
    worst_case_cell,
)

_TEMPLATE = "MODEL_CARD.md.j2"

_NO_WHITE_BOX = (
    "The white box was not run: nothing here shows that the defence holds against an attacker who "
    "knows it."
)

_LASTING_LIMITATIONS = (
    "An attack that was not run may do better: accuracies under attack are upper bounds of what is "
    "left under the best attack.",
    "Only small changes of single pixel values were tried. Rotations, patches, printing and "
    "photographing, blur, noise of a sensor and other distributions of images were not.",
    "The images were of the model's own size. Files that a server resizes were not evaluated.",
    "All is of one training; another seed gives other figures, by more than the intervals say.",
    "The signature explain shows the mask to whoever may call it, which helps an attacker. A "
    "public server should not offer it.",
    "The model has no class for images of anything else; it gives each image one of its classes.",
)


def collect_card_inputs(
    experiment: str, records: Artifact, models: Artifact, evaluation: Artifact
) -> ReportInputs:
    """Returns what a model card shows: a report's inputs without its images and curves.

    Args:
        experiment: Name of the experiment.
        records: Artifact of the ingest stage.
        models: Artifact of the train stage, made from `records`.
        evaluation: Artifact of the evaluate stage, made from both.

    Raises:
        SfmError: If a file of an artifact is missing or damaged.
    """
    schema = read_schema(records.folder)
    settings = evaluation_settings(evaluation)
    _, labels = load_split(records.folder, "test", schema, settings.num_examples)
    counts = Counter(schema.class_names[label] for label in labels)
    audit = evaluation.folder / AUDIT_FILE
    return ReportInputs(
        experiment=experiment,
        dataset=records.manifest.config["data"]["dataset"],
        statistics=read_json(records.folder / STATISTICS_FILE),
        class_counts={name: counts[name] for name in schema.class_names},
        evaluation=settings,
        metrics=read_json(evaluation.folder / METRICS_FILE),
        blessing=read_blessing(evaluation.folder),
        history={},
        manifests=[records.manifest, models.manifest, evaluation.manifest],
        gallery=None,
        audit=Audit(*read_audit(audit)) if audit.exists() else None,
    )


def build_model_card(inputs: ReportInputs, image_shape: tuple[int, int, int], command: str) -> str:
    """Returns the model card, the same one for the same inputs.

    Args:
        inputs: What a report shows; images and curves are not used.
        image_shape: Height, width and channels of the images that the model takes.
        command: Command line that makes the model and its figures again.
    """
    template = markdown_environment().get_template(_TEMPLATE)
    return template.render(
        inputs=inputs,
        verdict=verdict(inputs),
        summary=tuple(summary(inputs)),
        audit=_audit_sentence(inputs.audit),
        image_shape=" x ".join(map(str, image_shape)),
        model_table=_model_table(inputs),
        data_table=_data_table(inputs),
        clean_table=_clean_table(inputs),
        worst_case_tables=tuple(_worst_case_tables(inputs)),
        statements={
            name: (
                *threat_model_statement(threat_model, inputs.evaluation),
                *precision_statement(inputs.metrics, threat_model, inputs.evaluation),
            )
            for threat_model, name in shown_threat_models(inputs.evaluation).items()
        },
        attack_table=_attack_table(inputs),
        limitations=tuple(_limitations(inputs)),
        stage_table=_stage_table(inputs),
        package_table=_package_table(inputs),
        # One indented line, in which Markdown knows no mark-up, so that it can be copied as it is.
        command_line="    " + " ".join(command.split()),
    )


def _audit_sentence(audit: Audit | None) -> str:
    if audit is None:
        return "No audit is stored with the evaluation, so nothing says whether to believe it."
    level = audit.verdict.level.replace("_", " ")
    return f"Audit of the evaluation: {level}. {audit.verdict.sentence}"


def _settings_rows(inputs: ReportInputs, sections: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for manifest in inputs.manifests:
        for section, values in manifest.config.items():
            if section in sections:
                yield from ((name, json.dumps(value)) for name, value in values.items())


def _model_table(inputs: ReportInputs) -> Table:
    rows = _settings_rows(inputs, ("model", "training"))
    return plain_table("How it was built and trained", ("Setting", "value"), rows)


def _attack_table(inputs: ReportInputs) -> Table:
    seeds = [m.seed for m in inputs.manifests if "evaluation" in m.config]
    values = dataclasses.asdict(inputs.evaluation).items()
    rows = [*((name, json.dumps(value)) for name, value in values), ("seed", *seeds)]
    return plain_table("All settings of the evaluation", ("Setting", "value"), rows)


def _data_table(inputs: ReportInputs) -> Table:
    available = inputs.statistics["test"]["class_counts"]
    return plain_table(
        "Test images of each class",
        ("Class", "evaluated", "in the test split"),
        (
            (name, f"{count:,}", f"{available[name]:,}")
            for name, count in inputs.class_counts.items()
        ),
    )


def _clean_table(inputs: ReportInputs) -> Table:
    rows = tuple(
        Row(label, (accuracy_cell(find_entry(inputs.metrics["clean"], defence=defence)),))
        for defence, label in defences(inputs.metrics)
    )
    return Table("Accuracy without an attack, with its 95% interval", ("Model", "accuracy"), rows)


def _worst_case_tables(inputs: ReportInputs) -> Iterator[Table]:
    """Yields a table for each defence: a row for each threat model, a column for each radius."""
    names = shown_threat_models(inputs.evaluation)
    columns: dict[str, float | None] = {f"{r:g}/255": r for r in inputs.evaluation.epsilons}
    columns["all radii"] = None
    for defence, label in defences(inputs.metrics):
        rows = []
        for threat_model, name in names.items():
            keys = {"defence": defence, "threat_model": threat_model}
            entries = (
                find_entry(inputs.metrics["worst_case"], **keys, epsilon=radius)
                for radius in columns.values()
            )
            rows.append(Row(name, tuple(map(worst_case_cell, entries))))
        title = f"Accuracy after the worst attack per image, {label}"
        yield Table(title, ("Threat model", *columns), tuple(rows))


def _limitations(inputs: ReportInputs) -> Iterator[str]:
    run = {entry["threat_model"] for entry in inputs.metrics["worst_case"]}
    if ThreatModel.WHITE_BOX.value not in run:
        yield _NO_WHITE_BOX
    for threat_model, name in THREAT_MODEL_NAMES.items():
        if threat_model not in {*run, ThreatModel.WHITE_BOX.value}:
            knows = ThreatModel(threat_model).attacker_knows
            yield f"Not run: {name}. {knows}"
    yield from _partly_attacked(inputs)
    yield from _LASTING_LIMITATIONS


def _partly_attacked(inputs: ReportInputs) -> Iterator[str]:
    evaluated = sum(inputs.class_counts.values())
    attacked = {e["threat_model"]: e["examples"] for e in inputs.metrics["worst_case"]}
    for threat_model, name in THREAT_MODEL_NAMES.items():
        count = attacked.get(threat_model, evaluated)
        if count < evaluated:
            yield f"Only the first {count:,} of {evaluated:,} images were attacked: {name}."


def _stage_table(inputs: ReportInputs) -> Table:
    rows = ((m.stage, m.fingerprint, m.code_version, m.seed, m.started) for m in inputs.manifests)
    columns = ("Stage", "fingerprint", "code version", "seed", "started (UTC)")
    return plain_table("What made it", columns, rows)


def _package_table(inputs: ReportInputs) -> Table:
    versions = dict.fromkeys(
        (package, version)
        for manifest in inputs.manifests
        for package, version in manifest.package_versions.items()
    )
    return plain_table("Packages", ("Package", "version"), versions)
