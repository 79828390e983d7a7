import dataclasses
import hashlib
import os

import pytest

from sfm_tf.artifacts import fingerprints


@dataclasses.dataclass(frozen=True)
class _Config:
    epsilons: tuple[float, ...] = (8.0, 16.0)
    attacks: tuple[str, ...] = ("fgsm",)


def _library(tmp_path, monkeypatch):
    """A small library: report → metrics ← train, of which checked imports report for its types."""
    library = tmp_path / "sfm_tf"
    (library / "report" / "templates").mkdir(parents=True)
    (library / "report" / "document.py").write_text("from sfm_tf import metrics\n")
    (library / "report" / "templates" / "page.j2").write_text("<p>")
    (library / "metrics.py").write_text("ACCURACY = 1\n")
    (library / "train.py").write_text("from sfm_tf import metrics\n")
    (library / "checked.py").write_text("if TYPE_CHECKING:\n    from sfm_tf import metrics\n")
    monkeypatch.setattr(fingerprints, "_LIBRARY_FOLDER", library)
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
    ],
)
def test_code_version_follows_imports_and_nothing_else(
    tmp_path, monkeypatch, module, changed, differs
):
    library = _library(tmp_path, monkeypatch)
    before = fingerprints.code_version(f"sfm_tf.{module}")
    path = library / changed
    path.write_text(path.read_text() + "\n# changed\n")
    assert (fingerprints.code_version(f"sfm_tf.{module}") != before) is differs


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


def test_code_version_of_the_real_library_reaches_what_is_imported():
    files = {path.name for path in fingerprints._code_files("sfm_tf.artifacts.execution")}
    assert {"execution.py", "manifest.py", "atomic_files.py", "errors.py"} <= files
    assert "experiments.py" not in files
    assert not {name for name in files if name.endswith(".j2")}
