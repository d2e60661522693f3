"""What an SEM writes beside its pixels: landing energy, pixel size, dwell time and current, by vendor.

No maker publishes its keys. Those of Thermo Fisher and Zeiss were checked with files of a Helios and of two
Zeiss microscopes that HyperSpy 1.7.6 has among its tests; the others are those that public readers use.

* Thermo Fisher, FEI: INI text in the tags 34680 and 34682 (tifffile), SI units.
* Zeiss: text in the tag 34118 (tifffile). Where a pixel size has no name, the fourth number before the names
  is that of an image 1024 pixels wide (RosettaSciIO 0.15). Damaged micro signs read as "?m" (zeiss-sem-tiff).
* TESCAN: blocks in the tag 50431, or an `.hdr` file beside the image (Gwyddion, NexusLIMS), SI units.
* Hitachi: `[SemImageFile]` in a `.txt` file beside the image, `PixelSize` in nm (Bio-Formats).
* JEOL: `$CM_...` in a `.txt` file beside the image; the pixel size is that of the scale bar (NOMAD).

Hitachi and JEOL tell no dwell time, and no probe current with a unit. What the voltage of Zeiss, TESCAN and
Hitachi means while the stage is biased was not checked; `Told.landing` says so.
"""

import math
import re
import struct
from typing import NamedTuple

