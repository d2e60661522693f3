"""Bodies of Cu in a reconstruction, measured in nm.

    found = reconstruct_files.reconstruct_files("stack.tif", None, "out")
    measure.write_csv("out/more.csv", measure.bodies(found.probability, found.voxel_nm))

**What is measured.** A body is what is connected through faces of voxels above the threshold. To it belongs
its soft edge: the connected voxels of at least 5 %, each to the nearest body, and one layer more. Along an
axis, the largest probability of each layer makes a profile. If three layers in a row are within 5 % of its
peak, the middle one must be full of whatever is there, so the profile is divided by its peak: what it lacks
is doubt of the whole body (`Body.peak_probability`) or thinness along another axis. Its ends are where they
are expected: outside of the layers of 95 % or more the probabilities are summed, as the lengths of copper
that they are on average; between these layers all is copper. Where none has 95 %, as in a film thinner than
a voxel, the sum of the profile lies about its centroid. Flat faces are so found exactly, between voxels
too; pointed or round ends come out short by up to one voxel or half of one.

**What the intervals mean.** The ends are looked for at 95 % and at 5 % too, by linear interpolation between
the centres of voxels; the quantity lies between. So the interval is as wide as the edge is soft, about one
voxel at least. It holds for a body that is there at all; where no layer has 95 %, lengths begin at 0. It
holds the truth in 90 % of all cases only if the probabilities are calibrated and each edge moves as a
whole; `intervals` widens it to what was found on specimens. It knows nothing of errors of scale, dose or
model.

What a side of the block cuts is measured as far as it reaches: see `Body.touches`.
"""

import csv
import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from bsevox_jax import imageio

HIGH, LOW = 0.95, 0.05  # probabilities that bound the soft edge
SOFT_EDGE = f"soft edge, from a probability of {HIGH} to {LOW}; not calibrated"
FEWEST_LAYERS = 3  # to tell the slope of a wall
_DIRECTIONS = 1440  # in which calipers are laid: the smallest is too large by 0.1 % of the largest at most


