"""Intervals of measured bodies that hold the truth as often as they say.

The soft edge of a body (`measure`) bounds a quantity only if the network is right about its own doubt. So
intervals are shifted outwards, or inwards, by what it takes for nine of ten to hold the truth on specimens
that the network did not learn from: conformal intervals (Romano, Patterson, Candes 2019, Advances in Neural
Information Processing Systems 32), one margin for each kind of quantity.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from bsevox_jax.measure import Body, Estimate

COVERED = 0.90  # of the true values
FEWEST = 30  # values of a kind; below, there is no margin
LEAST_OVERLAP = 0.3  # of the boxes around a true and a found body that belong together
KINDS = {  # kind -> (quantity, sides of the block that cut it short)
    "top": (("top_nm", "-z"),),
    "bottom": (("bottom_nm", "+z"),),
    "height": (("height_nm", "-z+z"),),
    "ends": (("x_start_nm", "-x"), ("x_end_nm", "+x"), ("y_start_nm", "-y"), ("y_end_nm", "+y")),
    "widths": (("width_x_nm", "-x+x"), ("width_y_nm", "-y+y")),
    "calipers": (("caliper_min_nm", "-x+x-y+y"), ("caliper_max_nm", "-x+x-y+y")),
    "lateral centroid": (("x_nm", "-x+x"), ("y_nm", "-y+y")),
    "depth of the centroid": (("z_nm", "-z+z"),),
    "wall angles": (("side_wall_angle_x_deg", "-x+x"), ("side_wall_angle_y_deg", "-y+y")),
    "volume": (("volume_nm3", "-x+x-y+y-z+z"),),
}
RELATIVE = ("volume",)  # whose margins are shares of the value that was found


def matched(true: Sequence[Body], found: Sequence[Body]) -> list[tuple[Body, Body]]:
    """Pairs of a true body and the one that was found at its place."""
    pairs = []
    for body in true:
        overlaps = [_overlap(body, other) for other in found]
        if overlaps and max(overlaps) >= LEAST_OVERLAP:
            pairs.append((body, found[int(np.argmax(overlaps))]))
    return pairs


def margins(pairs: Sequence[tuple[Body, Body]]) -> dict[str, float]:
    """What each kind of interval must grow by at both ends to hold `COVERED` of the true values.

    In nm, of angles in degrees, and of `RELATIVE` kinds as a share of the value that was found.
    """
    needed = {}
    for kind, quantities in KINDS.items():
        missing = [
            max(of.low - value, value - of.high) / _unit(kind, of)
            for true, found in pairs
            for value, of in _whole(true, found, quantities)
        ]
        if len(missing) >= FEWEST:
            level = min(1.0, np.ceil((len(missing) + 1) * COVERED) / len(missing))
            needed[kind] = float(np.quantile(missing, level, method="higher"))
    return needed


def widened(body: Body, margins: dict[str, float]) -> Body:
    """The body with intervals that are wider by `margins`, see there, at both ends; values stay inside."""
    changed = {}
    for kind, quantities in KINDS.items():
        for name, _ in quantities if kind in margins else ():
            value, low, high = found = getattr(body, name)
            margin = margins[kind] * _unit(kind, found)
            low, high = min(value, low - margin), max(value, high + margin)
            changed[name] = Estimate(value, max(low, 0.0), high)  # nothing is shorter or higher than that
    return dataclasses.replace(body, **changed)


def coverage(pairs: Sequence[tuple[Body, Body]]) -> dict[str, tuple[float, int]]:
    """Share of the true values that the intervals hold, and their number, by kind."""
    held = {}
    for kind, quantities in KINDS.items():
        inside = [
            of.low <= value <= of.high
            for true, found in pairs
            for value, of in _whole(true, found, quantities)
        ]
        if inside:
            held[kind] = (float(np.mean(inside)), len(inside))
    return held


def _whole(true, found, quantities):
    """True value and estimate of the quantities that no side of the block cuts short."""
    cut = (*true.touches, *found.touches)
    for name, sides in quantities:
        value, of = getattr(true, name).value, getattr(found, name)
        if not any(side in sides for side in cut) and not math.isnan(value + of.value):
            yield value, of


def _unit(kind, found):
    return found.value if kind in RELATIVE else 1


def _overlap(a, b):
    """Intersection over union of the boxes around two bodies."""
    axes = (("x_start_nm", "x_end_nm"), ("y_start_nm", "y_end_nm"), ("top_nm", "bottom_nm"))
    ends = np.array([[[getattr(body, name).value for name in axis] for axis in axes] for body in (a, b)])
    shared = np.prod(np.maximum(ends[..., 1].min(0) - ends[..., 0].max(0), 0))
    return shared / (np.prod(np.ptp(ends, axis=2), axis=1).sum() - shared)
