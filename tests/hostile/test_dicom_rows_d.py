"""Rows D of the catalogue: what the stored pixels of a series mean."""

from __future__ import annotations

from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from dicom_cases import Case, judge
from fixtures_dicom import (
    HTJ2K_SLICE,
    chest,
    copy_as,
    edit,
    files,
    flat_slice,
    good,
    grid,
    patch,
    setting,
    stored,
    without,
)
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from hilum.errors import ContainerError, PixelError
from hilum.io import dicom_pixels
from hilum.io.dicom_series import read_series
from hilum.io.dicom_write import SYNTAX_UIDS, SeriesHeader, uid_from, write_ct_series
from hilum.io.limits import Answers
from hilum.volume import CTVolume, Level

FRAME = {"frame_uid": uid_from("frame")}


def do(*_done: object) -> None:
    """Its arguments were the work, one after another; a case builder returns nothing."""


def same_as_good(volume: CTVolume) -> None:
    assert np.array_equal(volume.hu, chest())


def _per_slice(folder: Path) -> None:
    """The same HU with another intercept in every second slice, and a slope of 0.5 in one."""
    good(folder)
    for k, path in enumerate(files(folder)):
        ds = pydicom.dcmread(path)
        pixels = ds.pixel_array.astype(np.int64)
        if k == 5:
            ds.RescaleSlope, ds.PixelData = 0.5, (pixels * 2).astype(np.uint16).tobytes()
        elif k % 2:
            ds.RescaleIntercept, ds.PixelData = -2048, (pixels + 1024).astype(np.uint16).tobytes()
        ds.save_as(path)


def _invert(folder: Path) -> None:
    good(folder)
    edit(files(folder), setting(PhotometricInterpretation="MONOCHROME1"))


def _padded(
    folder: Path, *, value: float = -2000.0, declared: bool = True, limit: float | None = None
) -> None:
    """A ring outside the reconstruction circle."""
    hu = stored(chest())
    hu[ring()] = value
    if limit is not None:
        hu[:2] = limit
    header = SeriesHeader(seed="ring", padding_hu=value)
    write_ct_series(folder, hu, grid(), header=header)
    if limit is not None:
        edit(files(folder), lambda ds: ds.add_new(0x00280121, "SS", int(limit + 1024)))
    if not declared:
        edit(files(folder), without("PixelPaddingValue"))


def ring() -> np.ndarray:
    """True outside a circle in the plane, for the stored array."""
    x, y = np.meshgrid(np.arange(32) - 15.5, np.arange(34) - 16.5, indexing="ij")
    return np.broadcast_to((np.hypot(x, y) > 16.4)[:, :, None], (32, 34, 16))


def _ring_masked(volume: CTVolume) -> None:
    outside = ring()[::-1, ::-1]
    assert volume.valid_mask is not None
    assert np.array_equal(volume.valid_mask, ~outside)
    assert (volume.hu[outside] == -1024).all()
    assert np.array_equal(volume.hu[~outside], chest()[~outside])


def _range_masked(volume: CTVolume) -> None:
    assert volume.valid_mask is not None
    assert not volume.valid_mask[-2:].any() and (volume.hu[-2:] == -1024).all()


def _lossy(folder: Path) -> None:
    good(folder)
    edit(
        files(folder),
        setting(
            LossyImageCompression="01",
            LossyImageCompressionRatio=12.5,
            LossyImageCompressionMethod="ISO_10918_1",
        ),
    )


def _said_lossy(volume: CTVolume) -> None:
    finding = next(f for f in volume.provenance.findings if f.code == "LOSSY")
    assert "12.5" in finding.got and "ISO_10918_1" in finding.got


def _short(folder: Path) -> None:
    good(folder)
    edit(files(folder)[4], lambda ds: setattr(ds, "PixelData", ds.PixelData[:500]))


def _short_file(folder: Path) -> None:
    good(folder)
    patch(files(folder)[4], lambda content: content[:-600])


