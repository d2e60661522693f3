"""From an image stack to a Cu volume, with a trained network on any number of devices."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import bsevox_jax
from bsevox_jax import checkpoint, imageio, measure, metrics, models, parallel, report, volumes
from bsevox_jax.models.equivariant import INVERSE, turned_each

VOXEL_NM = 1.0  # of the simulated training data, and so of every network yet
ROWS_PER_DEVICE = 8


def reconstruct(
    stack_path: str,
    export_path: str | None,
    output_dir: str,
    *,
    beam_energies_kev: Sequence[float] | None = None,
    electrons_per_pixel: int | None = None,
    formats: Sequence[str] = (),
) -> np.ndarray:
    """Reconstructs a volume; writes `volume.npz`, `volume.tif`, `bodies.csv`, `bodies.json`, `picture.png`.

    Args:
        stack_path: see `imageio.read_stack`.
        export_path: folder of an exported network; None: `compact` as shipped.
        output_dir: folder of the results.
        beam_energies_kev, electrons_per_pixel: of the stack, where the file does not tell.
        formats: of more files of the volume, see `volumes`.

    Returns:
        Probability of Cu, float32 [y, x, z].

    Raises:
        FileNotFoundError, OSError: stack or network missing or damaged, or the disk is full.
        ValueError: the stack is not what the network was trained on; one line.
    """
    volumes.check(formats)
    stack = imageio.read_stack(
        stack_path, beam_energies_kev=beam_energies_kev, electrons_per_pixel=electrons_per_pixel
    )
    export = checkpoint.load_export(export_path or checkpoint.shipped("compact"))
    check_fits(stack, export)
    probability = cu_probability(export, stack.counts[None], stack.electrons_per_pixel)[0]
    about = {"checkpoint_sha256": export.sha256, "assumptions": assumptions(stack, export)}
    about["version"] = bsevox_jax.__version__
    if parallel.is_main_process():
        with imageio.whole_files(output_dir) as folder:
            imageio.write_volume(folder, probability, VOXEL_NM, stack, about)
            model = export.config["model"]["name"]
            title = f"{os.path.basename(stack_path)}, reconstructed by {model} trained on {export.dataset}"
            report.picture(os.path.join(folder, "picture.png"), stack, probability, VOXEL_NM, title=title)
            bodies = measure.bodies(probability, VOXEL_NM)
            measure.write_csv(os.path.join(folder, "bodies.csv"), bodies)
            measure.write_json(os.path.join(folder, "bodies.json"), bodies, about)
            if formats:
                volumes.write(folder, probability, VOXEL_NM, about, formats=formats)
        print(*(f"assumed: {line}" for line in about["assumptions"]), sep="\n")
    return probability


def check_fits(stack: imageio.Stack, export: checkpoint.Export) -> None:
    """Raises ValueError, in one line, unless the network was trained on such stacks."""
    check_energies(stack.beam_energies_kev, export)
    if stack.counts.shape[:2] != export.field and export.config["model"]["name"] not in models.ANY_FIELD:
        raise ValueError(
            f"the field of view must be that of the network, {export.field} pixels (y, x) of "
            f"{VOXEL_NM:g} nm; got {stack.counts.shape[:2]}. Crop or rescale the images, or use compact."
        )


def check_energies(beam_energies_kev: Sequence[float], export: checkpoint.Export) -> None:
    """Raises ValueError, in one line, unless the network was trained on these energies."""
    if export.config.get("task", "volumes") != "volumes":
        raise ValueError(
            f"the network must have learnt volumes; got one that learnt {export.config['task']}. Give the "
            "export of another run."
        )
    trained = export.beam_energies_kev
    if len(trained) != len(beam_energies_kev) or not np.allclose(trained, beam_energies_kev):
        raise ValueError(
            f"beam_energies_kev must be those of the network, {_listed(trained)}; "
            f"got {_listed(beam_energies_kev)}. Take these images, or train on these energies."
        )


def assumptions(stack: imageio.Stack, export: checkpoint.Export) -> list[str]:
    """What a reconstruction takes for granted, as sentences for the one who uses it."""
    lines = [
        f"pixels and voxels of {VOXEL_NM:g} nm, normal incidence, no charging, drift or contamination",
        "counts are electrons above 50 eV in all backward directions, with no gain and no offset",
        f"the specimen is like those of {export.dataset}: Cu in Si under vacuum",
        "the probability is the network's own and has not been calibrated",
    ]
    if stack.counts.shape[:2] != export.field:
        lines.append("beyond the border of the images lies their mirror image")
    low, high = export.doses
    if not low <= stack.electrons_per_pixel <= high:
        trained = f"{high:g}" if low == high else f"{low:g} to {high:g}"
        lines.append(
            f"the dose, {stack.electrons_per_pixel} electrons per pixel, is not that of training, "
            f"{trained}: noise and errors differ"
        )
    return lines


def cu_probability(export: checkpoint.Export, counts: np.ndarray, electrons_per_pixel: int) -> np.ndarray:
    """The network's probability of Cu, float32 [n, y, x, z], of counts [n, y, x, e]; see `asked`."""
    return asked(export, electrons_per_pixel)(counts)


def asked(export: checkpoint.Export, electrons_per_pixel: int) -> Callable[[np.ndarray], np.ndarray]:
    """A network as a function on all devices, compiled once for each number of rows.

    A network that learnt from specimens in all attitudes is shown the images in each, and the mean is taken.

    Args:
        export: the network.
        electrons_per_pixel: dose of the counts.

    Returns:
        From counts, integers [n, y, x, e], all of them in every process, to the probability of Cu, float32
        [n, y, x, z].
    """
    network = models.build(**export.config["model"])
    all_attitudes = export.config["data"]["symmetries"]

    def predict(weights, counts):
        images = export.normalisation(counts, electrons_per_pixel)
        found = predicted(network, weights, images, all_attitudes=all_attitudes)
        return lax.all_gather(found, parallel.AXIS, tiled=True)

    mapped, weights = parallel.map_evaluation(predict), parallel.replicate(export.weights)
    devices = jax.device_count()

    def ask(counts):
        batch = devices * min(ROWS_PER_DEVICE, -(-len(counts) // devices))
        parts = []
        for start in range(0, len(counts), batch):
            rows = np.arange(start, start + batch)[parallel.local_rows(batch)]
            rows %= len(counts)  # the last are filled up
            parts.append(parallel.unreplicate(mapped(weights, parallel.shard(counts[rows]))))
        return np.concatenate(parts)[: len(counts)].astype(np.float32)

    return ask


def predicted(network: Any, weights: dict, images: jax.Array, *, all_attitudes: bool) -> jax.Array:
    """Probability of Cu [b, y, x, z] of inputs [b, y, x, e], as they are or averaged over all attitudes."""

    def seen(images):
        return metrics.cu_probability(network.apply(weights, images, train=False))

    return _symmetric_mean(seen, images) if all_attitudes else seen(images)


def _symmetric_mean(predict: Callable, images: jax.Array) -> jax.Array:
    """Volumes [b, y, x, z] that `predict` makes of images [b, y, x, e], averaged over all attitudes."""
    every = range(len(INVERSE))
    square = images.shape[1] == images.shape[2]
    total = 0.0
    for together in (every,) if square else (every[:4], every[4:]):  # those of one shape in one batch
        seen = jnp.concatenate([turned_each(images, k) for k in together])
        for k, found in zip(together, jnp.split(predict(seen), len(together)), strict=True):
            total = total + turned_each(found, INVERSE[k])
    return total / len(INVERSE)


def _listed(energies) -> str:
    return ", ".join(f"{energy:g}" for energy in energies)
