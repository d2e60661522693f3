"""Material files of Nebula for the tests."""

import pytest

from bsevox_jax.sim import nebula, tables

ENERGIES_KEV = (0.5, 1.0, 2.0, 5.0, 10.0)


@pytest.fixture(scope="session")
def materials(tmp_path_factory):
    """Material files of Si and Cu from the shipped tables."""
    paths = [tmp_path_factory.getbasetemp() / f"{name}.mat" for name in ("Si", "Cu")]
    for path in paths:
        nebula.write_material(path, tables.shipped((path.stem,)), path.stem)
    return tuple(map(str, paths))
