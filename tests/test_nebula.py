"""Geometry, primaries and counts of Nebula, and running it: the rules, the way out and back, faults.

NEBULA_BINARY=/path/nebula_cpu_mt lets the slow test of the program itself run.
"""

import dataclasses
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

import jax
import nebula_rules
import numpy as np
import pytest
from nebula_files import ENERGIES_KEV

from bsevox_jax import sim
from bsevox_jax.sim import nebula, phantoms

ONE_ELECTRON = {"electrons_per_pixel": 1, "beam_energies_kev": (1.0,)}


def script(path: Path, command: str) -> str:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """A program with the files, options and banner of Nebula."""
    tests = Path(__file__).parent
    settings = f"PYTHONPATH={tests}:{tests.parent} JAX_COMPILATION_CACHE_DIR={tests.parent}/.jax_cache"
    settings += " JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5"
    command = shlex.join([sys.executable, str(tests / "nebula_program.py")])
    return script(tmp_path_factory.mktemp("program") / "nebula", f'{settings} exec {command} "$@"')


def specimens(random):
    yield from (phantoms.random_specimen(jax.random.key(seed)) for seed in range(random))
    yield from (phantoms.nanocube(position) for position in (1, 2, 3, 4))
    yield from (phantoms.nanowire(radius, axis) for radius in (0, 2, 6, 10) for axis in "xyz")


def check_geometry(path, labels, voxel_nm=1.0):
    labels = np.asarray(labels)
    nebula.write_geometry(path, sim.Specimen(labels, voxel_nm))
    nebula_rules.check_geometry(path, labels, voxel_nm)


@pytest.mark.slow
def test_triangles_enclose_the_voxels(tmp_path):
    for labels in (phantoms.random_specimen(jax.random.key(2)), phantoms.nanowire(4, "x")):
        check_geometry(tmp_path / "box.tri", labels)


def test_triangles_enclose_any_pattern_of_voxels_of_any_size(tmp_path):
    random = np.random.default_rng(0)
    noise = random.integers(0, 3, (6, 7, 5)).astype(np.uint8)  # vacuum above, below and inside
    check_geometry(tmp_path / "box.tri", noise)
    check_geometry(tmp_path / "box.tri", noise, 0.37)
    check_geometry(tmp_path / "box.tri", np.ones((2, 2, 30), np.uint8), 50.0)
    check_geometry(tmp_path / "box.tri", np.zeros((3, 4, 5), np.uint8))


@pytest.mark.slow
def test_triangles_enclose_the_voxels_of_many_specimens(tmp_path):
    for labels in specimens(60):
        check_geometry(tmp_path / "box.tri", labels)


def test_slab_is_the_one_of_the_manual(tmp_path):
    """A film between detector, terminator and mirrors takes 16 triangles: 12 of the box, 4 of its faces."""
    nebula.write_geometry(tmp_path / "box.tri", sim.Specimen(np.ones((20, 20, 20), np.uint8)))
    materials, corners = nebula_rules.read_triangles(tmp_path / "box.tri")
    assert len(materials) == 16
    faces = corners[(materials == [0, -123]).all(1)]
    assert set(faces[:, :, 2].ravel()) == {5, 25}
    outwards = nebula_rules.normals(faces)[:, 2]
    assert (np.sign(outwards) == np.where(faces[:, 0, 2] == 5, -1, 1)).all()


@pytest.mark.slow
def test_files_of_a_full_data_set_take_little_time(tmp_path):
    specimen = sim.Specimen(np.asarray(phantoms.random_specimen(jax.random.key(0))))
    start = time.perf_counter()
    nebula.write_geometry(tmp_path / "box.tri", specimen)
    assert time.perf_counter() - start < 0.5
    start = time.perf_counter()
    electrons = nebula.primaries(specimen, electrons_per_pixel=250, beam_energies_kev=sim.PAPER_ENERGIES_KEV)
    nebula.write_electrons(tmp_path / "box.pri", electrons)
    assert len(electrons) == 2_000_000 and time.perf_counter() - start < 4  # 0.6 s on a free core