class Estimate(NamedTuple):
    """A quantity with its interval, for which see the module. NaN: not measurable."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Body:
    """A body of Cu; lengths and positions as of `volumes.ORIENTATION`.

    Attributes:
        peak_probability: the largest in it.
        touches: the sides of the block that it reaches, of -x, +x, -y, +y, -z (the surface of the sample) and
            +z (the depth at which the reconstruction ends): what lies beyond is not measured.
        top_nm, bottom_nm: depth of its upper and lower end.
        x_start_nm, x_end_nm, y_start_nm, y_end_nm: its ends along x and y.
        height_nm, width_x_nm, width_y_nm: between these ends.
        caliper_min_nm, caliper_max_nm: the smallest and the largest distance of two parallels, in any
            direction of the plane, between which it lies as seen from above. Its outline is where the
            probability is the threshold times the peak; sharp corners are cut by up to a voxel.
        volume_nm3: expected, the sum of the probabilities, so with the doubt of the whole body. Interval:
            from its voxels of 95 % or more to those of 5 % or more taken as full.
        x_nm, y_nm, z_nm: centroid. Interval: both ends move to the same side.
        side_wall_angle_x_deg, side_wall_angle_y_deg: between its walls and the surface, inside of it: 90 is
            upright, less is wider below. From the straight line, by least squares, of its ends along x or y
            against depth, in the layers whose peak is within 5 % of that of the body; mean of the walls that
            touch no side. Interval: the wall leans across its soft edge. NaN for less than three layers.
    """

    peak_probability: float
    touches: tuple[str, ...]
    top_nm: Estimate
    bottom_nm: Estimate
    x_start_nm: Estimate
    x_end_nm: Estimate
    y_start_nm: Estimate
    y_end_nm: Estimate
    height_nm: Estimate
    width_x_nm: Estimate
    width_y_nm: Estimate
    caliper_min_nm: Estimate
    caliper_max_nm: Estimate
    volume_nm3: Estimate
    x_nm: Estimate
    y_nm: Estimate
    z_nm: Estimate
    side_wall_angle_x_deg: Estimate
    side_wall_angle_y_deg: Estimate

    @property
    def is_sure(self) -> bool:
        """Whether some of it is copper beyond doubt; else it may not be there at all."""
        return self.peak_probability >= HIGH


@dataclasses.dataclass(frozen=True)
class Overlay:
    """How a body lies above another one.

    Attributes:
        upper, lower: their places in the list of bodies.
        x_nm, y_nm: centroid of the upper one minus that of the lower one.
        gap_nm: from the bottom of the upper one to the top of the lower one.
    """

    upper: int
    lower: int
    x_nm: Estimate
    y_nm: Estimate
    gap_nm: Estimate


def bodies(probability: np.ndarray, voxel_nm: float, threshold: float = 0.5) -> list[Body]:
    """The bodies of Cu, the largest first.

    Args:
        probability: of Cu, [y, x, z].
        voxel_nm: edge of a voxel.
        threshold: probability above which a voxel is Cu; from 0.05 to 0.95.

    Raises:
        ValueError: an argument is impossible; one line.
    """
    probability = imageio.check_probability(probability, voxel_nm, threshold)
    if not LOW <= threshold <= HIGH:
        raise ValueError(f"threshold must be from {LOW} to {HIGH}; got {threshold}. Take 0.5.")
    owner = _owners(probability, threshold)
    found = []
    for label, region in enumerate(ndimage.find_objects(owner), start=1):
        own = np.where(owner[region] == label, probability[region], 0).astype(np.float64)
        start = [axis.start for axis in region]
        found.append(_measured(own, start, probability.shape, voxel_nm, threshold))
    return sorted(found, key=lambda body: -body.volume_nm3.value)


def doubtful_count(bodies: Sequence[Body]) -> int:
    """How many may not be there; see `Body.is_sure`."""
    return sum(not body.is_sure for body in bodies)


def told(bodies: Sequence[Body]) -> str:
    """How many there are, in words."""
    count, doubtful = len(bodies), doubtful_count(bodies)
    some = f"{count or 'no'} {'body' if count == 1 else 'bodies'} of copper"
    return some + (f", {doubtful} of them doubtful (never above a probability of {HIGH})" if doubtful else "")


def overlays(bodies: Sequence[Body]) -> list[Overlay]:
    """The offset of each body from each one below it, if seen from above they overlap at all.

    Bodies of which one reaches below the top of the other count as well, if its centroid is higher.
    """
    pairs = []
    for i, upper in enumerate(bodies):
        for j, lower in enumerate(bodies):
            if upper.z_nm.value < lower.z_nm.value and _overlap(upper, lower):
                offsets = _difference(upper.x_nm, lower.x_nm), _difference(upper.y_nm, lower.y_nm)
                pairs.append(Overlay(i, j, *offsets, _difference(lower.top_nm, upper.bottom_nm)))
    return pairs


def write_csv(path: str, bodies: Sequence[Body]) -> None:
    """Writes one line per body: each quantity and, with the suffixes `_low` and `_high`, its interval.

    What is not measurable stays empty. The file is whole or not there.

    Raises:
        OSError: the file cannot be written; one line.
    """
    header = ["body"]
    for field in dataclasses.fields(Body):
        ends = ("", "_low", "_high") if field.type is Estimate else ("",)
        header += [field.name + end for end in ends]
    with imageio.whole_files(os.path.dirname(os.path.abspath(path))) as folder:
        with open(os.path.join(folder, os.path.basename(path)), "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for k, body in enumerate(bodies):
                row = [k]
                for field in dataclasses.fields(Body):
                    value = getattr(body, field.name)
                    row += [" ".join(value)] if field.name == "touches" else np.ravel(value).tolist()
                writer.writerow(["" if value != value else value for value in row])


def write_json(path: str, bodies: Sequence[Body], about: dict, interval: str = SOFT_EDGE) -> None:
    """Writes bodies and overlays; a quantity is {value, low, high}, null where it is not measurable.

    Args:
        path: of the file, which is whole or not there.
        bodies: as measured.
        about: what JSON can hold, for instance checkpoint, assumptions and version.
        interval: what the intervals are.

    Raises:
        OSError: the file cannot be written; one line.
        ValueError: `about` does not fit into JSON; one line.
    """
    content = {
        "interval": interval,
        "bodies": [_plain(body) for body in bodies],
        "overlays": [_plain(pair) for pair in overlays(bodies)],
        "about": about,
    }
    text = imageio.json_text(content)
    with imageio.whole_files(os.path.dirname(os.path.abspath(path))) as folder:
        with open(os.path.join(folder, os.path.basename(path)), "w") as file:
            file.write(text)


def _plain(record):
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    for name, value in values.items():
        if isinstance(value, Estimate):
            values[name] = None if math.isnan(value.value) else value._asdict()
    return values


def _owners(probability, threshold):
    """Number of the body [y, x, z] that each voxel belongs to with its soft edge, from 1; 0: none."""
    labels, count = ndimage.label(probability > threshold)
    if count == 0:
        return labels
    islands, _ = ndimage.label(probability >= LOW)
    nearest = tuple(ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True))
    soft = (islands > 0) & (islands == islands[nearest])
    return np.where(ndimage.binary_dilation(soft, np.ones((3, 3, 3))), labels[nearest], 0)


def _measured(own, start, block, voxel_nm, threshold):
    """The body of probabilities `own` [y, x, z], a part of a block, beginning so many voxels into it."""
    touches, ends, centroid = (), {}, {}
    for name, axis in (("x", 1), ("y", 0), ("z", 2)):
        layers = np.moveaxis(own, axis, 0).reshape(own.shape[axis], -1)
        ends[name] = _ends(layers.max(1), start[axis], block[axis])
        centroid[name] = _centre(layers.sum(1), start[axis], *ends[name])
        if start[axis] == 0 and layers[0].max() > threshold:
            touches += (f"-{name}",)
        if start[axis] + len(layers) == block[axis] and layers[-1].max() > threshold:
            touches += (f"+{name}",)
    seen = own.max(2) / own.max()
    calipers = [_calipers(_outline(seen, level, start, block)) for level in (threshold, HIGH, LOW)]
    smallest, largest = (Estimate(*of_levels) for of_levels in zip(*calipers, strict=True))
    volume = Estimate(own.sum(), own[own >= HIGH].sum(), np.where(own >= LOW, 1, own).sum())
    nm = functools.partial(_scaled, factor=voxel_nm)
    (x_start, x_end), (y_start, y_end), (top, bottom) = ends.values()
    return Body(
        peak_probability=float(own.max()),
        touches=touches,
        top_nm=nm(top),
        bottom_nm=nm(bottom),
        x_start_nm=nm(x_start),
        x_end_nm=nm(x_end),
        y_start_nm=nm(y_start),
        y_end_nm=nm(y_end),
        height_nm=nm(_length(top, bottom)),
        width_x_nm=nm(_length(x_start, x_end)),
        width_y_nm=nm(_length(y_start, y_end)),
        caliper_min_nm=nm(smallest),
        caliper_max_nm=nm(largest),
        volume_nm3=_scaled(volume, voxel_nm**3),
        x_nm=nm(centroid["x"]),
        y_nm=nm(centroid["y"]),
        z_nm=nm(centroid["z"]),
        side_wall_angle_x_deg=_side_wall_angle_deg(np.moveaxis(own, 1, 0), "x", touches),
        side_wall_angle_y_deg=_side_wall_angle_deg(own, "y", touches),
    )


def _ends(profile, start, size):
    """Both ends of a profile [voxel] that starts so many voxels into a row of `size` voxels, in that row."""
    centres = np.arange(len(profile)) + 0.5
    high = profile >= HIGH * profile.max()
    if (high[:-2] & high[1:-1] & high[2:]).any():
        profile = profile / profile.max()
    full = np.flatnonzero(profile >= HIGH)
    if len(full):
        filled = profile.copy()
        filled[full[0] + 1 : full[-1]] = 1
        split = (full[0] + full[-1] + 1) // 2
        expected = split - filled[:split].sum(), split + filled[split:].sum()
        inner = _crossings(profile, HIGH)
    else:
        middle, half = np.average(centres, weights=profile), profile.sum() / 2
        expected = middle - half, middle + half
        inner = middle, middle
    outer = _crossings(profile, LOW)
    expected, inner, outer = np.clip(start + np.array([expected, inner, outer]), 0, size).tolist()
    return (
        Estimate(expected[0], min(expected[0], outer[0]), max(expected[0], inner[0])),
        Estimate(expected[1], min(expected[1], inner[1]), max(expected[1], outer[1])),
    )


def _crossings(profile, level):
    """The outermost places where a profile rises to a level, between the centres of voxels."""
    padded = np.pad(profile, 1)
    above = np.flatnonzero(padded >= level)
    first, last = above[0], above[-1]
    before = (padded[first] - level) / (padded[first] - padded[first - 1])
    behind = (padded[last] - level) / (padded[last] - padded[last + 1])
    return first - before - 0.5, last + behind - 0.5  # 0.5 to the centre, 1 of the padding


def _centre(weights, start, first, last):
    value = start + np.average(np.arange(len(weights)) + 0.5, weights=weights)
    lower = (first.value - first.low + last.value - last.low) / 2
    upper = (first.high - first.value + last.high - last.value) / 2
    return Estimate(value, value - lower, value + upper)


def _outline(seen, level, start, block):
    """Where probabilities [y, x] cross a level between the centres of pixels: points [point, (y, x)]."""
    padded, points = np.pad(seen, 1), [np.zeros((0, 2))]
    for axis in (0, 1):
        rows = np.moveaxis(padded, axis, 0)
        k, other = np.nonzero((rows[:-1] >= level) != (rows[1:] >= level))
        before, after = rows[k, other], rows[k + 1, other]
        along = k + (level - before) / (after - before)
        points.append(np.stack([along, other] if axis == 0 else [other, along], axis=1))
    return np.clip(np.concatenate(points) - 0.5 + start[:2], 0, block[:2])


def _calipers(points):
    """Smallest and largest extent of points [point, 2]; 0 without any."""
    if len(points) == 0:
        return 0.0, 0.0
    points = points[ConvexHull(points, qhull_options="QJ").vertices]  # QJ: also if all lie on a line
    angle = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    extent = np.ptp(points @ np.stack([np.sin(angle), np.cos(angle)]), axis=0)
    return extent.min(), extent.max()


def _side_wall_angle_deg(own, axis, touches):
    """Angle of the walls at the ends of the first axis of `own` [across, along, z]."""
    depths = np.flatnonzero(own.max((0, 1)) >= HIGH * own.max())
    sides = [side for side in (0, 1) if f"{'-+'[side]}{axis}" not in touches]
    if len(depths) < FEWEST_LAYERS or not sides:
        return Estimate(math.nan, math.nan, math.nan)
    ends = np.array([_ends(own[:, :, z].max(1), 0, len(own)) for z in depths])[
        :, sides
    ]  # [z, side, estimate]
    outwards = (ends[..., 0] * np.array([-1, 1])[sides]).mean(1)
    slope = np.polynomial.polynomial.polyfit(depths, outwards, 1)[1]
    lean = (ends[..., 2] - ends[..., 1]).mean() / (depths[-1] - depths[0])
    return Estimate(
        *(math.degrees(math.atan2(1, lateral)) for lateral in (slope, slope + lean, slope - lean))
    )


def _length(start, end):
    return Estimate(end.value - start.value, max(0.0, end.low - start.high), end.high - start.low)


def _difference(a, b):
    return Estimate(a.value - b.value, a.low - b.high, a.high - b.low)


def _overlap(a, b):
    """Whether the boxes around two bodies overlap as seen from above."""
    along_x = a.x_start_nm.value < b.x_end_nm.value and b.x_start_nm.value < a.x_end_nm.value
    return along_x and a.y_start_nm.value < b.y_end_nm.value and b.y_start_nm.value < a.y_end_nm.value


def _scaled(estimate, factor):
    return Estimate(*(float(value) * factor for value in estimate))
