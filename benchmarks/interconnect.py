"""The images of an interconnect as an instrument would store them, and how well they are turned into copper.

    python -m benchmarks.interconnect --simulate

makes a folder of TIFF files of 256 x 256 pixels: metal lines in two levels and vias in 20 nm of silicon,
imaged by the Monte Carlo simulator under a probe of 1.5 nm at 100 pA and 1 us per pixel; from one beam energy
to the next the field drifts, turns and changes its magnification, gain and offset.
"""

import argparse
import json
import os
import time
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from bsevox_jax import imageio, intervals, measure, sim
from bsevox_jax.reconstruct_files import reconstruct_files
from tests.instrument_writers import write_thermo

SILICON, COPPER = 1, 2
FIELD, MARGIN, DEPTH = 256, 8, 20  # voxels of 1 nm; the margin is what a drifting field sees beyond its edge
ELECTRONS_PER_PIXEL = 624  # 100 pA for 1 us
PROBE_FWHM_NM = 1.5
UPPER, LOWER = (2, 6), (11, 16)  # depth of the two levels of metal, in nm
PAD = (12, 44), (12, 44)  # rows and columns of copper through the whole film
BARE = (12, 44), (52, 84)  # and of silicon alone


def boxes() -> list[tuple]:
    """What is of copper: (y, x, z), each (first, last + 1) voxel of the field."""
    found = [(*PAD, (0, DEPTH))]
    y = 10
    for width in (5, 7, 9, 12, 16):  # upper level, along x
        found.append(((y, y + width), (136, 246), UPPER))
        y += width + 13
    x = 12
    for width in (6, 8, 10, 14, 18):  # lower level, along y
        found.append(((136, 246), (x, x + width), LOWER))
        x += width + 13
    for n, width in enumerate((4, 6, 8, 10)):  # vias without lines
        start = 14 + 24 * n
        found.append(((60, 60 + width), (start, start + width), (3, 10)))
        found.append(((84, 84 + width), (start, start + width), (8, 14)))
        found.append(((108, 108 + width), (start, start + width), (1, 17)))
    for n in range(3):  # crossings: a line of each level, and vias where they are joined
        rows, columns = (146 + 36 * n, 156 + 36 * n), (146 + 36 * n, 156 + 36 * n)
        found.append((rows, (134, 246), (1, 5)))
        found.append(((134, 246), columns, LOWER))
    for row, column in ((0, 0), (1, 2), (2, 2)):
        y, x = 148 + 36 * row, 148 + 36 * column
        found.append(((y, y + 6), (x, x + 6), (5, 11)))
    return found


def specimen(margin: int = 0) -> np.ndarray:
    """Labels uint8 [y, x, z] of the field and of a margin of silicon about it."""
    labels = np.full((FIELD, FIELD, DEPTH), SILICON, np.uint8)
    for box in boxes():
        labels[tuple(slice(*ends) for ends in box)] = COPPER
    return np.pad(labels, ((margin, margin), (margin, margin), (0, 0)), constant_values=SILICON)


def simulate(seed: int) -> np.ndarray:
    """Counts, int32 [y, x, e], of the field with its margin."""
    instrument = sim.Instrument(probe_fwhm_nm=PROBE_FWHM_NM)
    labels = specimen(MARGIN)
    total = ELECTRONS_PER_PIXEL * len(sim.PAPER_ENERGIES_KEV) * labels[..., 0].size
    with tqdm(total=total, unit=" electrons", unit_scale=True) as progress:
        images = sim.simulate_bse(
            labels,
            electrons_per_pixel=ELECTRONS_PER_PIXEL,
            instrument=instrument,
            seed=seed,
            progress=progress.update,
        )
    return images.counts


class Drift(NamedTuple):
    """Where the field lies in each image: at magnification x turned + shift, from the centre."""

    shift_nm: np.ndarray  # [e, (y, x)]
    rotation_rad: np.ndarray  # [e]
    magnification: np.ndarray  # [e]


def drift(energies: int, seed: int) -> Drift:
    """Random walks from one energy to the next, about no drift on average."""
    steps = np.random.default_rng(seed).normal(size=(4, energies)).cumsum(axis=1)
    y, x, turn, size = steps - steps.mean(axis=1, keepdims=True)
    return Drift(0.7 * np.stack([y, x], axis=1), np.deg2rad(0.1) * turn, 1 + 0.002 * size)


