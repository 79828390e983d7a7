"""The images that a report shows, from the trained models and the stored attacks."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.adversarial_store import AdversarialStore, StoredSet
from sfm_tf.evaluation.attack_catalogue import ATTACKS
from sfm_tf.evaluation.results import CLEAN, ResultsTable
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.report.figures import ReportFigure, draw_grid, plain_words, render_figure
from sfm_tf.report.report_inputs import FailureGallery, Gallery, PerceivedPerturbation, Perturbation
from sfm_tf.report.tables import Cell, Row, Table, attack_name, per_cent, plain_table
from sfm_tf.settings import PIXEL_LEVELS


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
    alternative_text = (
        f"{len(complete.images)} test images in columns; from top to bottom the input, then mask "
        f"and defended image of each training. Mean of the masks: {means}."
    )
    return render_figure(draw_grid(rows), name, caption, alternative_text)


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
    alternative_text = (
        f"{len(perceived.undefended)} test images in columns; from top to bottom the clean image "
        f"and the magnified perturbation. Mean size of the perturbation: {sizes}."
    )
    return render_figure(draw_grid(rows), name, caption, alternative_text)


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


def perturbations(
    store: AdversarialStore,
    subject: str,
    settings: EvaluationConfig,
    images: np.ndarray,
    count: int,
) -> Iterator[Perturbation]:
    """Yields, for each threat model, images under the last attack at the largest radius.

    Args:
        store: The adversarial images of the evaluation.
        subject: The defence that the evaluation is about.
        settings: What the evaluation ran with.
        images: All images it ran on, shape `(examples, height, width, channels)`.
        count: Most images of each.

    Raises:
        SfmError: If stored images are gone or damaged.
    """
    epsilon = max(settings.epsilons)
    last = {
        entry.threat_model: entry
        for entry in store.read_index()
        if (entry.defence, entry.epsilon) == (subject, epsilon)
    }
    for entry in last.values():
        yield _perturbation(store, entry, epsilon, images, count, settings)


def strongest_knowledge(
    store: AdversarialStore,
    subject: str,
    settings: EvaluationConfig,
    images: np.ndarray,
    count: int,
) -> Perturbation | None:
    """Returns images under the attacker who knows most, at the smallest radius.

    Args:
        store: The adversarial images of the evaluation.
        subject: The defence that the evaluation is about.
        settings: What the evaluation ran with.
        images: All images it ran on, shape `(examples, height, width, channels)`.
        count: Most images returned.

    Returns:
        Those of PGD, or else of the last attack, in the white box or else in the gray box; None
        where neither was run.

    Raises:
        SfmError: If stored images are gone or damaged.
    """
    epsilon = min(settings.epsilons)
    usable = [
        entry
        for entry in store.read_index()
        if (entry.defence, entry.epsilon) == (subject, epsilon)
        and entry.threat_model in ("white_box", "gray_box")
    ]
    if not usable:
        return None
    chosen = max(usable, key=lambda e: (e.threat_model == "white_box", e.attack == "pgd"))
    return _perturbation(store, chosen, epsilon, images, count, settings)


def failure_images(
    store: AdversarialStore,
    subject: str,
    settings: EvaluationConfig,
    images: np.ndarray,
    failures: Sequence[Mapping[str, Any]],
) -> FailureGallery:
    """Returns the worst failures with their images.

    Args:
        store: The adversarial images of the evaluation.
        subject: The defence that the evaluation is about.
        settings: What the evaluation ran with.
        images: All images it ran on, shape `(examples, height, width, channels)`.
        failures: What `sfm_tf.report.example_images.find_failures` returned.

    Raises:
        SfmError: If stored images are gone or damaged.
    """
    index = {
        (entry.threat_model, entry.attack, entry.epsilon): entry
        for entry in store.read_index()
        if entry.defence == subject
    }
    # An attack that finds its own radius is stored once, under none.
    entries = [
        index.get((*key, failure["epsilon"])) or index[(*key, None)]
        for failure in failures
        for key in [(failure["threat_model"], failure["attack"])]
    ]
    outcomes = {
        entry.name: _read(store, entry, images, settings)
        for entry in {entry.name: entry for entry in entries}.values()
    }
    places = [failure["image_index"] for failure in failures]
    adversarial = [
        outcomes[entry.name][place] for entry, place in zip(entries, places, strict=True)
    ]
    clean = images[np.array(places, int)]
    return FailureGallery(failures, clean, np.reshape(adversarial, clean.shape).astype(np.float32))


def _perturbation(
    store: AdversarialStore,
    entry: StoredSet,
    epsilon: float,
    images: np.ndarray,
    count: int,
    settings: EvaluationConfig,
) -> Perturbation:
    adversarial = _read(store, entry, images, settings)[:count]
    shown = images[: len(adversarial)]
    return Perturbation(entry.threat_model, entry.attack, epsilon, shown, adversarial)


def _read(
    store: AdversarialStore, entry: StoredSet, images: np.ndarray, settings: EvaluationConfig
) -> np.ndarray:
    # A slow attack was given the first few images only.
    slow = ATTACKS[entry.attack].is_slow
    count = min(settings.decision_examples, len(images)) if slow else len(images)
    outcome = store.read(entry.name, (count, *images.shape[1:]))
    if outcome is None:
        raise SfmError(f"{store.path(entry.name)} is gone; run the evaluation with --force.")
    return outcome.images
