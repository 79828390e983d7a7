"""A random defence asked several times about the same image."""

from typing import Any

import numpy as np

from sfm_tf.evaluation.probes.answers import answer
from sfm_tf.evaluation.probes.bench import Bench
from sfm_tf.evaluation.probes.setups import Variant
from sfm_tf.models.defended_model import DefendedModel

DRAWS = 5
"""How often each image is shown."""


def probe_draws(bench: Bench, subject: DefendedModel, whole: Variant) -> dict[str, Any]:
    """Returns the answers of a random defence when it draws anew.

    The attacker's copy of the model draws anew for equal images that stand side by side in a batch.

    Args:
        bench: Where it is measured.
        subject: The model under test.
        whole: The same as a variant.

    Returns:
        `clean` and `attacked`, without and under PGD: the answers for each of the draws.
    """
    bench.report("repeated draws")
    images = {"clean": bench.samples.images, "attacked": bench.pgd(whole.attacked).images}
    return {name: _answers(bench, subject, shown) for name, shown in images.items()}


def _answers(bench: Bench, subject: DefendedModel, images: np.ndarray) -> list[dict[str, Any]]:
    # All looks at an image have to be in one batch.
    size = DRAWS * max(1, bench.batch_size // DRAWS)
    classifier = bench.samples.wrap(subject.for_attacker(), size)
    logits = classifier.predict(np.repeat(images, DRAWS, axis=0), size)
    predictions = np.argmax(logits, axis=1).reshape(len(images), DRAWS)
    right = predictions == bench.samples.labels[:, None]
    return [answer(column) for column in right.T]
