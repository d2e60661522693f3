"""The walk: all electrons of all cells, a fixed number of them in flight, each lane always busy."""

import jax
import jax.numpy as jnp

from bsevox_jax.sim.instrument import Instrument
from bsevox_jax.sim.lanes import (
    FATES,
    STEPS_PER_SERVICE,
    Cells,
    idle_lanes,
    serve_cells,
    serve_stacks,
    serve_tallies,
    store,
)
from bsevox_jax.sim.step import step
from bsevox_jax.sim.transport import Medium

ENERGY_BINS, COSINE_BINS = 100, 20  # of a spectrum; equal parts of the beam energy, and of 0 to 1


def walk(
    medium: Medium,
    cells: Cells,
    instrument: Instrument,
    secondaries,
    *,
    num_lanes: int,
    pixels: int,
    with_spectrum: bool,
    biasing=None,
):
    """Walks all electrons of all cells.

    Args:
        secondaries: whether freed electrons above the cut-off are followed.
        num_lanes: electrons in flight.
        pixels: of each specimen, at least `cells.num_pixels`; the rest of them is padding.
        with_spectrum: whether to sort the detected electrons by energy and direction.
        biasing: a `Biasing`, or None.

    Returns:
        Counts of electrons by FATES, int32 [e, specimen, pixel, fate], or with biasing float32 [e, specimen,
        pixel, 3], the sums of the scores from the beam, of those freed, and of the squares of both together;
        steps of each lane, int32 [lanes]; and the spectrum, int32 [e, ENERGY_BINS, COSINE_BINS, 2] (from the
        beam, freed), or None.
    """
    num_energies, num_specimens = cells.keys.shape[:2]
    kinds, dtype = (len(FATES), jnp.int32) if biasing is None else (3, jnp.float32)
    counts = jnp.zeros((num_energies * num_specimens * pixels, kinds), dtype)

    def unfinished(carry):
        lanes, next_cell, *_ = carry
        return jnp.any(lanes.flying | (lanes.electrons_left > 0) | (lanes.depth > 0)) | (
            next_cell < cells.number
        )

    def body(carry):
        lanes, next_cell, counts, spectrum = carry
        lanes = serve_stacks(serve_tallies(lanes))
        lanes, next_cell, counts = serve_cells(medium, cells, lanes, next_cell, counts)

        def advance(_, carry):
            lanes, spectrum = carry
            after, detected = step(medium, lanes, instrument, secondaries, biasing)
            if with_spectrum:
                energy = lanes.cell // (num_specimens * pixels)
                spectrum = _sort(spectrum, energy, lanes.cell_energy_kev, *detected)
            return after, spectrum

        lanes, spectrum = jax.lax.fori_loop(0, STEPS_PER_SERVICE, advance, (lanes, spectrum))
        return lanes, next_cell, counts, spectrum

    spectrum = jnp.zeros((num_energies, ENERGY_BINS, COSINE_BINS, 2), jnp.int32) if with_spectrum else None
    start = (idle_lanes(num_lanes, biasing is not None), jnp.int32(0), counts, spectrum)
    lanes, _, counts, spectrum = jax.lax.while_loop(unfinished, body, start)
    lanes = serve_tallies(lanes)
    counts = store(counts, lanes, ~lanes.flying)
    return counts.reshape(num_energies, num_specimens, pixels, kinds), lanes.steps, spectrum


def _sort(spectrum, energy, beam_energy_kev, is_detected, electron):
    """Adds the detected electrons to the spectrum."""
    energy_bin = (electron.energy_kev / beam_energy_kev * ENERGY_BINS).astype(jnp.int32)
    cosine_bin = (-electron.uz * COSINE_BINS).astype(jnp.int32)
    bins = (
        jnp.where(is_detected, energy, spectrum.shape[0]),  # past the end: dropped
        jnp.clip(energy_bin, 0, ENERGY_BINS - 1),
        jnp.clip(cosine_bin, 0, COSINE_BINS - 1),
        jnp.where(electron.is_primary, 0, 1),
    )
    return spectrum.at[bins].add(1, mode="drop")
