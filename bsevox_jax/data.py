"""Examples in memory: where they come from, how they are batched, and what is done to a batch on the device.

The host only permutes and slices integer counts and labels; dose thinning, standardisation and the symmetries
are pure functions that run inside the training step.
"""

import dataclasses
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bsevox_jax import parallel
from bsevox_jax.examples import Examples, load_npz
from bsevox_jax.examples import save_npz as save_npz

COPPER_LABEL = 2  # vacuum 0, Si 1, Cu 2: the order of the data set's materials
SYMMETRIES = 8  # of the square: four rotations, each with and without a mirror


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation [e] of the yields (electrons back per electron in), one per beam energy."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, examples: Examples) -> "Normalisation":
        """The statistics of all pixels of a split, in float64; fit on the training split only."""
        columns = [examples.counts[..., e] for e in range(examples.counts.shape[-1])]
        mean = np.array([c.mean(dtype=np.float64) for c in columns]) / examples.electrons_per_pixel
        std = np.array([c.std(dtype=np.float64) for c in columns]) / examples.electrons_per_pixel
        # An energy whose counts never vary carries nothing; it is only centred.
        return cls(mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32))

    def __call__(self, counts: jax.Array, electrons_per_pixel: jax.Array | float) -> jax.Array:
        """Network inputs, float32 [..., e], from counts [..., e] taken at a dose, scalar or broadcastable."""
        return (counts.astype(jnp.float32) / electrons_per_pixel - self.mean) / self.std


def normalisation(kind: str, examples: Examples) -> Normalisation:
    """How inputs are scaled: `standardise` by the statistics of the split given, `none` leaves the yields.

    Raises:
        ValueError: another kind.
    """
    if kind not in ("standardise", "none"):
        raise ValueError(f"data.normalise must be standardise or none; got {kind!r}. Use standardise.")
    if kind == "standardise":
        return Normalisation.fit(examples)
    energies = len(examples.beam_energies_kev)
    return Normalisation(np.zeros(energies, np.float32), np.ones(energies, np.float32))


def load(data_dir: str, config_name: str, *, needs: tuple[str, ...] = (), **simulator) -> dict[str, Examples]:
    """Loads all splits into memory, in the order of the specimens' numbers.

    Args:
        data_dir: folder of the data sets.
        config_name: a file `*.npz` in `data_dir` (or its absolute path) written by `save_npz`, or a
            configuration of `bse_voxels` (smoke, quickstart, paper, standard-train, standard-test,
            standard-validation, textures, calibration). What the project ships of these is read at once;
            another one is built by TFDS if it is missing.
        needs: splits that must be there.
        simulator: `kind`, bsevox or nebula, and its binary, materials and arguments.

    Raises:
        FileNotFoundError: the `.npz` does not exist.
        OSError: the data set is damaged, or cannot be written.
        ValueError: unknown configuration or simulator, a missing split, or arrays that do not fit together.
    """
    if config_name.endswith(".npz"):
        splits = load_npz(os.path.join(os.path.expanduser(data_dir), config_name))
    else:
        shipped = _load_shipped(config_name) if simulator.get("kind", "bsevox") == "bsevox" else None
        splits = shipped or _load_tfds(build(data_dir, config_name, **simulator))
    if missing := [split for split in needs if split not in splits]:
        raise ValueError(
            f"the data set {config_name} must have a split {missing[0]}; got {', '.join(splits)}. Choose "
            "another data.config or data.test_config."
        )
    return splits


def join(examples: Examples, others: list[Examples]) -> Examples:
    """All examples one after another, under the names of all.

    Raises:
        ValueError: they were taken at different doses, energies or fields.
    """
    for other in others:
        ours, theirs = (
            (e.electrons_per_pixel, e.beam_energies_kev, e.labels.shape[1:]) for e in (examples, other)
        )
        if ours != theirs:
            raise ValueError(
                f"data.also must have the dose, energies and voxels of data.config, {ours}; got {theirs} of "
                f"{other.name}. Choose another data set."
            )
    together = [examples, *others]
    return dataclasses.replace(
        examples,
        counts=np.concatenate([e.counts for e in together]),
        labels=np.concatenate([e.labels for e in together]),
        families=None
        if any(e.families is None for e in together)
        else sum((e.families for e in together), ()),
        name=" + ".join(dict.fromkeys(e.name for e in together)),
    )


