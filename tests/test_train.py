import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import small_run

from bsevox_jax import checkpoint, data, log, models, train
from configs import moderate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("train")
    small_run.write_data(path)
    return path


@pytest.fixture(scope="module")
def finished(folder):
    """A whole run: its folder, what train returned, and its records."""
    workdir = str(folder / "finished")
    returned = train.train(small_run.get_config(folder), workdir)
    return workdir, returned, read_records(workdir)


def leaves_of_latest(workdir):
    """The latest checkpoint by name, whatever its structure."""
    import orbax.checkpoint as ocp

    steps = sorted(int(name) for name in os.listdir(os.path.join(workdir, "latest")) if name.isdigit())
    leaves = ocp.StandardCheckpointer().restore(
        os.path.join(os.path.abspath(workdir), "latest", str(steps[-1]), "state")
    )
    return int(leaves[".step"]), leaves


def test_last_step_is_saved_and_every_epoch_recorded(finished):
    workdir, _, records = finished
    step, _ = leaves_of_latest(workdir)
    assert step == (4 + 2) * 4  # epochs of both phases, steps per epoch
    assert [(r["phase"], r["epoch"], r["step"]) for r in records] == [
        (1, 1, 4), (1, 2, 8), (1, 3, 12), (1, 4, 16), (2, 1, 20), (2, 2, 24)
    ]  # fmt: skip
    assert [r["step"] for r in records if "validation_loss" in r] == [8, 16, 24]
    assert any(name.startswith("events.out.tfevents") for name in os.listdir(os.path.join(workdir, "events")))


def test_loss_falls_within_the_first_phase(finished):
    losses = [r["train_loss"] for r in finished[2] if r["phase"] == 1]
    assert losses[-1] < 0.9 * losses[0]


def test_export_holds_the_best_weights_and_statistics_of_the_training_split(finished, folder):
    workdir, returned, records = finished
    assert returned == os.path.join(workdir, "export")
    export = checkpoint.load_export(returned)
    splits = data.load(str(folder), "small.npz")
    statistics = data.Normalisation.fit(splits["train"])
    np.testing.assert_array_equal(export.normalisation.mean, statistics.mean)
    np.testing.assert_array_equal(export.normalisation.std, statistics.std)
    validation = splits["validation"]
    network = models.build(**export.config["model"])
    logits = network.apply(
        export.weights, export.normalisation(validation.counts, export.electrons_per_pixel), train=False
    )
    predicted, true = np.asarray(logits[..., 1] > logits[..., 0]), validation.labels == 2
    iou = [(p & t).sum() / (p | t).sum() for p, t in zip(predicted, true, strict=True)]
    best = max(r["validation_iou_cu_mean"] for r in records if "validation_loss" in r)
    np.testing.assert_allclose(np.mean(iou), best, atol=1e-6)


def test_finished_run_started_again_trains_no_further(finished, folder):
    workdir, returned, records = finished
    assert train.train(small_run.get_config(folder), workdir) == returned
    assert leaves_of_latest(workdir)[0] == records[-1]["step"]


@pytest.mark.slow
def test_training_may_begin_with_the_weights_of_an_export(finished, folder, tmp_path, capsys):
    config = small_run.get_config(folder)
    config.start_from = finished[1]
    config.phase1.epochs, config.phase2.epochs = 0, 2
    config.phase2.learning_rate = config.phase2.final_learning_rate = 0.0
    config.optim.weight_decay = 0.0
    given, kept = (
        checkpoint.load_export(p).weights for p in (finished[1], train.train(config, str(tmp_path)))
    )
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert f"began with the weights of {finished[1]}" in capsys.readouterr().out
    config.start_from = str(tmp_path / "gone")
    assert train.train(config, str(tmp_path)) == str(tmp_path / "export"), "a run that began needs it no more"


