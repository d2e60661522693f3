"""Energies and directions of the electrons that leave bulk specimens."""

import numpy as np

from benchmarks.validation import report, yields
from bsevox_jax import sim
from bsevox_jax.sim.tables import shipped

CASES = (("Si", 1.0), ("Si", 5.0), ("Si", 10.0), ("Cu", 1.0), ("Cu", 5.0), ("Cu", 10.0))
QUANTILES = (0.1, 0.5, 0.9)
NEAR_KEV = 0.050


def compute() -> list[dict]:
    """Distributions over all electrons with more than 50 eV that leave a bulk specimen at normal incidence.

    Returns:
        material, energy_kev, `electrons` that leave and `eta`, their yield; `energies`, density over E/E0 in
        equal bins; `cosines`, density over the cosine of the exit angle in equal bins; `quantiles` of E/E0;
        `energy_share`, the energy they carry off over that of the beam; `near`, the share within 50 eV of
        E0, where the bins resolve it; `mean_cosine` and its standard error.
    """
    rows = []
    for material, energy_kev in CASES:
        spectrum = sim.simulate_spectrum(
            yields.block(material),
            beam_energies_kev=[energy_kev],
            cross_sections=shipped((material,)),
            electrons_per_pixel=yields.per_pixel(yields.ELECTRONS),  # as in `bulk`
            devices=yields.one_device(),
        )
        rows.append({"material": material, "energy_kev": energy_kev} | distributions(spectrum, energy_kev))
    return rows


def distributions(spectrum: sim.BseSpectrum, energy_kev: float) -> dict:
    """What `compute` returns, from counts [1, energy, cosine, kind]."""
    counts = spectrum.counts[0].sum(-1)
    near = NEAR_KEV / energy_kev
    by_energy, by_cosine, number = counts.sum(1), counts.sum(0), int(counts.sum())
    edges = np.linspace(0, 1, len(by_energy) + 1)
    above = np.concatenate([[0], np.cumsum(by_energy)]) / number
    cosines = (np.arange(len(by_cosine)) + 0.5) / len(by_cosine)
    mean_cosine = (by_cosine * cosines).sum() / number
    variance = (by_cosine * (cosines - mean_cosine) ** 2).sum() / number
    return {
        "electrons": number,
        "eta": number / spectrum.electrons,
        "energies": by_energy / number * len(by_energy),
        "cosines": by_cosine / number * len(by_cosine),
        "energy_share": float((by_energy * (edges[1:] + edges[:-1]) / 2).sum() / spectrum.electrons),
        "quantiles": [float(np.interp(q, above, edges)) for q in QUANTILES],
        # Half a bin tells nothing of the electrons that lost nothing.
        "near": float(1 - np.interp(1 - near, edges, above)) if near >= edges[1] else None,
        "mean_cosine": float(mean_cosine),
        "mean_cosine_error": float(np.sqrt(variance / number)),
    }


def tables(rows: list[dict]) -> dict[str, str]:
    header = [
        "",
        "keV",
        "E/E0: 10 %",
        "50 %",
        "90 %",
        "within 50 eV of E0 / %",
        "energy carried off / %",
        "mean cosine (2/3: cosine law)",
    ]
    body = []
    for row in rows:
        quantiles = [f"{quantile:.2f}" for quantile in row["quantiles"]]
        near = f"{100 * row['near']:.1f}" if row["near"] else "-"
        carried = f"{100 * row['energy_share']:.1f}"
        mean = f"{row['mean_cosine']:.4f} ({row['mean_cosine_error']:.4f})"
        body.append([row["material"], f"{row['energy_kev']:g}", *quantiles, near, carried, mean])
    return {"spectra": report.table(header, body)}


def figure(rows: list[dict]):
    figure, (axes,) = report.axes(1, 2)
    for row, colour in zip(rows, report.COLOURS, strict=False):
        label = f"{row['material']}, {row['energy_kev']:g} keV"
        for axis, kind in zip(axes, ("energies", "cosines"), strict=True):
            edges = np.linspace(0, 1, len(row[kind]) + 1)
            axis.stairs(row[kind], edges, baseline=None, color=colour, label=label)
    axes[1].plot([0, 1], [0, 2], "--", color="k", lw=1, label="cosine law")
    axes[0].set(xlabel="energy / beam energy", ylabel="density per electron that leaves", ylim=(0, 5))
    axes[1].set(xlabel="cosine of the exit angle to the normal", ylabel="density per electron that leaves")
    for axis in axes:
        axis.legend()
    return figure
