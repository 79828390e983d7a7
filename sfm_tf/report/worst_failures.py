"""The images that it took an attack least to turn wrong."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sfm_tf.choices import PIXEL_LEVELS
from sfm_tf.evaluation.results import CLEAN, ResultsTable
from sfm_tf.report.figures import ReportFigure, render_figure
from sfm_tf.report.image_grid import draw_grid, plain_words
from sfm_tf.report.report_inputs import FailureGallery
from sfm_tf.report.tables import Table, attack_name, plain_table

_SIZES: Mapping[str, str] = {"inf": "linf", "2": "l2"}

_DECIMALS = 2
"""Of a size in 1/255: perturbations of the whole radius differ by float32's rounding."""


def find_failures(
    results: ResultsTable, subject: str, norm: str, class_names: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Returns the worst failures, each of another image.

    Those are images that were right without an attack and wrong after it: with the smallest
    perturbation first, and of equal ones with the highest loss on the attacked model.

    Args:
        results: Rows as `sfm_tf.evaluation.results.SCHEMA` describes them.
        subject: The defence that the evaluation is about.
        norm: Norm that bounds the perturbations, `inf` or `2`.
        class_names: Names of the classes, by their indices.
        count: Most failures returned.

    Returns:
        For each its `image_index`, `label` and `prediction` as names, the `threat_model`, `attack`
        and `epsilon` in 1/255 that won, the `size` of the perturbation in 1/255, and the `loss`.
    """
    rows = _failed(results, subject)
    sizes = np.round(PIXEL_LEVELS * rows[_SIZES[norm]].to_numpy(), _DECIMALS)
    order = np.lexsort((-rows["loss"].to_numpy(), sizes))
    _, first = np.unique(rows["image_index"].to_numpy()[order], return_index=True)
    places = order[np.sort(first)[:count]]
    return [
        {
            **{key: row[key] for key in ("image_index", "threat_model", "attack", "epsilon")},
            **{key: class_names[row[key]] for key in ("label", "prediction")},
            "size": float(sizes[place]),
            "loss": row["loss"],
        }
        for place, row in zip(places, rows.take(places).to_pylist(), strict=True)
    ]


def _failed(results: ResultsTable, subject: str) -> ResultsTable:
    conditions = (
        pc.equal(results["defence"], subject),
        pc.not_equal(results["attack"], CLEAN),
        pc.invert(pc.is_inf(results["epsilon"])),
        pc.equal(results["clean_prediction"], results["label"]),
        pc.not_equal(results["prediction"], results["label"]),
    )
    return results.filter(functools.reduce(pc.and_, conditions))


def failure_table(
    failures: Sequence[Mapping[str, Any]], threat_models: Mapping[str, str], norm: str
) -> Table:
    """Returns the worst failures as a table.

    Args:
        failures: What `find_failures` returned.
        threat_models: Names of the threat models in words.
        norm: Norm that bounds the perturbations, `inf` or `2`.
    """
    size = {"inf": "L∞ in 1/255", "2": "L2 in 1/255"}[norm]
    return plain_table(
        "Worst failures",
        ("Test image", "class", "predicted", "attack that won", "radius", size, "loss"),
        (
            (
                f"number {failure['image_index']}",
                failure["label"],
                failure["prediction"],
                f"{attack_name(failure['attack'])}, {threat_models[failure['threat_model']]}",
                f"{failure['epsilon']:g}/255",
                f"{failure['size']:.2f}",
                f"{failure['loss']:.3g}",
            )
            for failure in failures
        ),
    )


def failure_gallery(name: str, gallery: FailureGallery) -> ReportFigure:
    """Draws the worst failures: clean, adversarial and the magnified difference.

    Args:
        name: Stem of the file names.
        gallery: At least one failure with its images.

    Returns:
        The figure; below each column the class, what it is taken for, and the attack that won.
    """
    changes = gallery.adversarial_images - gallery.images
    largest = float(np.max(np.abs(changes)))
    scale = 0.5 / largest if largest else 1.0
    rows = {
        "clean": gallery.images,
        "adversarial": gallery.adversarial_images,
        f"perturbation\n× {scale:.1f}": 0.5 + scale * changes,
    }
    captions = [_caption(failure) for failure in gallery.failures]
    caption = (
        "Worst failures: images that were right and that the smallest perturbations turned wrong, "
        "of equal ones those with the highest loss. Below each its class, what it is taken for and "
        f"the attack that won; the difference is multiplied by {scale:.1f} around mid-grey."
    )
    spoken = ", ".join(
        f"{failure['label']} taken for {failure['prediction']} after "
        f"{attack_name(failure['attack'])}"
        for failure in gallery.failures
    )
    alternative_text = (
        f"{len(captions)} test images in columns; from top to bottom the clean image, the "
        f"adversarial image and the magnified perturbation. {spoken}."
    )
    return render_figure(draw_grid(rows, captions), name, caption, alternative_text)


def _caption(failure: Mapping[str, Any]) -> str:
    lines = (
        plain_words(failure["label"]),
        f"→ {plain_words(failure['prediction'])}",
        plain_words(attack_name(failure["attack"])),
        f"{failure['epsilon']:g}/255",
    )
    return "\n".join(lines)
