"""The data set: what it holds, that it can be repeated, resumed and checked, and what faults say."""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfds_bse
from bsevox_jax import sim
from bsevox_jax.sim import PAPER_ENERGIES_KEV, SIMULATOR_VERSION, phantoms
from tfds_bse import cache, estimate, sets

SMOKE = sets.CONFIGS["smoke"]
CHUNKS = "bse_voxels_chunks"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tfds_bse.build("smoke", folder)
    return folder


@pytest.fixture
def copy(root, tmp_path):
    """A folder with the chunks only."""
    shutil.copytree(root / CHUNKS, tmp_path / CHUNKS)
    return tmp_path


def content(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(*arguments):
    """Python in the repository, with the compilation cache of this process: XLA rounds otherwise without."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=Path(__file__).parent.parent,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def run(*arguments):
    process = start(*arguments)
    _, stderr = process.communicate()
    return process.returncode, stderr


def test_examples_hold_images_and_the_voxels_under_them(root):
    builder = tfds.builder_from_directory(tfds_bse.build("smoke", root))
    seen = set()
    for split, number in SMOKE.specimens.items():
        examples = list(builder.as_data_source(split))
        assert len(examples) == number
        for place, example in enumerate(examples):
            assert example["index"] == sets.FIRST_SPECIMEN[split] + place, "in order"
            assert example["counts"].shape == (20, 20, 20) and example["counts"].dtype == np.uint16
            assert example["labels"].shape == (20, 20, 20) and example["labels"].dtype == np.uint8
            assert example["electrons_per_pixel"] == 4
            key = jax.random.fold_in(jax.random.key(SMOKE.seed), example["index"])
            labels, family = jax.jit(phantoms.random_specimen_with_family)(key)
            np.testing.assert_array_equal(example["labels"], labels)
            assert example["family"] == family
            assert 0 < example["counts"].mean() < 4
            seen.add(int(example["index"]))
    assert len(seen) == sum(SMOKE.specimens.values())


def test_metadata_tell_how_the_data_were_made(root):
    metadata = tfds.builder_from_directory(tfds_bse.build("smoke", root)).info.metadata
    assert tuple(metadata["beam_energies_kev"]) == PAPER_ENERGIES_KEV
    assert metadata["electrons_per_pixel"] == 4 and metadata["seed"] == 0
    assert metadata["simulator"] == "bsevox" and metadata["simulator_version"] == SIMULATOR_VERSION
    assert sim.Instrument(**metadata["instrument"]) == SMOKE.instrument == sim.Instrument()


def test_damaged_and_missing_chunks_are_made_again_with_the_same_bytes(root, copy, caplog):
    chunks = cache.ChunkCache(SMOKE, copy / CHUNKS)
    first, second = (chunks.folder / f"train-{n:07d}-{n + 16:07d}" / "electrons-0-4.npz" for n in (0, 16))
    damaged = bytearray(second.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    second.write_bytes(damaged)
    first.unlink()

    chunks.fill((1, 2))
    assert "electrons-0-4.npz is damaged; simulating it again" in caplog.text
    assert not first.exists(), "chunk 0 belongs to shard 0"
    chunks.fill((0, 2))
    assert content(copy / CHUNKS) == content(root / CHUNKS)


def test_sound_chunks_are_skipped(copy):
    before = {path: path.stat().st_mtime_ns for path in (copy / CHUNKS).rglob("*.npz")}
    cache.ChunkCache(SMOKE, copy / CHUNKS).fill()
    assert before == {path: path.stat().st_mtime_ns for path in (copy / CHUNKS).rglob("*.npz")}


def test_shard_zero_makes_what_the_others_left(root, copy):
    folder = cache.ChunkCache(SMOKE, copy / CHUNKS).folder
    last = folder / "test-0000000-0000016" / "electrons-0-4.npz"
    expected = last.read_bytes()
    last.unlink()
    cache.ChunkCache(SMOKE, copy / CHUNKS).fill((0, 2))
    assert last.read_bytes() == expected


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"beam_energies_kev": PAPER_ENERGIES_KEV[:-1]},
        {"instrument": sim.Instrument(probe_fwhm_nm=1.0)},
        {"simulator": "nebula"},
    ],
)
def test_chunks_of_other_settings_are_not_read(copy, change):
    ours = cache.ChunkCache(SMOKE, copy / CHUNKS)
    theirs = cache.ChunkCache(dataclasses.replace(SMOKE, **change), copy / CHUNKS)
    shutil.copytree(ours.folder, theirs.folder)
    with pytest.raises(FileNotFoundError, match="missing or damaged. Start again"):
        next(theirs.read("train"))


def test_layers_of_the_simulator_add_up(root):
    """The rest is simulated from the right electron on."""
    chunk = ("train", range(16))
    parts_of_dose = [cache.simulate(SMOKE, *chunk, electrons) for electrons in (range(3), range(3, 4))]
    whole = list(cache.ChunkCache(SMOKE, root / CHUNKS).read("train"))[:16]
    added = parts_of_dose[0]["counts"] + parts_of_dose[1]["counts"]
    np.testing.assert_array_equal(added, np.stack([specimen["counts"] for specimen in whole]))


def test_estimated_size_is_about_the_real_one(root):
    arrays = cache.simulate(SMOKE, "train", range(16), range(4))
    chunks, packed = estimate._megabytes(SMOKE, 4, arrays)
    size = {folder: sum(map(len, content(root / folder).values())) / 1e6 for folder in (CHUNKS, "bse_voxels")}
    assert chunks == pytest.approx(size[CHUNKS], rel=0.15)
    assert packed == pytest.approx(size["bse_voxels"], rel=0.15)


def test_growing_a_split_keeps_its_chunks():
    larger = dataclasses.replace(SMOKE, specimens={"train": 48, "validation": 16, "test": 16})
    ours, theirs = cache.ChunkCache(SMOKE, Path("any")), cache.ChunkCache(larger, Path("any"))
    assert ours.folder == theirs.folder and set(ours.chunks()) < set(theirs.chunks())


def test_unknown_configuration_or_shard_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config must be one of smoke, .*, textures, .*; got 'big'"):
        tfds_bse.build("big", tmp_path)
    with pytest.raises(ValueError, match="smoke_nebula must be simulated by Nebula; got no program"):
        tfds_bse.build("smoke_nebula", tmp_path)
    with pytest.raises(ValueError, match="shard must be i/n with 0 <= i < n; got 2/2"):
        tfds_bse.build("smoke", tmp_path, shard=(2, 2))


def test_folder_that_cannot_be_written_is_one_line_and_exit_code_two(tmp_path):
    (tmp_path / "file").write_text("")
    code, stderr = run("-m", "tfds_bse", "--config=smoke", f"--data_dir={tmp_path / 'file' / 'data'}")
    assert code == 2 and len(stderr.splitlines()) == 1
    assert stderr.startswith(f"error: cannot write {tmp_path}/file/data") and "choose another" in stderr


def test_wrong_flag_is_one_line_and_exit_code_two():
    for flag, said in (("--confg=smoke", "confg"), ("--shard=2", "shard must be i/n, as 0/2")):
        code, stderr = run("-m", "tfds_bse", flag)
        assert code == 2 and len(stderr.splitlines()) == 1 and said in stderr


@pytest.mark.parametrize("fault", ["flipped", "cut", "missing", "no metadata"])
def test_damaged_data_set_is_refused_with_the_remedy(copy, fault):
    folder = Path(tfds_bse.build("smoke", copy))
    records = folder / "bse_voxels-test.array_record-00000-of-00001"
    if fault == "flipped":
        records.write_bytes(records.read_bytes()[:1000] + b"\xff" + records.read_bytes()[1001:])
    elif fault == "cut":
        records.write_bytes(records.read_bytes()[:1000])
    elif fault == "missing":
        records.unlink()
    else:
        (folder / "metadata.json").write_text("{")
    with pytest.raises(OSError, match="is damaged .* Delete this folder and start again"):
        tfds_bse.build("smoke", copy)


def test_data_set_of_other_settings_is_refused(copy):
    folder = Path(tfds_bse.build("smoke", copy))
    shutil.copytree(folder, folder.parent.parent / "quickstart" / folder.name)
    with pytest.raises(ValueError, match=r"other settings \(electrons_per_pixel, specimens\)"):
        tfds_bse.build("quickstart", copy)


def test_packing_in_another_process_gives_the_same_bytes_and_never_imports_tensorflow(root, copy):
    program = (
        "import sys, tfds_bse, tensorflow_datasets as tfds\n"
        f"folder = tfds_bse.build('smoke', {str(copy)!r})\n"
        "source = tfds.builder_from_directory(folder).as_data_source('train')\n"
        "assert source[0]['counts'].sum() > 0\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    code, stderr = run("-c", program)
    assert code == 0, stderr
    assert content(copy / "bse_voxels") == content(root / "bse_voxels")


def test_packing_leaves_nothing_in_the_folder_of_temporary_files(copy, tmp_path_factory, monkeypatch):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    tfds_bse.build("smoke", copy)
    assert list(temporary.iterdir()) == []


@pytest.fixture
def nebula(tmp_path):
    """A program with the banner of Nebula that detects every primary and fails while a file `stop` exists."""
    program, materials = tmp_path / "nebula", [tmp_path / "si.mat", tmp_path / "cu.mat"]
    program.write_text(
        "#!/bin/sh\necho This is Nebula version 1.0.2 >&2\n[ $# = 0 ] && exit 1\n"
        f"echo start >> {tmp_path}/starts\n[ -e {tmp_path}/stop ] && [ $(wc -l < {tmp_path}/starts) -gt 20 ]"
        " && echo no memory >&2 && exit 9\ncat $6\n"
    )
    program.chmod(0o755)
    for path in materials:
        path.write_text(path.name)
    return {"binary": str(program), "materials": [str(path) for path in materials]}


def starts(folder):
    return len((folder / "starts").read_text().splitlines())


def test_nebula_makes_a_set_of_its_own_that_is_read_without_it(nebula, tmp_path):
    folder = tfds_bse.build("smoke_nebula", tmp_path, **nebula)
    builder = tfds.builder_from_directory(tfds_bse.build("smoke_nebula", tmp_path))
    assert starts(tmp_path) == 64, "one start per specimen, none to read"
    name = f"bse_voxels/smoke_nebula/{sets.VERSION}"
    assert builder.info.full_name == name and folder.endswith(name)
    metadata = builder.info.metadata
    assert (metadata["simulator"], metadata["nebula_version"]) == ("nebula", "1.0.2")
    assert len(metadata["nebula_materials_sha256"]) == 2 and "simulator_version" not in metadata
    for example in builder.as_data_source("test"):
        assert (example["counts"] == 4).all()
        key = jax.random.fold_in(jax.random.key(SMOKE.seed), example["index"])
        labels, _ = jax.jit(phantoms.random_specimen_with_family)(key)
        np.testing.assert_array_equal(example["labels"], labels)


def test_failed_nebula_keeps_the_finished_chunks(nebula, tmp_path):
    (tmp_path / "stop").touch()
    with pytest.raises(OSError, match="exit code 9 after 'no memory'") as error:
        tfds_bse.build("smoke_nebula", tmp_path, **nebula)
    assert "\n" not in str(error.value)
    chunks = sorted(path.name for path in (tmp_path / CHUNKS).rglob("*") if path.is_file())
    assert chunks == ["electrons-0-4.npz", "recipe.json"] and starts(tmp_path) == 21
    (tmp_path / "stop").unlink()
    tfds_bse.build("smoke_nebula", tmp_path, **nebula)
    assert starts(tmp_path) == 21 + 48


def test_set_of_other_materials_is_refused(nebula, tmp_path):
    tfds_bse.build("smoke_nebula", tmp_path, **nebula)
    Path(nebula["materials"][1]).write_text("other")
    with pytest.raises(ValueError, match=r"other settings \(nebula_materials_sha256\)"):
        tfds_bse.build("smoke_nebula", tmp_path, **nebula)


@pytest.mark.slow
def test_two_fresh_builds_give_the_same_bytes(root, tmp_path):
    tfds_bse.build("smoke", tmp_path)
    assert content(tmp_path) == content(root)


@pytest.mark.slow
def test_killed_build_resumes_and_gives_the_same_bytes(root, tmp_path):
    command = ("-m", "tfds_bse", "--config=smoke", f"--data_dir={tmp_path}")
    process = start(*command)
    while len(list(tmp_path.rglob("*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert 2 <= len(kept) < 4
    assert run(*command)[0] == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert content(tmp_path / "bse_voxels") == content(root / "bse_voxels")
