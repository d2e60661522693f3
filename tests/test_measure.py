"""Bodies of known shape, from the exact share of Cu of every voxel."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from bsevox_jax import measure
from bsevox_jax.likelihood import box

SHAPE = (22, 24, 20)  # y, x, z


def copper(centre_nm, size_nm, shape=SHAPE):
    """Share of Cu [y, x, z] of a box; centre and size (y, x, z) in voxels."""
    return np.asarray(box(np.array(centre_nm, np.float32), np.array(size_nm, np.float32), shape))[..., 1]


def fine(inside, shape=SHAPE, parts=5):
    """Share of each voxel [y, x, z] for which inside(y, x, z) holds, in voxels."""
    y, x, z = ((np.arange(size * parts) + 0.5) / parts for size in shape)
    cells = inside(y[:, None, None], x[:, None], z).astype(np.float32)
    return cells.reshape(shape[0], parts, shape[1], parts, shape[2], parts).mean((1, 3, 5))


def only(probability, voxel_nm=1.0, threshold=0.5):
    (body,) = measure.bodies(probability, voxel_nm, threshold)
    return body


def assert_holds(estimate, truth, tolerance):
    assert estimate.value == pytest.approx(truth, abs=tolerance)
    assert estimate.low - 1e-5 <= truth <= estimate.high + 1e-5, (estimate, truth)


def assert_is_box(body, centre_nm, size_nm, tolerance):
    start, end = np.subtract(centre_nm, np.divide(size_nm, 2)), np.add(centre_nm, np.divide(size_nm, 2))
    names = (
        ("y_start_nm", "y_end_nm", "width_y_nm", "y_nm"),
        ("x_start_nm", "x_end_nm", "width_x_nm", "x_nm"),
        ("top_nm", "bottom_nm", "height_nm", "z_nm"),
    )
    for k, (first, last, length, centre) in enumerate(names):
        assert_holds(getattr(body, first), start[k], tolerance)
        assert_holds(getattr(body, last), end[k], tolerance)
        assert_holds(getattr(body, length), size_nm[k], tolerance)
        assert_holds(getattr(body, centre), centre_nm[k], 2 * tolerance + 0.05)
    assert_holds(body.volume_nm3, np.prod(size_nm), 3 * tolerance * np.prod(size_nm) / min(size_nm))
    assert_holds(body.caliper_min_nm, min(size_nm[:2]), 0.2)
    assert_holds(
        body.caliper_max_nm, math.hypot(*size_nm[:2]), 1.0
    )  # the corners of a box are blunt in voxels


@pytest.mark.parametrize("seed", range(12))
def test_box_anywhere_between_voxels_is_measured_exactly(seed):
    draw = np.random.default_rng(seed)
    size, voxel_nm = draw.uniform(2.5, 8, 3), 0.5
    centre = draw.uniform(size / 2 + 1, np.array(SHAPE) - size / 2 - 1)
    body = only(copper(centre, size), voxel_nm)
    assert_is_box(body, centre * voxel_nm, size * voxel_nm, 1e-4)
    assert body.touches == () and body.peak_probability == 1


@pytest.mark.parametrize("share", [0.01, 0.04, 0.05, 0.06, 0.3, 0.5, 0.94, 0.95, 0.96, 0.99])
def test_interval_holds_the_edge_whatever_share_of_a_voxel_it_leaves(share):
    end = 12 + share
    body = only(copper((11, 8 + (end - 8) / 2, 9), (6, end - 8, 6)))
    assert_holds(body.x_end_nm, end, 1e-4)
    assert_holds(body.width_x_nm, end - 8, 1e-4)


def test_film_thinner_than_a_voxel_has_the_thickness_that_is_likely():
    body = only(copper((11.2, 12.3, 9.5), (8, 9, 0.7)))
    assert_holds(body.height_nm, 0.7, 1e-4)
    assert_holds(body.width_x_nm, 9, 1e-4)
    assert_holds(body.width_y_nm, 8, 1e-4)
    assert body.height_nm.low == 0 and math.isnan(body.side_wall_angle_x_deg.value)


def test_upright_walls_are_at_90_degrees():
    body = only(copper((11.3, 12.4, 9.7), (8.2, 9.1, 12.6)))
    for angle in (body.side_wall_angle_x_deg, body.side_wall_angle_y_deg):
        assert_holds(angle, 90, 1e-3)
        assert angle.low < 85 and angle.high > 95


@pytest.mark.parametrize("grows", [0.2, -0.2])  # nm per nm of depth and wall
def test_walls_that_lean_have_their_angle_and_are_acute_if_wider_below(grows):
    def inside(y, x, z):
        half = 6 + grows * (z - 10)
        return (abs(x - 12.2) < half) & (abs(y - 11) < 4) & (abs(z - 10.1) < 6.5)

    body = only(fine(inside))
    assert_holds(body.side_wall_angle_x_deg, 90 - math.degrees(math.atan(grows)), 1.5)
    assert_holds(body.side_wall_angle_y_deg, 90, 1e-3)


def test_wall_that_a_side_cuts_does_not_count_for_the_angle():
    def inside(y, x, z):
        return (x < 8 + 0.3 * z) & (abs(y - 11) < 4) & (abs(z - 10) < 6)

    body = only(fine(inside))
    assert body.touches == ("-x",)
    assert_holds(body.side_wall_angle_x_deg, 90 - math.degrees(math.atan(0.3)), 1.5)


@pytest.mark.parametrize("radius", [3.0, 4.3, 6.6])
def test_upright_cylinder(radius):
    body = only(
        fine(lambda y, x, z: ((y - 10.7) ** 2 + (x - 12.3) ** 2 < radius**2) & (abs(z - 9.4) < 6)),
        threshold=0.5,
    )
    for diameter in (body.caliper_min_nm, body.caliper_max_nm, body.width_x_nm, body.width_y_nm):
        assert_holds(diameter, 2 * radius, 0.45)
    assert_holds(body.volume_nm3, np.pi * radius**2 * 12, 0.01 * np.pi * radius**2 * 12)
    assert_holds(body.x_nm, 12.3, 0.02)
    assert_holds(body.y_nm, 10.7, 0.02)
    assert_holds(body.top_nm, 3.4, 1e-3)
    assert_holds(body.bottom_nm, 15.4, 1e-3)
    assert_holds(body.side_wall_angle_x_deg, 90, 0.1)


def test_calipers_of_a_turned_box_are_its_own_edges():
    c, s = math.cos(0.5), math.sin(0.5)

    def inside(y, x, z):
        return (
            (abs(c * (x - 12) + s * (y - 11)) < 8) & (abs(c * (y - 11) - s * (x - 12)) < 3) & (abs(z - 9) < 4)
        )

    body = only(fine(inside))
    assert_holds(body.caliper_min_nm, 6, 0.2)
    assert_holds(body.caliper_max_nm, math.hypot(16, 6), 0.8)


@pytest.mark.parametrize("blur", [0.7, 2.0])
def test_edges_that_are_unsure_are_found_where_they_are_likeliest_with_wider_intervals(blur):
    edges = {"y": (5.2, 16.1), "x": (6.4, 18.3), "z": (4.8, 14.6)}

    def soft(size, start, end):
        at = np.arange(size) + 0.5
        return 1 / (1 + np.exp(-(at - start) / blur * 4)) / (1 + np.exp((at - end) / blur * 4))

    y, x, z = (soft(size, *edges[name]) for name, size in zip("yxz", SHAPE, strict=True))
    body = only(y[:, None, None] * x[:, None] * z)
    for estimate, truth in zip(
        (body.y_start_nm, body.y_end_nm, body.x_start_nm, body.x_end_nm, body.top_nm, body.bottom_nm),
        (*edges["y"], *edges["x"], *edges["z"]),
        strict=True,
    ):
        assert_holds(estimate, truth, 0.1)
        assert estimate.high - estimate.low > 1.3 * blur


def test_haze_far_from_a_body_does_not_count():
    clean = copper((11, 12, 9), (6, 7, 5))
    hazy = np.maximum(clean, 0.04)
    hazy[2:4, 2:4, 2:4] = 0.4  # no body of its own
    assert_is_box(only(clean), (11, 12, 9), (6, 7, 5), 1e-4)
    body = only(hazy)
    assert_holds(body.width_x_nm, 7, 0.1)
    assert_holds(body.volume_nm3, 210, 0.04 * (8 * 10 * 8 - 210))


def test_doubt_of_a_whole_body_changes_its_volume_not_its_lengths():
    sure = copper((11.2, 12, 9), (6, 7, 5))
    body = only(0.7 * sure)
    assert body.peak_probability == pytest.approx(0.7)
    assert_holds(body.volume_nm3, 0.7 * 210, 1e-3)
    assert body.volume_nm3.low == 0
    for length in ("width_x_nm", "width_y_nm", "height_nm", "caliper_min_nm", "x_nm", "top_nm"):
        np.testing.assert_allclose(getattr(body, length), getattr(only(sure), length), atol=0.1)


def test_sides_that_a_body_reaches_are_told():
    assert only(copper((3, 12, 3), (6, 5, 6))).touches == ("-y", "-z")
    body = only(copper((19.2, 21.1, 15), (5.6, 5.8, 10)))
    assert body.touches == ("+x", "+y", "+z")
    assert_is_box(body, (19.2, 21.1, 15), (5.6, 5.8, 10), 1e-4)
    assert body.bottom_nm.high == 20


def test_bodies_one_above_the_other_have_an_offset():
    upper, lower = ((10.2, 12.1, 4), (6, 7, 4.4)), ((11.5, 11.6, 13.1), (8, 9, 6))
    beside = ((10, 22, 13), (3, 2.5, 3))
    found = measure.bodies(sum(copper(*of) for of in (upper, lower, beside)), 2.0)
    assert len(found) == 3
    (pair,) = measure.overlays(found)
    assert_holds(found[pair.upper].top_nm, 2 * 1.8, 1e-3)
    assert_holds(pair.x_nm, 2 * 0.5, 0.1)
    assert_holds(pair.y_nm, 2 * -1.3, 0.1)
    assert_holds(pair.gap_nm, 2 * 3.9, 1e-3)


def test_bodies_that_share_a_soft_edge_are_measured_apart():
    """Of the voxels between, each belongs to the nearer body."""
    found = measure.bodies(copper((11, 7, 9), (6, 6.4, 6)) + copper((11, 14.9, 9), (6, 7.2, 6)), 1.0)
    right, left = found
    assert_holds(left.x_end_nm, 10.2, 1e-3)
    assert_holds(right.x_start_nm, 11.3, 1e-3)
    assert_holds(left.volume_nm3, 6 * 6.4 * 6, 1e-2)


def test_bodies_that_touch_at_an_edge_only_are_two():
    probability = np.zeros((8, 8, 8))
    probability[1:4, 1:4, 2:6] = probability[4:7, 4:7, 2:6] = 1
    assert [body.volume_nm3.value for body in measure.bodies(probability, 1.0)] == [36, 36]


def test_every_value_lies_in_its_interval_for_any_probabilities():
    noise = np.random.default_rng(0).random((10, 11, 9)) ** 3
    found = measure.bodies(noise, 1.0)
    assert len(found) > 10
    assert found == sorted(found, key=lambda body: -body.volume_nm3.value)
    for body in found:
        for name, value in dataclasses.asdict(body).items():
            if isinstance(value, tuple) and name != "touches" and not math.isnan(value[0]):
                assert value[1] <= value[0] <= value[2], (name, value)


def test_volume_without_cu_has_no_bodies_but_files(tmp_path):
    assert measure.bodies(np.zeros((3, 4, 5)), 1.0) == []
    measure.write_csv(tmp_path / "new" / "bodies.csv", [])
    measure.write_json(tmp_path / "bodies.json", [], {})
    assert len((tmp_path / "new" / "bodies.csv").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "bodies.json").read_text())["bodies"] == []


def test_files_hold_what_was_measured(tmp_path):
    stacked = copper((10, 12, 4), (6, 7, 4.4)) + copper((11.5, 11.6, 19.6), (8, 9, 1.8))
    found = measure.bodies(stacked, 1.0)
    measure.write_csv(tmp_path / "bodies.csv", found)
    measure.write_json(tmp_path / "bodies.json", found, {"version": "1"})
    with open(tmp_path / "bodies.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    told = json.loads((tmp_path / "bodies.json").read_text())
    assert told["about"] == {"version": "1"} and "not calibrated" in told["interval"]
    assert [row["touches"] for row in rows] == ["", "+z"]
    assert rows[1]["side_wall_angle_x_deg"] == "" and told["bodies"][1]["side_wall_angle_x_deg"] is None
    for body, row, record in zip(found, rows, told["bodies"], strict=True):
        assert record["width_x_nm"] == body.width_x_nm._asdict()
        read = [float(row[f"width_x_nm{end}"]) for end in ("", "_low", "_high")]
        assert tuple(read) == body.width_x_nm
    assert told["overlays"][0]["gap_nm"]["value"] == measure.overlays(found)[0].gap_nm.value


def test_full_disk_leaves_the_old_files(tmp_path, smallest_files):
    found = measure.bodies(copper((11, 12, 9), (6, 7, 5)), 1.0)
    measure.write_csv(tmp_path / "bodies.csv", [])
    before = (tmp_path / "bodies.csv").read_bytes()
    for write in (measure.write_csv, lambda path, bodies: measure.write_json(path, bodies, {})):
        with smallest_files(400), pytest.raises(OSError, match="files must be writable") as error:
            write(tmp_path / "bodies.csv", found)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bodies.csv"]
    assert (tmp_path / "bodies.csv").read_bytes() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros((2, 2)), 1.0), r"must be numbers \[y, x, z\]"),
        ((np.full((2, 2, 2), -0.1), 1.0), "must be from 0 to 1; got -0.1"),
        ((np.zeros((2, 2, 2)), math.nan), "voxel_nm must be positive; got nan"),
        ((np.zeros((2, 2, 2)), 1.0, 0.99), "threshold must be from 0.05 to 0.95; got 0.99"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        measure.bodies(*arguments)
    assert "\n" not in str(error.value)
