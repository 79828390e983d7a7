"""Whether a model answers alike when it is asked again: measured, for settings cannot tell."""

from collections.abc import Mapping

import numpy as np

from sfm_tf.audit.probes.measurements import Difference, Repeatability
from sfm_tf.evaluation.samples import Samples
from sfm_tf.models.defended_model import DefendedModel

ASKED = 16
"""Images at most that are shown."""

TIMES = 4
"""How often each of them is shown: of four answers of a model that mirrors every other image, all
are alike for one image in eight."""

TOLERANCE = 1e-3
"""What counts as a difference, as a share of the largest logit. A batch of another size sums in
another order, which moves float32 logits by some 1e-5 of the largest; where a rounding turns into a
level of a quantiser before the classifier, by little more. Draws move them by 1e-2 and more."""


def measure_repeatability(
    subject: DefendedModel, samples: Samples, batch_size: int
) -> Mapping[str, Repeatability]:
    """Returns how alike the answers to the same images are, of the model and of what is attacked.

    Args:
        subject: The model under test.
        samples: The images, of which the first are shown.
        batch_size: Most images of a batch; one image is shown `TIMES` times in a batch in any case.

    Returns:
        By `served` for the model whose answers count, and, if that is another one, by `attacked`
        for the model that an attacker runs.
    """
    views = {"served": subject, "attacked": subject.for_attacker()}
    if views["attacked"] is subject:
        del views["attacked"]
    shown = samples.first(ASKED)
    return {name: _measure(model, shown, batch_size) for name, model in views.items()}


def _measure(model: DefendedModel, samples: Samples, batch_size: int) -> Repeatability:
    images, count = samples.images, len(samples)
    size = max(1, min(batch_size, count))
    # All looks at an image have to be in one batch.
    looks_size = TIMES * max(1, batch_size // TIMES)
    predict = samples.wrap(model, looks_size).predict
    looks = predict(np.repeat(images, TIMES, axis=0), looks_size).reshape(count, TIMES, -1)
    calls = np.stack([predict(images, size) for _ in range(TIMES)], axis=1)
    batches = np.stack(
        [
            calls[:, 0],
            predict(images[::-1], size)[::-1],
            predict(images, max(1, size // 2)),
            predict(images, 1),
        ],
        axis=1,
    )
    largest = max(float(np.abs(answers).max()) for answers in (looks, calls, batches))
    return Repeatability(
        examples=count,
        side_by_side=_difference(looks, largest),
        calls=_difference(calls, largest),
        batches=_difference(batches, largest),
        lowest=float(looks.min()),
        highest=float(looks.max()),
    )


def _difference(answers: np.ndarray, largest: float) -> Difference:
    """Compares answers of shape `(count, times, classes)` to the same images."""
    shares = np.ptp(answers, axis=1).max(axis=1) / (largest or 1.0)
    classes = np.argmax(answers, axis=2)
    return Difference(
        images=int(np.sum(~(shares <= TOLERANCE))),
        labels=int(np.sum(np.any(classes != classes[:, :1], axis=1))),
        largest=float(shares.max()),
    )
