"""The data set `bse_voxels`: multi-energy backscattered-electron images and the voxels under them."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from bsevox_jax import sim
from tfds_bse import sets


@dataclasses.dataclass(kw_only=True)
class BuilderConfig(tfds.core.BuilderConfig):
    """A configuration as TFDS wants it."""

    content: sets.Config


def builder_config(config: sets.Config) -> BuilderConfig:
    """The one of `Builder`, or a new one of a configuration that is not in `sets.CONFIGS`."""
    known = Builder.builder_configs.get(config.name)
    return known if known and known.content == config else _wrapped(config)


def _wrapped(config):
    return BuilderConfig(name=config.name, description=config.description, content=config)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Describes the data set; `packing.pack` writes it, in less memory than TFDS would."""

    VERSION = tfds.core.Version(sets.VERSION)
    RELEASE_NOTES = {
        "1.0.0": "First release.",
        "2.0.0": "Struck electrons remember their momentum; simulator and instrument are metadata.",
        "3.0.0": "Faster walk with other random numbers; standard sets, shipped; examples in order.",
    }
    BUILDER_CONFIGS = [_wrapped(config) for config in sets.CONFIGS.values()]

    def _info(self) -> tfds.core.DatasetInfo:
        volume = sim.phantoms.SHAPE
        images = (*volume[:2], len(self.builder_config.content.beam_energies_kev))
        info = self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "counts": tfds.features.Tensor(shape=images, dtype=np.uint16, encoding="bytes"),
                    "labels": tfds.features.Tensor(shape=volume, dtype=np.uint8, encoding="bytes"),
                    "electrons_per_pixel": tfds.features.Scalar(dtype=np.uint32),
                    "family": tfds.features.ClassLabel(names=list(sets.FAMILIES)),
                    "index": tfds.features.Scalar(dtype=np.int64),
                }
            ),
            supervised_keys=("counts", "labels"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),  # the settings, when it is packed
        )
        # TFDS knows nothing of this data set, and leaves an empty temporary folder when asked.
        info.initialize_from_bucket = lambda: None
        return info

    def _split_generators(self, dl_manager):
        name = self.builder_config.name
        raise ValueError(f"the data set must be made first. Run python -m tfds_bse --config={name}.")

    def _generate_examples(self):
        return ()  # TFDS wants the method; `_split_generators` has refused before it could be called
