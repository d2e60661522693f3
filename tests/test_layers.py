"""Who may import whom: the arrows of docs/design.md."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIM_LIBRARIES = {"jax", "numpy", "scipy"}
SIM_ARROWS = {
    "elements": set(),
    "elastic": {"elements"},
    "inelastic": {"elements"},
    "tables": {"elements", "elastic", "inelastic"},
    "random": set(),
    "specimen": set(),
    "transport": {"random", "tables"},
    "scattering": {"elements", "random", "transport"},
    "lanes": {"random", "scattering", "transport"},
    "imaging": {"lanes", "random", "specimen", "tables", "transport"},
    "phantoms": {"specimen"},
    "__init__": {"imaging", "phantoms", "specimen"},
}
PACKAGE_ARROWS = {
    "models": set(),
    "losses": set(),
    "metrics": set(),
    "parallel": set(),
    "log": {"imageio", "parallel"},
    "imageio": set(),
    "report": {"data", "imageio"},
    "data": {"imageio", "parallel"},
    "checkpoint": {"data", "parallel"},
    "step": {"data", "metrics", "parallel"},
    "train": {"checkpoint", "data", "log", "losses", "models", "parallel", "step"},
    "reconstruct": {"checkpoint", "imageio", "metrics", "models", "parallel", "report"},
    "evaluate": {"checkpoint", "data", "imageio", "metrics", "parallel", "reconstruct", "report", "sim"},
    "simulate": {"imageio", "sim"},
}
ONE_OWNER = {"orbax": {"checkpoint"}, "ml_collections": {"train", "evaluate", "checkpoint"}}


def imported_names(path: Path) -> set[str]:
    """Dotted names of all modules, and members of modules, that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(names, package: str) -> set[str]:
    """First component below `package` of the names that lie in it."""
    return {
        name.removeprefix(package + ".").split(".")[0] for name in names if name.startswith(package + ".")
    }


def top_level(names) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_every_module_has_its_place():
    assert {path.stem for path in (ROOT / "bsevox_jax/sim").glob("*.py")} == set(SIM_ARROWS)
    modules = {path.stem for path in (ROOT / "bsevox_jax").glob("*.py")} - {"__init__"}
    assert modules | {"models"} == set(PACKAGE_ARROWS)


def test_physics_knows_nothing_of_learning_and_its_modules_follow_the_arrows():

    for name, allowed in SIM_ARROWS.items():
        names = imported_names(ROOT / f"bsevox_jax/sim/{name}.py")
        assert ours(names, "bsevox_jax") <= {"sim"}, name
        members = {"simulate_bse"}
        assert ours(names, "bsevox_jax.sim") - members <= allowed, name
        foreign = top_level(names) - set(sys.stdlib_module_names) - {"bsevox_jax"}
        assert foreign <= SIM_LIBRARIES, (name, foreign)


def test_package_modules_follow_the_arrows():
    for name, allowed in PACKAGE_ARROWS.items():
        paths = (
            (ROOT / "bsevox_jax").glob("models/*.py")
            if name == "models"
            else [ROOT / f"bsevox_jax/{name}.py"]
        )
        for path in paths:
            assert ours(imported_names(path), "bsevox_jax") - {"__version__"} <= allowed | {name}, path


def test_foreign_libraries_have_one_owner():
    for path in (ROOT / "bsevox_jax").rglob("*.py"):
        names = imported_names(path)
        for library, owners in ONE_OWNER.items():
            assert library not in top_level(names) or path.stem in owners, (path, library)
        if "jax.pmap" in path.read_text():
            assert path.stem == "parallel", path


def test_package_docstring_module_imports_nothing():
    assert not imported_names(ROOT / "bsevox_jax/__init__.py")
