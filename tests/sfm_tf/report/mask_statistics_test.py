import json
import statistics

import numpy as np
import pytest

from sfm_tf.report.mask_statistics import mask_statistics, mask_table

NAMES = ("cat", "dog", "fish")
LABELS = np.array([0, 1, 0])
# 0.05 itself is not removed.
MASKS = np.array(
    [[[0.0, 1.0], [0.5, 0.5]], [[0.05, 0.05], [0.04, 0.04]], [[1.0, 1.0], [1.0, 1.0]]], np.float64
)[..., None]


def test_figures_of_all_masks_by_hand():
    found = mask_statistics(MASKS, LABELS, NAMES)
    values = MASKS.ravel().tolist()
    assert found["examples"] == 3
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["standard_deviation"] == pytest.approx(statistics.pstdev(values))
    assert found["zero_share"] == pytest.approx(3 / 12)
    assert found["image_deviation"] == pytest.approx(statistics.pstdev([0.5, 0.045, 1.0]))


def test_each_class_has_its_own_and_one_without_images_none():
    cat, dog, fish = mask_statistics(MASKS, LABELS, NAMES)["per_class"]
    assert (cat["class"], cat["examples"], cat["mean"]) == ("cat", 2, pytest.approx(0.75))
    assert (dog["mean"], dog["zero_share"]) == (pytest.approx(0.045), 0.5)
    assert fish == {
        "class": "fish",
        "examples": 0,
        "mean": None,
        "standard_deviation": None,
        "zero_share": None,
        "image_deviation": None,
    }


def test_the_table_has_a_row_for_all_and_each_class_and_no_empty_cell():
    table = mask_table(mask_statistics(MASKS, LABELS, NAMES))
    rows = {row.label: [cell.value for cell in row.cells] for row in table.rows}
    assert list(rows) == ["all", *NAMES]
    assert rows["cat"] == ["2", "0.750", "12.5%", "0.354", "0.250"]
    assert rows["fish"] == ["0", *["no image"] * 4]


def test_json_can_hold_them():
    found = mask_statistics(MASKS.astype(np.float32), LABELS, NAMES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