@pytest.mark.parametrize(
    "instrument",
    [
        sim.Instrument(),
        sim.Instrument(probe_fwhm_nm=3.0),
        sim.Instrument(probe_fwhm_nm=30.0, tilt_rad=0.6, tilt_azimuth_rad=2.0),
    ],
)
def test_primaries_follow_the_rules(tmp_path, instrument):
    specimen = sim.Specimen(np.ones((5, 7, 4), np.uint8))
    options = dict(electrons_per_pixel=30, beam_energies_kev=ENERGIES_KEV, instrument=instrument)
    nebula.write_electrons(tmp_path / "box.pri", nebula.primaries(specimen, **options))
    nebula_rules.check_electrons(tmp_path / "box.pri", specimen.labels, ENERGIES_KEV, 30)


def test_primaries_start_evenly_in_their_pixel_and_depend_on_seed_and_specimen():
    specimen = sim.Specimen(np.ones((3, 4, 2), np.uint8), voxel_nm=2.0)
    options = dict(electrons_per_pixel=5000, beam_energies_kev=(1.0,))
    electrons = nebula.primaries(specimen, **options)
    np.testing.assert_array_equal(electrons["y"] // 2 * 4 + electrons["x"] // 2, electrons["px"])
    for name in "xy":
        within = electrons[name] / 2 % 1
        assert abs(within.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(within))
        assert abs(within.var() * 12 - 1) < 5 * np.sqrt(0.8 / len(within))
    np.testing.assert_array_equal(electrons, nebula.primaries(specimen, **options))
    for other in ({"seed": 1}, {"specimen_id": 1}):
        assert not np.array_equal(electrons, nebula.primaries(specimen, **options, **other))


def test_tilted_and_blurred_beam_meets_the_surface_in_its_pixel():
    """Traced to the surface and mirrored back, the mean of a middle pixel stays, and the variances add up."""
    specimen = sim.Specimen(np.ones((41, 41, 2), np.uint8))
    instrument = sim.Instrument(probe_fwhm_nm=2.0, tilt_rad=0.7, tilt_azimuth_rad=np.pi / 2)
    options = dict(electrons_per_pixel=50, beam_energies_kev=(1.0,), instrument=instrument)
    electrons = nebula.primaries(specimen, **options)
    electrons = electrons[(electrons["px"] // 41 == 20) & (abs(electrons["px"] % 41 - 20) < 10)]
    x, y = (electrons[n] + (5 - electrons["z"]) / electrons["dz"] * electrons[f"d{n}"] for n in "xy")
    variance = (2.0 / 2.3548) ** 2
    for offset, expected in (
        (x - electrons["px"] % 41 - 0.5, 1 / 12 + variance),
        (y - 20.5, 1 / 12 + variance / np.cos(0.7) ** 2),
    ):
        assert abs(offset.mean()) < 5 * np.sqrt(expected / len(offset))
        assert abs(offset.var() / expected - 1) < 5 * np.sqrt(2 / len(offset))
    np.testing.assert_allclose(electrons["dy"], np.sin(0.7), rtol=1e-6)


def records(n, **values):
    electrons = np.zeros(n, nebula.RECORD)
    for name, value in ({"dz": -1, "E": 1000} | values).items():
        electrons[name] = value
    return electrons


def test_every_detected_electron_is_counted_once(tmp_path):
    random = np.random.default_rng(0)
    expected = random.integers(0, 5, (4, 3, 2))
    cells = np.repeat(np.arange(24), expected.ravel())
    random.shuffle(cells)
    records(len(cells), px=cells // 2, py=cells % 2).tofile(tmp_path / "out.det")
    detected = nebula.read_electrons(tmp_path / "out.det")
    np.testing.assert_array_equal(nebula.count(detected, (4, 3, 2)), expected)
    (tmp_path / "none.det").touch()
    assert nebula.count(nebula.read_electrons(tmp_path / "none.det"), (4, 3, 2)).sum() == 0


def test_window_of_the_detector_selects_energy_and_angle():
    energies = records(4, E=[50, 499, 501, 2000])
    window = sim.Instrument(lowest_energy_kev=0.5, highest_energy_kev=1.0)
    assert nebula.count(energies, (1, 1, 1)).sum() == 4
    assert nebula.count(energies, (1, 1, 1), window).sum() == 1
    angle = np.radians([0, 20, 40, 60])
    leaving = records(4, dx=5 * np.sin(angle), dz=-5 * np.cos(angle))  # directions of any length
    ring = sim.Instrument(smallest_exit_angle_rad=0.3, largest_exit_angle_rad=0.8)
    assert nebula.count(leaving, (1, 1, 1), ring).sum() == 2
    # The way back to a gun tilted towards +x is -x: all these leave on its far side, at 40 degrees and more.
    tilted = dataclasses.replace(ring, tilt_rad=np.radians(40))
    assert nebula.count(leaving, (1, 1, 1), tilted).sum() == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"px": 12}, "tag px of detected electrons must be 0 to 11; got 0 to 12"),
        ({"py": -1}, "tag py of detected electrons must be 0 to 1; got -1 to 0"),
        ({"E": np.nan}, "must have finite numbers; got NaN or inf"),
        ({"dx": np.inf}, "must have finite numbers; got NaN or inf"),
    ],
)
def test_damaged_records_are_refused_in_one_line(change, message):
    electrons = np.concatenate([records(3), records(1, **change)])
    with pytest.raises(ValueError, match=message) as error:
        nebula.count(electrons, (4, 3, 2))
    assert "\n" not in str(error.value)


