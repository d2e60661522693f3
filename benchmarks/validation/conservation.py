"""What must hold whatever the cross sections: conservation laws, accounts and symmetries."""

import math

import jax.numpy as jnp
import numpy as np

from benchmarks.validation import report, yields
from bsevox_jax import sim
from bsevox_jax.sim import elastic, elements, inelastic, scattering, transport
from bsevox_jax.sim.tables import shipped

COLLISIONS = 2_000_000


def compute() -> dict[str, list[dict]]:
    """Real draws of single collisions, accounts of all electrons, and symmetries of yields and images."""
    return {
        "collisions": [collisions(name, kev) for name in ("Si", "Cu") for kev in (0.1, 1.0, 10.0)],
        "accounts": accounts(),
        "alike": alike(),
        "images": images_of_turned_specimens(),
    }


def collisions(material: str, energy_kev: float) -> dict:
    """Draws collisions with the walk's own functions and holds them against the laws.

    Returns:
        `energy_residual`: largest |E - E' - (energy given to the struck electron)| over E; that one starts in
        the Fermi sea or in a core level. `momentum_residual`: largest ||k - k'| - q| over k, q the momentum
        given to it. `loss` and `turn`: mean energy loss and mean 1 - cos of elastic events per nm, over the
        stopping power and the transport cross section, with the errors of the draws.
    """
    cross_sections, constants = shipped((material,)), elements.material(material)
    row = int(np.abs(np.log(np.asarray(cross_sections.energies_kev) / energy_kev)).argmin())
    old, new, struck, collision, event = _collide(cross_sections, row)
    row_kev = float(old.energy_kev[0])
    kinetic = row_kev + constants.barrier_kev
    loss = np.asarray(old.energy_kev - new.energy_kev, float)
    hit = np.asarray(collision.inelastic) & (loss > 0)

    # Where the struck electron came from, above the band bottom.
    start = np.asarray(struck.energy_kev, float) + constants.barrier_kev - loss
    levels = constants.fermi_kev - np.array(constants.core_edges_kev)
    outside_sea = np.maximum(np.maximum(-start, start - constants.fermi_kev), 0)
    missing_kev = np.minimum(outside_sea, np.abs(start[:, None] - levels).min(1))[hit]

    k, k_new = (np.sqrt(2 * energy / elements.HARTREE_KEV) for energy in (kinetic, kinetic - loss))
    given = np.linalg.norm(k * _direction(old) - k_new * _direction(new), axis=0)
    missing = np.abs(given - np.hypot(np.asarray(event.along, float), event.aside))[hit]
    turn = 2 * np.where(collision.elastic, collision.drawn, 0.0).astype(float)
    loss_scale, turn_scale = _means_per_collision(cross_sections, constants, row, kinetic)
    return {
        "material": material,
        "energy_kev": row_kev,
        "energy_residual": float(missing_kev.max() / row_kev),
        "momentum_residual": float(missing.max() / k),
        "loss": _mean(loss / loss_scale),
        "turn": _mean(turn / turn_scale),
    }


def _means_per_collision(cross_sections, constants, row, kinetic_kev):
    """Expected energy loss (keV) and 1 - cos per collision, from the quadratures behind the tables."""
    rates = cross_sections.elastic_rate_per_nm, cross_sections.inelastic_rate_per_nm
    path_nm = 1 / sum(float(rate[1, row]) for rate in rates)
    radius_nm = constants.muffin_tin_radius_nm
    waves = elastic.partial_waves(constants.name, kinetic_kev, muffin_tin_radius_nm=radius_nm)
    transport_nm2 = elastic.transport_cross_section_nm2(waves)
    losses = inelastic.losses(constants, kinetic_kev)
    return losses.stopping_kev_per_nm * path_nm, transport_nm2 * constants.atoms_per_nm3 * path_nm


def _mean(values):
    return yields.Yield(float(values.mean()), float(values.std() / math.sqrt(values.size)))


def _collide(cross_sections, row):
    """One collision of each of many electrons of the energy of a row, all in random directions."""
    rng = np.random.default_rng(0)
    bits = [jnp.asarray(rng.integers(0, 2**32, COLLISIONS, dtype=np.uint32)) for _ in range(7)]
    direction = rng.normal(size=(3, COLLISIONS))
    direction = jnp.asarray(direction / np.linalg.norm(direction, axis=0), jnp.float32)
    zeros, ones = jnp.zeros(COLLISIONS), jnp.ones(COLLISIONS, jnp.int32)
    no_limit = np.full(len(cross_sections.energies_kev), np.inf, np.float32)
    matter = transport.medium(np.ones((1, 1, 1, 1), np.uint16), cross_sections, no_limit, 1.0)
    energy = zeros + float(cross_sections.energies_kev[row])
    electron = transport.Electron(zeros, zeros, zeros, *direction, energy, zeros == 0)
    rate = zeros + matter.total_rate_per_nm[matter.num_rows + row]
    flight = transport.Flight(ones, ones, rate, path_nm=zeros, face=0 * ones, buried_nm=zeros)
    collision = scattering.meet(matter, flight, row, bits[0], bits[1])
    event = scattering.lose_energy(matter, electron, ones, collision.drawn, bits[2])
    across = scattering.unit_vector_across(electron, bits[3])
    new = scattering.scatter(electron, collision, event, across)
    struck = scattering.strike(matter, electron, ones, collision, event, across, bits[4:])
    return electron, new, struck, collision, event


def _direction(electron):
    return np.array([electron.ux, electron.uy, electron.uz], float)


