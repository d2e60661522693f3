"""The command line: trains, evaluates, reconstructs, simulates or plans.

python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
python launch.py --config=configs/quickstart.py --workdir=runs/quickstart --mode=evaluate
python launch.py --mode=simulate --input=nanocube:2 --electrons_per_pixel=24 --output=runs/cube
python launch.py --mode=simulate --config=configs/quickstart.py     # its data set, without training
python launch.py --config=configs/compact.py --mode=evaluate        # the shipped network
python launch.py --mode=reconstruct --input=runs/cube/stack.tif --output=runs/cube     # by the same
python launch.py --mode=reconstruct --input=runs/cube/stack.tif --checkpoint=runs/quickstart/export \
    --output=runs/cube
python launch.py --mode=plan --input=box:6:4 --precision_nm=1 --output=runs/plan    # energies and dose
"""

import os
import sys

# XLA warns, in kilobytes, that its own pseudo-features of the processor are missing in code from the cache.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from absl import flags
from ml_collections import config_flags

from bsevox_jax import parallel

ROOT = os.path.dirname(os.path.abspath(__file__))


def train(options) -> None:
    if "compare" in options.config:
        raise ValueError("this configuration compares; got --mode=train. Give --mode=evaluate.")
    if "sweep" in options.config:
        from bsevox_jax.sweep import sweep as train
    else:
        from bsevox_jax.train import train

    train(options.config, options.workdir)


def evaluate(options) -> None:
    if "compare" in options.config:
        _require(options, "workdir")
        from bsevox_jax.compare import compare as evaluate
    else:
        from bsevox_jax.evaluate import evaluate

    evaluate(options.config, options.workdir)


def reconstruct(options) -> None:
    from bsevox_jax.measure import told
    from bsevox_jax.reconstruct_files import WRITTEN, reconstruct_files

    given = _dose_and_energies(options) | {"formats": options.formats, "exact": options.exact}
    more = {name: getattr(options, name) for name in ("pixel_nm", "axes")}
    given |= {name: value for name, value in more.items() if value is not None}
    if options.rows is not None:
        rows = _slice("rows", options.rows)
        given["rows"] = rows.start, rows.stop
    areas = {name: getattr(options, name) for name in ("silicon", "copper")}
    given |= {name: _area(name, text) for name, text in areas.items() if text is not None}
    found = reconstruct_files(options.input, options.checkpoint, options.output, **given)
    if parallel.is_main_process():
        print(*(f"assumed: {line}" for line in found.assumptions), sep="\n")
        print(*(found.check.sentences if found.check else ()), sep="\n")
        print(told(found.bodies))
        print(f"{WRITTEN} are in {options.output}")


def calibrate(options) -> None:
    from bsevox_jax.calibrate import calibrate

    calibrate(options.config, options.workdir)


def simulate(options) -> None:
    from bsevox_jax import data
    from bsevox_jax.simulate import simulate

    simulator = {} if options.config is None else options.config.simulator.to_dict()
    if options.config is not None and options.input is None:
        print(data.build(options.config.data.data_dir, options.config.data.config, **simulator))
        return
    _require(options, "input", "output", "electrons_per_pixel")
    about = _dose_and_energies(options) | {"side_walls": options.side_walls}
    simulate(options.input, options.output, **about, **simulator)
    print(f"stack.npz, stack.tif and labels.npy are in {options.output}")


def plan(options) -> None:
    from bsevox_jax.plan import plan

    plan(options.input, options.output, precision_nm=options.precision_nm)
    print(f"plan.json and plan.png are in {options.output}")


MODES = {  # and the flags they need
    "train": (train, ("config", "workdir")),
    "evaluate": (evaluate, ("config",)),  # without a workdir the shipped network
    "reconstruct": (reconstruct, ("input", "output")),
    "simulate": (simulate, ()),  # a specimen, or the data set of a configuration
    "plan": (plan, ("input", "output")),
    "calibrate": (calibrate, ("config",)),  # without a workdir the shipped network
}


