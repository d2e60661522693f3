import sys

import numpy as np
import pytest
from scipy import ndimage

from bsevox_jax import forward, registration

SIDE, MARGIN, DOSE = 96, 16, 600
ENERGIES = slice(2, 16, 2)  # of the image model: seven, from 1.5 to 7.5 keV


def labels():
    """Lines in two levels, joined by vias, in silicon."""
    side = SIDE + 2 * MARGIN
    volume = np.ones((side, side, 20), np.uint8)
    for start, width in ((20, 5), (38, 8), (61, 6), (80, 11), (101, 7)):
        volume[start : start + width, 18:74, 1:6] = 2
        volume[44:108, start + 4 : start + width, 7:13] = 2
    volume[24:34, 84:108] = 2
    return volume


@pytest.fixture(scope="module")
def yields():
    model = forward.load()
    return np.asarray(forward.expect_all(model, labels()[None]).yields[0])[..., ENERGIES]


def moved(yields, scale, shift, side=SIDE):
    """What each image shows: the point u of the specimen at scale u + shift, in pixels from the centre."""
    images = np.empty((side, side, len(scale)))
    for k, (s, t) in enumerate(zip(scale, shift, strict=True)):
        inverse = np.array([[(1 / s).real, -(1 / s).imag], [(1 / s).imag, (1 / s).real]])
        first = -(side - 1) / 2 - np.array([t.real, t.imag])
        place = inverse @ first + (np.array(yields.shape[:2]) - 1) / 2
        images[..., k] = ndimage.affine_transform(
            yields[..., k], inverse, place, output_shape=(side, side), mode="nearest"
        )
    return images


def counted(yields, seed):
    return np.random.default_rng(seed).binomial(DOSE, np.clip(yields, 0, 1)).astype(np.float32)


def drift(seed, count):
    """A walk of 1 pixel, 0.2 degrees and 0.4 % per image; mean 1 and 0, as of the mean frame."""
    y, x, turn, growth = np.random.default_rng(seed).normal(size=(4, count)).cumsum(1)
    scale = np.exp(0.004 * growth + 1j * np.deg2rad(0.2 * turn))
    scale /= scale.mean()
    shift = y + 1j * x
    return scale, shift - shift.mean() * scale


def rms_error_nm(found, scale, shift, pixel_nm=1.0):
    """[e], over the field."""
    y, x = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    u = (y + 1j * x)[..., None] * pixel_nm
    was = u * found.magnification * np.exp(1j * found.rotation_rad) + found.shift_nm @ (1, 1j)
    return np.sqrt(np.mean(np.abs(was - u * scale - shift * pixel_nm) ** 2, axis=(0, 1)))


@pytest.fixture(scope="module")
def recorded(yields):
    scale, shift = drift(0, yields.shape[-1])
    images = counted(moved(yields, scale, shift), 1)
    return images, scale, shift, registration.register(images, 2.0)


def test_known_shift_rotation_and_magnification_are_found(recorded):
    _, scale, shift, found = recorded
    error = rms_error_nm(found, scale, shift, pixel_nm=2.0)
    assert found.determined.all()
    assert error.max() < 0.2 and np.sqrt(np.mean(error**2)) < 0.12  # a tenth of a pixel, and less
    assert rms_error_nm(found, np.ones(len(scale)), np.zeros(len(scale)), 2.0).max() > 2
    assert (found.residual_nm < 0.5).all()


def test_independent_large_transforms_are_found(yields):
    draw = np.random.default_rng(3).uniform(-1, 1, (4, yields.shape[-1]))
    scale = np.exp(0.02 * draw[0] + 1j * np.deg2rad(draw[1]))
    shift = 7 * (draw[2] + 1j * draw[3])
    scale, shift = scale / scale.mean(), shift - shift.mean() * scale / scale.mean()
    found = registration.register(counted(moved(yields, scale, shift), 4), 1.0)
    error = rms_error_nm(found, scale, shift)
    assert error.max() < 0.25


def test_gain_offset_and_sign_of_an_image_do_not_matter(recorded):
    images, _, _, found = recorded
    gain = np.linspace(0.5, 40, images.shape[-1])
    gain[3] *= -1
    other = registration.register(images * gain + 100 * gain[::-1], 2.0)
    np.testing.assert_allclose(other.shift_nm, found.shift_nm, atol=1e-3)
    np.testing.assert_allclose(other.rotation_rad, found.rotation_rad, atol=1e-5)
    np.testing.assert_allclose(other.magnification, found.magnification, atol=1e-5)


def test_an_image_of_noise_or_of_nothing_is_marked_and_interpolated(recorded):
    images, *_ = recorded
    images = images.copy()
    images[..., 3] = np.random.default_rng(5).poisson(50, images.shape[:2])
    images[..., 6] = 50
    found = registration.register(images, 2.0)
    assert found.determined.tolist() == [True, True, True, False, True, True, False]
    assert np.isnan(found.residual_nm).tolist() == (~found.determined).tolist()
    np.testing.assert_allclose(found.shift_nm[3], (found.shift_nm[2] + found.shift_nm[4]) / 2)
    np.testing.assert_allclose(found.shift_nm[6], found.shift_nm[5])
    lines = registration.report_lines(found, 2.0, range(1, 8))
    assert [line[:21] for line in lines if "Warning" in line] == [
        "Warning: at 4 keV no ",
        "Warning: at 7 keV no ",
    ]


