"""One electron on its way: it flies through the voxels and crosses surfaces.

Every function is elementwise: each argument may be a scalar (one electron) or an array (one entry per lane).
Energies are kinetic and counted from the vacuum level, E; inside a material T = E + U0 counts from the bottom
of its band. The equations and their sources are in docs/physics.md; what happens in a collision is in
scattering.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bsevox_jax.sim.random import uniform
from bsevox_jax.sim.tables import CrossSections

MEAN_WAY_OUT = 0.7  # voxels; to the face of a cube of half-width 0, from anywhere inside
NUDGE = 1e-4  # voxels; puts an electron that reached a voxel face on its far side


class Electron(NamedTuple):
    """Position (nm), direction cosines, kinetic energy in vacuum terms, and whether it came from the beam.

    `weight` is what it counts; only electrons of a walk with `biasing` have one.
    """

    x: jax.Array
    y: jax.Array
    z: jax.Array
    ux: jax.Array
    uy: jax.Array
    uz: jax.Array
    energy_kev: jax.Array
    is_primary: jax.Array
    weight: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Medium:
    """What an electron moves in: tracking words of a batch of specimens and flattened cross sections.

    Label index M (one past the last material) holds the largest rate of all, the majorant.
    """

    words: jax.Array  # uint16, flattened [specimen, y, x, z]
    total_rate_per_nm: jax.Array  # [(M + 1) * R]
    own_rate_half_width: jax.Array  # [M * R]; see `_own_rate_half_width`
    elastic_rate_per_nm: jax.Array  # [M * R]
    inelastic_rate_per_nm: jax.Array  # [M * R]
    quantiles: jax.Array  # [2 * M * R * P]; first mu = (1 - cos)/2 of elastic events, then w0 in keV
    barrier_kev: jax.Array  # [M]
    fermi_kev: jax.Array  # [M]
    core_edges_kev: jax.Array  # [M, K]
    reach_nm: jax.Array  # [R]; deeper than this below the surface nothing of the next row's energy comes out
    log_energy_start: jax.Array
    rows_per_log_energy: jax.Array
    points_per_log_quantile: jax.Array
    shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})  # voxels along y, x, z
    side_walls: str = dataclasses.field(metadata={"static": True})  # of `specimen.SIDE_WALLS`
    voxel_nm: float = dataclasses.field(metadata={"static": True})
    num_rows: int = dataclasses.field(metadata={"static": True})
    num_points: int = dataclasses.field(metadata={"static": True})


def medium(
    words: jax.Array,
    cross_sections: CrossSections,
    reach_nm: jax.Array,
    voxel_nm: float,
    side_walls: str = "mirror",
) -> Medium:
    """Lays out `words` [specimen, y, x, z], the cross sections and the reach [R] for the walk."""
    tables = jax.tree.map(jnp.asarray, cross_sections)
    total = tables.elastic_rate_per_nm + tables.inelastic_rate_per_nm
    log_energies = jnp.log(tables.energies_kev)
    num_rows, num_points = tables.angle_icdf.shape[1:]
    return Medium(
        words=words.ravel(),
        total_rate_per_nm=jnp.concatenate([total, total.max(0, keepdims=True)]).ravel(),
        own_rate_half_width=_own_rate_half_width(total, voxel_nm).ravel(),
        elastic_rate_per_nm=tables.elastic_rate_per_nm.ravel(),
        inelastic_rate_per_nm=tables.inelastic_rate_per_nm.ravel(),
        quantiles=jnp.concatenate([tables.angle_icdf, tables.loss_icdf_kev]).ravel(),
        barrier_kev=tables.barrier_kev,
        fermi_kev=tables.fermi_kev,
        core_edges_kev=tables.core_edges_kev,
        reach_nm=jnp.append(reach_nm[1:], jnp.inf),
        log_energy_start=log_energies[0],
        rows_per_log_energy=(num_rows - 1) / (log_energies[-1] - log_energies[0]),
        points_per_log_quantile=jnp.float32((num_points - 1) / -tables.log_quantile_end),
        shape=words.shape[-3:],
        side_walls=side_walls,
        voxel_nm=voxel_nm,
        num_rows=num_rows,
        num_points=num_points,
    )


def _own_rate_half_width(rates_per_nm, voxel_nm):
    """Half-width (voxels) of the cube of equal label from which on a flight draws with its own rate, [M, R].

    Near an interface it draws with the largest rate of all materials and rejects the excess (delta tracking).
    Both are exact; the one taken ends more often in a collision: 1 - exp(-r d) of the draws, or r/R.
    """
    share = jnp.minimum(rates_per_nm / jnp.maximum(rates_per_nm.max(0), 1e-12), 1 - 1e-6)
    width = -jnp.log(1 - share) / jnp.maximum(rates_per_nm * voxel_nm, 1e-12)
    half_width = jnp.clip(jnp.ceil(width - MEAN_WAY_OUT), 0, 99)
    return jnp.where(rates_per_nm > 0, half_width, 0).astype(jnp.int32)


def look_up(table, index):
    """`table[index]` for an index known to be inside."""
    return table.at[index].get(mode="promise_in_bounds")


def of_material(values, label):
    """`values[label]` of a handful of materials, by comparisons: dearer than a look-up only for many."""
    chosen = jnp.broadcast_to(values[0], label.shape)
    for material in range(1, values.shape[0]):
        chosen = jnp.where(label == material, values[material], chosen)
    return chosen


def aim(medium: Medium, electron: Electron, specimen_start, row, random_bits):
    """Draws the flight of an electron: to a possible collision, or to a face of the cube it may cross freely.

    Args:
        specimen_start: index in `medium.words` of the electron's specimen.
        row: energy row of the tables.
        random_bits: uint32, for the free path.

    Returns:
        The flight, its end not yet known (`label_end` is the label at the start).
    """
    outside = (electron.z < 0) | beside(medium, electron)  # on the way in, or past an open side
    word = jnp.where(outside, 0, _word(medium, electron, specimen_start))
    label, same_label, same_side = word & 15, (word >> 4) & 15, word >> 8
    alone = same_label >= look_up(medium.own_rate_half_width, label * medium.num_rows + row)
    rate_label = jnp.where(alone, label, medium.barrier_kev.shape[0])
    rate = look_up(medium.total_rate_per_nm, rate_label * medium.num_rows + row)
    free_path = -jnp.log(uniform(random_bits)) / jnp.maximum(rate, 1e-12)

    cube = jnp.where(alone, same_label, same_side).astype(jnp.float32)
    size = medium.voxel_nm
    to_x = _distance_to_face(electron.x, electron.ux, cube, size)
    to_y = _distance_to_face(electron.y, electron.uy, cube, size)
    to_z = _distance_to_face(electron.z, electron.uz, cube, size, depth=medium.shape[2] * size)
    to_face = jnp.where(outside, to_z, jnp.minimum(jnp.minimum(to_x, to_y), to_z))
    face = jnp.where(to_x == to_face, 1, jnp.where(to_y == to_face, 2, 3))
    face = jnp.where(free_path >= to_face, face, 0)
    return Flight(label, label, rate, jnp.minimum(free_path, to_face), face, jnp.zeros_like(to_face))


def fly(medium: Medium, electron: Electron, flight, specimen_start):
    """Moves an electron along its flight, and as its side walls want it.

    Returns:
        The moved electron, and the flight with the label and the depth at its end (0 outside the specimen).
    """
    ny, nx, nz = medium.shape
    size = medium.voxel_nm
    x = _advance(electron.x, electron.ux, flight, 1, size)
    y = _advance(electron.y, electron.uy, flight, 2, size)
    z = _advance(electron.z, electron.uz, flight, 3, size)
    x, ux = at_side_walls(medium.side_walls, x, electron.ux, nx * size)
    y, uy = at_side_walls(medium.side_walls, y, electron.uy, ny * size)
    electron = electron._replace(x=x, y=y, z=z, ux=ux, uy=uy)
    word = _word(medium, electron, specimen_start)
    label_end = jnp.where((z < 0) | (z >= nz * size) | beside(medium, electron), 0, word & 15)
    buried_nm = jnp.where(label_end > 0, jnp.minimum((word >> 8).astype(jnp.float32) * size, z), 0.0)
    return electron, flight._replace(label_end=label_end, buried_nm=buried_nm)


def _advance(position, cosine, flight, axis, size):
    beyond = jnp.where(flight.face == axis, jnp.copysign(NUDGE * size, cosine), 0.0)
    return position + flight.path_nm * cosine + beyond


class Flight(NamedTuple):
    """A straight path: labels at its ends, the collision rate it was drawn with, its length, how it ends.

    `face` is 0 for a possible collision, or 1, 2, 3 if it stops at a face across x, y, z. `buried_nm` is how
    far its end lies at least from any surface through which an electron could leave upwards.
    """

    label_start: jax.Array
    label_end: jax.Array
    rate_per_nm: jax.Array
    path_nm: jax.Array
    face: jax.Array
    buried_nm: jax.Array


def _word(medium, electron, specimen_start):
    """Tracking word of the voxel an electron is in, as int32; the nearest one just outside the faces."""
    ny, nx, nz = medium.shape
    # A product with 1/size would put some electrons back across the face they have crossed.
    ix = jnp.clip((electron.x / medium.voxel_nm).astype(jnp.int32), 0, nx - 1)
    iy = jnp.clip((electron.y / medium.voxel_nm).astype(jnp.int32), 0, ny - 1)
    iz = jnp.clip((electron.z / medium.voxel_nm).astype(jnp.int32), 0, nz - 1)
    return look_up(medium.words, specimen_start + (iy * nx + ix) * nz + iz).astype(jnp.int32)


def _distance_to_face(position, cosine, half_width, size, depth=None):
    """Path to the face of the cube of voxels around `position`, cut at the specimen's `depth` if given."""
    voxel = jnp.floor(position / size)
    low, high = (voxel - half_width) * size, (voxel + half_width + 1) * size
    if depth is not None:
        low, high = jnp.maximum(low, 0.0), jnp.minimum(high, depth)
    away = jnp.where(jnp.abs(cosine) < 1e-9, 1e-9, cosine)
    return jnp.maximum((jnp.where(away > 0, high, low) - position) / away, 0.0)


