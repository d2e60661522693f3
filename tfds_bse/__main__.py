"""`python -m tfds_bse --config=quickstart --data_dir=data` simulates and packs a data set.

Interrupted, it goes on where it stopped when started again; at most the chunk in hand is lost. Several
machines or accelerators share the work on one folder: give each `--processes=N` and its own
`--process=0` to `N-1`. Process 0 also packs.
"""

import sys
from pathlib import Path

import jax
from absl import app, flags, logging

import tfds_bse

_CONFIG = flags.DEFINE_string(
    "config", "quickstart", "Configuration: smoke, quickstart or paper, or one of them with _nebula."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of data sets.")
_PROCESS = flags.DEFINE_integer("process", 0, "Number of this process, from 0.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes that share the simulation.")
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
        folder = tfds_bse.build(
            _CONFIG.value,
            _DATA_DIR.value,
            process=_PROCESS.value,
            processes=_PROCESSES.value,
            binary=_BINARY.value,
            materials=_MATERIALS.value,
            arguments=_ARGUMENTS.value,
        )
    except (ValueError, OSError) as error:
        _stop(error.strerror if isinstance(error, OSError) and error.strerror else error)
    print(folder)


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
