import dataclasses

import pytest

from sfm_tf.errors import SfmError
from tests import made_up


def test_figures_of_the_counted_images_are_taken():
    counted = dataclasses.replace(made_up.inputs(), class_counts={"a": 4, "b": 6})
    assert counted.perturbations == ()


def test_figures_of_other_images_are_refused():
    with pytest.raises(SfmError, match=r"of \[10\] images, but their classes add up to 9"):
        dataclasses.replace(made_up.inputs(), class_counts={"a": 4, "b": 5})
