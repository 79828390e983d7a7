"""How far accuracies scatter over runs that differ in nothing but the seed."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from sfm_tf.evaluation.metrics import ALL_THREATS
from sfm_tf.evaluation.right_answers import NOT_ATTACKED, RIGHT, WORST_CASE, Condition
from sfm_tf.report.comparison import ComparedRun, subject_answers
from sfm_tf.report.comparison_sections import condition_name, run_settings
from sfm_tf.report.section import Section
from sfm_tf.report.tables import per_cent, plain_table

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
            _points(spread.standard_deviation),
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


def _points(share: float) -> str:
    return f"{100.0 * share:.1f}"
