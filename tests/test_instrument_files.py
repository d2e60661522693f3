import dataclasses
import functools
import math

import instrument_writers as writers
import numpy as np
import pytest
import tifffile
from recordings import (
    CURRENT_NA,
    DWELL_S,
    ENERGIES_KEV,
    PIXEL_NM,
    TELL_DOSE,
    VENDORS,
    assert_refused,
    noisy_images,
    write_folder,
    write_general,
)

from bsevox_jax import forward, imageio, instrument_files


@pytest.fixture(scope="module")
def images():
    return noisy_images()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("vendor", VENDORS)
def test_images_energies_pixel_and_dose_of_each_vendor_come_back(vendor, dtype, images, tmp_path):
    stored = images.astype(dtype) * (1 if dtype == np.uint8 else 251)
    order = (2, 0, 1)
    energies_kev = [ENERGIES_KEV[k] for k in order]
    write_folder(tmp_path, vendor, stored[..., order], energies_kev, frames=2)
    recording = instrument_files.read(tmp_path)
    np.testing.assert_array_equal(recording.images, stored)
    assert recording.images.dtype == dtype and recording.beam_energies_kev == ENERGIES_KEV
    assert recording.source == ("site 7_500 V.tif", "site 7_2000 V.tif", "site 7_10000 V.tif")
    assert recording.pixel_nm == pytest.approx(PIXEL_NM) and "of the gun" in recording.landing
    if vendor in TELL_DOSE:
        assert recording.dwell_s == pytest.approx([2 * DWELL_S] * 3)
        assert recording.current_na == pytest.approx([CURRENT_NA] * 3)
        assert recording.electrons_per_pixel == pytest.approx([2 * 624.15] * 3, rel=1e-4)  # 100 pA, 1 us: 624
    else:
        assert recording.electrons_per_pixel == recording.dwell_s == recording.current_na == (None,) * 3
        assert any("dose of an image is not known" in text for text in recording.assumptions)


@pytest.mark.parametrize("vendor", VENDORS)
def test_stage_bias_lowers_the_landing_energy_and_the_told_bar_is_cut(vendor, images, tmp_path):
    bar = {} if vendor == "zeiss" else {"bar": True}
    write_folder(tmp_path, vendor, images, stage_bias_v=400.0, **bar)
    recording = instrument_files.read(tmp_path, electrons_per_pixel=(7, 8, 9))
    assert recording.beam_energies_kev == pytest.approx((0.1, 1.6, 9.6))
    assert "10 keV less 400 V of the stage" in recording.landing
    # The files sort as 500, 2000, 10000 V, the order of the doses.
    assert recording.electrons_per_pixel == (7, 8, 9)
    np.testing.assert_array_equal(recording.images, images)
    text = " ".join(recording.assumptions)
    assert ("Rows from 48 of 56 are a data bar" in text) == bool(bar)
    assert "A bias of the stage changes the energy" in text
    assert ("if the voltage told is that of the gun" in text) == (vendor in ("zeiss", "tescan", "hitachi"))


@pytest.mark.parametrize(
    "vendor, changes",
    [
        ("thermo", {"EBeamDeceleration.ModeOn": "On", "EBeamDeceleration.LandingEnergy": "450"}),
        ("thermo", {"EBeamDeceleration.ModeOn": "On", "EBeamDeceleration.LandingEnergy": ""}),
        ("thermo", {"EBeamDeceleration.StageBias": "50"}),
        ("thermo", {"Beam.FineStageBias": "50"}),
        ("thermo", {"Beam.HV": ""}),
        ("thermo", {"Beam.HV": "-500"}),
        ("zeiss", {"AP_ACTUALKV": ""}),
        ("zeiss", {"AP_ACTUALKV": "EHT = Off"}),
        ("zeiss", {"AP_STAGE_BIAS_VOLTAGE": "Stage bias Low Volts = 40.0 V"}),
        ("tescan", {"SampleVoltage": "-600"}),
        ("jeol", {"$SM_GB_BIAS_VOLT": "0.2"}),
        ("hitachi", {"AcceleratingVoltage": "1e999 Volt"}),
    ],
)
def test_landing_energy_that_is_not_clear_must_be_given(vendor, changes, images, tmp_path):
    write_folder(tmp_path, vendor, images[..., :1], ENERGIES_KEV[:1], changes=changes)
    assert_refused(
        r"landing energy; got none \(.*Give beam_energies_kev= in the order site 7_500 V.tif", tmp_path
    )
    recording = instrument_files.read(tmp_path, beam_energies_kev=[0.3])
    assert recording.beam_energies_kev == (0.3,) and recording.landing == "as given"


