"""Digests that name an artifact by everything it depends on.

Code counts by what it does, not by how it is written down. The digest of a module is one of its
syntax tree, without

- comments, docstrings and other bare strings, blank lines and line breaks;
- what only a type checker imports (`if TYPE_CHECKING:`);
- the fields of settings, that is, each `name: type = setting(default, help, ...)`. Settings count
  by their values, which `config_values` returns: another help text changes no answer.

Everything else counts: constants and tables, also beside settings, the defaults of functions, and
type hints, which dataclasses and `typed_json` read. The digest is the same under each version of
Python that the library runs on.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from sfm_tf.artifacts.file_tree import walk
from sfm_tf.errors import SfmError

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


def code_version(*module_names: str) -> str:
    """Returns a digest of the library's code that the named modules run.

    Args:
        *module_names: Full names of modules of this library, such as `sfm_tf.training.training`.

    Returns:
        SHA-256, in hexadecimal, of what `code_files` returns, as the top of this module says.

    Raises:
        SfmError: If a module, or one that it imports, is not one of this library.
    """
    digest = hashlib.sha256()
    for path in sorted(code_files(*module_names)):
        name = path.relative_to(_LIBRARY_FOLDER).as_posix()
        content = path.read_bytes()
        counted = _module(content).digest if path.suffix == ".py" else _sha256(content)
        digest.update(f"{name} {counted}\n".encode())
    return digest.hexdigest()


def code_files(*module_names: str) -> set[pathlib.Path]:
    """Returns the files of the library's code that the named modules run.

    These are the modules, their packages, and every module of this library that they import,
    directly or not, also within a function, with the templates beside them. So a change to the
    report leaves a trained model valid. A module that is imported by a name in a string is not
    found: whoever imports it so adds its code, as `datasets.ingestion.source_version` does.

    Raises:
        SfmError: If a module, or one that it imports, is not one of this library.
    """
    waiting, seen, files = list(module_names), set(), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        origin = _source_file(name)
        package, _, _ = name.rpartition(".")
        waiting += [package] if package else []
        if origin is not None:
            files.update((origin, *(origin.parent / "templates").glob("*.j2")))
            waiting += _imported_modules(name, origin)
    return files


def _imported_modules(name: str, origin: pathlib.Path) -> Iterator[str]:
    package = name if origin.stem == "__init__" else name.rpartition(".")[0]
    for source, imported in _module(origin.read_bytes()).imports:
        module = importlib.util.resolve_name(source, package) if source[0] == "." else source
        if module.partition(".")[0] != _LIBRARY_FOLDER.name:
            continue
        yield module
        if imported and _is_module(module, imported):
            yield f"{module}.{imported}"


def _is_module(package: str, name: str) -> bool:
    """Tells whether `from package import name` imports a module, not what one defines."""
    folder = _path(package)
    if not folder.is_dir():
        return False
    start = folder / "__init__.py"
    return not (start.is_file() and name in _module(start.read_bytes()).names)


def _source_file(module_name: str) -> pathlib.Path | None:
    """Returns the module's file, or None for a package without code of its own.

    Found by path, without importing it: the answer must not depend on what is loaded.
    """
    path = _path(module_name)
    candidates = (path.with_name(path.name + ".py"), path / "__init__.py")
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    library = _LIBRARY_FOLDER.name
    if module_name.partition(".")[0] != library or (found is None and not path.is_dir()):
        raise SfmError(
            f"Unknown module {module_name!r}; expected one of {library}, for a fingerprint covers "
            "all code that a stage runs."
        )
    return found


def _path(module_name: str) -> pathlib.Path:
    return _LIBRARY_FOLDER.parent.joinpath(*module_name.split("."))


@dataclasses.dataclass(frozen=True)
class _Module:
    """What is read from the source of a module.

    Attributes:
        digest: SHA-256 of what it does.
        imports: What it imports: a module, relative ones with leading dots, and a name in it or "".
        names: Names that it defines.
    """

    digest: str
    imports: tuple[tuple[str, str], ...]
    names: frozenset[str]


@functools.cache  # An evaluation asks for every attack; parsing takes half a second each time.
def _module(source: bytes) -> _Module:
    tree = _Behaviour().visit(ast.parse(source))
    nodes = list(ast.walk(tree))
    return _Module(
        digest=_sha256(_text(tree).encode("ascii")),
        imports=tuple(found for node in nodes for found in _imports(node)),
        names=frozenset(name for node in nodes if (name := _defined(node))),
    )


class _Behaviour(ast.NodeTransformer):
    """Takes out of a syntax tree what changes no answer."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:  # noqa: N802  `ast` names it so.
        value = node.value
        is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:  # noqa: N802
        is_setting = isinstance(node.value, ast.Call) and _last_name(node.value.func) == "setting"
        return None if is_setting else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> Any:  # noqa: N802
        node = self.generic_visit(node)
        return node.orelse if _last_name(node.test) == "TYPE_CHECKING" else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:  # noqa: N802
        node = self.generic_visit(node)
        # Python 3.12 ends some formats with an empty string.
        node.values = [part for part in node.values if getattr(part, "value", None) != ""]
        return node


def _last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def _text(node: Any) -> str:
    """Returns a syntax tree as text that is the same under all versions of Python.

    `ast.dump` is not: later versions have fields that earlier ones lack, or leave out empty ones.
    """
    if isinstance(node, list):
        return f"[{','.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = ((name, getattr(node, name, None)) for name in sorted(node._fields))
    told = (f"{name}={_text(v)}" for name, v in fields if v not in (None, []) and name != "kind")
    return f"{type(node).__name__}({','.join(told)})"


def _imports(node: ast.AST) -> list[tuple[str, str]]:
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        return [(module, alias.name) for alias in node.names]
    return []


def _defined(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.alias):
        return node.asname or node.name
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else ""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
