import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from bsevox_jax import data
from bsevox_jax.models.equivariant import INVERSE


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return small_run.write_data(tmp_path_factory.mktemp("data"))


def test_symmetries_form_the_group_of_the_square():
    array = np.arange(4 * 4 * 3).reshape(4, 4, 3)
    images = [np.asarray(data.transform(array, k)) for k in range(data.SYMMETRIES)]
    assert len({image.tobytes() for image in images}) == 8
    products = [data.transform(data.transform(array, a), b) for a, b in itertools.product(range(8), repeat=2)]
    assert {np.asarray(p).tobytes() for p in products} == {image.tobytes() for image in images}
    for k in range(8):
        np.testing.assert_array_equal(data.transform(images[k], INVERSE[k]), array)


def test_column_of_voxels_stays_under_its_pixel():
    pixel = np.random.default_rng(0).permutation(36).reshape(6, 6)
    images = np.stack([pixel, pixel + 100], axis=-1)
    volumes = np.stack([pixel, pixel + 200, pixel + 300], axis=-1)
    moved = jax.vmap(data.apply_symmetry, (None, None, 0))(images, volumes, jnp.arange(8))
    for image, volume in zip(*map(np.asarray, moved), strict=True):
        np.testing.assert_array_equal(image, image[..., :1] + [0, 100])
        np.testing.assert_array_equal(volume, image[..., :1] + [0, 200, 300])


@pytest.mark.parametrize("count, fraction", [(5, 0.1), (40, 0.5), (400, 0.9)])
def test_thinning_has_binomial_mean_and_variance(count, fraction):
    n, dose = 100_000, 1000
    kept = data.thin_counts(jax.random.key(1), np.full(n, count, np.uint16), dose, dose * fraction)
    variance = count * fraction * (1 - fraction)
    assert abs(kept.mean() - count * fraction) < 5 * np.sqrt(variance / n)
    # Standard error of a variance: the kurtosis of a binomial is below 3 + 1 / variance.
    assert abs(kept.var() / variance - 1) < 5 * np.sqrt((2 + 1 / variance) / n)


def test_thinning_never_adds_electrons_and_full_dose_keeps_all():
    counts = np.random.default_rng(0).poisson(50, (8, 8, 4)).astype(np.uint16)
    thinned = np.asarray(data.thin_counts(jax.random.key(2), counts, 200, 150))
    assert (thinned >= 0).all() and (thinned <= counts).all() and thinned.sum() < counts.sum()
    np.testing.assert_array_equal(data.thin_counts(jax.random.key(2), counts, 200, 200), counts)


def test_standardised_training_yields_have_mean_zero_and_unit_deviation(splits):
    train = splits["train"]
    inputs = data.normalisation("standardise", train)(train.counts, train.electrons_per_pixel)
    np.testing.assert_allclose(inputs.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std((0, 1, 2)), 1, atol=1e-5)


def test_normalisation_none_leaves_yields_and_unknown_is_refused(splits):
    train = splits["train"]
    inputs = data.normalisation("none", train)(train.counts, train.electrons_per_pixel)
    np.testing.assert_allclose(inputs, train.counts / train.electrons_per_pixel, rtol=1e-6)
    with pytest.raises(ValueError, match="'standardize'"):
        data.normalisation("standardize", train)


@pytest.mark.slow
def test_augmentation_keeps_the_expected_yield_at_lower_dose(splits):
    train = splits["train"]
    yields = data.Normalisation(np.zeros(4, np.float32), np.ones(4, np.float32))
    keys = jax.random.split(jax.random.key(0), 400)
    images, labels = jax.vmap(
        lambda key: data.augment(
            key,
            {"counts": train.counts[0], "labels": train.labels[0]},
            normalisation=yields,
            electrons_per_pixel=train.electrons_per_pixel,
            symmetries=True,
            lowest_dose_fraction=0.25,
        )
    )(keys)
    expected = train.counts[0].mean((0, 1)) / train.electrons_per_pixel
    each = np.asarray(images.mean((1, 2)))
    assert (abs(each.mean(0) - expected) < 5 * each.std(0) / np.sqrt(len(keys))).all()
    assert len({volume.tobytes() for volume in np.asarray(labels)}) == 8


