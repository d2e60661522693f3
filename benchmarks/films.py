"""Yields of 20 nm films of Si and Cu: `python -m benchmarks.films` prints one JSON object.

Electrons with more than 50 eV that leave upwards, per primary, at normal incidence; beside Nebula 1.0.2
(100 000 primaries, default build: full Penn model, Gryzinski inner shells).
"""

import json

import numpy as np
from absl import app, flags

from bsevox_jax import sim
from bsevox_jax.sim import tables

FLAGS = flags.FLAGS
flags.DEFINE_integer("electrons_per_pixel", 2500, "primaries per pixel; a film has 400 pixels")
flags.DEFINE_enum("atom", "muffin_tin", ["muffin_tin", "free"], "potential of the elastic cross sections")

ENERGIES_KEV = (0.5, 1.0, 2.0, 5.0, 10.0)
NEBULA = {
    "Si": {
        "all": (0.2731, 0.2649, 0.1774, 0.0344, 0.0107),
        "primary": (0.2410, 0.2204, 0.1426, 0.0227, 0.0046),
    },
    "Cu": {"all": (0.466, 0.458, 0.425, 0.221, 0.0643), "primary": (0.342, 0.336, 0.319, 0.180, 0.0447)},
}


def film(material: str) -> dict:
    """Yields, standard errors over pixels, ratios to Nebula, and the fates of all electrons, by energy."""
    labels = np.full((20, 20, 20), 1 + list(NEBULA).index(material), np.uint8)
    images = sim.simulate_bse(
        labels,
        electrons_per_pixel=FLAGS.electrons_per_pixel,
        beam_energies_kev=ENERGIES_KEV,
        cross_sections=tables.shipped(atom=FLAGS.atom),
    )
    yields = {"all": images.yields, "primary": images.primary_counts / images.electrons_per_pixel}
    result = {}
    for kind, values in yields.items():
        mean = values.mean((0, 1), dtype=np.float64)
        error = values.std((0, 1), dtype=np.float64) / np.sqrt(labels[..., 0].size)
        result[f"yield_{kind}"] = np.round(mean, 4).tolist()
        result[f"standard_error_{kind}"] = np.round(error, 5).tolist()
        result[f"ratio_to_nebula_{kind}"] = np.round(mean / np.array(NEBULA[material][kind]), 3).tolist()
    followed = sum(images.fates.values())
    result["secondary_share"] = np.round(
        1 - images.primary_counts.sum((0, 1)) / images.counts.sum((0, 1)), 3
    ).tolist()
    result["fates"] = {fate: np.round(count / followed, 6).tolist() for fate, count in images.fates.items()}
    primaries = FLAGS.electrons_per_pixel * labels[..., 0].size
    result["secondaries_per_primary"] = np.round(followed / primaries - 1, 3).tolist()
    return result


def main(_):
    films = {material: film(material) for material in NEBULA}
    print(json.dumps({"energies_kev": ENERGIES_KEV, "atom": FLAGS.atom, **films,
                      "electrons_per_energy": 400 * FLAGS.electrons_per_pixel,
                      "simulator": sim.SIMULATOR_VERSION}))  # fmt: skip


if __name__ == "__main__":
    app.run(main)
