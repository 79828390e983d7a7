"""Writes every BUILD file from the imports, and checks the architecture that they show.

    python -m tools.build_files            rewrites the BUILD files that are out of date
    python -m tools.build_files --check    exits 1 naming each stale file and each broken rule

A lower layer never imports a higher one; each module has a test of its name, and the reverse; and
each test runs when Bazel starts it.
"""

import argparse
import ast
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

LAYERS = (
    ("errors", "settings"),
    ("artifacts",),
    ("records", "datasets"),
    ("preprocessors",),
    ("models",),
    ("attacks",),
    ("training",),
    ("defences",),
    ("evaluation",),
    ("audit", "tuning"),
    ("experiments", "report", "serving"),
    ("testing", "pipelines"),
    ("tools",),
)
"""Modules and packages of `sfm_tf`, then what may use all of it, lowest first."""

VISIBILITY = {
    "pipelines": ("//pipelines", "//tests/pipelines"),
    "sfm_tf": ("//pipelines", "//sfm_tf", "//tests", "//tools"),
    "tests": ("//tests",),
    "tools": ("//tests/tools",),
}
"""Which folders may depend on the targets in a top-level folder."""

DATA_FOLDERS: Mapping[str, str] = {
    "deployment": "manifests",
    "docs": "documents",
    "tests/testdata": "goldens",
}
"""Folders without Python files that tests read, with the names of the targets that hold them."""

TEST_DATA: Mapping[str, list[str]] = {
    "tests/conftest.py": ["//:pyproject.toml"],
    "tests/sfm_tf/serving/pushing_test.py": ["//deployment:manifests"],
    "tests/tools/sample_report_test.py": ["//docs:documents", "//tests/testdata:goldens"],
}
"""What tests read beside the modules that they import."""

HEADER = "# Written by `python -m tools.build_files` from the imports; edit those instead.\n"
_RANKS = {layer: rank for rank, layers in enumerate(LAYERS) for layer in layers}


