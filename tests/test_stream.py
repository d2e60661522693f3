import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_export

from bsevox_jax import checkpoint, data, forward, observe, sim, source, stream, train
from bsevox_jax.sim import phantoms, textures
from configs import compact

SMALL = dict(specimens=10, fresh=4, textures=0.0, stacks=0.0, thickness_nm=(10.0, 25.0), relief_nm=(0.0, 4.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream")
    splits = {split: small_export.examples(n, n) for split, n in {"train": 6, "validation": 5}.items()}
    data.save_npz(str(path / "small.npz"), splits)
    return path


@pytest.fixture(scope="module", autouse=True)
def few_rows():
    """Blocks of a few specimens instead of hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "ROWS_PER_DEVICE", 2)
        yield


def get_config(folder):
    """The compact configuration on a stream, shrunk: 2 steps per epoch, 2 epochs of each phase."""
    config = compact.get_config()
    config.data.update(data_dir=str(folder), config="small.npz", held_out="", batch_size=8)
    config.data.forward.update(SMALL)
    config.model.update(widths=(8, 12), blocks=(1, 1))
    config.optim.update(name="adamw", warmup_epochs=1)  # compiles in half the time
    config.phase1.epochs = 2
    config.phase2.epochs = 2
    config.eval_every_epochs = 1
    return config


def new_stream(**settings):
    yields = data.Normalisation(np.zeros(20, np.float32), np.ones(20, np.float32))
    microscope = observe.Microscope(
        normalisation=yields,
        beam_energies_kev=sim.PAPER_ENERGIES_KEV,
        symmetries=False,
        lowest_electrons_per_pixel=50,
        highest_electrons_per_pixel=50,
    )
    return stream.Stream(
        model=forward.load(), microscope=microscope, seed=0, shape=phantoms.SHAPE, **(SMALL | settings)
    )


@pytest.fixture(scope="module")
def draw():
    """Of all streams here; to trace it anew for each would take most of the time."""
    return new_stream()._draw


@pytest.fixture
def a_stream(draw):
    def make(**settings):
        made = new_stream(**settings)
        vars(made)["_draw"] = draw
        return made

    return make


def by_number(drawn, epoch):
    """Number -> (labels, yields) as bytes of what a window holds."""
    drawn.at(epoch)
    first = epoch * drawn.fresh
    fields = zip(*(drawn.arrays[name] for name in ("labels", "yields", "excess")), strict=True)
    rows = [b"".join(field.tobytes() for field in row) for row in fields]
    return {number: rows[number % len(drawn)] for number in range(first, first + len(drawn))}


@pytest.fixture(scope="module")
def windows(draw):
    """Those of the first three epochs, one after the other."""
    drawn = new_stream()
    vars(drawn)["_draw"] = draw
    return [by_number(drawn, epoch) for epoch in range(3)]


def test_windows_slide_by_the_fresh_specimens_and_hold_no_specimen_twice(windows):
    first, second, third = windows
    assert first.keys() & second.keys() == set(range(4, 10))
    assert all(first[n] == second[n] for n in range(4, 10)) and second[8] == third[8]
    assert len({row for window in windows for row in window.values()}) == 18


def test_restart_at_any_epoch_draws_the_same_windows_bit_for_bit(windows, a_stream):
    assert by_number(a_stream(), 2) == windows[2]


def test_jump_to_a_later_epoch_draws_what_lies_between(windows, a_stream):
    drawn = a_stream()
    by_number(drawn, 0)
    assert by_number(drawn, 2) == windows[2]


def test_only_what_is_new_is_drawn(a_stream):
    drawn, blocks = a_stream(fresh=8, specimens=16), []
    draw = drawn._draw
    vars(drawn)["_draw"] = lambda numbers: blocks.append(numbers[0]) or draw(numbers)
    for epoch in range(3):
        drawn.at(epoch)
    assert blocks == [0, 8, 16, 24]


@pytest.mark.slow
def test_without_fresh_specimens_all_epochs_are_the_same_and_with_all_fresh_none_returns(windows, a_stream):
    fixed, moving = a_stream(fresh=0), a_stream(fresh=10)
    assert by_number(fixed, 0) == by_number(fixed, 7) == by_number(moving, 0) == windows[0]
    assert not set(by_number(moving, 1).values()) & set(windows[0].values())


@pytest.mark.slow
def test_specimens_are_those_of_their_numbers_less_film_and_relief_and_images_are_theirs(a_stream):
    drawn = a_stream(specimens=64).at(0)
    root = jax.random.fold_in(jax.random.key(0), stream.SPECIMENS)
    keys = jax.vmap(lambda n: jax.random.split(jax.random.fold_in(root, n), 3)[0])(np.arange(64))
    whole = np.asarray(jax.jit(jax.vmap(phantoms.random_specimen))(keys))
    taken = drawn.labels != whole
    assert (drawn.labels[taken] == phantoms.VACUUM).all()
    assert not taken[:, :, :, 9].any(axis=(1, 2))[: len(taken)].all(), "most films are thicker"
    ends = [int((labels == phantoms.VACUUM).all((0, 1)).sum()) for labels in drawn.labels]
    assert max(ends) <= 10 + 4 and sum(end == 0 for end in ends) > 10, "a third is not thinned"
    assert 0.5 < np.mean([(labels[:, :, 0] == phantoms.VACUUM).mean() for labels in drawn.labels]) < 0.95
    expected = forward.expect_all(drawn.model, drawn.labels[:16])
    np.testing.assert_allclose(drawn.arrays["yields"][:16], expected.yields, rtol=1e-4)
    np.testing.assert_allclose(drawn.arrays["excess"][:16], expected.excess, rtol=1e-3)


@pytest.mark.slow
def test_shares_of_the_specimens_are_textures_and_stacks(a_stream):
    drawn = a_stream(textures=0.25, stacks=0.25, thickness_nm=(20.0, 20.0), relief_nm=(0.0, 0.0))
    root = jax.random.fold_in(jax.random.key(0), stream.SPECIMENS)

    @jax.jit
    @jax.vmap
    def compared(number):
        key = jax.random.split(jax.random.fold_in(root, number), 3)[0]
        makers = phantoms.random_specimen, textures.random_texture, textures.random_stack
        return [jnp.all(drawn.specimen(number) == make(key)) for make in makers]

    of_family, texture, stack = map(np.asarray, compared(np.arange(64)))
    np.testing.assert_array_equal(of_family.astype(int) + texture + stack, 1)
    for share in (texture, stack):
        assert 6 <= share.sum() <= 26, "a quarter of 64, within three standard errors"


def read_records(workdir):
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def latest(workdir):
    store = checkpoint.Store(os.path.join(workdir, "latest"))
    step = store.step
    import orbax.checkpoint as ocp

    leaves = ocp.StandardCheckpointer().restore(os.path.join(store.path, str(step), "state"))
    store.close()
    return leaves


@pytest.mark.slow
def test_stopped_run_resumes_to_the_same_weights_and_exports_the_highest_dose(
    folder, tmp_path, monkeypatch, capsys
):
    config, whole, broken = get_config(folder), str(tmp_path / "whole"), str(tmp_path / "broken")
    doses = dict(lowest_electrons_per_pixel=50.0, highest_electrons_per_pixel=1000.0)
    config.data.forward.update(probe_fwhm_nm=(0.0, 2.0), gain_error=0.02, **doses)
    path = train.train(config, whole)
    export = checkpoint.load_export(path)
    sha256 = forward.load().sha256
    assert export.electrons_per_pixel == 1000 and sha256[:12] in export.dataset
    line = next(line for line in capsys.readouterr().out.splitlines() if sha256[:12] in line)
    for part in (
        "10 training",
        "4 of them new",
        "50 to 1000",
        "probe_fwhm_nm (0.0, 2.0)",
        "gain_error 0.02",
        "boxes",
    ):
        assert part in line

    run_epoch = train._run_epoch

    def stop_within(run, step, state, progress, bar):
        if (progress.phase, progress.epoch) == (2, 0):
            run.stop.set()
        return run_epoch(run, step, state, progress, bar)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_run_epoch", stop_within)
        assert train.train(config, broken) is None
    assert int(latest(broken)[".step"]) == 5
    train.train(config, broken)
    expected, resumed = latest(whole), latest(broken)
    assert int(expected[".step"]) == 8
    for name, leaf in expected.items():
        np.testing.assert_array_equal(resumed[name], leaf, err_msg=name)
    both = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in read_records(w)] for w in (whole, broken)
    ]
    assert [r["step"] for r in both[0]] == [2, 4, 6, 8] and both[0][-1] == both[1][-1]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("data.source", "forwards", "got 'forwards' and 'volumes'"),
        ("task", "images", "got 'forward' and 'images'"),
        ("data.forward.fresh", 11, "got 10 and 11"),
        ("data.forward.specimens", 0, "got 0 and 4"),
        ("data.forward.lowest_electrons_per_pixel", 3000.0, r"got \(3000.0, 2000.0\)"),
        ("data.forward.lowest_electrons_per_pixel", 0.0, "from 1; got"),
        ("data.forward.thickness_nm", (0.0, 20.0), "thickness_nm must be lowest, highest, from 1"),
        ("data.forward.relief_nm", (3.0, 1.0), "relief_nm must be"),
        ("data.forward.probe_fwhm_nm", (-1.0, 1.0), "probe_fwhm_nm must be"),
        ("data.forward.drift_nm", -1.0, "drift_nm must be from 0; got -1.0"),
        ("data.forward.model", "/absent", "/absent"),
    ],
)
def test_impossible_value_is_refused_in_one_line_before_anything_is_written(
    folder, tmp_path, key, value, message
):
    config = get_config(folder)
    config.update_from_flattened_dict({key: value})
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        train.train(config, str(tmp_path / "run"))
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []


def test_image_model_of_other_energies_or_voxels_is_refused(folder, tmp_path):
    config = get_config(folder)
    whole = small_export.examples(4, 0)
    energies = data.Examples(whole.counts[..., :4], whole.labels, 6, (0.5, 1.0, 2.0, 4.0), "few")
    depth = data.Examples(whole.counts, whole.labels[..., :10], 6, whole.beam_energies_kev, "flat")
    for examples, message in ((energies, "energies of the data set, 0.5, 1, 2, 4 keV"), (depth, "voxels of")):
        data.save_npz(str(tmp_path / "other.npz"), {"train": examples, "validation": examples})
        config.data.update(data_dir=str(tmp_path), config="other.npz")
        with pytest.raises(ValueError, match=message) as error:
            source.load(config).training.arrays  # noqa: B018
        assert "\n" not in str(error.value)
