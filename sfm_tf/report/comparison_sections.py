"""What a comparison of runs shows, in tables and sentences."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.audit.blessing import BLESSED_FILE, NOT_BLESSED_FILE
from sfm_tf.evaluation.paired_answers import ALL_THREATS, NOT_ATTACKED, RIGHT, WORST_CASE, Condition
from sfm_tf.evaluation.results import CLEAN, UNDEFENDED
from sfm_tf.report.comparison import ComparedRun, Difference, Pair, attacks_differ, subject_answers
from sfm_tf.report.section import Section
from sfm_tf.report.statements import THREAT_MODEL_NAMES
from sfm_tf.report.tables import (
    NOT_RUN,
    Cell,
    Row,
    Table,
    accuracy_cell,
    attack_name,
    find_entry,
    per_cent,
    plain_table,
)

_THREAT_MODELS: Mapping[str, str] = {**THREAT_MODEL_NAMES, ALL_THREATS: "all threat models"}

_SMALLEST_P = 1e-4

_PAIRED_NOTE = (
    "Both runs were scored on the same images, so each row counts the images that only one of them "
    "is right on; p is of the exact McNemar test that these are of either run with even chances. "
    "The test covers the choice of images, not another training or another seed."
)

_WORST_CASE_NOTE = (
    "In the worst case an image counts as right only if the model is right on it without an attack "
    "and after every attack of the row. Holm's p is corrected for all rows of the table."
)

_UNLIKE_NOTE = (
    "The runs were not attacked alike ({names}): worst cases there are over different attacks or "
    "radii, and the run that was attacked less looks better for it."
)

_PLAIN_P_NOTE = (
    "p is of each row by itself: of twenty rows without a difference, chance puts one below 0.05."
)


def comparison_summary(runs: Sequence[ComparedRun], pairs: Sequence[Pair]) -> Iterator[str]:
    """Yields for every two runs how their worst cases differ, then what they were measured on."""
    for pair in pairs:
        yield _pair_sentence(pair)
    yield (
        f"All are of the same {runs[0].image_count:,} test images, SHA-256 "
        f"{runs[0].images_digest[:16]}."
    )


def _pair_sentence(pair: Pair) -> str:
    condition = Condition(ALL_THREATS, WORST_CASE, None)
    worst = next((each for each in pair.differences if each.condition == condition), None)
    if worst is None or worst.p_value is None:
        return f"{pair.first.name} and {pair.second.name} have no worst case to compare."
    relation = "= " if worst.p_value >= _SMALLEST_P else ""
    sentence = (
        f"After every attack {pair.first.name} is right on {per_cent(worst.first_accuracy)} and "
        f"{pair.second.name} on {per_cent(worst.second_accuracy)} of {worst.examples:,} images: "
        f"{_points(worst.difference)} points, exact McNemar p {relation}{_p_value(worst.p_value)}."
    )
    unlike = attacks_differ(pair, ALL_THREATS)
    return f"{sentence} They were not attacked alike." if unlike else sentence


def comparison_sections(
    runs: Sequence[ComparedRun],
    pairs: Sequence[Pair],
    settings: Sequence[tuple[str, Sequence[Any]]],
) -> tuple[Section, ...]:
    """Returns the sections: all runs side by side, every two runs, settings that differ, origin.

    Args:
        runs: The runs.
        pairs: What `sfm_tf.report.comparison.compare_runs` returned.
        settings: What `differing_settings` yields.
    """
    names = [run.name for run in runs]
    rows = [(name, *map(_setting_text, values)) for name, values in settings]
    differ = plain_table("Settings, seeds and versions that differ", ("Setting", *names), rows)
    same = ("All settings, seeds and versions are the same.",)
    return (
        Section("Side by side", tables=(_side_by_side(runs),)),
        *map(_pair_section, pairs),
        Section("Settings that differ", () if rows else same, (differ,) if rows else ()),
        Section("Where the figures are from", tables=(_origin_table(runs),)),
    )


def differing_settings(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, list[Any]]]:
    """Yields settings, seeds and versions that are not the same in all runs.

    Args:
        runs: The runs.

    Yields:
        The name, `<stage>: <section>.<setting>`, and a value for each run; None where it has none.
    """
    known = [dict(run_settings(run)) for run in runs]
    for name in dict.fromkeys(itertools.chain(*known)):
        values = [each.get(name) for each in known]
        if any(value != values[0] for value in values[1:]):
            yield name, values


def run_settings(run: ComparedRun) -> Iterator[tuple[str, Any]]:
    """Yields what a run was made with: settings, seeds and versions, by name, stage by stage."""
    for manifest in run.manifests:
        for section, values in manifest.config.items():
            yield from ((f"{manifest.stage}: {section}.{n}", v) for n, v in values.items())
        yield f"{manifest.stage}: seed", manifest.seed
        yield f"{manifest.stage}: code version", manifest.code_version[:16]
        for package, version in manifest.package_versions.items():
            yield f"{manifest.stage}: {package}", version


def _setting_text(value: Any) -> str:
    return "no such setting" if value is None else json.dumps(value)


def _side_by_side(runs: Sequence[ComparedRun]) -> Table:
    rows = [
        Row("Verdict", tuple(Cell(verdict_name(run)) for run in runs)),
        Row("Clean accuracy", tuple(_clean_cell(run, run.subject) for run in runs)),
        Row("Clean accuracy of no defence", tuple(_clean_cell(run, UNDEFENDED) for run in runs)),
        *_worst_case_rows(runs),
        Row(
            "Seconds per 1,000 images",
            tuple(_cost_cell(r, "seconds_per_1000_images") for r in runs),
        ),
        Row("Time to no defence", tuple(_cost_cell(r, "relative_to_undefended") for r in runs)),
    ]
    title = "Accuracies with their 95% intervals, and what an answer costs"
    return Table(title, ("Figure", *(run.name for run in runs)), tuple(rows))


def verdict_name(run: ComparedRun) -> str:
    """Returns `BLESSED` or `NOT_BLESSED`."""
    return BLESSED_FILE if run.blessing.blessed else NOT_BLESSED_FILE


def _clean_cell(run: ComparedRun, defence: str) -> Cell:
    return accuracy_cell(find_entry(run.metrics["clean"], defence=defence))


def _worst_case_rows(runs: Sequence[ComparedRun]) -> Iterator[Row]:
    for threat_model, name in _THREAT_MODELS.items():
        entries = [
            find_entry(
                run.metrics["worst_case"],
                defence=run.subject,
                threat_model=threat_model,
                epsilon=None,
            )
            for run in runs
        ]
        if any(entries):
            yield Row(f"Worst case, {name}", tuple(map(accuracy_cell, entries)))


def _cost_cell(run: ComparedRun, figure: str) -> Cell:
    entry = find_entry(run.costs, defence=run.subject)
    value = None if entry is None else entry[figure]
    return Cell(NOT_RUN if value is None else f"{value:.3g}")


def _pair_section(pair: Pair) -> Section:
    title = f"{pair.first.name} and {pair.second.name}"
    worst = [each for each in pair.differences if each.condition.attack == WORST_CASE]
    plain = [each for each in pair.differences if each.condition.attack != WORST_CASE]
    return Section(
        title,
        (_PAIRED_NOTE, *_unlike(pair), _WORST_CASE_NOTE, _PLAIN_P_NOTE),
        (
            _difference_table(f"{title}: worst case per image", pair, worst, corrected=True),
            _difference_table(f"{title}: each attack", pair, plain, corrected=False),
        ),
    )


def _unlike(pair: Pair) -> Iterator[str]:
    names = [n for value, n in THREAT_MODEL_NAMES.items() if attacks_differ(pair, value)]
    if names:
        yield _UNLIKE_NOTE.format(names=", ".join(names))


def _difference_table(
    title: str, pair: Pair, differences: Sequence[Difference], *, corrected: bool
) -> Table:
    names = pair.first.name, pair.second.name
    heads = ("Images", *names, "difference in points", *(f"right only: {name}" for name in names))
    columns = ("Accuracy", *heads, "p", *(("Holm's p",) if corrected else ()))
    rows = tuple(
        Row(condition_name(each.condition), tuple(_difference_cells(each, corrected)))
        for each in differences
    )
    return Table(title, columns, rows)


def _difference_cells(each: Difference, corrected: bool) -> Iterator[Cell]:
    yield Cell(f"{each.examples:,}")
    for accuracy in (each.first_accuracy, each.second_accuracy):
        yield Cell(NOT_RUN if accuracy is None else per_cent(accuracy))
    for value, write in (
        (each.difference, _points),
        (each.only_first_right, "{:,}".format),
        (each.only_second_right, "{:,}".format),
        (each.p_value, _p_value),
        *(((each.holm_p_value, _p_value),) if corrected else ()),
    ):
        yield Cell(NOT_RUN if value is None else write(value))


def condition_name(condition: Condition) -> str:
    """Returns what was done to the images, in the report's words."""
    if condition.attack == CLEAN:
        return "clean"
    radius = "all radii" if condition.epsilon is None else f"{condition.epsilon:g}/255"
    threat_model = _THREAT_MODELS[condition.threat_model]
    if condition.attack == WORST_CASE:
        return f"{threat_model}, {radius}"
    return f"{threat_model}, {attack_name(condition.attack)} {radius}"