@pytest.mark.parametrize(
    "vendor, changes, message",
    [
        ("thermo", {"Beam.Beam": "IBeam"}, "must be of an electron beam; got IBeam"),
        ("thermo", {"Scan.PixelHeight": "3e-9"}, "must be square; got 2 x 3 nm"),
        ("thermo", {"Scan.PixelWidth": ""}, "needs its pixel size; got none .*Give pixel_nm="),
        ("jeol", {"$$SM_MICRON_MARKER": "1 furlong"}, "needs its pixel size"),
        ("jeol", {"$CM_FULL_SIZE": "1280 48"}, "needs its pixel size"),  # the image was made smaller
        ("hitachi", {"DataSize": "1280x960"}, "needs its pixel size"),
    ],
)
def test_pixel_that_is_not_clear_is_refused(vendor, changes, message, images, tmp_path):
    assert_refused(message, write_folder(tmp_path, vendor, images, changes=changes))


def test_zeiss_pixel_of_unnamed_numbers_and_damaged_micro_sign(images, tmp_path):
    write_folder(tmp_path / "a", "zeiss", images, changes={"AP_IMAGE_PIXEL_SIZE": ""})
    assert instrument_files.read(tmp_path / "a").pixel_nm == pytest.approx(PIXEL_NM, rel=1e-5)
    write_folder(
        tmp_path / "b", "zeiss", images, changes={"AP_IMAGE_PIXEL_SIZE": "Image Pixel Size = 0.003 ?m"}
    )
    assert instrument_files.read(tmp_path / "b").pixel_nm == pytest.approx(3.0)


def test_tescan_header_beside_the_image_is_read(images, tmp_path):
    recording = instrument_files.read(write_folder(tmp_path, "tescan", images, beside=True, bar=True))
    np.testing.assert_array_equal(recording.images, images)
    assert recording.beam_energies_kev == ENERGIES_KEV and recording.pixel_nm == pytest.approx(PIXEL_NM)


def test_one_file_of_pages_with_tags_each(images, tmp_path):
    write_folder(tmp_path / "a", "thermo", images)
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for path in sorted((tmp_path / "a").iterdir()):
            with tifffile.TiffFile(path) as page:
                tag = page.pages[0].tags[34682]
                page.filehandle.seek(tag.valueoffset)
                text = page.filehandle.read(tag.count)
                file.write(
                    page.asarray(), extratags=[(34682, "s", len(text), text, True)], photometric="minisblack",
                    metadata=None,
                )  # fmt: skip
    recording = instrument_files.read(tmp_path / "pages.tif")
    np.testing.assert_array_equal(recording.images, images)
    assert recording.beam_energies_kev == ENERGIES_KEV and recording.source[0] == "pages.tif, page 2"


@pytest.mark.parametrize("name", ["a.ome.tif", "a.mrc", "a.h5", "a.hspy"])
def test_general_formats_come_back(name, images, tmp_path):
    recording = instrument_files.read(tmp_path / name, **write_general(tmp_path, images)[name])
    np.testing.assert_array_equal(recording.images, images)
    assert recording.beam_energies_kev == pytest.approx((0.5, 1.0, 1.5))
    assert recording.pixel_nm == pytest.approx(PIXEL_NM)
    assert recording.electrons_per_pixel == ((40.0,) * 3 if name == "a.h5" else (None,) * 3)


def test_hyperspy_axis_may_have_uneven_steps(images, tmp_path):
    writers.write_hyperspy(tmp_path / "a.hspy", images, beam_energies_kev=ENERGIES_KEV, pixel_nm=PIXEL_NM)
    assert instrument_files.read(tmp_path / "a.hspy").beam_energies_kev == ENERGIES_KEV


def test_stack_of_this_package_is_read_too(images, tmp_path):
    imageio.write_stack(str(tmp_path), imageio.Stack(images.astype(np.int32), ENERGIES_KEV, 400))
    recording = instrument_files.read(tmp_path / "stack.tif", pixel_nm=1.0)
    np.testing.assert_array_equal(recording.images, images)
    assert (recording.beam_energies_kev, recording.electrons_per_pixel) == (ENERGIES_KEV, (400,) * 3)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64, np.dtype(">u2")])
def test_other_numbers_become_unsigned_or_float32(dtype, images, tmp_path):
    stored = images.astype(dtype) - (500 if dtype == np.int16 else 0)
    writers.write_hdf5(tmp_path / "a.h5", stored, beam_energies_kev=ENERGIES_KEV, pixel_nm=1.0)
    recording = instrument_files.read(tmp_path / "a.h5")
    np.testing.assert_array_equal(recording.images, stored)
    expected = {np.int32: np.uint32, np.dtype(">u2"): np.uint16}
    assert recording.images.dtype == expected.get(dtype, np.float32)


