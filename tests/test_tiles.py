import jax
import numpy as np
import pytest
from scipy import ndimage

from bsevox_jax import tiles


@pytest.mark.parametrize("size, width, halo", [(7, 8, 2), (8, 8, 2), (9, 8, 2), (100, 32, 8), (64, 40, 12)])
def test_windows_keep_every_pixel_once_and_a_halo_around_it(size, width, halo):
    pieces = tiles.windows(size, width, halo)
    kept = np.concatenate([np.arange(size)[part] for _, part in pieces])
    np.testing.assert_array_equal(kept, np.arange(size))
    for window, part in pieces:
        assert window.stop - window.start == min(size, width)
        assert part.start - window.start >= halo or window.start == 0
        assert window.stop - part.stop >= halo or window.stop == size


def smoothed(batch):
    return np.stack([ndimage.uniform_filter(one, (7, 7, 0), mode="reflect") for one in batch])


@pytest.mark.parametrize("shape", [(50, 41), (20, 70)])
def test_windows_give_what_the_whole_field_gives(shape):
    images = np.random.default_rng(0).random((*shape, 3)).astype(np.float32)
    found = tiles.tiled(smoothed, images, channels=(3,), width=24, halo=3)
    np.testing.assert_allclose(found, smoothed(images[None])[0], atol=1e-6)


def test_a_stopped_run_computes_only_what_is_missing(tmp_path):
    images = np.random.default_rng(1).random((200, 24, 2)).astype(np.float32)
    settings = dict(channels=(2,), width=24, halo=3, keep=str(tmp_path / "kept.npy"))
    looked_at = []

    def counting(batch):
        if len(looked_at) == stop_at:
            raise KeyboardInterrupt
        looked_at.append(len(batch))
        return smoothed(batch)

    total, devices = len(tiles.windows(200, 24, 3)), jax.device_count()
    assert total > 2 * devices
    stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        tiles.tiled(counting, images, **settings)
    stop_at = None
    looked_at.clear()
    resumed = tiles.tiled(counting, images, **settings)
    np.testing.assert_allclose(resumed, smoothed(images[None])[0], atol=1e-6)
    assert sum(looked_at) == total - devices
    looked_at.clear()
    np.testing.assert_array_equal(tiles.tiled(counting, images, **settings), resumed)
    assert not looked_at