@dataclasses.dataclass(frozen=True)
class Module:
    """One Python file.

    Attributes:
        path: From the root.
        imports: Names it imports.
        kind: Rule of Bazel that starts it.
        is_silent: Whether it has tests, but runs none when it is started, as Bazel does.
    """

    path: pathlib.PurePosixPath
    imports: tuple[str, ...]
    kind: str
    is_silent: bool = False

    @property
    def layer(self) -> str:
        """The entry of `LAYERS` that the file belongs to; empty for tests and `sfm_tf` itself."""
        first, second, *_ = self.path.with_suffix("").parts
        return {"sfm_tf": second.replace("__init__", ""), "tests": ""}.get(first, first)

    @property
    def counterpart(self) -> pathlib.PurePosixPath:
        """The test of this module, or the module that this test is for."""
        if self.kind == "py_test":
            source = self.path.with_name(self.path.name.replace("_test.py", ".py"))
            return source.relative_to("tests")
        return "tests" / self.path.with_name(f"{self.path.stem}_test.py")


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_modules(root: pathlib.Path) -> dict[str, Module]:
    """Reads every Python file of the packages and the tests, keyed by dotted name."""
    modules = {}
    for path in sorted(path for folder in VISIBILITY for path in (root / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        names = sorted(set(_imported_names(ast.parse(text, str(path)))))
        own = tuple(name for name in names if name.split(".")[0] in VISIBILITY)
        is_program = '\nif __name__ == "__main__":\n' in text
        binary = "py_binary" if is_program else "py_library"
        kind = "py_test" if path.stem.endswith("_test") else binary
        is_silent = kind == "py_test" and "\ndef test_" in text and not is_program
        relative = pathlib.PurePosixPath(path.relative_to(root).as_posix())
        modules[".".join(relative.with_suffix("").parts)] = Module(relative, own, kind, is_silent)
    return modules


def _resolve(name: str, modules: Mapping[str, Module]) -> Module | None:
    """The file that provides `name`: a module, something inside one, or a package."""
    parent = name.rpartition(".")[0]
    candidates = (name, parent, f"{name}.__init__", f"{parent}.__init__")
    return next((modules[each] for each in candidates if each in modules), None)


def _dependencies(module: Module, modules: Mapping[str, Module]) -> set[Module]:
    """Modules that have to be there for this one to be imported, or tested."""
    folder = module.path.parent
    implied = {(folder.parent if module.path.stem == "__init__" else folder) / "__init__.py"}
    if module.kind == "py_test":
        implied = {module.counterpart, pathlib.PurePosixPath("tests/conftest.py")}
    found = {_resolve(name, modules) for name in module.imports}
    found |= {each for each in modules.values() if each.path in implied}
    return found - {module, None}


def _data(module: Module, root: pathlib.Path) -> list[str]:
    """Package data belongs to the nearest package, on which all its modules depend."""
    if str(module.path) in TEST_DATA:
        return TEST_DATA[str(module.path)]
    if module.path.stem != "__init__":
        return []
    folder = root / module.path.parent
    inner = [path.parent for path in folder.glob("*/**/__init__.py")]
    files = [path for path in folder.rglob("*.j2") if not {*path.parents} & {*inner}]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _attribute(key: str, values: list[str]) -> str:
    if len(values) == 1:
        return f'    {key} = ["{values[0]}"],\n'
    lines = [f'        "{value}",\n' for value in values]
    return f"    {key} = [\n{''.join(lines)}    ],\n" if values else ""


def _rule(module: Module, modules: Mapping[str, Module], root: pathlib.Path) -> str:
    labels = [
        f"{'' if each.path.parent == module.path.parent else f'//{each.path.parent}'}"
        f":{each.path.stem}"
        for each in _dependencies(module, modules)
    ]
    return (
        f'\n{module.kind}(\n    name = "{module.path.stem}",\n'
        + ("    testonly = True,\n" if module.layer == "testing" else "")
        + _attribute("srcs", [module.path.name])
        + _attribute("data", _data(module, root))
        + _attribute("deps", sorted(labels, key=lambda label: (label[0] != ":", label)))
        + ")\n"
    )


def _data_build_file(name: str) -> str:
    return (
        f'{HEADER}\nfilegroup(\n    name = "{name}",\n    srcs = glob(\n        ["*"],\n'
        '        exclude = ["BUILD"],\n    ),\n'
        '    visibility = ["//tests:__subpackages__"],\n)\n'
    )


def build_files(root: pathlib.Path) -> dict[pathlib.Path, str]:
    """Text of the BUILD file of every folder that holds Python files or data, keyed by path."""
    modules = find_modules(root)
    texts = {
        root / folder / "BUILD": _data_build_file(name)
        for folder, name in DATA_FOLDERS.items()
        if (root / folder).is_dir()
    }
    for module in modules.values():
        readers = [f"{each}:__subpackages__" for each in VISIBILITY[module.path.parts[0]]]
        opening = f"{HEADER}\npackage(\n{_attribute('default_visibility', readers)})\n"
        path = root / module.path.parent / "BUILD"
        texts[path] = texts.get(path, opening) + _rule(module, modules, root)
    return texts


def _import_problems(module: Module, modules: Mapping[str, Module]) -> Iterator[str]:
    for name in module.imports:
        target = _resolve(name, modules)
        if target is None:
            yield f"{module.path} imports {name}, which no file provides; write its full path."
        elif module.layer and _RANKS.get(target.layer, 0) > _RANKS.get(module.layer, len(LAYERS)):
            below = f"the layer {module.layer!r} is below {target.layer!r}"
            yield f"{module.path} imports {target.path}, but {below}."


def problems(root: pathlib.Path) -> list[str]:
    """One line for each rule that a file breaks."""
    modules = find_modules(root)
    paths = {module.path for module in modules.values()}
    lines: list[str] = []
    for module in modules.values():
        lines += _import_problems(module, modules)
        if module.layer and module.layer not in _RANKS:
            lines.append(f"{module.path} is in no layer; add {module.layer!r} to LAYERS.")
        if module.is_silent:
            end = "raise SystemExit(pytest.main([__file__]))"
            lines.append(f"{module.path} runs no test when started; end it with {end!r} as main.")
        if (
            module.path.stem not in ("__init__", "conftest", "settings")
            and module.counterpart not in paths
        ):
            state = "mirrors no module" if module.kind == "py_test" else "has no test"
            lines.append(f"{module.path} {state}; expected {module.counterpart}.")
    return list(dict.fromkeys(lines))


def main(arguments: list[str] | None = None, root: pathlib.Path = pathlib.Path()) -> None:
    """Writes or checks the BUILD files under `root`; exits 1 with one line per problem."""
    parser = argparse.ArgumentParser(description="Writes the BUILD files from the imports.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on stale files")
    check = parser.parse_args(arguments).check
    texts = build_files(root)
    existing = {path for folder in VISIBILITY for path in (root / folder).rglob("BUILD")}
    existing |= {path for path in texts if path.exists()}
    lines = problems(root)
    for path in sorted(existing | texts.keys()):
        if path in existing and path.read_text(encoding="utf-8") == texts.get(path):
            continue
        if check:
            lines.append(f"{path} is stale; run `python -m tools.build_files`.")
        elif path in texts:
            path.write_text(texts[path], encoding="utf-8")
        else:
            path.unlink()
    if lines:
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()
