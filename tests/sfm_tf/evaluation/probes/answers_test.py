import json

import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.evaluation.probes.answers import answer, right_images


def test_answers_say_which_images_are_right():
    entry = answer(np.array([True, False, True]))
    assert entry == {"examples": 3, "correct": 2, "right": "101"}
    assert json.loads(json.dumps(entry)) == entry
    assert right_images(entry).tolist() == [True, False, True]


def test_there_may_be_none():
    assert right_images(answer(np.ones(0, bool))).tolist() == []


@pytest.mark.parametrize("change", [{"right": "1x1"}, {"right": "11"}, {"correct": 3}])
def test_an_entry_that_contradicts_itself_is_refused(change):
    entry = {**answer(np.array([True, False, True])), **change}
    with pytest.raises(SfmError, match=r"^Probe of 3 images, . right, holds '.*'; run the eval"):
        right_images(entry)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
