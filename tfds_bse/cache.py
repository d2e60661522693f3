"""Simulated chunks on disk: made once, checked, and skipped when there.

A chunk holds a few specimens of one split. It depends on what `recipe` lists and on its own number, not on
the process that made it or on when. It is written under a temporary name and then renamed, so a killed run
loses the chunk in hand and nothing else. The folder is named after the hash of the recipe, and every chunk
carries a checksum over that hash and its arrays: chunks of other settings or of another simulator are never
read.
"""

import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tqdm

from bsevox_jax import sim
from bsevox_jax.sim import nebula, phantoms, tables

SPLITS = ("train", "validation", "test")
SPECIMENS_PER_CHUNK = 16  # minutes on two cores at the highest dose, seconds on an accelerator
FIRST_SPECIMEN = {"train": 0, "validation": 100_000_000, "test": 200_000_000}
"""Specimens are numbered from here, so that a split does not change when another one grows."""
DTYPES = {"index": np.int64, "family": np.int64, "labels": np.uint8, "counts": np.uint16}

_draw = jax.jit(jax.vmap(phantoms.random_specimen_with_family))


def recipe(config, program: nebula.Program | None = None) -> dict:
    """What decides the bytes of a chunk, apart from its split and number; JSON types only.

    Args:
        config: of the data set.
        program: the Nebula program, if the configuration asks for Nebula. Its chunks repeat but for the
            chance of which thread takes which electron.
    """
    families = [[f.name, f.weight, f.draw.__name__, f.ranges] for f in phantoms.FAMILIES]
    return {
        "simulator": config.simulator,
        "instrument": dataclasses.asdict(config.instrument),
        "beam_energies_kev": list(config.beam_energies_kev),
        "electrons_per_pixel": config.electrons_per_pixel,
        "seed": config.seed,
        "specimens_per_chunk": SPECIMENS_PER_CHUNK,
        "phantoms_version": phantoms.PHANTOMS_VERSION,
        "families": families,
        "cu_fraction": list(phantoms.CU_FRACTION),
        **(_own_simulator() if config.simulator == "bsevox" else program.recipe() if program else {}),
    }


def _own_simulator() -> dict:
    cross_sections = dataclasses.asdict(tables.shipped())
    arrays = [np.asarray(cross_sections[name]) for name in sorted(cross_sections) if name != "provenance"]
    return {
        "simulator_version": sim.SIMULATOR_VERSION,
        "cross_sections_sha256": hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest(),
    }


