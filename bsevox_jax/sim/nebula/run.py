"""Running Nebula: one start of the program per specimen, with all pixels and energies."""

import contextlib
import dataclasses
import hashlib
import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import numpy as np

from bsevox_jax.sim import tables
from bsevox_jax.sim.instrument import Instrument, check_energies, check_instrument, check_whole
from bsevox_jax.sim.nebula.electrons import count, primaries, read_electrons, write_electrons
from bsevox_jax.sim.nebula.geometry import write_geometry
from bsevox_jax.sim.nebula.materials import write_material
from bsevox_jax.sim.specimen import Specimen, check_ids, check_specimen

# Nothing below 50 eV can leave with more, and without it Nebula is 6 to 10 times faster.
THRESHOLD_EV = 50


@dataclasses.dataclass(frozen=True)
class Program:
    """A Nebula program that was found to run, and its materials; see `program`.

    Attributes:
        binary: path.
        version: as the program says.
        materials: material files of the labels 1, 2, ...
        arguments: more options of the command line.
        names: of the materials; None where files were given, which may hold any.
    """

    binary: str
    version: str
    materials: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None

    def recipe(self) -> dict:
        """What decides its counts, apart from the specimen; JSON types only."""
        digests = []
        for path in self.materials:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return {
            "nebula_version": self.version,
            "nebula_arguments": list(self.arguments),
            "nebula_materials_sha256": digests,
        }


@contextlib.contextmanager
def program(binary: str, materials=(), arguments: str = "", names=("Si", "Cu")) -> Iterator[Program]:
    """Checks a Nebula program, and writes material files of our own cross sections if none are given.

    Args:
        binary: `nebula_gpu` or `nebula_cpu_mt`, a path or a name to be found.
        materials: material files of the labels 1, 2, ...; none: ours of `names`, kept as long as the context.
        arguments: more options of the command line, e.g. "--capacity 2000000".
        names: the materials of the labels, where no files are given.

    Raises:
        FileNotFoundError, OSError, ValueError: no such file, or not Nebula 1; one line.
    """
    path = shutil.which(os.path.expanduser(binary or ""))
    if path is None:
        there = os.path.isfile(os.path.expanduser(binary or ""))
        raise FileNotFoundError(
            f"the Nebula program must {'be executable' if there else 'exist'}; got {binary!r}. "
            + ("Run chmod +x on it." if there else "Give the path of nebula_gpu or nebula_cpu_mt.")
        )
    version = _version(path)
    for file in materials:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"the material file must exist; got {file}. Correct the path.")
    with contextlib.ExitStack() as stack:
        files = [os.path.abspath(file) for file in materials]
        if not files:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nebula-"))
            files = [os.path.join(folder, f"{name}.mat") for name in names]
            for file, name in zip(files, names, strict=True):
                write_material(file, tables.shipped((name,)), name)
        yield Program(
            os.path.abspath(path),
            version,
            materials=tuple(files),
            arguments=tuple(shlex.split(arguments)),
            names=None if materials else tuple(names),
        )


