"""Speed of the electron Monte Carlo: `python -m benchmarks.simulator`, on a CPU or an accelerator.

Prints one JSON object as its last line and writes `simulator.json` and `simulator.png` into `--output`. The
case is the paper's box, 20 nm of Si with Cu in 8 % of its volume, at the paper's 20 energies. Seconds and
nanoseconds are processor time of all cores together on a CPU, else wall time; medians of several runs after
compilation. The settings that are compared take turns, so that what else the machine does hits all alike.
The doses follow from a short calibration and `--minutes`; all ends within 10 minutes if that is 8.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.roofline import draw, roofline
from bsevox_jax import sim
from bsevox_jax.parallel import processor
from bsevox_jax.sim import work
from bsevox_jax.sim.files import whole_file, write_whole

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 8, "that the whole should take")
flags.DEFINE_string("output", "runs/benchmark", "folder of the results")
flags.DEFINE_integer("repeats", 7, "timed runs of each setting", lower_bound=3)
flags.DEFINE_integer("lanes", None, "electrons in flight; the simulator's default if not given")
flags.DEFINE_integer("seed", 0, "of the electrons")
flags.DEFINE_list("energies_kev", list(map(str, sim.PAPER_ENERGIES_KEV)), "of the beam, ascending")

# Nebula 1.0.2 on one x86 server core, Si with a Cu inclusion, threshold 50 eV; our reading of its speed over
# the 20 energies: 2 million electrons in 20 to 45 core-seconds.
NEBULA_ELECTRONS_PER_CORE_SECOND = (45_000, 100_000)
PAPER_SET_ELECTRONS = 10_000 * 8_000 * 1_000  # specimens x (20 x 20 pixels x 20 energies) x electrons
# Of the minutes, in percent; compiling, the calibration and the roofline take the rest.
PERCENT = {"overall": 9, "per_energy": 18, "lanes": 9, "workers": 5}
PERCENT |= dict.fromkeys(("dose", "specimens", "pixels"), 13)
SIZES = (1, 3, 8)  # doses and numbers of specimens that are compared
TILES = (1, 2, 3)  # boxes along each side of the fields that are compared
LANES_CPU, LANES_ACCELERATOR = (1 / 4, 1, 4, 16), (1 / 16, 1 / 4, 1, 4)  # of the default ones
BYTES_PER_LANE, BYTES_PER_CELL, BYTES_PER_VOXEL = 700, 24, 2  # the bound that `work` states
RESULT_BYTES_PER_CELL = BYTES_PER_CELL + 4  # all fates, and the counts made of them


@dataclasses.dataclass(frozen=True)
class Case:
    """One setting of a simulation: specimens of `tiles` x `tiles` boxes and how the work is cut."""

    specimens: int
    energies_kev: tuple[float, ...]
    dose: int = 1
    tiles: int = 1
    lanes: int | None = None
    specimens_per_chunk: int | None = None
    num_devices: int | None = None

    @property
    def cells(self) -> int:
        return self.specimens * self.tiles**2 * 400 * len(self.energies_kev)

    @property
    def electrons(self) -> int:
        return self.cells * self.dose


class Run(NamedTuple):
    """What one simulation took; `seconds` are those that count on this platform."""

    seconds: float
    wall_s: float
    steps: int
    peak_rss_mb: float


def box() -> np.ndarray:
    """Labels [y, x, z] of the paper's box: 8 x 8 x 10 of 8000 nm^3, 8 %, are Cu."""
    labels = np.ones((20, 20, 20), np.uint8)
    labels[6:14, 6:14, 5:15] = 2
    return labels


def on_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"


def peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kB on Linux


