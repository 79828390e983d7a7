"""What is left of a perturbation where the classifier sees it (Figure 1 of the paper)."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.report.figures import ReportFigure, render_figure
from sfm_tf.report.image_grid import draw_grid
from sfm_tf.report.report_inputs import PerceivedPerturbation, Perturbation


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
