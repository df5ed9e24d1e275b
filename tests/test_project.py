"""Rules of the project that hold for files, not for functions."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffjax

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
LIBRARY = sorted((ROOT / "diffjax").rglob("*.py"))
# Absolute paths of somebody's machine.
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:work|root|home/\w+)/")


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imported_names(source: str) -> set[str]:
    """Dotted names that a module imports, anywhere in it; relative ones are left out."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _imported(source: str) -> set[str]:
    return {name.partition(".")[0] for name in _imported_names(source)}


def _text_files() -> list[Path]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        out = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in out.split("\0") if name and (ROOT / name).is_file()]


def test_imports_are_found_wherever_they_stand():
    source = "import a.b, c\ndef f():\n    from d.e import g\n    from . import h\n"
    assert _imported_names(source) == {"a.b", "c", "d.e.g"}
    assert _imported(source) == {"a", "c", "d"}


@pytest.mark.parametrize("path", CONFIGS, ids=_relative)
def test_configs_import_only_ml_collections_siblings_and_the_defaults(path):
    allowed = {"ml_collections", "configs", "diffjax"} | set(sys.stdlib_module_names)
    assert _imported(path.read_text("utf-8")) <= allowed
    ours = {n for n in _imported_names(path.read_text("utf-8")) if n.startswith("diffjax")}
    assert all(name.startswith("diffjax.config.") for name in ours)


@pytest.mark.parametrize("path", CONFIGS, ids=_relative)
def test_configs_start_with_a_docstring(path):
    tree = ast.parse(path.read_text("utf-8"))
    docstring = ast.get_docstring(tree)
    assert docstring
    if any(isinstance(n, ast.FunctionDef) and n.name == "get_config" for n in tree.body):
        assert f"--config={_relative(path)}" in docstring, "the docstring gives the command"


@pytest.mark.parametrize("path", CONFIGS + LIBRARY, ids=_relative)
def test_nothing_imports_experiments(path):
    assert "experiments" not in _imported(path.read_text("utf-8"))


@pytest.mark.parametrize("path", LIBRARY, ids=_relative)
def test_linen_stays_in_nets(path):
    linen = {n for n in _imported_names(path.read_text("utf-8")) if n.startswith("flax.linen")}
    assert not linen or path.is_relative_to(ROOT / "diffjax/nets")


@functools.cache
def _find_module(name: str) -> Path | None:
    """The file of a module of ours."""
    path = ROOT / name.replace(".", "/")
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.exists() else None


@functools.cache
def _list_names(path: Path) -> set[str]:
    """Names that a module has: what it binds outside of functions, and its submodules."""
    names = {child.stem for child in path.parent.iterdir()} if path.stem == "__init__" else set()
    names |= {"__file__", "__name__", "__doc__", "__version__"}
    todo: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).partition(".")[0] for a in node.names}
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                names |= _list_names(_find_module(node.module or ""))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        todo += ast.iter_child_nodes(node)
    return names


def _find_absent_names(path: Path) -> set[str]:
    """Names that a file takes from modules of ours, but which these have not."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    absent, modules = set(), {}
    imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
    for node in imports:
        if (node.module or "").partition(".")[0] not in ("diffjax", "experiments", "configs"):
            continue
        source = _find_module(node.module)
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            if _find_module(name):
                modules[alias.asname or alias.name] = name
            elif source is None or alias.name not in {*_list_names(source), "*"}:
                absent.add(name)
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    stored |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id) if node.value.id not in stored else None
            if module and node.attr not in _list_names(_find_module(module)):
                absent.add(f"{module}.{node.attr}")
    return absent


def _is_lazy(name: str) -> bool:
    """Whether `diffjax.__getattr__` gives a name."""
    module, _, attribute = name.rpartition(".")
    return module == "diffjax" and hasattr(diffjax, attribute)


@pytest.mark.parametrize("folder", ["diffjax", "configs", "experiments", "tests"])
def test_names_that_files_take_from_our_modules_exist(folder):
    """What moves is moved everywhere, also in entry points that no test starts."""
    found = {
        _relative(path): absent
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (absent := {name for name in _find_absent_names(path) if not _is_lazy(name)})
    }
    assert not found


def test_absent_names_are_found(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "from diffjax import types, nowhere\nfrom diffjax.types import choose, chose\n"
        "from experiments.absent import f\ntypes.choose, types.chose\n"
    )
    names = {"diffjax.nowhere", "diffjax.types.chose", "experiments.absent.f"}
    assert _find_absent_names(path) == names


def test_no_paths_of_one_machine():
    found = []
    for path in _text_files():
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{_relative(path)}:{i}" for i, x in enumerate(lines, 1) if MACHINE_PATH.search(x)
        ]
    assert not found


def test_importing_diffjax_loads_nothing_heavy():
    code = "import sys, diffjax; print(*{'jax', 'flax', 'numpy'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert not out.stdout.split()


def test_making_a_config_loads_nothing_heavy():
    """Because every command makes one before it knows whether --help was asked for."""
    code = "import sys; from configs import ddpm; ddpm.get_config('digits'); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert not {"jax", "flax", "optax", "orbax"} & set(out.stdout.decode().split())


def test_version_is_the_changelogs_or_newer():
    assert re.fullmatch(r"\d+\.\d+\.\d+", diffjax.__version__)
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert not released or released[0] == diffjax.__version__


# ---- the structure ------------------------------------------------------------------------------

OURS = sorted(p for f in ("diffjax", "experiments", "configs") for p in (ROOT / f).rglob("*.py"))
ENTRY_POINTS = sorted((ROOT / "experiments").glob("*.py"))


def _module(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _find_imports(path, known):
    """Modules of ours that a file imports anywhere, for type checkers alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (below & known) or {node.module}
    return found & known


def find_circle(graph):
    """A list of nodes that lead to each other in a circle; empty if there is none."""
    done, way = set(), []

    def visit(node):
        if node in way:
            return way[way.index(node) :]
        if node in done:
            return []
        way.append(node)
        circle = next(filter(None, map(visit, sorted(graph[node]))), [])
        way.pop()
        done.add(node)
        return circle

    return next(filter(None, map(visit, sorted(graph))), [])


def test_no_files_import_each_other_in_a_circle():
    modules = {_module(path): path for path in OURS}
    graph = {name: _find_imports(path, set(modules)) - {name} for name, path in modules.items()}
    assert sum(map(len, graph.values())) > 500
    assert find_circle(graph) == []


def test_circles_are_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def _count_lines(node):
    """Lines of a function or file, less those inside of texts such as docstrings and pages."""
    texts = [n for n in ast.walk(node) if isinstance(n, ast.Constant | ast.JoinedStr)]
    inside = {line for n in texts for line in range(n.lineno + 1, n.end_lineno + 1)}
    first, last = (node, node) if hasattr(node, "lineno") else (node.body[0], node.body[-1])
    return last.end_lineno - first.lineno + 1 - len(inside)


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text("utf-8")
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert _count_lines(node) <= 60, node.name


def test_entry_points_are_thin():
    sizes = {path.name: _count_lines(ast.parse(path.read_text("utf-8"))) for path in ENTRY_POINTS}
    assert {name: size for name, size in sizes.items() if size > 150} == {}
    assert sum(sizes.values()) <= 2500