def _points(difference: float) -> str:
    return f"{100.0 * difference:+.1f}"


def _p_value(value: float) -> str:
    return f"< {_SMALLEST_P:.4f}" if value < _SMALLEST_P else f"{value:.4f}"


def _origin_table(runs: Sequence[ComparedRun]) -> Table:
    columns = ("Run", "working directory", "experiment", "evaluation", "started (UTC)")
    rows = (
        (
            run.name,
            run.workdir,
            run.experiment,
            run.manifests[-1].fingerprint[:16],
            run.manifests[-1].started,
        )
        for run in runs
    )
    return plain_table("Evaluations", columns, rows)


_SEED = ": seed"
"""What the name of a stage's seed ends with among the settings of a run."""

_NOTE = (
    "Each row is the accuracy of the evaluated model, over the runs. The standard deviation is "
    "that of a sample, whose squares are divided by one less than there are runs; of a few runs it "
    "is a rough guess."
)


@dataclasses.dataclass(frozen=True)
class Spread:
    """One accuracy over several runs; all figures but the condition are shares of images.

    Attributes:
        condition: What was done to the images.
        mean: Mean over the runs.
        standard_deviation: Of the sample: the squares are divided by one less than there are runs.
        minimum: The smallest.
        maximum: The largest.
    """

    condition: Condition
    mean: float
    standard_deviation: float
    minimum: float
    maximum: float


