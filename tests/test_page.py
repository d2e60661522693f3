import base64
import io
import json
import re

import chromium
import matplotlib.image
import numpy as np
import pytest
from chromium import assert_quiet, cameras, wait_for
from matplotlib.colors import to_rgb
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import Select

from bsevox_jax import page, report

SHAPE, ENERGIES, DOSE = (5, 6, 4), 3, 123
THRESHOLDS = {"a <network>": 0.6, "a classical one": 0.5}
SCENES = ("scene_truth", "scene_found", "scene_error")
CURVES = ("by_family", "by_depth", "time", "nanocube", "nanowire", "nanowire_lying", "out_of_family")


def specimen(title, group, seed):
    random = np.random.default_rng(seed)
    truth = np.ones(SHAPE, np.uint8)
    truth[1:4, 2:5, 1:3] = 2
    truth[0, 0, 0] = 0
    probability = {m: random.uniform(size=SHAPE).astype(np.float32) for m in THRESHOLDS}
    return page.Specimen(title, group, random.uniform(size=(*SHAPE[:2], ENERGIES)), truth, probability)


def method(threshold):
    names = {"nanocube": "12", "nanowire": "24", "nanowire_lying": "24"}
    return {
        "about": "Guesses (nobody 2024).",
        "threshold": threshold,
        "seconds_per_volume": 0.25 if threshold > 0.5 else None,
        "iou": 0.7,
        "standard_error": 0.01,
        "iou_oracle": 0.75,
        "by_family": {"box": 0.6, "sphere": 0.8},
        "by_depth": [0.9, 0.8, 0.7, 0.6],
        "out_of_family": {"torus": 0.4},
    } | {series: {n: {"fixed": 0.5, "oracle": 0.6} for n in members} for series, members in names.items()}


def results():
    curves = {"epoch": [1, 2], "loss": [0.5, 0.4], "validation_epoch": [2], "iou_cu_mean": [0.3]}
    return {
        "circumstances": {"data_set": "guesses", "test_specimens": 2, "electrons_per_pixel": DOSE},
        "methods": {name: method(threshold) for name, threshold in THRESHOLDS.items()},
        "paper": {"nanocube": {"MED-SEM": {"1": 0.06, "2": 0.165}}, "nanowire": {}},
        "tables": [
            {"title": "First", "note": "A note.", "header": ["method", "IoU"], "rows": [["a & b", 0.12345]]},
            {"title": "Second", "note": "", "header": ["method", "s"], "rows": [["c", None], ["d", 7.0]]},
        ],
        "training": {"a <network>": curves},
    }


def specimens():
    return [specimen("cube", "nanocube", 0), specimen("another", "test", 1)]


def found_by(name, specimen):
    return specimen.truth == 2 if name == "truth" else specimen.probability[name] > THRESHOLDS[name]


def iou(name, specimen):
    true, found = specimen.truth == 2, found_by(name, specimen)
    return (true & found).sum() / (true | found).sum()


def embedded(text):
    """What the page holds for its script, and the page without that and without plotly."""
    rest = re.sub(r"<script>/\*\*.*?</script>", "", text, count=1, flags=re.S)
    (line,) = re.findall(r"^const PAGE = (.*);$", rest, flags=re.M)
    return json.loads(line), rest


def array(text, shape):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def test_page_needs_nothing_else_and_holds_every_table_and_the_dose(tmp_path):
    path = tmp_path / "new" / "page.html"
    page.write(str(path), results(), specimens())
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    _, rest = embedded(path.read_text())
    assert len(rest) < 500_000, "plotly was not taken out"
    assert "http" not in rest and "@import" not in rest and "cdn" not in rest
    assert set(re.findall(r'(?:src|href)="([^",]*)', rest)) == {"data:", "data:image/png;base64"}
    for text in (f"<b>{DOSE} electrons per pixel", "First", "A note.", "<td>a &amp; b</td>", "Second"):
        assert text in rest
    assert "<td class=number>0.123</td>" in rest and "<td class=number></td>" in rest and "7.000" in rest
    assert rest.count("<img ") == 2 * (1 + len(THRESHOLDS)) and "{{" not in rest


def test_volumes_come_back_and_none_crosses_its_threshold(tmp_path):
    given = specimens()
    given[0].probability["a <network>"][0, 0, :3] = 0.6, np.nextafter(np.float32(0.6), np.float32(1)), 1
    page.write(str(tmp_path / "page.html"), results(), given)
    held, rest = embedded((tmp_path / "page.html").read_text())
    for written, read in zip(given, held["specimens"], strict=True):
        np.testing.assert_array_equal(array(read["truth"], SHAPE), written.truth)
        images = array(read["images"], (*SHAPE[:2], ENERGIES)).astype(float)
        low, scale = written.yields.min((0, 1)), np.ptp(written.yields, axis=(0, 1))
        np.testing.assert_allclose(low + images / 255 * scale, written.yields, atol=2e-3)
        for name, threshold in THRESHOLDS.items():
            codes = array(read["codes"][name], SHAPE).astype(float)
            above = threshold + (codes - 128) / 127 * (1 - threshold)
            decoded = np.where(codes > 127, above, codes / 127 * threshold)
            np.testing.assert_allclose(decoded, written.probability[name], atol=0.5 / 127)
            np.testing.assert_array_equal(codes > 127, found_by(name, written))
            assert read["iou"][name] == pytest.approx(iou(name, written))
            assert f"IoU {iou(name, written):.3f}" in rest


