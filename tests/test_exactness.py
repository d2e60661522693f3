"""Transport against problems with exact answers: the walk is right where theory is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import exp1, expn

from bsevox_jax import sim
from bsevox_jax.sim import tables, transport, walk
from bsevox_jax.sim.reach import reach_nm

ENERGY_KEV = 0.1
BLOCK = (6, 6, 10)  # voxels of 1 nm; one shape, so that the walk is compiled once
SHARES = np.exp(tables.LOG_QUANTILES)


def model_cross_sections(elastic_per_nm, absorbing_per_nm):
    """Materials a, b, ... without a barrier that scatter isotropically and absorb, at these rates."""
    rows, points, count = len(tables.ENERGIES_KEV), len(SHARES), len(elastic_per_nm) + 1
    names = tuple("abcdefgh"[: count - 1])
    rates = [
        np.repeat(np.array([0.0, *r])[:, None], rows, 1).astype(np.float32)
        for r in (elastic_per_nm, absorbing_per_nm)
    ]
    return tables.CrossSections(
        material_names=(tables.VACUUM, *names),
        energies_kev=tables.ENERGIES_KEV.astype(np.float32),
        elastic_rate_per_nm=rates[0],
        inelastic_rate_per_nm=rates[1],
        angle_icdf=np.broadcast_to((1 - SHARES).astype(np.float32), (count, rows, points)),
        loss_icdf_kev=np.full((count, rows, points), 0.02, np.float32),  # more than enough, see `walked`
        barrier_kev=np.zeros(count, np.float32),
        fermi_kev=np.zeros(count, np.float32),
        core_edges_kev=np.full((count, 1), np.inf, np.float32),
        provenance="{}",
    )


def walked(
    labels, elastic_per_nm, absorbing_per_nm, *, electrons=50, seed=0, side_walls="mirror", **instrument
):
    """Images in model materials; what has lost anything is absorbed."""
    names = tuple("abcdefgh"[: len(elastic_per_nm)])
    return sim.simulate_bse(
        sim.Specimen(np.asarray(labels, np.uint8), materials=names, side_walls=side_walls),
        electrons_per_pixel=electrons,
        beam_energies_kev=(ENERGY_KEV,),
        instrument=sim.Instrument(lowest_energy_kev=0.09, **instrument),
        cross_sections=model_cross_sections(elastic_per_nm, absorbing_per_nm),
        follow_all=True,
        seed=seed,
    )


def shares(images):
    """Reflected and transmitted electrons per primary, and the number of primaries."""
    primaries = images.electrons_per_pixel * images.counts[..., 0].size
    detected = int(images.counts.sum())
    return detected / primaries, int(images.fates["transmitted"].sum()) / primaries, primaries


def assert_share(share, expected, trials):
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / trials), (share, expected)


def slab(albedo, thickness, cells=600):
    """Reflected and transmitted shares of a beam along the normal; isotropic scattering, optical units.

    The density of collisions obeys Q(t) = exp(-t) + (albedo/2) int E1(|t - s|) Q(s) ds; S. Chandrasekhar,
    Radiative Transfer (Dover, 1960), chapter 1. Cells of equal Q; the kernel is integrated over each.
    """
    edges = np.linspace(0, thickness, cells + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    signed = edges[None, :] - middle[:, None]
    primitive = np.sign(signed) * (1 - expn(2, np.abs(signed)))
    kernel = np.diff(primitive, axis=1)
    beam = -np.diff(np.exp(-edges)) / np.diff(edges)
    density = np.linalg.solve(np.eye(cells) - albedo / 2 * kernel, beam)
    back = -np.diff(expn(3, edges))
    forth = np.diff(expn(3, thickness - edges))
    return albedo / 2 * density @ back, np.exp(-thickness) + albedo / 2 * density @ forth


def half_space_albedo(albedo):
    """1 - sqrt(1 - albedo) H(1), H the function of Chandrasekhar (1960), chapter V, by iteration."""
    points, weights = np.polynomial.legendre.leggauss(64)
    mu, weights = (points + 1) / 2, weights / 2
    root = np.sqrt(1 - albedo)

    def h(at, h_mu):
        return 1 / (root + albedo / 2 * (weights * mu * h_mu / (at[:, None] + mu)).sum(1))

    h_mu = np.ones_like(mu)
    for _ in range(500):
        h_mu = h(mu, h_mu)
    return 1 - root * h(np.ones(1), h_mu)[0]


@pytest.mark.slow
def test_without_scattering_all_go_through():
    labels = np.ones(BLOCK)
    labels[1:3, 2:5, :4] = 0
    for tilt_rad in (0.0, 0.7, 1.4):
        reflected, transmitted, _ = shares(walked(labels, [0.0], [0.0], tilt_rad=tilt_rad))
        assert (reflected, transmitted) == (0, 1)


def attenuation(labels, rates, tilt_rad, azimuth_rad, side_walls):
    """Share that a ray loses nothing, over all pixels: rays traced finely through the specimen and beyond."""
    ny, nx, nz = labels.shape
    depth = (np.arange(4000) + 0.5) / 4000 * nz
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 1, (4000, 2)) * (nx, ny)
    run = np.tan(tilt_rad) * depth
    x, y = (start[:, i, None] + run * f(azimuth_rad) for i, f in enumerate((np.cos, np.sin)))
    inside = 1.0
    if side_walls == "mirror":
        x, y = (np.abs((v + n) % (2 * n) - n).clip(0, n - 1e-9) for v, n in ((x, nx), (y, ny)))
    if side_walls == "open":
        inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    x, y = x.astype(int) % nx, y.astype(int) % ny
    optical = (inside * np.array([0.0, *rates])[labels.astype(int)[y, x, depth.astype(int)]]).mean(1) * nz
    return np.exp(-optical / np.cos(tilt_rad)).mean()


@pytest.mark.parametrize(
    "tilt_rad, azimuth_rad, side_walls",
    [
        pytest.param(0.0, 0.0, "mirror", marks=pytest.mark.slow),
        pytest.param(0.6, 0.0, "mirror", marks=pytest.mark.slow),
        pytest.param(1.0, 2.0, "mirror", marks=pytest.mark.slow),
        pytest.param(1.0, 0.5, "periodic", marks=pytest.mark.slow),
        pytest.param(0.6, 2.0, "open", marks=pytest.mark.slow),
    ],
)
def test_absorbing_voxel_pattern_attenuates_exponentially_along_every_ray(tilt_rad, azimuth_rad, side_walls):
    labels = np.random.default_rng(1).integers(0, 3, BLOCK)
    rates = [0.05, 0.4]
    tilt = {"tilt_rad": tilt_rad, "tilt_azimuth_rad": azimuth_rad}
    images = walked(labels, [0.0, 0.0], rates, electrons=2000, side_walls=side_walls, **tilt)
    reflected, transmitted, trials = shares(images)
    assert reflected == 0
    expected = attenuation(labels, rates, tilt_rad, azimuth_rad, side_walls)
    assert abs(transmitted - expected) < 4 * np.sqrt(expected / trials) + 0.004  # of the traced rays


@pytest.mark.slow
def test_thin_film_scatters_once():
    """To first order in the thickness a quarter of 2 tau minus the second order comes back: int E2/2."""
    thickness = 0.02
    reflected, _, trials = shares(walked(np.ones(BLOCK), [thickness / 10], [0.0], electrons=12000))
    single = (1 - 2 * expn(3, thickness)) / 4
    assert_share(reflected, slab(1.0, thickness)[0], trials)
    assert reflected == pytest.approx(single, rel=0.08)


@pytest.mark.parametrize(
    "albedo, thickness", [pytest.param(1.0, 1.0, marks=pytest.mark.slow), (0.9, 1.0), (0.8, 5.0)]
)
def test_isotropically_scattering_slab_reflects_and_transmits_as_theory_says(albedo, thickness):
    rate = thickness / 10
    images = walked(np.ones(BLOCK), [albedo * rate], [(1 - albedo) * rate], electrons=3000)
    reflected, transmitted, trials = shares(images)
    assert_share(reflected, slab(albedo, thickness)[0], trials)
    assert_share(transmitted, slab(albedo, thickness)[1], trials)


@pytest.mark.parametrize("albedo", [0.5, 0.9, 0.99])
def test_half_space_has_the_albedo_of_chandrasekhar(albedo):
    rate = 6.0  # optical thickness 60
    images = walked(np.ones(BLOCK), [albedo * rate], [(1 - albedo) * rate], electrons=2000)
    assert_share(shares(images)[0], half_space_albedo(albedo), shares(images)[2])


def test_reference_solutions_agree_with_each_other():
    assert slab(0.9, 20.0)[0] == pytest.approx(half_space_albedo(0.9), rel=1e-3)
    assert exp1(1.0) == pytest.approx(expn(1, 1.0))


def pattern():
    labels = np.ones((8, 8, 12), np.uint8)
    labels[:, 4:, :5] = 2
    labels[2:5, 1:3, :6] = 0
    labels[5:, :3, 7:] = 2
    return labels


ENERGIES_KEV = (0.5, 2.0, 5.0)


def yields(labels, seed, **options):
    """Mean yields of 1,000,000 electrons per energy, and standard errors from the scatter of specimens."""
    images = sim.simulate_bse(
        labels, electrons_per_pixel=2000, beam_energies_kev=ENERGIES_KEV, seed=seed, **options
    )
    per_specimen = images.yields.mean((-3, -2), dtype=np.float64)
    return per_specimen.mean(0), per_specimen.std(0, ddof=1) / np.sqrt(len(per_specimen))


def assert_equal_yields(first, second):
    assert (np.abs(first[0] - second[0]) < 5 * np.hypot(first[1], second[1])).all(), (first, second)


@pytest.fixture(scope="module")
def reference():
    return yields(np.stack([pattern()] * 8), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("half_width", [0, 99])
def test_tracking_from_face_to_face_equals_delta_tracking(reference, half_width, monkeypatch):
    """0: own rates and a stop at every interface; 99: the largest rate, many null collisions."""

    def everywhere(rates_per_nm, _):
        return jnp.where(rates_per_nm > 0, half_width, 0)

    monkeypatch.setattr(transport, "_own_rate_half_width", everywhere)
    jax.clear_caches()
    other = yields(np.stack([pattern()] * 8), seed=2)
    jax.clear_caches()
    assert_equal_yields(reference, other)


@pytest.mark.slow
def test_counts_do_not_depend_on_how_often_stacks_and_cells_are_served(monkeypatch):
    options = {"electrons_per_pixel": 20, "beam_energies_kev": ENERGIES_KEV}
    often = sim.simulate_bse(pattern(), **options)
    monkeypatch.setattr(walk, "STEPS_PER_SERVICE", 31)
    jax.clear_caches()
    seldom = sim.simulate_bse(pattern(), **options)
    jax.clear_caches()
    np.testing.assert_array_equal(often.counts, seldom.counts)


@pytest.mark.slow
def test_mirrors_equal_the_unfolded_specimen(reference):
    tile = np.concatenate([pattern(), pattern()[::-1]], 0)
    unfolded = np.concatenate([tile, tile[:, ::-1]], 1)
    assert_equal_yields(reference, yields(np.stack([unfolded] * 3), seed=3))


@pytest.mark.slow
def test_giving_up_what_is_too_deep_changes_no_yield(reference):
    assert_equal_yields(reference, yields(np.stack([pattern()] * 8), seed=4, follow_all=True))


@pytest.mark.slow
def test_giving_up_what_is_too_deep_spares_most_of_the_walk_in_bulk():
    bulk = sim.Specimen(np.ones((4, 4, 40), np.uint8), voxel_nm=25.0, materials=("Si",))
    options = {"electrons_per_pixel": 200, "beam_energies_kev": (1.0, 5.0)}
    short, whole = (sim.simulate_bse(bulk, follow_all=follow_all, **options) for follow_all in (False, True))
    assert short.steps < 0.65 * whole.steps
    assert not short.fates["unfinished"].any()
    assert reach_nm(tables.shipped().select(("Si",)), 0.05)[-1] > 1000
