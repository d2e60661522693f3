"""Data sets for learning, made by the simulator and packed by TFDS without TensorFlow.

`python -m tfds_bse --config=quickstart --data_dir=data` makes one; the configurations stand in
`bse_voxels/bse_voxels_dataset_builder.py`. Reading one:

    tfds.builder_from_directory(tfds_bse.build("quickstart", "data")).as_data_source("train")
"""

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path


def build(
    config_name: str,
    data_dir: str | os.PathLike,
    *,
    process: int = 0,
    processes: int = 1,
    binary: str = "",
    materials=(),
    arguments: str = "",
) -> str:
    """Makes what is missing of a data set: first the simulated chunks, resumably, then the packed set.

    Args:
        config_name: a name among `Builder.BUILDER_CONFIGS`.
        data_dir: folder of data sets; the chunks go to `bse_voxels_chunks` in it.
        process, processes: share of this process in the simulation. Process 0 packs; the others return as
            soon as their own chunks are done.
        binary, materials, arguments: the program of a configuration `*_nebula`, its material files and
            options (see `sim.nebula.program`). A set that is packed is read without them.

    Returns:
        The folder of the packed data set, for `tfds.builder_from_directory`.

    Raises:
        ValueError: unknown configuration or process, or a data set of other settings in that folder.
        OSError: no room or no permission to write, or a damaged data set. Each is one line with the remedy.
    """
    from tfds_bse import cache  # TFDS takes a second to import, and not every machine has it
    from tfds_bse.bse_voxels.bse_voxels_dataset_builder import Builder, settings

    if config_name not in Builder.builder_configs:
        ours = [config.name for config in Builder.BUILDER_CONFIGS if config.simulator == "bsevox"]
        raise ValueError(
            f"config must be one of {', '.join(ours)}; got {config_name!r}. Take one, or one with _nebula."
        )
    if not 0 <= process < processes:
        raise ValueError(f"process must be 0 to processes - 1; got {process} with {processes} processes.")
    config = Builder.builder_configs[config_name]
    root = Path(data_dir).expanduser().absolute()
    folder = root / Builder.name / config_name / str(Builder.VERSION)
    with _program(config, binary, materials, arguments) as program:
        recipe = cache.recipe(config, program)
        unknown_program = config.simulator == "nebula" and not program
        if os.path.lexists(folder):
            _check(folder, settings(config, recipe), unknown_program)
            return str(folder)
        if unknown_program:
            raise ValueError(
                f"the data set {config_name} must be simulated by Nebula; got no program. Give the path "
                "of its binary, or take the simulator bsevox."
            )
        chunks = cache.ChunkCache(config, root / f"{Builder.name}_chunks", recipe)
        chunks.fill(process, processes, program)
        if process == 0:
            _pack(Builder, chunks, settings(config, recipe), root)
    return str(folder)


def _program(config, binary, materials, arguments):
    """The Nebula program of a configuration; None if it is not given, or not of use."""
    from bsevox_jax.sim import nebula

    if config.simulator != "nebula" or not binary:
        return contextlib.nullcontext()
    return nebula.program(binary, materials, arguments)


def _pack(builder_class, chunks, settings: dict, root: Path) -> None:
    """Packs the chunks; the folder gets its final name when it is complete."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()  # it takes seconds
    sources = tfds.download.DownloadConfig(manual_dir=chunks.folder, try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = builder_class(config=chunks.config.name, data_dir=root, file_format="array_record")
            builder.info.metadata.update(settings)
            builder.download_and_prepare(download_config=sources, download_dir=chunks.root)
        _write_checksums(Path(builder.data_dir))
    except FileNotFoundError:
        raise
    except Exception as error:  # the record writer has no exceptions of its own
        raise OSError(
            f"cannot pack the data set in {root}: {_first_line(error)}. Free some space or choose "
            "another data folder, then start again: the simulated chunks are kept."
        ) from error


def _check(folder: Path, settings: dict, unknown_program: bool) -> None:
    """Raises if a packed data set is damaged or was made with other settings."""
    try:
        found = json.loads((folder / "metadata.json").read_text())
        checksums = json.loads((folder / "checksums.json").read_text())
        damaged = [name for name, checksum in checksums.items() if _sha256(folder / name) != checksum]
    except (OSError, ValueError) as error:
        damaged = [_first_line(error)]
    if damaged:
        raise OSError(
            f"the data set {folder} is damaged ({damaged[0]}). Delete this folder and start again: it is "
            "packed anew from the chunks within seconds."
        )
    wanted = json.loads(json.dumps(settings))
    if unknown_program:
        found = {key: value for key, value in found.items() if not key.startswith("nebula_")}
    different = sorted(key for key in wanted | found if wanted.get(key) != found.get(key))
    if different:
        raise ValueError(
            f"the data set {folder} was made with other settings ({', '.join(different)}). Delete this "
            "folder or choose another data folder."
        )


def _write_checksums(folder: Path) -> None:
    checksums = {
        path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != "checksums.json"
    }
    temporary = folder / "checksums.json.part"
    temporary.write_text(json.dumps(checksums, indent=1) + "\n")
    os.replace(temporary, folder / "checksums.json")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
