"""Specimens to image: the two published test structures, and random ones to learn from.

A specimen is painted: it starts as silicon, and a short list of bodies is laid over it, later ones over
earlier ones. Each body is an upright box, cylinder or ellipsoid of one label, so a hollow box is a Cu box
under a smaller Si box, and a core-shell wire is vacuum, a Si cylinder and a Cu cylinder. A voxel belongs to a
body when its centre does. What is drawn, how often and how large stands in one table, `FAMILIES`.

Everything is pure jax with static shapes: `jax.jit(jax.vmap(random_specimen))(keys)` draws a batch. Volumes
are uint8 [y, x, z] with voxels of 1 nm: 0 vacuum, 1 Si, 2 Cu; triples here are in the order y, x, z as well.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

PHANTOMS_VERSION = "1.0.0"  # raised whenever a key gives another specimen; data sets are tied to it
VACUUM, SILICON, COPPER = 0, 1, 2
Shape = tuple[int, int, int]
SHAPE = (20, 20, 20)  # voxels of 1 nm, as published (Zheng et al., IEEE Access)
CU_FRACTION = (0.005, 0.40)  # of the box; a drawn specimen outside is drawn again
MAX_BODIES = 12
MAX_DRAWS = 24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bodies:
    """Bodies in painting order. Along a round axis the outline is an ellipse, along the others it is flat:
    no round axis makes a box, two make a cylinder along the third, three make an ellipsoid."""

    centre_nm: jax.Array  # [n, 3]
    half_nm: jax.Array  # [n, 3] half sizes; a body with a size of zero is absent
    round: jax.Array  # [n, 3] bool
    label: jax.Array  # [n]


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of specimen; `draw(u, box_nm, **ranges)` makes bodies of uniform numbers u [MAX_BODIES, 9]."""

    name: str
    weight: float
    draw: Callable
    ranges: dict