def test_axes_are_told_guessed_or_asked_for(images, tmp_path):
    square = images[:40]
    for order, stored in (
        ("eyx", np.moveaxis(square, -1, 0)),
        ("yxe", square),
        ("yex", np.moveaxis(square, -1, 1)),
    ):
        writers.write_hdf5(tmp_path / f"{order}.h5", stored, pixel_nm=1.0, beam_energies_kev=ENERGIES_KEV)
        given = {"axes": order} if order == "yex" else {}
        np.testing.assert_array_equal(instrument_files.read(tmp_path / f"{order}.h5", **given).images, square)
    assert_refused(r"axis of the energies must be clear.*Give axes=", tmp_path / "yex.h5")
    writers.write_hdf5(tmp_path / "cube.h5", square[:3, :3], pixel_nm=1.0, beam_energies_kev=ENERGIES_KEV)
    assert_refused(r"must be clear; got shape \(3, 3, 3\), 3 energies", tmp_path / "cube.h5")
    assert_refused("axes must be eyx or yxe; got xye", tmp_path / "yxe.h5", axes="xye")


def test_what_is_given_takes_precedence_and_the_difference_is_told(images, tmp_path):
    write_folder(tmp_path, "zeiss", images)
    recording = instrument_files.read(
        tmp_path, beam_energies_kev=(3, 2, 1), pixel_nm=5, electrons_per_pixel=100, rows=(2, 40)
    )
    np.testing.assert_array_equal(recording.images, images[2:40, :, ::-1])
    assert (recording.beam_energies_kev, recording.pixel_nm) == ((1, 2, 3), 5)
    assert recording.electrons_per_pixel == (100,) * 3
    text = " ".join(recording.assumptions)
    assert "other landing energies: 0.5, 2, 10 keV" in text and "other sizes of a pixel: 2 nm" in text


@pytest.mark.parametrize(
    "given, message",
    [
        ({"beam_energies_kev": (1, 2)}, "got 3 images, 2 energies. Give beam_energies_kev= in the order"),
        ({"beam_energies_kev": (1, 2, 2)}, "must differ and be 0.01 to 300 keV; got 1, 2, 2"),
        ({"beam_energies_kev": (0, 1, 2)}, "must differ and be 0.01 to 300 keV"),
        ({"beam_energies_kev": (1, 2, math.nan)}, "must differ and be 0.01 to 300 keV"),
        ({"pixel_nm": 0}, "pixel_nm must be 0.001 to 1e\\+06; got 0"),
        ({"electrons_per_pixel": (1, 2)}, "one or one per image; got 1, 2 for 3 images"),
        ({"electrons_per_pixel": -1}, "electrons_per_pixel must be positive"),
        ({"rows": (0, 60)}, "rows must lie in the image; got 0, 60 of 48"),
    ],
)
def test_what_is_given_must_be_possible(given, message, images, tmp_path):
    assert_refused(message, write_folder(tmp_path, "thermo", images), **given)


def test_images_that_do_not_belong_together_are_refused(images, tmp_path):
    write_folder(tmp_path / "a", "jeol", images, energies_kev=(1.0, 2.0, 3.0))
    writers.write_jeol(tmp_path / "a" / "more.tif", images[..., 0], beam_energy_kev=2.0, pixel_nm=PIXEL_NM)
    assert_refused("must differ and be 0.01 to 300 keV; got 2, 1, 2, 3", tmp_path / "a")
    writers.write_jeol(tmp_path / "a" / "more.tif", images[..., 0], beam_energy_kev=4.0, pixel_nm=3.0)
    assert_refused("pixels must be of one size; got 2, 3 nm", tmp_path / "a")
    writers.write_jeol(tmp_path / "a" / "more.tif", images[:40, :, 0], beam_energy_kev=4.0, pixel_nm=PIXEL_NM)
    assert_refused("of one size and type; got 40 x 40 uint8, 48 x 40 uint8", tmp_path / "a")


def test_bar_that_no_file_tells_is_refused_with_the_rows_to_give(images, tmp_path):
    barred = np.stack([writers.with_data_bar(image) for image in np.moveaxis(images, -1, 0)], axis=-1)
    write_folder(tmp_path, "zeiss", barred)
    assert_refused(r"no data bar; got .* from 48 of 56 .*Give rows=\(0, 48\), or rows=\(0, 56\)", tmp_path)
    np.testing.assert_array_equal(instrument_files.read(tmp_path, rows=(0, 48)).images, images)
    np.testing.assert_array_equal(instrument_files.read(tmp_path, rows=(0, 56)).images, barred)


def test_saturated_rows_of_the_specimen_do_not_widen_the_bar(images, tmp_path):
    barred = np.tile(writers.with_data_bar(images[..., 0]), (1, 2))
    barred = np.concatenate([images[:40, :, 0].repeat(2, axis=1), barred])
    barred[74:78] = 255
    barred[-20:-12] = images[:8, :, 0].repeat(2, axis=1) * 2
    write_folder(tmp_path, "tescan", np.stack([barred] * 3, axis=-1))
    assert_refused(r"Give rows=\(0, 88\)", tmp_path)


