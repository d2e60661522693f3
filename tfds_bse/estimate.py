"""What making a data set would take: electrons, room on the disk, and time at the rate measured here."""

import io
import math
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tfds_bse
from tfds_bse import cache, packing, sets

MEASURED_S = 10.0  # of simulation, after compilation
BLOCK = 65536  # bytes; the files of TFDS are whole blocks, one more than their records fill


def lines(config: sets.Config, data_dir, *, simulate: bool = False, **program) -> Iterator[str]:
    """Tells what `tfds_bse.build` would do, in sentences; writes nothing below the data folder.

    The sizes are those of a sample that is simulated, with half a bit more per count for each doubling of the
    dose, as Poisson counts need.
    """
    kinds = ", ".join(f"{split} {number}" for split, number in config.specimens.items())
    yield (
        f"specimens    {kinds}, at {config.electrons_per_pixel} electrons per pixel and "
        f"{len(config.beam_energies_kev)} energies"
    )
    folder = packing.folder_of(config, Path(data_dir).expanduser().absolute())
    if folder.exists() and not simulate:
        yield f"nothing to do: it is packed in {folder}"
        return
    if not simulate and tfds_bse.find_shipped(config):
        yield "nothing to simulate: it is shipped with the project"
        return
    with tfds_bse.nebula_program(config, **program) as found:
        tfds_bse.check_program(config, found)
        chunks = tfds_bse.chunks_of(config, data_dir, found)
        total, left = config.electrons(sum(config.specimens.values())), chunks.primaries_missing()
        yield f"electrons    {total:,}, of which {total - left:,} are there"
        dose, arrays, seconds = _sample(config, chunks, found)
    rate = config.electrons(len(arrays["index"])) * dose / config.electrons_per_pixel / seconds
    loose, packed = _megabytes(config, dose, arrays)
    free = shutil.disk_usage(_existing(folder)).free / 1e6
    yield f"on the disk  {loose:,.1f} MB of chunks and {packed:,.1f} MB packed; {free:,.0f} MB are free"
    yield f"rate here    {rate:,.0f} electrons per second, with nothing else running"
    yield f"time left    {_duration(left / rate)}, divided by the number of such machines (--shard)"


def _sample(config, chunks, program) -> tuple[int, dict, float]:
    """Dose, arrays and seconds of the longest simulation of one chunk that takes about `MEASURED_S`."""
    split, specimens = max(chunks.chunks(), key=lambda chunk: len(chunk[1]))
    if config.simulator == "nebula":
        specimens = specimens[:2]  # one start of the program each
    most, dose, seconds = config.electrons_per_pixel, 1, math.inf
    cache.simulate(config, split, specimens, range(1), program)  # compiles
    while True:
        started = time.perf_counter()
        arrays = cache.simulate(config, split, specimens, range(dose), program)
        seconds = time.perf_counter() - started
        if dose == most or seconds > MEASURED_S / 2:
            return dose, arrays, seconds
        dose = min(most, max(2 * dose, int(dose * MEASURED_S / seconds)))


def _megabytes(config, dose, arrays) -> tuple[float, float]:
    """Size of all chunks and of the packed set."""
    sample = len(arrays["index"])
    noise = arrays["counts"].size / sample / 2 * math.log2(config.electrons_per_pixel / dose) / 8
    file = io.BytesIO()
    cache.save(file, **arrays)
    records = [arrays["counts"][i].tobytes() + arrays["labels"][i].tobytes() for i in range(sample)]
    record = np.mean([len(zlib.compress(data, 1)) for data in records]) + noise  # about as TFDS does it
    blocks = [math.ceil(number * record / BLOCK) + 1 for number in config.specimens.values()]
    chunks = (file.tell() / sample + noise) * sum(config.specimens.values())
    return chunks / 1e6, sum(blocks) * BLOCK / 1e6


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
