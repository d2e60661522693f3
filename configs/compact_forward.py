"""Our network on specimens drawn on the fly: it never sees the same image twice, at any dose in a range."""

from ml_collections import ConfigDict

from configs import compact


def get_config() -> ConfigDict:
    config = compact.get_config()
    config.data.source = "forward"
    config.data.forward.specimens = 2560  # about as many steps per epoch as on standard-train
    config.data.forward.fresh = 320  # a specimen stays for eight epochs, with other noise in each
    return config
