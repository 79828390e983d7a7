"""Digests that name an artifact by everything it depends on."""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from sfm_tf.artifacts.file_tree import walk

_LIBRARY_FOLDER = pathlib.Path(__file__).resolve().parents[1]
_BLOCK_BYTES = 2**20
_NUMERICAL_PACKAGES = (
    "adversarial-robustness-toolbox",
    "keras",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "scikit-learn",
    "scipy",
    "tensorflow",
    "tensorflow-datasets",
)


def fingerprint(value: Mapping[str, Any]) -> str:
    """Returns the SHA-256, in hexadecimal, of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def config_values(config: Any) -> dict[str, Any]:
    """Returns a configuration dataclass as JSON values, so that equal settings digest equally."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def content_digest(path: pathlib.Path) -> str:
    """Returns a digest of a file, or of the names and the contents of all files below a folder.

    Symbolic links count as what they lead to, as for those who read the files.

    Raises:
        SfmError: If a link leads back to a folder that it is in.
    """
    digest = hashlib.sha256()
    for found in [path] if path.is_file() else filter(pathlib.Path.is_file, walk(path).files):
        name = os.fsencode(found.relative_to(path).as_posix())
        digest.update(b"%s %d\n" % (name, found.stat().st_size))
        with open(found, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Returns the installed versions of the packages that can change a figure."""
    return {name: _version(name) for name in _NUMERICAL_PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # cv2, for one, comes in packages of several names.


def code_version(module_name: str) -> str:
    """Returns a digest of the library's code that `module_name` runs.

    It covers the module and every module of this library that it imports, directly or not, with
    the templates beside them. So a change to the report leaves a trained model valid.

    Args:
        module_name: Full name of a module of this library, or of one beside it, such as
            `pipelines.train`.

    Returns:
        SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    for path in sorted(_code_files(module_name)):
        digest.update(path.name.encode("utf-8"))
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _code_files(module_name: str) -> set[pathlib.Path]:
    waiting, seen, files = [module_name], set(), set()
    while waiting:
        name = waiting.pop()
        origin = _source_file(name)
        if origin is None or name in seen:
            continue
        seen.add(name)
        files.add(origin)
        files.update(_data_files(origin))
        waiting.extend(_library_imports(origin.read_text(encoding="utf-8"), _LIBRARY_FOLDER.name))
    return files


def _source_file(module_name: str) -> pathlib.Path | None:
    """Returns the module's file, or None for a name that is not a module of this library.

    Found by path, without importing it: the answer must not depend on what is loaded.
    """
    base = _LIBRARY_FOLDER.parent.joinpath(*module_name.split("."))
    candidates = (base.with_name(base.name + ".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _data_files(origin: pathlib.Path) -> list[pathlib.Path]:
    return list((origin.parent / "templates").glob("*.j2"))


@functools.cache  # An evaluation asks for every attack; parsing takes most of a second each time.
def _library_imports(source: str, library: str) -> list[str]:
    names = []
    tree = ast.parse(source)
    # What only a type checker imports does not run.
    tree.body = [node for node in tree.body if not _is_for_type_checkers(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == library]


def _is_for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