def _version(path):
    """The version that the program logs before it asks for its arguments."""
    try:
        done = subprocess.run([path], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OSError(f"the Nebula program must start; got {error} from {path}. Build it anew.") from error
    found = re.search(r"Nebula version (\d+)\.(\d+)\.(\d+)", done.stderr + done.stdout)
    if not found or found[1] != "1":
        said = found[0] if found else _last_line(done.stderr + done.stdout)
        raise ValueError(f"the program must be Nebula of version 1; got {said!r} from {path}. Build 1.0.2.")
    return ".".join(found.groups())


def simulate(
    labels,
    program: Program,
    *,
    electrons_per_pixel: int,
    beam_energies_kev,
    seed: int = 0,
    specimen_ids=None,
    instrument: Instrument = Instrument(),  # noqa: B008, frozen
) -> np.ndarray:
    """Counts of electrons of 50 eV or more of specimens, one after another, int32 [..., y, x, e].

    Several threads of Nebula share out the electrons as they are ready: repeated counts differ by chance.

    Args:
        labels: uint8 [..., y, x, z] or a `Specimen`.
        program: of `program`, with a material file for each label.
        electrons_per_pixel, beam_energies_kev, seed, specimen_ids, instrument: as in `simulate_bse`.

    Raises:
        OSError: Nebula failed, with its last words, or its output is damaged; one line.
        ValueError: a broken specimen, instrument, energy or number, or a material is lacking; one line.
    """
    specimen = check_specimen(labels if isinstance(labels, Specimen) else Specimen(labels))
    batch = specimen.labels.reshape(-1, *specimen.labels.shape[-3:])
    _check_materials(specimen, batch.max(), program)
    # What given files cover Nebula knows itself.
    energies_kev = check_energies(beam_energies_kev, tables.ENERGIES_KEV[-1] if program.names else math.inf)
    seed = check_whole("seed", seed, 0)
    beam = {
        "electrons_per_pixel": check_whole("electrons_per_pixel", electrons_per_pixel, 1),
        "beam_energies_kev": energies_kev,
        "instrument": check_instrument(instrument),
        "seed": seed,
    }
    counts = []
    for volume, number in zip(batch, check_ids(specimen_ids, len(batch)).tolist(), strict=True):
        one = dataclasses.replace(specimen, labels=volume)
        electrons = primaries(one, specimen_id=number, **beam)
        detected = _run(program, one, electrons, np.random.SeedSequence((seed, number)))
        counts.append(count(detected, (*volume.shape[:2], len(energies_kev)), instrument))
    return np.stack(counts).reshape(*specimen.labels.shape[:-3], *counts[0].shape)


def _check_materials(specimen, labels, program):
    if labels > len(program.materials):
        raise ValueError(
            f"Nebula needs a material file per label; got {len(program.materials)} for label {labels}. "
            "Name all files, in the order of the labels."
        )
    used = tuple(specimen.materials[:labels])
    if program.names is not None and used != program.names[: len(used)]:
        raise ValueError(
            f"materials of the specimen must be those of the program; got {', '.join(used)}, have "
            f"{', '.join(program.names)}. Pass names=specimen.materials."
        )


def _run(program, specimen, electrons, seeds):
    """What one start of the program detects; its files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nebula-") as folder:
        geometry, beam, output, log = (os.path.join(folder, f"box.{e}") for e in ("tri", "pri", "det", "log"))
        try:
            write_geometry(geometry, specimen)
            write_electrons(beam, electrons)
        except OSError as error:
            raise OSError(
                f"files for Nebula must be writable; got '{error.strerror or error}' in {folder}. Free some "
                "space or set TMPDIR."
            ) from error
        materials = program.materials[: max(1, specimen.labels.max())]  # it warns of any it does not need
        seed = str(seeds.generate_state(1)[0] >> 1)
        options = ["--energy-threshold", str(THRESHOLD_EV), "--seed", seed, *program.arguments]
        with open(output, "wb") as stdout, open(log, "wb") as stderr:
            done = subprocess.run(
                [program.binary, *options, geometry, beam, *materials], stdout=stdout, stderr=stderr
            )
        with open(log, errors="replace") as file:
            said = file.read()
        if done.returncode:
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
            raise OSError(
                f"Nebula must end without error; got {how} after {_last_line(said)!r}. Correct its "
                "options or files, then start again."
            )
        if warning := re.search("^WARNING: .*", said, re.MULTILINE):
            raise OSError(f"Nebula must accept all primaries; got '{warning[0]}'. Use energies it covers.")
        return read_electrons(output)


def _last_line(text):
    lines = [line.strip() for line in re.split("[\r\n]", text) if line.strip()]
    return lines[-1][:160] if lines else ""