def build(data_dir: str, config_name: str, *, kind: str = "bsevox", **program) -> str:
    """Builds a data set if it is missing, by bsevox or by nebula and its program; returns its folder."""
    import tfds_bse  # a machine that trains from .npz need not have TFDS

    if kind not in ("bsevox", "nebula"):
        raise ValueError(f"simulator.kind must be bsevox or nebula; got {kind!r}. Use bsevox.")
    if config_name.endswith(".npz"):
        raise ValueError(f"data.config must name a data set to simulate; got {config_name}. Use quickstart.")
    name = f"{config_name}_nebula" if kind == "nebula" else config_name
    shard = jax.process_index(), jax.process_count()
    folder = tfds_bse.build(name, data_dir, shard=shard, **program)
    parallel.wait_for_all("data set is built")  # the first process packs it
    return folder


def _load_shipped(config_name: str) -> dict[str, Examples] | None:
    """The splits of a shipped data set; None if there is none, or only one of other settings."""
    import tfds_bse

    shipped = tfds_bse.find_shipped(config_name)
    if shipped is None:
        return None
    dose, energies_kev = shipped.config.electrons_per_pixel, shipped.config.beam_energies_kev
    name = f"{tfds_bse.sets.NAME}/{config_name}/{tfds_bse.sets.VERSION}"
    return {
        split: Examples(
            arrays["counts"], arrays["labels"], dose, energies_kev, name, _family_names(arrays["family"])
        )
        for split, arrays in shipped.splits.items()
    }


def _load_tfds(folder: str) -> dict[str, Examples]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    energies_kev = tuple(builder.info.metadata["beam_energies_kev"])
    dose = int(builder.info.metadata["electrons_per_pixel"])
    splits = {}
    for split in builder.info.splits:
        rows = list(builder.as_data_source(split))
        counts, labels = (np.stack([row[kind] for row in rows]) for kind in ("counts", "labels"))
        families = _family_names(row["family"] for row in rows)
        splits[split] = Examples(counts, labels, dose, energies_kev, builder.info.full_name, families)
    return splits


def _family_names(indices) -> tuple[str, ...]:
    from tfds_bse import sets

    return tuple(sets.FAMILIES[index] for index in indices)