def test_aligned_images_stay(yields):
    count = yields.shape[-1]
    images = counted(yields[MARGIN:-MARGIN, MARGIN:-MARGIN], 7)
    found = registration.register(images, 1.0)
    assert rms_error_nm(found, np.ones(count), np.zeros(count)).max() < 0.15


def test_a_residual_above_half_a_pixel_is_a_warning(recorded):
    *_, found = recorded
    lines = registration.report_lines(found, found.residual_nm.max(), range(1, 8))
    assert sum("above half a pixel" in line for line in lines) >= 1
    assert len(registration.report_lines(found, 2.0, range(1, 8))) == 7


def identity(count, scale=1.0):
    return registration.Registration(
        shift_nm=np.zeros((count, 2)),
        rotation_rad=np.zeros(count),
        magnification=np.full(count, scale),
        residual_nm=np.zeros(count),
        determined=np.ones(count, bool),
        assumptions=(),
    )


def test_resampling_by_nothing_returns_the_images():
    images = np.random.default_rng(0).poisson(30, (40, 52, 2)).astype(np.float32)
    same = registration.resample(images, identity(2), 1.0, 1.0)
    assert same.offset_nm == (0, 0) and same.electrons_factor == 1
    np.testing.assert_allclose(same.images, images, atol=1e-3)


def test_finer_pixels_are_averaged_and_coarser_ones_interpolated():
    images = np.random.default_rng(0).poisson(30, (64, 80, 2)).astype(np.float32)
    coarse = registration.resample(images, identity(2), 0.5, 1.0)
    assert coarse.images.shape == (32, 40, 2) and coarse.electrons_factor == 4
    np.testing.assert_allclose(coarse.images.mean((0, 1)), images.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(coarse.images[3, 5], images[6:8, 10:12].mean((0, 1)), rtol=1e-4)
    fine = registration.resample(np.full((32, 32, 2), 7), identity(2), 2.0, 0.7)
    assert fine.images.shape == (91, 91, 2) and fine.electrons_factor == pytest.approx(0.35**2)
    np.testing.assert_allclose(fine.images, 7, rtol=1e-5)


def test_resampled_images_lie_over_each_other(yields):
    scale, shift = drift(2, yields.shape[-1])
    images = moved(yields, scale, shift)
    known = registration.Registration(
        np.stack([shift.real, shift.imag], -1), np.angle(scale), np.abs(scale), *[None] * 2, ()
    )
    found = registration.resample(images, known, 1.0)
    first = np.array(found.offset_nm).astype(int) + MARGIN
    last = first + found.images.shape[:2]
    truth = yields[first[0] : last[0], first[1] : last[1]]
    assert min(truth.shape[:2]) > SIDE - 12
    error = np.sqrt(np.mean((found.images - truth) ** 2, axis=(0, 1)))
    assert (error < 0.1 * truth.std((0, 1))).all()  # edges are as sharp as pixels, and interpolated twice
    unregistered = images[first[0] - MARGIN :, first[1] - MARGIN :][: len(truth), : truth.shape[1]] - truth
    assert np.median(np.sqrt(np.mean(unregistered**2, axis=(0, 1))) / error) > 3


@pytest.mark.parametrize("pixel_nm", [1.0, 0.6, 1.7])
def test_noise_keeps_the_share_of_its_variance_that_is_told(pixel_nm):
    count, size = 24, 64
    noise = np.random.default_rng(8).normal(size=(size, size, count)).astype(np.float32)
    shift_nm = np.random.default_rng(9).uniform(-2, 2, (count, 2))
    angle, magnification = np.linspace(-0.01, 0.01, count), np.linspace(0.99, 1.01, count)
    known = registration.Registration(shift_nm, angle, magnification, *[None] * 2, ())
    laid = registration.resample(noise, known, pixel_nm)
    # Pixels that are given have variance 1, where counting would give 1 / electrons_factor.
    told = laid.noise / laid.electrons_factor
    near = told > np.median(told)
    for some in (near, ~near):
        assert np.square(laid.images)[some].mean() == pytest.approx(told[some].mean(), rel=0.03)
    if pixel_nm == 1:
        assert told.mean() == pytest.approx(0.76, abs=0.05) and told.min() == pytest.approx(0.57, abs=0.01)


def refused(match, call, *arguments):
    with pytest.raises(ValueError, match=match) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


def test_what_cannot_be_registered_is_refused_in_one_line(recorded, monkeypatch):
    images, *_, found = recorded
    noise = np.random.default_rng(0).poisson(20, (64, 64, 4))
    lines = np.broadcast_to(np.sin(np.arange(64) / 3)[:, None, None], (64, 64, 4)) * 50
    refused("share structure", registration.register, noise, 1.0)
    refused("share structure", registration.register, lines, 1.0)
    refused("share structure", registration.register, lines + noise, 1.0)
    refused("share structure", registration.register, np.full((64, 64, 4), 7), 1.0)
    refused("at least 32 x 32", registration.register, images[:20], 1.0)
    refused("pixel_nm positive", registration.register, images, 0.0)
    refused("finite", registration.register, np.where(images > 5, np.nan, images), 1.0)
    refused("those registered", registration.resample, images[..., :3], found, 2.0)
    refused("field in common", registration.resample, images, far(found), 2.0)
    monkeypatch.setitem(sys.modules, "skimage.registration", None)
    refused("needs scikit-image", registration.register, images, 1.0)


def far(found):
    shift_nm = found.shift_nm.copy()
    shift_nm[0] = 1e4
    return registration.Registration(
        shift_nm, found.rotation_rad, found.magnification, found.residual_nm, found.determined, ()
    )
