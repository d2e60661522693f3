"""The compact network on the small demonstration set: a few minutes on two CPU cores."""

from ml_collections import ConfigDict

from configs import compact


def get_config() -> ConfigDict:
    config = compact.get_config()
    config.data.config = "quickstart"
    config.data.held_out = config.data.test_config = ""  # its own
    config.data.source = "counts"
    config.data.batch_size = 16  # 50 steps per epoch of 800 specimens
    config.model.widths = (32, 64, 96)  # a step takes a third of the time
    config.model.blocks = (1, 1, 1)
    config.optim.warmup_epochs = 1
    config.optim.average_decay = 0.99  # over about 100 steps
    config.phase1.epochs = 4  # cross-entropy finds the bodies, the Lovasz loss their borders
    config.phase2.epochs = 16
    config.phase2.learning_rate = 2e-3
    config.phase2.loss.cross_entropy = 0.0  # its figures were measured without
    config.eval_every_epochs = 4
    return config