def fingerprint(settings: dict) -> str:
    """Hash of JSON settings, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class ChunkCache:
    """The chunks of one data-set configuration below `root`.

    Attributes:
        config: of the data set.
        root: folder of the chunks of all configurations.
        made_with: the recipe, if a Nebula program is in it.
    """

    config: object
    root: Path
    made_with: dict | None = None

    @functools.cached_property
    def recipe(self) -> dict:
        return self.made_with or recipe(self.config)

    @functools.cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.recipe)

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.fingerprint

    def chunks(self) -> list[tuple[str, range]]:
        """(split, specimens counted within the split) of every chunk."""
        return [
            (split, range(first, min(first + SPECIMENS_PER_CHUNK, self.config.specimens[split])))
            for split in SPLITS
            for first in range(0, self.config.specimens[split], SPECIMENS_PER_CHUNK)
        ]

    def fill(self, process: int, processes: int, program: nebula.Program | None = None) -> None:
        """Simulates what is missing.

        Process p of P makes the chunks p, p + P, ...; process 0 then makes, from the end, whatever is still
        missing, so it neither waits for a slower process nor hangs on a dead one. Equal chunks made twice do
        no harm, they have the same bytes.

        Raises:
            OSError: a chunk cannot be written, or Nebula failed; one line with the remedy.
        """
        chunks = self.chunks()
        mine = chunks[process::processes]
        if process == 0 and processes > 1:
            mine += [chunk for i, chunk in enumerate(chunks) if i % processes != 0][::-1]
        self._make_folder()
        missing = [chunk for chunk in mine if self._load(*chunk, report=True) is None]
        total, here = (sum(len(specimens) for _, specimens in some) for some in (mine, missing))
        with tqdm.tqdm(total=total, initial=total - here, unit=" specimens", disable=not here) as progress:
            for split, specimens in missing:
                if self._load(split, specimens) is None:  # another process may have made it meanwhile
                    self._write(split, specimens, simulate(self.config, split, specimens, program))
                progress.update(len(specimens))

    def read(self, split: str) -> Iterator[dict]:
        """The specimens of a split in order, each a dict with the keys of `DTYPES`.

        Raises:
            FileNotFoundError: a chunk is missing or damaged; one line with the remedy.
        """
        for chunk in self.chunks():
            if chunk[0] == split:
                arrays = self._load(*chunk)
                if arrays is None:
                    raise FileNotFoundError(
                        f"chunk {self._path(*chunk)} is missing or damaged. Start again: it is made anew."
                    )
                yield from ({name: a[i] for name, a in arrays.items()} for i in range(len(chunk[1])))

    def _path(self, split, specimens) -> Path:
        return self.folder / f"{split}-{specimens.start:07d}.npz"

    def _make_folder(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "recipe.json").write_text(  # for the reader; the checksums do not need it
                json.dumps(self.recipe, indent=1) + "\n"
            )
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def _checksum(self, arrays) -> np.ndarray:
        content = b"".join(
            np.ascontiguousarray(arrays[name], dtype).tobytes() for name, dtype in DTYPES.items()
        )
        return np.frombuffer(hashlib.sha256(self.fingerprint.encode() + content).digest(), np.uint8)

    def _write(self, split, specimens, arrays):
        path = self._path(split, specimens)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, checksum=self._checksum(arrays), **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _cannot_write(path, error) from error

    def _load(self, split, specimens, report=False) -> dict | None:
        """Arrays of a chunk; None if it is missing, damaged, or not of these specimens."""
        path = self._path(split, specimens)
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in DTYPES}
                checksum = file["checksum"]
        except FileNotFoundError:
            return None
        except Exception:  # a damaged archive may raise anything
            arrays, checksum = None, None
        expected = np.arange(specimens.start, specimens.stop) + FIRST_SPECIMEN[split]
        sound = arrays is not None and np.array_equal(checksum, self._checksum(arrays))
        if sound and np.array_equal(arrays["index"], expected):
            return arrays
        if report and not sound:
            logging.getLogger(__name__).warning("chunk %s is damaged; simulating it again", path)
        return None


def simulate(config, split: str, specimens: range, program: nebula.Program | None = None) -> dict:
    """Draws and images specimens of a split: index [n], family [n], labels [n, y, x, z], counts [n, y, x, e].

    Raises:
        OSError: Nebula failed.
        ValueError: a count does not fit into 16 bits.
    """
    index = np.arange(specimens.start, specimens.stop) + FIRST_SPECIMEN[split]
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(config.seed)))(index)
    labels, family = jax.device_get(_draw(keys))
    options = {
        "electrons_per_pixel": config.electrons_per_pixel,
        "beam_energies_kev": config.beam_energies_kev,
        "instrument": config.instrument,
        "seed": config.seed,
        "specimen_ids": index,
    }
    if config.simulator == "nebula":
        counts = nebula.simulate(labels, program, **options)
    else:
        counts = sim.simulate_bse(labels, **options).counts
    if counts.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"counts must fit into 16 bits; got {counts.max()} at {config.electrons_per_pixel} "
            "electrons per pixel. Use fewer, e.g. 20000."
        )
    arrays = {"index": index, "family": family, "labels": labels, "counts": counts}
    return {name: array.astype(DTYPES[name]) for name, array in arrays.items()}


def _cannot_write(path, error: OSError) -> OSError:
    remedy = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
    return OSError(
        error.errno,
        f"cannot write {path}: {error.strerror or error}. {remedy} or choose another data folder, then "
        "start again: finished chunks are kept.",
    )
