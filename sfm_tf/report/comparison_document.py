"""The files of a comparison of runs: `compare.json` for programs, the others for people.

`compare.json` is an object with these keys. A reader may rely on them while `schema_version` is 1;
later versions of the library add keys without changing it.

    schema_version   1
    images           {count, sha256} of the images that every run evaluated, with their labels
    summary          [sentence], a difference that matters most for each two runs
    runs             [{name, workdir, experiment, subject, verdict, fingerprint, metrics,
                     costs}], `metrics` and `costs` as in `report.json`
    pairs            [{first, second, differences}], runs by name; a difference has `threat_model`,
                     `attack` ("clean", "worst_case" or a name), `epsilon` in 1/255 (None for all
                     radii) and what `sfm_tf.report.comparison.Difference` says
    spreads          [{runs, stages, rows}], for runs that differ in nothing but the seed of these
                     stages; a row has `threat_model`, `attack` and `epsilon` as a difference does,
                     and of its accuracies `mean`, `standard_deviation` (of the sample), `minimum`
                     and `maximum`
    settings         [{setting, values}] that differ, a value for each run in their order, None
                     where a run has no such setting
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from sfm_tf.artifacts.atomic_files import write_json, write_text
from sfm_tf.report.comparison import ComparedRun, Difference, Pair, compare_runs
from sfm_tf.report.comparison_sections import (
    SeedGroup,
    Spread,
    comparison_sections,
    comparison_summary,
    differing_settings,
    seed_groups,
    seed_section,
    seed_sentences,
    verdict_name,
)
from sfm_tf.report.document import html_environment, markdown_environment

SCHEMA_VERSION = 1


def build_comparison(runs: Sequence[ComparedRun], folder: pathlib.Path) -> dict[str, Any]:
    """Writes `compare.json`, `compare.md` and `compare.html`, which needs no other file.

    Args:
        runs: Two or more, as `sfm_tf.report.comparison.collect_runs` returned them.
        folder: An existing folder.

    Returns:
        What `compare.json` holds.
    """
    pairs, settings = compare_runs(runs), tuple(differing_settings(runs))
    groups = seed_groups(runs)
    summary = (*comparison_summary(runs, pairs), *seed_sentences(groups))
    value = _json_value(runs, pairs, settings, groups, summary)
    write_json(folder / "compare.json", value)
    side_by_side, *others = comparison_sections(runs, pairs, settings)
    sections = (side_by_side, *map(seed_section, groups), *others)
    for environment, name in (
        (markdown_environment(), "compare.md"),
        (html_environment(), "compare.html"),
    ):
        text = environment.get_template(f"{name}.j2").render(
            runs=runs, summary=summary, sections=sections
        )
        write_text(folder / name, text)
    return value


def _json_value(
    runs: Sequence[ComparedRun],
    pairs: Sequence[Pair],
    settings: Sequence[tuple[str, list[Any]]],
    groups: Sequence[SeedGroup],
    summary: Sequence[str],
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "images": {"count": runs[0].image_count, "sha256": runs[0].images_digest},
        "summary": list(summary),
        "runs": [_run_value(run) for run in runs],
        "pairs": [
            {
                "first": pair.first.name,
                "second": pair.second.name,
                "differences": [_flat(each) for each in pair.differences],
            }
            for pair in pairs
        ],
        "spreads": [_spread_value(group) for group in groups],
        "settings": [{"setting": name, "values": values} for name, values in settings],
    }


def _run_value(run: ComparedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "workdir": run.workdir,
        "experiment": run.experiment,
        "subject": run.subject,
        "verdict": verdict_name(run),
        "fingerprint": run.manifests[-1].fingerprint,
        "metrics": dict(run.metrics),
        "costs": list(run.costs),
    }


def _spread_value(group: SeedGroup) -> dict[str, Any]:
    return {
        "runs": [run.name for run in group.runs],
        "stages": list(group.stages),
        "rows": [_flat(spread) for spread in group.spreads],
    }


def _flat(figures: Difference | Spread) -> dict[str, Any]:
    """Returns figures with what they are of beside them rather than inside."""
    values = dataclasses.asdict(figures)
    return {
        **figures.condition._asdict(),
        **{n: v for n, v in values.items() if n != "condition"},
    }
