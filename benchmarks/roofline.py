"""Roofline of one step of the walk, and the picture of the benchmark.

Operations, exponentials and logarithms, square roots, look-ups and bytes are counted in the compiled program
of `step`, and the rate of each alone is measured here. The program cannot be faster than the slowest of them.

- Every elementwise operation counts as one, whole numbers, comparisons and choices too. The rate is that of
  multiply-adds, two each, though only a part of the operations could be paired.
- Bytes are what all kernels read and write, intermediate arrays too: on a CPU traffic of the cache, where the
  lanes stay, so the rate is measured on an array of the size of their state. `least_bytes` is what remains if
  one kernel did the whole step: the state that changes, read and written once, and the look-ups.
- Lanes that are blocked or idle cost as much as others and do not count as steps; the service of the lanes,
  every few steps, is in the measured time too. Neither is in the bounds.
- All lanes do the work of elastic and inelastic collisions and of fresh primaries alike: the bounds have it.
- On a CPU rates are per core and second of processor time, measured with the other cores idle.
"""

import re
import time

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # files only, on any machine

import matplotlib.pyplot as plt
import numpy as np

from bsevox_jax import sim
from bsevox_jax.sim import tables
from bsevox_jax.sim.lanes import idle_lanes
from bsevox_jax.sim.specimen import tracking_words
from bsevox_jax.sim.step import step
from bsevox_jax.sim.transport import look_up, medium
from bsevox_jax.sim.work import CPU_OPTIONS

ELEMENTS_PER_LANE = 16  # of the arrays that are computed with: in the cache, yet long beside a kernel's start
MEMORY_BYTES = 2**30  # beyond any cache
REPEATS = 9  # the median counts
CHAINS, CHAIN_LENGTH = 8, 64  # multiply-adds of an element: independent of each other, and one after another
TRANSCENDENTALS, ROOTS, GATHERS = 16, 8, 8  # of an element, independent of each other
KINDS = ("operations", "transcendentals", "roots", "gathers", "bytes")


def roofline(labels: np.ndarray, lanes: int, measured_ns: float) -> dict:
    """Compares the measured time of a step of one lane with its bounds.

    Args:
        labels: of one specimen, [y, x, z].
        lanes: electrons in flight.
        measured_ns: of the whole walk, for each step of a lane.
    """
    on_cpu = jax.devices()[0].platform == "cpu"
    options = CPU_OPTIONS if on_cpu else None
    clock = time.process_time if on_cpu else time.perf_counter
    cross_sections = tables.shipped()
    reach = jnp.full(len(cross_sections.energies_kev), jnp.inf)
    matter = medium(jnp.asarray(tracking_words(labels[None])), cross_sections, reach, 1.0)
    count, state_bytes = counted(matter, lanes, options)
    rates = measured_rates(lanes, state_bytes, matter.quantiles, clock, options)
    bounds = {kind: count[kind] / rates[f"{kind}_per_ns"] for kind in KINDS}
    bound_by = max(bounds, key=bounds.get)
    return {
        "per_lane_step": count,
        "device": rates,
        "bounds_ns": bounds,
        "least_bytes_ns": count["least_bytes"] / rates["bytes_per_ns"],
        "bound_by": bound_by,
        "roofline_ns": bounds[bound_by],
        "measured_ns": measured_ns,
        "fraction": bounds[bound_by] / measured_ns,
    }


def counted(matter, lanes: int, options) -> tuple[dict, float]:
    """What one lane does in a step, from the compiled program; and the bytes of its state that change."""

    def changes(matter, before, instrument, secondaries):
        after, _ = step(matter, before, instrument, secondaries)
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        return [new for old, new in pairs if new is not old]

    def program(number):
        args = matter, idle_lanes(number), sim.Instrument(), np.bool_(True)
        return jax.jit(changes, compiler_options=options).lower(*args)

    # Twice the lanes less once: XLA also counts the tables, as if they were read whole.
    once, twice = program(lanes), program(2 * lanes)
    state_bytes = sum(a.size * a.dtype.itemsize for a in once.out_info) / lanes
    once, twice = once.compile(), twice.compile()
    less, more = once.cost_analysis(), twice.cost_analysis()
    names = {"operations": "flops", "transcendentals": "transcendentals", "bytes": "bytes accessed"}
    count = {kind: (more[name] - less[name]) / lanes for kind, name in names.items()}
    for kind, name in {"roots": "r?sqrt", "gathers": "gather"}.items():
        count[kind] = len(re.findall(rf" {name}\(", once.as_text()))
    count["transcendentals"] -= count["roots"]
    return count | {"least_bytes": 2 * state_bytes + 4 * count["gathers"]}, state_bytes


