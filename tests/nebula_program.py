"""Stands in for Nebula where it is not installed: reads its files and transports with our simulator.

It finds voxels of 1 nm in the triangles, reads the cross sections from the tables that Nebula reads, and
sends out as many electrons as the simulator counts, with the tags of their primaries.
"""

import sys

import nebula_rules
import numpy as np

from bsevox_jax import sim
from bsevox_jax.sim import nebula


def main(arguments):
    print("This is Nebula version 1.0.2\n\nPhysics models: a stand-in for tests", file=sys.stderr)
    options, files = {"energy-threshold": "0", "seed": "0"}, []
    arguments = iter(arguments)
    for argument in arguments:
        if argument.startswith("--"):
            if argument[2:] not in options:
                raise RuntimeError(f"Unexpected key '{argument[2:]}'")
            options[argument[2:]] = next(arguments)
        else:
            files.append(argument)
    if len(files) < 3:
        print("Usage: [options] <geometry.tri> <primaries.pri> [material0.mat] ..", file=sys.stderr)
        return 1
    geometry, beam, *materials = files
    labels = nebula_rules.voxelise(*nebula_rules.read_triangles(geometry))
    if labels.max() > len(materials):
        print("Error: not enough materials provided for this geometry!", file=sys.stderr)
        return 1
    tables = nebula.read_materials(materials, foreign=True)
    electrons = np.fromfile(beam, nebula_rules.RECORD)
    detected = transport(labels, electrons, tables, int(options["seed"]))
    detected[np.random.default_rng(0).permutation(len(detected))].tofile(sys.stdout.buffer)
    return 0


def transport(labels, electrons, tables, seed):
    """Records of the electrons that leave upwards, a few more or less as by chance."""
    energies_ev, energy = np.unique(electrons["E"], return_inverse=True)
    pixel = np.floor(electrons["y"]).astype(int) * labels.shape[1] + np.floor(electrons["x"]).astype(int)
    cell = pixel * len(energies_ev) + energy
    cells, first, sent = np.unique(cell, return_index=True, return_counts=True)
    assert len(cells) == labels[..., 0].size * len(energies_ev) and (sent == sent[0]).all()
    specimen = sim.Specimen(labels, materials=tables.material_names[1:])
    images = sim.simulate_bse(
        specimen,
        electrons_per_pixel=int(sent[0]),
        beam_energies_kev=energies_ev / 1000,
        cross_sections=tables,
        seed=seed,
    )
    detected = np.repeat(electrons[first], images.counts.ravel())
    detected["z"], detected["dz"] = 0, -detected["dz"]
    return detected


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
