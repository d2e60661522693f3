import base64
import contextlib
import dataclasses
import json
import re
import zlib

import chromium
import numpy as np
import pytest
from chromium import assert_quiet, cameras, wait_for
from scipy import ndimage
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import Select

from bsevox_jax import measure, volume_page
from bsevox_jax.check import Check

SHAPE, VOXEL_NM, ENERGIES_KEV = (48, 64, 20), 1.0, (0.5, 1.0, 2.0, 4.0)
BOXES = (slice(6, 18), slice(8, 26), slice(2, 9)), (slice(26, 40), slice(30, 56), slice(6, 15))
HOSTILE = "</title><script>alert('{{plotly}}')</script> & line.tif"


def copper(shape=SHAPE):
    """Boxes with soft edges, [y, x, z]."""
    probability = np.zeros(shape, np.float32)
    for box in BOXES:
        probability[box] = 1
    return ndimage.gaussian_filter(probability, 0.6)


def images(probability, seed):
    bright = 0.2 + 0.3 * probability.mean(2)[..., None] * np.linspace(1, 0.5, len(ENERGIES_KEV))
    return np.random.default_rng(seed).poisson(bright * 500) / 500


def check(probability, **changes):
    flagged = np.zeros(probability.shape[:2], bool)
    flagged[:6, :8] = True
    count = len(ENERGIES_KEV)
    made = Check(
        expected=images(probability, 1),
        scatter=np.ones((*probability.shape[:2], count)),
        probe_fwhm_nm=0.0,
        gain=np.ones(count),
        offset=np.zeros(count),
        noise=np.ones((1, 1, count)),
        chi2_map=np.random.default_rng(2).chisquare(count, probability.shape[:2]) / count,
        chi2_by_energy=np.full(count, 1.1),
        chi2=1.1,
        features=np.zeros((1, 2 * count + 1)),
        flagged=flagged,
        explains=True,
        in_range=True,
    )
    return dataclasses.replace(made, **changes)


def given(**changes):
    """What `write` takes."""
    probability = changes.get("probability", copper())
    return {
        "title": HOSTILE,
        "yields": images(probability, 0),
        "beam_energies_kev": ENERGIES_KEV,
        "probability": probability,
        "voxel_nm": VOXEL_NM,
        "threshold": 0.5,
        "bodies": measure.bodies(probability, VOXEL_NM),
        "check": check(probability),
        "registration": ["1 keV moved by <1 nm"],
        "about": {"checkpoint": "compact & small", "energies_kev": [0.5, 1.0]},
        "assumptions": ["no <drift>"],
    } | changes


def written(tmp_path, **changes):
    volume_page.write(str(tmp_path / "report.html"), **given(**changes))
    return (tmp_path / "report.html").read_text()


def embedded(text):
    """What the page holds for its script, and the page without that and without plotly."""
    rest = re.sub(r"<script>/\*\*.*?</script>", "", text, count=1, flags=re.S)
    (line,) = re.findall(r"^const PAGE = (.*);$", rest, flags=re.M)
    return json.loads(line), rest.replace(line, "")


def array(text, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)


def test_page_needs_nothing_else_and_escapes_what_it_is_given(tmp_path):
    held, rest = embedded(written(tmp_path))
    assert len(rest) < 200_000, "plotly was not taken out"
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|@import|cdn|<link rel=.?style", rest)
    assert set(re.findall(r'(?:src|href)="([^",]*)', rest)) == {"data:"}
    assert "alert(" in rest and "<script>alert" not in rest and "&lt;script&gt;alert" in rest
    for text in (
        "moved by &lt;1 nm",
        "no &lt;drift&gt;",
        "compact &amp; small",
        "chi^2 per degree of freedom",
    ):
        assert text in rest
    assert len(held["bodies"]) == rest.count("<tr data-body=") == 2


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_probability_comes_back_and_no_voxel_crosses_the_threshold(tmp_path, threshold):
    probability = copper()
    probability[0, 0, :3] = threshold, np.nextafter(np.float32(threshold), np.float32(1)), 1
    held, _ = embedded(written(tmp_path, probability=probability, threshold=threshold))
    codes = np.moveaxis(array(held["probability"], (SHAPE[2], *SHAPE[:2])), 0, -1).astype(float)
    above = threshold + (codes - 128) / 127 * (1 - threshold)
    decoded = np.where(codes > 127, above, codes / 127 * threshold)
    np.testing.assert_allclose(decoded, probability, atol=1 / 254)
    np.testing.assert_array_equal(codes > 127, probability > threshold)


