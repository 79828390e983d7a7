"""The report's files: `report.json` for programs, `report.md` and `report.html` for people.

`report.json` is an object with these keys. A reader may rely on them while `schema_version` is 1;
later versions of the library add keys without changing it.

    schema_version   1
    experiment       name of the experiment
    dataset          name of the dataset
    verdict          {blessed: bool, reasons: [sentence]}
    summary          [sentence], the answer, on which images, and what intervals mean
    class_counts     {class name: evaluated images}
    statistics       per split, as `sfm_tf.records.statistics` defines it
    threat_models    {name: {run: bool, statement: [sentence]}}
    metrics          as `sfm_tf.evaluation.metrics.Metrics` defines it; radii in 1/255
    accuracy_by_radius  [entry], of each defence after every attack up to a radius `epsilon`; as
                     `sfm_tf.report.inputs.RadiusAccuracy` defines it
    paper            [{dataset, table, row, threat_model, attack, epsilon, accuracy}]
    history          {defence: [epoch], source: [epoch]}
    costs            [entry], as `sfm_tf.evaluation.runner.Cost` defines it; may be empty
    detection        as `sfm_tf.audit.detection.detection_summary` defines it; null if not run
    audit            {verdict: {level, sentence, rule_text}, findings: [{rule, title, status,
                     figure, why, source, is_must}]}; null if none is stored
    probes           as `sfm_tf.audit.probes.measurements.Probes` defines it; null if not run
    paired           [entry], as `sfm_tf.evaluation.significance.paired_differences` defines it
    breakdown        as `sfm_tf.evaluation.metrics.break_down` defines it; null if not known
    failures         [entry], as `sfm_tf.report.example_images.find_failures` defines it; null if
                     not known
    masks            as `sfm_tf.report.example_images.mask_statistics` defines it; null without a
                     masker
    tuning           [{sparsity_weight, clean, black_box, gray_box}]; null if not run
    ablations        [entry], as `sfm_tf.tuning.ablations.AblationStudy.run` defines it; may be
                     empty
    commands         [{threat_model, attack, epsilon, command}], what measures a row of the metrics
                     again, of every defence; attack "worst_case" for every attack, threat_model
                     "all" for every attacker; may be empty
    stages           [manifest], in the order they ran
    figures          [{name, caption, alternative_text, png, svg}], files below this folder
"""

import base64
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2
import markupsafe
import vl_convert

from sfm_tf.artifacts.atomic_files import write_bytes, write_json, write_text
from sfm_tf.report.charts import ReportFigure, png
from sfm_tf.report.first_screen import FirstScreen, first_screen
from sfm_tf.report.glossary import GLOSSARY
from sfm_tf.report.inputs import ReportInputs
from sfm_tf.report.paper import paper_results
from sfm_tf.report.sections import Section, build_sections
from sfm_tf.report.statements import (
    sample_sentences,
    shown_threat_models,
    threat_model_statement,
)

_TEMPLATES = pathlib.Path(__file__).parent / "templates"

_MARKDOWN_ENTITIES = str.maketrans(
    {character: f"&#{ord(character)};" for character in "&<>|*`[]\\#"} | {"\n": " ", "\r": " "}
)
"""Characters that Markdown, or the HTML it may hold, gives a meaning; `_` has none in a word."""


def markdown_environment() -> jinja2.Environment:
    """Returns the templates for Markdown, which show every value as it reads, on one line.

    A value that a template calls `safe` is left as it is.
    """
    # Every value a template prints goes through `finalize`, as autoescape does for HTML.
    return environment(finalize=_escape)


def html_environment() -> jinja2.Environment:
    """Returns the templates for HTML, which show every value as it reads.

    Their filter `base64` turns text into that of a data URL, `script` a value into JSON that a
    script element can hold, and their function `vega` returns the library that draws the charts.
    """
    templates = environment(autoescape=True)
    templates.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode("ascii")
    templates.filters["script"] = _script_json
    templates.globals["vega"] = _vega
    return templates


