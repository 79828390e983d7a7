import re
import time

import pytest

from pipelines.progress_line import ProgressLine


def test_without_a_terminal_prints_the_start_and_the_end_of_each_phase(capsys):
    with ProgressLine("train") as progress:
        for done in range(1, 101):
            progress.update("epoch", done, 100, {"loss": 1 / done})
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["train: epoch 1/100 loss=1", "train: epoch 100/100 loss=0.01"]


def test_the_last_line_of_each_phase_is_shown_whatever_its_total(capsys):
    with ProgressLine("ingest") as progress:
        for split, size in (("train", 3), ("test", 2)):
            for done in range(1, size + 1):
                progress.update(f"{split} images", done, None)
    assert capsys.readouterr().err.splitlines() == [
        "ingest: train images 1",
        "ingest: train images 3",
        "ingest: test images 1",
        "ingest: test images 2",
    ]


def test_tells_the_rate_and_the_time_left_where_it_counts_a_unit(capsys, monkeypatch):
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with ProgressLine("evaluate", "images") as progress:
        for done in (20, 40, 60):
            progress.update("pgd", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluate: pgd 20/100"
    rates = [
        re.fullmatch(r".* (\S+)/100 images, (\S+) images/s, (\S+) s left", line)
        for line in lines[1:]
    ]
    assert all(rates)
    for rate in rates:
        done, speed, left = map(float, rate.groups())
        assert speed * left == pytest.approx(100 - done, rel=0.05)


def test_on_a_terminal_redraws_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with ProgressLine("train") as progress:
        progress.update("epoch", 1, 2)
        progress.update("epoch", 2, 2, {"loss": 0.5})
    text = capsys.readouterr().err
    assert "\r" in text
    assert "train: epoch" in text
