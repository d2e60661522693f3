"""The notebooks, run from the first cell to the last with small settings."""

import os
import shutil
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import small_export
import tifffile

from bsevox_jax import checkpoint, data

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run(name, monkeypatch, **parameters):
    """What a notebook prints, run in its folder by one device, with other values in its cell `parameters`."""
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(NOTEBOOKS.parent / ".jax_cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": NOTEBOOKS}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_cleared(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_stack_becomes_a_volume_with_its_worth_bodies_and_files(tmp_path, monkeypatch):
    printed = run("reconstruct", monkeypatch, ELECTRONS_PER_PIXEL=20, OUTPUT=str(tmp_path))
    assert "in range: True" in printed and "in range: False" in printed
    assert "body 0  top_nm" in printed and "left out" in printed
    volume = tifffile.imread(tmp_path / "volume.ome.tif")
    assert volume.shape == (20, 20, 20) and 0.5 < volume[7, 7, 7] <= 1
    assert os.listdir(tmp_path) == ["volume.ome.tif"]


@pytest.mark.slow
def test_network_is_trained_evaluated_and_packed(tmp_path, monkeypatch):
    splits = {"train": 8, "validation": 4, "test": 4, "nanocube": 4, "nanowire": 10}
    data.save_npz(
        str(tmp_path / "small.npz"),
        {split: small_export.examples(n, seed) for seed, (split, n) in enumerate(splits.items())},
    )
    settings = {
        "data.data_dir": tmp_path,
        "data.config": "small.npz",
        "data.batch_size": 4,
        "data.symmetries": False,
        "model.widths": (4, 8),
        "model.blocks": (1, 1),
        "optim.name": "adamw",
        "optim.warmup_epochs": 0,
        "phase1.epochs": 1,
        "phase2.epochs": 0,
    }
    printed = run(
        "colab_tpu",
        monkeypatch,
        CONFIG="configs/quickstart.py",
        WORKDIR=str(tmp_path / "run"),
        EXTRA=[f"--config.{key}={value}" for key, value in settings.items()],
    )
    assert "installed: nothing" in printed and "IoU(Cu) mean" in printed
    shutil.unpack_archive(tmp_path / "run" / "export.zip", tmp_path / "elsewhere")
    export = checkpoint.load_export(str(tmp_path / "elsewhere" / "export"))
    assert export.config["model"]["widths"] == [4, 8] and np.isfinite(export.normalisation.mean).all()