def test_gamma_that_a_file_tells_is_listed(images, tmp_path):
    write_folder(tmp_path, "thermo", images, changes={"Image.DigitalGamma": "1.6"})
    assert any("A gamma of 1.6" in text for text in instrument_files.read(tmp_path).assumptions)


def test_few_counts_are_no_data_bar(tmp_path):
    counts = np.random.default_rng(1).poisson(0.2, (40, 50, 3)).astype(np.uint8)
    np.testing.assert_array_equal(
        instrument_files.read(write_folder(tmp_path, "tescan", counts)).images, counts
    )


@pytest.mark.parametrize("value", [7, np.nan])
def test_image_without_contrast_or_finite_values_is_refused(value, images, tmp_path):
    flat = np.where(np.arange(3) == 1, value, images.astype(np.float32))
    writers.write_hdf5(tmp_path / "a.h5", flat, beam_energies_kev=ENERGIES_KEV, pixel_nm=1.0)
    assert_refused("finite and have contrast; .* a.h5, image 1", tmp_path / "a.h5", rows=(0, 48))


def test_colours_and_inverted_images_are_refused_and_grey_palettes_are_not(images, tmp_path):
    given = {"beam_energies_kev": [1.0], "pixel_nm": 1.0}
    tifffile.imwrite(tmp_path / "a.tif", images, photometric="rgb")
    assert_refused("must be grey, zero black; got photometric 2", tmp_path / "a.tif", **given)
    tifffile.imwrite(tmp_path / "a.tif", images[..., 0], photometric="miniswhite")
    assert_refused("must be grey, zero black; got photometric 0", tmp_path / "a.tif", **given)
    red = np.zeros((3, 256), np.uint16)
    red[0] = np.arange(256) * 257
    tifffile.imwrite(tmp_path / "a.tif", images[..., 0], photometric="palette", colormap=red)
    assert_refused("must be grey, zero black; got photometric 3", tmp_path / "a.tif", **given)
    writers.write_zeiss(tmp_path / "a.tif", images[..., 0] // 9 * 9, beam_energy_kev=1.0, pixel_nm=1.0)
    assert_refused("must show no coloured marks; got some in a.tif", tmp_path / "a.tif", **given)


SILICON, COPPER = np.zeros((2, 24, 60), bool)
SILICON[2:22, 2:26] = COPPER[2:22, 32:56] = True


@pytest.fixture(scope="module")
def calibrated():
    """Grey values of a pad of copper in silicon, with another gain and offset for each energy."""
    model = forward.load()
    labels = np.where(COPPER[..., None], 2, 1).astype(np.uint8) * np.ones((1, 1, 20), np.uint8)
    yields = forward.expect_all(model, labels[None]).yields[0]
    gain, offset = 500.0 + 40 * np.arange(20), 30.0 - 2 * np.arange(20)
    nothing = (None,) * 20
    recording = instrument_files.Recording(
        (yields * gain + offset).astype(np.float32), model.beam_energies_kev, "", 1.0, nothing, nothing,
        nothing, (), ("",) * 20,
    )  # fmt: skip
    return recording, yields, model


def test_a_pad_and_bare_silicon_undo_gain_and_offset(calibrated):
    recording, yields, model = calibrated
    to_yields = functools.partial(instrument_files.to_yields, silicon=SILICON, copper=COPPER, model=model)
    found = to_yields(recording)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, yields, rtol=1e-3, atol=1e-5)
    images, energies_kev = recording.images[..., 2:5], recording.beam_energies_kev[2:5]
    few = dataclasses.replace(recording, images=images, beam_energies_kev=energies_kev)
    np.testing.assert_allclose(to_yields(few), yields[..., 2:5], rtol=1e-3, atol=1e-5)


def test_areas_that_are_small_or_exchanged_and_unknown_energies_are_refused(calibrated):
    recording, _, model = calibrated
    to_yields = functools.partial(instrument_files.to_yields, recording, model=model)
    small = np.zeros_like(COPPER)
    small[:9, :9] = True
    with pytest.raises(ValueError, match="silicon must have 64 pixels inside a rim of 4; got 1"):
        to_yields(silicon=small, copper=COPPER)
    with pytest.raises(ValueError, match=r"copper must be a mask, bool \(24, 60\); got bool \(3, 3\)"):
        to_yields(silicon=SILICON, copper=np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="must be of one sign in grey values and in yields, .* at 0.5 keV"):
        to_yields(silicon=COPPER, copper=SILICON)
    other = dataclasses.replace(recording, beam_energies_kev=(0.7, *recording.beam_energies_kev[1:]))
    with pytest.raises(ValueError, match="must be among those of the image model"):
        instrument_files.to_yields(other, silicon=SILICON, copper=COPPER, model=model)
