"""What a network may learn: images of volumes through the same training as volumes of images."""

import json
import os

import jax
import numpy as np
import pytest

from bsevox_jax import checkpoint, data, evaluate, forward, log, models, train
from bsevox_jax import task as tasks
from configs import forward as forward_config
from configs import moderate

PIXELS, DEPTH, DOSE, ENERGIES_KEV = 8, 20, 400, (0.5, 1.0, 2.0, 4.0)


def examples(number, seed, dose=DOSE, name="boxes"):
    """Boxes of Cu in Si, some beside vacuum, and counts whose primaries free an electron now and then."""
    rng = np.random.default_rng(seed)
    labels = np.ones((number, PIXELS, PIXELS, DEPTH), np.uint8)
    for k, volume in enumerate(labels):
        y, x, z = rng.integers(0, 5, 3)
        volume[y : y + 4, x : x + 3, z : z + 6] = 2
        if k % 2:
            volume[:, : rng.integers(1, 3)] = 0
    weights = np.exp(-(np.arange(DEPTH) + 0.5) / (2 * np.array(ENERGIES_KEV)[:, None]))
    weights /= weights.sum(1, keepdims=True)
    yields = np.einsum("nyxz,ez->nyxe", np.array([0, 0.1, 0.3])[labels], weights)
    primaries = rng.binomial(dose, yields)
    counts = (primaries + rng.binomial(primaries, 0.05)).astype(np.uint16)
    return data.Examples(counts, labels, dose, ENERGIES_KEV, name)


def write(folder):
    """Writes boxes.npz, more.npz of the same dose and other.npz of another one."""
    splits = {"train": examples(13, 0), "validation": examples(7, 1)}
    data.save_npz(str(folder / "boxes.npz"), splits)
    more = {"train": examples(8, 2, name="more"), "odd": examples(5, 3, name="more")}
    data.save_npz(str(folder / "more.npz"), more)
    data.save_npz(str(folder / "other.npz"), {"train": examples(2, 4, dose=50, name="other")})
    return splits


def get_config(data_dir):
    """The configuration of the image model, shrunk."""
    config = forward_config.get_config()
    config.data.update(data_dir=str(data_dir), config="boxes.npz", also=("more.npz",), held_out="")
    config.data.batch_size = 8
    config.model.update(energies=4, width=2, first_size=3, dilations=(1,), hidden=8)
    config.optim.average_decay = 0.5
    config.phase1.epochs = 12
    config.phase1.learning_rate = 1e-2
    config.eval_every_epochs = 3
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("task")
    write(path)
    return path


@pytest.fixture(scope="module")
def finished(folder):
    """A whole run: the export and the records."""
    workdir = str(folder / "run")
    exported = train.train(get_config(folder), workdir)
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        return exported, [json.loads(line) for line in file]


def best_of(records):
    """The record of the weights that are exported."""
    judged = [record for record in records if "validation_loss" in record]
    return min(judged, key=lambda record: record["validation_deviance_per_dof"])


@pytest.mark.slow
def test_image_model_learns_by_the_same_loop(finished):
    deviance = [r["validation_deviance_per_dof"] for r in finished[1] if "validation_loss" in r]
    # One is what is left when only the counts scatter.
    assert len(deviance) == 4 and deviance[-1] - 1 < 0.5 * (deviance[0] - 1)
    losses = [record["train_loss"] for record in finished[1]]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_exported_image_model_agrees_with_the_counts_as_the_records_say(finished, folder):
    exported, records = finished
    model, validation = forward.load(exported), examples(7, 1)
    assert model.beam_energies_kev == ENERGIES_KEV
    images = forward.expect_all(model, validation.labels)
    seen = (validation.labels > 0).any(-1)
    squares = (validation.counts - DOSE * images.yields)[seen] ** 2
    chi2 = (squares / images.variance(DOSE)[seen]).mean(0)
    best = best_of(records)
    assert best["validation_chi2_per_dof"] == pytest.approx(chi2.mean(), rel=1e-4)
    assert best["validation_chi2_per_dof_worst"] == pytest.approx(chi2.max(), rel=1e-4)
    assert (images.errors[seen] > 0).all(), "a finished run calibrates its errors"