def nanocube(position: int, shape: Shape = SHAPE) -> jax.Array:
    """Returns a Cu cube of 5 nm in Si: voxels [5 (position - 1), 5 position) on each axis.

    Labels are uint8 [y, x, z]. Source: Zheng et al., IEEE Access, Table 3.

    Args:
        position: 1 (a corner at the surface) to 4 (the opposite corner at the bottom of a 20 nm box).
        shape: voxels (y, x, z).

    Raises:
        ValueError: the cube does not lie inside the box.
    """
    if isinstance(position, int) and not 0 < 5 * position <= min(shape):
        raise ValueError(f"position must be 1 to {min(shape) // 5}; got {position}. Use one of these.")
    y, x, z = (jnp.arange(n) // 5 == position - 1 for n in shape)
    return jnp.where(y[:, None, None] & x[:, None] & z, COPPER, SILICON).astype(jnp.uint8)


def nanowire(radius_nm: float, axis: str = "z", shape: Shape = SHAPE) -> jax.Array:
    """Returns a Cu core in a Si shell of radius 10 nm, vacuum around it.

    Labels are uint8 [y, x, z]. Source: Zheng et al., IEEE Access, Table 4.

    Args:
        radius_nm: radius of the Cu core, 0 to 10; at 10 nm only Cu is left.
        axis: direction of the wire, which passes through the middle of the box; "z" stands upright.
        shape: voxels (y, x, z).

    Raises:
        ValueError: unknown axis, or a radius outside 0 to 10 nm.
    """
    if axis not in ("y", "x", "z"):
        raise ValueError(f"axis must be 'x', 'y' or 'z'; got {axis!r}. Use 'z' for the published wire.")
    if isinstance(radius_nm, int | float) and not 0 <= radius_nm <= 10:
        raise ValueError(f"radius_nm must be 0 to 10, the radius of the shell; got {radius_nm}. Use e.g. 4.")
    along = jnp.arange(3) == "yxz".index(axis)
    centre_nm = jnp.tile(jnp.asarray(shape) / 2, (2, 1))
    half_nm = jnp.where(along, jnp.inf, jnp.asarray([10.0, radius_nm])[:, None])
    wire = Bodies(centre_nm, half_nm, jnp.tile(~along, (2, 1)), jnp.array([SILICON, COPPER]))
    return _paint(wire, jnp.full(shape, VACUUM, jnp.uint8))


def random_specimen(key: jax.Array, shape: Shape = SHAPE) -> jax.Array:
    """Returns the labels of a random specimen; see `random_specimen_with_family`."""
    return random_specimen_with_family(key, shape)[0]


def random_specimen_with_family(key: jax.Array, shape: Shape = SHAPE) -> tuple[jax.Array, jax.Array]:
    """Returns the labels, uint8 [y, x, z], of a random specimen, and the index of its family in `FAMILIES`.

    The same key gives the same specimen, alone or in a batch. The Cu fraction is within `CU_FRACTION`. The
    sizes suit boxes of about 20 nm; they do not grow with the box.
    """
    weights = jnp.array([family.weight for family in FAMILIES])
    chances = jnp.cumsum(weights / weights.sum())[:-1]
    family = jnp.sum(jax.random.uniform(jax.random.fold_in(key, 0)) >= chances, dtype=jnp.int32)

    def outside_limits(state):
        draws, labels = state
        fraction = jnp.mean(labels == COPPER)
        return (draws < MAX_DRAWS) & ((fraction < CU_FRACTION[0]) | (fraction > CU_FRACTION[1]))

    def draw_again(state):
        draws = state[0]
        return draws + 1, specimen_of(uniform_numbers(key, draws), family, shape)

    _, labels = jax.lax.while_loop(outside_limits, draw_again, (0, jnp.full(shape, SILICON, jnp.uint8)))
    failed = outside_limits((0, labels))  # never in practice; it makes the limits a promise
    return jnp.where(failed, _middle_box(shape), labels), jnp.where(failed, 0, family)


def uniform_numbers(key: jax.Array, draw: jax.Array | int) -> jax.Array:
    """The numbers [MAX_BODIES, 9], from 0 to 1, that a draw (from 0) for a key makes a specimen of."""
    return jax.random.uniform(jax.random.fold_in(key, draw + 1), (MAX_BODIES, 9))


def specimen_of(u: jax.Array, family: jax.Array | int, shape: Shape = SHAPE) -> jax.Array:
    """The specimen, labels uint8 [y, x, z], of such numbers in a family, whatever its Cu fraction."""
    box_nm = jnp.asarray(shape, jnp.float32)
    *painted, blobs = FAMILIES  # the last one is a field, not a list of bodies
    draws = [lambda u, f=f: _padded(f.draw(u, box_nm, **f.ranges)) for f in painted]
    bodies = jax.lax.switch(jnp.minimum(family, len(painted) - 1), draws, u)
    labels = _paint(bodies, jnp.full(shape, SILICON, jnp.uint8))
    return jnp.where(family == len(painted), blobs.draw(u, shape, **blobs.ranges), labels)


def _paint(bodies, labels):
    """Paint bodies over labels. The distances of the three axes add up, so a voxel costs two additions."""
    distances = []
    for axis, n in enumerate(labels.shape):
        from_centre_nm = jnp.arange(n) + 0.5 - bodies.centre_nm[:, axis, None]
        squared = (from_centre_nm / bodies.half_nm[:, axis, None]) ** 2
        flat = jnp.where(squared <= 1, 0.0, 2.0)
        distances.append(jnp.where(bodies.round[:, axis, None], squared, flat))
    dy, dx, dz = distances
    for i in range(len(bodies.label)):
        inside = dy[i][:, None, None] + dx[i][:, None] + dz[i] <= 1
        labels = jnp.where(inside, bodies.label[i].astype(jnp.uint8), labels)
    return labels


def _padded(bodies):
    """Absent bodies added, so that all families return the same shapes."""
    missing = MAX_BODIES - len(bodies.label)
    return jax.tree.map(lambda a: jnp.pad(a, ((0, missing), (0, 0))[: a.ndim]), bodies)


def _middle_box(shape):
    """A Cu box in the middle, 0.4 of the box wide on each axis: always within the limits."""
    size_nm = jnp.asarray(shape, jnp.float32)[None]
    return _paint(_boxes(size_nm / 2, size_nm * 0.2), jnp.full(shape, SILICON, jnp.uint8))


def _boxes(centre_nm, half_nm):
    return Bodies(centre_nm, half_nm, jnp.zeros(half_nm.shape, bool), jnp.full(len(half_nm), COPPER))


def between(u, limits):
    """A uniform number from 0 to 1 as one from the first limit to the second."""
    return limits[0] + (limits[1] - limits[0]) * u


def _anywhere(u, half_nm, box_nm):
    """Centres that reach every depth about equally often: a body may stick out of any side."""
    return between(u, (-0.7 * half_nm, box_nm + 0.7 * half_nm))


def _first(u, number, half_nm):
    """The first few bodies, as many as `number` allows; the others become absent."""
    count = jnp.floor(between(u, (number[0], number[1] + 1)))
    return jnp.where(jnp.arange(len(half_nm))[:, None] < count, half_nm, 0.0)


def _form(u, kind, half_nm, length_nm=(2, 12)):
    """Half sizes [n, 3] and round axes of bodies of one kind; "any" mixes the first four."""
    along = jnp.arange(3) == (3 * u[:, 3:4]).astype(int)
    half = between(u[:, :3], half_nm)
    same = jnp.broadcast_to(half[:, :1], half.shape)
    forms = {
        "box": (half, jnp.zeros_like(along)),
        "cylinder": (jnp.where(along, between(u[:, 1:2], length_nm), same), ~along),
        "ellipsoid": (half, jnp.ones_like(along)),
        "sphere": (same, jnp.ones_like(along)),
    }
    if kind != "any":
        return forms[kind]
    pick = (4 * u[:, 4]).astype(int)[:, None] == jnp.arange(4)
    sizes, rounds = (jnp.stack(parts) for parts in zip(*forms.values(), strict=True))
    return jnp.einsum("nk,kna->na", pick, sizes), jnp.einsum("nk,kna->na", pick, rounds)


def _solids(u, box_nm, kind, number, half_nm, **length):
    """Separate or overlapping Cu bodies of one kind in Si."""
    half, is_round = _form(u, kind, half_nm, **length)
    half = _first(u[0, 8], number, half)
    return Bodies(_anywhere(u[:, 5:8], half, box_nm), half, is_round, jnp.full(len(half), COPPER))


def _shell(u, box_nm, kind, half_nm, wall_nm):
    """A closed or cut-open Cu shell, Si inside and outside."""
    outer, is_round = _form(u[:1], kind, half_nm)
    inner = jnp.maximum(outer - between(u[1, 0], wall_nm), 0.0)
    centre = _anywhere(u[:1, 5:8], outer, box_nm)
    label = jnp.array([COPPER, SILICON])
    return Bodies(
        jnp.tile(centre, (2, 1)), jnp.concatenate([outer, inner]), jnp.tile(is_round, (2, 1)), label
    )


def _core_shell_wire(u, box_nm, upright, shell_nm, core_share, off_centre_nm):
    """A Cu core in a Si shell with vacuum around it; upright with the given probability, else lying."""
    along = jnp.arange(3) == jnp.where(u[0, 0] < upright, 2, (2 * u[0, 1]).astype(int))
    shell = between(u[0, 2], shell_nm)
    radii = jnp.stack([jnp.inf, shell, shell * between(u[0, 3], core_share)])
    centre = box_nm / 2 + between(u[0, 5:8], (-off_centre_nm, off_centre_nm))
    half = jnp.where(along, jnp.inf, radii[:, None])
    label = jnp.array([VACUUM, SILICON, COPPER])
    return Bodies(jnp.tile(centre, (3, 1)), half, jnp.tile(~along, (3, 1)), label)


def _grating(u, box_nm, pitch_nm, duty, thickness_nm):
    """Parallel lines of one level, along y or x."""
    pitch = between(u[0, 0], pitch_nm)
    half_thickness = between(u[0, 2], thickness_nm) / 2
    across = (jnp.arange(MAX_BODIES) - u[0, 3]) * pitch
    depth = _anywhere(u[0, 4], half_thickness, box_nm[2])
    centre = jnp.stack([jnp.full(MAX_BODIES, box_nm[0] / 2), across, jnp.full(MAX_BODIES, depth)], axis=1)
    half = jnp.stack([jnp.inf, pitch * between(u[0, 1], duty) / 2, half_thickness])
    return _turned(u[0, 5], centre, jnp.tile(half, (MAX_BODIES, 1)))


def _interconnect(u, box_nm, pitch_nm, width_nm, thickness_nm, gap_nm, presence):
    """Two crossing metal levels of up to three lines each, and vias between them where lines cross."""
    upper, lower = between(u[0, :2], thickness_nm)
    gap = between(u[0, 2], gap_nm)
    stack = upper + gap + lower
    top = _anywhere(u[0, 3], stack / 2, box_nm[2]) - stack / 2
    pitch, width = between(u[1, :2], pitch_nm), between(u[1, 2:4], width_nm)
    lines = (jnp.arange(3)[:, None] - u[1, 4:6]) * pitch + pitch / 2  # [3, level]
    crossing = jnp.stack([jnp.arange(6) % 3, (4 * jnp.arange(6) // 3) % 3], axis=1)  # six of the nine
    y = jnp.concatenate([lines[:, 0], jnp.full(3, box_nm[0] / 2), lines[crossing[:, 0], 0]])
    x = jnp.concatenate([jnp.full(3, box_nm[1] / 2), lines[:, 1], lines[crossing[:, 1], 1]])
    z = jnp.stack([top + upper / 2, top + upper + gap + lower / 2, top + upper + gap / 2])
    via = jnp.min(width) / 2
    sizes = (width[0] / 2, jnp.inf, upper / 2), (jnp.inf, width[1] / 2, lower / 2), (via, via, gap / 2)
    half = jnp.array(sizes)
    rows = jnp.array([0] * 3 + [1] * 3 + [2] * 6)
    line_there = u[:6, 6] < presence
    via_there = (u[6:, 6] < presence) & line_there[crossing[:, 0]] & line_there[3 + crossing[:, 1]]
    there = jnp.concatenate([line_there, via_there])[:, None]
    return _turned(u[0, 5], jnp.stack([y, x, z[rows]], axis=1), jnp.where(there, half[rows], 0.0))


def _turned(u, centre, half):
    """Boxes of copper, with y and x exchanged in half of the cases."""
    order = jnp.where(u < 0.5, jnp.array([0, 1, 2]), jnp.array([1, 0, 2]))
    return _boxes(centre[:, order], half[:, order])


def _layers(u, box_nm, number, thickness_nm, opening_nm):
    """Layers parallel to the surface, with a Si opening through all of them."""
    half = jnp.full((MAX_BODIES, 3), jnp.inf).at[:, 2].set(between(u[:, 0], thickness_nm) / 2)
    half = _first(u[0, 8], number, half)
    half = half.at[-1].set(jnp.append(between(u[0, 2:4], opening_nm) / 2, jnp.inf))
    depth = _anywhere(u[:, 1], half[:, 2].at[-1].set(0), box_nm[2])
    centre = jnp.stack([u[:, 4] * box_nm[0], u[:, 5] * box_nm[1], depth], axis=1)
    layers = _boxes(centre, half)
    return dataclasses.replace(layers, label=layers.label.at[-1].set(SILICON))


def _blobs(u, shape, level):
    """Irregular smooth bodies: where a sum of 4 x 4 x 4 random waves exceeds `level` standard deviations."""
    waves_nm = jnp.array([50.0, 21.0, 14.0, 10.0])
    amplitudes, phases = (2 * u.ravel()[:64] - 1).reshape(4, 4, 4), u.ravel()[64:76].reshape(3, 4)
    axes = [(jnp.arange(n) + 0.5)[:, None] / waves_nm + phase for n, phase in zip(shape, phases, strict=True)]
    field = jnp.einsum("abc,ya,xb,zc->yxz", amplitudes, *(jnp.cos(2 * jnp.pi * turns) for turns in axes))
    threshold = between(u[-1, -1], level) * jnp.sqrt(64 / 3 / 8)  # variances: amplitude 1/3, cosine 1/2
    return jnp.where(field > threshold, COPPER, SILICON).astype(jnp.uint8)


# Every number here is a range (lowest, highest), drawn evenly; half sizes and lengths are half the width.
FAMILIES = (
    Family("box", 0.12, _solids, dict(kind="box", number=(1, 1), half_nm=(2, 9))),
    Family("cylinder", 0.12, _solids,
           dict(kind="cylinder", number=(1, 1), half_nm=(1.5, 7.5), length_nm=(2, 20))),
    Family("sphere", 0.06, _solids, dict(kind="sphere", number=(1, 1), half_nm=(3, 10))),
    Family("ellipsoid", 0.08, _solids, dict(kind="ellipsoid", number=(1, 1), half_nm=(3, 11))),
    Family("several", 0.10, _solids, dict(kind="any", number=(2, 6), half_nm=(1.5, 5.5), length_nm=(2, 12))),
    Family("shell", 0.10, _shell, dict(kind="any", half_nm=(4, 11), wall_nm=(1, 3.5))),
    Family("core-shell wire", 0.12, _core_shell_wire,
           dict(upright=0.5, shell_nm=(6, 10), core_share=(0.15, 0.9), off_centre_nm=3)),
    Family("grating", 0.09, _grating, dict(pitch_nm=(3, 10), duty=(0.25, 0.7), thickness_nm=(1, 8))),
    Family("interconnect", 0.12, _interconnect,
           dict(pitch_nm=(6, 12), width_nm=(1.5, 5), thickness_nm=(1, 5), gap_nm=(1, 5), presence=0.75)),
    Family("layers", 0.04, _layers, dict(number=(1, 3), thickness_nm=(1, 3.5), opening_nm=(2, 14))),
    Family("blobs", 0.05, _blobs, dict(level=(0.8, 2.2))),
)  # fmt: skip
