import numpy as np
import pytest

from sfm_tf.report import breakdown_figures
from sfm_tf.report.breakdown_figures import class_chart, confusion_map


def _accuracy(share):
    return {"accuracy": share, "accuracy_low": share / 2, "accuracy_high": (1 + share) / 2}


def _class(name, clean, worst):
    measured = [None if share is None else _accuracy(share) for share in (clean, worst)]
    return {"class": name, "clean": measured[0], "worst_case": measured[1]}


CLASSES = [_class("cat", 0.75, 0.25), _class("a $b$\n_", 1.0, None)]
CONFUSION = {
    "threat_model": "white_box",
    "attack": "pgd",
    "epsilon": 8.0,
    "turned_wrong": 7,
    "counts": [[1, 5], [2, 0]],
}


def _axes(monkeypatch, draw, *arguments):
    drawn = []
    monkeypatch.setattr(breakdown_figures, "render_figure", lambda *values: drawn.append(values))
    draw(*arguments)
    return drawn[0][0].axes[0]


def test_every_class_is_told_with_what_was_not_run():
    figure = class_chart("classes", CLASSES)
    assert "cat: without an attack 75.0%, worst case 25.0%; " in figure.alternative_text
    assert figure.alternative_text.endswith("without an attack 100.0%, worst case not run.")
    assert figure.png.startswith(b"\x89PNG")


def test_bars_have_the_lengths_of_the_accuracies(monkeypatch):
    axes = _axes(monkeypatch, class_chart, "classes", CLASSES)
    assert [bar.get_width() for bar in axes.patches] == [0.75, 1.0, 0.25, 0.0]
    assert [text.get_text() for text in axes.texts] == ["not run"]


def test_of_many_classes_the_worst_have_bars(monkeypatch):
    many = [_class(f"class {n}", 1.0, n / 50) for n in range(50)][::-1]
    axes = _axes(monkeypatch, class_chart, "classes", many)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"class {n}" for n in range(40)]


def test_the_map_names_the_attack_and_the_most_frequent_mistakes():
    figure = confusion_map("confusion", CONFUSION, ["cat", "dog"], {"white_box": "white box"})
    assert "PGD 8/255, white box, which turned 7 images wrong" in figure.caption
    assert figure.alternative_text.endswith(
        "Most often mistaken: cat for dog 5 times, dog for cat 2 times."
    )


def test_the_map_shows_shares_of_the_true_class_and_counts(monkeypatch):
    names = {"white_box": "white box"}
    axes = _axes(monkeypatch, confusion_map, "confusion", CONFUSION, ["cat", "dog"], names)
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares, [[1 / 6, 5 / 6], [1.0, 0.0]])
    assert [text.get_text() for text in axes.texts] == ["1", "5", "2", "0"]


def test_classes_without_images_and_many_of_them_are_drawn(monkeypatch):
    counts = np.zeros((60, 60), int)
    counts[3, 3] = 4
    many = {**CONFUSION, "counts": counts.tolist()}
    class_names = [str(place) for place in range(60)]
    axes = _axes(monkeypatch, confusion_map, "many", many, class_names, {"white_box": "white box"})
    assert np.asarray(axes.images[0].get_array()).sum() == 1.0
    assert len(axes.texts) == 0


def test_without_a_mistake_it_says_so():
    right = {**CONFUSION, "counts": [[3, 0], [0, 0]], "turned_wrong": 0}
    figure = confusion_map("confusion", right, ["cat", "dog"], {"white_box": "white box"})
    assert figure.alternative_text.endswith("No image was mistaken.")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
