"""The pages that people read name only files, modules, flags and targets that exist."""

import ast
import dataclasses
import functools
import pathlib
import re

import keras
import numpy as np
import pytest

from sfm_tf.artifacts.typed_json import read_typed
from sfm_tf.audit.rules import RULES
from sfm_tf.evaluation.metrics import Metrics
from sfm_tf.experiments import SECTIONS
from sfm_tf.models.attention_unet import build_masker
from tools.accuracy_figure import accuracy_points

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("[A-Z]*.md"), *ROOT.glob("docs/*.md"), ROOT / "results/README.md"],
)
PACKAGES = ("sfm_tf", "pipelines", "benchmarks", "tools", "tests")
FOLDERS = (*PACKAGES, "deployment", "docs", "results", "third_party", ".ci")
FOREIGN_FLAGS = {"no-deps", "logdir", "version", "help"}
FOREIGN_NAMES = {"BackupAndRestore", "EvasionAttack"}
CODE = re.compile(r"```.*?```|`[^`\n]+`|^    [^\n]*$", re.DOTALL | re.MULTILINE)


def code_of(page: pathlib.Path) -> str:
    """Returns what a page shows as code: in backticks or indented by four."""
    return "\n".join(CODE.findall(page.read_text(encoding="utf-8")))


@functools.cache
def source_text() -> str:
    """Returns everything in which a name of the code can stand."""
    files = [path for folder in PACKAGES for path in ROOT.glob(f"{folder}/**/*.py")]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


@functools.cache
def flag_names() -> set[str]:
    settings = {field.name for kind in SECTIONS.values() for field in dataclasses.fields(kind)}
    defined = re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source_text())
    tabled = re.findall(r"^\s+\(?\"(\w+)\", (?:None|\")", source_text(), re.MULTILINE)
    parsed = re.findall(r"add_argument\(\s*\"--([\w-]+)\"", source_text())
    return settings | set(defined) | set(tabled) | set(parsed) | FOREIGN_FLAGS


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something at the top of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:count])
        rest = parts[count:]
        module = stem.with_suffix(".py")
        if module.is_file():
            tree = ast.parse(module.read_text(encoding="utf-8"))
            return not rest or rest[0] in names_at_the_top(tree)
        if stem.is_dir():
            return not rest
    return False


def names_at_the_top(tree: ast.Module) -> set[str]:
    named = {node.name for node in tree.body if hasattr(node, "name")}
    assigned = {
        target.id
        for node in tree.body
        for target in [*getattr(node, "targets", []), getattr(node, "target", None)]
        if isinstance(target, ast.Name)
    }
    return named | assigned


def heading_anchors(page: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages():
    assert {page.name for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "architecture.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPage:
    def test_relative_links_lead_somewhere(self, page):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            if "://" in path:
                continue
            linked = (page.parent / path) if path else page
            assert linked.exists(), target
            if anchor:
                assert anchor in heading_anchors(linked), target

    def test_named_files_exist(self, page):
        for name in re.findall(rf"(?<![\w/<.-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", code_of(page)):
            assert (ROOT / name).exists(), name

    def test_named_python_files_exist(self, page):
        for name in re.findall(r"(?<![\w/<>.*-])(?:\w+/)*\w+\.py\b", code_of(page)):
            places = (ROOT / name, *ROOT.glob(f"sfm_tf/**/{name}"), *ROOT.glob(f"tests/**/{name}"))
            assert any(path.exists() for path in places), name

    def test_named_modules_exist(self, page):
        packages = "|".join(PACKAGES)
        for name in re.findall(rf"(?<![\w/.])(?:{packages})(?:\.[A-Za-z_]\w*)+", code_of(page)):
            assert name.endswith(".py") or is_there(name), name

    def test_imports_in_examples_work(self, page):
        imports = re.findall(
            rf"^from ((?:{'|'.join(PACKAGES)})\S*) import (.*)$", code_of(page), re.M
        )
        for module, names in imports:
            for name in names.split(", "):
                assert is_there(f"{module}.{name}"), name

    def test_named_classes_and_tables_exist(self, page):
        pattern = r"`([A-Z][a-z]+[A-Z]\w*|[A-Z]+_[A-Z_]+|[A-Z]{4,}S)`"
        for name in re.findall(pattern, page.read_text(encoding="utf-8")):
            assert name in FOREIGN_NAMES or re.search(rf"\b{name}\b", source_text()), name

    def test_flags_exist(self, page):
        for name in re.findall(r"(?<![\w-])--(\w[\w-]*)", code_of(page)):
            assert name in flag_names() or name.removeprefix("no") in flag_names(), name

    def test_make_targets_exist(self, page):
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for name in re.findall(r"\bmake (?:\w+=\S+ )?([a-z][\w-]*)", code_of(page)):
            assert name in targets, name


@pytest.mark.parametrize("page", ["README.md", "docs/attacks.md"])
def test_the_library_example_runs(page, tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    build_masker((32, 32, 3), width=4, depth=1).save("masker.keras")
    layers = [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)]
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    given = {"model": keras.Sequential(layers), "images": images, "labels": np.arange(2)}
    exec(code, given)
    assert given["estimator"].predict(images).shape == (2, 10)


def test_the_picture_shows_the_stored_run():
    stored = read_typed(Metrics, ROOT / "results/digits/metrics.json")
    picture = (ROOT / "docs/accuracy.svg").read_text(encoding="utf-8")
    for point in accuracy_points(stored):
        label = f"{point.series}; 95% from: {point.low:.1%}; to: {point.high:.1%}"
        assert label in re.sub(r";  : [^;]*", "", picture)


def test_the_page_on_the_audit_lists_every_rule():
    text = (ROOT / "docs/audit.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (.*) \| (yes|no) \|$", text, re.MULTILINE)
    assert listed == [(rule.title, "yes" if rule.is_must else "no") for rule in RULES]
