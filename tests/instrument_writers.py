"""Files as five makers of microscopes write them, and three general formats, for tests and demonstrations."""

import struct
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import tifffile

NAME, VENDOR_BAR = "bsevox_jax test", 0.08  # height of a data bar relative to the field


def with_data_bar(grey: np.ndarray) -> np.ndarray:
    """The image above a black bar with white marks instead of text, and a white line at the very bottom."""
    height = max(8, round(VENDOR_BAR * len(grey)))
    bar = np.zeros((height, grey.shape[1]), grey.dtype)
    bar[2:-3, :: max(3, grey.shape[1] // 12)] = np.iinfo(grey.dtype).max
    bar[-1] = np.iinfo(grey.dtype).max
    return np.concatenate([grey, bar])


def write_thermo(
    path,
    grey,
    *,
    beam_energy_kev,
    pixel_nm,
    dwell_s=1e-6,
    current_na=0.1,
    stage_bias_v=0.0,
    frames=1,
    bar=False,
    changes=None,
):
    """A TIFF of xT: INI text in the tag 34682; the landing energy is that of the gun less the bias."""
    ini = {
        "User": {"Date": "11/27/2026", "Time": "10:22:13 AM", "User": NAME},
        "System": {"Type": "SEM", "Dnumber": "9950000", "SystemType": "Verios 5"},
        "Beam": {"HV": f"{beam_energy_kev * 1e3:g}", "Spot": "", "Beam": "EBeam", "Scan": "EScan"},
        "EBeam": {
            "Source": "FEG",
            "HV": f"{beam_energy_kev * 1e3:g}",
            "BeamCurrent": f"{current_na * 1e-9:g}",
        },
        "Scan": {
            "InternalScan": "true",
            "Dwelltime": f"{dwell_s:g}",
            "PixelWidth": f"{pixel_nm * 1e-9:.9g}",
            "PixelHeight": f"{pixel_nm * 1e-9:.9g}",
            "Average": "0",
            "Integrate": str(frames),
        },
        "EScan": {"Dwell": f"{dwell_s:g}", "LineIntegration": "1", "ScanInterlacing": "1"},
        "Image": {"ResolutionX": str(grey.shape[1]), "ResolutionY": str(len(grey)), "Integrate": str(frames)},
        "Detectors": {"Number": "1", "Name": "CBS", "Mode": "All"},
        "EBeamDeceleration": {
            "ModeOn": "On" if stage_bias_v else "Off",
            "LandingEnergy": f"{beam_energy_kev * 1e3 - stage_bias_v:g}",
            "ImmersionRatio": "",
            "StageBias": f"{stage_bias_v:g}",
        },
        "PrivateFei": {
            "BitShift": "0",
            "DatabarHeight": str(len(with_data_bar(grey)) - len(grey)) if bar else "",
        },
    }
    for name, value in (changes or {}).items():
        section, key = name.split(".")
        ini.setdefault(section, {})[key] = value
    parts = ["\r\n".join([f"[{name}]"] + [f"{k}={v}" for k, v in part.items()]) for name, part in ini.items()]
    _tiff(path, with_data_bar(grey) if bar else grey, 34682, "s", "\r\n\r\n".join(parts) + "\r\n")


def write_zeiss(
    path,
    grey,
    *,
    beam_energy_kev,
    pixel_nm,
    dwell_s=1e-6,
    current_na=0.1,
    stage_bias_v=0.0,
    frames=1,
    changes=None,
):
    """A TIFF of SmartSEM: text in the tag 34118, unnamed numbers first; grey values through a palette."""
    unnamed = ["0", "0", "0", f"{pixel_nm * 1e-9 * grey.shape[1] / 1024:.6e}", "1.000507e+004", "6"]
    named = {
        "DP_BEAM_BLANKED": "Beam Blanked = No",
        "DP_DETECTOR_CHANNEL": "Signal A = AsB",
        "DP_DWELL_TIME": f"Dwell Time = {dwell_s * 1e9:g} ns",
        "DP_NOISE_REDUCTION": "Noise Reduction = Frame Avg",
        "AP_FRAME_AVERAGE_COUNT": f"Frames to average = {frames}",
        "AP_MAG": "Mag =   10.00 K X",
        "AP_WD": "WD =  4.1 mm",
        "AP_ACTUALKV": f"EHT = {beam_energy_kev:6.3f} kV",
        "AP_IPROBE": f"I Probe = {current_na * 1e3:g} pA",
        "AP_IMAGE_PIXEL_SIZE": f"Image Pixel Size = {pixel_nm:.5g} nm",
        "DP_STAGE_BIAS_HIGH": f"Beam deceleration = {'On' if stage_bias_v else 'Off'}",
        "AP_STAGE_BIAS_VOLTAGE_HIGH": f"Beam deceleration Volts = {stage_bias_v:g} V",
        "AP_STAGE_BIAS_VOLTAGE": "Stage bias Low Volts =   0.0 V",
        "AP_DATE": "Date :27 Nov 2026",
        "SV_SERIAL_NUMBER": "Serial No. = Merlin-61-00",
    } | (changes or {})
    lines = (
        unnamed + [str(len(named))] + [line for key, text in named.items() if text for line in (key, text)]
    )
    palette = {}
    if grey.dtype == np.uint8:
        colours = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))
        colours[0, 9:235:9] = 65535  # kept for marks; no pixel of the image has these values
        palette = {"photometric": "palette", "colormap": colours}
    _tiff(path, grey, 34118, "s", "\r\n".join(lines) + "\r\n", **palette)