@pytest.mark.slow
def test_evaluation_of_an_image_model_says_what_the_records_say(finished, folder, capsys):
    config = get_config(folder)
    config.data.test_config = "boxes.npz"
    results = evaluate.evaluate(config, str(folder / "run"))
    assert json.loads((folder / "run" / "metrics.json").read_text()) == results
    best = best_of(finished[1])
    found = results["validation"]
    assert best["validation_chi2_per_dof"] == pytest.approx(np.mean(found["chi2_per_dof"]), rel=1e-4)
    binomial = np.mean(found["binomial_chi2_per_dof"])
    assert best["validation_binomial_chi2_per_dof"] == pytest.approx(binomial, rel=1e-4)
    assert f"{found['chi2_per_dof'][0]:.3f}" in capsys.readouterr().out
    assert list(results) == ["train", "validation"]


@pytest.mark.slow
def test_all_splits_of_more_data_sets_join_the_training(finished):
    exported, records = finished
    assert checkpoint.load_export(exported).dataset == "boxes + more"
    assert [r["step"] / r["epoch"] for r in records] == [4.0] * 12  # steps of 8 for 13 + 8 + 5 examples


def test_joined_examples_follow_one_another():
    first, second = examples(2, 0), examples(3, 1, name="more")
    joined = data.join(first, [second, second])
    np.testing.assert_array_equal(joined.counts[2:5], second.counts)
    np.testing.assert_array_equal(joined.labels[5:], second.labels)
    assert joined.name == "boxes + more" and len(joined) == 8 and joined.electrons_per_pixel == DOSE
    assert data.join(first, []).name == "boxes"


def test_data_set_of_another_dose_does_not_join(folder, tmp_path):
    config = get_config(folder)
    config.data.also = ("more.npz", "other.npz")
    with pytest.raises(ValueError, match=r"data.also must have the dose.*got \(50, .*\) of other") as error:
        train.train(config, str(tmp_path / "run"))
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("task", "both", "task must be volumes or images; got 'both'. Use"),
        ("data.normalise", "none", "starts from the mean yields, .* must be standardise; got 'none'. Use"),
        ("model.first_size", 4, "an odd size, and so a middle; got 4. Use"),
    ],
)
def test_impossible_value_is_refused_in_one_line_before_anything_is_written(
    folder, tmp_path, key, value, message
):
    config = get_config(folder)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message) as error:
        train.train(config, str(tmp_path / "run"))
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []


def test_pixels_over_nothing_and_padded_rows_teach_an_image_model_nothing():
    """The simulator counts nothing there; a network need not spend itself on it."""
    network = models.build("equivariant", energies=4, width=2, first_size=3, dilations=(1,), hidden=8)
    training = examples(4, 5)
    task = tasks.images(network, np.full(4, 0.1, np.float32), training, training)
    inputs, targets = jax.vmap(task.present)(training.arrays)
    augmented, _ = jax.vmap(task.augment, (None, 0))(jax.random.key(0), training.arrays)
    np.testing.assert_array_equal(inputs, augmented)
    outputs = np.random.default_rng(0).normal(size=(4, PIXELS, PIXELS, 4, 2)).astype(np.float32)
    mask = np.array([True, True, True, False])
    loss, slope = jax.jit(jax.value_and_grad(lambda z: task.loss(z, targets, mask)))(outputs)
    taught = (training.labels > 0).any(-1) & mask[:, None, None]
    assert np.isfinite(loss) and 0 < taught.sum() < taught[mask].size
    np.testing.assert_array_equal((np.asarray(slope) != 0).any((-1, -2)), taught)
    sums = jax.jit(task.score)(outputs, targets)
    figures = task.summarise(sums, mask)
    merit = task.summarise(jax.tree.map(lambda a: a[:3], sums), mask[:3])
    assert figures == pytest.approx(merit) and task.merit in figures and task.sign == -1


def test_configuration_of_the_image_model_has_the_keys_of_the_complete_one():
    config, complete = forward_config.get_config(), moderate.get_config()
    fields = set(type(models.build(**config.model)).__dataclass_fields__) - {"parent"}
    assert set(config.model) == (fields | {"name"}) - {"side_walls"}  # those of the data
    for part in (config, complete):
        with part.unlocked():
            del part["model"]
            part.phase1.loss = part.phase2.loss = {}  # it has one loss without settings
    assert log.flatten(config.to_dict()).keys() == log.flatten(complete.to_dict()).keys()
