"""Pictures of a reconstruction: what was measured, what is true, what was found, and where they differ."""

import itertools
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # files only, on any machine

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.patches import Patch

from bsevox_jax.data import COPPER_LABEL

COLUMNS = 8  # images and slices beside the view in three dimensions
VACUUM, SILICON, COPPER = "#ffffff", "#d5dae1", "#b4602a"
MISSED, EXTRA, BLANK = "#0072b2", "#e69f00", "#f4f5f7"  # distinct for colour-blind eyes too
MATERIALS = ListedColormap([VACUUM, SILICON, COPPER])
PROBABILITY = LinearSegmentedColormap.from_list("copper in silicon", [SILICON, COPPER])
DIFFERENCE = ListedColormap([EXTRA, BLANK, MISSED])

# Not quite isometric, where the nearest and the farthest corner of a cube coincide.
TURN_RAD, TILT_RAD = np.deg2rad(36), np.deg2rad(27)
TO_VIEWER = np.array([1, 1, -1])  # in y, x, z; any sum that grows towards the viewer orders equal cubes
VISIBLE_FACES = (  # normal, brightness, corners of a voxel, all in y, x, z
    ((0, 0, -1), 1.0, ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0))),
    ((0, 1, 0), 0.62, ((0, 1, 0), (1, 1, 0), (1, 1, 1), (0, 1, 1))),
    ((1, 0, 0), 0.8, ((1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1))),
)


