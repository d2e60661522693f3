"""The physics library: electrons in matter, from cross sections to backscattered-electron images.

Reading order: elements, elastic, inelastic, tables, specimen, transport, scattering, reach,
biasing, instrument, lanes, step, walk, work, imaging, phantoms, shapes. It uses
numpy, scipy and jax, and nothing else of this project.
"""

from bsevox_jax.sim import phantoms
from bsevox_jax.sim.biasing import Biasing
from bsevox_jax.sim.imaging import (
    PAPER_ENERGIES_KEV,
    SIMULATOR_VERSION,
    BseImages,
    BseSpectrum,
    BseYields,
    simulate_bse,
    simulate_spectrum,
    simulate_yields,
)
from bsevox_jax.sim.instrument import Instrument
from bsevox_jax.sim.specimen import Specimen

__all__ = [
    "PAPER_ENERGIES_KEV",
    "SIMULATOR_VERSION",
    "Biasing",
    "BseImages",
    "BseSpectrum",
    "BseYields",
    "Instrument",
    "Specimen",
    "phantoms",
    "simulate_bse",
    "simulate_spectrum",
    "simulate_yields",
]
