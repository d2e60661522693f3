"""Yields of films of silicon and of copper, 20 nm thick, to which grey values of an instrument are referred.

python -m benchmarks.references     # writes bsevox_jax/film_yields.csv; minutes
"""

import os

import numpy as np
from tqdm import tqdm

from bsevox_jax import sim
from bsevox_jax.imageio import whole_files
from bsevox_jax.instrument_files import FILM_YIELDS

DEPTH, PIXELS, ELECTRONS_PER_PIXEL = 20, 16, 4_000


def main() -> None:
    labels = np.ones((2, PIXELS, PIXELS, DEPTH), np.uint8)
    labels[1] = 2
    electrons = PIXELS**2 * ELECTRONS_PER_PIXEL
    with tqdm(total=2 * electrons * len(sim.PAPER_ENERGIES_KEV), unit_scale=True) as bar:
        images = sim.simulate_bse(labels, electrons_per_pixel=ELECTRONS_PER_PIXEL, progress=bar.update)
    counts = images.counts.sum((1, 2)).T
    lines = [
        f"# Backscattered electrons per electron of films of {DEPTH} nm, and their standard errors.",
        f"# Monte Carlo of bsevox_jax {sim.SIMULATOR_VERSION}, {electrons} electrons each, seed 0;",
        "# made by python -m benchmarks.references.",
        "beam_energy_kev,si,si_error,cu,cu_error",
    ]
    for energy, found in zip(images.beam_energies_kev, counts, strict=True):
        values = [(n / electrons, np.sqrt(n) / electrons) for n in found]
        lines.append(",".join([f"{energy:g}", *(f"{v:.6f}" for pair in values for v in pair)]))
    with whole_files(os.path.dirname(FILM_YIELDS)) as folder:
        with open(os.path.join(folder, os.path.basename(FILM_YIELDS)), "w") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