FLAGS = (  # name, kind, default, help
    ("workdir", flags.DEFINE_string, None, "Train, evaluate, calibrate: folder of the run. Without: the "
     "network that is shipped."),
    ("input", flags.DEFINE_string, None, "Reconstruct: stack .npz, .npy or .tif, or the images of an "
     "instrument (folder, TIFF, HDF5, MRC). Simulate: .npy, .npz, or a phantom nanocube:<position>, "
     "nanowire:<radius_nm>[:<axis>], random:<seed>. "
     "Plan: box:<size_nm>:<depth_nm>."),
    ("checkpoint", flags.DEFINE_string, None, "Reconstruct: exported network, <workdir>/export; default: a "
     "shipped one."),
    ("output", flags.DEFINE_string, None, "Reconstruct, simulate, plan: folder of the results."),
    ("formats", flags.DEFINE_list, [], "Reconstruct: more files of the volume, of ome-tiff, ome-zarr, "
     "mrc, hdf5, vti, stl, ply."),
    ("pixel_nm", flags.DEFINE_float, None, "Reconstruct: edge of a pixel, where the files do not tell."),
    ("silicon", flags.DEFINE_string, None, "Reconstruct: y0:y1,x0:x1, pixels of bare silicon in the images "
     "of an instrument."),
    ("copper", flags.DEFINE_string, None, "Reconstruct: likewise of a whole pad of copper through the film."),
    ("rows", flags.DEFINE_string, None, "Reconstruct: y0:y1, the rows of the field, without a data bar."),
    ("axes", flags.DEFINE_string, None, "Reconstruct: order of the axes of HDF5, eyx or yxe."),
    ("exact", flags.DEFINE_bool, False, "Reconstruct: compare with images of the volume by the Monte Carlo."),
    ("precision_nm", flags.DEFINE_float, 1.0, "Plan: wanted standard error of position, depth and size."),
    ("beam_energies_kev", flags.DEFINE_list, None, "Reconstruct, simulate: ascending, as 0.5,1,1.5."),
    ("electrons_per_pixel", flags.DEFINE_integer, None, "Reconstruct, simulate: dose per energy."),
    ("side_walls", flags.DEFINE_string, "mirror", "Simulate: beside the specimen, mirror, periodic or open."),
    ("coordinator", flags.DEFINE_string, "", "host:port of the first of several processes."),
    ("processes", flags.DEFINE_integer, 0, "Number of processes."),
    ("process", flags.DEFINE_integer, -1, "Index of this process."),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Runs one mode; returns the exit code, 2 after an error told in one line."""
    try:
        options = _parse(arguments)
        if options is None:
            return 0
        mode, needed = MODES[options.mode]
        _require(options, *needed)
        parallel.start(options.coordinator, options.processes, options.process)
        _turn_on_compilation_cache()
        mode(options)
        return 0
    except (ValueError, OSError, flags.Error) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def _require(options, *names):
    if missing := [name for name in names if getattr(options, name) is None]:
        raise ValueError(f"--mode={options.mode} needs --{missing[0]}; got none. Give it, or see --help.")


def _one_line(error):
    # str() of an OSError with a number and no file puts "[Errno 28]" before the message.
    message = error.strerror if isinstance(error, OSError) and not error.filename else None
    return " ".join(str(message or error).split())


def _parse(arguments):
    """The flags, or None if only help was asked for."""
    arguments = ["launch.py", *map(_resolve_config, arguments)]
    options = flags.FlagValues()  # not the global ones, so that main can be called again
    flags.DEFINE_enum("mode", "train", list(MODES), "What to do.", flag_values=options)
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Configuration, as configs/quickstart.py; --config.key=value sets a key.",
        flag_values=options,
        sys_argv=arguments,
    )
    for name, define, default, about in FLAGS:
        define(name, default, about, flag_values=options)
    flags.DEFINE_bool("help", False, "Prints this.", flag_values=options)
    try:
        stray = options(arguments)[1:]
    except (AttributeError, KeyError) as error:  # of a locked configuration
        while isinstance(error.args[0], Exception):
            error = error.args[0]
        raise ValueError(f"--config.key must be a key of the configuration; got {error.args[0]}") from error
    if stray:
        raise ValueError(f"flags only, as in --mode=evaluate; got {stray[0]}.")
    if options.help:
        names = ("mode", "config", *(name for name, *_ in FLAGS))
        print(__doc__, *(f"--{name}: {options[name].help}" for name in names), sep="\n")
    return None if options.help else options


def _resolve_config(argument):
    """`--config=path`, or `path:base` as of configs/sweep.py, as given or else below this repository."""
    name, _, value = argument.partition("=")
    if name.lstrip("-") != "config" or not value:
        return argument
    path, *base = value.split(":")
    for candidate in (path, os.path.join(ROOT, path)):
        if os.path.isfile(candidate):
            return f"{name}={':'.join([candidate, *base])}"
    raise FileNotFoundError(f"the configuration must exist; got {path}. Give one of configs/*.py.")


def _dose_and_energies(options):
    """Those of the two flags that were given."""
    given = {}
    if options.electrons_per_pixel is not None:
        given["electrons_per_pixel"] = options.electrons_per_pixel
    if options.beam_energies_kev is not None:
        try:
            given["beam_energies_kev"] = [float(energy) for energy in options.beam_energies_kev]
        except ValueError as error:
            raise ValueError(
                f"beam_energies_kev must be numbers; got {options.beam_energies_kev}. Give e.g. 0.5,1,1.5."
            ) from error
    return given


def _area(name, text):
    """Rows and columns of y0:y1,x0:x1."""
    rows, comma, columns = text.partition(",")
    if not comma:
        raise ValueError(f"--{name} must be y0:y1,x0:x1 in pixels; got {text}. Give e.g. 12:44,52:84.")
    return _slice(name, rows), _slice(name, columns)


def _slice(name, text):
    """Of first:stop."""
    try:
        first, stop = (int(end) for end in text.split(":"))
    except ValueError as error:
        raise ValueError(f"--{name} must be pixels first:stop; got {text}. Give e.g. 12:44.") from error
    return slice(first, stop)


def _turn_on_compilation_cache():
    """Compiled programs are kept, unless the environment names another folder for them."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.join(ROOT, ".jax_cache"))


if __name__ == "__main__":
    # A failed write ends in several threads; TensorStore's print the traceback of what the error line says.
    sys.unraisablehook = lambda failure: None
    sys.exit(main(sys.argv[1:]))