@pytest.mark.slow
def test_weights_of_another_network_are_refused_as_a_start(finished, folder, tmp_path):
    config = small_run.get_config(folder)
    config.start_from = finished[1]
    config.model.widths = (8, 16)
    with pytest.raises(ValueError, match="must fit the configuration; got .* or another start_from") as error:
        train.train(config, str(tmp_path / "run"))
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []


LONG = ["--phase1.epochs=60", "--phase2.epochs=30"]


def launch(folder, workdir):
    """Starts the long run on one device, in a process of its own; what it prints goes to a file."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    command = [
        sys.executable,
        os.path.join(small_run.ROOT, "tests", "small_run.py"),
        str(folder),
        workdir,
        *LONG,
    ]
    with open(f"{workdir}.txt", "w") as printed:  # a full pipe would stop it
        return subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT)


def printed(workdir):
    with open(f"{workdir}.txt") as file:
        return file.read()


def send_after(process, workdir, number, records):
    """Sends a signal as soon as a run has written so many records, and waits for its end."""
    path = os.path.join(workdir, "metrics.jsonl")
    while not os.path.exists(path) or len(read_records(workdir)) < records:
        assert process.poll() is None, printed(workdir)
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(timeout=60)


def read_records(workdir):
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


@pytest.mark.slow
def test_stopped_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(folder):
    whole, broken = str(folder / "whole"), str(folder / "broken")
    uninterrupted = launch(folder, whole)

    assert send_after(launch(folder, broken), broken, signal.SIGTERM, 7) == 0, printed(broken)
    assert f"the same command with workdir {broken} resumes" in printed(broken)
    stopped_at, _ = leaves_of_latest(broken)
    assert 7 * 4 <= stopped_at < 90 * 4
    assert send_after(launch(folder, broken), broken, signal.SIGKILL, 64) == -signal.SIGKILL  # in phase 2
    assert launch(folder, broken).wait(timeout=120) == 0, printed(broken)
    assert uninterrupted.wait(timeout=120) == 0, printed(whole)

    (step, expected), (resumed_step, resumed) = leaves_of_latest(whole), leaves_of_latest(broken)
    assert step == resumed_step == 90 * 4
    for name, leaf in expected.items():
        np.testing.assert_array_equal(resumed[name], leaf, err_msg=name)
    best = [checkpoint.load_export(os.path.join(w, "export")).weights["params"] for w in (whole, broken)]
    np.testing.assert_array_equal(best[0]["stem"]["kernel"], best[1]["stem"]["kernel"])
    steps = [[record["step"] for record in read_records(w)] for w in (whole, broken)]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_run_killed_after_phase_two_replaced_the_best_weights_still_starts_it_from_those_of_phase_one(
    finished, folder, tmp_path, monkeypatch
):
    workdir, save = tmp_path / "killed", train._save

    def killed(run, state, progress):
        if progress.phase == 2 and progress.epoch:
            raise KeyboardInterrupt
        save(run, state, progress)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "_save", killed)
        train.train(small_run.get_config(folder), str(workdir))
    assert os.listdir(workdir / "best") == ["24"], "phase 2 must have replaced the best weights"
    train.train(small_run.get_config(folder), str(workdir))
    (_, expected), (_, resumed) = leaves_of_latest(finished[0]), leaves_of_latest(workdir)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(resumed[name], leaf, err_msg=name)


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_with_step_and_gradient_norm(folder, tmp_path):
    config = small_run.get_config(folder)
    config.phase1.learning_rate = 1e30
    with pytest.raises(ValueError, match=r"got loss \S+ and gradient norm \S+ at step [234]\.") as error:
        train.train(config, str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_phase_without_progress_ends_early(folder, tmp_path):
    config = small_run.get_config(folder)
    config.phase1.epochs = 40
    config.phase1.learning_rate = config.phase1.final_learning_rate = 0.0
    config.early_stop_epochs = 4
    config.phase2.epochs = 0
    train.train(config, str(tmp_path))
    assert leaves_of_latest(str(tmp_path))[0] == (2 + 4) * 4  # the first validation is the lowest


@pytest.mark.slow
def test_run_on_a_full_disk_stops_in_one_line_and_resumes_when_there_is_room(
    finished, folder, tmp_path, smallest_files, caplog
):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config = small_run.get_config(folder)
    config.phase2.epochs = 6
    with (
        smallest_files(8_000),
        pytest.raises(OSError, match="must be writable; got 'File too large'") as error,
    ):
        train.train(config, str(workdir))
    assert "\n" not in str(error.value) and not caplog.records
    assert os.listdir(workdir / "latest") == ["25"] and not list(workdir.rglob("*tmp"))
    train.train(config, str(workdir))
    assert leaves_of_latest(workdir)[0] == (4 + 6) * 4
    assert [r["step"] for r in read_records(workdir)] == list(range(4, 41, 4))


def test_records_on_a_full_disk_are_refused_in_one_line_and_whole_ones_remain(tmp_path, smallest_files):
    records = log.Log(str(tmp_path))
    records.begin(0)
    records.record(1, {"train_loss": 0.5})
    with smallest_files(0), pytest.raises(OSError, match="must be writable; got 'File too large'") as error:
        records.record(2, {"train_loss": 0.25})
    records.close()
    assert "\n" not in str(error.value)
    assert read_records(tmp_path) == [{"step": 1, "train_loss": 0.5}]


def test_damaged_checkpoint_is_refused(finished, folder, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    weights = [p for p in (tmp_path / "run" / "latest").rglob("d/*") if p.is_file()]
    for path in weights:  # some bytes of a file may belong to no array
        content = bytearray(path.read_bytes())
        for place in range(0, len(content), max(1, len(content) // 64)):
            content[place] ^= 1
        path.write_bytes(content)
    with pytest.raises(OSError, match="must be whole") as error:
        train.train(small_run.get_config(folder), str(tmp_path / "run"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("data.batch_size", 30, "got 30 and 4"),
        ("data.normalise", "standardize", "got 'standardize'"),
        ("data.lowest_dose_fraction", 0.0, "got 0.0"),
        ("data.config", "absent.npz", "absent.npz"),
        ("model.name", "compct", "got 'compct'"),
        ("optim.name", "sgd", "got 'sgd'"),
        ("optim.warmup_epochs", 4, "got 16 and 16"),
        ("optim.warmup_epochs", 2, "got 8 and 8"),
        ("eval_every_epochs", 0, "got 0"),
        ("phase1.loss.mode", "weighted", "got 'weighted'"),
        ("phase2.loss.kind", "sigmoid", "got 'sigmoid'"),
        ("phase2.loss.classes", "both", "got 'softmax' and 'both'"),
    ],
)
def test_impossible_value_is_refused_in_one_line_before_anything_is_written(
    folder, tmp_path, key, value, message
):
    config = small_run.get_config(folder)
    config.update_from_flattened_dict({key: value})
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        train.train(config, str(tmp_path / "run"))
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []


def test_misspelt_key_is_refused(folder, tmp_path):
    config = small_run.get_config(folder).lock()
    with pytest.raises(AttributeError):
        config.phase1.lerning_rate = 1e-3
    config.model.unlock().widht = 8
    with pytest.raises(ValueError, match="widht"):
        train.train(config, str(tmp_path))


@pytest.mark.parametrize("name", ["lite", "small", "medium", "compact", "unet3d", "quickstart"])
def test_configs_have_the_keys_of_the_complete_one_and_a_network(name):
    config, complete = importlib.import_module(f"configs.{name}").get_config(), moderate.get_config()
    network = models.build(**config.model)
    fields = set(type(network).__dataclass_fields__) - {"parent"}
    assert set(config.model) == (fields | {"name"})
    with config.unlocked(), complete.unlocked():
        del config["model"], complete["model"]
    assert log.flatten(config.to_dict()).keys() == log.flatten(complete.to_dict()).keys()


def test_last_count_is_always_due():
    assert [k for k in range(1, 9) if train.is_due(k, 3, 8)] == [3, 6, 8]
