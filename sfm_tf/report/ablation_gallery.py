"""What the defence makes of images when it is trained without a loss (Figure 5 of the paper)."""

from collections.abc import Mapping

import numpy as np

from sfm_tf.report.figures import ReportFigure, render_figure
from sfm_tf.report.image_grid import draw_grid
from sfm_tf.report.report_inputs import Gallery


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
