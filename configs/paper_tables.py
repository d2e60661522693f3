"""All methods beside our network on the standard test: the tables and figures of the paper, with ours."""

from pathlib import Path

from ml_collections import ConfigDict

from configs import compact, lite, medium, moderate, small, unet3d

ROOT = Path(__file__).parent.parent


def get_config() -> ConfigDict:
    config = compact.get_config()
    config.compare = compare = ConfigDict()
    compare.methods = (
        "map",
        "tv",
        "em",
        "blind",
        "wiener",
        "linear",
        "trees",
        "nearest",
        "extrusion",
        "mean",
    )
    compare.networks = ConfigDict()  # {"title": "folder of an exported network"}, beside ours

    # Settings of the methods, chosen on validation specimens by benchmarks/methods.py.
    compare.map = ConfigDict(dict(strength=1.0, learning_rate=0.1, iterations=100))
    compare.tv = ConfigDict(dict(strength=1.0, model_error=0.3, iterations=300))
    compare.em = ConfigDict(dict(cycles=20))
    compare.blind = ConfigDict(dict(iterations=10))
    compare.linear = ConfigDict(dict(ridge=1e-4))
    compare.trees = ConfigDict(dict(voxels=200_000, trees=100, seed=0))

    compare.sizes = ConfigDict()  # fields of the networks of Table 2
    for title, of in (
        ("Lite", lite),
        ("Small", small),
        ("Medium", medium),
        ("Moderate", moderate),
        ("3D U-Net", unet3d),
        ("compact", compact),
    ):
        compare.sizes[title] = of.get_config().model
    compare.ablation = str(
        ROOT / "docs" / "benchmarks" / "ablation_paper.json"
    )  # for Table 1, if it is there
    return config
