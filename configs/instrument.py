"""Compact, taught what instruments do: the width of the probe, drift, gain, noise, and energies that lack."""

from ml_collections import ConfigDict

from configs import compact


def get_config() -> ConfigDict:
    config = compact.get_config()
    config.start_from = "bsevox_jax/shipped/compact"
    config.shipped = "instrument"
    forward = config.data.forward
    forward.lowest_electrons_per_pixel = 300.0
    forward.highest_electrons_per_pixel = 3000.0
    forward.stacks = 0.1  # metal below metal, as in interconnects
    forward.probe_fwhm_nm = (0.0, 2.5)
    forward.drift_nm = 0.05  # what registration leaves
    forward.gain_error = 0.005  # what reference areas of some hundred pixels leave
    forward.offset_error = 0.0005
    forward.noise_electrons = 1.0
    forward.energy_error = 0.005
    forward.missing = 0.5

    config.phase1.epochs = 0
    config.phase2.epochs = 24  # 2,400 steps, 50 minutes on two slow cores
    config.phase2.learning_rate = 4e-3
    config.phase2.final_learning_rate = 2e-5
    return config
