"""Speed of the electron Monte Carlo: `python -m benchmarks.simulator` prints one JSON object.

The case is the paper's box, 20 nm of Si with a 10 nm Cu cube in its middle, at the paper's 20 energies. Rates
are per second of processor time (all cores together), the median of several runs after compilation.
"""

import json
import platform
import time

import jax
import numpy as np
from absl import app, flags

from bsevox_jax import sim

FLAGS = flags.FLAGS
flags.DEFINE_integer("specimens", 8, "copies of the specimen in one batch")
flags.DEFINE_integer("electrons_per_pixel", 24, "primaries per pixel and energy")
flags.DEFINE_integer("lanes", None, "electrons in flight; the simulator's default if not given")
flags.DEFINE_integer("repeats", 3, "timed runs")
flags.DEFINE_boolean("per_energy", False, "also time each energy alone")

# Nebula 1.0.2 on one x86 server core, Si with a Cu inclusion, threshold 50 eV; our reading of its speed over
# the 20 energies: 2 million electrons in 20 to 45 core-seconds.
NEBULA_ELECTRONS_PER_CORE_SECOND = (45_000, 100_000)


def cube_in_silicon() -> np.ndarray:
    labels = np.ones((20, 20, 20), np.uint8)
    labels[5:15, 5:15, 5:15] = 2
    return labels


def time_simulation(labels, energies_kev) -> dict:
    """Processor seconds and steps of one simulation, median over repeats."""
    options = {"electrons_per_pixel": FLAGS.electrons_per_pixel, "beam_energies_kev": energies_kev}
    if FLAGS.lanes:
        options["lanes"] = FLAGS.lanes
    started = time.perf_counter()
    images = sim.simulate_bse(labels, **options)
    first_s = time.perf_counter() - started
    core_s, wall_s = [], []
    for seed in range(1, FLAGS.repeats + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        sim.simulate_bse(labels, seed=seed, **options)
        core_s.append(time.process_time() - cpu)
        wall_s.append(time.perf_counter() - wall)
    electrons = FLAGS.electrons_per_pixel * images.counts.size
    return {
        "electrons": electrons,
        "electrons_per_core_second": round(electrons / float(np.median(core_s))),
        "electrons_per_second": round(electrons / float(np.median(wall_s))),
        "steps_per_electron": round(images.steps / electrons, 2),
        "ns_per_step": round(1e9 * float(np.median(core_s)) / images.steps, 1),
        "compile_s": round(first_s - float(np.median(wall_s)), 1),
    }


def main(_):
    labels = np.broadcast_to(cube_in_silicon(), (FLAGS.specimens, 20, 20, 20))
    result = time_simulation(labels, sim.PAPER_ENERGIES_KEV)
    if FLAGS.per_energy:
        result["per_energy"] = {
            energy: time_simulation(labels, [energy]) for energy in sim.PAPER_ENERGIES_KEV
        }
    result |= {
        "nebula_electrons_per_core_second": NEBULA_ELECTRONS_PER_CORE_SECOND,
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {len(jax.devices())} device(s)",
        "jax": jax.__version__,
        "simulator": sim.SIMULATOR_VERSION,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
