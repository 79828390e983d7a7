import dataclasses
import hashlib
import os
import re
import shutil

import pytest

from sfm_tf.artifacts import fingerprints
from sfm_tf.errors import SfmError


@dataclasses.dataclass(frozen=True)
class _Config:
    epsilons: tuple[float, ...] = (8.0, 16.0)
    attacks: tuple[str, ...] = ("fgsm",)


LIBRARY = {
    "report/document.py": "from sfm_tf import metrics\n",
    "report/templates/page.j2": "<p>",
    "metrics.py": "ACCURACY = 1\n",
    "train.py": "from sfm_tf import metrics\n",
    "checked.py": "if TYPE_CHECKING:\n    from sfm_tf import metrics\n",
    "attacks/__init__.py": "STEPS = 7\n",
    "attacks/pgd.py": "",
}
"""A small library: report → metrics ← train, of which checked imports metrics for its types."""


@pytest.fixture(name="library")
def _library(tmp_path, monkeypatch):
    """The folder of the small library, which takes the place of this one."""
    library = tmp_path / "sfm_tf"
    monkeypatch.setattr(fingerprints, "_LIBRARY_FOLDER", library)
    for name, text in LIBRARY.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(text)
    return library


def test_fingerprint_is_the_digest_of_sorted_json():
    expected = hashlib.sha256(b'{"a":1,"b":[2]}').hexdigest()
    assert fingerprints.fingerprint({"b": [2], "a": 1}) == expected


def test_config_values_are_json():
    assert fingerprints.config_values(_Config()) == {"epsilons": [8.0, 16.0], "attacks": ["fgsm"]}


def test_package_versions_name_what_changes_figures():
    assert {"tensorflow", "keras", "numpy"} < set(fingerprints.package_versions())


@pytest.mark.parametrize(
    ("module", "changed", "differs"),
    [
        ("report.document", "report/document.py", True),
        ("report.document", "metrics.py", True),
        ("report.document", "report/templates/page.j2", True),
        ("report.document", "train.py", False),
        ("train", "metrics.py", True),
        ("train", "report/templates/page.j2", False),
        ("checked", "metrics.py", False),
        ("attacks.pgd", "attacks/__init__.py", True),
    ],
)
def test_code_version_follows_imports_and_nothing_else(library, module, changed, differs):
    before = fingerprints.code_version(f"sfm_tf.{module}")
    path = library / changed
    path.write_text(path.read_text() + "\nCHANGED = 1\n")
    assert (fingerprints.code_version(f"sfm_tf.{module}") != before) is differs


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import sfm_tf.attacks.pgd", True),
        ("import sfm_tf.attacks.pgd as madry", True),
        ("from sfm_tf.attacks import pgd", True),
        ("from sfm_tf.attacks.pgd import attack", True),
        ("from .attacks import pgd", True),
        ("from .attacks.pgd import attack", True),
        ("def attack():\n    from sfm_tf.attacks import pgd", True),
        ("if typing.TYPE_CHECKING:\n    import sfm_tf.attacks.pgd", False),
        ("if not TYPE_CHECKING:\n    import sfm_tf.attacks.pgd", True),
        ("if TYPE_CHECKING:\n    import art\nelse:\n    import sfm_tf.attacks.pgd", True),
        ("from sfm_tf.attacks import STEPS", False),
        ("MODULE = 'sfm_tf.attacks.pgd'", False),
    ],
)
def test_what_imports_a_module_depends_on_it(library, source, found):
    (library / "user.py").write_text(source)
    files = fingerprints.code_files("sfm_tf.user")
    assert (library / "attacks" / "pgd.py" in files) is found


@pytest.mark.parametrize(
    ("source", "unknown"),
    [
        ("import sfm_tf.metrix", "sfm_tf.metrix"),
        ("from sfm_tf.metrix import ACCURACY", "sfm_tf.metrix"),
        ("from sfm_tf.attacks import pdg", "sfm_tf.attacks.pdg"),
        ("from sfm_tf.report import docment", "sfm_tf.report.docment"),
        ("from . import metrix", "sfm_tf.metrix"),
        ("from .metrix import ACCURACY", "sfm_tf.metrix"),
        ("def late():\n    import sfm_tf.attacks.pdg", "sfm_tf.attacks.pdg"),
    ],
)
def test_a_misspelt_import_is_an_error(library, source, unknown):
    (library / "middle.py").write_text(source)
    (library / "user.py").write_text("from sfm_tf import middle")
    with pytest.raises(SfmError, match=f"Unknown module '{unknown}'; expected one of sfm_tf"):
        fingerprints.code_version("sfm_tf.user")


@pytest.mark.parametrize("name", ["sfm_tf.training.trianing", "pipelines.report", "numpy", ""])
def test_a_module_that_is_not_the_librarys_is_an_error(name):
    with pytest.raises(SfmError, match=f"Unknown module '{name}'; expected one of sfm_tf"):
        fingerprints.code_version("sfm_tf.errors", name)


