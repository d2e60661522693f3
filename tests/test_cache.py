"""Chunks, their layers and the sets made of them, with a simulator that takes no time."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfds_bse
from bsevox_jax import sim
from bsevox_jax.sim import phantoms, shapes, textures
from tfds_bse import cache, estimate, packing, parts, sets

SMOKE = sets.CONFIGS["smoke"]


def content(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def quick(monkeypatch):
    """Images in no time: electron k of a pixel is counted if k is a multiple of one more than its copper."""
    started = []

    def simulate_bse(labels, *, electrons_per_pixel, beam_energies_kev, first_electron, **_):
        started.append((len(labels), first_electron, first_electron + electrons_per_pixel))
        every = 1 + (np.asarray(labels) == 2).sum(-1)[..., None] + np.arange(len(beam_energies_kev))
        return types.SimpleNamespace(
            counts=(first_electron + electrons_per_pixel - 1) // every - (first_electron - 1) // every
        )

    monkeypatch.setattr(sim, "simulate_bse", simulate_bse)
    return started


def at_dose(dose, **changes):
    return dataclasses.replace(SMOKE, name="small", electrons_per_pixel=dose, **changes)


def test_higher_dose_takes_over_the_electrons_there_are_and_gives_the_same_bytes(quick, tmp_path):
    for dose in (3, 5, 12):
        folder = tfds_bse.build(at_dose(dose), tmp_path / "grown")
        shutil.move(folder, tmp_path / f"dose_{dose}")
    assert quick == [(16, 0, 3)] * 4 + [(16, 3, 5)] * 4 + [(16, 5, 12)] * 4
    quick.clear()
    tfds_bse.build(at_dose(5), tmp_path / "grown")
    assert not quick, "a lower dose is made of the layers there are"
    tfds_bse.build(at_dose(4), tmp_path / "grown5")
    at_once = tfds_bse.build(at_dose(12), tmp_path / "at once")
    assert content(Path(at_once)) == content(tmp_path / "dose_12")
    assert content(Path(at_once)) != content(tmp_path / "dose_5")


def test_dose_between_two_layers_is_made_of_the_lower_one_and_the_rest(quick, tmp_path):
    for dose in (3, 12):
        chunks = cache.ChunkCache(at_dose(dose), tmp_path)
        chunks.fill()
    chunks = cache.ChunkCache(at_dose(7), tmp_path)
    quick.clear()
    chunks.fill()
    assert quick == [(16, 3, 7)] * 4
    assert chunks.primaries_missing() == 0


def test_damaged_layer_is_made_again(quick, tmp_path):
    cache.ChunkCache(at_dose(3), tmp_path).fill()
    chunks = cache.ChunkCache(at_dose(5), tmp_path)
    chunks.fill()
    expected, quick[:] = list(chunks.read("train")), []
    damaged = chunks.folder / "train-0000000-0000016" / "electrons-3-5.npz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(FileNotFoundError, match="train-0000000-0000016 is missing or damaged"):
        next(chunks.read("train"))
    # A layer under the name of another one is not what it says.
    shutil.copy(damaged.with_name("electrons-0-3.npz"), damaged.with_name("electrons-3-6.npz"))
    chunks.fill()
    assert quick == [(16, 3, 5)]
    for ours, theirs in zip(expected, chunks.read("train"), strict=True):
        np.testing.assert_array_equal(ours["counts"], theirs["counts"])
    assert cache.ChunkCache(at_dose(6), tmp_path).missing(("train", range(16))) == range(5, 6)


def test_counts_beyond_sixteen_bits_are_refused(quick, tmp_path):
    for dose in (40_000, 80_000):
        chunks = cache.ChunkCache(at_dose(dose), tmp_path)
        chunks.fill()
    with pytest.raises(ValueError, match="counts must fit into 16 bits; got 80000"):
        next(chunks.read("train"))


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    mine = parts.name(tmp_path / "chunk.npz")
    dead = Path(str(mine).replace(f"-{os.getpid()}-", f"-{done.pid}-"))
    foreign = tmp_path / f"chunk.npz.elsewhere-{os.getpid()}-0.part"
    old = tmp_path / f"chunk.npz.elsewhere-{os.getpid()}-1.part"
    folder = dead.with_name(dead.name.replace("chunk", "folder"))
    folder.mkdir()
    for path in (mine, dead, foreign, old, folder / "record", tmp_path / "other.npz"):
        path.write_text("")
    os.utime(old, (0, 0))
    parts.remove_abandoned(tmp_path.glob("*.part"))
    assert sorted(tmp_path.iterdir()) == sorted([mine, foreign, tmp_path / "other.npz"])


class Killed(BaseException):
    """Stands for kill -9: nothing but `finally` runs, and what that would clean is left out."""


@pytest.mark.parametrize("renames", range(7))
def test_build_stopped_before_any_rename_goes_on_to_the_same_bytes(quick, tmp_path, monkeypatch, renames):
    """The recipe, four layers and the packed set become visible by a rename each; the seventh never comes."""
    whole = content(Path(tfds_bse.build(at_dose(3), tmp_path / "whole")))
    left = iter(range(renames))

    def stop(rename):
        def renaming(*args, **options):
            if next(left, None) is None:
                raise Killed
            return rename(*args, **options)

        return renaming

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop(os.replace))
        patch.setattr(os, "rename", stop(os.rename))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with contextlib.suppress(Killed):
            tfds_bse.build(at_dose(3), tmp_path / "killed")
    assert content(Path(tfds_bse.build(at_dose(3), tmp_path / "killed"))) == whole


def test_split_of_several_files_is_read_in_order(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SPECIMENS_PER_FILE", 15)
    folder = Path(tfds_bse.build(at_dose(3), tmp_path))
    names = sorted(path.name for path in folder.glob("*train*"))
    assert names == [f"bse_voxels-train.array_record-0000{k}-of-00003" for k in range(3)]
    source = tfds.builder_from_directory(folder).as_data_source("train")
    assert [int(example["index"]) for example in source] == list(range(32))


def test_packing_holds_one_chunk_at_a_time(quick, tmp_path):
    chunks = cache.ChunkCache(at_dose(3), tmp_path)
    chunks.fill()
    living = []

    class Source:
        def read(self, split):
            for specimen in chunks.read(split):
                living.append(weakref.ref(specimen["counts"].base))
                assert len({id(array) for ref in living if (array := ref()) is not None}) <= 2
                yield specimen

    packing.pack(chunks.config, Source(), sets.settings(chunks.config, chunks.recipe), tmp_path)
    assert len(living) == 64


def test_fixed_splits_hold_the_structures_they_name(quick, tmp_path):
    config = dataclasses.replace(
        sets.CONFIGS["standard-test"], name="small", specimens=STRUCTURES, electrons_per_pixel=2
    )
    builder = tfds.builder_from_directory(tfds_bse.build(config, tmp_path))
    family = builder.info.features["family"]
    cubes, wires, odd = (list(builder.as_data_source(split)) for split in STRUCTURES)
    assert [int(example["index"]) % 100_000_000 for example in wires] == list(range(10))
    for position, example in enumerate(cubes, start=1):
        np.testing.assert_array_equal(example["labels"], phantoms.nanocube(position))
    for k, example in enumerate(wires):
        np.testing.assert_array_equal(
            example["labels"], phantoms.nanowire((2, 4, 6, 8, 10)[k % 5], "zx"[k // 5])
        )
        assert family.int2str(example["family"]) == f"nanowire {'lying' if k // 5 else 'upright'}"
    for name, example in zip(shapes.SHAPES, odd, strict=True):
        np.testing.assert_array_equal(example["labels"], shapes.SHAPES[name]())
        assert family.int2str(example["family"]) == name


STRUCTURES = {"nanocube": 4, "nanowire": 10, "out_of_family": 12}


def test_standard_test_specimens_are_no_training_specimens():
    train, test = sets.CONFIGS["standard-train"], sets.CONFIGS["standard-test"]
    numbers = [
        set(sets.numbers(split, range(number)).tolist())
        for config in (train, test)
        for split, number in config.specimens.items()
    ]
    assert len(set().union(*numbers)) == sum(map(len, numbers)) == sets.TRAIN_SPECIMENS + 200 + 226
    drawn = [labels.tobytes() for s in ("train", "test") for labels in sets.draw(test, s, range(16))[0]]
    assert len(set(drawn)) == 32


def test_textures_are_numbered_apart_and_their_version_decides_only_their_bytes(monkeypatch):
    numbers = sets.numbers(sets.TEXTURES, range(sets.CONFIGS["textures"].specimens[sets.TEXTURES]))
    others = [first for split, first in sets.FIRST_SPECIMEN.items() if split != sets.TEXTURES]
    assert all(abs(numbers - first).min() > 1_000_000 for first in others)
    names = ("textures", "standard-train", "standard-test")
    before = [cache.recipe(sets.CONFIGS[name]) for name in names]
    monkeypatch.setattr(textures, "TEXTURES_VERSION", "9.9.9")
    after = [cache.recipe(sets.CONFIGS[name]) for name in names]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]


def test_dry_run_tells_what_there_is_to_do_and_writes_nothing(quick, tmp_path):
    config = at_dose(6)
    cache.ChunkCache(at_dose(2), tmp_path / "bse_voxels_chunks").fill()
    before = content(tmp_path)
    lines = list(estimate.lines(config, tmp_path))
    assert content(tmp_path) == before
    total, there = 64 * 8000 * 6, 64 * 8000 * 2
    assert lines[0].startswith("specimens    train 32, validation 16, test 16, at 6 electrons per pixel")
    assert lines[1] == f"electrons    {total:,}, of which {there:,} are there"
    assert [line.split("  ")[0] for line in lines[2:]] == ["on the disk", "rate here", "time left"]
    tfds_bse.build(config, tmp_path)
    assert list(estimate.lines(config, tmp_path))[-1].startswith("nothing to do: it is packed in")
