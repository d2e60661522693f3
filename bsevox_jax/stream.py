"""Training without end: random specimens, drawn as the epochs need them and imaged by the image model."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from bsevox_jax import forward, parallel
from bsevox_jax.data import Examples, Normalisation
from bsevox_jax.imageio import listed
from bsevox_jax.observe import Microscope, check_range
from bsevox_jax.sim import phantoms, textures

SPECIMENS = 3  # child of the root key of a run, after those of `step`
ROWS_PER_DEVICE = 64  # specimens imaged at once


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """What takes the place of `Examples` in training: epoch k has the specimens from k * fresh on.

    They follow from the seed and their numbers alone. Those of the epoch before are kept, in the rows where
    they are; a resumed run draws all of them anew and trains on the same.

    Attributes:
        model: makes the expected images.
        microscope: makes training examples of them, in the step.
        seed: of the run.
        shape: voxels (y, x, z) of a specimen, 1 nm wide.
        specimens: of an epoch.
        fresh: how many of them the epoch before did not have.
        textures: share of the specimens that belong to no family, see `textures`.
        stacks: share with bodies below each other, see `textures.random_stack`.
        thickness_nm: range of the thickness of the film; vacuum below.
        relief_nm: range of the relief of the surface, see `textures.carved`.
    """

    model: forward.ImageModel
    microscope: Microscope
    seed: int
    shape: phantoms.Shape
    specimens: int
    fresh: int
    textures: float
    stacks: float
    thickness_nm: tuple[float, float]
    relief_nm: tuple[float, float]

    def __post_init__(self) -> None:
        if self.specimens < 1 or not 0 <= self.fresh <= self.specimens:
            raise ValueError(
                "data.forward.specimens must be from 1, and fresh from 0 to specimens; "
                f"got {self.specimens} and {self.fresh}. Use e.g. 8192 and 1024."
            )
        if min(self.textures, self.stacks) < 0 or self.textures + self.stacks > 1:
            raise ValueError(
                "data.forward.textures and stacks must be from 0 and together at most 1; "
                f"got {self.textures} and {self.stacks}. Use 0 for none."
            )
        check_range("thickness_nm", self.thickness_nm, 1)
        check_range("relief_nm", self.relief_nm, 0)

    def __len__(self) -> int:
        return self.specimens

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a batch takes rows of: yields and excess [n, y, x, e] float32, labels [n, y, x, z] uint8.

        Those of the epoch that `at` was last asked for; zeros before.
        """
        numbers = jax.ShapeDtypeStruct((self.specimens,), np.uint32)
        fields = jax.eval_shape(self._fields, self.model.weights, numbers)
        return {name: np.zeros(field.shape, field.dtype) for name, field in fields.items()}

    @property
    def labels(self) -> np.ndarray:
        return self.arrays["labels"]

    @property
    def electrons_per_pixel(self) -> int:
        """The highest dose."""
        return int(self.microscope.highest_electrons_per_pixel)

    @property
    def beam_energies_kev(self) -> tuple[float, ...]:
        return self.model.beam_energies_kev

    @property
    def name(self) -> str:
        return f"random specimens, imaged by the model {self.model.sha256[:12]}"

    @property
    def about(self) -> str:
        """All of it, in one line."""
        low = self.microscope.lowest_electrons_per_pixel
        return (
            f"{self.name}: {self.specimens} training examples per epoch, {self.fresh} of them new, "
            f"at {low:g} to {self.electrons_per_pixel} electrons per pixel; "
            f"textures {self.textures:g}, stacks {self.stacks:g}, thickness_nm {self.thickness_nm}, "
            f"relief_nm {self.relief_nm}; "
            f"instrument errors: {self.microscope.effects}"
        )

    def at(self, epoch: int) -> "Stream":
        """Draws what an epoch has and the one before had not; returns itself."""
        first = epoch * self.fresh
        # The row of a specimen is its number modulo the rows, so that those that stay need not move.
        wanted = first + (np.arange(self.specimens) - first) % self.specimens
        missing = np.flatnonzero(wanted != self._held)
        # Blocks begin at multiples of their size: a specimen is always imaged with the same neighbours, and
        # its yields are the same to the last bit.
        size = ROWS_PER_DEVICE * jax.device_count()
        blocks = wanted[missing] // size
        bar = dict(unit="block", delay=2, leave=False, disable=not parallel.is_main_process())
        for block in tqdm(np.unique(blocks), "drawing specimens", **bar):
            fields = self._draw(block * size + np.arange(size))
            rows = missing[blocks == block]
            for name, array in self.arrays.items():
                array[rows] = fields[name][wanted[rows] % size]
        self._held[:] = wanted
        return self

    def specimen(self, number: jax.Array | int) -> jax.Array:
        """Labels uint8 [y, x, z] of the specimen of a number."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), SPECIMENS), number)
        bodies, surface, sizes = jax.random.split(key, 3)
        limits_nm = jnp.array([self.relief_nm, self.thickness_nm]).T
        sizes_nm = phantoms.between(jax.random.uniform(sizes, (2,)), limits_nm)
        labels = phantoms.random_specimen(bodies, self.shape)
        kind = jax.random.uniform(jax.random.fold_in(bodies, 0))
        if self.textures:
            labels = jnp.where(kind < self.textures, textures.random_texture(bodies, self.shape), labels)
        if self.stacks:
            labels = jnp.where(kind > 1 - self.stacks, textures.random_stack(bodies, self.shape), labels)
        return textures.carved(surface, labels, *sizes_nm)

    @functools.cached_property
    def _held(self) -> np.ndarray:
        """Number of the specimen in each row of `arrays`."""
        return np.full(self.specimens, -1)

    def _fields(self, weights: dict, numbers: jax.Array) -> dict[str, jax.Array]:
        labels = jax.vmap(self.specimen)(numbers)
        expected = forward.expect(dataclasses.replace(self.model, weights=weights), labels)
        return {"yields": expected.yields, "excess": expected.excess, "labels": labels}

    @functools.cached_property
    def _draw(self) -> Callable:
        """Numbers of a block -> its fields in every process, computed on all devices."""

        def gathered(weights, numbers):
            return lax.all_gather(self._fields(weights, numbers), parallel.AXIS, tiled=True)

        mapped, weights = parallel.map_evaluation(gathered), parallel.replicate(self.model.weights)

        def draw(numbers):
            rows = numbers[parallel.local_rows(len(numbers))].astype(np.uint32)
            return parallel.unreplicate(mapped(weights, parallel.shard(rows)))

        return draw


def start(
    examples: Examples,
    normalisation: Normalisation,
    *,
    seed: int,
    symmetries: bool,
    model: str,
    specimens: int,
    fresh: int,
    textures: float,
    stacks: float,
    thickness_nm: tuple[float, float],
    relief_nm: tuple[float, float],
    **microscope,
) -> Stream:
    """The stream of a configuration; the arguments from `model` on are `data.forward` of configs/moderate.py.

    Args:
        examples: of the data set that validates, whose energies and voxels the stream has.
        normalisation: of the yields.
        seed: of the run.
        symmetries: as in `Microscope`.
        model: folder of an exported image model; "": the shipped one.
        specimens, fresh, textures, stacks, thickness_nm, relief_nm: as in `Stream`.
        microscope: as in `Microscope`.

    Raises:
        ValueError: a value is out of its range, or the image model has other energies; one line.
        FileNotFoundError, OSError: the image model is missing or damaged.
    """
    loaded = forward.load(model or forward.SHIPPED)
    ours, theirs = loaded.beam_energies_kev, examples.beam_energies_kev
    if len(ours) != len(theirs) or not np.allclose(ours, theirs):
        raise ValueError(
            f"the image model must have the beam energies of the data set, {listed(theirs)} keV; "
            f"got {listed(ours)}. Choose another data.config, or fit a model to it with configs/forward.py."
        )
    return Stream(
        model=loaded,
        microscope=Microscope(
            normalisation=normalisation, beam_energies_kev=ours, symmetries=symmetries, **microscope
        ),
        seed=seed,
        shape=examples.labels.shape[1:],
        specimens=specimens,
        fresh=fresh,
        textures=textures,
        stacks=stacks,
        thickness_nm=tuple(thickness_nm),
        relief_nm=tuple(relief_nm),
    )