@dataclasses.dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in nothing but the seed.

    Attributes:
        runs: Two or more, no two with the same seeds.
        stages: The stages whose seeds differ.
        spreads: Worst cases, clean, then attacks.
    """

    runs: tuple[ComparedRun, ...]
    stages: tuple[str, ...]
    spreads: tuple[Spread, ...]


def seed_groups(runs: Sequence[ComparedRun]) -> tuple[SeedGroup, ...]:
    """Returns the runs that differ in nothing but the seed, those of like settings together.

    Args:
        runs: Two or more, which `sfm_tf.report.comparison.check_runs` accepts. One with the same
            settings and seeds as one before it is the same run again, and is left out.
    """
    alike: dict[frozenset[tuple[str, str]], dict[tuple[tuple[str, str], ...], ComparedRun]] = {}
    for run in runs:
        seeds, others = _split_settings(run)
        alike.setdefault(frozenset(others.items()), {}).setdefault(tuple(seeds.items()), run)
    return tuple(_group(tuple(group.values())) for group in alike.values() if len(group) > 1)


def _split_settings(run: ComparedRun) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the seeds by stage, and all else that was set, as text."""
    seeds, others = {}, {"subject": run.subject}
    for name, value in run_settings(run):
        if name.endswith(_SEED):
            seeds[name.removesuffix(_SEED)] = repr(value)
        else:
            others[name] = repr(value)
    return seeds, others


def _group(runs: tuple[ComparedRun, ...]) -> SeedGroup:
    seeds = [_split_settings(run)[0] for run in runs]
    stages = tuple(stage for stage in seeds[0] if len({each[stage] for each in seeds}) > 1)
    accuracies = [_accuracies(run) for run in runs]
    spreads = tuple(
        _spread(condition, [each[condition] for each in accuracies])
        for condition in accuracies[0]
        if all(condition in each for each in accuracies)
    )
    return SeedGroup(runs, stages, spreads)


def _accuracies(run: ComparedRun) -> dict[Condition, float]:
    return {
        condition: float(np.mean(answers[answers != NOT_ATTACKED] == RIGHT))
        for condition, answers in subject_answers(run).items()
    }


def _spread(condition: Condition, accuracies: Iterable[float]) -> Spread:
    values = np.fromiter(accuracies, np.float64)
    figures = (values.mean(), values.std(ddof=1), values.min(), values.max())
    return Spread(condition, *map(float, figures))


def seed_sentences(groups: Iterable[SeedGroup]) -> Iterator[str]:
    """Yields for each group how far its worst case scatters; nothing where it was not measured."""
    headline = Condition(ALL_THREATS, WORST_CASE, None)
    for group in groups:
        for spread in group.spreads:
            if spread.condition == headline:
                yield (
                    f"Over {len(group.runs)} seeds ({_names(group)}) the accuracy after every "
                    f"attack is {per_cent(spread.mean)} in the mean, with a standard deviation of "
                    f"{_points(spread.standard_deviation)} points, from "
                    f"{per_cent(spread.minimum)} to {per_cent(spread.maximum)}."
                )


def seed_section(group: SeedGroup) -> Section:
    """Returns the spread of each accuracy over the runs of a group."""
    rows = (
        (
            condition_name(spread.condition),
            per_cent(spread.mean),
            _seed_spread_points(spread.standard_deviation),
            per_cent(spread.minimum),
            per_cent(spread.maximum),
        )
        for spread in group.spreads
    )
    columns = ("Accuracy", "mean", "standard deviation in points", "smallest", "largest")
    title = f"Spread over the seeds of {_names(group)}"
    told = f"These runs differ in nothing but the seed of {' and '.join(group.stages)}: {{}}."
    seeds = (f"{run.name} has {_told_seeds(run, group.stages)}" for run in group.runs)
    return Section(
        title,
        (told.format("; ".join(seeds)), _NOTE),
        (plain_table("Accuracy over the seeds", columns, rows),),
    )


def _told_seeds(run: ComparedRun, stages: Sequence[str]) -> str:
    seeds: Mapping[str, str] = _split_settings(run)[0]
    return ", ".join(dict.fromkeys(seeds[stage] for stage in stages))


def _names(group: SeedGroup) -> str:
    return ", ".join(run.name for run in group.runs)


def _seed_spread_points(share: float) -> str:
    return f"{100.0 * share:.1f}"
