"""Films of 20 nm by Nebula with our cross sections and by us: `python -m benchmarks.nebula --binary=...`.

Prints one JSON object: electrons above 50 eV leaving upwards per primary. Both programs then differ only in
the rules of docs/physics.md, section 8.
"""

import json

import numpy as np
from absl import app, flags

from bsevox_jax import sim
from bsevox_jax.sim import nebula

FLAGS = flags.FLAGS
flags.DEFINE_string("binary", "nebula_cpu_mt", "program of Nebula")
flags.DEFINE_integer("electrons_per_pixel", 1000, "primaries per pixel; a film has 400 pixels")

ENERGIES_KEV = (0.5, 1.0, 2.0, 5.0, 10.0)


def film(program, label: int) -> dict:
    """Yields of both programs and their ratio, with its standard error, by energy."""
    labels = np.full((20, 20, 20), label, np.uint8)
    beam = {"electrons_per_pixel": FLAGS.electrons_per_pixel, "beam_energies_kev": ENERGIES_KEV}
    found = {
        "nebula": nebula.simulate(labels, program, **beam),
        "ours": sim.simulate_bse(labels, **beam).counts,
    }
    yields = {name: counts / FLAGS.electrons_per_pixel for name, counts in found.items()}
    mean = {name: values.mean((0, 1)) for name, values in yields.items()}
    share = {name: values.std((0, 1)) / 20 / mean[name] for name, values in yields.items()}
    return {
        **{name: np.round(values, 5).tolist() for name, values in mean.items()},
        "ratio": np.round(mean["nebula"] / mean["ours"], 4).tolist(),
        "standard_error": np.round(np.hypot(share["nebula"], share["ours"]), 4).tolist(),
    }


def main(_):
    with nebula.program(FLAGS.binary) as program:
        films = {name: film(program, label) for label, name in ((1, "Si"), (2, "Cu"))}
    print(
        json.dumps(
            {"energies_kev": ENERGIES_KEV, **films, "electrons_per_energy": 400 * FLAGS.electrons_per_pixel}
        )
    )


if __name__ == "__main__":
    app.run(main)