def write_tescan(
    path,
    grey,
    *,
    beam_energy_kev,
    pixel_nm,
    dwell_s=1e-6,
    current_na=0.1,
    stage_bias_v=0.0,
    frames=1,
    bar=False,
    beside=False,
    changes=None,
):
    """A TIFF of TESCAN: blocks in the tag 50431, each with size and kind; or the text in an `.hdr` file."""
    strip = len(with_data_bar(grey)) - len(grey) if bar else 0
    main = {
        "AccFrames": frames,
        "Company": NAME,
        "Device": "CLARA",
        "ImageStripSize": strip,
        "PixelSizeX": f"{pixel_nm * 1e-9:.12f}",
        "PixelSizeY": f"{pixel_nm * 1e-9:.12f}",
    }
    sem = {
        "AcceleratorVoltage": "0",
        "Detector": "LE BSE",
        "DwellTime": f"{dwell_s:.9f}",
        "HV": f"{beam_energy_kev * 1e3:.1f}",
        "PotentialMode": "1" if stage_bias_v else "0",
        "PredictedBeamCurrent": f"{current_na * 1e-9:.6e}",
        "SampleVoltage": f"{-stage_bias_v:.1f}",
    } | (changes or {})
    texts = ["\r\n".join(f"{key}={value}" for key, value in part.items()) + "\r\n" for part in (main, sem)]
    grey = with_data_bar(grey) if bar else grey
    if beside:
        Path(path).with_suffix(".hdr").write_text(f"[MAIN]\r\n{texts[0]}[SEM]\r\n{texts[1]}")
        tifffile.imwrite(path, grey, photometric="minisblack", metadata=None)
        return
    ion = b"HV=30000.0\r\n"  # of the other column, which must not be taken
    thumbnail = b"\xff\xd8\xff\xe0 HV=1 \xff\xd9"
    blocks = [(1, thumbnail), (2, texts[0].encode()), (3, texts[1].encode()), (5, ion), (0, b"")]
    _tiff(path, grey, 50431, "B", b"".join(struct.pack("<IH", len(t) + 2, kind) + t for kind, t in blocks))


def write_jeol(path, grey, *, beam_energy_kev, pixel_nm, stage_bias_v=0.0, bar=False, changes=None, **_):
    """A TIFF of JEOL and its `.txt`; `$CM_ACCEL_VOLT` is what lands, the gun has the bias on top."""
    text = {
        "$CM_FORMAT": "JEOL/SEM",
        "$CM_VERSION": "1.0",
        "$CM_INSTRUMENT": "JSM-7900F",
        "$CM_SIGNAL": "BED-C",
        "$CM_FULL_SIZE": f"{grey.shape[1]} {len(grey)}",
        "$CM_ACCEL_VOLT": f"{beam_energy_kev - stage_bias_v / 1e3:.3f}",
        "$SM_GB_GUN_VOLT": f"{beam_energy_kev:.3f}",
        "$SM_GB_BIAS_VOLT": f"{stage_bias_v / 1e3:.3f}",
        "$CM_MAG": "100000",
        "$$SM_MICRON_BAR": "50",
        "$$SM_MICRON_MARKER": f"{50 * pixel_nm:g}nm",
    } | (changes or {})
    Path(path).with_suffix(".txt").write_text("".join(f"{key} {value}\r\n" for key, value in text.items()))
    tifffile.imwrite(path, with_data_bar(grey) if bar else grey, photometric="minisblack", metadata=None)


