"""The packed data set: TFDS files, written in order under a temporary name and put in place in one move.

Memory: one chunk, or the shipped set, and a block of the record writer; it does not grow with the number of
specimens. (TFDS's own writer gathers a gigabyte of records, and then needs TensorFlow.)
"""

import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path

from tfds_bse import parts, sets

SPECIMENS_PER_FILE = 10_000  # 60 MB at 100 electrons per pixel


def folder_of(config: sets.Config, root: Path) -> Path:
    return root / sets.NAME / config.name / sets.VERSION


def pack(config: sets.Config, source, settings: dict, root: Path) -> None:
    """Packs the specimens that `source.read(split)` yields.

    Raises:
        FileNotFoundError: a specimen is missing.
        OSError: no room or no permission to write; one line with the remedy.
    """
    temporary = parts.name(root / f"{sets.NAME}_packing")
    try:
        parts.remove_abandoned(root.glob(f"{sets.NAME}_packing*.part"))
        temporary.mkdir(parents=True)
        _write(config, source, settings, temporary)
        _write_checksums(temporary)
        _move(temporary, folder_of(config, root))
    except FileNotFoundError:
        raise
    except Exception as error:  # the record writer has no exceptions of its own
        raise OSError(
            f"cannot pack the data set in {root}: {_first_line(error)}. Free some space or choose "
            "another data folder, then start again: the simulated chunks are kept."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(config: sets.Config, source, settings: dict, folder: Path) -> None:
    """The files of all splits, and those that describe them."""
    import tensorflow_datasets as tfds  # takes a second to import, and not every machine has it

    from tfds_bse.bse_voxels.bse_voxels_dataset_builder import Builder, builder_config

    info = Builder(config=builder_config(config), data_dir=folder.parent, file_format="array_record").info
    info.metadata.update(settings)
    splits = []
    for split, number in config.specimens.items():
        names = tfds.core.ShardedFileTemplate(
            folder, dataset_name=sets.NAME, split=split, filetype_suffix="array_record"
        )
        lengths, size = _write_records(config, info.features, source.read(split), names, number)
        splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=names)
        )
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(folder)


def _write_records(config, features, specimens, names, number: int) -> tuple[list[int], int]:
    """The files of one split; number of specimens of each, and the size of all records."""
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer
    from tensorflow_datasets.proto import tf_example_pb2

    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    starts, size = range(0, number, SPECIMENS_PER_FILE), 0
    lengths = [min(SPECIMENS_PER_FILE, number - start) for start in starts]
    for file, length in enumerate(lengths):
        path = names.sharded_filepath(shard_index=file, num_shards=len(lengths))
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for specimen in itertools.islice(specimens, length):
            example = features.encode_example(specimen | {"electrons_per_pixel": config.electrons_per_pixel})
            # Left to itself, protobuf orders the features anew in every process.
            record = tf_example_pb2.Example.FromString(serializer.serialize_example(example))
            record = record.SerializeToString(deterministic=True)
            writer.write(record)
            size += len(record)
        writer.close()
    return lengths, size


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError:
        if not target.is_dir():
            raise
        # Another process was first; its set has the same bytes.


def check(folder: Path, settings: dict, unknown_program: bool) -> None:
    """Raises if a packed data set is damaged (OSError) or was made with other settings (ValueError)."""
    try:
        found = json.loads((folder / "metadata.json").read_text())
        checksums = json.loads((folder / "checksums.json").read_text())
        damaged = [name for name, checksum in checksums.items() if sha256(folder / name) != checksum]
    except (OSError, ValueError) as error:
        damaged = [_first_line(error)]
    if damaged:
        raise OSError(
            f"the data set {folder} is damaged ({damaged[0]}). Delete this folder and start again: it is "
            "packed anew from the chunks within seconds."
        )
    if unknown_program:
        found = {key: value for key, value in found.items() if not key.startswith("nebula_")}
    if different := differing(settings, found):
        raise ValueError(
            f"the data set {folder} was made with other settings ({', '.join(different)}). Delete this "
            "folder or choose another data folder."
        )


def differing(settings: dict, found: dict) -> list[str]:
    """Names of the settings, JSON types only, that are not the same in both."""
    wanted = json.loads(json.dumps(settings))
    return sorted(key for key in wanted | found if wanted.get(key) != found.get(key))


def _write_checksums(folder: Path) -> None:
    checksums = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / "checksums.json").write_text(json.dumps(checksums, indent=1) + "\n")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
