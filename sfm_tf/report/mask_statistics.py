"""How much of an image the masks let through, over all and for each class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.report.tables import Cell, Row, Table, per_cent

ZERO = 0.05
"""A pixel whose mask is below counts as one that the masker removes."""

_NO_IMAGE = "no image"


def mask_statistics(
    masks: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns what the masks of some images are like.

    Args:
        masks: G(x), float in [0, 1], shape `(count, height, width, 1)`.
        labels: Class indices of shape `(count,)`.
        class_names: Names of the classes, by their indices.

    Returns:
        Values that JSON can hold: over all pixels `examples`, the number of masks, `mean`,
        `standard_deviation`, `zero_share`, the share of pixels below 0.05, and `image_deviation`,
        the standard deviation between the means of single masks; in `per_class` the same with its
        `class`, all but `examples` None where there is no image of it.
    """
    classes = [
        {"class": name, **_figures(masks[labels == place])}
        for place, name in enumerate(class_names)
    ]
    return {**_figures(masks), "per_class": classes}


def _figures(masks: np.ndarray) -> dict[str, Any]:
    if not len(masks):
        names = ("mean", "standard_deviation", "zero_share", "image_deviation")
        return {"examples": 0, **dict.fromkeys(names)}
    values = masks.astype(np.float64)
    return {
        "examples": len(masks),
        "mean": float(values.mean()),
        "standard_deviation": float(values.std()),
        "zero_share": float((masks < ZERO).mean()),
        "image_deviation": float(values.mean(axis=(1, 2, 3)).std()),
    }


def mask_table(statistics: Mapping[str, Any]) -> Table:
    """Returns what `mask_statistics` returned as a table, a row for all images and each class."""
    columns = (
        "Class",
        "images",
        "mean",
        f"below {ZERO:g}",
        "standard deviation of pixels",
        "of images' means",
    )
    rows = (
        Row("all", _cells(statistics)),
        *(Row(entry["class"], _cells(entry)) for entry in statistics["per_class"]),
    )
    return Table("Masks G(x) of clean test images", columns, rows)


def _cells(entry: Mapping[str, Any]) -> tuple[Cell, ...]:
    examples = Cell(f"{entry['examples']:,}")
    if not entry["examples"]:
        return (examples, *[Cell(_NO_IMAGE)] * 4)
    return (
        examples,
        Cell(f"{entry['mean']:.3f}"),
        Cell(per_cent(entry["zero_share"])),
        Cell(f"{entry['standard_deviation']:.3f}"),
        Cell(f"{entry['image_deviation']:.3f}"),
    )
