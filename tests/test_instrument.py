import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsevox_jax import sim
from bsevox_jax.sim import instrument
from bsevox_jax.sim.instrument import Instrument
from bsevox_jax.sim.transport import Electron
from bsevox_jax.sim.work import compiled_for

BLOCK = np.ones((6, 6, 10), np.uint8)
BITS = jax.random.bits(jax.random.key(0), (3, 200_000), "uint32")


def image(**changes):
    return sim.simulate_bse(
        BLOCK, electrons_per_pixel=100, beam_energies_kev=(1.0,), instrument=Instrument(**changes)
    )


def primaries(**changes):
    zero, kev = jnp.zeros(BITS.shape[1]), jnp.ones(BITS.shape[1])
    return instrument.primary(Instrument(**changes), zero, zero, kev, 1.0, BITS)


@pytest.fixture(scope="module")
def plain():
    return image()


def test_probe_of_no_width_only_fills_the_pixel():
    electron = primaries()
    for position in (electron.x, electron.y):
        assert 0 < position.min() and position.max() < 1
        assert float(position.mean()) == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / position.size))
    assert (electron.uz == 1).all() and (electron.z > 0).all()


def test_probe_is_gaussian_with_the_given_width_at_half_maximum():
    fwhm_nm = 3.0
    electron, unblurred = primaries(probe_fwhm_nm=fwhm_nm), primaries()
    sigma = fwhm_nm / instrument.FWHM_PER_SIGMA
    n = BITS.shape[1]
    for blurred, start in zip(electron[:2], unblurred[:2], strict=True):
        offset = np.asarray(blurred - start, float) / sigma
        assert abs(offset.mean()) < 5 / math.sqrt(n)
        assert abs(offset.var() - 1) < 5 * math.sqrt(2 / n)
        assert abs((offset**4).mean() - 3) < 5 * math.sqrt(96 / n)
    within = np.hypot(electron.x - unblurred.x, electron.y - unblurred.y) < fwhm_nm / 2
    assert abs(within.mean() - 0.5) < 5 * 0.5 / math.sqrt(n)  # in two dimensions half lies within


def test_tilt_stretches_the_probe_along_the_surface():
    tilt_rad, azimuth_rad = math.radians(60), math.radians(30)
    options = {"tilt_rad": tilt_rad, "tilt_azimuth_rad": azimuth_rad}
    electron, centre = primaries(probe_fwhm_nm=2.0, **options), primaries(**options)
    dx, dy = np.asarray(electron.x - centre.x, float), np.asarray(electron.y - centre.y, float)
    along = dx * math.cos(azimuth_rad) + dy * math.sin(azimuth_rad)
    aside = dy * math.cos(azimuth_rad) - dx * math.sin(azimuth_rad)
    assert along.std() / aside.std() == pytest.approx(2.0, rel=0.02)


def test_beam_points_into_the_specimen_at_the_tilt():
    for tilt in (0.0, 0.4, 1.2):
        direction = np.array(instrument.beam_direction(Instrument(tilt_rad=tilt, tilt_azimuth_rad=0.5)))
        assert np.linalg.norm(direction) == pytest.approx(1, rel=1e-6)
        assert math.acos(min(1, direction[2])) == pytest.approx(tilt, abs=1e-3)


def test_vanishing_tilt_is_normal_incidence(plain):
    """A tilted beam starts above the surface and is refracted; its limit is the beam that starts below."""
    tilted = image(tilt_rad=1e-4)
    share, limit = tilted.yields.mean(), plain.yields.mean()
    assert abs(share - limit) < 5 * math.sqrt(2 * 1.5 * limit / (100 * BLOCK[..., 0].size))
    assert not tilted.fates["unfinished"].any()


def test_more_tilt_brings_back_more():
    counts = [image(tilt_rad=math.radians(angle)).counts.sum() for angle in (0, 40, 75)]
    assert counts[0] * 1.15 < counts[1] and counts[1] * 1.15 < counts[2]


