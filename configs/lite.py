"""BSE-VoxNets Lite: 16 million parameters; widths and blocks of Zheng et al. 2024, Table 1."""

from ml_collections import ConfigDict

from configs import moderate


def get_config() -> ConfigDict:
    config = moderate.get_config()
    config.model.widths = (192, 384)
    config.model.blocks = (2, 5)
    return config
