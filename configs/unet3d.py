"""The baseline: a 3D U-Net (Cicek et al. 2016) that takes the energy axis for depth; the paper's recipe."""

from ml_collections import ConfigDict

from configs import moderate


def get_config() -> ConfigDict:
    config = moderate.get_config()
    config.model = model = ConfigDict()
    model.name = "unet3d"
    model.base = 32  # width of the first convolution, the published one; 16 with 3 levels suits a CPU
    model.levels = 4  # resolutions, the published number
    model.energy_maps = 0  # learned matrices from energy to depth in front; 0: depth is the energy's index
    model.depth = 20  # voxels along z that the energy maps lead to
    model.conv_impl = "auto"
    model.dtype = "float32"
    return config
