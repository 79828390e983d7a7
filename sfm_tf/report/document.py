"""The report's files: `report.json` for programs, `report.md` and `report.html` for people.

`report.json` is an object with these keys. A reader may rely on them while `schema_version` is 1;
later versions of the library add keys without changing it.

    schema_version   1
    experiment       name of the experiment
    dataset          name of the dataset
    verdict          {blessed: bool, reasons: [sentence]}
    summary          [sentence], on what was measured and the accuracies that matter most
    class_counts     {class name: evaluated images}
    statistics       per split, as `sfm_tf.records.statistics` defines it
    threat_models    {name: {run: bool, statement: [sentence]}}
    metrics          as `sfm_tf.evaluation.metrics.summarise` defines it; radii in 1/255
    paper            [{dataset, table, row, threat_model, attack, epsilon, accuracy}]
    history          {defence: [epoch], source: [epoch]}
    stages           [manifest], in the order they ran
    figures          [{name, caption, alternative_text, png, svg}], files below this folder
"""

import base64
import dataclasses
import pathlib
from typing import Any

import jinja2

from sfm_tf.artifacts.atomic_files import write_bytes, write_json, write_text
from sfm_tf.report.paper import paper_results
from sfm_tf.report.report_inputs import ReportInputs
from sfm_tf.report.sections import Section, build_sections
from sfm_tf.report.statements import (
    shown_threat_models,
    summary,
    threat_model_statement,
    verdict,
)

SCHEMA_VERSION = 1

FIGURE_FOLDER = "figures"

_TEMPLATES = pathlib.Path(__file__).parent / "templates"

_MARKDOWN_ENTITIES = str.maketrans(
    {character: f"&#{ord(character)};" for character in "&<>|*`[]\\#"} | {"\n": " ", "\r": " "}
)
"""Characters that Markdown, or the HTML it may hold, gives a meaning; `_` has none in a word."""


def build_report(inputs: ReportInputs, folder: pathlib.Path) -> None:
    """Writes `report.json`, `report.md`, `report.html` and the folder `figures`.

    The same inputs give the same files. `report.html` holds its figures and needs no other file.

    Args:
        inputs: What the report shows.
        folder: An existing folder.
    """
    sections = build_sections(inputs)
    (folder / FIGURE_FOLDER).mkdir(exist_ok=True)
    for figure in _figures(sections):
        write_bytes(folder / FIGURE_FOLDER / f"{figure.name}.png", figure.png)
        write_bytes(folder / FIGURE_FOLDER / f"{figure.name}.svg", figure.svg)
    write_json(folder / "report.json", _json_value(inputs, sections))
    for environment, name in ((_markdown(), "report.md"), (_html(), "report.html")):
        template = environment.get_template(f"{name}.j2")
        text = template.render(
            inputs=inputs,
            verdict=verdict(inputs),
            summary=tuple(summary(inputs)),
            sections=sections,
            figure_folder=FIGURE_FOLDER,
        )
        write_text(folder / name, text)


def _figures(sections: tuple[Section, ...]) -> list[Any]:
    return [figure for section in sections for figure in section.figures]


def _json_value(inputs: ReportInputs, sections: tuple[Section, ...]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": inputs.experiment,
        "dataset": inputs.dataset,
        "verdict": dataclasses.asdict(inputs.blessing),
        "summary": list(summary(inputs)),
        "class_counts": dict(inputs.class_counts),
        "statistics": dict(inputs.statistics),
        "threat_models": {
            name: {
                "run": name in inputs.evaluation.threat_models,
                "statement": list(threat_model_statement(name, inputs.evaluation)),
            }
            for name in shown_threat_models(inputs.evaluation)
        },
        "metrics": dict(inputs.metrics),
        "paper": [dataclasses.asdict(result) for result in paper_results(inputs.dataset)],
        "history": dict(inputs.history),
        "stages": [dataclasses.asdict(manifest) for manifest in inputs.manifests],
        "figures": [
            {
                "name": figure.name,
                "caption": figure.caption,
                "alternative_text": figure.alternative_text,
                "png": f"{FIGURE_FOLDER}/{figure.name}.png",
                "svg": f"{FIGURE_FOLDER}/{figure.name}.svg",
            }
            for figure in _figures(sections)
        ],
    }


def _html() -> jinja2.Environment:
    environment = _environment(autoescape=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment


def _markdown() -> jinja2.Environment:
    # Every value a template prints goes through `finalize`, as autoescape does for HTML.
    return _environment(finalize=lambda value: str(value).translate(_MARKDOWN_ENTITIES))


def _environment(**options: Any) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
