"""Large fields in windows that overlap by so much that nothing of the seams is left, in bounded memory."""

import itertools
import os
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from bsevox_jax import parallel


def windows(size: int, width: int, halo: int) -> list[tuple[slice, slice]]:
    """Windows of one width that cover an axis: what is looked at, and what is kept of it, along that axis.

    Inside of the axis `halo` is left out at each end of a window; at the ends of the axis nothing is.
    """
    if size <= width:
        return [(slice(0, size), slice(0, size))]
    core = width - 2 * halo
    pieces = []
    for first in range(0, size, core):
        start = min(max(first - halo, 0), size - width)
        stop = size if start == size - width else first + core
        pieces.append((slice(start, start + width), slice(first, stop)))
        if stop == size:
            break
    return pieces


def tiled(
    function: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    *,
    channels: tuple[int, ...],
    width: int,
    halo: int,
    keep: str | None = None,
    about: str = "windows",
) -> np.ndarray:
    """What a function of small fields makes of a large one.

    Args:
        function: from windows [n, wy, wx, ...] to float32 [n, wy, wx, *channels]; n divides by the devices.
        images: [y, x, ...].
        channels: of the result.
        width: of a window, in pixels; a multiple of what the function folds, as are halo and the field.
        halo: how far away a pixel may change a result.
        keep: file of what is done; windows found there are not computed again. It is left to the caller.
        about: what the progress is called.

    Returns:
        float32 [y, x, *channels].
    """
    shape = (*images.shape[:2], *channels)
    keep = keep if jax.process_count() == 1 else None  # or processes would disagree on what is missing
    result = _kept(keep, shape) if keep else np.full(shape, np.nan, np.float32)
    pieces = list(itertools.product(*(windows(size, width, halo) for size in images.shape[:2])))
    missing = [piece for piece in pieces if np.isnan(result[_place(piece)]).any()]
    together = jax.device_count()
    quiet = len(pieces) == 1 or not parallel.is_main_process()  # one window is no progress
    done = len(pieces) - len(missing)
    bar = tqdm(
        total=len(pieces), initial=done, desc=about, unit="window", delay=2, leave=False, disable=quiet
    )
    for first in range(0, len(missing), together):
        group = missing[first : first + together]
        batch = np.stack([images[y[0], x[0]] for y, x in group])
        for (y, x), found in zip(group, function(batch), strict=True):
            result[y[1], x[1]] = found[_within(y), _within(x)]
        if keep:
            result.flush()
        bar.update(len(group))
    bar.close()
    return np.array(result)


def _kept(path, shape):
    """An array in a file, NaN where nothing has been computed yet."""
    try:
        kept = np.load(path, mmap_mode="r+")
        if kept.shape == shape:
            return kept
    except (OSError, ValueError, EOFError):  # none, or damaged
        pass
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:  # written, not mapped, so that a full disk is an error and no signal
        np.save(file, np.full(shape, np.nan, np.float32))
    return np.load(path, mmap_mode="r+")


def _place(piece):
    return tuple(kept for _, kept in piece)


def _within(axis):
    window, kept = axis
    return slice(kept.start - window.start, kept.stop - window.start)
