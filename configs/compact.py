"""Our network and recipe, fit for a CPU: specimens drawn on the fly, so that no image is ever seen twice."""

from ml_collections import ConfigDict

from configs import moderate


def get_config() -> ConfigDict:
    config = moderate.get_config()
    config.data.config = "standard-train"  # gives the normalisation; shipped, as the other two
    config.data.held_out = "standard-validation"  # at the dose of the test
    config.data.test_config = "standard-test"
    config.data.batch_size = 32  # the optimiser costs an example half of what it does at 16
    config.data.symmetries = True  # exact for normal incidence and mirror walls

    config.data.source = "forward"
    config.data.forward.specimens = 3200  # 100 steps per epoch
    config.data.forward.fresh = 512  # a specimen stays for six epochs, with other noise in each
    config.data.forward.textures = 0.15  # what is like no family keeps the network open to it
    config.data.forward.lowest_electrons_per_pixel = 500.0
    config.data.forward.highest_electrons_per_pixel = 2000.0

    config.model = model = ConfigDict()
    model.name = "compact"
    model.widths = (64, 128, 160)  # features at full, half and quarter resolution
    model.blocks = (1, 1, 2)  # pairs of convolutions at each, on the way down and again up
    model.depth = 20  # voxels along z
    model.dtype = "float32"

    config.optim.name = "muon"
    config.optim.weight_decay = 1e-3
    config.optim.warmup_epochs = 1
    config.optim.average_decay = 0.998
    config.phase1.epochs = 16
    config.phase1.learning_rate = 6e-3
    config.phase1.final_learning_rate = 2e-3
    config.phase1.loss.lam = 0.5  # unweighted: class weights shift the decision away from the best IoU
    config.phase2.epochs = 64  # 256,000 examples in all: under two hours on two slow cores
    config.phase2.learning_rate = 6e-3
    config.phase2.final_learning_rate = 5e-5
    config.phase2.loss.classes = "cu"  # with per_sample, the reported metric itself
    config.phase2.loss.per_sample = True
    config.phase2.loss.cross_entropy = 1.0  # or a body of unknown depth becomes a column of one half
    config.early_stop_epochs = 1000  # the average of the last steps is best
    return config