def _short_compressed(folder: Path, syntax: str) -> None:
    """A compressed frame cut, its container whole: decoders would fill in what is missing."""
    good(folder, syntax=syntax)

    def cut(ds: pydicom.FileDataset) -> None:
        frame = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
        ds.PixelData = encapsulate([frame[: len(frame) // 2]])
        ds["PixelData"].is_undefined_length = True

    edit(files(folder)[4], cut)


def _overlay_bits(folder: Path) -> None:
    """12 stored bits; the four above hold an overlay."""
    good(folder)

    def change(ds: pydicom.FileDataset) -> None:
        pixels = ds.pixel_array.copy()
        pixels[::2, ::3] |= 0xA000
        ds.BitsStored, ds.HighBit, ds.PixelData = 12, 11, pixels.tobytes()

    edit(files(folder), change)


def _shifted_bits(folder: Path) -> None:
    """12 bits in the upper part of the word, dirt below."""
    good(folder)

    def change(ds: pydicom.FileDataset) -> None:
        ds.BitsStored, ds.HighBit = 12, 15
        ds.PixelData = (ds.pixel_array << 4 | 0x9).astype(np.uint16).tobytes()

    edit(files(folder), change)


def _foreign(folder: Path) -> None:
    good(folder)
    for k, (sop_class, modality) in enumerate(
        [
            ("1.2.840.10008.5.1.4.1.1.4", "MR"),
            ("1.2.840.10008.5.1.4.1.1.128", "PT"),
            ("1.2.840.10008.5.1.4.1.1.88.67", "SR"),
            ("1.2.840.10008.5.1.4.1.1.104.1", "DOC"),
            ("1.2.840.10008.5.1.4.1.1.66.4", "SEG"),
            ("1.2.840.10008.5.1.4.1.1.7", "CT"),
        ]
    ):
        copy_as(
            files(folder)[0], folder / f"other{k}.dcm", setting(SOPClassUID=UID(sop_class), Modality=modality)
        )


def _listed_once(volume: CTVolume) -> None:
    same_as_good(volume)
    found = [f for f in volume.provenance.findings if f.code == "NOT_CT"]
    assert len(found) == 1 and "MR Image Storage" in found[0].got and "Segmentation" in found[0].got


def _only_mr(folder: Path) -> None:
    good(folder)
    edit(files(folder), setting(SOPClassUID=UID("1.2.840.10008.5.1.4.1.1.4"), Modality="MR"))


def _syntax(folder: Path, uid: str) -> None:
    good(folder, syntax="jpegls")
    edit(files(folder), lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", UID(uid)))


def _j2k_sign(folder: Path) -> None:
    """The header calls the unsigned 16 bit codestream signed; the values survive, since all fit in 15
    bits."""
    good(folder, syntax="j2k")
    edit(files(folder), setting(PixelRepresentation=1))


def _j2k_wrong(folder: Path) -> None:
    """Header and codestream disagree so that decoding gives something that is no HU."""
    good(folder, syntax="j2k", signed=True, intercept=0.0)
    edit(files(folder), setting(PixelRepresentation=0))


CASES = [
    Case(
        "D01 none",
        "RESCALE_MISSING",
        Level.ASK,
        lambda f: do(good(f), edit(files(f), without("RescaleSlope", "RescaleIntercept"))),
        PixelError,
        Answers(rescale=(1.0, -1024.0)),
        same_as_good,
    ),
    Case(
        "D01 one slice",
        "RESCALE_MISSING",
        Level.ASK,
        lambda f: do(good(f), edit(files(f)[3], without("RescaleIntercept"))),
        PixelError,
        Answers(rescale=(1.0, -1024.0)),
        same_as_good,
    ),
    Case("D02 per slice", "RESCALE_PER_SLICE", Level.NOTE, _per_slice, PixelError, again=same_as_good),
    Case(
        "D03 zero",
        "SLOPE_ZERO",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f), setting(RescaleSlope=0))),
        PixelError,
    ),
    Case(
        "D04 1e6",
        "SLOPE_ABSURD",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f), setting(RescaleSlope=1e6))),
        PixelError,
    ),
    Case(
        "D04 negative",
        "SLOPE_ABSURD",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f), setting(RescaleSlope=-1))),
        PixelError,
    ),
    Case("D05 inverted", "MONOCHROME1", Level.REFUSE, _invert, PixelError),
    Case("D06 declared", "PADDING", Level.NOTE, _padded, PixelError, again=_ring_masked),
    Case(
        "D06 undeclared",
        "PADDING",
        Level.NOTE,
        lambda f: _padded(f, declared=False),
        PixelError,
        again=_ring_masked,
    ),
    Case(
        "D06 -3024",
        "PADDING",
        Level.NOTE,
        lambda f: _padded(f, value=-3024.0),
        PixelError,
        again=_ring_masked,
    ),
    Case(
        "D06 range",
        "PADDING",
        Level.NOTE,
        lambda f: _padded(f, limit=-1500.0),
        PixelError,
        again=_range_masked,
    ),
    Case(
        "D06 water is no padding",
        "PADDING",
        Level.NOTE,
        lambda f: do(good(f), edit(files(f), lambda ds: ds.add_new(0x00280120, "US", 1064))),
        PixelError,
        again=same_as_good,
    ),
    Case("D07 sign", "J2K_SIGN_BITS", Level.NOTE, _j2k_sign, PixelError, again=same_as_good),
    Case("D07 values are no HU", "NOT_HU", Level.REFUSE, _j2k_wrong, Exception),
    Case("D08 tag", "LOSSY", Level.NOTE, _lossy, PixelError, again=_said_lossy),
    Case("D09 short element", "PIXELS_SHORT", Level.REFUSE, _short, PixelError),
    Case("D09 short file", "PIXELS_SHORT", Level.REFUSE, _short_file, PixelError),
    *(
        Case(f"D09 {s}", "PIXELS_SHORT", Level.REFUSE, lambda f, s=s: _short_compressed(f, s), PixelError)
        for s in ("rle", "jpegls", "j2k")
    ),
    Case("D11 overlay", "HIGH_BITS", Level.NOTE, _overlay_bits, PixelError, again=same_as_good),
    Case("D11 shifted", "HIGH_BITS", Level.NOTE, _shifted_bits, PixelError, again=same_as_good),
    Case(
        "D11 impossible",
        "HIGH_BITS",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f), setting(BitsStored=17))),
        PixelError,
    ),
    Case("D12 among CT", "NOT_CT", Level.NOTE, _foreign, PixelError, again=_listed_once),
    Case("D12 only MR", "NOT_CT", Level.REFUSE, _only_mr, ContainerError),
    Case(
        "D12 colour",
        "NOT_CT",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f), setting(PhotometricInterpretation="RGB"))),
        PixelError,
    ),
    Case(
        "D13 burned in",
        "BURNED_IN",
        Level.NOTE,
        lambda f: do(good(f), edit(files(f), setting(BurnedInAnnotation="YES"))),
        PixelError,
        again=same_as_good,
    ),
    Case(
        "D14 MPEG", "EXOTIC_SYNTAX", Level.REFUSE, lambda f: _syntax(f, "1.2.840.10008.1.2.4.102"), PixelError
    ),
    Case("D14 unknown", "EXOTIC_SYNTAX", Level.REFUSE, lambda f: _syntax(f, "1.2.3.4.5"), PixelError),
    Case(
        "D15 sharp",
        "CONTRAST_KERNEL",
        Level.NOTE,
        lambda f: do(good(f, kernel="B70f")),
        PixelError,
        again=same_as_good,
    ),
    Case(
        "D15 contrast",
        "CONTRAST_KERNEL",
        Level.NOTE,
        lambda f: do(good(f, contrast="agent")),
        PixelError,
        again=same_as_good,
    ),
    Case(
        "D15 70 keV",
        "CONTRAST_KERNEL",
        Level.NOTE,
        lambda f: do(good(f, image_type=("DERIVED", "PRIMARY", "AXIAL", "VMI"))),
        PixelError,
        again=same_as_good,
    ),
    Case(
        "D15 iodine",
        "CONTRAST_KERNEL",
        Level.REFUSE,
        lambda f: do(good(f, image_type=("DERIVED", "PRIMARY", "AXIAL", "IODINE"))),
        PixelError,
    ),
    Case(
        "D15 density",
        "CONTRAST_KERNEL",
        Level.REFUSE,
        lambda f: do(good(f), edit(files(f), setting(RescaleType="ED"))),
        PixelError,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_row(case: Case, tmp_path: Path) -> None:
    judge(case, tmp_path / "series")


def recode(folder: Path, name: str) -> None:
    """Every slice through GDCM's own encoder, which pydicom does not offer."""
    for path in files(folder):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", SYNTAX_UIDS)
def test_lossless_syntaxes_are_bit_exact(syntax: str, signed: bool, tmp_path: Path) -> None:
    """D14: written by us or by pydicom's encoders."""
    good(tmp_path / "s", syntax=syntax, signed=signed, intercept=0.0 if signed else -1024.0)
    same_as_good(read_series(tmp_path / "s", mode="refuse"))


@pytest.mark.parametrize(
    ("name", "uid"), [("JPEGLosslessProcess14", ".57"), ("JPEGLosslessProcess14_1", ".70")]
)
def test_jpeg_lossless_is_bit_exact(name: str, uid: str, tmp_path: Path) -> None:
    good(tmp_path / "s")
    recode(tmp_path / "s", name)
    assert pydicom.dcmread(files(tmp_path / "s")[0]).file_meta.TransferSyntaxUID.endswith(uid)
    same_as_good(read_series(tmp_path / "s"))


@pytest.mark.parametrize(
    "uid", ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"]
)
def test_htj2k_is_bit_exact(uid: str, tmp_path: Path) -> None:
    """D14: a codestream made by another library; the same reversible stream under all three UIDs."""
    good(tmp_path / "s")

    def change(ds: pydicom.FileDataset) -> None:
        ds.PixelData = encapsulate([HTJ2K_SLICE])
        ds["PixelData"].is_undefined_length, ds["PixelData"].VR = True, "OB"
        ds.file_meta.TransferSyntaxUID = UID(uid)

    edit(files(tmp_path / "s"), change)
    volume = read_series(tmp_path / "s")
    assert np.array_equal(volume.to_source(volume.hu), np.repeat(flat_slice()[:, :, None], 16, axis=2))


@pytest.mark.parametrize("kind", ["jpegls-near", "j2k-lossy", "jpeg-8"])
def test_lossy_syntaxes_are_close_and_said(kind: str, tmp_path: Path) -> None:
    """D08: a lossy syntax is lossy even when the tag is missing."""
    folder = tmp_path / "s"
    good(folder)
    bound = 60.0
    if kind == "jpegls-near":
        edit(files(folder), lambda ds: ds.compress(UID("1.2.840.10008.1.2.4.81"), jls_error=3))
        bound = 12.0
    elif kind == "j2k-lossy":
        edit(files(folder), lambda ds: ds.compress(UID("1.2.840.10008.1.2.4.91"), j2k_psnr=[80]))
        bound = 40.0
    else:
        _eight_bit(folder)
        bound = 60.0
    edit(
        files(folder),
        without("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
    )
    volume = read_series(folder)
    assert "LOSSY" in {f.code for f in volume.provenance.findings}
    error = np.abs(volume.hu - chest())
    assert error.max() > 0 and error.mean() < bound / 4, (error.max(), error.mean())


def test_twelve_bit_jpeg_names_its_decoder(tmp_path: Path) -> None:
    """D10: the one syntax whose only free decoder is GPL and therefore not installed with Hilum."""
    good(tmp_path / "s")
    edit(files(tmp_path / "s"), setting(BitsStored=12, HighBit=11))
    recode(tmp_path / "s", "JPEGExtendedProcess2_4")
    if "pylibjpeg" in dicom_pixels.get_decoder(UID(dicom_pixels.JPEG_EXTENDED)).available_plugins:
        assert "LOSSY" in {f.code for f in read_series(tmp_path / "s").provenance.findings}
        return
    with pytest.raises(PixelError) as caught:
        read_series(tmp_path / "s")
    assert caught.value.code == "CODEC_MISSING" and "pylibjpeg-libjpeg" in (caught.value.hint or "")


def _eight_bit(folder: Path) -> None:
    """8-bit JPEG with slope 8: what some archives made of CT."""

    def change(ds: pydicom.FileDataset) -> None:
        pixels = np.clip(ds.pixel_array // 8, 0, 255).astype(np.uint8)
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.RescaleSlope, ds.PixelData = 7, 8, pixels.tobytes()

    edit(files(folder), change)
    recode(folder, "JPEGBaselineProcess1")


@pytest.mark.parametrize("syntax", ["rle", "jpegls", "j2k"])
def test_two_decoders_agree(syntax: str, tmp_path: Path) -> None:
    """D07: what pydicom's first decoder says, GDCM or the plain one says too."""
    good(tmp_path / "s", syntax=syntax, signed=True, intercept=0.0)
    volume = read_series(tmp_path / "s")
    second = "pylibjpeg" if syntax == "rle" else "gdcm"
    for path, plane in zip(
        reversed(files(tmp_path / "s")), np.moveaxis(volume.to_source(volume.hu), 2, 0), strict=True
    ):
        ds = pydicom.dcmread(path)
        ds.pixel_array_options(decoding_plugin=second)
        assert np.array_equal(ds.pixel_array.T, plane)


def test_codec_missing_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D10."""

    class Absent:
        available_plugins: tuple[str, ...] = ()

    monkeypatch.setattr(dicom_pixels, "get_decoder", lambda uid: Absent())
    judge(
        Case("D10", "CODEC_MISSING", Level.REFUSE, lambda f: do(good(f, syntax="j2k")), PixelError),
        tmp_path / "s",
    )
    with pytest.raises(PixelError) as caught:
        read_series(tmp_path / "s")
    assert "pip install pylibjpeg-openjpeg" in (caught.value.hint or "")


def test_every_supported_syntax_has_a_decoder_here() -> None:
    for uid, (name, package, _) in dicom_pixels.SUPPORTED.items():
        assert (
            not package or dicom_pixels.plugin_of(uid) in dicom_pixels.get_decoder(UID(uid)).available_plugins
        ), name


def test_big_endian_padding(tmp_path: Path) -> None:
    hu = stored(chest())
    hu[ring()] = -2000
    write_ct_series(
        tmp_path / "s", hu, grid(), header=SeriesHeader(padding_hu=-2000.0), transfer_syntax="bigendian"
    )
    _ring_masked(read_series(tmp_path / "s"))


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_padding_of_either_vr(vr: str, tmp_path: Path) -> None:
    """The VR of PixelPaddingValue is often the wrong one; in implicit files it is not even written."""
    for syntax in ("explicit", "implicit"):
        hu = stored(chest())
        hu[ring()] = -2000
        folder = tmp_path / f"{vr}{syntax}"
        write_ct_series(folder, hu, grid(), header=SeriesHeader(padding_hu=-2000.0), transfer_syntax=syntax)
        value = -976 if vr == "SS" else 65536 - 976
        edit(files(folder), lambda ds, v=value: ds.add_new(0x00280120, vr, v))
        _ring_masked(read_series(folder))


@pytest.mark.parametrize("syntax", ["jpegls", "j2k"])
def test_codestream_of_another_size_never_reaches_a_decoder(syntax: str, tmp_path: Path) -> None:
    """A decoder allocates what the codestream says, so that is compared with the header first."""
    good(tmp_path / "s", syntax=syntax)
    edit(files(tmp_path / "s"), setting(Rows=36))
    with pytest.raises(PixelError) as caught:
        read_series(tmp_path / "s")
    assert caught.value.code == "PIXELS_SHORT" and "34 x 32" in (caught.value.got or "")
