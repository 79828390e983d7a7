"""Runs on the same images, compared image by image.

`build_comparison` writes `compare.json` for programs, `compare.md` and `compare.html` for people.

`compare.json` is an object with these keys. A reader may rely on them while `schema_version` is 1;
later versions of the library add keys without changing it.

    schema_version   1
    images           {count, sha256} of the images that every run evaluated, with their labels
    summary          [sentence], a difference that matters most for each two runs
    runs             [{name, workdir, experiment, subject, verdict, fingerprint, metrics,
                     costs}], `metrics` and `costs` as in `report.json`
    pairs            [{first, second, differences}], runs by name; a difference has `threat_model`,
                     `attack` ("clean", "worst_case" or a name), `epsilon` in 1/255 (None for all
                     radii) and what `Difference` says
    spreads          [{runs, stages, rows}], for runs that differ in nothing but the seed of these
                     stages; a row has `threat_model`, `attack` and `epsilon` as a difference does,
                     and of its accuracies `mean`, `standard_deviation` (of the sample), `minimum`
                     and `maximum`
    settings         [{setting, values}] that differ, a value for each run in their order, None
                     where a run has no such setting
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.atomic_files import write_json, write_text
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.artifacts.typed_json import read_typed
from sfm_tf.audit.audited_evaluation import (
    COSTS_FILE,
    RESULTS_FILE,
    evaluation_settings,
    read_metrics,
)
from sfm_tf.audit.blessing import BLESSED_FILE, NOT_BLESSED_FILE, Blessing, read_blessing
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.metrics import Metrics
from sfm_tf.evaluation.paired_answers import (
    ALL_THREATS,
    NOT_ATTACKED,
    RIGHT,
    WORST_CASE,
    Condition,
    right_answers,
    worst_answers,
)
from sfm_tf.evaluation.results import UNDEFENDED, ResultsTable, read_results
from sfm_tf.evaluation.runner import Cost
from sfm_tf.evaluation.samples import Samples
from sfm_tf.evaluation.significance import exact_mcnemar, holm
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.report.document import html_environment, markdown_environment
from sfm_tf.report.sections import Section
from sfm_tf.report.statements import THREAT_MODEL_NAMES, condition_name, threat_model_name
from sfm_tf.report.tables import NOT_RUN, Cell, Row, Table, accuracy_cell, per_cent, plain_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """The latest evaluation of a working directory.

    Attributes:
        name: What the run is called beside the others.
        workdir: The working directory, as it was given.
        experiment: Name of the experiment that owns it.
        images_digest: SHA-256 of the evaluated images and their labels, in hexadecimal.
        metrics: Figures of the evaluation.
        results: The rows it was made from.
        blessing: The verdict.
        costs: What `sfm_tf.evaluation.runner.measure_costs` returned; empty where it was not run.
        manifests: Manifests of the stages it was made by, in the order they ran.
    """

    name: str
    workdir: str
    experiment: str
    images_digest: str
    metrics: Metrics
    results: ResultsTable
    blessing: Blessing
    costs: Sequence[Cost]
    manifests: Sequence[Manifest]

    @property
    def subject(self) -> str:
        """Name of the model that the evaluation is about."""
        return self.metrics.subject

    @property
    def image_count(self) -> int:
        """Number of evaluated images."""
        return next(e.examples for e in self.metrics.clean if e.defence == self.subject)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One accuracy of two runs, on the images that both measured it on.

    Attributes:
        condition: What was done to the images.
        examples: How many images both measured it on, or one where the other did not.
        first_accuracy: Accuracy of the first run on them; None where it did not measure it.
        second_accuracy: The same of the second run.
        difference: The second's minus the first's; None unless both measured it.
        only_first_right: How many images only the first run is right on; None as above.
        only_second_right: How many only the second is right on; None as above.
        p_value: Of the exact McNemar test of no difference; None as above.
        holm_p_value: The same corrected for all worst cases of the two runs (Holm 1979); None of
            anything else.
    """

    condition: Condition
    examples: int
    first_accuracy: float | None
    second_accuracy: float | None
    difference: float | None = None
    only_first_right: int | None = None
    only_second_right: int | None = None
    p_value: float | None = None
    holm_p_value: float | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two runs and the differences between their subjects: worst cases, clean, then attacks."""

    first: ComparedRun
    second: ComparedRun
    differences: tuple[Difference, ...]


def collect_runs(workdirs: Sequence[str], roots: Sequence[RunDirectory]) -> list[ComparedRun]:
    """Reads the latest evaluation of each working directory.

    Args:
        workdirs: The working directories as they were given, two or more different ones.
        roots: The same, opened.

    Raises:
        SfmError: If there are too few, one has no finished evaluation, or they cannot be compared.
    """
    resolved = [root.root.resolve() for root in roots]
    if len(set(resolved)) < max(2, len(resolved)):
        given = ", ".join(workdirs) or "none"
        raise SfmError(f"Cannot compare {given}; give at least two different working directories.")
    names = [path.name for path in resolved]
    runs = [
        _collect_run(name if names.count(name) == 1 else workdir, workdir, root)
        for name, workdir, root in zip(names, workdirs, roots, strict=True)
    ]
    check_runs(runs)
    return runs


def _collect_run(name: str, workdir: str, root: RunDirectory) -> ComparedRun:
    evaluation = root.latest("evaluate")
    inputs = root.inputs_of(evaluation)
    records, costs = inputs["ingest"].folder, evaluation.folder / COSTS_FILE
    schema = read_schema(records)
    images, labels = load_split(
        records, "test", schema, evaluation_settings(evaluation).num_examples
    )
    return ComparedRun(
        name=name,
        workdir=workdir,
        experiment=root.experiment() or "",
        images_digest=Samples(images, labels, len(schema.class_names)).digest(),
        metrics=read_metrics(evaluation),
        results=read_results(evaluation.folder / RESULTS_FILE),
        blessing=read_blessing(evaluation.folder),
        costs=read_typed(tuple[Cost, ...], costs) if costs.exists() else (),
        manifests=[*(made.manifest for made in inputs.values()), evaluation.manifest],
    )


def check_runs(runs: Sequence[ComparedRun]) -> None:
    """Raises `SfmError` unless all runs are of the same images and the same norm."""
    first = runs[0]
    for other in runs[1:]:
        counts = first.image_count, other.image_count
        if counts[0] != counts[1]:
            raise SfmError(
                f"Cannot compare {first.name} with {other.name}: they evaluated {counts[0]:,} and "
                f"{counts[1]:,} images; evaluate both with the same --num_examples."
            )
        if first.images_digest != other.images_digest:
            raise SfmError(
                f"Cannot compare {first.name} with {other.name}: they evaluated different images; "
                "evaluate both on the same dataset, with the same settings and seed of ingest."
            )
        norms = [
            run.manifests[-1].config["evaluation"].get("norm", "inf") for run in (first, other)
        ]
        if norms[0] != norms[1]:
            raise SfmError(
                f"Cannot compare {first.name} with {other.name}: their radii are of the norms "
                f"{norms[0]} and {norms[1]}; evaluate both with the same --norm."
            )


def compare_runs(runs: Sequence[ComparedRun]) -> tuple[Pair, ...]:
    """Returns every two of the runs with the differences between their subjects.

    Args:
        runs: Two or more, which `check_runs` accepts.
    """
    answers = [subject_answers(run) for run in runs]
    return tuple(
        Pair(runs[a], runs[b], tuple(_differences(answers[a], answers[b])))
        for a, b in itertools.combinations(range(len(runs)), 2)
    )


def attacks_differ(pair: Pair, threat_model: str) -> bool:
    """Whether the runs' worst cases under a threat model are over different attacks or radii."""
    return any(
        None in (each.first_accuracy, each.second_accuracy)
        for each in pair.differences
        if each.condition.attack != WORST_CASE
        and threat_model in (each.condition.threat_model, ALL_THREATS)
    )


