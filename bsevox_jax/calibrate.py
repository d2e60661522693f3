"""Measures what a network's probabilities are worth and which images it knows; see `calibration`."""

import json
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from bsevox_jax import (
    check,
    checkpoint,
    data,
    forward,
    imageio,
    intervals,
    measure,
    metrics,
    parallel,
    stream,
)
from bsevox_jax.calibration import Calibration, bent, fit_curve, reliability, save
from bsevox_jax.inference import check_energies, cu_probability
from bsevox_jax.reconstruct import VOXEL_NM

DRAWN, FIRST_DRAWN = 192, 2_000_000_000  # specimens imaged as in training, of which it reaches none
THRESHOLDS = np.arange(0.2, 0.81, 0.05)


def calibrate(config: ConfigDict, workdir: str | None = None) -> Calibration:
    """Measures a network on its validation data and writes `calibration.npz` beside its weights.

    Curve and threshold come from the validation specimens; the reference of the images and the margins of
    intervals from these and, where the network learnt from the image model, from specimens imaged as in its
    training.

    Args:
        config: as for training.
        workdir: folder of the run; None: the shipped network.

    Raises:
        FileNotFoundError, OSError, ValueError: as of `evaluate.evaluate`.
    """
    folder, _ = checkpoint.of_run(workdir, config.shipped or config.model.name)
    export = checkpoint.load_export(folder)
    held_out = config.data.held_out or config.data.config
    if workdir is None and config.data.source != export.config["data"]["source"]:
        raise ValueError(
            f"a shipped network is calibrated by its own configuration; got another for {folder}. Give "
            "--workdir."
        )
    examples = data.load(config.data.data_dir, held_out, needs=("validation",), **config.simulator)
    examples = examples["validation"]
    check_energies(examples.beam_energies_kev, export)
    probability = cu_probability(export, examples.counts, examples.electrons_per_pixel)
    is_cu = data.copper(examples.labels)
    curve = fit_curve(probability, is_cu)
    calibrated = bent(probability, curve)
    threshold = _best_threshold(calibrated, is_cu)
    dose = examples.electrons_per_pixel
    images = [(counts / dose, dose, p) for counts, p in zip(examples.counts, calibrated, strict=True)]
    truth = [*is_cu]
    if config.data.source == "forward":
        drawn, doses, labels = _drawn(config, export, examples)
        images += [*zip(drawn, doses, bent(cu_probability(export, drawn, 1), curve), strict=True)]
        truth += [*data.copper(labels)]
    reference = _reference(images, export.beam_energies_kev)
    pairs = measured(truth, [volume for _, _, volume in images], threshold)
    before, after = (reliability(p, is_cu)["expected_calibration_error"] for p in (probability, calibrated))
    about = {
        "sha256": export.sha256,
        "dataset": examples.name,
        "specimens": len(examples),
        "electrons_per_pixel": examples.electrons_per_pixel,
        "expected_calibration_error_before": before,
        "expected_calibration_error": after,
        "squares": len(reference.chi2),
        "bodies": len(pairs),
        "coverage_before": intervals.coverage(pairs),
    }
    found = Calibration(curve, intervals.margins(pairs), threshold, reference, about)
    if parallel.is_main_process():
        save(folder, found)
        print(f"calibration.npz is in {folder}: {json.dumps(about)}, curve {curve}, threshold {threshold:g}")
    return found


def _best_threshold(probability, is_cu):
    def mean_iou(threshold):
        sums = jax.device_get(metrics.sample_sums(probability, is_cu, threshold))
        return metrics.summarise(sums)["iou_cu_mean"]

    return float(max(THRESHOLDS, key=mean_iou))


def _drawn(config, export, examples):
    """Yields [n, y, x, e], doses [n] and labels of specimens drawn and imaged as in training."""
    settings = {**config.data.forward.to_dict(), "missing": 0.0}
    source = stream.start(examples, export.normalisation, seed=config.seed, symmetries=True, **settings)
    numbers = FIRST_DRAWN + np.arange(DRAWN)
    labels = np.asarray(jax.vmap(source.specimen)(numbers))
    expected = forward.expect_all(source.model, labels)
    fields = {"yields": expected.yields, "excess": expected.excess, "labels": labels}
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), numbers)
    yields, doses = jax.jit(jax.vmap(source.microscope.recorded))(keys, fields)
    return np.asarray(yields), np.asarray(doses), labels


def _reference(images, beam_energies_kev):
    """Of triples of yields, dose and probability."""
    model, found, chi2 = forward.load(), [], []
    present = imageio.places(model.beam_energies_kev, beam_energies_kev)
    if present is None:
        raise ValueError(
            f"a calibration needs energies of the image model; got {beam_energies_kev}. Use some of those."
        )
    for yields, dose, probability in tqdm(images, "re-simulating", delay=2, leave=False):
        judged = check.check(model, yields, dose, probability, places=present)
        found += [*judged.features]
        chi2 += [judged.chi2] * len(judged.features)
    return check.Reference(np.array(found), np.array(chi2))


def measured(
    truth: Sequence[np.ndarray], volumes: Sequence[np.ndarray], threshold: float
) -> list[tuple[measure.Body, measure.Body]]:
    """Pairs of true and found bodies of specimens: where copper is, and its probability, each [y, x, z]."""
    pairs = []
    for is_cu, volume in zip(truth, tqdm(volumes, "measuring", delay=2, leave=False), strict=True):
        true = measure.bodies(np.asarray(is_cu, np.float32), VOXEL_NM)
        pairs += intervals.matched(true, measure.bodies(volume, VOXEL_NM, threshold))
    return pairs
