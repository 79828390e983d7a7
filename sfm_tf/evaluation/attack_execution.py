"""Makes adversarial images batch by batch, so that what is killed goes on where it was."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sfm_tf.artifacts.fingerprints import code_version, fingerprint, package_versions
from sfm_tf.attacks.compiled_attack import AttackOutcome, CompiledAttack, join_outcomes
from sfm_tf.attacks.validity import faults
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore
from sfm_tf.evaluation.samples import Samples
from sfm_tf.models import defended_model

Progress = Callable[[str, int, int], None]
"""Called with a phrase, how many images are done and of how many."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """What earlier attacks left of the images, where only the robust accuracy is wanted.

    Attributes:
        name: Name of the set they made; empty before the first.
        outcome: Their images, one for each sample.
        rows: Indices of the samples that are still classified as labelled.
    """

    name: str
    outcome: AttackOutcome
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class AttackExecution:
    """One attack on one model, with a store that remembers what it made.

    Attributes:
        attack: The attack, its radius set.
        label: The attack's name and radius as a file name may hold them.
        phrase: What the progress line calls it.
        model_digest: Digest of the model that is attacked.
        samples: The images that are attacked.
        store: Where finished sets and batches are kept.
        progress: Told of each batch.
    """

    attack: CompiledAttack
    label: str
    phrase: str
    model_digest: str
    samples: Samples
    store: AdversarialStore
    progress: Progress

    def outcome(self, standing: Standing | None = None) -> tuple[str, AttackOutcome]:
        """Returns the set's name and its images, made now or stored earlier.

        Args:
            standing: Images that earlier attacks have fooled the model with; they are kept as they
                are. None to attack all.

        Raises:
            SfmError: If a stored set is damaged, or memory does not suffice for a single image.
        """
        name = f"{self.label}-{self._fingerprint(standing)[:16]}"
        outcome = self.store.read(name, self.samples.images.shape)
        if outcome is None:
            outcome = self._attack(name, standing)
            self.store.write(name, outcome)
        else:
            self.progress(self.phrase, len(self.samples), len(self.samples))
        radius, norm = self.attack.epsilon, float(self.attack.norm)
        found = faults(self.samples.images, outcome.images, radius, norm)
        if found:
            raise SfmError(
                f"Stored set {self.store.path(name)} is not valid: {'; '.join(found)}. Delete it."
            )
        return name, outcome

    def _fingerprint(self, standing: Standing | None) -> str:
        # The batch size is left out: it changes no image.
        options = [option for option in self.attack.attack_params if option != "batch_size"]
        values: Mapping[str, Any] = {
            "samples": self.samples.digest(),
            "packages": package_versions(),
            "code": code_version(type(self.attack).__module__),
            # The model's digest has its pre-processing by name alone.
            "forward": code_version(defended_model.__name__),
            "model": self.model_digest,
            "attack": type(self.attack).__name__,
            "options": {option: str(getattr(self.attack, option)) for option in options},
            "after": None if standing is None else [standing.name, standing.rows.tolist()],
        }
        return fingerprint(values)

    def _attack(self, name: str, standing: Standing | None) -> AttackOutcome:
        rows = np.arange(len(self.samples)) if standing is None else standing.rows
        outcomes = self.store.read_batches(name, self.samples.images.shape[1:])
        done = sum(len(outcome.images) for outcome in outcomes)
        self.progress(self.phrase, done, len(rows))
        while done < len(rows):
            for outcome in self._batches(rows[done:]):
                self.store.write_batch(name, done, outcome)
                outcomes.append(outcome)
                done += len(outcome.images)
                self.progress(self.phrase, done, len(rows))
        return _merge(outcomes, standing) if standing else join_outcomes(outcomes)

    def _batches(self, rows: np.ndarray) -> Iterator[AttackOutcome]:
        """Yields the outcomes of as many batches as memory allows; halves them where it fails."""
        images, labels = self.samples.images[rows], self.samples.labels[rows]
        try:
            yield from self.attack.batches(images, labels, positions=rows)
        except tf.errors.ResourceExhaustedError as error:
            size = self.attack.batch_size
            if size == 1:
                raise SfmError(
                    f"Out of memory in {self.phrase} with a single image; give a smaller "
                    "--attack_batch_size or use a smaller model."
                ) from error
            self.attack.set_params(batch_size=size // 2)
            phrase = f"{self.phrase}: out of memory at batch {size}, going on with {size // 2}"
            self.progress(phrase, 0, len(rows))


def _merge(outcomes: list[AttackOutcome], standing: Standing) -> AttackOutcome:
    if not outcomes:
        return standing.outcome
    made, merged = join_outcomes(outcomes), {}
    for field in dataclasses.fields(AttackOutcome):
        merged[field.name] = getattr(standing.outcome, field.name).copy()
        merged[field.name][standing.rows] = getattr(made, field.name)
    return AttackOutcome(**merged)
