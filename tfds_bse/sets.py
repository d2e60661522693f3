"""The data sets: how many specimens of which kind, at which dose, and how each is numbered and drawn.

Free of tensorflow-datasets, so that a machine without it can read what is shipped.
"""

import dataclasses
import functools

import jax
import numpy as np

from bsevox_jax import sim
from bsevox_jax.sim import phantoms, shapes, textures

NAME = "bse_voxels"
VERSION = "3.0.0"
TRAIN_SPECIMENS = 2400  # of standard-train
TEXTURES = "textures"  # split and family of the specimens that belong to none

# Specimens are numbered from here, so that a split does not change when another one grows. The first three
# and the textures are drawn at random, specimen by specimen from its number; the others are listed in
# `_LISTED`.
FIRST_SPECIMEN = {
    "train": 0,
    "validation": 100_000_000,
    "test": 200_000_000,
    "nanocube": 300_000_000,
    "nanowire": 400_000_000,
    "out_of_family": 500_000_000,
    TEXTURES: 600_000_000,
}
_LISTED = {  # split -> (family, function that makes the labels) of each specimen
    "nanocube": [("nanocube", make) for make in shapes.STRUCTURES["nanocube"].values()],
    "nanowire": [("nanowire upright", make) for make in shapes.STRUCTURES["nanowire"].values()]
    + [("nanowire lying", make) for make in shapes.STRUCTURES["nanowire_lying"].values()],
    "out_of_family": list(shapes.SHAPES.items()),
}
FAMILIES = (
    *(family.name for family in phantoms.FAMILIES),
    *dict.fromkeys(family for listed in _LISTED.values() for family, _ in listed),
    TEXTURES,
)
"""Names of the values of `family`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What decides the bytes of a data set.

    Attributes:
        name, description: of the configuration.
        specimens: number of specimens of each split.
        electrons_per_pixel: primaries sent into each pixel at each energy, the dose.
        beam_energies_kev: one image each, ascending.
        seed: names all random streams; specimen i of a split is the same in every configuration of a seed.
        simulator: "bsevox", ours, or "nebula".
        instrument: probe, tilt and detector.
    """

    name: str
    description: str
    specimens: dict[str, int]
    electrons_per_pixel: int
    beam_energies_kev: tuple[float, ...] = sim.PAPER_ENERGIES_KEV
    seed: int = 0
    simulator: str = "bsevox"
    instrument: sim.Instrument = sim.Instrument()

    def electrons(self, specimens: int) -> int:
        """Primaries of so many specimens at this dose."""
        return specimens * self.electrons_per_pixel * len(self.beam_energies_kev) * _PIXELS


_PIXELS = phantoms.SHAPE[0] * phantoms.SHAPE[1]
_OURS = (
    Config(
        name="smoke",
        description="A few specimens at a very low dose, for tests.",
        specimens={"train": 32, "validation": 16, "test": 16},
        electrons_per_pixel=4,
    ),
    Config(
        name="quickstart",
        description="Enough to see a network learn on a laptop.",
        specimens={"train": 800, "validation": 48, "test": 48},
        electrons_per_pixel=24,
    ),
    Config(
        name="paper",
        description="As many specimens as published; 200 of the training specimens serve for validation.",
        specimens={"train": 9600, "validation": 200, "test": 200},
        electrons_per_pixel=1000,
    ),
    Config(
        name="standard-train",
        description="The shipped training set.",
        specimens={"train": TRAIN_SPECIMENS, "validation": 200},
        electrons_per_pixel=100,
    ),
    Config(
        name="standard-test",
        description="The shipped test set: random specimens, the published structures, twelve odd shapes.",
        specimens={"test": 200, **{split: len(listed) for split, listed in _LISTED.items()}},
        electrons_per_pixel=1000,
    ),
    Config(
        name="standard-validation",
        description="The shipped validation set, at the dose of the test: for choices of networks.",
        specimens={"validation": 64},
        electrons_per_pixel=1000,
    ),
    Config(
        name="textures",
        description="Copper anywhere, rough surfaces and thinner films: for the image model.",
        specimens={TEXTURES: 800},
        electrons_per_pixel=100,
    ),
    Config(
        name="calibration",
        description="Validation specimens at a higher dose: for the errors of the image model.",
        specimens={"validation": 16},
        electrons_per_pixel=1000,
    ),
)


def _of_nebula(config: Config) -> Config:
    """The same data set simulated by Nebula."""
    return dataclasses.replace(
        config,
        name=f"{config.name}_nebula",
        description=f"{config.description} Simulated by Nebula.",
        simulator="nebula",
    )


CONFIGS = {config.name: config for config in (*_OURS, *map(_of_nebula, _OURS))}


def find(name: str) -> Config:
    """The configuration of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in CONFIGS:
        ours = ", ".join(config.name for config in _OURS)
        raise ValueError(f"config must be one of {ours}; got {name!r}. Take one, or one with _nebula.")
    return CONFIGS[name]


def settings(config: Config, recipe: dict) -> dict:
    """Everything that decides the bytes of the whole data set; JSON types only. `recipe` is of `cache`."""
    return {
        "specimens": dict(config.specimens),
        "electrons_per_pixel": config.electrons_per_pixel,
        **recipe,
    }


_draw = jax.jit(jax.vmap(phantoms.random_specimen_with_family))
_draw_textures = jax.jit(jax.vmap(textures.random_texture))


def numbers(split: str, specimens: range) -> np.ndarray:
    """The numbers, int64 [n], of specimens counted within their split."""
    return np.arange(specimens.start, specimens.stop) + FIRST_SPECIMEN[split]


def keys(config: Config, split: str, specimens: range) -> jax.Array:
    """The keys [n] that random specimens, counted within their split, are drawn with."""
    key = jax.random.key(config.seed)
    return jax.vmap(functools.partial(jax.random.fold_in, key))(numbers(split, specimens))


def draw(config: Config, split: str, specimens: range) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 [n, y, x, z] and index into `FAMILIES` [n] of specimens counted within their split."""
    if split in _LISTED:
        families, makers = zip(*_LISTED[split][specimens.start : specimens.stop], strict=True)
        return np.stack([make() for make in makers]), np.array([FAMILIES.index(name) for name in families])
    drawn_with = keys(config, split, specimens)
    if split == TEXTURES:
        return np.asarray(_draw_textures(drawn_with)), np.full(len(specimens), FAMILIES.index(TEXTURES))
    return jax.device_get(_draw(drawn_with))