def test_threshold_must_leave_something_on_both_sides(tmp_path):
    wrong = results()
    wrong["methods"]["a <network>"]["threshold"] = 1.0
    with pytest.raises(ValueError, match="must lie between 0 and 1; got 1.0 of a <network>. Fix it"):
        page.write(str(tmp_path / "page.html"), wrong, specimens())


def altered(**fields):
    return lambda s: [page.Specimen(**(vars(s) | fields))]


def probability_of(value):
    return altered(probability={m: value for m in THRESHOLDS})


@pytest.mark.parametrize(
    "alter, message",
    [
        (altered(probability={}), "must have the methods of the results; got a <network>, a classical one"),
        (probability_of(np.zeros((5, 6, 3))), r"shape of the truth, \(5, 6, 4\); got \(5, 6, 3\) of a <net"),
        (probability_of(np.full(SHAPE, 1.5)), r"must lie in \[0, 1\]; got 1.5 to 1.5"),
        (probability_of(np.full(SHAPE, np.nan)), r"must lie in \[0, 1\]; got nan"),
        (altered(yields=np.zeros((6, 5, 3))), r"of the same pixels; got \(6, 5, 3\) and \(5, 6, 4\), cube"),
        (altered(group="cubes"), "a group must be one of nanocube, .*; got cubes of cube"),
    ],
)
def test_specimens_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, alter, message):
    with pytest.raises(ValueError, match=message):
        page.write(str(tmp_path / "page.html"), results(), alter(specimens()[0]))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with the page open."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    page.write(str(path), results(), specimens())
    with chromium.opened(path) as opened:
        wait_for(opened, lambda: cameras(opened, SCENES), "the three scenes")
        yield opened


def share(browser, scene, colour):
    """Of the pixels of a scene that have the colour."""
    file = io.BytesIO(browser.find_element("id", scene).screenshot_as_png)
    pixels = matplotlib.image.imread(file)[..., :3]
    return (np.abs(pixels - to_rgb(colour)).max(-1) < 0.02).mean()


def errors_shown(browser):
    """Whether copper where there is none can be seen; guesses put some at every surface."""
    return share(browser, "scene_error", report.EXTRA) > 0.002


@pytest.mark.slow
def test_browser_draws_everything_that_can_be_chosen(browser):
    assert browser.execute_script("return performance.getEntriesByType('resource')") == []
    width = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(width) == 0
    for figure in (*CURVES, "loss", "validation"):
        assert browser.find_element("id", figure).find_elements("css selector", ".points path, .js-line")
    Select(browser.find_element("id", "protocol")).select_by_value("oracle")
    assert "MED-SEM, the paper" in browser.find_element("id", "nanocube").text
    specimen_choice, method_choice = (Select(browser.find_element("id", n)) for n in ("specimen", "method"))
    assert [option.text for option in specimen_choice.options] == ["cube", "another"]
    assert [option.text for option in method_choice.options] == [*THRESHOLDS, "truth"]
    for k, specimen in enumerate(specimens()):
        specimen_choice.select_by_index(k)
        for name in (*THRESHOLDS, "truth"):
            method_choice.select_by_visible_text(name)
            assert browser.find_element("id", "verdict").text == f"IoU {iou(name, specimen):.3f}"
            assert browser.find_element("id", "found_title").text == name
            wait_for(browser, lambda wrong=name != "truth": errors_shown(browser) == wrong, name)
            assert share(browser, "scene_found", report.COPPER) > 0.002
    assert share(browser, "scene_truth", report.COPPER) > 0.002
    assert len(browser.find_elements("css selector", "#slices canvas")) == ENERGIES + 3 * SHAPE[2]
    assert_quiet(browser)


def test_scenes_turn_together_and_stay_turned(browser):
    def turned():
        return np.abs(np.array(cameras(browser, SCENES)) - before).max(1).min() > 0.1 and together()

    def together():
        return np.ptp(cameras(browser, SCENES), axis=0).max() < 1e-6

    scene, before = browser.find_element("id", "scene_found"), cameras(browser, SCENES)
    assert together()
    browser.execute_script("arguments[0].scrollIntoView()", browser.find_element("id", "volumes"))
    hand = ActionChains(browser).click_and_hold(scene)
    hand.move_by_offset(50, 20).move_by_offset(20, 5).release().perform()
    wait_for(browser, turned, "all scenes turned")
    specimen = Select(browser.find_element("id", "specimen"))
    specimen.select_by_index(1 - specimen.options.index(specimen.first_selected_option))
    assert turned()
    assert_quiet(browser)


def test_faces_are_those_between_something_and_nothing(browser):
    kinds = np.zeros(SHAPE, int)
    kinds[2, 5, 1:3] = 1, 2
    mesh = browser.execute_script(
        "return faces(arguments[0], arguments[1], ['#ff0000', '#00ff00'])", kinds.ravel().tolist(), SHAPE
    )
    assert len(mesh["x"]) == 4 * 10 and len(mesh["i"]) == len(mesh["facecolor"]) == 2 * 10
    assert {c: [min(mesh[c]), max(mesh[c])] for c in "yxz"} == {"y": [2, 3], "x": [5, 6], "z": [1, 3]}
    assert mesh["facecolor"].count("rgb(255,0,0)") == 2, "the top of the upper voxel is brightest"
    assert mesh["facecolor"].count("rgb(0,255,0)") == 2


def test_without_training_its_section_is_left_out(browser):
    assert browser.find_elements("id", "training")
    browser.execute_script("PAGE.training = {}; plotTraining()")
    assert not browser.find_elements("id", "training")