def beside(medium: Medium, electron: Electron):
    """Whether an electron is past an open side wall; False, at no cost, if the walls are not open."""
    if medium.side_walls != "open":
        return False
    ny, nx, _ = medium.shape
    size = medium.voxel_nm
    return (electron.x < 0) | (electron.x >= nx * size) | (electron.y < 0) | (electron.y >= ny * size)


def at_side_walls(side_walls: str, position, cosine, length):
    """Position and direction cosine of what flew past the walls at 0 and `length`, by any distance.

    Mirrors reflect it, periodic walls bring it back on the other side, open ones let it go.
    """
    if side_walls == "open":
        return position, cosine
    if side_walls == "periodic":
        return position - length * jnp.floor(position * (1 / length)), cosine
    position = position - 2 * length * jnp.floor(position * (0.5 / length))
    behind = position > length
    return jnp.where(behind, 2 * length - position, position), jnp.where(behind, -cosine, cosine)


def cross(medium: Medium, electron: Electron, flight: Flight):
    """Refracts or reflects an electron that reached the surface between matter and vacuum.

    The step of the potential changes the energy along the normal, T cos^2 -> T cos^2 + dU, and keeps the
    tangential momentum; without enough energy the electron is reflected. Steps between two solids (4 eV from
    Si to Cu, against more than 60 eV of kinetic energy) change T but not the direction.

    Returns:
        The electron and whether it passed.
    """
    at_surface = (flight.face > 0) & ((flight.label_start > 0) != (flight.label_end > 0))
    kinetic_from = electron.energy_kev + of_material(medium.barrier_kev, flight.label_start)
    kinetic_to = electron.energy_kev + of_material(medium.barrier_kev, flight.label_end)
    per_kinetic_to = 1 / kinetic_to
    cosine = jnp.where(flight.face == 1, electron.ux, jnp.where(flight.face == 2, electron.uy, electron.uz))
    normal_to = kinetic_from * cosine * cosine + (kinetic_to - kinetic_from)
    passes = normal_to > 0

    normal = jnp.copysign(jnp.sqrt(jnp.maximum(normal_to, 0) * per_kinetic_to), cosine)
    normal = jnp.where(passes, normal, -cosine)
    tangential = jnp.where(passes, jnp.sqrt(kinetic_from * per_kinetic_to), 1.0)
    back = jnp.where(at_surface & ~passes, jnp.copysign(2 * NUDGE * medium.voxel_nm, -cosine), 0.0)

    def turned(old_cosine, axis):
        return jnp.where(
            at_surface, jnp.where(flight.face == axis, normal, old_cosine * tangential), old_cosine
        )

    electron = electron._replace(
        x=electron.x + jnp.where(flight.face == 1, back, 0.0),
        y=electron.y + jnp.where(flight.face == 2, back, 0.0),
        z=electron.z + jnp.where(flight.face == 3, back, 0.0),
        ux=turned(electron.ux, 1),
        uy=turned(electron.uy, 2),
        uz=turned(electron.uz, 3),
    )
    return electron, passes
