"""The compact network on the small demonstration set: a few minutes on two CPU cores."""

from ml_collections import ConfigDict

from configs import compact


def get_config() -> ConfigDict:
    config = compact.get_config()
    config.data.config = "quickstart"
    config.model.width = 48
    config.model.refine = 0  # the lift gives the logits; the refinement doubles the time of a step
    config.optim.warmup_epochs = 1
    config.optim.average_decay = 0.99  # over about 100 steps
    config.phase1.epochs = 12
    config.phase2.epochs = 6
    config.eval_every_epochs = 3
    return config