def subject_answers(run: ComparedRun) -> dict[Condition, np.ndarray]:
    """Returns what the model that the evaluation is about answered under each condition.

    Args:
        run: The run.

    Returns:
        Int8 of shape `(count,)`, as `sfm_tf.evaluation.metrics` defines it: of worst cases
        first, then of clean images, then of each attack.
    """
    answers = right_answers(run.results)
    subject_answers = {
        condition: defences[run.subject]
        for condition, defences in {**worst_answers(answers), **answers}.items()
        if run.subject in defences
    }
    return {
        condition: subject_answers[condition] for condition in sorted(subject_answers, key=_rank)
    }


def _rank(condition: Condition) -> tuple[bool, bool, bool]:
    """Puts first what counts most: all attackers, then each of them, then each radius."""
    return (
        condition.attack != WORST_CASE,
        condition.threat_model != ALL_THREATS,
        condition.epsilon is not None,
    )


def _differences(
    first: Mapping[Condition, np.ndarray], second: Mapping[Condition, np.ndarray]
) -> list[Difference]:
    found = [
        _difference(condition, first.get(condition), second.get(condition))
        for condition in dict.fromkeys((*first, *second))
    ]
    tested = [
        place
        for place, each in enumerate(found)
        if each.condition.attack == WORST_CASE and each.p_value is not None
    ]
    corrected = holm([found[place].p_value for place in tested])
    for place, p_value in zip(tested, corrected, strict=True):
        found[place] = dataclasses.replace(found[place], holm_p_value=p_value)
    return found


