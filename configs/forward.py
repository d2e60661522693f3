"""The image model: from volumes to the images expected of them, fitted to Monte Carlo counts."""

from ml_collections import ConfigDict

from configs import moderate


def get_config() -> ConfigDict:
    config = moderate.get_config()
    config.task = "images"
    config.data.config = "standard-train"
    config.data.also = ("textures",)
    config.data.held_out = "calibration"  # ten times the dose
    config.data.test_config = "standard-test"
    config.data.batch_size = 4  # 1,600 pixels a step are many: small steps learn four times as fast as of 16

    config.model = model = ConfigDict()
    model.name = "equivariant"
    model.materials = 2  # Si, which is the matrix, and Cu
    model.energies = 20
    model.width = 12  # features in eight attitudes
    model.first_size = 5
    model.dilations = (1, 2, 4, 4, 2, 1)  # pixels; with the first kernel they reach 16 nm
    model.rays = 32
    model.hidden = 64
    model.dtype = "float32"

    config.optim.name = "muon"  # a quarter of the steps of adamw
    config.optim.weight_decay = 1e-3
    config.optim.warmup_epochs = 1
    config.optim.average_decay = 0.997
    config.phase1.epochs = 20  # of 3,200 specimens; an hour on two slow cores
    config.phase1.learning_rate = 3e-3
    config.phase1.final_learning_rate = 1e-5
    config.phase1.loss = ConfigDict()
    config.phase2.epochs = 0  # one loss all the way
    config.phase2.loss = ConfigDict()
    config.early_stop_epochs = 1000  # the average of the last steps is best
    return config