def forget_peak_rss() -> None:
    """Starts the peak anew, from what is in use; on other systems than Linux it stays that of all so far."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # or what compiling has left would hide what a run takes
        Path("/proc/self/clear_refs").write_text("5")


def run(case: Case, seed: int) -> Run:
    field = np.tile(box(), (case.tiles, case.tiles, 1))
    labels = np.broadcast_to(field, (case.specimens, *field.shape))
    forget_peak_rss()
    core_s, wall_s = time.process_time(), time.perf_counter()
    images = sim.simulate_bse(
        labels,
        electrons_per_pixel=case.dose,
        beam_energies_kev=case.energies_kev,
        seed=seed,
        lanes=case.lanes,
        specimens_per_chunk=case.specimens_per_chunk,
        devices=jax.local_devices()[: 1 if on_cpu() else case.num_devices],
    )
    core_s, wall_s = time.process_time() - core_s, time.perf_counter() - wall_s
    return Run(core_s if on_cpu() else wall_s, wall_s, images.steps, peak_rss_mb())


def compare(name: str, cases: list[Case], rate: float, cost: float | None = None):
    """Simulates each case `repeats` times, taking turns, after a run of each that compiles.

    The doses are multiplied until all runs together take their percentage of the minutes, at `rate` electrons
    per second and with `cost` for the electrons of all cases if it is not those that take the time.
    Returns the cases with these doses, and the runs of each.
    """
    print(name, file=sys.stderr)
    cost = FLAGS.repeats * (cost or sum(case.electrons for case in cases))
    factor = max(1, int(0.6 * FLAGS.minutes * PERCENT[name] * rate / cost))
    for case in cases:
        run(dataclasses.replace(case, dose=1), FLAGS.seed)
    cases = [dataclasses.replace(case, dose=factor * case.dose) for case in cases]
    turns = [[run(case, FLAGS.seed + 1 + n) for case in cases] for n in range(FLAGS.repeats)]
    return cases, list(zip(*turns, strict=True))


def speed(case: Case, runs: list[Run]) -> dict:
    seconds = {"electrons_per_second": [r.wall_s for r in runs]}
    if on_cpu():
        seconds["electrons_per_core_second"] = [r.seconds for r in runs]
    kinds = {"median": np.median, "min": np.min, "max": np.max}
    rates = {name: case.electrons / np.array(values) for name, values in seconds.items()}
    spreads = {name: {k: float(f(r)) for k, f in kinds.items()} for name, r in rates.items()}
    return spreads | {
        "steps_per_electron": float(np.mean([r.steps for r in runs])) / case.electrons,
        "ns_per_step": float(np.median([1e9 * r.seconds / r.steps for r in runs])),
        "seconds": float(np.median([r.seconds for r in runs])),
        "electrons_per_pixel": case.dose,
        "specimens": case.specimens,
    }


def cold(case: Case) -> tuple[float, float]:
    """Seconds to trace and compile a simulation, nothing being kept from before; and the peak meanwhile."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    jax.clear_caches()
    first, second = (run(case, FLAGS.seed) for _ in range(2))
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()
    return first.wall_s - second.wall_s, first.peak_rss_mb


def calibrated(case: Case) -> float:
    """Electrons per second, from the first of ever larger doses that takes half a percent of the time."""
    while (wall_s := run(case, FLAGS.seed).wall_s) < 0.3 * FLAGS.minutes:
        case = dataclasses.replace(case, dose=4 * case.dose)
    return case.electrons / wall_s


def exponent(name: str, sizes: list[int], cases: list[Case], rate: float) -> dict:
    """How time grows with size: the slope of the logarithms in each turn, and the median of the turns."""
    cases, runs = compare(name, cases, rate)
    seconds = np.array([[r.seconds for r in of_size] for of_size in runs])
    slopes = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    peaks_mb = np.median([[r.peak_rss_mb for r in of_size] for of_size in runs], axis=1)
    results_mb = np.array([case.cells * RESULT_BYTES_PER_CELL / 1e6 for case in cases])
    return {
        "sizes": sizes,
        "electrons": [case.electrons for case in cases],
        "seconds": np.median(seconds, axis=1).tolist(),
        "exponent": float(np.median(slopes)),
        "standard_error": float(1.25 * slopes.std(ddof=1) / np.sqrt(len(slopes))),  # of a median
        "spread_percent": 100 * float((seconds.max(1) / seconds.min(1) - 1).mean()),
        "host_peak_rss_mb": peaks_mb.tolist(),
        "results_mb": results_mb.tolist(),
        "growth_beyond_results_mb": float((peaks_mb - results_mb)[-1] - (peaks_mb - results_mb)[0]),
    }


def scaling(base: Case, rate: float) -> dict:
    """Exponents in the dose, in specimens and in pixels of each specimen."""
    dose = [dataclasses.replace(base, dose=n) for n in SIZES]
    pixels = [dataclasses.replace(base, tiles=n) for n in TILES]
    specimens = [dataclasses.replace(base, specimens=n * base.specimens) for n in SIZES]
    return {
        "dose": exponent("dose", list(SIZES), dose, rate),
        "specimens": exponent("specimens", [case.specimens for case in specimens], specimens, rate),
        "pixels": exponent("pixels", [400 * n * n for n in TILES], pixels, rate),
    }


def per_energy(base: Case, rate: float) -> list[dict]:
    """Each energy alone, as often as there are energies, 0.01 eV apart: the same program and full lanes."""
    apart_kev = 1e-5 * np.arange(len(base.energies_kev))[::-1]
    alone = [tuple((energy - apart_kev).tolist()) for energy in base.energies_kev]
    found = compare("per_energy", [dataclasses.replace(base, energies_kev=e) for e in alone], rate)
    return [{"energy_kev": case.energies_kev[-1]} | speed(case, r) for case, r in zip(*found, strict=True)]


