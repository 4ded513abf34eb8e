"""The front door: any input that Hilum reads, recognised by content; and the same door with nothing but a
look.

`inspect` runs the very readers that `open_volume` runs, with a docket on which only the undecodable stops, so
the two cannot disagree about an input.
"""

from __future__ import annotations

from pathlib import Path

from hilum.errors import ContainerError, HilumError, RunError
from hilum.io.archive import Member, open_archive
from hilum.io.checks import Docket, Inspection
from hilum.io.limits import Answers, Limits, Mode
from hilum.io.nifti import read_nifti
from hilum.io.npz import is_npz, read_npz
from hilum.io.nrrd import read_nrrd
from hilum.io.sniff import kind_of, looks_like
from hilum.io.streams import Source
from hilum.volume import CTVolume

__all__ = ["Answers", "Inspection", "Limits", "Mode", "inspect", "open_volume"]

READABLE = "a DICOM folder, zip or file, NIfTI, NRRD or NPZ"


def open_volume(
    path: str | Path,
    *,
    mode: Mode = "repair",
    answers: Answers = Answers(),  # noqa: B008  frozen
    limits: Limits = Limits(),  # noqa: B008  frozen
) -> CTVolume:
    """Reads one CT volume.

    Args:
        path: a folder or zip of DICOM files, one DICOM file, NIfTI (`.nii`, `.nii.gz`, `.hdr`/`.img`), NRRD,
            NPZ, or a zip with exactly one of the latter. The name does not matter.
        mode: what stops, see `Mode`.
        answers: what the user said where a file leaves a choice.
        limits: budgets.

    Returns:
        HU on RAS+ axes; everything found is in `volume.provenance.findings`.

    Raises:
        InputRefused: with the code of the catalogue.
        UsageError: an answer makes no sense.
        RunError: `MEMORY_PLAN`, not enough memory.
    """
    return _read(Docket(mode, str(path)), Path(path), answers, limits)


def inspect(
    path: str | Path,
    *,
    mode: Mode = "repair",
    answers: Answers = Answers(),  # noqa: B008  frozen
    limits: Limits = Limits(),  # noqa: B008  frozen
) -> Inspection:
    """Says what `open_volume` with the same arguments would do. Never raises for bad input.

    Args:
        path, mode, answers, limits: as for `open_volume`.
    """
    docket = Docket("report-only", str(path))
    fatal: HilumError | None = None
    try:
        _read(docket, Path(path), answers, limits)
    except HilumError as error:
        fatal = error
    return Inspection.of(docket, mode, fatal)


def _read(docket: Docket, path: Path, answers: Answers, limits: Limits) -> CTVolume:
    try:
        if path.is_dir():
            return _dicom(path, docket, answers, limits)
        return _read_file(path, docket, answers, limits)
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise ContainerError("NOT_FOUND", "the input exists and can be read", got=got, path=path) from error
    except MemoryError as error:
        raise RunError(
            "MEMORY_PLAN", "a volume fits the memory of this machine", got="not enough memory", path=path
        ) from error


def _read_file(path: Path, docket: Docket, answers: Answers, limits: Limits) -> CTVolume:
    source = Source.of(path)
    kind, head = kind_of(source)
    if kind == "zip":
        return _read_zip(path, docket, answers, limits)
    if kind == "" and source.lower_name.endswith((".img", ".img.gz")):
        partner = _header_of_pair(path)
        if partner is not None:
            return read_nifti(partner, answers=answers, limits=limits, docket=docket)
    if kind in ("nifti", "nrrd"):
        return _read_as(kind, path, docket, answers, limits)
    if kind == "dicom" or _bare_dicom(head):
        return _dicom(path, docket, answers, limits)
    raise ContainerError(
        "NOT_AN_IMAGE",
        "an input is an image that Hilum reads",
        expected=READABLE,
        got=looks_like(head),
        path=path,
    )


def _read_as(kind: str, at: Path | Member, docket: Docket, answers: Answers, limits: Limits) -> CTVolume:
    reader = read_nifti if kind == "nifti" else read_nrrd
    return reader(at, answers=answers, limits=limits, docket=docket)


def _read_zip(path: Path, docket: Docket, answers: Answers, limits: Limits) -> CTVolume:
    """NPZ, a zip with one volume file, or else DICOM."""
    with open_archive(path, limits) as members:
        if is_npz(members):
            return read_npz(path, answers=answers, limits=limits, docket=docket)
        # A series has hundreds of members; a zipped volume file lies there with a few companions at most.
        kinds = [(kind_of(Source.of(m))[0], m) for m in members[:16]]
        volumes = [(kind, m) for kind, m in kinds if kind in ("nifti", "nrrd")]
        if len(volumes) == 1 and not any(kind == "dicom" for kind, _ in kinds):
            return _read_as(volumes[0][0], volumes[0][1], docket, answers, limits)
        if len(volumes) > 1:
            raise ContainerError(
                "NOT_AN_IMAGE",
                "an archive holds one scan",
                expected="one volume file, or the DICOM files of one study",
                got=f"{len(volumes)} volume files",
                path=path,
                hint="Unpack it and name the file to read.",
            )
    return _dicom(path, docket, answers, limits)


def _header_of_pair(image: Path) -> Path | None:
    name = image.name[: -len(".gz")] if image.name.lower().endswith(".gz") else image.name
    for suffix in (".hdr", ".hdr.gz", ".HDR"):
        if (candidate := image.with_name(Path(name).stem + suffix)).is_file():
            return candidate
    return None


def _bare_dicom(head: bytes) -> bool:
    """DICOM without preamble (row A21). pydicom is only loaded for bytes that are nothing else."""
    if len(head) < 8:
        return False
    from hilum.io.dicom_guard import plausible_start

    return plausible_start(head)


def _dicom(path: Path, docket: Docket, answers: Answers, limits: Limits) -> CTVolume:
    from hilum.io.dicom_series import read_series

    docket.kind = "dicom"
    return read_series(path, mode=docket.mode, answers=answers, limits=limits, docket=docket)
