"""The images that a report shows, from the trained models and the stored attacks."""

import base64
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import PIL.Image
import pyarrow.compute as pc
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore, StoredSet
from sfm_tf.evaluation.results import CLEAN, ResultsTable
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.evaluation.threat_models import ThreatModel
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.report.charts import ReportFigure, report_figure
from sfm_tf.report.inputs import FailureGallery, Gallery, PerceivedPerturbation, Perturbation
from sfm_tf.report.tables import (
    NO_IMAGE,
    Cell,
    Row,
    Table,
    attack_name,
    per_cent,
    plain_table,
)
from sfm_tf.settings import PIXEL_LEVELS

_BAND = 8
"""Images side by side; more of them continue below."""

_SIDE, _GAP = 64, 4
"""Pixels of the longer side of an image in a figure, and between two images."""

_LONGEST_CAPTION = 14
"""Characters of a line below an image."""


def image_grid(
    rows: Mapping[str, np.ndarray], captions: Sequence[Sequence[str]] = ()
) -> alt.TopLevelMixin:
    """Returns images in a grid, a column for each place in the batches.

    Args:
        rows: Batches by the label of their row, from top to bottom: float in [0, 1], shape
            `(count, height, width, 1 or 3)`; what is beyond is shown as black or white.
        captions: Lines below each column; none where empty.
    """
    count = len(next(iter(rows.values())))
    bands = (slice(start, start + _BAND) for start in range(0, count, _BAND))
    charts = [
        _band({label: images[band] for label, images in rows.items()}, captions[band])
        for band in bands
    ]
    return alt.vconcat(*charts, spacing=2 * _GAP)


def _band(rows: Mapping[str, np.ndarray], captions: Sequence[Sequence[str]]) -> alt.TopLevelMixin:
    height, width = next(iter(rows.values())).shape[1:3]
    scale = _SIDE / max(height, width)
    values = [
        {"row": label, "column": column, "image": _data_address(image)}
        for label, images in rows.items()
        for column, image in enumerate(images)
    ]
    tiles = (
        alt.Chart(alt.Data(values=values))
        .mark_image(width=scale * width, height=scale * height)
        .encode(
            x=alt.X("column:O", axis=None),
            y=alt.Y(
                "row:N",
                sort=list(rows),
                title=None,
                axis=alt.Axis(
                    domain=False,
                    ticks=False,
                    labelLimit=180,
                    labelExpr=r"split(datum.label, '\n')",
                ),
            ),
            url="image:N",
        )
    )
    steps = {"width": alt.Step(scale * width + _GAP), "height": alt.Step(scale * height + _GAP)}
    if not captions:
        return tiles.properties(**steps)
    below = [{"column": column, "lines": list(lines)} for column, lines in enumerate(captions)]
    words = (
        alt.Chart(alt.Data(values=below))
        .mark_text(baseline="top", fontSize=9, lineHeight=11)
        .encode(
            x="column:O",
            y=alt.value(len(rows) * (scale * height + _GAP) + _GAP),
            text="lines:N",
        )
    )
    return alt.layer(tiles, words).properties(**steps)


