import json
import os

import numpy as np
import pytest
import scipy.ndimage
import small_export
import tifffile

from bsevox_jax import checkpoint, data, imageio, models, sim
from bsevox_jax.models.equivariant import INVERSE
from bsevox_jax.reconstruct_files import reconstruct_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the data set small.npz, the network run/export, and the first test images as a stack."""
    folder = tmp_path_factory.mktemp("reconstruct")
    _, splits = small_export.write(folder)
    test = splits["test"]
    stack = imageio.Stack(test.counts[0].astype(np.int32), test.beam_energies_kev, test.electrons_per_pixel)
    with imageio.whole_files(folder) as unfinished:
        imageio.write_stack(unfinished, stack)
    np.save(folder / "stack.npy", stack.counts)
    return folder


GIVEN = {"beam_energies_kev": sim.PAPER_ENERGIES_KEV, "electrons_per_pixel": small_export.DOSE}


@pytest.mark.parametrize(
    "name, given",
    [
        ("stack.npz", {}),
        pytest.param("stack.tif", {}, marks=pytest.mark.slow),
        pytest.param("stack.npy", GIVEN, marks=pytest.mark.slow),
    ],
)
def test_every_format_gives_the_network_applied_to_the_yields_in_all_attitudes(folder, tmp_path, name, given):
    export = checkpoint.load_export(str(folder / "run" / "export"))
    counts = np.load(folder / "stack.npy")
    network = models.build(**export.config["model"])
    yields = counts[None] / small_export.DOSE
    inputs = (yields - export.normalisation.mean) / export.normalisation.std
    expected = np.zeros((20, 20, 20))
    for k in range(data.SYMMETRIES):  # the demo's network learns from all attitudes, and is asked in all
        seen = data.transform(inputs.astype(np.float32)[0], k)[None]
        logits = np.asarray(network.apply(export.weights, seen, train=False))[0]
        cu = 1 / (1 + np.exp(logits[..., 0] - logits[..., 1]))
        expected += np.asarray(data.transform(cu, INVERSE[k])) / data.SYMMETRIES

    given = given | {"formats": ["vti"]}
    reconstruct_files(str(folder / name), str(folder / "run" / "export"), str(tmp_path / "out"), **given)
    written = ["bodies.csv", "bodies.json", "picture.png", "report.html", "summary.json"]
    written += ["volume.npz", "volume.tif", "volume.vti"]
    assert sorted(os.listdir(tmp_path / "out")) == written
    with np.load(tmp_path / "out" / "volume.npz") as volume:
        np.testing.assert_allclose(volume["probability"], expected, atol=1e-5)
        assert volume["probability"].dtype == np.float32
        np.testing.assert_array_equal(volume["is_cu"], volume["probability"] > 0.5)
        np.testing.assert_array_equal(volume["beam_energies_kev"], sim.PAPER_ENERGIES_KEV)
        assert volume["electrons_per_pixel"] == small_export.DOSE
        assert volume["checkpoint_sha256"] == export.sha256
        assert not any("dose" in line for line in volume["assumptions"])
        zyx = np.transpose(volume["probability"], (2, 0, 1))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "volume.tif"), zyx)
    bodies = json.loads((tmp_path / "out" / "bodies.json").read_text())
    assert bodies["about"]["checkpoint_sha256"] == export.sha256
    _, number = scipy.ndimage.label(expected > 0.5)
    assert (
        len(bodies["bodies"]) == number == len((tmp_path / "out" / "bodies.csv").read_text().splitlines()) - 1
    )


def test_other_dose_is_told_as_an_assumption(folder, tmp_path):
    given = GIVEN | {"electrons_per_pixel": 12}
    reconstruct_files(str(folder / "stack.npy"), str(folder / "run" / "export"), str(tmp_path), **given)
    with np.load(tmp_path / "volume.npz") as volume:
        assert any("12 electrons per pixel, is not that of training, 6" in a for a in volume["assumptions"])


def test_field_of_another_size_is_served_by_compact_alone(folder, tmp_path, monkeypatch):
    counts = np.load(folder / "stack.npy")
    np.save(tmp_path / "a.npy", counts[:12])
    paths = str(tmp_path / "a.npy"), str(folder / "run" / "export"), str(tmp_path / "out")
    assert reconstruct_files(*paths, **GIVEN).probability.shape == (12, 20, 20)
    with np.load(tmp_path / "out" / "volume.npz") as volume:
        assert any("lies their mirror image" in line for line in volume["assumptions"])
    monkeypatch.setattr(models, "ANY_FIELD", ())
    message = r"field of view must be .*\(20, 20\).*; got \(12, 20\).*or use compact"
    with pytest.raises(ValueError, match=message) as error:
        reconstruct_files(*paths, **GIVEN)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c, e: (c, e[:-1] + (11.0,)),
            r"must be those of the network, 0.5, 1, .*; got 0.5, 1, .*, 11\.",
        ),
        (lambda c, e: (c[..., 1:], e[1:]), "must be those of the network, 0.5, 1, .*; got 1, 1.5"),
    ],
)
def test_stack_that_does_not_fit_the_network_is_refused(folder, tmp_path, change, message):
    counts, energies = change(np.load(folder / "stack.npy"), sim.PAPER_ENERGIES_KEV)
    np.save(tmp_path / "a.npy", counts)
    given = GIVEN | {"beam_energies_kev": energies}
    with pytest.raises(ValueError, match=message) as error:
        reconstruct_files(
            str(tmp_path / "a.npy"), str(folder / "run" / "export"), str(tmp_path / "out"), **given
        )
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["a.npy"]