def accounts() -> list[dict]:
    """Fates of all electrons of a film and a bulk specimen, per primary, with and without those they free."""
    rows = []
    for material, film_nm in (("Si", 20.0), ("Cu", None)):
        for secondaries in (False, True):
            images = sim.simulate_bse(
                yields.block(material, film_nm), beam_energies_kev=[2.0], electrons_per_pixel=10,
                secondaries=secondaries, follow_all=True, devices=yields.one_device(),
            )  # fmt: skip
            primaries = images.electrons_per_pixel * math.prod(yields.PIXELS)
            fates = {fate: float(count.sum() / primaries) for fate, count in images.fates.items()}
            case = {"material": material, "film_nm": film_nm, "secondaries": secondaries}
            rows.append(case | {"fates": fates})
    return rows


def alike() -> list[dict]:
    """Yields that must be one and the same: other voxels, another depth, another azimuth, all followed."""

    def case(name, specimen, energy_kev, seed, **options):
        images = sim.simulate_bse(
            specimen,
            beam_energies_kev=[energy_kev],
            electrons_per_pixel=100,
            seed=seed,
            **options,
            devices=yields.one_device(),
        )
        return {"case": name, "all": yields.yield_of(images.counts, images.electrons_per_pixel)}

    bulk = yields.block("Si")
    fine = sim.Specimen(np.ones((*yields.PIXELS, 64), np.uint8), voxel_nm=20.0, materials=("Si",))
    tilted = [
        sim.Instrument(tilt_rad=1.0, tilt_azimuth_rad=azimuth_rad) for azimuth_rad in (0.0, 0.6, math.pi / 2)
    ]
    return [
        {
            "what": "Si, 5 keV, normal incidence",
            "cases": [
                case("voxels of 50 nm, 3.2 um deep", bulk, 5.0, 1),
                case("voxels of 20 nm, 1.28 um deep", fine, 5.0, 2),
                case("50 nm, every electron followed", bulk, 5.0, 3, follow_all=True),
            ],
        },
        {
            "what": "Si, 1 keV, tilted by 1 rad",
            "cases": [
                case(f"heading {i.tilt_azimuth_rad:.2f} rad from x", bulk, 1.0, seed, instrument=i)
                for seed, i in enumerate(tilted)
            ],
        },
    ]


def images_of_turned_specimens() -> list[dict]:
    """Images of a Cu hook in Si and of the turned hook, turned back: chi^2 per pixel, expected to be 1."""
    labels = np.ones((20, 20, 20), np.uint8)
    labels[3:16, 4:8, 2:12] = labels[12:16, 4:17, 2:12] = 2
    turns = {
        "mirrored in x": lambda image: image[:, ::-1],
        "mirrored in y": lambda image: image[::-1],
        "x and y swapped": lambda image: image.swapaxes(0, 1),
        "turned by 90 degrees": lambda image: np.rot90(image, -1),
    }
    back = turns | {"turned by 90 degrees": lambda image: np.rot90(image, 1)}
    mean, variance = _mean_image(labels, 0)
    rows = []
    for seed, name in enumerate(turns, start=1):
        other, other_variance = (back[name](image) for image in _mean_image(turns[name](labels), seed))
        chi2 = ((mean - other) ** 2 / (variance + other_variance)).mean()
        unturned = ((mean - turns[name](other)) ** 2 / (variance + turns[name](other_variance))).mean()
        rows.append({"turn": name, "chi2": float(chi2), "chi2_not_turned_back": float(unturned)})
    return rows


def _mean_image(labels, seed):
    """Mean and its variance [y, x] over copies with independent streams."""
    copies = np.broadcast_to(labels, (128, *labels.shape))
    images = sim.simulate_bse(
        copies, beam_energies_kev=[1.0], electrons_per_pixel=16, seed=seed, devices=yields.one_device()
    )
    counts = images.counts[..., 0]
    return counts.mean(0), counts.var(0, ddof=1) / len(copies)


def deviations(group: dict) -> list[float]:
    """Of each further case from the first, in standard errors of the difference."""
    first, *others = (case["all"] for case in group["cases"])
    return [
        (other.eta - first.eta) / math.hypot(other.standard_error, first.standard_error) for other in others
    ]


def tables(results: dict) -> dict[str, str]:
    draws = [
        [row["material"], f"{row['energy_kev']:.3g}", f"{row['energy_residual']:.0e}",
         f"{row['momentum_residual']:.0e}", str(row["loss"]), str(row["turn"])]
        for row in results["collisions"]
    ]  # fmt: skip
    draws_header = ["", "keV", "energy not accounted for / E", "momentum not accounted for / k",
                    "mean loss per nm / stopping power", "mean 1 - cos per nm / transport"]  # fmt: skip
    fates = list(results["accounts"][0]["fates"])
    accounts = [
        [f"{row['material']} {row['film_nm']:g} nm" if row["film_nm"] else f"{row['material']} bulk",
         "yes" if row["secondaries"] else "no", *(f"{row['fates'][fate]:.4f}" for fate in fates),
         f"{sum(row['fates'].values()):.4f}"]
        for row in results["accounts"]
    ]  # fmt: skip
    alike = []
    for group in results["alike"]:
        apart = ["-", *(f"{deviation:+.1f}" for deviation in deviations(group))]
        for case, deviation in zip(group["cases"], apart, strict=True):
            alike.append([group["what"], case["case"], str(case["all"]), deviation])
    turned = [
        [row["turn"], f"{row['chi2']:.2f}", f"{row['chi2_not_turned_back']:.1f}"] for row in results["images"]
    ]
    return {
        "collisions": report.table(draws_header, draws),
        "accounts": report.table(["2 keV", "freed ones followed", *fates, "sum"], accounts),
        "alike": report.table(["", "", "all (standard error)", "standard errors apart"], alike),
        "symmetries": report.table(["specimen", "chi^2 per pixel", "image not turned back"], turned),
    }