def measured_rates(lanes: int, state_bytes: float, table, clock, options) -> dict:
    """What the device does in a nanosecond, of one kind alone."""
    elements = ELEMENTS_PER_LANE * lanes
    values = jnp.linspace(1.0, 2.0, elements)
    index = jnp.asarray(np.random.default_rng(0).integers(0, 2**31, elements, dtype=np.uint32))
    state = jnp.ones(int(lanes * state_bytes / 4))

    def median_ns(kernel, iterations, values, *more):
        def loop(values, *more):
            return jax.lax.fori_loop(0, iterations, lambda i, values: kernel(i, values, *more), values)

        compiled = jax.jit(loop, compiler_options=options, donate_argnums=0)
        values, times = compiled(values, *more).block_until_ready(), []
        for _ in range(REPEATS):
            started = clock()
            values = compiled(values, *more).block_until_ready()
            times.append(1e9 * (clock() - started) / iterations)
        return float(np.median(times))

    memory = jnp.ones(MEMORY_BYTES // 4)
    return {
        "operations_per_ns": 2
        * CHAINS
        * CHAIN_LENGTH
        * elements
        / median_ns(_multiply_add, 256, values + 0.0),
        "transcendentals_per_ns": TRANSCENDENTALS * elements / median_ns(_transcendental, 64, values + 0.0),
        "roots_per_ns": ROOTS * elements / median_ns(_root, 64, values + 0.0),
        "gathers_per_ns": GATHERS * elements / median_ns(_gather, 64, values, index, table),
        "bytes_per_ns": 8 * state.size / median_ns(_stream, 8192, state),
        "memory_bytes_per_ns": 8 * memory.size / median_ns(_stream, 4, memory),
    }


def _multiply_add(i, values):
    chains = [values * n for n in range(CHAINS)]
    for _ in range(CHAIN_LENGTH):
        chains = [chain * 0.5 + 0.25 for chain in chains]
    return sum(chains)


def _transcendental(i, values):
    return sum(jnp.exp(0.1 * jnp.log(values + (1.0 + n))) for n in range(TRANSCENDENTALS // 2))


def _root(i, values):
    return sum(jnp.sqrt(values + (1.0 + n)) for n in range(ROOTS))


def _gather(i, values, index, table):
    mask = jnp.uint32(2 ** (table.size.bit_length() - 1) - 1)
    for n in range(GATHERS):
        places = (index + (i * GATHERS + n).astype(jnp.uint32) * jnp.uint32(40503)) & mask
        values = values + look_up(table, places)
    return values


def _stream(i, values):
    return values * 0.999 + 0.001


def draw(path: str, result: dict) -> None:
    """Draws the result of `benchmarks.simulator` as a PNG file."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), dpi=110, layout="constrained")
    where = result["processor"] if result["device"] == "cpu" else result["device"]
    figure.suptitle(f"Simulator {result['simulator']} on {where}\n{result['case']}", fontsize=11)
    unit = "electrons_per_core_second" if "electrons_per_core_second" in result else "electrons_per_second"
    _draw_energies(axes[0, 0], axes[0, 1], result, unit)
    for name, series in result["scaling"].items():
        sizes, seconds = np.array(series["sizes"]), np.array(series["seconds"])
        label = f"{name}: exponent {series['exponent']:.3f} \u00b1 {series['standard_error']:.3f}"
        axes[0, 2].loglog(sizes / sizes[0], seconds / seconds[0], "o-", label=label)
    span = np.array([1, max(s["sizes"][-1] / s["sizes"][0] for s in result["scaling"].values())])
    axes[0, 2].loglog(span, span, "k:", label="proportional")
    axes[0, 2].set(xlabel="size, the smallest is 1", ylabel="time, that of the smallest is 1")
    _draw_numbers(axes[1, 0], result["per_lanes"], "lanes", unit)
    _draw_numbers(axes[1, 1], result["per_workers"], "workers", "electrons_per_second")
    _draw_roofline(axes[1, 2], result["roofline"])
    for panel in axes.flat[:5]:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, format="png")
    plt.close(figure)


def _draw_energies(left, right, result, unit):
    energies_kev = [of_one["energy_kev"] for of_one in result["per_energy"]]
    _draw_rates(left, energies_kev, result["per_energy"], unit, "each energy alone")
    left.axhline(result[unit]["median"] / 1e3, ls="--", label="all energies")
    low, high = (n / 1e3 for n in result["nebula_electrons_per_core_second"])
    left.axhspan(low, high, color="gray", alpha=0.4, label="Nebula on one core, all energies")
    left.set(xlabel="keV")
    for name, marker in (("steps_per_electron", "s"), ("ns_per_step", "^")):
        values = [of_one[name] for of_one in result["per_energy"]]
        right.plot(energies_kev, values, marker + "-", ms=4, label=name.replace("_", " "))
    right.set(xlabel="keV")
    right.set_ylim(bottom=0)


def _draw_rates(axes, x, series, unit, label):
    """Medians of a series of speeds, with bars from the smallest to the largest."""
    low, middle, high = (
        np.array([of_one[unit][kind] for of_one in series]) / 1e3 for kind in ("min", "median", "max")
    )
    axes.errorbar(x, middle, (middle - low, high - middle), fmt="o-", ms=4, capsize=2, label=label)
    axes.set(ylabel=f"thousand {unit.replace('_', ' ')}", ylim=(0, 1.1 * high.max()))


def _draw_numbers(axes, series, name, unit):
    numbers = [of_one[name] for of_one in series]
    _draw_rates(axes, numbers, series, unit, "median, from smallest to largest")
    axes.set(xlabel=name, xscale="log")
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.minorticks_off()


def _draw_roofline(axes, found):
    bars = {"least bytes": found["least_bytes_ns"], **found["bounds_ns"], "measured": found["measured_ns"]}
    colours = ["C7"] + ["C0"] * len(found["bounds_ns"]) + ["C1"]
    drawn = axes.barh(list(bars), list(bars.values()), color=colours)
    axes.bar_label(drawn, fmt="%.3g", padding=2)
    axes.set(xlabel="ns for a step of one lane", title=f"{100 * found['fraction']:.0f} % of the roofline")
    axes.margins(x=0.15)
