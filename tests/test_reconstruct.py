import dataclasses

import jax
import numpy as np
import pytest
import small_export

from bsevox_jax import calibration, check, checkpoint, measure, reconstruct, sim
from bsevox_jax.inference import asked, cu_probability
from bsevox_jax.models.equivariant import turned
from bsevox_jax.reconstruct import reconstruct as reconstructed

ENERGIES_KEV = sim.PAPER_ENERGIES_KEV


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the network run/export."""
    folder = tmp_path_factory.mktemp("reconstruct")
    small_export.write(folder)
    return folder


@pytest.fixture(scope="module")
def network(folder):
    return str(folder / "run" / "export")


def test_volumes_do_not_depend_on_what_else_is_in_the_batch(folder):
    export = checkpoint.load_export(str(folder / "run" / "export"))
    counts = small_export.examples(37, 0).counts  # more than one batch, the last one not full
    together = cu_probability(export, counts, small_export.DOSE)
    alone = np.concatenate(
        [cu_probability(export, counts[k : k + 1], small_export.DOSE) for k in (0, 31, 36)]
    )
    assert together.shape == (37, 20, 20, 20) and jax.device_count() == 4
    np.testing.assert_allclose(together[[0, 31, 36]], alone, atol=1e-5)


@pytest.mark.parametrize("field", [(20, 20), (12, 20)])
@pytest.mark.parametrize("symmetry", [3, 6])
def test_turned_images_give_the_turned_volume(folder, field, symmetry):
    export = checkpoint.load_export(str(folder / "run" / "export"))
    counts = small_export.examples(1, 0).counts[:, : field[0], : field[1]]
    volume = cu_probability(export, counts, small_export.DOSE)[0]
    of_turned = cu_probability(export, turned(counts[0], symmetry)[None], small_export.DOSE)[0]
    np.testing.assert_allclose(of_turned, turned(volume, symmetry), atol=1e-5)
    assert np.abs(of_turned - volume if of_turned.shape == volume.shape else 1).max() > 1e-3


@pytest.fixture
def unchecked(monkeypatch):
    """Without the images that are expected: compiling them takes most of the time."""
    monkeypatch.setattr(reconstruct, "_check", lambda *arguments: None)


def field(ny, nx, seed=0):
    """Counts of a field of any size, [y, x, e]."""
    tile = small_export.examples(1, seed).counts[0].astype(np.int64)
    rows, columns = -(-ny // 20), -(-nx // 20)
    return np.tile(tile, (rows, columns, 1))[:ny, :nx]


def test_a_field_in_windows_is_the_field_at_once(network, unchecked, monkeypatch):
    counts = field(75, 42)
    export = checkpoint.load_export(network)
    padded = np.pad(counts, ((0, 1), (0, 0), (0, 0)), mode="symmetric")  # even, as the network folds pixels
    whole = asked(export)(padded[None] / small_export.DOSE)[0][:75]
    monkeypatch.setattr(reconstruct, "WINDOW", 40)
    found = reconstructed(counts, ENERGIES_KEV, electrons_per_pixel=small_export.DOSE, checkpoint=network)
    np.testing.assert_allclose(found.probability, whole, atol=2e-5)


def test_translated_images_give_the_translated_volume(network, unchecked):
    counts, margin = field(72, 40, seed=1), 16
    settings = dict(electrons_per_pixel=small_export.DOSE, checkpoint=network)
    found = reconstructed(counts, ENERGIES_KEV, **settings).probability
    moved = reconstructed(np.roll(counts, 4, axis=0), ENERGIES_KEV, **settings).probability
    inside = slice(margin + 4, 72 - margin)
    np.testing.assert_allclose(np.roll(found, 4, axis=0)[inside], moved[inside], atol=2e-5)


def test_counts_and_yields_give_the_same(network):
    counts = field(20, 20)
    settings = dict(electrons_per_pixel=small_export.DOSE, checkpoint=network)
    of_counts = reconstructed(counts, ENERGIES_KEV, **settings)
    of_yields = reconstructed(counts / small_export.DOSE, ENERGIES_KEV, **settings)
    np.testing.assert_array_equal(of_counts.probability, of_yields.probability)
    np.testing.assert_array_equal(of_counts.labels == 2, of_counts.probability > of_counts.threshold)
    assert of_counts.chi2 == of_yields.chi2 > 0 and of_counts.in_range is None
    assert any("not been calibrated" in line for line in of_counts.assumptions)


def test_a_calibrated_network_gives_calibrated_probabilities_and_a_verdict(network, monkeypatch):
    export = checkpoint.load_export(network)
    reference = check.Reference(np.random.default_rng(0).normal(0, 0.01, (50, 41)), np.full(50, 1.0))
    known = calibration.Calibration((2.0, 2.0, 0.0), {"top": 2.0}, 0.3, reference, {"sha256": export.sha256})
    counts = field(20, 20)
    settings = dict(electrons_per_pixel=small_export.DOSE, checkpoint=network)
    own = reconstructed(counts, ENERGIES_KEV, **settings).probability
    monkeypatch.setattr(calibration, "load", lambda folder, export: known)
    found = reconstructed(counts, ENERGIES_KEV, **settings)
    np.testing.assert_allclose(found.probability, own**2 / (own**2 + (1 - own) ** 2), atol=1e-5)
    assert found.threshold == 0.3 and found.in_range is False and found.check.explains is False
    assert not any("calibrated" in line for line in found.assumptions)
    for body, soft in zip(found.bodies, measure.bodies(found.probability, 1.0, 0.3), strict=True):
        value, low, high = soft.top_nm
        assert body.top_nm == pytest.approx((value, max(low - 2, 0), high + 2))
        assert body.width_x_nm == soft.width_x_nm


@pytest.mark.slow
def test_exact_check_of_a_good_volume_agrees_with_that_of_the_image_model():
    labels = np.asarray(sim.phantoms.nanocube(1))
    counts = sim.simulate_bse(labels, electrons_per_pixel=400, seed=3).counts
    found = reconstructed(counts, ENERGIES_KEV, electrons_per_pixel=400)
    exact = reconstruct.check_exactly(found)
    assert exact["electrons_per_pixel"] == 400 and len(exact["chi2_by_energy"]) == 20
    assert exact["chi2"] == pytest.approx(found.chi2, abs=0.08) and 0.9 < exact["chi2"] < 1.15
    wrong = dataclasses.replace(found, probability=np.roll(found.probability, 6, axis=0))
    assert reconstruct.check_exactly(wrong)["chi2"] > 1.5


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(electrons_per_pixel=0), "electrons_per_pixel must be .*; got"),
        (dict(electrons_per_pixel=[6] * 19), "one or one per image; got .* for 20 images"),
        (dict(stack=np.full((20, 20, 20), np.nan)), "yields must be finite"),
        (dict(stack=np.full((20, 20, 20), 7.0)), "yields must be 0 to 1 on average; got a mean of 7"),
        (dict(stack=np.zeros((20, 20, 19))), "got 19 images and 20 energies"),
    ],
)
def test_impossible_images_are_refused_in_one_line(network, unchecked, change, message):
    arguments = dict(stack=field(20, 20), electrons_per_pixel=6) | change
    with pytest.raises(ValueError, match=message) as error:
        reconstructed(arguments.pop("stack"), ENERGIES_KEV, **arguments, checkpoint=network)
    assert "\n" not in str(error.value)


def test_missing_energies_are_served_if_learnt_and_refused_otherwise(network, unchecked, monkeypatch):
    counts, some = field(20, 20), [0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18]
    energies_kev = [ENERGIES_KEV[k] for k in some]
    settings = dict(electrons_per_pixel=small_export.DOSE, checkpoint=network)
    with pytest.raises(ValueError, match="beam_energies_kev must be those of the network"):
        reconstructed(counts[..., some], energies_kev, **settings)
    export = checkpoint.load_export(network)
    export.config["data"].update(source="forward")
    export.config["data"]["forward"]["missing"] = 0.5
    monkeypatch.setattr(reconstruct, "load_export", lambda folder: export)
    found = reconstructed(counts[..., some], energies_kev, **settings)
    mean = np.array(counts / small_export.DOSE)
    mean[..., np.setdiff1d(range(20), some)] = export.normalisation.mean[np.setdiff1d(range(20), some)]
    whole = asked(export)(mean[None])[0]  # what is missing is at the mean, which is 0 to the network
    np.testing.assert_allclose(found.probability, whole, atol=1e-5)
    assert any("8 of the energies of the network are missing" in line for line in found.assumptions)
    with pytest.raises(ValueError, match="10 of them at least; got 0.5, 1, 1.5"):
        reconstructed(counts[..., :3], ENERGIES_KEV[:3], **settings)