def write_hitachi(
    path,
    grey,
    *,
    beam_energy_kev,
    pixel_nm,
    stage_bias_v=0.0,
    bar=False,
    changes=None,
    encoding="utf-16",
    **_,
):
    """A TIFF of Hitachi and its `.txt`, `[SemImageFile]`."""
    text = {
        "InstructName": "SU8230",
        "SampleName": NAME,
        "Format": "tif",
        "ImageName": Path(path).name,
        "DataSize": f"{grey.shape[1]}x{len(grey)}",
        "PixelSize": f"{pixel_nm:.6f}",
        "SignalName": "LA-BSE(U)",
        "AcceleratingVoltage": f"{beam_energy_kev * 1e3:g} Volt",
        "DecelerationVoltage": f"{stage_bias_v:g} Volt",
        "WorkingDistance": "3100 um",
        "EmissionCurrent": "10000 nA",
    } | (changes or {})
    lines = ["[SemImageFile]"] + [f"{key}={value}" for key, value in text.items()]
    Path(path).with_suffix(".txt").write_bytes("\r\n".join(lines).encode(encoding))
    tifffile.imwrite(path, with_data_bar(grey) if bar else grey, photometric="minisblack", metadata=None)


def write_ome(path, images, *, pixel_nm):
    """An OME-TIFF, one channel per energy; images [y, x, e]."""
    about = {"axes": "CYX", "PhysicalSizeX": pixel_nm, "PhysicalSizeXUnit": "nm"}
    about |= {"PhysicalSizeY": pixel_nm, "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(path, np.moveaxis(images, -1, 0), ome=True, photometric="minisblack", metadata=about)


def write_hdf5(path, images, **attributes):
    """An HDF5 file with one array and attributes of it, stored as given."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("images", data=images, compression="gzip")
        data.attrs.update(attributes)


def write_mrc(path, images, *, pixel_nm):
    """An MRC stack, one section per energy; images [y, x, e]."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(np.moveaxis(images, -1, 0)))
        file.voxel_size = (pixel_nm * 10, pixel_nm * 10, 1)


def write_hyperspy(path, images, *, beam_energies_kev, pixel_nm):
    """A signal of HyperSpy, written by RosettaSciIO; the axis of navigation is that of the energies."""
    from rsciio.hspy import file_writer

    def axis(name, size, first, step, units):
        about = {
            "_type": "UniformDataAxis",
            "name": name,
            "units": units,
            "navigate": False,
            "is_binned": False,
        }
        return about | {"size": size, "offset": first, "scale": step}

    data, energies_kev = np.moveaxis(images, -1, 0), np.array(beam_energies_kev)
    axes = [axis("beam energy", len(data), energies_kev[0], energies_kev[1] - energies_kev[0], "keV")]
    axes += [axis(name, data.shape[k], 0.0, pixel_nm / 1e3, "µm") for k, name in ((1, "y"), (2, "x"))]
    if np.ptp(np.diff(energies_kev)) > 1e-9:
        axes[0] = {"_type": "DataAxis", "name": "beam energy", "units": "keV", "is_binned": False}
        axes[0]["axis"] = energies_kev
    axes[0]["navigate"] = True
    signal = {
        "data": data,
        "axes": axes,
        "metadata": {"General": {"title": "stack"}},
        "original_metadata": {},
    }
    signal |= {"attributes": {"_lazy": False, "ragged": False}, "learning_results": {}, "models": None}
    signal |= {"package_info": {"package": "hyperspy", "package_version": "2.3"}, "tmp_parameters": {}}
    file_writer(str(path), signal)


def _tiff(path, grey, code, dtype, value, **options):
    data = value.encode("cp1252") if isinstance(value, str) else value
    options = {"photometric": "minisblack", "metadata": None} | options
    tifffile.imwrite(path, grey, extratags=[(code, dtype, len(data), data, True)], **options)
