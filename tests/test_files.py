import os

import numpy as np
import pytest

from bsevox_jax.sim import Specimen, nebula, tables
from bsevox_jax.sim.files import whole_file


def test_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as temporary:
        with open(temporary, "w") as file:
            file.write("new")
        assert not path.exists() and os.path.dirname(temporary) == str(tmp_path)
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_error_leaves_neither_the_file_nor_the_temporary_one(tmp_path, error):
    with pytest.raises(error), whole_file(tmp_path / "a.txt") as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_error_keeps_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ValueError), whole_file(tmp_path / "a.txt") as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        raise ValueError
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), whole_file(tmp_path / "absent/a") as temporary:
        open(temporary, "w")


@pytest.mark.parametrize("kind", ["tables", "electrons", "geometry", "material"])
def test_full_disk_leaves_nothing_of_any_kind_of_file(tmp_path, kind, smallest_files):
    silicon = tables.shipped(("Si",))
    writers = {
        "tables": lambda path: tables.save(silicon, path),
        "electrons": lambda path: nebula.write_electrons(path, np.zeros(10_000, nebula.RECORD)),
        "geometry": lambda path: nebula.write_geometry(path, Specimen(np.ones((20, 20, 20), np.uint8))),
        "material": lambda path: nebula.write_material(path, silicon, "Si"),
    }
    with smallest_files(64), pytest.raises(OSError):
        writers[kind](tmp_path / "file")
    assert os.listdir(tmp_path) == []