def test_images_of_all_tilt_azimuths_are_alike():
    """A flat uniform specimen has no direction."""
    counts = np.array(
        [image(tilt_rad=0.8, tilt_azimuth_rad=angle).counts.sum() for angle in (0.0, 1.0, 2.5, 4.0)], float
    )
    assert np.ptp(counts) < 6 * math.sqrt(1.5 * counts.mean())


def test_full_window_counts_what_no_window_counts(plain):
    full = image(highest_energy_kev=99.0, largest_exit_angle_rad=math.pi)
    np.testing.assert_array_equal(full.counts, plain.counts)
    assert not plain.fates["missed"].any()


def test_windows_that_part_the_electrons_add_up(plain):
    edges = [0.0, 0.5, 1.0, math.pi]
    rings = [
        image(smallest_exit_angle_rad=low, largest_exit_angle_rad=high)
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    np.testing.assert_array_equal(sum(ring.counts for ring in rings), plain.counts)
    slow = image(highest_energy_kev=0.6)
    detected = plain.counts.sum()
    assert slow.fates["missed"].sum() + slow.counts.sum() == detected and 0 < slow.counts.sum() < detected


def test_detector_deaf_below_an_energy_counts_the_others(plain):
    fast = image(lowest_energy_kev=0.6)
    slow = image(highest_energy_kev=0.6)
    share, expected = fast.yields.mean(), plain.yields.mean() - slow.yields.mean()
    assert abs(share - expected) < 5 * math.sqrt(2 * expected / 3600)
    assert fast.steps < 0.6 * plain.steps


def test_exit_angle_is_measured_from_the_way_back_to_the_gun():
    tilted = Instrument(tilt_rad=0.5, smallest_exit_angle_rad=0.0, largest_exit_angle_rad=0.01)
    ux, uy, uz = (-u for u in instrument.beam_direction(tilted))
    one = jnp.ones(())
    back = Electron(one, one, one, ux, uy, uz, one, one)
    assert bool(instrument.accepts(tilted, back))
    assert not bool(instrument.accepts(tilted, back._replace(ux=one * 0, uz=-one)))


@pytest.mark.slow
def test_spectrum_holds_the_electrons_of_the_image(plain):
    spectrum = sim.simulate_spectrum(BLOCK, electrons_per_pixel=100, beam_energies_kev=(1.0,))
    assert spectrum.electrons == 3600
    assert spectrum.counts.sum() == plain.counts.sum()
    assert spectrum.counts[..., 0].sum() == plain.primary_counts.sum()
    assert (
        spectrum.counts[:, :4].sum() == 0 < spectrum.counts[:, 95:].sum()
    )  # 50 eV of 1 keV; the elastic ones


def test_instrument_does_not_compile_the_walk_again():
    compiled_for("cpu").clear_cache()
    image()
    programs = compiled_for("cpu")._cache_size()  # one for each device
    for changes in ({"probe_fwhm_nm": 2.0}, {"tilt_rad": 0.3}, {"lowest_energy_kev": 0.2}):
        image(**changes)
    assert compiled_for("cpu")._cache_size() == programs


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"probe_fwhm_nm": -1.0}, "probe_fwhm_nm must be 0 or more; got -1.0"),
        ({"probe_fwhm_nm": math.nan}, "probe_fwhm_nm"),
        ({"tilt_rad": 1.55}, "tilt_rad must be 0 to 1.4835"),
        ({"lowest_energy_kev": 0.01}, "lowest_energy_kev must be 0.05 or more"),
        ({"lowest_energy_kev": 3.0, "highest_energy_kev": 2.0}, "below highest_energy_kev"),
        ({"smallest_exit_angle_rad": 1.0, "largest_exit_angle_rad": 0.5}, "below largest_exit_angle_rad"),
        ({"largest_exit_angle_rad": 4.0}, "at most pi"),
    ],
)
def test_broken_instruments_are_refused_with_the_rule(changes, rule):
    with pytest.raises(ValueError, match=rule):
        image(**changes)
