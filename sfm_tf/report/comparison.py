"""Runs on the same images, compared image by image."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.artifacts.manifest import Manifest
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.audit.audited_evaluation import (
    COSTS_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    evaluation_settings,
)
from sfm_tf.audit.blessing import Blessing, read_blessing
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.paired_answers import (
    ALL_THREATS,
    NOT_ATTACKED,
    RIGHT,
    WORST_CASE,
    Condition,
    right_answers,
    worst_answers,
)
from sfm_tf.evaluation.results import CLEAN, ResultsTable, read_results
from sfm_tf.evaluation.samples import Samples
from sfm_tf.evaluation.significance import exact_mcnemar, holm
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """The latest evaluation of a working directory.

    Attributes:
        name: What the run is called beside the others.
        workdir: The working directory, as it was given.
        experiment: Name of the experiment that owns it.
        images_digest: SHA-256 of the evaluated images and their labels, in hexadecimal.
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
        results: The rows it was made from.
        blessing: The verdict.
        costs: What `sfm_tf.evaluation.runner.measure_costs` returned; empty where it was not run.
        manifests: Manifests of the stages it was made by, in the order they ran.
    """

    name: str
    workdir: str
    experiment: str
    images_digest: str
    metrics: Mapping[str, Any]
    results: ResultsTable
    blessing: Blessing
    costs: Sequence[Mapping[str, Any]]
    manifests: Sequence[Manifest]

    @property
    def subject(self) -> str:
        """Name of the model that the evaluation is about."""
        return self.metrics["subject"]

    @property
    def image_count(self) -> int:
        """Number of evaluated images."""
        return next(e["examples"] for e in self.metrics["clean"] if e["defence"] == self.subject)


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
        metrics=read_json(evaluation.folder / METRICS_FILE),
        results=read_results(evaluation.folder / RESULTS_FILE),
        blessing=read_blessing(evaluation.folder),
        costs=read_json(costs) if costs.exists() else (),
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
        if first.images_digest != other.images_digest or not _same_labels(first, other):
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


def _same_labels(first: ComparedRun, second: ComparedRun) -> bool:
    tables = (_clean(run) for run in (first, second))
    labels = (table.sort_by("image_index")["label"].to_numpy() for table in tables)
    return np.array_equal(*labels)


def _clean(run: ComparedRun) -> ResultsTable:
    of_subject = pc.equal(run.results["defence"], run.subject)
    return run.results.filter(pc.and_(of_subject, pc.equal(run.results["attack"], CLEAN)))


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