CODE = '''"""Trains."""
from sfm_tf import metrics

RATE: float = 0.5
"""Learning rate."""


class Config(Settings):
    """Settings."""

    epochs: int = setting(3, "Epochs.", minimum=1)

    @property
    def doubled(self) -> int:
        """Twice as many."""
        return 2 * self.epochs


def step(x: float, scale: float = 1.0, *, name="step") -> float:
    """Takes a step."""
    # Downhill.
    if x > 0 and name:
        x = x - RATE * scale
    return x
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Trains."""', ""),
        ('"""Trains."""', '"""Trains, and this is not misspelt any more."""'),
        ('"""Learning rate."""', '"""Rate of learning, above 0."""'),
        ('"""Settings."""', "'Settings of training.'"),
        ('    """Twice as many."""\n        return', "    return"),
        ("    # Downhill.\n", ""),
        ("x - RATE * scale", "(\n            x - (RATE * scale)  # Eq. 2\n        )"),
        ('name="step"', "name='step'"),
        ("0.5", "5e-1"),
        ("\n\n\ndef", "\ndef"),
        ('"Epochs."', '"Number of epochs."'),
        ("minimum=1", "minimum=1, maximum=9"),
        ("setting(3", "setting(4"),
    ],
)
def test_how_code_is_written_down_does_not_count(library, old, new):
    assert _digest(library, CODE.replace(old, new, 1)) == _digest(library, CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5", "0.25"),
        ("scale: float = 1.0", "scale: float = 2.0"),
        ('name="step"', 'name="stop"'),
        ("x - RATE", "x + RATE"),
        ("x > 0", "x >= 0"),
        ("and", "or"),
        ("x > 0 and name", "name and x > 0"),
        ("RATE * scale", "RATE * x"),
        ("return x", "return -x"),
        (
            "        x = x - RATE * scale\n    return x",
            "        x = x - RATE * scale\n        return x",
        ),
        ("2 * self", "3 * self"),
        ("    @property\n", ""),
        ("(Settings)", "(Limits)"),
        ("RATE: float", "RATE: int"),
        ("import metrics", "import train"),
        ("def step", "def move"),
        ("*, name", "name"),
        ("0.5", "'0.5'"),
        ("0.5", "None"),
    ],
)
def test_what_code_does_counts(library, old, new):
    changed = CODE.replace(old, new, 1)
    assert changed != CODE
    assert _digest(library, changed) != _digest(library, CODE)


def _digest(library, source):
    (library / "user.py").write_text(source)
    return fingerprints.code_version("sfm_tf.user")


def test_moving_code_between_modules_counts(library):
    before = fingerprints.code_version("sfm_tf.train", "sfm_tf.attacks.pgd")
    (library / "attacks" / "pgd.py").rename(library / "attacks" / "steps.py")
    assert fingerprints.code_version("sfm_tf.train", "sfm_tf.attacks.steps") != before


def test_the_digest_is_the_same_under_all_versions_of_python(library):
    # Worked out with Python 3.10, 3.11, 3.12 and 3.13, whose `ast.dump` differ.
    function = "def f(x, *y, **z):\n    return f'{x!r:>{y}} \u00e9' 'a', [], None, 1e-3\n"
    source = f"class C:\n    x: int = 1\n\n{function}"
    (library / "metrics.py").write_text(source, encoding="utf-8")
    assert fingerprints.code_version("sfm_tf.metrics")[:16] == "cf9d33269c7e58c9"


def test_content_digest_follows_names_and_bytes(tmp_path):
    def digest(files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return fingerprints.content_digest(folder)

    first = digest({"a": b"alpha", "b/c": b"gamma"})
    assert digest({"b/c": b"gamma", "a": b"alpha"}) == first
    assert digest({"a": b"alphA", "b/c": b"gamma"}) != first
    assert digest({"a": b"alpha", "b/d": b"gamma"}) != first
    # Bytes that move from one file to the next are another content.
    assert digest({"a": b"xy", "b": b"z"}) != digest({"a": b"x", "b": b"yz"})


def test_content_digest_follows_links_as_readers_do(tmp_path):
    weights, model = tmp_path / "weights", tmp_path / "model"
    weights.mkdir()
    model.mkdir()
    (weights / os.fsdecode(b"caf\xe9")).write_bytes(b"1")
    (model / "variables").symlink_to(weights)
    before = fingerprints.content_digest(model)
    (weights / "added").write_bytes(b"2")
    assert fingerprints.content_digest(model) != before


@pytest.fixture(name="library_copy")
def _library_copy(tmp_path, monkeypatch):
    """A copy of this library, to be changed."""
    copy = tmp_path / "sfm_tf"
    shutil.copytree(fingerprints._LIBRARY_FOLDER, copy, ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(fingerprints, "_LIBRARY_FOLDER", copy)
    return copy


@pytest.mark.parametrize(
    ("file", "old", "new", "trains_again"),
    [
        ("report/settings.py", "Images in each figure.", "Images per figure.", False),
        ("training/settings.py", "Images per training step", "Images in a step", False),
        ("report/document.py", "write_json(", "write_text(", False),
        ("attacks/fgsm.py", "return", "yield", False),
        ("training/losses.py", '"""', '"""On losses: ', False),
        ("training/losses.py", "return", "yield", True),
        ("models/resnet.py", "return", "yield", True),
        ("settings.py", "PIXEL_LEVELS = 255.0", "PIXEL_LEVELS = 256.0", True),
    ],
)
def test_a_trained_model_stays_valid_unless_what_made_it_changed(
    library_copy, file, old, new, trains_again
):
    before = fingerprints.code_version("sfm_tf.training.training")
    text = (library_copy / file).read_text(encoding="utf-8")
    assert old in text
    (library_copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert (fingerprints.code_version("sfm_tf.training.training") != before) is trains_again


def test_only_the_datasets_are_imported_by_a_name_in_a_string():
    library = fingerprints._LIBRARY_FOLDER
    found = {
        path.relative_to(library).as_posix()
        for path in library.rglob("*.py")
        if re.search(r"\bimport_module\(|\b__import__\(", path.read_text(encoding="utf-8"))
    }
    # Its `source_version` adds the code of the dataset that is ingested.
    assert found == {"datasets/ingestion.py"}
