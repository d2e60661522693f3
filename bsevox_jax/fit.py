"""The shape fit: the most likely simple body of Cu in a block of Si, with error bars.

Where it is known that there is one box, cylinder or layer, and no vacuum, a few numbers say all, and the
images say how well they are known. Each shape climbs the likelihood of the image model from its best starts,
by Fisher scoring with the damping of Marquardt (1963); the shape is chosen by the Bayesian information
criterion (Schwarz 1978). The likelihood is the extended one, where the excess variance of the counts depends
on the body (Nelder and Pregibon 1987).

    body = fit.fit(forward.load(), counts, electrons_per_pixel)
    body.shape, body.parameters["z_nm"], body.standard_errors["z_nm"], body.volume

Six numbers in nm describe every shape, so that one program serves all: low and high (y, x, z) are the two
faces along a flat axis; along the round axes of a cylinder low is its centre, and the first high its radius.

Faces are smooth and fractions of voxels mean what the image model makes of them: a cylinder that was cut out
of whole voxels, near the surface, may be explained better by another shape.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bsevox_jax import forward, likelihood

THINNEST_NM = 0.5  # thickness and radius: less cannot be told from nothing
# Where climbs may begin: depths, and widths relative to that of what is bright.
FIRST_TOPS_NM, FIRST_THICKNESSES_NM, FIRST_WIDTHS = (0, 2, 5, 9, 14), (2, 5, 10, 20), (0.6, 1.0, 1.4)
CLIMBS = 2  # of each shape
MOST_STEPS = 30
LONGEST_STEP_NM = 3.0
FIRST_DAMPING, LESS, MORE = 0.1, 0.3, 5.0
SMALLEST_GAIN = 0.01  # of the log-likelihood, which falls by 0.5 at one standard error
SMALL = 1e-6  # instead of nothing, where it is divided by


class Shape(NamedTuple):
    """A kind of body.

    Attributes:
        is_round: of (y, x, z), the two across which the outline is a circle, if any.
        endless: of (y, x, z), those along which it goes from side to side of the block.
        size: name of its size along a flat axis.
    """

    is_round: tuple[bool, bool, bool] = (False, False, False)
    endless: tuple[bool, bool, bool] = (False, False, False)
    size: str = "length_nm"


SHAPES = {
    "box": Shape(size="size_{}_nm"),
    "cylinder along y": Shape(is_round=(False, True, True)),
    "cylinder along x": Shape(is_round=(True, False, True)),
    "cylinder along z": Shape(is_round=(True, True, False)),
    "layer": Shape(endless=(True, True, False), size="thickness_nm"),
}


class Body(NamedTuple):
    """The most likely body; of one that a side of the block cuts off, the part inside.

    Attributes:
        shape: one of SHAPES.
        parameters: `y_nm`, `x_nm`, `z_nm` of the centre, z from the surface; `size_y_nm`, `size_x_nm`,
            `size_z_nm` of a box, `radius_nm` and `length_nm` of a cylinder, `thickness_nm` of a layer, which
            has no `y_nm` and `x_nm`.
        standard_errors: of each, from the noise and the errors of the image model, as if the shape were
            known; infinite where nothing is known. A face in a side of the block has none; NaN where all
            faces that matter lie there.
        chi2_per_dof: mean of `likelihood.chi2_map`, about 1 if the body explains the images.
        volume: fractions of Cu, float32 [y, x, z].
    """

    shape: str
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    chi2_per_dof: float
    volume: np.ndarray


def fit(model: forward.ImageModel, counts: np.ndarray, electrons_per_pixel: float) -> Body:
    """The most likely of all bodies of all shapes.

    Args:
        model: see `forward.load`.
        counts: detected electrons [y, x, e] in pixels of 1 nm, with mirror walls.
        electrons_per_pixel: the dose, a number for all energies.

    Raises:
        ValueError: no dose, or images of other energies than those of the model.
    """
    if not 0 < electrons_per_pixel < np.inf:
        raise ValueError(
            f"electrons_per_pixel must be above 0 and finite; got {electrons_per_pixel:g}. Give the dose of "
            "an image."
        )
    energies = len(model.beam_energies_kev)
    if np.ndim(counts) != 3 or np.shape(counts)[-1] != energies:
        raise ValueError(
            f"counts must be [y, x, {energies}], an image for each energy of the model; got "
            f"{np.shape(counts)}. Give a stack of these energies."
        )
    counts = jnp.asarray(counts, jnp.float32)
    block = (*counts.shape[:2], forward.depth(model))
    boxes = first_boxes(model, counts, electrons_per_pixel)
    climbs = {}
    for name, shape in SHAPES.items():
        starts, is_round = _starts(shape, boxes, block), np.array(shape.is_round)
        likely = _log_likelihoods(model, counts, electrons_per_pixel, is_round, starts)
        starts = _most_likely(starts, np.asarray(likely))
        climbs[name] = _climb(model, counts, electrons_per_pixel, is_round, _limits(shape, block), starts)
    # Schwarz (1978), times -2.
    bic = {
        name: len(quantities(SHAPES[name])) * np.log(counts.size) - 2 * np.max(likely)
        for name, (likely, _) in climbs.items()
    }
    name = min(bic, key=bic.get)
    likely, parameters = climbs[name]
    return _body(model, counts, electrons_per_pixel, name, parameters[np.argmax(likely)])


def volume_of(is_round: jax.Array, parameters: jax.Array, block: tuple[int, int, int]) -> jax.Array:
    """Fractions of Si and Cu, float32 [y, x, z, material]; differentiable in the parameters.

    Flat axes are exact. A circle covers a voxel in proportion to the distance of its middle from the edge,
    from all to nothing within 1 nm. Its area is right within 2.5 % from a radius of 1.5 nm, 1 % from 3 nm.

    Args:
        is_round: bool [3], as of `Shape`.
        parameters: [6], see the module.
        block: (y, x, z), voxels of 1 nm.
    """
    low, high = parameters[:3], parameters[3:]
    sides = jnp.asarray(block, jnp.float32)
    centre = jnp.where(is_round, sides / 2, (low + high) / 2)
    copper = likelihood.box(centre, jnp.where(is_round, sides, high - low), block)[..., 1]
    middles = jnp.meshgrid(*(jnp.arange(n) + 0.5 for n in block), indexing="ij")
    squared = sum(jnp.where(is_round[k], (middles[k] - low[k]) ** 2, 0) for k in range(3))
    # A ramp of 1 nm across the edge of a circle adds pi / 12 to its area.
    radius = jnp.sqrt(jnp.maximum(jnp.where(is_round, high, 0).sum() ** 2 - 1 / 12, SMALL))
    disc = jnp.clip(radius - jnp.sqrt(squared + SMALL) + 0.5, 0, 1)
    copper *= jnp.where(is_round.any(), disc, 1)
    return jnp.stack([1 - copper, copper], axis=-1)


def quantities(shape: Shape) -> dict[str, np.ndarray]:
    """What is reported of a shape: name -> weights [6] of its parameters."""
    low, high = np.split(np.eye(6), 2)
    free = [k for k in range(3) if not shape.endless[k]]
    flat = [k for k in free if not shape.is_round[k]]
    centres = {f"{'yxz'[k]}_nm": (low[k] + high[k]) / 2 if k in flat else low[k] for k in free}
    radius = {"radius_nm": high[shape.is_round.index(True)]} if any(shape.is_round) else {}
    return centres | radius | {shape.size.format("yxz"[k]): high[k] - low[k] for k in flat}


def first_boxes(model: forward.ImageModel, counts: jax.Array, electrons_per_pixel: float) -> np.ndarray:
    """Boxes [n, 6] to begin with: below the bright pixels, and several widths and depths."""
    block = (*counts.shape[:2], forward.depth(model))
    silicon, copper = _uniform(model, block)
    # Weighted as is best for columns of mixed Si and Cu: in proportion to their fraction of Cu.
    weight = (copper - silicon) / (silicon * (1 - silicon))
    bright = ((counts / electrons_per_pixel - silicon) * weight).sum(-1)
    padded = np.pad(np.asarray(bright), 1, mode="edge")
    smooth = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).mean((-2, -1))
    # Where nothing is brighter than silicon, all pixels are alike.
    pixels = np.argwhere(smooth >= (smooth.max() / 2 if smooth.max() > 0 else smooth.min())) + 0.5
    centre, size = pixels.mean(0), np.sqrt(12 * pixels.var(0) + 1)  # of a rectangle of such moments
    boxes = []
    for width, top, thickness in itertools.product(FIRST_WIDTHS, FIRST_TOPS_NM, FIRST_THICKNESSES_NM):
        if thickness == FIRST_THICKNESSES_NM[0] or top + thickness <= block[2]:
            boxes.append([*(centre - width * size / 2), top, *(centre + width * size / 2), top + thickness])
    sides = np.array(block)
    return np.clip(np.array(boxes, np.float32), 0, np.concatenate([sides, sides]))


@functools.partial(jax.jit, static_argnames="block")
def _uniform(model, block):
    """Yields [e] of silicon and of copper."""
    labels = jnp.broadcast_to(jnp.array([1, 2])[:, None, None, None], (2, *block))
    return forward.expect(model, labels).yields.mean((1, 2))


def _limits(shape, block):
    """Least and greatest parameters, [2, 6]; what is not free has both alike."""
    limits = np.zeros((2, 2, 3), np.float32)  # of low and high
    for k, n in enumerate(block):
        limits[:, :, k] = [[0, THINNEST_NM], [n - THINNEST_NM, n]]
        if shape.endless[k]:
            limits[:, :, k] = [0, n]
        elif shape.is_round[k]:  # the middle may lie outside; the radius is the first of two
            first = k == shape.is_round.index(True)
            limits[:, :, k] = [[-n / 2, first * THINNEST_NM], [1.5 * n, first * 1.5 * n]]
    return limits.reshape(2, 6)


def _starts(shape, boxes, block):
    """Bodies [n, 6] that are as large as boxes and lie where they do."""
    low, high = np.split(boxes, 2, axis=1)
    is_round = np.array(shape.is_round)
    radius = np.sqrt(np.prod(high - low, axis=1, where=is_round) / np.pi)[:, None]
    starts = [np.where(is_round, (low + high) / 2, low), np.where(is_round, radius, high)]
    return np.clip(np.concatenate(starts, axis=1), *_limits(shape, block))


def _most_likely(starts, likely):
    """The best of `first_boxes`, no two at the same depths: they would climb the same hill."""
    likely, starts = likely.reshape(len(FIRST_WIDTHS), -1), starts.reshape(len(FIRST_WIDTHS), -1, 6)
    depths = np.argsort(-likely.max(0))[:CLIMBS]
    return starts[likely.argmax(0)[depths], depths]


def _extended(model, counts, electrons_per_pixel, volume):
    """Extended log quasi-likelihood, Nelder and Pregibon (1987), but for what no body changes."""
    excess = forward.expect(model, volume).excess
    quasi = likelihood.log_likelihood(model, counts, volume, electrons_per_pixel)
    return quasi - 0.5 * jnp.log1p(excess).sum()


@jax.jit
def _log_likelihoods(model, counts, electrons_per_pixel, is_round, starts):
    """Those [n] of bodies [n, 6]."""
    block = (*counts.shape[:2], forward.depth(model))
    return lax.map(
        lambda at: _extended(model, counts, electrons_per_pixel, volume_of(is_round, at, block)), starts
    )


@jax.jit
def _climb(model, counts, electrons_per_pixel, is_round, limits, starts):
    """Log-likelihoods [n] and parameters [n, 6] where climbs from some bodies [n, 6] end."""
    block = (*counts.shape[:2], forward.depth(model))
    least, most = limits

    def images(parameters):
        expected = forward.expect(model, volume_of(is_round, parameters, block))
        return expected.yields, expected

    def look(parameters):
        """Log-likelihood, score and information."""
        slopes, expected = jax.jacfwd(images, has_aux=True)(parameters)
        pull = slopes / expected.variance(1.0)[..., None]
        score = jnp.einsum("yxep,yxe->p", pull, counts - electrons_per_pixel * expected.yields)
        information = electrons_per_pixel * jnp.einsum("yxep,yxeq->pq", pull, slopes)
        volume = volume_of(is_round, parameters, block)
        return _extended(model, counts, electrons_per_pixel, volume), score, information

    def step(state):
        parameters, seen, damping, steps, _ = state
        likely, score, information = seen
        # A parameter at a limit that it would cross is held (Bertsekas 1982), or others would be led astray.
        free = ((parameters > least) | (score > 0)) & ((parameters < most) | (score < 0)) & (least < most)
        diagonal = jnp.where(free, damping * jnp.diag(information) + SMALL, 1)
        matrix = jnp.where(free & free[:, None], information, 0) + jnp.diag(diagonal)
        change = jnp.linalg.solve(matrix, jnp.where(free, score, 0))
        change = jnp.clip(change, -LONGEST_STEP_NM, LONGEST_STEP_NM)
        new = jnp.clip(parameters + change, least, most)
        thick = jnp.maximum(new[3:], new[:3] + THINNEST_NM)
        new = new.at[3:].set(jnp.where(is_round, new[3:], thick))
        gain = jnp.where(free, score * (new - parameters), 0).sum() / 2  # what is to be expected
        found = look(new)
        better = found[0] > likely
        parameters, seen = jax.tree.map(
            lambda a, b: jnp.where(better, a, b), (new, found), (parameters, seen)
        )
        return parameters, seen, damping * jnp.where(better, LESS, MORE), steps + 1, gain

    def climb(start):
        # The first step stays where it is and only looks, since nothing is known yet.
        nothing = jnp.float32(-jnp.inf), jnp.zeros(6), jnp.zeros((6, 6))
        state = start, nothing, jnp.float32(FIRST_DAMPING), 0, jnp.float32(0)
        state = lax.while_loop(
            lambda s: (s[3] < MOST_STEPS) & ((s[4] > SMALLEST_GAIN) | (s[3] < 2)), step, state
        )
        return state[1][0], state[0]

    return lax.map(climb, starts)


@jax.jit
def _precision(model, electrons_per_pixel, is_round, parameters, counts):
    """Information [6, 6], covariance of the score [6, 6], mean chi^2, and copper [y, x, z]."""
    block = (*counts.shape[:2], forward.depth(model))

    def volume(parameters):
        return volume_of(is_round, parameters, block)

    information = likelihood.fisher_information(model, volume, parameters).sum(0)
    scatter = likelihood.model_scatter(model, volume, parameters).sum(0)
    chi2 = likelihood.chi2_map(model, counts, volume(parameters), electrons_per_pixel)
    information *= electrons_per_pixel
    score_covariance = information + electrons_per_pixel**2 * scatter
    return information, score_covariance, chi2.mean(), volume(parameters)[..., 1]


def _body(model, counts, electrons_per_pixel, name, parameters):
    shape, parameters = SHAPES[name], np.asarray(parameters, np.float64)
    block = (*counts.shape[:2], forward.depth(model))
    least, most = _limits(shape, block)
    information, score_covariance, chi2, copper = _precision(
        model, electrons_per_pixel, np.array(shape.is_round), parameters, counts
    )
    # In coordinates each of which changes one free face, or a centre, a size or a radius alone.
    free, unit, directions = (least < parameters) & (parameters < most), np.eye(6), []
    for k in range(3):
        if not shape.is_round[k] and free[k] and free[3 + k]:
            directions += [unit[k] + unit[3 + k], (unit[3 + k] - unit[k]) / 2]
        else:
            directions += [unit[j] for j in (k, 3 + k) if free[j]]
    directions = np.stack(directions, axis=1) if directions else np.zeros((6, 0))
    errors = likelihood.standard_errors(
        *(directions.T @ m @ directions for m in (information, score_covariance))
    )
    reported = quantities(shape)
    changes = {name: np.abs(weights @ directions) for name, weights in reported.items()}
    return Body(
        name,
        {name: float(weights @ parameters) for name, weights in reported.items()},
        {
            name: float(change[change > 0] @ errors[change > 0]) if change.any() else np.nan
            for name, change in changes.items()
        },
        float(chi2),
        np.asarray(copper),
    )
