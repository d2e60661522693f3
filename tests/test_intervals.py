import numpy as np
import pytest

from bsevox_jax import intervals, measure


def block(y, x, top, bottom, edge=0.0, size=(40, 40, 20)):
    """Probability of a box with faces that are soft by `edge` voxels along z."""
    volume, z, soft = np.zeros(size, np.float32), np.arange(size[2]) + 0.5, max(edge, 1e-3)
    profile = np.clip((z - top) / soft + 0.5, 0, 1) * np.clip((bottom - z) / soft + 0.5, 0, 1)
    volume[y : y + 8, x : x + 8] = profile
    return volume


@pytest.fixture(scope="module")
def pairs():
    """Of true boxes, and boxes found at another depth whose edges say too little of it."""
    rng, found = np.random.default_rng(0), []
    for _ in range(80):
        top, bottom = rng.integers(3, 7), rng.integers(11, 16)
        off = rng.normal(0, 1.2, 2)
        true = measure.bodies(block(10, 12, top, bottom), 1.0)
        seen = measure.bodies(block(10, 12, top + off[0], bottom + off[1], edge=1.0), 1.0)
        found += intervals.matched(true, seen)
    return found


def test_margins_make_intervals_hold_nine_of_ten(pairs):
    half = pairs[::2], pairs[1::2]
    assert intervals.coverage(pairs)["bottom"][0] < 0.7
    margins = intervals.margins(half[0])
    ours, others = ([(true, intervals.widened(found, margins)) for true, found in of] for of in half)
    for kind in ("top", "bottom", "height", "volume"):
        share, number = intervals.coverage(others)[kind]
        assert number == 40 and abs(share - intervals.COVERED) < 3 * np.sqrt(2 * 0.9 * 0.1 / number)
        assert intervals.coverage(ours)[kind][0] >= intervals.COVERED


def test_intervals_too_wide_shrink_but_keep_the_value(pairs):
    body = pairs[0][1]
    narrow = intervals.widened(body, {"top": -100.0})
    assert narrow.top_nm == (body.top_nm.value,) * 3 and narrow.bottom_nm == body.bottom_nm
    wider = intervals.widened(body, {"volume": 0.5}).volume_nm3
    assert wider.high - body.volume_nm3.high == pytest.approx(0.5 * body.volume_nm3.value)


def test_what_a_side_cuts_is_not_compared():
    cut = measure.bodies(block(0, 12, 0, 9), 1.0)
    held = intervals.coverage(intervals.matched(cut, cut))
    assert set(held) == {"bottom", "ends", "widths", "lateral centroid", "wall angles"}
    assert held["ends"][1] == 3 and held["widths"][1] == 1


def test_bodies_elsewhere_are_no_match():
    here, there = (measure.bodies(block(y, 12, 4, 12), 1.0) for y in (2, 28))
    assert intervals.matched(here, there) == []
    both = measure.bodies(np.maximum(block(2, 12, 4, 12), block(28, 12, 4, 12)), 1.0)
    assert len(intervals.matched(here, both)) == 1


def test_few_values_give_no_margin(pairs):
    assert intervals.margins(pairs[:5]) == {}
