import contextlib
import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest
import small_run

from bsevox_jax import checkpoint, data
from bsevox_jax.step import TrainState, begin, make_optimiser


def make_state(step=3, width=5):
    rng = np.random.default_rng(step)
    kernel = rng.normal(size=(4, width)).astype(np.float32)
    params = {"dense": {"kernel": kernel, "bias": np.float32([0.1, np.pi])}}
    return TrainState(np.int32(step), params, {}, ({"mu": params}, ()), jax.tree.map(lambda p: p / 3, params))


def assert_equal_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


def files_below(path):
    return [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "latest"
    store = checkpoint.Store(str(path))
    store.save(2, make_state(2), {"progress": {"epoch": 1}})
    store.save(3, make_state(3), {"progress": {"epoch": 2}})
    store.close()
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    examples = small_run.write_data(folder)["train"]
    path = str(folder / "export")
    state = make_state()
    for _ in range(2):  # the second replaces the first
        checkpoint.export(
            path, state.weights, {"model": {"name": "compact"}}, data.Normalisation.fit(examples), examples
        )
    return path, state, examples


def test_newest_state_comes_back_bit_for_bit(saved):
    store = checkpoint.Store(str(saved))
    state, meta = store.restore(make_state(0))
    store.close()
    assert store.step == 3 and meta["progress"] == {"epoch": 2}
    assert_equal_bits(state, make_state(3))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_of_an_optimiser_comes_back_bit_for_bit(tmp_path, name):
    settings = dict(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, warmup_steps=1, steps=9)
    optimiser, _ = make_optimiser(name=name, learning_rate=1e-2, final_learning_rate=1e-3, **settings)
    rng = np.random.default_rng(0)
    params = {"conv": rng.normal(size=(3, 2, 4)), "dense": rng.normal(size=(4, 5)), "bias": np.zeros(5)}
    params = jax.tree.map(np.float32, params)
    fresh = begin(params, {}, optimiser, np.int32(0))
    _, opt_state = jax.jit(optimiser.update)(params, fresh.opt_state, params)
    state = jax.device_get(dataclasses.replace(fresh, step=np.int32(1), opt_state=opt_state))
    with contextlib.closing(checkpoint.Store(str(tmp_path / "latest"))) as store:
        store.save(1, state, {})
        assert_equal_bits(store.restore(fresh)[0], state)


def test_empty_store_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="must exist") as error:
        checkpoint.Store(str(tmp_path)).restore(make_state())
    assert "\n" not in str(error.value)


def test_checkpoint_of_another_network_is_refused(saved):
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(4, 6\)"):
        checkpoint.Store(str(saved)).restore(make_state(width=6))


def flip_a_byte(path):
    with open(path, "r+b") as file:
        middle = os.path.getsize(path) // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


def test_flipped_byte_never_passes_unnoticed(saved, tmp_path):
    refused = 0
    for number, file in enumerate(files_below(saved / "3" / "state")):
        copy = tmp_path / str(number)
        shutil.copytree(saved, copy)
        if os.path.getsize(file) == 0:
            continue
        flip_a_byte(copy / os.path.relpath(file, saved))
        store = checkpoint.Store(str(copy))
        try:
            assert_equal_bits(store.restore(make_state(0))[0], make_state(3))  # a byte that holds no data
        except OSError as error:
            refused += 1
            assert "must be whole" in str(error) and "\n" not in str(error)
        store.close()
    assert refused > 0


def test_full_disk_leaves_the_previous_checkpoint_and_nothing_half_written(saved, tmp_path, smallest_files):
    copy = shutil.copytree(saved, tmp_path / "latest")
    store, before = checkpoint.Store(str(copy)), sorted(copy.rglob("*"))
    with smallest_files(100), pytest.raises(OSError, match="must be writable; got 'File too large'") as error:
        store.save(4, make_state(4), {})
        store.wait()
    assert "\n" not in str(error.value) and sorted(copy.rglob("*")) == before
    assert_equal_bits(store.restore(make_state(0))[0], make_state(3))
    store.save(4, make_state(4), {})
    assert_equal_bits(store.restore(make_state(0))[0], make_state(4))
    store.close()


def test_full_disk_leaves_the_previous_export(exported, tmp_path, smallest_files):
    path, state, examples = exported
    copy, statistics = shutil.copytree(path, tmp_path / "export"), data.Normalisation.fit(examples)
    with smallest_files(100), pytest.raises(OSError, match="must be writable") as error:
        checkpoint.export(str(copy), make_state(5).weights, {}, statistics, examples)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["export"]
    assert_equal_bits(checkpoint.load_export(str(copy)).weights, state.weights)


def test_checkpoint_that_does_not_fit_on_the_disk_is_refused_before_writing(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    huge = np.broadcast_to(np.float32(0), (free // 4 + 1,))  # takes no memory
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint._make_folder(str(tmp_path / "latest"), {"huge": huge})


def test_export_returns_what_was_given(exported):
    path, state, examples = exported
    export = checkpoint.load_export(path)
    assert_equal_bits(export.weights, state.weights)
    assert_equal_bits(export.normalisation, data.Normalisation.fit(examples))
    assert export.beam_energies_kev == examples.beam_energies_kev
    assert (export.electrons_per_pixel, export.dataset) == (small_run.DOSE, "small")
    assert export.config == {"model": {"name": "compact"}}
    assert export.field == (small_run.PIXELS, small_run.PIXELS) and len(export.sha256) == 64
    assert os.listdir(os.path.dirname(path)).count("export.tmp") == 0


def test_damaged_or_missing_export_is_refused_in_one_line(exported, tmp_path):
    path, _, _ = exported
    weights = max(files_below(os.path.join(path, "weights", "d")), key=os.path.getsize)
    for name, file in (("weights", weights), ("statistics", os.path.join(path, "config.json"))):
        copy = tmp_path / name
        shutil.copytree(path, copy)
        target = copy / os.path.relpath(file, path)
        if name == "weights":
            flip_a_byte(target)
        else:
            mean = f"{checkpoint.load_export(path).normalisation.mean[0].item()}"
            text = target.read_text()
            assert mean in text
            target.write_text(text.replace(mean, "0.5"))
        with pytest.raises(OSError, match="must be whole") as error:
            checkpoint.load_export(str(copy))
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        checkpoint.load_export(str(tmp_path))
