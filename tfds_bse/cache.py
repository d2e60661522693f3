"""Simulated chunks on disk: made once, checked, skipped when there, and raised to a higher dose by layers.

A chunk is a folder for a few specimens of one split. Each file in it is a layer: the electrons [first, last)
of every pixel, which add up with those of the other layers. A file depends on what `recipe` lists and on what
its name says, not on the process that made it or on when. It is written under a temporary name and then
renamed, so a killed run loses the chunk in hand and nothing else. The folder of all chunks is named after the
hash of the recipe, and every file carries a checksum over that hash, its electrons and its arrays: those of
other settings or of another simulator are never read.

Memory: filling and reading hold one chunk at a time, whatever the number of specimens.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tqdm

from bsevox_jax import sim
from bsevox_jax.sim import nebula, phantoms, shapes, tables, textures
from tfds_bse import parts, sets

SPECIMENS_PER_CHUNK = 16  # minutes on two cores at the highest dose, seconds on an accelerator
DTYPES = {"index": np.int64, "family": np.int64, "labels": np.uint8, "counts": np.uint16}
Chunk = tuple[str, range]  # split, and specimens counted within it


def recipe(config: sets.Config, program: nebula.Program | None = None) -> dict:
    """What decides the bytes of a layer, apart from its specimens and electrons; JSON types only.

    Args:
        config: of the data set.
        program: the Nebula program, if the configuration asks for Nebula. Its layers repeat but for the
            chance of which thread takes which electron.
    """
    return {
        "simulator": config.simulator,
        "instrument": dataclasses.asdict(config.instrument),
        "beam_energies_kev": list(config.beam_energies_kev),
        "seed": config.seed,
        "phantoms_version": phantoms.PHANTOMS_VERSION,
        "families": [[f.name, f.weight, f.draw.__name__, f.ranges] for f in phantoms.FAMILIES],
        "cu_fraction": list(phantoms.CU_FRACTION),
        **({"shapes_version": shapes.SHAPES_VERSION} if "out_of_family" in config.specimens else {}),
        **({"textures_version": textures.TEXTURES_VERSION} if sets.TEXTURES in config.specimens else {}),
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

    config: sets.Config
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

    def chunks(self) -> list[Chunk]:
        return [
            (split, range(first, min(first + SPECIMENS_PER_CHUNK, number)))
            for split, number in self.config.specimens.items()
            for first in range(0, number, SPECIMENS_PER_CHUNK)
        ]

    def fill(self, shard: tuple[int, int] = (0, 1), program: nebula.Program | None = None) -> None:
        """Simulates what is missing.

        Process i of n, the shard (i, n), makes the chunks i, i + n, ...; process 0 then makes, from the end,
        whatever is still missing, so it neither waits for a slower process nor hangs on a dead one. Equal
        layers made twice do no harm, they have the same bytes.

        Raises:
            OSError: a layer cannot be written, or Nebula failed; one line with the remedy.
        """
        number, of = shard
        chunks = self.chunks()
        mine = chunks[number::of]
        if number == 0:
            mine += [chunk for i, chunk in enumerate(chunks) if i % of != 0][::-1]
        self._make_folder()
        lacking = [(chunk, self.missing(chunk, report=True)) for chunk in mine]
        work = [self._primaries(chunk, electrons) for chunk, electrons in lacking]
        total = sum(self.config.electrons(len(specimens)) for _, specimens in mine)
        bar = {"unit": " electrons", "unit_scale": True, "smoothing": 0.1, "disable": not sum(work)}
        with tqdm.tqdm(total=total, initial=total - sum(work), **bar) as progress:
            for (chunk, electrons), primaries in zip(lacking, work, strict=True):
                before = progress.n
                # Another process may have made it meanwhile.
                if electrons and (electrons := self.missing(chunk)):
                    arrays = simulate(self.config, *chunk, electrons, program, progress.update)
                    self._write(chunk, electrons, arrays)
                progress.update(before + primaries - progress.n)

    def missing(self, chunk: Chunk, report: bool = False) -> range:
        """The electrons of each pixel that are still to be simulated."""
        layers = self._layers(chunk, report)
        return range(layers[-1][0].stop if layers else 0, self.config.electrons_per_pixel)

    def primaries_missing(self) -> int:
        """Electrons still to be simulated, of all chunks and pixels."""
        return sum(self._primaries(chunk, self.missing(chunk)) for chunk in self.chunks())

    def _primaries(self, chunk, electrons) -> int:
        return self.config.electrons(len(chunk[1])) * len(electrons) // self.config.electrons_per_pixel

    def read(self, split: str) -> Iterator[dict]:
        """The specimens of a split in order, each a dict with the keys of `DTYPES`.

        Raises:
            FileNotFoundError: a chunk is missing or damaged; one line with the remedy.
        """
        for chunk in self.chunks():
            if chunk[0] == split:
                layers = self._layers(chunk)
                if not layers or layers[-1][0].stop != self.config.electrons_per_pixel:
                    raise FileNotFoundError(
                        f"chunk {self._path(chunk)} is missing or damaged. Start again: it is made anew."
                    )
                arrays = layers[0][1]
                arrays["counts"] = _sixteen_bits(sum(a["counts"].astype(np.int64) for _, a in layers))
                yield from ({name: a[i] for name, a in arrays.items()} for i in range(len(chunk[1])))

    def _layers(self, chunk: Chunk, report: bool = False) -> list[tuple[range, dict]]:
        """Electrons and arrays of sound layers that follow each other from 0 up to as much of the dose as can
        be, without exceeding it."""
        there = self._electrons_there(chunk)
        while chain := _longest_chain(there, self.config.electrons_per_pixel):
            layers = [(electrons, self._load(chunk, electrons, report)) for electrons in chain]
            damaged = [electrons for electrons, arrays in layers if arrays is None]
            if not damaged:
                return layers
            there = [electrons for electrons in there if electrons not in damaged]
        return []

    def _electrons_there(self, chunk: Chunk) -> list[range]:
        """Electrons of the layers of a chunk; Nebula cannot go on from electron n, so only whole doses."""
        names = [path.name for path in self._path(chunk).glob("electrons-*.npz")]
        matches = filter(None, (re.fullmatch(r"electrons-(\d+)-(\d+)\.npz", name) for name in names))
        there = [range(int(match[1]), int(match[2])) for match in matches]
        whole = range(self.config.electrons_per_pixel)
        return [e for e in there if e == whole] if self.config.simulator == "nebula" else there

    def _path(self, chunk: Chunk, electrons: range | None = None) -> Path:
        """Folder of a chunk, or file of one of its layers."""
        split, specimens = chunk
        folder = self.folder / f"{split}-{specimens.start:07d}-{specimens.stop:07d}"
        return folder / f"electrons-{electrons.start}-{electrons.stop}.npz" if electrons else folder

    def _make_folder(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            parts.remove_abandoned(self.folder.rglob("*.part"))
            path = self.folder / "recipe.json"  # for the reader; the checksums do not need it
            temporary = parts.name(path)
            temporary.write_text(json.dumps(self.recipe, indent=1) + "\n")
            os.replace(temporary, path)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def _checksum(self, electrons, arrays) -> np.ndarray:
        about = f"{self.fingerprint} {electrons.start} {electrons.stop}".encode()
        columns = (np.ascontiguousarray(arrays[name], dtype) for name, dtype in DTYPES.items())
        content = b"".join(column.tobytes() for column in columns)
        return np.frombuffer(hashlib.sha256(about + content).digest(), np.uint8)

    def _write(self, chunk, electrons, arrays):
        path = self._path(chunk, electrons)
        temporary = parts.name(path)
        try:
            path.parent.mkdir(exist_ok=True)
            with open(temporary, "wb") as file:
                save(file, checksum=self._checksum(electrons, arrays), **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise _cannot_write(path, error) from error

    def _load(self, chunk, electrons, report=False) -> dict | None:
        """Arrays of a layer; None if it is damaged, or not of these specimens."""
        path = self._path(chunk, electrons)
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in DTYPES}
                checksum = file["checksum"]
        except Exception:  # a damaged archive may raise anything
            arrays, checksum = None, None
        sound = arrays is not None and np.array_equal(checksum, self._checksum(electrons, arrays))
        if sound and np.array_equal(arrays["index"], sets.numbers(*chunk)):
            return arrays
        if report:
            logging.getLogger(__name__).warning("chunk %s is damaged; simulating it again", path)
        return None


def _longest_chain(layers: list[range], dose: int) -> list[range]:
    """Layers that follow each other from electron 0 as far as possible, but not beyond a dose."""
    chains = {0: []}
    for layer in sorted(layers, key=lambda layer: (layer.start, layer.stop)):
        if layer.start in chains and layer.start < layer.stop <= dose:
            chains.setdefault(layer.stop, [*chains[layer.start], layer])
    return chains[max(chains)]


def save(file, **arrays) -> None:
    """Writes the arrays of a layer; equal arrays give equal bytes."""
    np.savez_compressed(file, **arrays)


def simulate(
    config: sets.Config,
    split: str,
    specimens: range,
    electrons: range,
    program: nebula.Program | None = None,
    progress=None,
) -> dict:
    """Draws and images specimens of a split: index [n], family [n], labels [n, y, x, z], counts [n, y, x, e].

    Args:
        config: of the data set.
        split, specimens: which specimens, counted within the split.
        electrons: which of each pixel; all from 0 for Nebula.
        program: of Nebula.
        progress: called with the number of primaries that are done, now and then; not of Nebula.

    Raises:
        OSError: Nebula failed.
        ValueError: a count does not fit into 16 bits.
    """
    labels, family = sets.draw(config, split, specimens)
    index = sets.numbers(split, specimens)
    options = {
        "electrons_per_pixel": len(electrons),
        "beam_energies_kev": config.beam_energies_kev,
        "instrument": config.instrument,
        "seed": config.seed,
        "specimen_ids": index,
    }
    if config.simulator == "nebula":
        counts = nebula.simulate(labels, program, **options)
    else:
        options |= {"first_electron": electrons.start, "progress": progress}
        counts = sim.simulate_bse(labels, **options).counts
    arrays = {"index": index, "family": family, "labels": labels, "counts": _sixteen_bits(counts)}
    return {name: array.astype(DTYPES[name]) for name, array in arrays.items()}


def _sixteen_bits(counts: np.ndarray) -> np.ndarray:
    if counts.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"counts must fit into 16 bits; got {counts.max()}. Use fewer electrons per pixel, e.g. 20000."
        )
    return counts.astype(np.uint16)


def _cannot_write(path, error: OSError) -> OSError:
    remedy = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
    return OSError(
        error.errno,
        f"cannot write {path}: {error.strerror or error}. {remedy} or choose another data folder, then "
        "start again: finished chunks are kept.",
    )