def drifted(rng: np.random.Generator, counts: np.ndarray, of: Drift) -> np.ndarray:
    """Counts [y, x, e] of a field that drifts: every electron falls into one of the four nearest pixels.

    Electrons are dealt out, not interpolated, so that counts stay counts with their noise.
    """
    size = np.array(counts.shape[:2])
    centred = np.indices(size).reshape(2, -1).T - (size - 1) / 2
    images = np.zeros((FIELD + 2, FIELD + 2, counts.shape[2]), np.int64)
    for e, (shift, turn, scale) in enumerate(zip(*of, strict=True)):
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        place = scale * centred @ rotation.T + shift + (FIELD - 1) / 2 + 1  # in images with a border
        corner, left = np.floor(place).astype(int), counts[..., e].ravel()
        part, chance_left = place - corner, 1.0
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            share = np.prod(np.where((dy, dx), part, 1 - part), axis=1)
            dealt = rng.binomial(left, np.clip(share / np.maximum(chance_left, 1e-9), 0, 1))
            target = np.clip(corner + (dy, dx), 0, FIELD + 1)
            np.add.at(images[..., e], tuple(target.T), dealt)
            left, chance_left = left - dealt, chance_left - share
    return images[1:-1, 1:-1]


def record(folder: str, counts: np.ndarray, seed: int) -> Drift:
    """Writes the TIFF files of a microscope; returns how the field drifted."""
    rng, energies_kev = np.random.default_rng(seed), sim.PAPER_ENERGIES_KEV
    of = drift(len(energies_kev), seed)
    images = drifted(rng, counts, of)
    with imageio.whole_files(folder) as temporary:
        for energy, image in zip(energies_kev, np.moveaxis(images, -1, 0), strict=True):
            signal = image + rng.normal(0, 1, image.shape)  # of the amplifier, in electrons
            span = np.percentile(signal, 99.9)
            black, white = rng.uniform(4000, 9000), rng.uniform(40000, 56000)
            grey = np.clip(np.round(black + (white - black) / span * signal), 0, 65535).astype(np.uint16)
            path = os.path.join(temporary, f"interconnect_{energy:04.1f}keV.tif")
            write_thermo(path, grey, beam_energy_kev=energy, pixel_nm=1.0, bar=True)
    return of


def assess(images: str, output: str) -> dict:
    """Reconstructs the images and lays the bodies that were found beside the true ones."""
    start = time.perf_counter()
    found = reconstruct_files(images, None, output, silicon=_slices(BARE), copper=_slices(PAD))
    seconds = time.perf_counter() - start
    y, x = (round(offset) for offset in found.offset_nm)
    ny, nx, _ = found.labels.shape
    truth = specimen()[y : y + ny, x : x + nx] == COPPER
    is_cu = found.labels == COPPER
    true = [body for body in measure.bodies(truth.astype(np.float32), 1.0) if "+z" not in body.touches]
    pairs = intervals.matched(true, found.bodies)
    errors, covered = _compared(pairs)
    return {
        "seconds": round(seconds, 1),
        "field": [ny, nx],
        "iou": float((truth & is_cu).sum() / (truth | is_cu).sum()),
        "chi2": found.chi2,
        "in_range": found.in_range,
        "bodies_true": len(true),
        "bodies_found": len(found.bodies),
        "bodies_doubtful": measure.doubtful_count(found.bodies),
        "matched": len(pairs),
        "median_error_nm": {name: float(np.median(values)) for name, values in errors.items()},
        "largest_error_nm": {name: float(np.max(values)) for name, values in errors.items()},
        "covered_by_intervals": {name: float(np.mean(values)) for name, values in covered.items()},
        "covered_by_all_intervals": float(np.mean(np.concatenate(list(covered.values())))),
    }


def _slices(area):
    return tuple(slice(*ends) for ends in area)


def _compared(pairs):
    """Errors in nm of width, length, top and bottom, and whether the interval holds the true value."""
    errors = {name: [] for name in ("width", "length", "top", "bottom", "height")}
    covered = {name: [] for name in errors}
    for true, found in pairs:
        across, along = sorted(("width_x_nm", "width_y_nm"), key=lambda name: getattr(true, name).value)
        names = dict(zip(errors, (across, along, "top_nm", "bottom_nm", "height_nm"), strict=True))
        for quantity, name in names.items():
            value, of = getattr(true, name).value, getattr(found, name)
            errors[quantity].append(abs(of.value - value))
            covered[quantity].append(of.low <= value <= of.high)
    return errors, covered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulate", action="store_true", help="make the images; half an hour on two cores")
    parser.add_argument("--images", default="docs/interconnect", help="folder of the images")
    parser.add_argument("--output", default="runs/interconnect", help="folder of the results")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.simulate:
        counts = simulate(options.seed)
        with imageio.whole_files(options.output) as folder:
            np.savez_compressed(os.path.join(folder, "counts.npz"), counts=counts)
        record(options.images, counts, options.seed)
    print(json.dumps(assess(options.images, options.output), indent=1))


if __name__ == "__main__":
    main()