def test_images_come_back_between_black_and_white(tmp_path):
    known = given()
    held, _ = embedded(written(tmp_path))
    about = held["images"]
    black, white = (np.array(about[end])[:, None, None] for end in ("black", "white"))
    for name, stack in (("measured", known["yields"]), ("expected", known["check"].expected)):
        grey = array(about[name], (len(ENERGIES_KEV), *SHAPE[:2]))
        shown = np.clip(np.moveaxis(stack, -1, 0), black, white)
        np.testing.assert_allclose(black + grey / 255 * (white - black), shown, atol=2e-3)
    np.testing.assert_allclose(about["mean"], known["yields"].mean((0, 1)), rtol=1e-5)


def test_large_stacks_are_binned(tmp_path, monkeypatch):
    monkeypatch.setattr(volume_page, "MOST_IMAGE_BYTES", 2000)
    probability = copper()[:47]
    held, _ = embedded(written(tmp_path, probability=probability, yields=np.ones((47, 64, 4)), check=None))
    assert held["images"]["bin"] == 4 and held["images"]["shape"] == [12, 16]
    assert array(held["images"]["measured"], (4, 12, 16)).max() == 0, "neither too bright nor padded"


def test_a_field_of_an_instrument_fits_into_a_mail(tmp_path):
    random = np.random.default_rng(0)
    probability = np.clip(random.normal(0.5, 0.4, (256, 256, 20)), 0, 1).astype(np.float32)
    yields = random.poisson(300, (256, 256, 20)) / 1000
    flagged, expected = yields[..., 0] > 0.3, yields[..., ::-1]
    made = check(
        probability, chi2_map=yields[..., 0], chi2_by_energy=np.ones(20), expected=expected, flagged=flagged
    )
    changes = {"yields": yields, "beam_energies_kev": np.linspace(0.5, 10, 20), "check": made}
    path = tmp_path / "report.html"
    volume_page.write(str(path), **given() | changes | {"probability": probability})
    assert path.stat().st_size < 15e6


@pytest.mark.parametrize(
    "changes, colour, words",
    [
        ({}, "green", "in the range of the network, and the reconstruction explains them"),
        ({"in_range": False}, "amber", "outside of the range of the network"),
        ({"in_range": None}, "amber", "not compared with the range of the network"),
        ({"explains": False}, "red", "does not explain them (reduced chi-square 1.10)"),
        ({"explains": True, "chi2": 9.0}, "green", "explains them (reduced chi-square 9.00)"),
    ],
)
def test_verdict_follows_the_check(tmp_path, changes, colour, words):
    text = written(tmp_path, check=check(copper(), **changes))
    (found,) = re.findall(r'<p class="verdict (\w+)" id="verdict">(.*)</p>', text)
    assert found[0] == colour and words in found[1] and "2 bodies of copper" in found[1]


def test_bodies_that_may_not_be_there_are_told_apart(tmp_path):
    probability = copper()
    probability[BOXES[1]] *= 0.7
    text = written(tmp_path, probability=probability, bodies=measure.bodies(probability, VOXEL_NM))
    assert "2 bodies of copper, 1 of them doubtful" in text
    assert re.findall(r"<tr data-body=\d+ class=(\w+)", text) == ["doubtful", "sure"]


