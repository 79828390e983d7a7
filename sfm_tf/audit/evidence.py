"""What an evaluation left that tells whether to believe it."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sfm_tf.audit.probes.measurements import Probes, Repeatability
from sfm_tf.evaluation.metrics import Metrics
from sfm_tf.evaluation.results import CLEAN, ResultsTable
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.significance import exact_mcnemar

GRADIENT_ATTACKERS = ("white_box", "adaptive")
"""Threat models whose attacker differentiates the very model that is scored."""

CHANCE = 0.001
"""Level of the tests whether a random model answers the same images otherwise by more than chance:
small, for some ten such tests are made of a model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything the audit looks at; it measures nothing itself.

    Attributes:
        metrics: What `sfm_tf.evaluation.metrics.summarise` returned.
        results: The rows it was made from.
        probes: What `sfm_tf.audit.probes.suite.run_probes` returned; None where it was not
            run.
        config: Settings the evaluation ran with.
        class_counts: How many of the evaluated images are of each class, by class name; 0 for a
            class that is not among them.
        repeatability: What `sfm_tf.audit.probes.repeatability.measure_repeatability` returned;
            empty where the model was not asked again.
        packages: Versions by package; empty where nobody recorded them.
        seed: Seed of the attacks; None where nobody recorded it.
    """

    metrics: Metrics
    results: ResultsTable
    probes: Probes | None
    config: EvaluationConfig
    class_counts: Mapping[str, int]
    repeatability: Mapping[str, Repeatability] = dataclasses.field(default_factory=dict)
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seed: int | None = None

    @property
    def subject(self) -> str:
        """Name of the model that the evaluation is about."""
        return self.metrics.subject

    @property
    def epsilon(self) -> float:
        """The largest radius, in 1/255."""
        return max(self.config.epsilons)

    @property
    def is_random(self) -> bool:
        """Whether the subject, or what is attacked of it, draws anew for equal images."""
        return any(found.kind == "random" for found in self.repeatability.values())

    @property
    def averages_draws(self) -> bool:
        """Whether attacks in the white box average over draws (EOT)."""
        return self.config.gradient_samples > 1 or "autoattack_rand" in self.attacks(("white_box",))

    def clean_answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns labels and the subject's predictions without an attack, integers `(count,)`."""
        rows = self._rows(pc.equal(self.results["attack"], CLEAN)).sort_by("image_index")
        return rows["label"].to_numpy(), rows["prediction"].to_numpy()

    def clean(self) -> np.ndarray:
        """Returns whether the subject is right on each image without an attack, bool `(count,)`."""
        labels, predictions = self.clean_answers()
        return labels == predictions

    def left(self) -> np.ndarray | None:
        """Returns whether the subject is right on each probed image after all that knew it.

        These are the evaluation's attacks at the largest radius, and the PGD of the probes.

        Returns:
            Bool `(count,)`; None without probes.
        """
        if self.probes is None:
            return None
        base = self.probes.convergence.base.right_images()
        right = self.right(GRADIENT_ATTACKERS, self.epsilon)
        return base if right is None else base & right[: len(base)]

    def right(
        self,
        threat_models: Collection[str],
        epsilon: float,
        attacks: Collection[str] | None = None,
    ) -> np.ndarray | None:
        """Returns whether the subject is right after every attack of a group.

        Args:
            threat_models: Threat models of the group.
            epsilon: Its radius, in 1/255.
            attacks: Its attacks; None for all.

        Returns:
            Bool `(count,)`, also false where the subject is wrong without an attack; None where no
            such attack was run. An image that none was run on counts as it is without one.
        """
        group = pc.and_(
            pc.is_in(self.results["threat_model"], _strings(threat_models)),
            pc.equal(self.results["epsilon"], float(epsilon)),
        )
        if attacks is not None:
            group = pc.and_(group, pc.is_in(self.results["attack"], _strings(attacks)))
        rows = self._rows(group)
        if not rows.num_rows:
            return None
        right = self.clean()
        np.logical_and.at(right, rows["image_index"].to_numpy(), _right(rows))
        return right

    def broken_beyond(self, stronger: np.ndarray, weaker: np.ndarray) -> int:
        """Counts the images that the weaker of two attacks breaks and the stronger does not.

        Each answer of a random model is another draw, so that either attack breaks images that the
        other one leaves. Of those only what is more than chance counts.

        Args:
            stronger: Bool `(count,)`: whether the subject is right after the stronger attack.
            weaker: The same after the weaker one.
        """
        test = exact_mcnemar(stronger, weaker)
        broken, spared = test["only_first_right"], test["only_second_right"]
        if not self.is_random:
            return broken
        return max(0, broken - spared) if test["p_value"] < CHANCE else 0

    def attacks(self, threat_models: Collection[str]) -> tuple[str, ...]:
        """Returns the attacks that were run on the subject under some threat models."""
        names = (
            entry.attack
            for entry in (*self.metrics.under_attack, *self.metrics.minimum_norm)
            if entry.defence == self.subject and entry.threat_model in threat_models
        )
        return tuple(dict.fromkeys(names))

    def examples(self, threat_model: str) -> int:
        """Returns how many images the subject was attacked on, the first ones; 0 for none."""
        counts = (
            entry.examples
            for entry in self.metrics.under_attack
            if (entry.defence, entry.threat_model) == (self.subject, threat_model)
        )
        return max(counts, default=0)

    def _rows(self, condition: pa.ChunkedArray) -> ResultsTable:
        of_subject = pc.equal(self.results["defence"], self.subject)
        return self.results.filter(pc.and_(of_subject, condition))


def _strings(values: Collection[str]) -> pa.Array:
    # Without the type an empty list would be one of nulls.
    return pa.array(list(values), pa.string())


def _right(rows: ResultsTable) -> np.ndarray:
    return rows["prediction"].to_numpy() == rows["label"].to_numpy()


def count_classes(
    labels: np.ndarray, class_count: int, class_names: Sequence[str] = ()
) -> dict[str, int]:
    """Returns how many labels are of each class, by its name or else by its index as a string.

    Args:
        labels: Class indices of shape `(count,)`.
        class_count: Number of classes.
        class_names: Their names, if they are known.
    """
    counts = np.bincount(np.asarray(labels, np.int64), minlength=class_count)
    names = class_names or tuple(map(str, range(class_count)))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}
