"""`python -m tfds_bse --config=quickstart --data_dir=data` simulates and packs a data set.

Interrupted, it goes on where it stopped when started again; at most the chunk in hand is lost. A set of a
higher dose takes over the electrons that are there. Several machines or accelerators share the work on one
folder: give each of n its own `--shard=0/n` to `n-1/n`. Shard 0 also packs. `--dry_run` says what it would
take.
"""

import os
import sys
from pathlib import Path

# XLA warns, in kilobytes, that its own pseudo-features of the processor are missing in code from the cache.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from absl import app, flags, logging

import tfds_bse
from tfds_bse import sets, shipped

_CONFIG = flags.DEFINE_string("config", "quickstart", f"Configuration: {', '.join(sets.CONFIGS)}.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of data sets.")
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n: process i of n that share the simulation.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only says what there is to do, and measures the rate here.")
_SIMULATE = flags.DEFINE_bool("simulate", False, "Simulates a shipped set anew, and compares it.")
_SHIP = flags.DEFINE_bool("ship", False, "Simulates a set, and writes it among those that are shipped.")
_BINARY = flags.DEFINE_string("nebula", "", "Program nebula_gpu or nebula_cpu_mt, for *_nebula.")
_MATERIALS = flags.DEFINE_list("nebula_materials", [], "Its material files of Si and Cu; none: ours.")
_ARGUMENTS = flags.DEFINE_string("nebula_arguments", "", 'More options, as "--capacity 2000000".')


def main(argv):
    logging.set_verbosity(logging.WARNING)
    if not jax.config.jax_compilation_cache_dir:
        # As launch.py does: without its cache XLA rounds otherwise, which turns a few histories in 100,000.
        jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
    try:
        if len(argv) > 1:
            raise ValueError(f"flags only, e.g. --config=smoke; got {argv[1]!r}.")
        for line in _run(sets.find(_CONFIG.value)):
            print(line)
    except (ValueError, OSError) as error:
        _stop(error.strerror if isinstance(error, OSError) and error.strerror else error)


def _run(config):
    """Does what the flags ask for; yields the lines to print."""
    program = {"binary": _BINARY.value, "materials": _MATERIALS.value, "arguments": _ARGUMENTS.value}
    simulate = _SIMULATE.value or _SHIP.value
    if simulate and config.simulator != "bsevox":
        raise ValueError(f"a shipped set must be of our own simulator; got {config.name}. Drop the flag.")
    if _DRY_RUN.value:
        from tfds_bse import estimate

        yield from estimate.lines(config, _DATA_DIR.value, simulate=simulate, **program)
        return
    shard = _shard(_SHARD.value)
    yield tfds_bse.build(config, _DATA_DIR.value, shard=shard, simulate=simulate, **program)
    chunks = tfds_bse.chunks_of(config, _DATA_DIR.value)
    if shard[0] == 0 and _SHIP.value:
        yield shipped.write(config, sets.settings(config, chunks.recipe), chunks)
    elif shard[0] == 0 and _SIMULATE.value:
        yield _compared(config, chunks)


def _compared(config, chunks) -> str:
    there = tfds_bse.find_shipped(config)
    if there is None:
        return "there is no shipped set of these settings to compare with"
    differing = shipped.differences(there, chunks)
    if not any(differing.values()):
        return "equal to the shipped set, bit for bit"
    counts = config.electrons(sum(config.specimens.values())) // config.electrons_per_pixel
    others = sum(differing.values()) - differing["counts"]
    return (
        f"differs from the shipped set in {differing['counts']} of {counts} counts and {others} other values"
    )


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()):
        raise ValueError(f"shard must be i/n, as 0/2 and 1/2; got {text!r}. Use 0/1 for one process.")
    return int(number), int(of)


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _stop(f"{error}. See python -m tfds_bse --help.")


def _stop(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
