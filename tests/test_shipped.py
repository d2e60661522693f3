"""Shipped data sets: equal to those simulated, small, read without TFDS, and checked."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfds_bse
from bsevox_jax import checkpoint, data, sim
from bsevox_jax.evaluate import iou_cu
from bsevox_jax.inference import cu_probability
from tfds_bse import cache, sets, shipped

ROOT = Path(__file__).parent.parent
SPLITS = {"train": 20, "nanocube": 4, "out_of_family": 12}


@pytest.fixture(params=[100, 1000])
def config(request, tmp_path, monkeypatch):
    """A set that is shipped in a folder of its own; its counts are Poisson."""

    def simulate_bse(labels, *, electrons_per_pixel, beam_energies_kev, specimen_ids, **_):
        rng = np.random.default_rng(specimen_ids)
        yields = 0.1 + 0.2 * (np.asarray(labels) == 2).mean(-1)[..., None] / np.arange(1, 21) ** 0.5
        return type("Images", (), {"counts": rng.poisson(electrons_per_pixel * yields)})

    monkeypatch.setattr(sim, "simulate_bse", simulate_bse)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    dose = request.param
    config = sets.Config(
        name=f"small{dose}", description="", specimens=SPLITS, electrons_per_pixel=dose, seed=3
    )
    monkeypatch.setitem(sets.CONFIGS, config.name, config)
    tfds_bse.build(config, tmp_path / "simulated", simulate=True)
    chunks = tfds_bse.chunks_of(config, tmp_path / "simulated")
    shipped.write(config, sets.settings(config, chunks.recipe), chunks)
    return config


def content(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_set_built_from_the_shipped_file_has_the_bytes_of_the_simulated_one(config, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "simulate", None)
    folder = tfds_bse.build(config, tmp_path / "packed")
    assert content(Path(folder)) == content(tmp_path / "simulated" / "bse_voxels")
    assert not (tmp_path / "packed" / "bse_voxels_chunks").exists()


@pytest.mark.slow
def test_loading_reads_the_shipped_file_and_gives_what_tfds_gives(config, tmp_path):
    splits = data.load(str(tmp_path / "none"), config.name, needs=("train",))
    assert not (tmp_path / "none").exists() and list(splits) == list(SPLITS)
    builder = tfds.builder_from_directory(tfds_bse.build(config, tmp_path / "simulated"))
    packed = data._load_tfds(str(builder.data_dir))
    for split, examples in splits.items():
        for name in ("counts", "labels"):
            ours, theirs = getattr(examples, name), getattr(packed[split], name)
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        for name in ("electrons_per_pixel", "beam_energies_kev", "name", "families"):
            assert getattr(examples, name) == getattr(packed[split], name)


def test_file_is_close_to_the_entropy_of_its_counts_and_repeats_itself(config, tmp_path):
    path = shipped.FOLDER / f"{config.name}.npz"
    counts = np.concatenate([a["counts"] for a in tfds_bse.find_shipped(config).splits.values()])
    bits = 0
    for e in range(20):
        share = np.unique(counts[..., e], return_counts=True)[1] / counts[..., e].size
        bits -= counts[..., e].size * (share * np.log2(share)).sum()
    assert path.stat().st_size < 1.12 * bits / 8 + 10_000
    before = path.read_bytes()
    chunks = tfds_bse.chunks_of(config, tmp_path / "simulated")
    shipped.write(config, sets.settings(config, chunks.recipe), chunks)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change", [{"electrons_per_pixel": 50}, {"seed": 4}, {"specimens": SPLITS | {"train": 21}}]
)
def test_shipped_set_of_other_settings_does_not_serve(config, change, caplog):
    assert tfds_bse.find_shipped(dataclasses.replace(config, **change)) is None
    assert f"has other settings ({next(iter(change))})" in caplog.text


def test_newer_simulator_does_not_take_the_shipped_set(config, monkeypatch):
    monkeypatch.setattr(sim, "SIMULATOR_VERSION", "9.9.9")
    assert tfds_bse.find_shipped(config) is None


@pytest.mark.parametrize("fault", ["flipped", "cut", "missing", "manifest"])
def test_damaged_shipped_file_is_one_line_with_the_remedy(config, tmp_path, fault):
    path = shipped.FOLDER / f"{config.name}.npz"
    content = path.read_bytes()
    if fault == "flipped":
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif fault == "cut":
        path.write_bytes(content[:-1])
    elif fault == "missing":
        path.unlink()
    else:
        (shipped.FOLDER / "manifest.json").write_text("{")
    with pytest.raises(OSError, match="the shipped data set must be whole; got .* Restore") as error:
        data.load(str(tmp_path), config.name)
    assert "\n" not in str(error.value)


def test_regenerated_set_is_compared_count_by_count(config, tmp_path):
    there = tfds_bse.find_shipped(config)
    tfds_bse.build(config, tmp_path / "again", simulate=True)
    chunks = tfds_bse.chunks_of(config, tmp_path / "again")
    assert not any(shipped.differences(there, chunks).values())
    there.splits["nanocube"]["counts"][1, 2, 3] += 1
    assert shipped.differences(there, chunks) == {"index": 0, "family": 0, "labels": 0, "counts": 20}


def test_manifest_tells_how_the_file_was_made(config):
    entry = json.loads((shipped.FOLDER / "manifest.json").read_text())[config.name]
    assert entry["command"] == f"python -m tfds_bse --config={config.name} --data_dir=data --ship"
    assert entry["settings"]["simulator_version"] == sim.SIMULATOR_VERSION
    assert entry["settings"]["seed"] == 3 and len(entry["sha256"]) == 64 and entry["version"]


def test_shipped_set_is_read_without_tensorflow_datasets(config, tmp_path):
    program = (
        "import sys\n"
        "for name in ('tensorflow_datasets', 'tensorflow'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from tfds_bse import sets, shipped\n"
        "from bsevox_jax import data\n"
        f"shipped.FOLDER = Path({str(shipped.FOLDER)!r})\n"
        f"sets.CONFIGS[{config.name!r}] = sets.Config(name={config.name!r}, description='', seed=3,\n"
        f"    specimens={SPLITS}, electrons_per_pixel={config.electrons_per_pixel})\n"
        f"assert len(data.load({str(tmp_path)!r}, {config.name!r})['train']) == 20\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["standard-train", "standard-test", "standard-validation", "textures", "calibration"]
)
def test_what_the_project_ships_is_whole_and_of_the_configuration(name):
    found = tfds_bse.find_shipped(name)
    assert found is not None, "the shipped set must be of the simulator's version"
    assert {split: len(a["index"]) for split, a in found.splits.items()} == sets.CONFIGS[name].specimens


def test_shipped_files_are_small():
    assert sum(p.stat().st_size for p in shipped.FOLDER.glob("*")) <= 24e6


@pytest.mark.slow
def test_shipped_specimen_is_simulated_anew_but_for_rounding():
    """On the processor that made it bit for bit; others may turn one history in 10,000."""
    found = tfds_bse.find_shipped("standard-train")
    dose = found.config.electrons_per_pixel
    anew = cache.simulate(found.config, "train", range(1), range(dose))
    shipped_one = next(found.read("train"))
    np.testing.assert_array_equal(anew["labels"][0], shipped_one["labels"])
    moved = np.abs(anew["counts"][0].astype(int) - shipped_one["counts"]).sum()
    assert moved <= 1e-4 * found.config.electrons(1)


def test_shipped_network_is_whole_small_and_finds_a_cube():
    folder = checkpoint.shipped("compact")
    assert sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) <= 8e6
    export, cubes = checkpoint.load_export(folder), data.load("none", "standard-test")["nanocube"]
    probability = cu_probability(export, cubes.counts, cubes.electrons_per_pixel)
    assert min(iou_cu(probability, cubes.labels)) > 0.9