def per_lanes(base: Case, rate: float) -> list[dict]:
    """Other numbers of lanes, each with at least as many cells per lane as the usual number has."""
    numbers = [int(n * base.lanes) for n in (LANES_CPU if on_cpu() else LANES_ACCELERATOR)]
    specimens = [base.specimens * max(1, n // base.lanes) for n in numbers]
    of_numbers = zip(numbers, specimens, strict=True)
    cases = [dataclasses.replace(base, lanes=n, specimens=m) for n, m in of_numbers]
    return [{"lanes": c.lanes} | speed(c, r) for c, r in zip(*compare("lanes", cases, rate), strict=True)]


def per_workers(base: Case, rate: float, workers: int) -> list[dict]:
    """As many chunks at once as there are cores or devices, and fewer: none is done sooner than the last."""
    numbers = sorted({min(2**n, workers) for n in range(workers.bit_length() + 1)})
    size = 1 if on_cpu() else base.specimens // workers  # more than one would be spread over all cores
    base = dataclasses.replace(base, specimens_per_chunk=size)
    cases = [dataclasses.replace(base, specimens=n * size, num_devices=n) for n in numbers]
    found = compare("workers", cases, rate, cost=len(cases) * cases[-1].electrons)
    speeds = [{"workers": n} | speed(*of_n) for n, *of_n in zip(numbers, *found, strict=True)]
    one = speeds[0]["electrons_per_second"]["max"]  # as undisturbed as it was
    return [of_n | {"speed_up": of_n["electrons_per_second"]["max"] / one} for of_n in speeds]


def device_memory(base: Case, workers: int) -> dict:
    """Peak of an accelerator, and the bound that `work` states on what the chunks in work hold."""
    voxels = base.specimens * box().size
    bound = BYTES_PER_LANE * base.lanes * workers + BYTES_PER_CELL * base.cells + BYTES_PER_VOXEL * voxels
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"bound_of_chunks_in_work_mb": bound / 1e6} | ({"device_peak_mb": peak / 1e6} if peak else {})


def benchmark() -> dict:
    lanes = FLAGS.lanes or (work.LANES_CPU if on_cpu() else work.LANES_ACCELERATOR)
    energies_kev = tuple(float(energy) for energy in FLAGS.energies_kev)
    workers = os.cpu_count() if on_cpu() else len(jax.local_devices())
    per_chunk = max(1, work.CELLS_PER_LANE * lanes // (400 * len(energies_kev)))
    base = Case(per_chunk * workers, energies_kev, lanes=lanes)
    before_mb = peak_rss_mb()
    compile_s, compiling_mb = cold(base)
    cases, runs = compare("overall", [base], calibrated(base))
    overall = speed(cases[0], runs[0])
    rate = overall["electrons_per_second"]["median"]
    of_core = overall.get("electrons_per_core_second", overall["electrons_per_second"])["median"]
    running_mb = max(r.peak_rss_mb for r in runs[0])
    peak_mb = {"before": before_mb, "compiling": compiling_mb, "running": running_mb}
    hours = PAPER_SET_ELECTRONS / rate / 3600
    return {
        "case": "20 x 20 x 20 nm of Si with 8 x 8 x 10 nm of Cu (8 %) in its middle, voxels of 1 nm",
        **overall,
        "nebula_electrons_per_core_second": NEBULA_ELECTRONS_PER_CORE_SECOND,
        "ratio_to_nebula_on_one_core": [of_core / n for n in reversed(NEBULA_ELECTRONS_PER_CORE_SECOND)],
        "paper_set": {"electrons": PAPER_SET_ELECTRONS, "hours": hours, "minutes": 60 * hours},
        "compile_s": compile_s,
        "memory": {"host_peak_rss_mb": peak_mb} | device_memory(base, workers),
        "per_energy": per_energy(base, rate),
        "scaling": scaling(base, rate),
        "per_lanes": per_lanes(base, rate),
        "per_workers": per_workers(base, rate, workers),
        "roofline": roofline(box(), lanes, overall["ns_per_step"]),
        "lanes": lanes,
        "seed": FLAGS.seed,
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.local_devices()),
        "processor": processor(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "simulator": sim.SIMULATOR_VERSION,
    }


def main(_):
    started = time.perf_counter()
    result = benchmark()
    result["benchmark_minutes"] = (time.perf_counter() - started) / 60
    result = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"))
    folder = Path(FLAGS.output)
    write_whole(folder / "simulator.json", json.dumps(result, allow_nan=False, indent=1))
    with whole_file(folder / "simulator.png") as path:
        draw(path, result)
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
