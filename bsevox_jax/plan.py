"""Which beam energies, and how many electrons, it takes to measure a shape with a wanted precision."""

import json
import math
import os
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from bsevox_jax import forward, imageio, likelihood

BLOCK_NM = (20, 20, 20)  # y, x, z
LARGEST_SET = 5
# Which of the parameters of `buried_box` each one is.
QUANTITIES = {"position": [0, 1], "depth": [2], "width": [3, 4], "height": [5]}
COLOURS = {
    "all": "#d5dae1",
    "position": "#0072b2",
    "depth": "#b4602a",
    "width": "#009e73",
    "height": "#e69f00",
}
ASSUMPTIONS = (
    "the images are those of the image model, fitted to simulated electrons; 1 nm pixels, normal incidence",
    "one box of Cu along the axes in Si under a flat surface, mirrored at the side walls; all else is known",
    "all six numbers of the box are unknown: position of its middle in y and x, depth of its top face, width "
    "in y and x, height in z; of two, the worse counts",
    "every energy of a set has the same dose",
    "an unbiased estimate that is as good as can be (Cramer and Rao), of errors so small that the images "
    "change in proportion",
    "the model error is what remains at any dose if the weights of the image model's last layer are off by "
    "their standard errors; errors of another kind, as of the simulated physics, are not in it",
)


class Need(NamedTuple):
    """What a set of energies takes.

    Attributes:
        beam_energies_kev: of the set.
        electrons_per_pixel: over all energies together, for each of QUANTITIES and for all; may be infinite.
        model_error_nm: standard error that no dose lowers, likewise; nan if the model was not calibrated.
    """

    beam_energies_kev: tuple[float, ...]
    electrons_per_pixel: dict[str, float]
    model_error_nm: dict[str, float]


def plan(source: str, output_dir: str, *, precision_nm: float) -> dict:
    """Plans the images of a buried box; prints a table, writes `plan.json` and `plan.png`.

    Args:
        source: `box:<size_nm>:<depth_nm>`, a cube in the middle of a block of 20 nm, and how deep its top is.
        output_dir: folder of the files.
        precision_nm: wanted standard error.

    Returns:
        What is in `plan.json`: `alone`, `best` and `every` hold lists of `Need` as dicts, with null for inf.

    Raises:
        ValueError, OSError: no such box or precision, or nothing can be written; one line.
    """
    size_nm, depth_nm = _parse(source)
    if not 0 < precision_nm < math.inf:
        raise ValueError(f"precision_nm must be above 0 and finite; got {precision_nm:g}. Give e.g. 1.")
    with imageio.whole_files(output_dir) as folder:
        model = forward.load()
        rows = needs_of_box(model, size_nm, depth_nm, precision_nm)
        assumptions = list(ASSUMPTIONS)
        if not np.any(model.covariance):
            assumptions[-1] = "the errors of this image model are not known, so the model error is missing"
        results = {"input": source, "precision_nm": precision_nm, "assumptions": assumptions}
        results["depth_modes"] = _depth_modes(model, rows["every"][0], size_nm)
        print(_table(rows, results))
        results |= {name: [_plain(need) for need in needs] for name, needs in rows.items()}
        with open(os.path.join(folder, "plan.json"), "w") as file:
            json.dump(results, file, indent=1)
        _draw(os.path.join(folder, "plan.png"), rows, f"{source}, standard error of {precision_nm:g} nm")
    return results


def needs_of_box(
    model: forward.ImageModel, size_nm: float, depth_nm: float, precision_nm: float
) -> dict[str, list[Need]]:
    """Needs of each energy `alone`, of the `best` sets of one to five, and of `every` energy together."""
    parameters = jnp.array([BLOCK_NM[0] / 2, BLOCK_NM[1] / 2, depth_nm, size_nm, size_nm, size_nm])
    information, scatter = (
        np.asarray(compute(model, buried_box, parameters), np.float64)
        for compute in (likelihood.fisher_information, likelihood.model_scatter)
    )
    energies, calibrated = model.beam_energies_kev, np.any(model.covariance)

    def need(chosen):
        of_set = information[chosen].sum(0), scatter[chosen].sum(0)
        doses = _by_quantity(len(chosen) * (likelihood.standard_errors(of_set[0]) / precision_nm) ** 2)
        errors = _by_quantity(likelihood.standard_errors(*of_set) if calibrated else np.full(6, np.nan))
        return Need(tuple(energies[e] for e in chosen), doses, errors)

    every = list(range(len(energies)))
    sets = best_sets(information, min(LARGEST_SET, len(energies)))
    rows = {"alone": [[e] for e in every], "best": sets, "every": [every]}
    return {name: [need(chosen) for chosen in sets] for name, sets in rows.items()}


def buried_box(parameters):
    """Fractions [y, x, z, material], given y, x of the middle, depth of the top, edges y, x, z, all in nm."""
    y, x, depth, *size = parameters
    return likelihood.box(jnp.stack([y, x, depth + size[2] / 2]), jnp.stack(size), BLOCK_NM)


