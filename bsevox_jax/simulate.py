"""Image stacks from specimens: of a file of labels, or of a phantom by its name."""

import os

import jax
import numpy as np
import tqdm

from bsevox_jax import imageio, sim
from bsevox_jax.sim import nebula
from bsevox_jax.sim.instrument import check_whole


def simulate(
    source: str,
    output_dir: str,
    *,
    electrons_per_pixel: int,
    beam_energies_kev=sim.PAPER_ENERGIES_KEV,
    side_walls: str = "mirror",
    kind: str = "bsevox",
    **program,
) -> imageio.Stack:
    """Simulates the images of a specimen; writes `stack.npz`, `stack.tif` and its `labels.npy`.

    Args:
        source: an `.npy` or `.npz` file with labels [y, x, z] uint8 (0 vacuum, 1 Si, 2 Cu), or a phantom:
            `nanocube:<position>`, `nanowire:<radius in nm>[:<axis>]` or `random:<seed>`.
        output_dir: folder of the files.
        electrons_per_pixel: dose per energy.
        beam_energies_kev: one image each, ascending.
        side_walls: what lies beside the block; see `sim.Specimen`.
        kind: the simulator, "bsevox" or "nebula".
        program: Nebula's binary, materials and arguments; see `sim.nebula.program`.

    Raises:
        FileNotFoundError, OSError, ValueError: no such specimen, or nothing can be written; one line.
    """
    labels = specimen(source)
    beam = {"electrons_per_pixel": electrons_per_pixel, "beam_energies_kev": beam_energies_kev}
    counts = counts_of(labels, side_walls=side_walls, kind=kind, program=program, **beam)
    stack = imageio.Stack(counts, tuple(float(energy) for energy in beam_energies_kev), electrons_per_pixel)
    with imageio.whole_files(output_dir) as folder:
        imageio.write_stack(folder, stack)
        np.save(os.path.join(folder, "labels.npy"), labels)
    return stack


def counts_of(
    labels: np.ndarray, *, kind: str, program: dict, side_walls: str = "mirror", **beam
) -> np.ndarray:
    """Counts [..., y, x, e] of specimens by either simulator; `beam` as of `sim.simulate_bse`.

    Raises:
        ValueError: another simulator, or side walls it does not know.
    """
    if kind == "nebula":
        if side_walls != "mirror":
            raise ValueError(f"side_walls must be mirror with Nebula; got {side_walls!r}. Use bsevox.")
        with nebula.program(**program) as found:
            return nebula.simulate(labels, found, **beam)
    if kind != "bsevox":
        raise ValueError(f"simulator.kind must be bsevox or nebula; got {kind!r}. Use bsevox.")
    block = sim.Specimen(labels, side_walls=side_walls)
    dose = check_whole("electrons_per_pixel", beam["electrons_per_pixel"], 1)
    total = dose * len(beam["beam_energies_kev"]) * labels[..., 0].size
    with tqdm.tqdm(total=total, unit=" electrons", unit_scale=True, delay=5, leave=False) as progress:
        return sim.simulate_bse(block, progress=progress.update, **beam).counts


def specimen(source: str) -> np.ndarray:
    """Labels uint8 [y, x, z] of a file or a phantom; see `simulate`."""
    if source.endswith((".npy", ".npz")):
        return _read_labels(source)
    name, *numbers = source.split(":")
    try:
        if name == "nanocube":
            (position,) = numbers
            return np.asarray(sim.phantoms.nanocube(int(position)))
        if name == "nanowire":
            radius_nm, axis = (*numbers, "z") if len(numbers) == 1 else numbers
            return np.asarray(sim.phantoms.nanowire(float(radius_nm), axis))
        if name == "random":
            (seed,) = numbers
            return np.asarray(sim.phantoms.random_specimen(jax.random.key(int(seed))))
    except ValueError as error:
        raise ValueError(f"the phantom {source} cannot be made: {error}") from error
    raise ValueError(
        f"a specimen must be a file .npy or .npz, or nanocube:<position>, nanowire:<radius_nm>[:<axis>] or "
        f"random:<seed>; got {source}."
    )


def _read_labels(path: str) -> np.ndarray:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the file of labels must exist; got {path}. Correct the path.")
    try:
        file = np.load(path)
        labels = file["labels"] if path.endswith(".npz") else file
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise OSError(f"labels must be an array in a readable file; got {reason!r} in {path}.") from error
    if labels.ndim != 3:
        raise ValueError(f"labels must be [y, x, z]; got shape {labels.shape}. Give one specimen.")
    return labels