def _script_json(value: Any) -> markupsafe.Markup:
    """Returns JSON in which nothing can end the script element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return markupsafe.Markup(text.replace("<", "\\u003c"))


@functools.cache
def _vega() -> markupsafe.Markup:
    """Returns Vega, Vega-Lite and Vega-Embed as one script, so that a page needs no network."""
    return markupsafe.Markup(vl_convert.javascript_bundle().replace("</script", "<\\/script"))


def _escape(value: object) -> str:
    if isinstance(value, markupsafe.Markup):
        return value
    return str(value).translate(_MARKDOWN_ENTITIES)


def environment(**options: Any) -> jinja2.Environment:
    """Returns the templates beside this module; a name they miss is an error.

    Args:
        **options: Further options of `jinja2.Environment`.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


SCHEMA_VERSION = 1

FIGURE_FOLDER = "figures"


def build_report(inputs: ReportInputs, folder: pathlib.Path) -> None:
    """Writes `report.json`, `report.md`, `report.html` and the folder `figures`.

    The same inputs give the same files. `report.html` holds its figures and needs no other file.

    Args:
        inputs: What the report shows.
        folder: An existing folder.
    """
    first, sections = first_screen(inputs), build_sections(inputs)
    figures = list(_figures(first, sections))
    pictures = {figure.name: figure.svg() for figure in figures}
    write_pictures(folder / FIGURE_FOLDER, pictures)
    sample = tuple(sample_sentences(inputs))
    write_json(folder / "report.json", _json_value(inputs, (first.sentence, *sample), figures))
    for environment, name in (
        (markdown_environment(), "report.md"),
        (html_environment(), "report.html"),
    ):
        text = environment.get_template(f"{name}.j2").render(
            inputs=inputs,
            first=first,
            sample=sample,
            sections=sections,
            pictures=pictures,
            figure_folder=FIGURE_FOLDER,
            glossary=GLOSSARY,
        )
        write_text(folder / name, text)


def write_pictures(folder: pathlib.Path, pictures: Mapping[str, str]) -> None:
    """Writes drawn figures, SVG by name, as SVG and PNG files into a folder, which is made."""
    folder.mkdir(exist_ok=True)
    for name, svg in pictures.items():
        write_text(folder / f"{name}.svg", svg)
        write_bytes(folder / f"{name}.png", png(svg))


def _added_values(inputs: ReportInputs) -> dict[str, Any]:
    """Returns the values of the keys that not every evaluation has something for."""
    failures = inputs.failures
    return {
        "costs": [dataclasses.asdict(cost) for cost in inputs.costs],
        "detection": inputs.detection,
        "audit": None if inputs.audit is None else dataclasses.asdict(inputs.audit),
        "probes": None if inputs.probes is None else inputs.probes.to_json(),
        "paired": list(inputs.paired),
        "breakdown": inputs.breakdown,
        "failures": None if failures is None else list(failures.failures),
        "masks": inputs.masks,
        "tuning": None if inputs.tuning is None else list(inputs.tuning),
        "ablations": list(inputs.ablation_scores),
        "commands": [dataclasses.asdict(each) for each in inputs.commands],
    }


def _figures(first: FirstScreen, sections: Iterable[Section]) -> Iterator[ReportFigure]:
    if first.chart is not None:
        yield first.chart
    for section in sections:
        yield from section.figures


def _json_value(
    inputs: ReportInputs, summary: Iterable[str], figures: Iterable[ReportFigure]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": inputs.experiment,
        "dataset": inputs.dataset,
        "verdict": dataclasses.asdict(inputs.blessing),
        "summary": list(summary),
        "class_counts": dict(inputs.class_counts),
        "statistics": dict(inputs.statistics),
        "threat_models": {
            name: {
                "run": name in inputs.evaluation.threat_models,
                "statement": list(threat_model_statement(name, inputs.evaluation)),
            }
            for name in shown_threat_models(inputs.evaluation)
        },
        "metrics": dataclasses.asdict(inputs.metrics),
        "accuracy_by_radius": [dataclasses.asdict(e) for e in inputs.accuracy_by_radius],
        "paper": [dataclasses.asdict(result) for result in paper_results(inputs.dataset)],
        "history": dict(inputs.history),
        **_added_values(inputs),
        "stages": [dataclasses.asdict(manifest) for manifest in inputs.manifests],
        "figures": [_figure_value(figure) for figure in figures],
    }


def _figure_value(figure: ReportFigure) -> dict[str, str]:
    return {
        "name": figure.name,
        "caption": figure.caption,
        "alternative_text": figure.alternative_text,
        "png": f"{FIGURE_FOLDER}/{figure.name}.png",
        "svg": f"{FIGURE_FOLDER}/{figure.name}.svg",
    }