def test_every_example_is_unmasked_once_per_epoch(splits):
    train = splits["train"]
    batches = list(data.epoch_batches(train, 8, seed=3, epoch=5))
    assert len(batches) == data.batches_per_epoch(train, 8) == 4
    seen = np.concatenate([b["labels"][b["mask"]] for b in batches])
    assert sorted(v.tobytes() for v in seen) == sorted(v.tobytes() for v in train.labels)
    padding = batches[-1]["counts"][~batches[-1]["mask"]]
    np.testing.assert_array_equal(padding, batches[0]["counts"][: len(padding)])


def test_batches_depend_on_seed_and_epoch_alone_and_resume_anywhere(splits):
    def counts(**kwargs):
        return [b["counts"] for b in data.epoch_batches(splits["train"], 8, **kwargs)]

    whole = counts(seed=3, epoch=5)
    np.testing.assert_array_equal(whole[2:], counts(seed=3, epoch=5, first=2))
    assert not np.array_equal(whole, counts(seed=3, epoch=6))
    assert not np.array_equal(whole, counts(seed=4, epoch=5))
    halves = [counts(seed=3, epoch=5, rows=rows) for rows in (slice(0, 4), slice(4, 8))]
    np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))


def test_batch_larger_than_the_split_is_padded(splits):
    (batch,) = data.epoch_batches(splits["test"], 12)
    assert batch["counts"].shape[0] == 12 and batch["mask"].sum() == len(splits["test"]) == 4


def test_npz_returns_what_was_saved(splits, tmp_path):
    splits = splits | {"test": dataclasses.replace(splits["test"], families=("box", "ball", "box", "wire"))}
    data.save_npz(str(tmp_path / "set.npz"), splits)
    loaded = data.load(str(tmp_path), "set.npz")
    assert loaded.keys() == splits.keys()
    for split, examples in splits.items():
        np.testing.assert_array_equal(loaded[split].counts, examples.counts)
        np.testing.assert_array_equal(loaded[split].labels, examples.labels)
        assert loaded[split].counts.dtype == np.uint16
        assert loaded[split].beam_energies_kev == examples.beam_energies_kev
        assert loaded[split].families == examples.families
        assert (loaded[split].electrons_per_pixel, loaded[split].name) == (small_run.DOSE, "small")


def test_missing_npz_is_one_line_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz") as error:
        data.load(str(tmp_path), "absent.npz")
    assert "\n" not in str(error.value)


def test_npz_may_hold_any_splits_and_a_missing_one_is_named(splits, tmp_path):
    data.save_npz(str(tmp_path / "set.npz"), {"nanowire": splits["test"]})
    (examples,) = data.load(str(tmp_path), "set.npz").values()
    assert len(examples) == 4
    with pytest.raises(ValueError, match="set.npz must have a split train; got nanowire. Choose another"):
        data.load(str(tmp_path), "set.npz", needs=("train", "validation"))


@pytest.mark.parametrize("fault", ["flipped", "cut", "other", "lacking"])
def test_damaged_npz_is_refused_in_one_line_with_its_path(splits, tmp_path, fault):
    path = tmp_path / "set.npz"
    data.save_npz(str(path), splits)
    content = path.read_bytes()
    if fault == "flipped":
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif fault == "cut":
        path.write_bytes(content[:-100])
    elif fault == "lacking":
        with np.load(path) as file:
            np.savez(path, **{name: file[name] for name in file if name != "train_labels"})
    elif fault == "other":
        path.write_text("not an archive\n")
    with pytest.raises(OSError, match=r"must be whole; got .* in .*set\.npz") as error:
        data.load(str(tmp_path), "set.npz")
    assert "\n" not in str(error.value)


def test_arrays_that_do_not_fit_are_refused(splits):
    train = splits["train"]
    with pytest.raises(ValueError, match="3 energies"):
        data.Examples(train.counts, train.labels, 400, (0.5, 1.0, 2.0), "small")
    with pytest.raises(ValueError, match="over the pixels"):
        data.Examples(train.counts, train.labels[:, 1:], 400, train.beam_energies_kev, "small")


def test_only_copper_is_class_one():
    np.testing.assert_array_equal(data.copper(np.array([0, 1, 2], np.uint8)), [0, 0, 1])