def epoch_batches(
    examples: Examples,
    batch_size: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    first: int = 0,
    rows: slice = slice(None),
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of one epoch, a function of (seed, epoch) alone, so that a run can resume at any of them.

    The last batch is filled up with examples from the start of the epoch and a mask that is False there:
    batch statistics see real images, losses and metrics leave them out.

    Args:
        examples: the split.
        batch_size: rows of the global batch.
        seed: of the permutation; None keeps the stored order.
        epoch: index of the epoch.
        first: index of the first batch to yield.
        rows: the rows of each global batch that this process takes.

    Yields:
        The arrays of the examples, as counts [rows, y, x, e] and labels [rows, y, x, z], and a mask [rows].
    """
    order = np.arange(len(examples))
    if seed is not None:
        order = np.random.default_rng((seed, epoch)).permutation(order)
    padded = np.resize(order, batches_per_epoch(examples, batch_size) * batch_size)  # repeats cyclically
    for start in range(first * batch_size, len(padded), batch_size):
        position = np.arange(start, start + batch_size)[rows]
        index = padded[position]
        rows_of_each = {name: array[index] for name, array in examples.arrays.items()}
        yield rows_of_each | {"mask": position < len(examples)}


def batches_per_epoch(examples: Examples, batch_size: int) -> int:
    """The number of batches that `epoch_batches` yields."""
    return -(-len(examples) // batch_size)


def transform(array: jax.Array, index: jax.Array | int) -> jax.Array:
    """One symmetry of the square, on the first two axes of [y, x, channel].

    Bit 2 of the index swaps y and x, then bit 1 mirrors y and bit 0 mirrors x; index 0 is the identity.
    """
    ny, nx = array.shape[:2]
    pixels = jnp.arange(ny * nx).reshape(ny, nx)
    pixels = jnp.where(index & 4, pixels.T, pixels)
    pixels = jnp.where(index & 2, pixels[::-1], pixels)
    pixels = jnp.where(index & 1, pixels[:, ::-1], pixels)
    # The pixels are chosen, not the arrays: the compiler would compute what they come from once per choice.
    return jnp.asarray(array).reshape(ny * nx, *array.shape[2:])[pixels]


def apply_symmetry(
    images: jax.Array, volumes: jax.Array, index: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """The same symmetry on images [y, x, e] and volumes [y, x, z]: a column of voxels stays under its pixel.

    Exact for a beam at normal incidence and mirror side walls, as in Zheng et al. 2024, Sec. II-A.
    """
    return transform(images, index), transform(volumes, index)


def thin_counts(
    key: jax.Array, counts: jax.Array, electrons_per_pixel: jax.Array | float, lower_dose: jax.Array | float
) -> jax.Array:
    """Counts as a lower dose would have given them: an electron is kept with the ratio of the doses.

    A binomial draw of Poisson counts is Poisson with the smaller mean: the noise is that of the lower dose.

    Args:
        key: random key.
        counts: integers of any shape, at `electrons_per_pixel`.
        electrons_per_pixel: dose of the counts.
        lower_dose: dose wanted, at most `electrons_per_pixel`; both broadcast against the counts.

    Returns:
        int32 counts, nowhere more than given.
    """
    kept = jax.random.binomial(key, counts.astype(jnp.float32), lower_dose / electrons_per_pixel)
    return kept.astype(jnp.int32)


def copper(labels: jax.Array) -> jax.Array:
    """The network's classes, int32: 1 where the label is Cu, 0 elsewhere (Si and vacuum)."""
    return (labels == COPPER_LABEL).astype(jnp.int32)


def augment(
    key: jax.Array,
    example: dict[str, jax.Array],
    *,
    normalisation: Normalisation,
    electrons_per_pixel: int,
    symmetries: bool,
    lowest_dose_fraction: float,
) -> tuple[jax.Array, jax.Array]:
    """One training example as the network sees it, for use inside the step.

    Args:
        key: of this example in this step.
        example: counts [y, x, e] at `electrons_per_pixel`, and labels [y, x, z].
        normalisation: of the yields.
        electrons_per_pixel: dose of the counts.
        symmetries: whether to apply one of the eight, at random.
        lowest_dose_fraction: the example keeps a log-uniform fraction of its dose from here to 1; 1: all.

    Returns:
        Inputs [y, x, e] float32 and labels [y, x, z].
    """
    if not 0 < lowest_dose_fraction <= 1:
        raise ValueError(
            f"data.lowest_dose_fraction must lie in (0, 1]; got {lowest_dose_fraction}. "
            "Use 1 for the full dose."
        )
    dose_key, thin_key, symmetry_key = jax.random.split(key, 3)
    counts, labels, dose = example["counts"], example["labels"], electrons_per_pixel
    if lowest_dose_fraction < 1:
        dose = electrons_per_pixel * lowest_dose_fraction ** jax.random.uniform(dose_key)
        counts = thin_counts(thin_key, counts, electrons_per_pixel, dose)
    images = normalisation(counts, dose)
    if symmetries:
        images, labels = apply_symmetry(images, labels, jax.random.randint(symmetry_key, (), 0, SYMMETRIES))
    return images, labels
