"""Data sets for learning, made by the simulator and packed by TFDS without TensorFlow.

`python -m tfds_bse --config=quickstart --data_dir=data` makes one; the configurations stand in `sets.py`.
Some are shipped with the project, and are simulated only on request. Reading one:

    tfds.builder_from_directory(tfds_bse.build("quickstart", "data")).as_data_source("train")
"""

import contextlib
import os
from pathlib import Path

from tfds_bse import cache, packing, sets, shipped


def build(
    config: str | sets.Config,
    data_dir: str | os.PathLike,
    *,
    shard: tuple[int, int] = (0, 1),
    simulate: bool = False,
    **program,
) -> str:
    """Makes what is missing of a data set: first the simulated chunks, resumably, then the packed set.

    Args:
        config: a configuration, or a name among `sets.CONFIGS`.
        data_dir: folder of data sets; the chunks go to `bse_voxels_chunks` in it.
        shard: (i, n), the share of this process, number i of n, in the simulation. Process 0 packs; the
            others return as soon as their own chunks are done.
        simulate: fills the chunks also of a set that is packed or shipped.
        program: binary, materials and arguments of a configuration `*_nebula` (see `sim.nebula.program`). A
            set that is packed is read without them.

    Returns:
        The folder of the packed data set, for `tfds.builder_from_directory`.

    Raises:
        ValueError: unknown configuration or shard, or a data set of other settings in that folder.
        OSError: no room or no permission to write, or a damaged data set. Each is one line with the remedy.
    """
    config = sets.find(config) if isinstance(config, str) else config
    _check_shard(shard)
    folder = packing.folder_of(config, _root(data_dir))
    with nebula_program(config, **program) as found:
        chunks = chunks_of(config, data_dir, found)
        settings = sets.settings(config, chunks.recipe)
        packed = os.path.lexists(folder)
        if packed:
            packing.check(folder, settings, unknown_program=config.simulator == "nebula" and not found)
        if packed and not simulate:
            return str(folder)
        source = None if simulate else shipped.find(config, settings)
        if source is None:
            check_program(config, found)
            chunks.fill(shard, found)
        if shard[0] == 0 and not packed:
            packing.pack(config, source or chunks, settings, _root(data_dir))
    return str(folder)


def chunks_of(config: sets.Config, data_dir: str | os.PathLike, program=None) -> cache.ChunkCache:
    """The chunks of a configuration below a data folder."""
    return cache.ChunkCache(config, _root(data_dir) / f"{sets.NAME}_chunks", cache.recipe(config, program))


def find_shipped(config: str | sets.Config) -> shipped.Shipped | None:
    """What the project ships of a configuration; None if nothing, or only with other settings."""
    config = sets.find(config) if isinstance(config, str) else config
    if config.simulator != "bsevox":
        return None
    return shipped.find(config, sets.settings(config, cache.recipe(config)))


def _root(data_dir) -> Path:
    return Path(data_dir).expanduser().absolute()


def _check_shard(shard):
    number, of = shard
    if not 0 <= number < of:
        raise ValueError(f"shard must be i/n with 0 <= i < n; got {number}/{of}. Use 0/{max(of, 1)} first.")


def check_program(config: sets.Config, found) -> None:
    """Raises ValueError if a configuration of Nebula lacks its program."""
    if config.simulator == "nebula" and not found:
        raise ValueError(
            f"the data set {config.name} must be simulated by Nebula; got no program. Give the path "
            "of its binary, or take the simulator bsevox."
        )


def nebula_program(config: sets.Config, binary: str = "", materials=(), arguments: str = ""):
    """The Nebula program of a configuration, as a context; None if it is not given, or not of use."""
    from bsevox_jax.sim import nebula

    if config.simulator != "nebula" or not binary:
        return contextlib.nullcontext()
    return nebula.program(binary, materials, arguments)
