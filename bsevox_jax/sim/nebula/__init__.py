"""Exchange with Nebula, the public electron simulator (https://nebula-simulator.github.io).

`geometry` writes voxels as triangles, `electrons` writes primaries and counts what was detected, `materials`
writes cross sections, `reading` reads them, and `run` runs the program. Formats: Nebula 1.0.2, cstool 1.0.7.
"""

from bsevox_jax.sim.nebula.electrons import RECORD, count, primaries, read_electrons, write_electrons
from bsevox_jax.sim.nebula.geometry import triangles, write_geometry
from bsevox_jax.sim.nebula.materials import write_material
from bsevox_jax.sim.nebula.reading import read_materials
from bsevox_jax.sim.nebula.run import Program, program, simulate

__all__ = [
    "RECORD",
    "Program",
    "count",
    "primaries",
    "program",
    "read_electrons",
    "read_materials",
    "simulate",
    "triangles",
    "write_electrons",
    "write_geometry",
    "write_material",
]