def picture(
    path: str,
    yields: np.ndarray,
    beam_energies_kev: Sequence[float],
    electrons_per_pixel: float,
    probability: np.ndarray,
    voxel_nm: float,
    *,
    title: str,
    threshold: float = 0.5,
    truth: np.ndarray | None = None,
) -> None:
    """Draws a reconstruction: the images, slices at several depths, and the voxels in three dimensions.

    Args:
        path: of the PNG file.
        yields: the images, [y, x, e].
        beam_energies_kev: [e].
        electrons_per_pixel: dose of every image, or their mean.
        probability: of Cu, [y, x, z].
        voxel_nm: edge of a voxel.
        title: the heading.
        threshold: above which a voxel is copper.
        truth: labels [y, x, z], 0 vacuum, 1 Si, 2 Cu; with them true volume and difference are drawn too.
    """
    found = probability > threshold
    rows = {"reconstruction": (probability, PROBABILITY, (0, 1), found.astype(int), [COPPER])}
    if truth is not None:
        cu = truth == COPPER_LABEL
        missed, extra = cu & ~found, found & ~cu
        rows = {"truth": (truth, MATERIALS, (0, 2), cu.astype(int), [COPPER])} | rows
        signed = missed.astype(int) - extra
        rows["difference"] = (signed, DIFFERENCE, (-1, 1), missed + 2 * extra, [MISSED, EXTRA])
    figure = plt.figure(figsize=(15, 1 + 1.65 * (1 + len(rows))), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    grid = figure.add_gridspec(1 + len(rows), COLUMNS + 1, width_ratios=[1] * COLUMNS + [1.6])
    _draw_images(figure, grid, yields, beam_energies_kev, voxel_nm)
    facts = [
        f"{electrons_per_pixel:g} electrons per pixel and energy",
        f"{len(beam_energies_kev)} images, {beam_energies_kev[0]:g} to {beam_energies_kev[-1]:g} keV",
    ]
    _write_facts(figure.add_subplot(grid[0, -1]), facts, found, voxel_nm, truth)
    for row, (name, (volume, colours, (low, high), kinds, body_colours)) in enumerate(rows.items(), start=1):
        for column, k in enumerate(_chosen(volume.shape[2])):
            axes = figure.add_subplot(grid[row, column])
            _draw_plane(axes, volume[:, :, k], voxel_nm, cmap=colours, vmin=low, vmax=high)
            axes.set_title(f"depth {(k + 0.5) * voxel_nm:g} nm" if row == 1 else "", fontsize=8)
            _label(axes, name if column == 0 else None, last_row=row == len(rows))
        axes = figure.add_subplot(grid[row, -1])
        draw_voxels(axes, kinds, body_colours)
        _write_lengths(axes, np.array(kinds.shape), voxel_nm)
    _add_legend(figure, with_truth=truth is not None)
    figure.savefig(path)
    plt.close(figure)


def _draw_images(figure, grid, yields, beam_energies_kev, voxel_nm):
    for column, e in enumerate(_chosen(len(beam_energies_kev))):
        axes = figure.add_subplot(grid[0, column])
        _draw_plane(axes, yields[:, :, e], voxel_nm, cmap="gray")
        axes.set_title(f"{beam_energies_kev[e]:g} keV, yield {yields[:, :, e].mean():.2f}", fontsize=8)
        _label(axes, "BSE images" if column == 0 else None, last_row=False)


def _draw_plane(axes, plane, voxel_nm, **colours):
    ny, nx = plane.shape
    extent = (0, nx * voxel_nm, ny * voxel_nm, 0)
    axes.imshow(plane, extent=extent, interpolation="nearest", **colours)


def _label(axes, name, *, last_row):
    """The row's name and the y axis at its first panel, the x axis below the last row."""
    axes.tick_params(labelsize=7, length=2, labelleft=name is not None, labelbottom=last_row)
    if name is not None:
        axes.set_ylabel(f"{name}\n\ny (nm)", fontsize=9)
    if last_row:
        axes.set_xlabel("x (nm)", fontsize=8)


def _write_facts(axes, facts, found, voxel_nm, truth):
    lines = [*facts, f"Cu found: {found.sum() * voxel_nm**3:,.0f} nm\N{SUPERSCRIPT THREE}"]
    if truth is not None:
        cu = truth == COPPER_LABEL
        iou = (cu & found).sum() / max((cu | found).sum(), 1)
        lines += [f"Cu true: {cu.sum() * voxel_nm**3:,.0f} nm\N{SUPERSCRIPT THREE}", f"IoU(Cu) = {iou:.3f}"]
    axes.axis("off")
    axes.text(0.0, 1.0, "\n".join(lines), fontsize=9, va="top", linespacing=1.5, transform=axes.transAxes)


def draw_voxels(axes, kinds: np.ndarray, colours: list[str]) -> None:
    """Draws voxels, seen from above, and the outline of their volume.

    x points to the lower right, y to the lower left, depth down. Nearer voxels are painted over farther ones.

    Args:
        axes: of matplotlib.
        kinds: integers [y, x, z]; 0 is not drawn.
        colours: of kinds 1, 2, ...
    """
    faces, shades, nearness = [], [], []
    padded, rgb = np.pad(kinds, 1), np.array([to_rgb(colour) for colour in colours])
    for normal, brightness, corners in VISIBLE_FACES:
        behind = tuple(slice(1 + n, 1 + n + size) for n, size in zip(normal, kinds.shape, strict=True))
        voxels = np.argwhere((kinds > 0) & (padded[behind] == 0))
        faces.append(_project(voxels[:, None] + np.array(corners)))
        shades.append(brightness * rgb[kinds[tuple(voxels.T)] - 1])
        nearness.append(voxels @ TO_VIEWER)
    order = np.argsort(np.concatenate(nearness), kind="stable")
    faces, shades = np.concatenate(faces)[order], np.concatenate(shades)[order]
    axes.add_collection(PolyCollection(faces, facecolors=shades, edgecolors="#00000030", linewidths=0.3))
    _draw_box(axes, np.array(kinds.shape))


def _draw_box(axes, size):
    for start in itertools.product((0, 1), repeat=3):
        for end in start + np.eye(3, dtype=int):
            if end.max() == 1:
                edge = _project(np.array([start, end]) * size)
                axes.plot(*edge.T, color="#b4bac2", linewidth=0.6, zorder=0)
    axes.set_aspect("equal")
    axes.axis("off")


def _write_lengths(axes, size, voxel_nm):
    """Those of the edges of the outline of a volume [y, x, z]."""
    ny, nx, nz = size * voxel_nm
    for text, middle, side in (
        (f" y, {ny:g} nm", (0.5, 1, 1), "left"),
        (f"x, {nx:g} nm ", (1, 0.5, 1), "right"),
        (f"depth, \n{nz:g} nm ", (1, 0, 0.5), "right"),
    ):
        axes.annotate(
            text,
            _project(np.array(middle) * size),
            (0, -2),
            fontsize=8,
            ha=side,
            va="top",
            textcoords="offset points",
        )


def _project(points):
    """Parallel projection, [..., (right, up)] of points [..., (y, x, z)]."""
    y, x, z = np.moveaxis(np.asarray(points, float), -1, 0)
    across = np.cos(TURN_RAD) * x - np.sin(TURN_RAD) * y
    nearer = np.sin(TURN_RAD) * x + np.cos(TURN_RAD) * y
    return np.stack([across, -np.sin(TILT_RAD) * nearer - np.cos(TILT_RAD) * z], axis=-1)


def _add_legend(figure, *, with_truth):
    colours = {"Si (probability of Cu 0)": SILICON, "Cu (probability of Cu 1)": COPPER}
    if with_truth:
        colours |= {"vacuum": VACUUM, "Cu missed": MISSED, "Cu where there is none": EXTRA}
    handles = [Patch(facecolor=c, edgecolor="#999999", label=name) for name, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8, frameon=False)


def _chosen(number: int) -> list[int]:
    """Indices of the images or slices that are drawn, from the first to the last."""
    return np.unique(np.linspace(0, number - 1, COLUMNS).round().astype(int)).tolist()