PREFIX = {"": 1.0, "p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3} | dict.fromkeys("µμ?\ufffd", 1e-6)
QUANTITY = re.compile(
    rf"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:([{''.join(PREFIX)}]?)(?:m|s|A|eV|Volt|V))?\s*"
)
ON = ("on", "yes", "true", "1")
FRAMES = ("Integrate", "Average")


class Refusal(ValueError):
    """Of input that cannot be used: rule, value and remedy in one line."""


class Told(NamedTuple):
    """What a file tells of one image; None where it does not.

    Attributes:
        beam_energy_kev: at the surface, the bias of the stage subtracted.
        landing: how it was found, or why it is not known.
        stage_bias_v: what was subtracted.
        pixel_nm: edge of a pixel.
        dwell_s: per pixel, all passes together.
        current_na: of the probe.
        electrons_per_pixel: dose, where it is told as such.
        field_rows: rows from the top that show the specimen; a data bar lies below.
        detector: as the file names it.
        gamma: exponent of what was shown on the screen, where a file tells it.
    """

    beam_energy_kev: float | None = None
    landing: str = ""
    stage_bias_v: float = 0.0
    pixel_nm: float | None = None
    dwell_s: float | None = None
    current_na: float | None = None
    electrons_per_pixel: float | None = None
    field_rows: int | None = None
    detector: str = ""
    gamma: float = 1.0


def told_by(tags, sidecar: str, shape: tuple[int, int]) -> Told:
    """What the tags of a TIFF page, or else the text file beside it, tell.

    Args:
        tags: `tifffile.TiffTags`.
        sidecar: text of the file beside the image, empty if there is none.
        shape: (y, x) of the image with its data bar.

    Raises:
        Refusal: pixels that are not square, or images of an ion beam.
    """
    for code in (34682, 34680):
        if isinstance(value := tags.valueof(code), dict) and value:
            return _thermo(_flat(value), shape)
    if isinstance(value := tags.valueof(34118), dict) and len(value) > 1:
        return _zeiss(value, shape)
    if isinstance(value := tags.valueof(50431), bytes):
        return _tescan(_pairs(_tescan_text(value)), shape)
    if sidecar.startswith("[MAIN]"):
        return _tescan(_pairs(sidecar), shape)
    if sidecar.startswith("[SemImageFile]"):
        return _hitachi(_pairs(sidecar), shape)
    if sidecar.startswith("$CM_"):
        return _jeol(_pairs(sidecar, r"\s+"), shape)
    return Told(landing="the file is of no vendor that is known")


def _thermo(ini, shape):
    if ini.get("Beam.Beam", "EBeam") != "EBeam":
        raise Refusal(f"images must be of an electron beam; got {ini['Beam.Beam']}. Leave them out.")
    bias, landing = _si(ini.get("EBeamDeceleration.StageBias")), None
    if ini.get("EBeamDeceleration.ModeOn", "").lower() in ON:
        landing = _si(ini.get("EBeamDeceleration.LandingEnergy")) or math.nan
    elif bias or _si(ini.get("Beam.FineStageBias")):
        landing = math.nan  # a bias without the mode: what reaches the surface is not known
    frames = max(
        _passes(ini, f"{part}.{key}") for part in ("Image", "Scan") for key in ("Integrate", "Average")
    )
    bar, resolution = (_si(ini.get(key)) for key in ("PrivateFei.DatabarHeight", "Image.ResolutionY"))
    return Told(
        **_landing(_si(ini.get("Beam.HV")), bias, landing),
        pixel_nm=_square(ini.get("Scan.PixelWidth"), ini.get("Scan.PixelHeight")),
        dwell_s=_times(_si(ini.get("Scan.Dwelltime")), frames * _passes(ini, "EScan.LineIntegration")),
        current_na=_times(_si(ini.get("EBeam.BeamCurrent")), 1e9),
        # Of a reduced area the resolution may be that of the full one, larger than the image.
        field_rows=min(_rows(shape, resolution), _rows(shape, shape[0] - (bar or 0))),
        detector=" ".join(ini.get(key, "") for key in ("Detectors.Name", "Detectors.Mode")).strip(),
        gamma=_si(ini.get("Image.DigitalGamma")) or 1.0,
    )


def _zeiss(value, shape):
    named = {key: " ".join(map(str, item[1:])) for key, item in value.items() if key}
    unnamed = value.get("", ())
    pixel_m = _si(named.get("ap_image_pixel_size"))
    if pixel_m is None and len(unnamed) > 3:
        pixel_m = _times(_si(str(unnamed[3])), 1024 / shape[1])
    bias, landing = _si(named.get("ap_stage_bias_voltage_high")), None
    if _si(named.get("ap_stage_bias_voltage")):  # the low one, of either sign
        landing = math.nan
    kind = named.get("dp_noise_reduction", "").lower()
    counts = {"frame av": "ap_frame_average_count", "frame int": "ap_frame_int_count"}
    counts |= {"line av": "ap_line_average_count", "line int": "ap_line_int_count"}
    passes = next((_passes(named, key) for start, key in counts.items() if kind.startswith(start)), 1)
    return Told(
        **_landing(_si(named.get("ap_actualkv")), bias, landing),
        pixel_nm=_times(pixel_m, 1e9),
        dwell_s=_times(_si(named.get("dp_dwell_time")), passes),
        current_na=_times(_si(named.get("ap_iprobe")), 1e9),
        detector=named.get("dp_detector_channel", ""),
    )


def _tescan(ini, shape):
    return Told(
        **_landing(_si(ini.get("HV")), _si(ini.get("SampleVoltage"))),
        pixel_nm=_square(ini.get("PixelSizeX"), ini.get("PixelSizeY")),
        dwell_s=_times(_si(ini.get("DwellTime")), _passes(ini, "AccFrames")),
        current_na=_times(_si(ini.get("PredictedBeamCurrent")), 1e9),
        field_rows=_rows(shape, shape[0] - (_si(ini.get("ImageStripSize")) or 0)),
        detector=ini.get("Detector", ""),
        gamma=_si(ini.get("LUTGamma")) or 1.0,
    )


def _hitachi(ini, shape):
    bias = _si(ini.get("DecelerationVoltage")) or _si(ini.get("SpecimenBias"))
    width, height = _size(ini.get("DataSize"))
    return Told(
        **_landing(_si(ini.get("AcceleratingVoltage")), bias),
        pixel_nm=_si(ini.get("PixelSize")) if width in (None, shape[1]) else None,
        field_rows=_rows(shape, height),
        detector=ini.get("SignalName", ""),
    )


def _jeol(ini, shape):
    keys = ("$CM_ACCEL_VOLT", "$SM_GB_GUN_VOLT", "$SM_GB_BIAS_VOLT")
    landing, gun, bias = (_times(_si(ini.get(key)), 1e3) for key in keys)
    width, height = _size(ini.get("$CM_FULL_SIZE"))
    bar_m, bar = _si(ini.get("$$SM_MICRON_MARKER")), _si(ini.get("$$SM_MICRON_BAR"))
    known = bar_m and bar and width in (None, shape[1])
    return Told(
        **_landing(gun or landing, bias, landing),
        pixel_nm=_times(bar_m / bar, 1e9) if known else None,
        field_rows=_rows(shape, height),
        detector=ini.get("$CM_SIGNAL", ""),
    )


def _landing(gun_v, bias_v=None, landing_v=None):
    """Energy at the surface, and how it was found; or why the voltages do not tell it."""
    if not gun_v or gun_v <= 0:
        return {"landing": "no beam voltage is told"}
    expected = gun_v - abs(bias_v or 0)
    told = expected if landing_v is None else landing_v
    # Beside a landing energy the bias may be missing; a mode that is on without a landing energy is NaN here.
    disagree = abs(told - expected) > 0.01 * abs(expected) and (bias_v is not None or told > gun_v)
    if not told > 0 or disagree:
        voltages = f"a gun at {gun_v:g} V, a bias of {bias_v or 0:g} V, a landing energy of {told:g} eV"
        return {"landing": f"{voltages} do not agree"}
    if told > 0.99 * gun_v:
        known = "no stage bias" if bias_v == 0 else "no stage bias told"
        return {"beam_energy_kev": told / 1e3, "landing": f"of the gun, {known}"}
    note = f"{gun_v / 1e3:g} keV less {gun_v - told:g} V of the stage"
    note += "" if landing_v is not None else ", if the voltage told is that of the gun"
    return {"beam_energy_kev": told / 1e3, "landing": note, "stage_bias_v": gun_v - told}


def _square(width, height):
    """Edge of a pixel in nm, of the texts of its width and height in m."""
    width, height = _si(width), _si(height)
    if width and height and abs(width - height) > 0.01 * width:
        raise Refusal(
            f"pixels must be square; got {width * 1e9:g} x {height * 1e9:g} nm. Resample the image, and save "
            "it without these tags."
        )
    return _times(width, 1e9)


def _si(text):
    """The number of a text such as `100 ns`, in SI units; None if it is none."""
    match = QUANTITY.fullmatch(text or "")
    value = float(match[1]) * PREFIX[match[2] or ""] if match else math.nan
    return value if math.isfinite(value) else None


def _times(value, factor):
    return None if value is None else value * factor


def _passes(ini, key):
    return max(1, round(_si(ini.get(key)) or 1))


def _rows(shape, rows):
    """Rows of the field, of a number that only counts if it is less than the height of the image."""
    return int(rows) if rows and 0 < rows < shape[0] else shape[0]


def _size(text):
    """(width, height) of a text such as `1280x960`."""
    match = re.fullmatch(r"\s*(\d{1,7})\s*[xX, ]\s*(\d{1,7})\s*", text or "")
    return (int(match[1]), int(match[2])) if match else (None, None)


def _flat(sections):
    parts = {name: part for name, part in sections.items() if isinstance(part, dict)}
    return {f"{name}.{key}": str(value) for name, part in parts.items() for key, value in part.items()}


def _pairs(text, separator="="):
    """Keys and values of lines; the first of equal keys counts, since the ion column comes last."""
    pairs = [re.split(separator, line.strip(), maxsplit=1) for line in text.splitlines()]
    return {pair[0].strip(): pair[1].strip() for pair in reversed(pairs) if len(pair) == 2}


def _tescan_text(value):
    """Text of the blocks 2 (image) and 3 (electron column); before each stand its size and kind."""
    text, at = "", 0
    while at + 6 <= len(value):
        size, kind = struct.unpack_from("<IH", value, at)
        if size < 2:
            break
        if kind in (2, 3):
            text += value[at + 6 : at + 4 + size].decode("latin-1") + "\n"
        at += 4 + size
    if not text:  # some write plain text instead
        text = value[max(value.find(b"[MAIN]"), 0) :].decode("latin-1")
    return text.replace("\0", "")