def _data_address(image: np.ndarray) -> str:
    """Returns an image as a PNG file in a data URL, each of its pixels several of the file's."""
    times = max(1, 2 * _SIDE // max(image.shape[:2]))
    pixels = np.round(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)
    large = pixels.repeat(times, axis=0).repeat(times, axis=1)
    file = io.BytesIO()
    PIL.Image.fromarray(large if large.shape[-1] == 3 else large[..., 0]).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _shortened(text: str) -> str:
    """Returns a name on one line, cut where it is too long to stand below an image."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_CAPTION else f"{line[: _LONGEST_CAPTION - 1]}…"


def _gallery(
    name: str,
    caption: str,
    told: str,
    rows: Mapping[str, np.ndarray],
    captions: Sequence[Sequence[str]] = (),
) -> ReportFigure:
    return report_figure(name, caption, told, image_grid(rows, captions), is_interactive=False)


def defence_gallery(name: str, gallery: Gallery) -> ReportFigure:
    """Draws what the defence does to images (Yu et al. 2022, section 6.6, Figure 4)."""
    rows = {
        "input": gallery.images,
        "mask": gallery.masks,
        "masked": gallery.masked,
        "defended": gallery.defended,
    }
    caption = (
        "What the defence does to test images: input x, mask G(x) with white for kept, masked "
        "image G(x)·x, and defended image T(G(x)·x), which the classifier sees."
    )
    told = (
        f"{len(gallery.images)} test images in columns. The masks' mean is "
        f"{float(np.mean(gallery.masks)):.2f}."
    )
    return _gallery(name, caption, told, rows)


def perturbation_gallery(name: str, attack: str, perturbation: Perturbation) -> ReportFigure:
    """Draws clean images, adversarial images and the difference between them, magnified.

    Args:
        name: Stem of the file names.
        attack: What made the adversarial images, in words.
        perturbation: The images.

    Returns:
        The figure, one column per image.
    """
    epsilon = perturbation.epsilon
    scale = 0.5 * PIXEL_LEVELS / epsilon
    change = perturbation.adversarial_images - perturbation.images
    rows = {
        "clean": perturbation.images,
        "adversarial": perturbation.adversarial_images,
        f"difference\n× {scale:.1f}": 0.5 + scale * change,
    }
    caption = (
        f"{attack}, ε = {epsilon:g}/255: clean image, adversarial image, and their difference "
        f"multiplied by {scale:.1f} around mid-grey, so that ±ε is white or black."
    )
    largest = float(np.max(np.abs(change))) * PIXEL_LEVELS
    told = f"{len(change)} test images in columns. The difference is at most {largest:.1f}/255."
    return _gallery(name, caption, told, rows)


def ablation_gallery(
    name: str, complete: Gallery, ablations: Mapping[str, Gallery]
) -> ReportFigure:
    """Draws the defended images of trainings that lack something, and of the complete one.

    Args:
        name: Stem of the file names.
        complete: Images with what the complete defence makes of them.
        ablations: The same images with what the other trainings make of them, by their names in
            words, such as `no semantic loss`.

    Returns:
        The figure, one column per image (as Yu et al. 2022, section 6.6, Figure 5).
    """
    trainings = {**ablations, "complete": complete}
    rows = {"input": complete.images}
    for label, gallery in trainings.items():
        rows[f"{label}:\nmask"] = gallery.masks
        rows[f"{label}:\ndefended"] = gallery.defended
    caption = (
        "Mask G(x) and defended image T(G(x)·x) after training with "
        f"{', '.join(ablations)}, and after the complete training."
    )
    means = ", ".join(
        f"{label} {float(np.mean(gallery.masks)):.2f}" for label, gallery in trainings.items()
    )
    told = f"{len(complete.images)} test images in columns. Mean of the masks: {means}."
    return _gallery(name, caption, told, rows)


ZERO = 0.05
"""A pixel whose mask is below counts as one that the masker removes."""


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
        return (examples, *[Cell(NO_IMAGE)] * 4)
    return (
        examples,
        Cell(f"{entry['mean']:.3f}"),
        Cell(per_cent(entry["zero_share"])),
        Cell(f"{entry['standard_deviation']:.3f}"),
        Cell(f"{entry['image_deviation']:.3f}"),
    )


def perceive(defended: DefendedModel, perturbation: Perturbation) -> PerceivedPerturbation:
    """Returns the difference that an attack makes before, between and behind the defence's parts.

    Args:
        defended: The defence with masker G and pre-processing T.
        perturbation: Images with what an attack makes of them.
    """
    return PerceivedPerturbation(
        attacked=perturbation,
        undefended=_difference(tf.identity, perturbation),
        preprocessed=_difference(defended.preprocessor, perturbation),
        defended=_difference(defended.defended, perturbation),
        is_random=defended.preprocessor.is_random,
    )


def _difference(part: Callable[[tf.Tensor], tf.Tensor], perturbation: Perturbation) -> np.ndarray:
    clean, adversarial = (
        part(tf.constant(images))
        for images in (perturbation.images, perturbation.adversarial_images)
    )
    return (adversarial - clean).numpy()


def perceived_gallery(
    name: str, attack: str, perceived: PerceivedPerturbation, norm: str = "inf"
) -> ReportFigure:
    """Draws what the classifier sees of a perturbation (as Yu et al. 2022, Figure 1).

    Args:
        name: Stem of the file names.
        attack: What made the adversarial images, in words.
        perceived: The differences.
        norm: Norm that bounds the perturbation, `inf` or `2`.

    Returns:
        The figure, one column per image; all differences are magnified alike.
    """
    differences = {
        "no defence": perceived.undefended,
        "pre-processing": perceived.preprocessed,
        "masker and\npre-processing": perceived.defended,
    }
    largest = float(np.max(np.abs(perceived.undefended)))
    scale = 0.5 / largest if largest else 1.0
    rows = {
        "clean": perceived.attacked.images,
        **{label: 0.5 + scale * change for label, change in differences.items()},
    }
    budget = {"inf": "L∞", "2": "L2"}[norm]
    caption = (
        f"{attack}, ε = {perceived.attacked.epsilon:g}/255 in {budget}: clean image x, and the "
        "perturbation as the classifier sees it without a defence, x' − x; with pre-processing "
        "only, T(x') − T(x); and with the masker too, T(G(x')·x') − T(G(x)·x). Every difference is "
        f"multiplied by {scale:.1f} around mid-grey; what is larger than the largest change of x "
        "is white or black."
    )
    if perceived.is_random:
        caption = f"{caption} T draws, so part of its differences is chance."
    sizes = ", ".join(
        f"{' '.join(label.split())} {255.0 * float(np.mean(np.abs(change))):.2f}/255"
        for label, change in differences.items()
    )
    told = (
        f"{len(perceived.undefended)} test images in columns. Mean size of the perturbation: "
        f"{sizes}."
    )
    return _gallery(name, caption, told, rows)


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
        f"difference\n× {scale:.1f}": 0.5 + scale * changes,
    }
    caption = (
        "Worst failures: images that the model gets right without an attack and wrong after the "
        "smallest perturbation; of equal ones those with the highest loss. Below each image are "
        "its class, the class predicted and the attack; the difference is multiplied by "
        f"{scale:.1f} around mid-grey."
    )
    told = "; ".join(
        f"{failure['label']} taken for {failure['prediction']} after "
        f"{attack_name(failure['attack'])}"
        for failure in gallery.failures
    )
    return _gallery(name, caption, f"{told}.", rows, [*map(_caption, gallery.failures)])


def _caption(failure: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        _shortened(failure["label"]),
        f"→ {_shortened(failure['prediction'])}",
        _shortened(attack_name(failure["attack"])),
        f"{failure['epsilon']:g}/255",
    )


_BATCH = 64


def defence_images(defended: DefendedModel, images: np.ndarray) -> Gallery:
    """Returns images with what the defence makes of them.

    Args:
        defended: The defence.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`.
    """
    tensor = tf.constant(images)
    return Gallery(
        images=images,
        masks=defended.mask(tensor).numpy(),
        masked=defended.masked(tensor).numpy(),
        defended=defended.defended(tensor).numpy(),
    )


def masks_of(defended: DefendedModel, images: np.ndarray) -> np.ndarray:
    """Returns the masks of images, computed in batches.

    Args:
        defended: The defence.
        images: Float32 in [0, 1], shape `(count, height, width, channels)`.

    Returns:
        Float32 in [0, 1], shape `(count, height, width, 1)`.
    """
    starts = range(0, len(images), _BATCH)
    masks = [defended.mask(tf.constant(images[start : start + _BATCH])) for start in starts]
    return np.concatenate([mask.numpy() for mask in masks])


@dataclasses.dataclass(frozen=True)
class StoredAttacks:
    """The stored adversarial images of one defence; each method raises `SfmError` if they are gone.

    Attributes:
        store: The adversarial images of the evaluation.
        subject: The defence that the evaluation is about.
        settings: What the evaluation ran with.
        images: All images it ran on, shape `(examples, height, width, channels)`.
    """

    store: AdversarialStore
    subject: str
    settings: EvaluationConfig
    images: np.ndarray

    def last_attacks(self, count: int) -> list[Perturbation]:
        """Returns, for each threat model, at most `count` images under the last attack.

        They are those at the largest radius.
        """
        epsilon = max(self.settings.epsilons)
        last = {entry.threat_model: entry for entry in self._at(epsilon)}
        return [self._perturbation(entry, epsilon, count) for entry in last.values()]

    def strongest_knowledge(self, count: int) -> Perturbation | None:
        """Returns at most `count` images under the attacker who knows most, at the smallest radius.

        Returns:
            Those of PGD, or else of the last attack, in the white box or else in the gray box; None
            where neither was run.
        """
        epsilon = min(self.settings.epsilons)
        usable = [e for e in self._at(epsilon) if e.threat_model in ("white_box", "gray_box")]
        if not usable:
            return None
        chosen = max(usable, key=lambda e: (e.threat_model == "white_box", e.attack == "pgd"))
        return self._perturbation(chosen, epsilon, count)

    def of_failures(self, failures: Sequence[Mapping[str, Any]]) -> FailureGallery:
        """Returns with their images the failures that `find_failures` returned."""
        index = {(e.threat_model, e.attack, e.epsilon): e for e in self._sets()}
        # An attack that finds its own radius is stored once, under none.
        entries = [
            index.get((*key, failure["epsilon"])) or index[(*key, None)]
            for failure in failures
            for key in [(failure["threat_model"], failure["attack"])]
        ]
        outcomes = {name: self._read(e) for name, e in {e.name: e for e in entries}.items()}
        places = [failure["image_index"] for failure in failures]
        adversarial = [outcomes[e.name][place] for e, place in zip(entries, places, strict=True)]
        clean = self.images[np.array(places, int)]
        changed = np.reshape(adversarial, clean.shape).astype(np.float32)
        return FailureGallery(failures, clean, changed)

    def _sets(self) -> Iterator[StoredSet]:
        return (entry for entry in self.store.read_index() if entry.defence == self.subject)

    def _at(self, epsilon: float) -> list[StoredSet]:
        return [entry for entry in self._sets() if entry.epsilon == epsilon]

    def _perturbation(self, entry: StoredSet, epsilon: float, count: int) -> Perturbation:
        adversarial = self._read(entry)[:count]
        shown = self.images[: len(adversarial)]
        return Perturbation(entry.threat_model, entry.attack, epsilon, shown, adversarial)

    def _read(self, entry: StoredSet) -> np.ndarray:
        # A slow attacker was given the first few images only.
        count = len(self.images)
        if ThreatModel(entry.threat_model).has_few_examples:
            count = min(self.settings.decision_examples, count)
        outcome = self.store.read(entry.name, (count, *self.images.shape[1:]))
        if outcome is None:
            path = self.store.path(entry.name)
            raise SfmError(f"{path} is gone; run the evaluation with --force.")
        return outcome.images
