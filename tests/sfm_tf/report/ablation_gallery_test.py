import numpy as np
import pytest

from sfm_tf.report.ablation_gallery import ablation_gallery
from sfm_tf.report.report_inputs import Gallery

IMAGES = np.random.default_rng(0).random((3, 4, 4, 3)).astype(np.float32)


def _gallery(mask: float) -> Gallery:
    masks = np.full((3, 4, 4, 1), mask, np.float32)
    return Gallery(IMAGES, masks, masks * IMAGES, masks * IMAGES)


def test_every_training_has_its_row_and_the_complete_one_comes_last():
    ablations = {"no semantic loss": _gallery(0.25), "no reconstruction loss": _gallery(0.0)}
    figure = ablation_gallery("ablations", _gallery(0.5), ablations)
    assert "no semantic loss, no reconstruction loss, and after the complete" in figure.caption
    assert figure.alternative_text.endswith(
        "no semantic loss 0.25, no reconstruction loss 0.00, complete 0.50."
    )
    assert figure.png.startswith(b"\x89PNG")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
