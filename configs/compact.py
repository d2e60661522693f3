"""Our network and recipe: full resolution throughout, mixing along rows and columns, fit for a CPU."""

from ml_collections import ConfigDict

from configs import moderate


def get_config() -> ConfigDict:
    config = moderate.get_config()
    config.data.config = "standard-train"  # both are shipped with the project
    config.data.test_config = "standard-test"
    config.data.batch_size = 32  # more steps per epoch than 128, which pays for a small network
    config.data.symmetries = True  # exact for normal incidence and mirror walls: eight times the data

    config.model = model = ConfigDict()
    model.name = "compact"
    model.width = 64  # features per pixel
    model.layers = 4  # pairs of a local and an axial layer
    model.refine = 2  # three-dimensional layers after the lift to voxels
    model.depth_features = 8  # features per voxel
    model.groups = 8  # channel groups that share an axial matrix
    model.depth = 20  # voxels along z
    model.conv_impl = "auto"
    model.dtype = "float32"

    config.optim.weight_decay = 0.05  # the usual value for layer-normalised networks
    config.optim.warmup_epochs = 3
    config.optim.average_decay = 0.999
    config.phase1.epochs = 100
    config.phase1.learning_rate = 2e-3
    config.phase1.final_learning_rate = 2e-5
    config.phase1.loss.lam = 0.5  # unweighted: class weights shift the decision away from the best IoU
    config.phase2.epochs = 50
    config.phase2.learning_rate = 5e-4
    config.phase2.final_learning_rate = 5e-6
    config.phase2.loss.classes = "cu"  # with per_sample, the reported metric itself
    config.phase2.loss.per_sample = True
    return config