def _difference(
    condition: Condition, first: np.ndarray | None, second: np.ndarray | None
) -> Difference:
    if first is None or second is None:
        answers = [None if a is None else a[a != NOT_ATTACKED] == RIGHT for a in (first, second)]
        accuracies = [None if right is None else float(right.mean()) for right in answers]
        (examples,) = (len(right) for right in answers if right is not None)
        return Difference(condition, examples, *accuracies)
    both = (first != NOT_ATTACKED) & (second != NOT_ATTACKED)
    one, other = first[both] == RIGHT, second[both] == RIGHT
    test = exact_mcnemar(one, other)
    difference = (test["only_second_right"] - test["only_first_right"]) / test["examples"]
    accuracies = float(one.mean()), float(other.mean())
    return Difference(
        condition,
        test["examples"],
        *accuracies,
        difference,
        test["only_first_right"],
        test["only_second_right"],
        test["p_value"],
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


_SEED = ": seed"
"""What the name of a stage's seed ends with among the settings of a run."""


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
        runs: Two or more, which `check_runs` accepts. One with the same
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


_SMALLEST_P = 1e-4

_PAIRED_NOTE = (
    "Both runs were scored on the same images, so each row counts the images that only one of them "
    "is right on. p is that of the exact McNemar test: the chance of a split at least as uneven if "
    "neither run were better. The test covers the choice of images, not another training or seed."
)

_WORST_CASE_NOTE = (
    "In the worst case an image counts as right only if the model is right on it without an attack "
    "and after every attack of the row. Holm's p is corrected for all rows of the table."
)

_UNLIKE_NOTE = (
    "The runs were attacked differently ({names}): their worst cases there are over different "
    "attacks or radii, and the run with fewer attacks looks better for it."
)

_PLAIN_P_NOTE = (
    "p of each attack is not corrected: of twenty rows without a difference, one falls below 0.05 "
    "by chance."
)


def comparison_summary(runs: Sequence[ComparedRun], pairs: Sequence[Pair]) -> Iterator[str]:
    """Yields for every two runs how their worst cases differ, then what they were measured on."""
    for pair in pairs:
        yield _pair_sentence(pair)
    yield (
        f"All runs were evaluated on the same {runs[0].image_count:,} test images, SHA-256 "
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
    return f"{sentence} They were attacked differently." if unlike else sentence


def comparison_sections(
    runs: Sequence[ComparedRun],
    pairs: Sequence[Pair],
    settings: Sequence[tuple[str, Sequence[Any]]],
) -> tuple[Section, ...]:
    """Returns the sections: all runs side by side, every two runs, settings that differ, origin.

    Args:
        runs: The runs.
        pairs: What `compare_runs` returned.
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
    return accuracy_cell(run.metrics.clean_accuracy(defence))


def _worst_case_rows(runs: Sequence[ComparedRun]) -> Iterator[Row]:
    for threat_model in (*THREAT_MODEL_NAMES, ALL_THREATS):
        entries = [run.metrics.worst(run.subject, threat_model) for run in runs]
        if any(entries):
            yield Row(
                f"Worst case, {threat_model_name(threat_model)}",
                tuple(map(accuracy_cell, entries)),
            )


def _cost_cell(run: ComparedRun, figure: str) -> Cell:
    value = next((getattr(e, figure) for e in run.costs if e.defence == run.subject), None)
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


_SPREAD_NOTE = (
    "Each row is the accuracy of the evaluated model over the runs. The standard deviation is that "
    "of a sample (divided by the number of runs minus one); for a few runs it is a rough guess."
)


def seed_sentences(groups: Iterable[SeedGroup]) -> Iterator[str]:
    """Yields for each group how far its worst case scatters; nothing where it was not measured."""
    headline = Condition(ALL_THREATS, WORST_CASE, None)
    for group in groups:
        for spread in group.spreads:
            if spread.condition == headline:
                yield (
                    f"Over {len(group.runs)} seeds ({_names(group)}) the accuracy after every "
                    f"attack is {per_cent(spread.mean)} in the mean, with a standard deviation of "
                    f"{100.0 * spread.standard_deviation:.1f} points, from "
                    f"{per_cent(spread.minimum)} to {per_cent(spread.maximum)}."
                )


def seed_section(group: SeedGroup) -> Section:
    """Returns the spread of each accuracy over the runs of a group."""
    rows = (
        (
            condition_name(spread.condition),
            per_cent(spread.mean),
            f"{100.0 * spread.standard_deviation:.1f}",
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
        (told.format("; ".join(seeds)), _SPREAD_NOTE),
        (plain_table("Accuracy over the seeds", columns, rows),),
    )


def _told_seeds(run: ComparedRun, stages: Sequence[str]) -> str:
    seeds: Mapping[str, str] = _split_settings(run)[0]
    return ", ".join(dict.fromkeys(seeds[stage] for stage in stages))


def _names(group: SeedGroup) -> str:
    return ", ".join(run.name for run in group.runs)


SCHEMA_VERSION = 1


def build_comparison(runs: Sequence[ComparedRun], folder: pathlib.Path) -> dict[str, Any]:
    """Writes `compare.json`, `compare.md` and `compare.html`, which needs no other file.

    Args:
        runs: Two or more, as `collect_runs` returned them.
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
            runs=runs, summary=summary, sections=sections, pictures={}
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
        "metrics": dataclasses.asdict(run.metrics),
        "costs": [dataclasses.asdict(cost) for cost in run.costs],
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
