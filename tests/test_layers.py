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
    "files": set(),
    "tables": {"elements", "files"},
    "tabulate": {"elements", "elastic", "inelastic", "tables"},
    "random": set(),
    "specimen": set(),
    "transport": {"random", "tables"},
    "scattering": {"elements", "random", "transport"},
    "reach": {"elements", "inelastic"},
    "instrument": {"random", "transport"},
    "biasing": {"random", "scattering", "transport"},
    "lanes": {"biasing", "random", "transport"},
    "step": {"biasing", "instrument", "lanes", "random", "scattering", "transport"},
    "walk": {"instrument", "lanes", "step", "transport"},
    "work": {
        "biasing",
        "instrument",
        "lanes",
        "random",
        "reach",
        "specimen",
        "tables",
        "transport",
        "walk",
    },
    "imaging": {"biasing", "instrument", "lanes", "specimen", "tables", "work"},
    "phantoms": {"specimen"},
    "shapes": {"phantoms"},
    "textures": {"phantoms"},
    "nebula": {"elements", "files", "inelastic", "instrument", "specimen", "tables", "transport"},
    "__init__": {"biasing", "imaging", "instrument", "phantoms", "specimen"},
}
PACKAGE_ARROWS = {
    "models": set(),
    "losses": set(),
    "metrics": {"losses"},
    "parallel": set(),
    "log": {"imageio", "parallel"},
    "imageio": set(),
    "volumes": {"imageio"},
    "measure": {"imageio"},
    "report": {"data", "imageio"},
    "template": {"report"},
    "page": {"data", "evaluate", "imageio", "reconstruct", "report", "template"},
    "volume_page": {"check", "imageio", "measure", "template"},
    "sem_metadata": set(),
    "similarity": {"sem_metadata"},
    "registration": {"sem_metadata", "similarity"},
    "image_files": {"sem_metadata"},
    "instrument_files": {"forward", "image_files", "imageio", "sem_metadata"},
    "examples": {"imageio"},
    "data": {"examples", "parallel"},
    "checkpoint": {"data", "parallel"},
    "forward": {"checkpoint", "examples", "models", "sim"},
    "likelihood": {"forward"},
    "blur": {"data", "examples", "forward"},
    "deconvolution": {"blur", "forward", "likelihood"},
    "fit": {"forward", "likelihood"},
    "plan": {"forward", "imageio", "likelihood"},
    "baselines": {"blur", "data", "examples", "models"},
    "methods": {
        "baselines",
        "blur",
        "checkpoint",
        "data",
        "deconvolution",
        "forward",
        "observe",
        "inference",
        "parallel",
        "sim",
    },
    "paper_tables": set(),
    "compare": {
        "checkpoint",
        "data",
        "evaluate",
        "forward",
        "imageio",
        "methods",
        "metrics",
        "models",
        "page",
        "paper_tables",
        "parallel",
        "sim",
    },
    "task": {"data", "examples", "forward", "losses", "metrics"},
    "step": {"parallel", "task"},
    "observe": {"data"},
    "stream": {"data", "forward", "imageio", "observe", "parallel", "sim"},
    "source": {"data", "stream"},
    "sweep": {"data", "imageio", "losses", "models", "parallel", "source", "step", "task"},
    "train": {"checkpoint", "data", "log", "losses", "models", "parallel", "source", "step", "task"},
    "tiles": {"parallel"},
    "inference": {"checkpoint", "imageio", "metrics", "models", "parallel"},
    "check": {"forward", "observe", "tiles"},
    "intervals": {"measure"},
    "calibration": {"check", "checkpoint", "imageio"},
    "calibrate": {
        "calibration",
        "check",
        "checkpoint",
        "data",
        "forward",
        "imageio",
        "inference",
        "intervals",
        "measure",
        "metrics",
        "parallel",
        "reconstruct",
        "stream",
    },
    "reconstruct": {
        "calibration",
        "check",
        "checkpoint",
        "data",
        "forward",
        "imageio",
        "inference",
        "intervals",
        "measure",
        "models",
        "sim",
        "tiles",
    },
    "reconstruct_files": {
        "checkpoint",
        "forward",
        "imageio",
        "instrument_files",
        "intervals",
        "measure",
        "parallel",
        "reconstruct",
        "registration",
        "report",
        "volume_page",
        "volumes",
    },
    "evaluate": {
        "checkpoint",
        "data",
        "forward",
        "imageio",
        "inference",
        "metrics",
        "parallel",
        "reconstruct",
        "report",
        "sim",
        "simulate",
    },
    "simulate": {"imageio", "sim"},
}
ONE_OWNER = {
    "orbax": {"checkpoint"},
    "ml_collections": {
        "train",
        "sweep",
        "source",
        "evaluate",
        "checkpoint",
        "compare",
        "methods",
        "calibrate",
    },
}


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


def modules(folder: str) -> dict[str, list[Path]]:
    """Files of every module and subpackage of a folder, by name."""
    files = {path.stem: [path] for path in (ROOT / folder).glob("*.py")}
    packages = {path.parent for path in (ROOT / folder).glob("*/__init__.py")}
    return files | {package.name: list(package.glob("*.py")) for package in packages}


def test_every_module_has_its_place():
    assert set(modules("bsevox_jax/sim")) == set(SIM_ARROWS)
    assert set(modules("bsevox_jax")) - {"__init__", "sim"} == set(PACKAGE_ARROWS)


def test_physics_knows_nothing_of_learning_and_its_modules_follow_the_arrows():
    for name, paths in modules("bsevox_jax/sim").items():
        names = set().union(*map(imported_names, paths))
        assert ours(names, "bsevox_jax") <= {"sim"}, name
        members = {"Instrument", "simulate_bse"}
        assert ours(names, "bsevox_jax.sim") - members <= SIM_ARROWS[name] | {name}, name
        foreign = top_level(names) - set(sys.stdlib_module_names) - {"bsevox_jax"}
        assert foreign <= SIM_LIBRARIES, (name, foreign)


def test_package_modules_follow_the_arrows():
    found = modules("bsevox_jax")
    for name, allowed in PACKAGE_ARROWS.items():
        for path in found[name]:
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
