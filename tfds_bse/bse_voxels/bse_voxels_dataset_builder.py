"""The data set `bse_voxels`: multi-energy backscattered-electron images and the voxels under them."""

import dataclasses
import json

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from bsevox_jax import sim
from tfds_bse import cache


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """What decides the bytes of the data set.

    Attributes:
        specimens: number of specimens of each split.
        electrons_per_pixel: primaries sent into each pixel at each energy, the dose.
        beam_energies_kev: one image each, ascending.
        seed: names all random streams; specimen i of a split is the same in every configuration of a seed.
        simulator: "bsevox", ours, or "nebula".
        instrument: probe, tilt and detector.
    """

    specimens: dict[str, int]
    electrons_per_pixel: int
    beam_energies_kev: tuple[float, ...] = sim.PAPER_ENERGIES_KEV
    seed: int = 0
    simulator: str = "bsevox"
    instrument: sim.Instrument = sim.Instrument()


def _of_nebula(config: Config) -> Config:
    """The same data set simulated by Nebula."""
    return dataclasses.replace(
        config,
        name=f"{config.name}_nebula",
        description=f"{config.description} Simulated by Nebula.",
        simulator="nebula",
    )


CONFIGS = [
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
]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Packs simulated chunks; `python -m tfds_bse` makes them first."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {
        "1.0.0": "First release.",
        "2.0.0": "Struck electrons remember their momentum; simulator and instrument are metadata.",
    }
    BUILDER_CONFIGS = [*CONFIGS, *map(_of_nebula, CONFIGS)]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Run `python -m tfds_bse --config=<name> --data_dir=<folder>`."

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        volume = sim.phantoms.SHAPE
        images = (*volume[:2], len(config.beam_energies_kev))
        info = self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "counts": tfds.features.Tensor(shape=images, dtype=np.uint16, encoding="bytes"),
                    "labels": tfds.features.Tensor(shape=volume, dtype=np.uint8, encoding="bytes"),
                    "electrons_per_pixel": tfds.features.Scalar(dtype=np.uint32),
                    "family": tfds.features.ClassLabel(names=[f.name for f in sim.phantoms.FAMILIES]),
                    "index": tfds.features.Scalar(dtype=np.int64),
                }
            ),
            supervised_keys=("counts", "labels"),
            metadata=tfds.core.MetadataDict(),  # the settings, when it is packed
        )
        # TFDS knows nothing of this data set, and leaves an empty temporary folder when asked.
        info.initialize_from_bucket = lambda: None
        return info

    def _split_generators(self, dl_manager):
        recipe = json.loads((dl_manager.manual_dir / "recipe.json").read_text())
        chunks = cache.ChunkCache(self.builder_config, dl_manager.manual_dir.parent, recipe)
        return {split: self._generate_examples(chunks, split) for split in cache.SPLITS}

    def _generate_examples(self, chunks, split):
        dose = np.uint32(self.builder_config.electrons_per_pixel)
        for specimen in chunks.read(split):
            yield int(specimen["index"]), {**specimen, "electrons_per_pixel": dose}

    def _example_writer(self):
        return RepeatableWriter(self.info.file_format)


class RepeatableWriter(writer.ExampleWriter):
    """Sorts the features within each record. Left to itself, protobuf orders them anew in every process."""

    def write(self, path, examples):
        parse = tf_example_pb2.Example.FromString
        records = ((key, parse(record).SerializeToString(deterministic=True)) for key, record in examples)
        return super().write(path, records)


def settings(config: Config, recipe: dict) -> dict:
    """Everything that decides the bytes of the whole data set; JSON types only."""
    return {"specimens": dict(config.specimens), **recipe}