def best_sets(information: np.ndarray, largest: int) -> list[list[int]]:
    """Sets of 1, 2, ... energies, each the one before and the energy that lowers the greatest error most.

    Args:
        information: [e, p, p] of each energy at the same dose.
        largest: number of energies of the last set.

    Returns:
        Indices of energies, ascending.
    """
    sets = [[]]
    while len(sets[-1]) < largest:
        left = [e for e in range(len(information)) if e not in sets[-1]]
        sums = [information[[*sets[-1], e]].sum(0) for e in left]
        # Where a parameter stays unknown, the greatest error is infinite: more of the others is better then.
        ranks = [sorted(likelihood.standard_errors(each), reverse=True) for each in sums]
        sets.append(sorted([*sets[-1], left[ranks.index(min(ranks))]]))
    return sets[1:]


def _parse(source):
    name, *numbers = source.split(":")
    try:
        if name != "box":
            raise ValueError
        size_nm, depth_nm = map(float, numbers)
    except ValueError as error:
        raise ValueError(
            f"what to plan for must be box:<size_nm>:<depth_nm>; got {source}. Give e.g. box:6:4."
        ) from error
    room = min(BLOCK_NM)
    if not (0 < size_nm < room and 0 < depth_nm and depth_nm + size_nm < room):
        raise ValueError(
            f"a box must lie inside the block of {room} nm and touch none of its faces; got size {size_nm:g} "
            f"and depth {depth_nm:g}. Give e.g. box:6:4."
        )
    return size_nm, depth_nm


def _by_quantity(values):
    """The greatest of the parameters of every quantity, and of all."""
    groups = QUANTITIES | {"all": list(range(len(values)))}
    return {name: float(values[group].max()) for name, group in groups.items()}


def _depth_modes(model, need, width_nm):
    """How many depth profiles of a column the electrons of a set resolve, and the errors of each."""
    dose = need.electrons_per_pixel["all"] / len(need.beam_energies_kev)
    if math.isinf(dose):
        return None
    modes = likelihood.depth_modes(model, dose, width_nm=width_nm, shape=BLOCK_NM)
    return {
        "resolved": modes.resolved,
        "electrons_per_pixel": need.electrons_per_pixel["all"],
        "standard_errors": [_finite(error) for error in modes.standard_errors],
        "profiles": modes.profiles.tolist(),
    }


def _plain(need):
    return {
        "beam_energies_kev": list(need.beam_energies_kev),
        "electrons_per_pixel": {name: _finite(value) for name, value in need.electrons_per_pixel.items()},
        "model_error_nm": {name: _finite(value) for name, value in need.model_error_nm.items()},
    }


def _finite(value):
    return float(value) if math.isfinite(value) else None  # JSON knows no infinity


def _table(rows, results) -> str:
    precision_nm = results["precision_nm"]
    columns = [*QUANTITIES, "all"]
    lines = [
        f"{results['input']}: electrons per pixel, all energies together, for a standard error of "
        f"{precision_nm:g} nm",
        f"{'energies (keV)':<28}" + "".join(f"{name:>11}" for name in columns) + "   model error (nm)",
    ]
    for needs in rows.values():
        for need in needs:
            numbers = "".join(f"{_count(need.electrons_per_pixel[name]):>11}" for name in columns)
            error_nm = need.model_error_nm["all"]
            numbers += f"{'unknown' if math.isnan(error_nm) else f'{error_nm:.2f}':>19}"
            lines.append(f"{_energies(need):<28}{numbers}")
    floor = min(need.model_error_nm["all"] for needs in rows.values() for need in needs)
    if floor > precision_nm:
        lines.append(f"no dose reaches {precision_nm:g} nm in all: the model error is {floor:.2f} nm at best")
    if modes := results["depth_modes"]:
        lines.append(
            f"{_count(modes['electrons_per_pixel'])} electrons per pixel over every energy resolve "
            f"{modes['resolved']} of {len(modes['profiles'])} depth modes of a column as wide as the box"
        )
    return "\n".join(lines + [f"assumed: {line}" for line in results["assumptions"]])


def _count(electrons):
    return "never" if math.isinf(electrons) else f"{math.ceil(electrons):,}"


def _energies(need):
    listed = ", ".join(f"{energy:g}" for energy in need.beam_energies_kev)
    return listed if len(need.beam_energies_kev) <= LARGEST_SET else f"all {len(need.beam_energies_kev)}"


def _draw(path, rows, title):
    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    alone, sets = figure.subplots(1, 2, sharey=True)
    several = rows["best"] + rows["every"]
    _curves(alone, [need.beam_energies_kev[0] for need in rows["alone"]], rows["alone"])
    alone.set_xlabel("beam energy, alone (keV)", fontsize=9)
    alone.set_ylabel("electrons per pixel, all energies together", fontsize=9)
    alone.legend(fontsize=8, frameon=False)
    _curves(sets, range(len(several)), several)
    sets.set_xticks(range(len(several)), [_energies(need).replace(", ", "\n") for need in several])
    sets.set_xlabel("best sets of energies (keV)", fontsize=9)
    figure.savefig(path)


def _curves(axes, x, needs):
    for name, colour in COLOURS.items():
        y = [need.electrons_per_pixel[name] for need in needs]
        axes.plot(x, y, "o-", color=colour, label=name, markersize=3, linewidth=8 if name == "all" else 1)
    axes.set_yscale("log")
    axes.grid(color="#e4e7eb", linewidth=0.6)
    axes.tick_params(labelsize=8, length=2)
