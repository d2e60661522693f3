import dataclasses
import json

import numpy as np
import pytest

from bsevox_jax import compare, data, examples, methods
from bsevox_jax.sim import phantoms
from configs import paper_tables

METHODS = ("extrusion", "mean")


def few(split, number):
    families = None if split.families is None else split.families[:number]
    kept = {"counts": split.counts[:number], "labels": split.labels[:number], "families": families}
    return dataclasses.replace(split, **kept)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few specimens of the standard sets."""
    folder = tmp_path_factory.mktemp("sets")
    test = data.load("data", "standard-test")
    examples.save_npz(str(folder / "test.npz"), test | {"test": few(test["test"], 6)})
    for name, split, number in (("train", "train", 40), ("validation", "validation", 4)):
        splits = data.load("data", f"standard-{name}")
        examples.save_npz(str(folder / f"{name}.npz"), {split: few(splits[split], number)})
    return folder


@pytest.fixture(scope="module")
def config(folder):
    config = paper_tables.get_config()
    config.data.data_dir = str(folder)
    config.data.config, config.data.held_out, config.data.test_config = (
        "train.npz",
        "validation.npz",
        "test.npz",
    )
    config.compare.methods = METHODS
    config.compare.sizes = {}
    config.compare.ablation = ""
    return config


@pytest.fixture(scope="module")
def compared(config, folder):
    return compare.compare(config, str(folder / "run"))


@pytest.mark.slow
def test_tables_page_and_numbers_are_written_and_agree(compared, folder):
    assert json.loads((folder / "run" / "tables.json").read_text()) == compared
    text, page = ((folder / "run" / name).read_text() for name in ("tables.md", "report.html"))
    for found in compared["methods"].values():
        assert f"{found['iou']:.3f}" in text and f"{found['iou']:.3f}" in page
        assert found["iou_oracle"] <= 1 and 0 < found["threshold"] < 1
    assert "1,000 electrons per pixel" in text and "MED-SEM as reported in the paper" in text
    assert len(compared["methods"]) == len(METHODS) + 1  # the network


@pytest.mark.slow
def test_network_is_ahead_of_what_sees_no_depth(compared):
    iou = {title: found["iou"] for title, found in compared["methods"].items()}
    assert iou["our network"] > 0.7 > iou["extruded mask"] > iou["mean volume"]


@pytest.mark.slow
def test_what_is_there_is_not_made_again(compared, config, folder, monkeypatch):
    def refused(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(methods, "seconds_per_call", refused)
    monkeypatch.setattr(compare.page, "write", lambda *_: None)  # takes seconds
    assert compare.compare(config, str(folder / "run")) == compared


@pytest.mark.slow
def test_a_stopped_method_goes_on_where_it_was(config, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "SAVE_EVERY_S", -1)
    material = compare.material_of(config)
    total = sum(len(material.splits[split]) for split in methods.SPLITS)
    calls = []

    def method(last):
        def reconstruct(counts):
            calls.append(len(counts))
            if len(calls) > last:
                raise KeyboardInterrupt
            return counts[..., :1].repeat(20, axis=-1) / 1e4

        return methods.Method("half", "", 8, lambda: reconstruct, {})

    path = str(tmp_path / "half.npz")
    with pytest.raises(KeyboardInterrupt):
        methods.volumes(path, "settings", method(last=1 + methods.TIMED + 2), material.splits)
    calls.clear()
    found, _ = methods.volumes(path, "settings", method(last=99), material.splits)
    assert len(calls) == -(-(total - 16) // 8)
    counts = np.concatenate([material.splits[split].counts for split in methods.SPLITS])
    expected = (counts[..., :1].repeat(20, axis=-1) / 1e4).astype(np.float16)
    np.testing.assert_array_equal(np.concatenate(list(found.values())), expected)
    calls.clear()
    methods.volumes(path, "other settings", method(last=99), material.splits)
    assert len(calls) == 1 + methods.TIMED + -(-total // 8)


def test_threshold_and_oracle_are_those_of_greatest_overlap():
    labels = np.full((2, 4, 4, 4), phantoms.SILICON)
    labels[:, :2] = phantoms.COPPER
    fractions = np.where(labels == 2, 0.32, 0.28)
    assert compare.best_threshold(fractions, labels) == (pytest.approx(0.3), 1.0)
    np.testing.assert_array_equal(compare.iou_at(fractions, labels, 0.1), 0.5)


def test_oracle_takes_the_best_of_five_thresholds_for_each_specimen(config):
    """Two specimens whose best thresholds differ, in all splits."""
    splits = compare.material_of(config).splits
    found = {}
    for split, specimens in splits.items():
        odd = (np.arange(len(specimens)) % 2)[:, None, None, None]
        copper = specimens.labels == phantoms.COPPER
        found[split] = np.where(odd, np.where(copper, 0.95, 0.65), np.where(copper, 0.55, 0.15))
    scored = compare.scores(found, splits)
    assert scored["iou_oracle"] == 1 > scored["iou"]
    assert {cube["oracle"] for cube in scored["nanocube"].values()} == {1.0}
    assert min(cube["fixed"] for cube in scored["nanocube"].values()) < 1


def test_volumes_of_other_specimens_are_not_taken_for_these(config, folder):
    swapped = data.load(str(folder), "validation.npz")["validation"]
    order = np.arange(len(swapped))[::-1]
    turned = dataclasses.replace(swapped, counts=swapped.counts[order], labels=swapped.labels[order])
    examples.save_npz(str(folder / "turned.npz"), {"validation": turned})
    other = config.copy_and_resolve_references()
    other.data.held_out, other.compare.methods = "turned.npz", ("mean",)
    first, second = (
        compare._circumstances(c, compare.material_of(c))["images_sha256"] for c in (config, other)
    )
    assert first != second


def test_validation_at_another_dose_is_refused_in_one_line(config, folder):
    other = config.copy_and_resolve_references()
    lower = dataclasses.replace(
        data.load(str(folder), "validation.npz")["validation"], electrons_per_pixel=500
    )
    examples.save_npz(str(folder / "lower.npz"), {"validation": lower})
    other.data.held_out = "lower.npz"
    with pytest.raises(ValueError, match="must have one dose .*; got 500 and 1000 electrons"):
        compare.compare(other, str(folder / "refused"))


@pytest.mark.parametrize("title", ["a/b", "total variation", "tv", "our network"])
def test_network_without_a_title_of_its_own_is_refused(config, folder, title):
    other = config.copy_and_resolve_references()
    other.compare.networks = {title: "nowhere"}
    with pytest.raises(ValueError, match="compare.networks"):
        compare.compare(other, str(folder / "refused"))


def test_unknown_methods_are_refused_in_one_line(config, folder):
    config = config.copy_and_resolve_references()
    config.compare.methods = ("mean", "oracle")
    with pytest.raises(ValueError, match="compare.methods must be of map, .*; got oracle. Correct"):
        compare.compare(config, str(folder / "refused"))
