"""A panel per threat model, a line per defence that it attacked, from clean images on."""

import dataclasses
import json

from sfm_tf.evaluation.metrics import CleanAccuracy, Metrics
from tests import made_up
from tools import accuracy_figure


def _worst(defence, threat_model, epsilon, correct):
    return made_up.worst(threat_model, epsilon, made_up.accuracy(correct, 10), defence)


NINE = made_up.accuracy(9, 10)
METRICS = Metrics(
    subject="sfm",
    clean=tuple(CleanAccuracy(defence=name, **NINE) for name in ("undefended", "sfm")),
    worst_case=(
        _worst("undefended", "white_box", 8.0, 2),
        _worst("sfm", "white_box", 8.0, 4),
        _worst("sfm", "white_box", None, 4),
        _worst("sfm", "adaptive", 8.0, 3),
        _worst("sfm", "all", None, 3),
    ),
)


def test_lines_begin_at_clean_images_and_stand_in_the_panel_of_their_attacker():
    points = accuracy_figure.accuracy_points(METRICS)
    assert [(p.panel, p.series, p.place, p.value) for p in points] == [
        ("white box", "no defence", 0.0, 0.9),
        ("white box", "no defence", 8.0, 0.2),
        ("white box", "SFM-Defence", 0.0, 0.9),
        ("white box", "SFM-Defence", 8.0, 0.4),
        ("adaptive", "SFM-Defence", 0.0, 0.9),
        ("adaptive", "SFM-Defence", 8.0, 0.3),
    ]


def test_the_program_draws_what_is_stored(tmp_path, monkeypatch):
    stored, drawn = tmp_path / "metrics.json", tmp_path / "accuracy.svg"
    stored.write_text(json.dumps(dataclasses.asdict(METRICS)))
    monkeypatch.setattr("sys.argv", ["accuracy_figure", str(stored), str(drawn)])
    accuracy_figure.main()
    assert drawn.read_text().startswith("<svg")
    assert "SFM-Defence" in drawn.read_text()
