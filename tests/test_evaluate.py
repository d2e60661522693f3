import json
import os

import numpy as np
import pytest
import small_export

from bsevox_jax import checkpoint, data, sim
from bsevox_jax.evaluate import evaluate, iou_by_family, iou_cu
from bsevox_jax.inference import cu_probability
from bsevox_jax.sim import shapes
from configs import moderate


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Folder with data set and run, the config, the splits, and what evaluate returned."""
    folder = tmp_path_factory.mktemp("evaluate")
    config, splits = small_export.write(folder)
    return folder, config, splits, evaluate(config, str(folder / "run"))


def iou(predicted, true):
    return (predicted & true).sum() / (predicted | true).sum()


def test_metrics_file_holds_what_was_returned(evaluated):
    folder, _, _, results = evaluated
    assert json.loads((folder / "run" / "metrics.json").read_text()) == results
    assert sorted(os.listdir(folder / "run")) == ["export", "metrics.json", "picture.png"]
    assert {k: list(results[k]) for k in ("nanocube", "nanowire", "nanowire_lying")} == {
        "nanocube": ["1", "2", "3", "4"],
        "nanowire": ["2", "4", "6", "8", "10"],
        "nanowire_lying": ["2", "4", "6", "8", "10"],
    }
    assert results["test_specimens"] == 7 and results["electrons_per_pixel"] == small_export.DOSE
    assert results["dose"] == {"train": [small_export.DOSE, small_export.DOSE], "test": small_export.DOSE}
    assert "out_of_family" not in results and "iou_by_family" not in results
    assert results["data_set"] == "boxes" and results["device"].startswith("4 x ")


def test_test_split_is_measured_on_its_own(evaluated):
    folder, _, splits, results = evaluated
    export = checkpoint.load_export(str(folder / "run" / "export"))
    predicted = cu_probability(export, splits["test"].counts, small_export.DOSE) > 0.5
    true = splits["test"].labels == 2
    assert results["iou_cu_mean"] == pytest.approx(
        np.mean([iou(p, t) for p, t in zip(predicted, true, strict=True)])
    )
    assert results["iou_cu_pooled"] == pytest.approx(iou(predicted, true))
    assert 0 < results["iou_cu_mean"] < 1
    by_depth = [iou(predicted[..., z], true[..., z]) for z in range(20)]
    assert results["iou_by_depth"] == pytest.approx(by_depth)
    wrong = (predicted != true).sum((1, 2, 3))
    assert results["mre"] == pytest.approx(np.sqrt(2 * wrong / 8000).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "series, name, labels",
    [
        ("nanocube", "3", sim.phantoms.nanocube(3)),
        ("nanowire", "10", sim.phantoms.nanowire(10)),
        ("nanowire_lying", "6", sim.phantoms.nanowire(6, "x")),
    ],
)
def test_structure_is_simulated_at_the_dose_of_the_data_set(evaluated, series, name, labels):
    folder, _, _, results = evaluated
    export = checkpoint.load_export(str(folder / "run" / "export"))
    number = 300_000_000 + {"nanocube": 2, "nanowire": 8, "nanowire_lying": 11}[series]
    images = sim.simulate_bse(labels, electrons_per_pixel=small_export.DOSE, specimen_ids=[number])
    predicted = cu_probability(export, images.counts[None], small_export.DOSE)[0] > 0.5
    assert results[series][name] == pytest.approx(iou(predicted, np.asarray(labels) == 2))


@pytest.mark.slow
def test_simulated_structures_are_kept_and_damaged_ones_made_again(evaluated, capsys):
    folder, config, _, results = evaluated
    (path,) = (folder / "test_structures").iterdir()
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert evaluate(config, str(folder / "run")) == results
    assert path.stat().st_mtime_ns == written and "simulating" not in capsys.readouterr().out
    path.write_bytes(content[:5000])
    assert evaluate(config, str(folder / "run")) == results
    with np.load(path) as file:
        assert file["counts"].shape == (14, 20, 20, 20)


@pytest.fixture(scope="module")
def tested_elsewhere(evaluated, tmp_path_factory):
    """Splits of a test set of its own, at another dose, and what evaluate returned for it."""
    folder, _, _, _ = evaluated
    data_dir, dose = tmp_path_factory.mktemp("elsewhere"), 40
    made = {
        "test": small_export.examples(3, 9).labels,
        "nanocube": shapes.STRUCTURES["nanocube"],
        "nanowire": [*shapes.STRUCTURES["nanowire"].values(), *shapes.STRUCTURES["nanowire_lying"].values()],
        "out_of_family": shapes.SHAPES,
    }
    splits = {}
    for seed, (split, members) in enumerate(made.items()):
        makers = members.values() if isinstance(members, dict) else members
        labels = np.stack([make() if callable(make) else make for make in makers]).astype(np.uint8)
        yields = 0.1 + 0.02 * (labels == 2).sum(-1)[..., None] / np.arange(1, 21)
        counts = np.random.default_rng(seed).poisson(dose * yields).astype(np.uint16)
        splits[split] = data.Examples(counts, labels, dose, sim.PAPER_ENERGIES_KEV, "elsewhere")
    data.save_npz(str(data_dir / "test.npz"), splits)
    config = small_export.get_config(data_dir)  # its data.config does not even exist here
    config.data.test_config = "test.npz"
    return data_dir, splits, evaluate(config, str(folder / "run"))


@pytest.mark.slow
def test_structures_of_the_test_set_are_taken_at_its_dose(evaluated, tested_elsewhere):
    folder, (data_dir, splits, results) = evaluated[0], tested_elsewhere
    assert [path.name for path in data_dir.iterdir()] == ["test.npz"], "nothing was simulated"
    assert results["dose"] == {"train": [small_export.DOSE, small_export.DOSE], "test": 40}
    assert results["test_specimens"] == 3 and results["data_set"] == "elsewhere"
    export = checkpoint.load_export(str(folder / "run" / "export"))
    for series, split, first in (
        ("nanocube", "nanocube", 0),
        ("nanowire", "nanowire", 0),
        ("nanowire_lying", "nanowire", 5),
        ("out_of_family", "out_of_family", 0),
    ):
        predicted = cu_probability(export, splits[split].counts, 40) > 0.5
        for k, value in enumerate(results[series].values(), start=first):
            assert value == pytest.approx(iou(predicted[k], splits[split].labels[k] == 2))
    assert list(results["out_of_family"]) == list(shapes.SHAPES)


def test_data_set_without_a_test_split_is_refused(evaluated, tmp_path):
    folder, _, splits, _ = evaluated
    data.save_npz(str(tmp_path / "small.npz"), {"train": splits["train"]})
    with pytest.raises(ValueError, match="small.npz must have a split test; got train"):
        evaluate(small_export.get_config(tmp_path), str(folder / "run"))


def test_perfect_probabilities_have_iou_one():
    labels = np.stack([np.asarray(sim.phantoms.nanocube(p)) for p in (1, 2)])
    assert iou_cu((labels == 2).astype(np.float32), labels) == [1.0, 1.0]
    assert iou_cu((labels[::-1] == 2).astype(np.float32), labels) == [0.0, 0.0]


def test_iou_by_family_is_the_mean_of_its_specimens():
    labels = np.stack([np.asarray(sim.phantoms.nanocube(p)) for p in (1, 2, 3, 4)])
    found = (labels == 2).astype(np.float32)
    found[1] = found[0]  # nothing of the cube is found
    found[2, :, :, 12:] = 0  # two of the five planes of voxels are found
    about = (np.ones(labels.shape, int), labels, 1, sim.PAPER_ENERGIES_KEV, "cubes")
    examples = data.Examples(*about, families=("box", "box", "core-shell wire", "grating"))
    by_family = iou_by_family(iou_cu(found, labels), examples.families)
    assert by_family["iou_by_family"] == pytest.approx({"box": 0.5, "core-shell wire": 0.4, "grating": 1})
    assert by_family["iou_single_body"] == pytest.approx((1 + 0 + 0.4) / 3)
    with pytest.raises(ValueError, match="families must name each of the 4 specimens; got 2"):
        data.Examples(*about, families=("box", "box"))


def test_network_that_is_not_shipped_is_refused_without_a_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must be shipped, one of .*compact.*; got bsevoxnet"):
        evaluate(moderate.get_config())
    assert os.listdir(tmp_path) == []


def test_data_set_of_other_energies_is_refused(evaluated, tmp_path):
    folder, config, splits, _ = evaluated
    other = {
        split: data.Examples(e.counts[..., :3], e.labels, e.electrons_per_pixel, (1.0, 2.0, 3.0), "other")
        for split, e in splits.items()
    }
    data.save_npz(str(tmp_path / "small.npz"), other)
    config = small_export.get_config(tmp_path)
    with pytest.raises(ValueError, match="must be those of the network, 0.5, 1, .*; got 1, 2, 3"):
        evaluate(config, str(folder / "run"))
    assert os.listdir(tmp_path) == ["small.npz"]
