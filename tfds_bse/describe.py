"""Pictures of the shipped standard sets: `python -m tfds_bse.describe` draws them for the README.

Writes `families.png`, `copper.png`, `yields.png` and `specimens.png` to `bse_voxels/pictures`.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, on any machine

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

import tfds_bse
from bsevox_jax.sim.phantoms import COPPER
from tfds_bse import sets

FOLDER = Path(__file__).parent / sets.NAME / "pictures"
COLOURS = {"train": "#3b6ea5", "test": "#b4602a"}
MATERIALS = ListedColormap(["#ffffff", "#d5dae1", "#b4602a"])  # vacuum, Si, Cu
SHOWN_KEV = (0.5, 1.0, 2.0, 5.0, 10.0)
SHOWN_DEPTHS_NM = (0, 4, 8, 12, 16)
SHOWN = {  # split -> families of which the first specimen is drawn
    "test": ("cylinder", "several", "shell", "core-shell wire", "interconnect", "blobs"),
    "nanocube": ("nanocube",),
    "nanowire": ("nanowire lying",),
    "out_of_family": ("helix", "gyroid", "letter"),
}


def main() -> list[Path]:
    """Draws all pictures; returns their paths.

    Raises:
        ValueError: a standard set is not shipped, or only with other settings.
    """
    train, test = (_shipped(name) for name in ("standard-train", "standard-test"))
    FOLDER.mkdir(exist_ok=True)
    random = {"train": train.splits["train"], "test": test.splits["test"]}
    dose = {"train": train.config.electrons_per_pixel, "test": test.config.electrons_per_pixel}
    return [
        _save("families", _draw_families(random)),
        _save("copper", _draw_copper(random)),
        _save("yields", _draw_yields(random, dose, train.config.beam_energies_kev)),
        _save("specimens", _draw_specimens(test)),
    ]


def _shipped(name):
    found = tfds_bse.find_shipped(name)
    if found is None:
        raise ValueError(
            f"{name} must be shipped in its present form; got none. Run "
            f"python -m tfds_bse --config={name} --ship."
        )
    return found


def _save(name, figure) -> Path:
    path = FOLDER / f"{name}.png"
    figure.savefig(path)
    plt.close(figure)
    return path


def _figure(width, height):
    return plt.subplots(figsize=(width, height), dpi=90, layout="constrained")


def _draw_families(random):
    """Share of each family among the random specimens."""
    figure, axes = _figure(6.5, 3.6)
    families = np.arange(len(sets.FAMILIES))
    drawn = [k for k in families if any((arrays["family"] == k).any() for arrays in random.values())]
    for shift, (split, arrays) in zip((-0.2, 0.2), random.items(), strict=True):
        percent = [100 * (arrays["family"] == k).mean() for k in drawn]
        label = f"{split}, {len(arrays['family'])} specimens"
        axes.barh(np.arange(len(drawn)) + shift, percent, 0.4, color=COLOURS[split], label=label)
    axes.set_yticks(range(len(drawn)), [sets.FAMILIES[k] for k in drawn])
    axes.invert_yaxis()
    axes.set_xlabel("specimens (%)")
    axes.legend(frameon=False)
    return figure


def _draw_copper(random):
    """Share of Cu in the box."""
    figure, axes = _figure(6.5, 3)
    for split, arrays in random.items():
        percent = 100 * (arrays["labels"] == COPPER).mean((1, 2, 3))
        weights = np.full(len(percent), 100 / len(percent))
        axes.hist(percent, np.arange(0, 42, 2), weights=weights, histtype="step", color=COLOURS[split],
                  label=split)  # fmt: skip
    axes.set_xlabel("Cu in the box (%)")
    axes.set_ylabel("specimens (%)")
    axes.legend(frameon=False)
    return figure


def _draw_yields(random, dose, energies_kev):
    """Electrons back per electron in, over the specimens, by energy."""
    figure, axes = _figure(6.5, 3)
    for split, arrays in random.items():
        yields = arrays["counts"].mean((1, 2)) / dose[split]
        low, middle, high = np.quantile(yields, (0.05, 0.5, 0.95), axis=0)
        axes.plot(energies_kev, middle, color=COLOURS[split], label=f"{split}, {dose[split]} per pixel")
        axes.fill_between(energies_kev, low, high, color=COLOURS[split], alpha=0.2, linewidth=0)
    axes.set_xlabel("beam energy (keV)")
    axes.set_ylabel("yield, median and 5 to 95 %")
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return figure


def _draw_specimens(test):
    """Images at a few energies and slices at a few depths of one specimen of several families."""
    shown = [(split, family) for split, families in SHOWN.items() for family in families]
    columns = len(SHOWN_KEV) + len(SHOWN_DEPTHS_NM)
    figure, grid = plt.subplots(
        len(shown), columns, figsize=(0.8 * columns, 0.8 * len(shown)), dpi=90, layout="constrained"
    )
    for row, (split, family) in zip(grid, shown, strict=True):
        arrays = test.splits[split]
        (members,) = np.nonzero(arrays["family"] == sets.FAMILIES.index(family))
        place = members[0] if split == "out_of_family" else members[min(1, len(members) - 1)]
        counts, labels = arrays["counts"][place], arrays["labels"][place]
        for axes, energy_kev in zip(row, SHOWN_KEV, strict=False):
            image = counts[:, :, test.config.beam_energies_kev.index(energy_kev)]
            axes.imshow(image, cmap="gray", interpolation="nearest")
        for axes, depth_nm in zip(row[len(SHOWN_KEV) :], SHOWN_DEPTHS_NM, strict=True):
            axes.imshow(labels[:, :, depth_nm], cmap=MATERIALS, vmin=0, vmax=2, interpolation="nearest")
        row[0].set_ylabel(family, fontsize=7, rotation=0, ha="right", va="center")
    titles = [f"{energy:g} keV" for energy in SHOWN_KEV] + [f"{depth} nm deep" for depth in SHOWN_DEPTHS_NM]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=7)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


if __name__ == "__main__":
    try:
        print(*main(), sep="\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