def test_without_a_check_the_page_says_so(tmp_path):
    text = written(tmp_path, check=None, bodies=[])
    assert '<p class="verdict amber" id="verdict">Not checked against the images; no bodies' in text
    assert embedded(text)[0]["check"] is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"yields": np.zeros((48, 64, 3))}, r"yields must be \[y, x, e\] .*; got \(48, 64, 3\). Give"),
        ({"yields": np.full((48, 64, 4), np.nan)}, "yields must be finite; got 12288 that are not. Repair"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1; got 1.0"),
        ({"check": check(copper()[:9])}, r"check must be of images \(48, 64, 4\); got \(9, 64, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        written(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def pixels(browser, canvas):
    """Bytes of a picture as it is painted."""
    script = "const c = document.querySelector(`#${arguments[0]} canvas`);"
    script += "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    return browser.execute_script(script, canvas)


def slide(browser, name, place):
    script = "const it = document.getElementById(arguments[0]); it.value = arguments[1];"
    browser.execute_script(script + "it.dispatchEvent(new Event('input'))", name, place)


def bring(browser, found):
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", found)
    return found


@contextlib.contextmanager
def opened(tmp_path, **changes):
    """Chromium with the page open and drawn."""
    written(tmp_path, **changes)
    with chromium.opened(tmp_path / "report.html") as browser:
        ready = "return document.body.dataset.ready === 'yes'"
        wait_for(browser, lambda: browser.execute_script(ready), "the page")
        yield browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("page")) as shown:
        yield shown


@pytest.mark.slow
def test_page_opens_alone_and_fits_into_the_window(browser):
    assert browser.execute_script("return performance.getEntriesByType('resource')") == []
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0
    assert HOSTILE in browser.title and HOSTILE in browser.find_element("tag name", "h1").text
    for figure in ("by_depth", "by_energy", "histogram", "chi2_by_energy"):
        assert browser.find_element("id", figure).find_elements("css selector", ".point, .js-line")
    assert_quiet(browser)


@pytest.mark.slow
def test_sliders_change_slice_and_images(browser):
    for name, place, shown, pictures in (
        ("depth", 3, "3.5 nm", ["slice"]),
        ("energy", 2, "2 keV", ["image", "measured", "expected", "difference"]),
    ):
        before = [pixels(browser, picture) for picture in pictures]
        slide(browser, name, place)
        assert browser.find_element("id", f"{name}_shown").text == shown
        after = [pixels(browser, picture) for picture in pictures]
        assert all(old != new for old, new in zip(before, after, strict=True))
    assert_quiet(browser)


@pytest.mark.slow
def test_click_on_a_picture_cuts_there(browser):
    before, picture = pixels(browser, "section_y"), bring(browser, browser.find_element("id", "slice"))
    offsets = (
        (20.5 / SHAPE[1] - 0.5) * picture.size["width"],
        (22.5 / SHAPE[0] - 0.5) * picture.size["height"],
    )
    ActionChains(browser).move_to_element_with_offset(picture, *map(round, offsets)).click().perform()
    assert browser.find_element("id", "pixel_shown").text == "x 20.5 nm, y 22.5 nm"
    assert pixels(browser, "section_y") != before
    assert_quiet(browser)


@pytest.mark.slow
def test_click_on_a_body_marks_it(browser):
    box = browser.find_element("css selector", "#slice .box")
    row = bring(browser, browser.find_elements("css selector", "tr[data-body]")[1])
    row.click()
    assert box.get_attribute("visibility") == "visible"
    marked = [float(box.get_attribute(name)) for name in ("x", "y", "width", "height")]
    np.testing.assert_allclose(marked, [8, 6, 18, 12], atol=1)
    row.click()
    assert box.get_attribute("visibility") == "hidden"
    over = bring(browser, browser.find_element("id", "above"))
    offsets = (43.5 / SHAPE[1] - 0.5) * over.size["width"], (32.5 / SHAPE[0] - 0.5) * over.size["height"]
    ActionChains(browser).move_to_element_with_offset(over, *map(round, offsets)).click().perform()
    assert box.get_attribute("visibility") == "visible" and float(box.get_attribute("x")) > 26
    assert_quiet(browser)


@pytest.mark.slow
def test_volume_turns(browser):
    def turned():
        return np.abs(np.subtract(cameras(browser, ["scene"])[0], before)).max() > 0.1

    (before,), scene = cameras(browser, ["scene"]), bring(browser, browser.find_element("id", "scene"))
    hand = ActionChains(browser).click_and_hold(scene)
    hand.move_by_offset(50, 20).move_by_offset(20, 5).release().perform()
    wait_for(browser, turned, "the volume to turn")
    Select(browser.find_element("id", "stretch")).select_by_value("4")
    slide(browser, "depth", 5)
    assert turned(), "it stays turned"
    assert_quiet(browser)


@pytest.mark.slow
def test_surface_is_that_of_the_volume_or_said_to_be_reduced(tmp_path):
    with opened(tmp_path, check=None) as browser:
        assert "not simulated anew" in browser.find_element("id", "check").text
        assert browser.find_element("id", "reduced").text == ""
        kinds = np.array(browser.execute_script("return Array.from(cubes(1).kinds)")).reshape(SHAPE)
        np.testing.assert_array_equal(kinds > 0, copper() > 0.5)
        exact = browser.execute_script("return copperMesh().i.length / 2")
        reduced = browser.execute_script("return copperMesh(arguments[0]).i.length / 2", exact - 1)
        assert 0 < reduced < exact
        assert "cubes of 2 nm" in browser.find_element("id", "reduced").text
        assert_quiet(browser)
