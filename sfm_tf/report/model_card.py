"""A robustness model card, in Markdown: what a user of the model has to know before relying on it.

The parts of a model card are those of Mitchell et al. 2019, "Model Cards for Model Reporting"; what
is said of attacks follows the checklist of Carlini et al. 2019, "On Evaluating Adversarial
Robustness".
"""

import dataclasses
import json
from collections.abc import Iterator

from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.report.document import markdown_environment
from sfm_tf.report.first_screen import NO_WHITE_BOX, first_screen
from sfm_tf.report.inputs import ReportInputs
from sfm_tf.report.statements import (
    THREAT_MODEL_NAMES,
    precision_statement,
    sample_sentences,
    shown_threat_models,
    threat_model_statement,
)
from sfm_tf.report.tables import (
    Row,
    Table,
    accuracy_cell,
    class_count_table,
    defences,
    package_table,
    plain_table,
)

_TEMPLATE = "MODEL_CARD.md.j2"

_LASTING_LIMITATIONS = (
    "An attack that was not run may break more images: the accuracies under attack are upper "
    "bounds.",
    "Only small changes of single pixel values were tried. Rotations, patches, printed and "
    "photographed images, blur, sensor noise and other kinds of images were not.",
    "The attacked images had the model's own size. A server resizes files of other sizes as the "
    "training images were, but attacks on such files were not evaluated.",
    "All figures are of one training. Another seed gives other figures, by more than the intervals "
    "say.",
    "The signature explain shows the mask to everybody who may call it, which helps an attacker. A "
    "public server should not offer it.",
    "The model gives every image one of its classes, also an image of something else.",
)

DRAW_STATEMENTS = {
    "keyed": (
        "The model draws at random, by a hash of the image with a secret key that only the "
        "SavedModel holds. The same image always gets the same answer. Whoever may ask the model "
        "can look for an image whose draw fails, and the accuracies under attack count that; "
        "whoever can read the SavedModel can compute every draw."
    ),
    "fresh": (
        "The model draws at random, afresh at each request. The same image may get another answer "
        "when it is sent again, so an attacker can send it until a draw fails. The accuracies "
        "under attack are of one draw for each image."
    ),
}
"""What the model card says of a served model that draws, by `--draws` of its evaluation."""


def build_model_card(
    inputs: ReportInputs,
    image_shape: tuple[int, int, int],
    command: str,
    draws: str | None = None,
) -> str:
    """Returns the model card, the same one for the same inputs.

    Args:
        inputs: What a report shows; images and curves are not used.
        image_shape: Height, width and channels of the images that the model takes.
        command: Command line that makes the model and its figures again.
        draws: How the served model draws, of `DRAW_STATEMENTS`; None for one that draws nothing.
    """
    template = markdown_environment().get_template(_TEMPLATE)
    return template.render(
        inputs=inputs,
        first=first_screen(inputs),
        sample=tuple(sample_sentences(inputs)),
        image_shape=" x ".join(map(str, image_shape)),
        model_table=_model_table(inputs),
        data_table=class_count_table(inputs.statistics, inputs.class_counts),
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
        limitations=tuple(_limitations(inputs, draws)),
        stage_table=_stage_table(inputs),
        package_table=package_table(inputs.manifests),
        # One indented line, in which Markdown knows no mark-up, so that it can be copied as it is.
        command_line="    " + " ".join(command.split()),
    )


def _settings_rows(inputs: ReportInputs, sections: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for manifest in inputs.manifests:
        for section, values in manifest.config.items():
            if section in sections:
                yield from ((name, json.dumps(value)) for name, value in values.items())


def _model_table(inputs: ReportInputs) -> Table:
    if inputs.own_model:
        rows = [("name", inputs.own_model), ("made", "elsewhere")]
        return plain_table("What was evaluated", ("Model", "value"), rows)
    settings = _settings_rows(inputs, ("model", "training"))
    return plain_table("How it was built and trained", ("Setting", "value"), settings)


def _attack_table(inputs: ReportInputs) -> Table:
    seeds = [m.seed for m in inputs.manifests if "evaluation" in m.config]
    # A path says nothing to others, and may say what is none of theirs.
    named = {"model": inputs.own_model, "source_model": inputs.evaluation.source_model and "given"}
    values = {**dataclasses.asdict(inputs.evaluation), **named}.items()
    rows = [*((name, json.dumps(value)) for name, value in values), ("seed", *seeds)]
    return plain_table("All settings of the evaluation", ("Setting", "value"), rows)


def _clean_table(inputs: ReportInputs) -> Table:
    rows = tuple(
        Row(label, (accuracy_cell(inputs.metrics.clean_accuracy(defence)),))
        for defence, label in defences(inputs.metrics)
    )
    return Table("Accuracy without an attack, with its 95% interval", ("Model", "accuracy"), rows)


def _worst_case_tables(inputs: ReportInputs) -> Iterator[Table]:
    """Yields a table for each defence: a row for each threat model, a column for each radius."""
    names = shown_threat_models(inputs.evaluation)
    columns: dict[str, float | None] = {f"{r:g}/255": r for r in inputs.evaluation.epsilons}
    columns["all radii"] = None
    for defence, label in defences(inputs.metrics):
        rows = tuple(
            Row(
                name,
                tuple(
                    accuracy_cell(inputs.metrics.worst(defence, threat_model, radius))
                    for radius in columns.values()
                ),
            )
            for threat_model, name in names.items()
        )
        title = f"Accuracy after the worst attack per image, {label}"
        yield Table(title, ("Threat model", *columns), rows)


def _limitations(inputs: ReportInputs, draws: str | None) -> Iterator[str]:
    run = {entry.threat_model for entry in inputs.metrics.worst_case}
    if ThreatModel.WHITE_BOX.value not in run:
        yield NO_WHITE_BOX
    for threat_model, name in THREAT_MODEL_NAMES.items():
        if threat_model not in {*run, ThreatModel.WHITE_BOX.value}:
            knows = ThreatModel(threat_model).attacker_knows
            yield f"Not run: {name}. {knows}"
    yield from _partly_attacked(inputs)
    if draws is not None:
        yield DRAW_STATEMENTS[draws]
    yield from _LASTING_LIMITATIONS


def _partly_attacked(inputs: ReportInputs) -> Iterator[str]:
    evaluated = sum(inputs.class_counts.values())
    attacked = {e.threat_model: e.examples for e in inputs.metrics.worst_case}
    for threat_model, name in THREAT_MODEL_NAMES.items():
        count = attacked.get(threat_model, evaluated)
        if count < evaluated:
            yield f"Only the first {count:,} of {evaluated:,} images were attacked: {name}."


def _stage_table(inputs: ReportInputs) -> Table:
    rows = ((m.stage, m.fingerprint, m.code_version, m.seed, m.started) for m in inputs.manifests)
    columns = ("Stage", "fingerprint", "code version", "seed", "started (UTC)")
    return plain_table("What made it", columns, rows)
