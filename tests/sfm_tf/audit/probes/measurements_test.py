import dataclasses
import json
import pathlib

import numpy as np
import pytest

from sfm_tf.artifacts.atomic_files import read_json, write_json
from sfm_tf.artifacts.typed_json import read_typed
from sfm_tf.audit.probes.measurements import Answers, Draws, Probes
from sfm_tf.errors import SfmError
from tests import made_up


def test_answers_say_which_images_are_right():
    entry = Answers.of(np.array([True, False, True]))
    assert dataclasses.asdict(entry) == {"examples": 3, "correct": 2, "right": "101"}
    assert entry.right_images().tolist() == [True, False, True]
    assert Answers.of(np.ones(0, bool)).right_images().tolist() == []


@pytest.mark.parametrize("change", [{"right": "1x1"}, {"right": "11"}, {"correct": 3}])
def test_answers_that_contradict_themselves_are_refused(change):
    entry = dataclasses.replace(Answers.of(np.array([True, False, True])), **change)
    with pytest.raises(SfmError, match=r"^Probe of 3 images, . right, holds '.*'; run the eval"):
        entry.right_images()


def test_stored_probes_are_written_as_they_were_read():
    stored = read_json(pathlib.Path(made_up.__file__).parent / "testdata/probes.json")
    assert json.loads(json.dumps(made_up.PROBES.to_json())) == stored
    assert made_up.PROBES.convergence.restarts == 4
    assert made_up.PROBES.ladder[-1].epsilon == 127.5


def test_draws_are_written_where_there_are_some(tmp_path):
    once = (Answers.of(np.array([True])),)
    probes = dataclasses.replace(made_up.PROBES, draws=Draws(clean=once, attacked=once))
    write_json(tmp_path / "probes.json", probes.to_json())
    assert read_typed(Probes, tmp_path / "probes.json") == probes