def test_file_cut_short_is_refused(tmp_path):
    records(3).tofile(tmp_path / "out.det")
    with open(tmp_path / "out.det", "r+b") as file:
        file.truncate(100)
    with pytest.raises(OSError, match="whole records of 36 bytes; got 100 bytes in .*out.det"):
        nebula.read_electrons(tmp_path / "out.det")


@pytest.mark.slow
def test_counts_come_back_from_the_program(stand_in, materials, tmp_path, monkeypatch):
    """Labels, energies, doses and tags survive the way through all four files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    labels = np.asarray(phantoms.nanowire(6, "x"))
    options = dict(electrons_per_pixel=60, beam_energies_kev=(1.0, 5.0))
    with nebula.program(stand_in, materials) as program:
        assert program.version == "1.0.2"
        counts = nebula.simulate(labels, program, **options)
    assert list(tmp_path.iterdir()) == []
    expected = sim.simulate_bse(labels, **options).counts
    assert counts.shape == (20, 20, 2)
    a, b = counts.sum((0, 1)), expected.sum((0, 1))
    assert (abs(a - b) < 5 * np.sqrt(1.5 * (a + b))).all(), (a, b)
    rows = counts.sum((1, 2)), expected.sum((1, 2))  # across the wire: the images lie the same way
    assert np.corrcoef(*rows)[0, 1] > 0.9


@pytest.mark.parametrize(
    "command, message",
    [
        ("exit 3", "exit code 3 after 'Loading geometry'"),
        ("kill -6 $$", "signal 6 after"),
        ("printf 12345", "whole records of 36 bytes; got 5 bytes"),
        ("echo 'WARNING: 7 primary electrons starting outside geometry.' >&2", "must accept all primaries"),
    ],
)
def test_failure_of_the_program_is_one_line_and_leaves_nothing(
    materials, tmp_path, monkeypatch, command, message
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    banner = 'echo "This is Nebula version 1.0.2" >&2; [ $# = 0 ] && exit 1; echo "Loading geometry" >&2'
    binary = script(tmp_path / "nebula", f"{banner}\n{command}")
    with nebula.program(binary, materials) as program, pytest.raises(OSError, match=message) as error:
        nebula.simulate(np.ones((2, 2, 2), np.uint8), program, **ONE_ELECTRON)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_program_that_cannot_run_is_refused(tmp_path, materials):
    def refused(binary, message, materials=materials):
        with pytest.raises((OSError, ValueError), match=message) as error:
            with nebula.program(str(binary), materials):
                pass
        assert "\n" not in str(error.value)

    refused("", "the Nebula program must exist; got ''")
    refused(tmp_path / "absent", "the Nebula program must exist; got .*absent")
    (tmp_path / "plain").write_text("")
    refused(tmp_path / "plain", "must be executable; got .*plain.*chmod")
    refused(script(tmp_path / "other", "echo 'This is Nebula version 2.0.0'"), "version 1; got .*2.0.0")
    refused(script(tmp_path / "else", "echo hello"), "version 1; got 'hello'")
    good = script(tmp_path / "good", "echo 'This is Nebula version 1.0.2'")
    refused(good, "the material file must exist; got absent.mat", ("absent.mat",))


@pytest.mark.slow
def test_materials_must_be_those_of_the_labels(tmp_path, materials):
    binary = script(tmp_path / "nebula", "echo 'This is Nebula version 1.0.2' >&2")
    copper = np.full((2, 2, 2), 2, np.uint8)
    with nebula.program(binary, materials[:1]) as program:
        with pytest.raises(ValueError, match="a material file per label; got 1 for label 2"):
            nebula.simulate(copper, program, **ONE_ELECTRON)
    with nebula.program(binary, names=("Si", "Cu")) as program:
        for names in (("Cu", "Si"), ("Si", "Au")):
            with pytest.raises(ValueError, match=f"got {', '.join(names)}, have Si, Cu. Pass names=specimen"):
                nebula.simulate(sim.Specimen(copper, materials=names), program, **ONE_ELECTRON)
        unused = sim.Specimen(copper // 2, materials=("Si", "Au"))
        assert nebula.simulate(unused, program, **ONE_ELECTRON).sum() == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"electrons_per_pixel": 0.5}, "electrons_per_pixel must be a whole number from 1 to 2147483647"),
        ({"beam_energies_kev": (2.0, 1.0)}, "beam_energies_kev must ascend"),
        ({"beam_energies_kev": (0.01,)}, "beam_energies_kev must lie in 0.1 to inf keV"),
        ({"specimen_ids": [1, 2]}, "specimen_ids must name each specimen; got 2 ids for 1"),
    ],
)
def test_broken_options_are_refused_before_the_program_starts(tmp_path, materials, change, message):
    with nebula.program(script(tmp_path / "n", "echo Nebula version 1.0.2"), materials) as program:
        (tmp_path / "n").unlink()
        with pytest.raises(ValueError, match=message) as error:
            nebula.simulate(np.ones((2, 2, 2), np.uint8), program, **(ONE_ELECTRON | change))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif("NEBULA_BINARY" not in os.environ, reason="NEBULA_BINARY must name the program")
def test_film_yields_of_the_program_with_our_tables(materials):
    """Nebula frees secondaries by its own rules, which changes the yields by up to 6 %; docs/physics.md."""
    with nebula.program(os.environ["NEBULA_BINARY"], materials) as program:
        for label in (1, 2):
            film = np.full((20, 20, 20), label, np.uint8)
            options = dict(electrons_per_pixel=250, beam_energies_kev=ENERGIES_KEV)
            counts = nebula.simulate(film, program, **options).sum((0, 1))
            ours = sim.simulate_bse(film, **options).counts.sum((0, 1))
            error = np.sqrt(1.5 * (1 / counts + 1 / ours))
            deviation = abs(np.log(counts / ours))
            assert (deviation < 0.07 + 4 * error).all(), (label, counts / ours)
