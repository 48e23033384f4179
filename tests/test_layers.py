"""Imports go down the list in docs/architecture.md only, without cycles; and importing polytask is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "polytask"

# From the top of the house to its floor. A module may import from its own place and from those below.
LAYERS = [
    ["testing"],
    ["cli"],
    ["api"],
    ["serving"],
    ["analysis"],
    ["reporting"],
    ["recipes"],
    ["training"],
    ["evaluation"],
    ["balancing"],
    ["models"],
    ["sharing"],
    ["data"],
    ["tasks"],
    ["registry"],
    ["catalogue"],
    ["expressions"],
    ["files"],
    ["fused"],
    ["errors"],
]
HEIGHT = {name: -level for level, names in enumerate(LAYERS) for name in names}


def modules():
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def place(module: str) -> str:
    """The room of ``polytask.x.y``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = SOURCE.parent / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """Modules of polytask that a file imports; with ``everywhere`` also those inside of functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("polytask.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "polytask":
            whole = node.module or ""
            names = {f"{whole}.{alias.name}" for alias in node.names}
            # `from package import module` needs the module; other names need the package itself.
            modules_named = {name for name in names if is_module(name)}
            found |= modules_named | ({whole} if names - modules_named else set())
    return found


def test_every_place_is_in_the_list():
    places = {place(name_of(path)) for path in modules()}
    assert places <= HEIGHT.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: name_of(path))
def test_imports_go_down(path):
    own = place(name_of(path))
    upward = [m for m in imported(path) if place(m) in HEIGHT and HEIGHT[place(m)] > HEIGHT[own]]
    assert not upward, f"{name_of(path)} imports upward: {upward}"


def test_balancing_knows_no_model_task_or_trainer():
    allowed = {"balancing", "registry", "fused", "errors"}
    for path in (SOURCE / "balancing").rglob("*.py"):
        others = {m for m in imported(path) if place(m) not in allowed and place(m) in HEIGHT}
        assert not others, f"{name_of(path)} imports {others}"


def test_the_mathematics_is_a_leaf():
    for path in (SOURCE / "balancing" / "functional").rglob("*.py"):
        others = {m for m in imported(path) if not m.startswith(("polytask.balancing.functional", "polytask.errors"))}
        assert not others, f"{name_of(path)} imports {others}"


def test_fused_layers_are_a_leaf():
    for path in (SOURCE / "fused").rglob("*.py"):
        others = {m for m in imported(path) if place(m) not in {"fused", "errors"} and place(m) in HEIGHT}
        assert not others, f"{name_of(path)} imports {others}"


def test_there_is_no_cycle_of_modules():
    names = {name_of(path): path for path in modules()}
    edges = {name: {m for m in imported(path, everywhere=False) if m in names} - {name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in names:
        visit(name, ())


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from polytask.cli import main\n"
        "try: main(['list'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'polars', 'sklearn', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
