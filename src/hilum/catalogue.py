"""Every code that Hilum raises or records: its row, what is done about it, and the rule in one sentence.

Data only. The documentation pages are made from it, and tests hold the source to it. Imports the standard
library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Policy = Literal["refuse", "repair", "note", "ask"]


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue.

    Args:
        code: stable name.
        row: ``A01`` ... ``G12`` of the catalogue of bad inputs; ``+`` for codes that came later.
        policy: the usual answer. ``ask``: refused until a flag answers. Some are ``note`` below a threshold.
        rule: one sentence: what holds, or what is done.
    """

    code: str
    row: str
    policy: Policy
    rule: str


_TABLE = """
A01 GZ_TRUNCATED refuse A gzip holds every byte that the image header announces.
A02 NII_TRUNCATED refuse A plain NIfTI holds every byte that its header announces.
A03 GZ_CRC refuse A gzip verifies against its own checksum; it is read through the trailer.
A04 GZ_NO_TRAILER refuse A gzip ends with its checksum and length.
A05 NAME_NOT_CONTENT note The content decides what a file is, never its name.
A06 GZ_BOMB refuse A compressed volume is judged by its header's own size before it is inflated.
A07 ARCHIVE_BOMB refuse An archive stays within caps on members, bytes and ratio, and holds no archives.
A08 ARCHIVE_TRAVERSAL refuse Members are plain files below the archive's own root; they are read as streams.
A09 ARCHIVE_DUPLICATE refuse Every member has its own name, also where case does not count.
A10 DICOMDIR_TRAVERSAL note A DICOMDIR is ignored; files are indexed by reading them, confined to the folder.
A11 DEFLATE_BOMB refuse A deflated dataset is inflated with a cap.
A12 SQ_DEPTH refuse Sequences nest at most 32 deep.
A13 DICOM_CUT refuse A DICOM file is whole and holds what a CT slice needs.
A14 LENGTH_OVERRUN refuse An element's length lies inside the file and fits what it describes.
A15 DIMS_HUGE refuse A volume fits the voxel and byte budget before memory is taken.
A16 DIMS_NONPOSITIVE refuse Every axis has voxels.
A17 OFFSET_BAD refuse Voxels start behind the header and inside the file.
A18 NOT_AN_IMAGE refuse An input is an image; otherwise it is named by what it looks like.
A19 NOT_REGULAR refuse An input is a regular file; links do not leave the folder.
A20 POLYGLOT note A preamble that is a program's start is harmless here and never written again.
A21 NO_PREAMBLE note DICOM without preamble is read when its first elements are plausible.
A22 UID_AS_PATH note File names come from our own hash, never from data.
B01 AFFINE_NAN refuse An affine is finite.
B02 AFFINE_SINGULAR refuse An affine can be inverted.
B03 AFFINE_DISAGREE ask Sform and qform put the voxels in the same place, within 0.1 mm at every corner.
B04 AFFINE_SHEAR ask Axes stand at right angles; rounding is repaired, a real shear resampled when asked.
B05 ORIENTATION_UNKNOWN ask A file says where left, front and head are.
B06 UNITS_NOT_MM note Metres and microns are converted to mm.
B07 SCL_ZERO note Slope 0 means unscaled.
B08 SCL_NONFINITE note A slope that is not finite means unscaled.
B09 HU_DOUBLE_RESCALE refuse Air outside the body is near -1000 HU; otherwise the rescale was applied twice.
B10 NDIM_4 ask A scan is one volume; axes of length 1 are dropped, of several frames one is chosen.
B11 DTYPE refuse A voxel is one real number.
B12 SPACING_ZERO refuse Voxel sizes are positive.
B13 VOXEL_NAN refuse Every voxel of the body has a finite value; outside the body it is filled with air.
B14 HU_RANGE note Values beyond -1024 to 3071 HU are kept and counted; models see them clipped.
B15 NOT_HU refuse Voxel values are Hounsfield units of a chest.
B16 FOV_IMPLAUSIBLE ask The field of view is that of a chest.
B17 INT_WRAP refuse No integer wraps: stored values are scaled in floating point.
B18 ENDIAN_PAIR refuse NIfTI-1 and -2 in both byte orders and as pairs are read; Analyze is not.
C01 SLICE_MISSING ask A series has every slice between its first and last.
C02 GANTRY_TILT ask Slices are stacked along their normal; a tilt is resampled only when asked.
C03 SLICE_DUPLICATE repair Exact twins of a slice are dropped.
C04 PHASES_MIXED ask One volume is one acquisition.
C05 LOCALIZER note Scouts are left out by image type and orientation.
C06 SERIES_MANY ask One volume is one series.
C07 SPACING_IRREGULAR ask Slices lie at equal distances; otherwise they are regridded when asked.
C08 POSITION_CONSTANT refuse Slices lie at different places.
C09 ORDER note Slices are sorted by position along the normal and by nothing else.
C10 THICKNESS_TRAP note The distance of slices comes from positions, never from a thickness tag.
C11 MATRIX_CHANGE ask All slices have the same rows and columns.
C12 PIXELSPACING_CHANGE refuse All slices have the same pixel spacing.
C13 IOP_JITTER note Slice orientations agree within 1e-4 rad.
C14 FRAME_OF_REFERENCE refuse Only what shares frame of reference and affine is overlaid.
C15 MULTIFRAME refuse An enhanced CT says per frame where it lies.
C16 TOO_FEW refuse A volume has at least four slices.
C17 COSINES_NEGATED note Everything goes through the affine, whatever the signs of the cosines.
C18 REFORMAT note Reformats are reoriented; intensity projections are read only when asked.
C19 POSITION_PRONE note Orientation comes from cosines; the patient position stands beside every score.
C20 NO_GEOMETRY refuse Every slice says where it is.
C21 COVERAGE note What part of a chest is covered is stated; no lung at all is refused.
D01 RESCALE_MISSING ask Stored values become HU by a slope and intercept that the file gives.
D02 RESCALE_PER_SLICE note Every slice is rescaled with its own numbers.
D03 SLOPE_ZERO refuse A rescale slope is not zero.
D04 SLOPE_ABSURD refuse A rescale gives HU that exist.
D05 MONOCHROME1 refuse A CT is not stored inverted.
D06 PADDING note Padding is masked before the rescale.
D07 J2K_SIGN_BITS refuse A compressed stream agrees with its header about sign and bits.
D08 LOSSY note Lossy compression is stated with ratio and method.
D09 PIXELS_SHORT refuse A slice holds every pixel.
D10 CODEC_MISSING refuse A transfer syntax has a decoder here.
D11 HIGH_BITS note Only the stored bits are values.
D12 NOT_CT note What is not CT is listed once and left out.
D13 BURNED_IN note Text burned into pixels is stated, and refused for sharing.
D14 EXOTIC_SYNTAX refuse A transfer syntax is one of the table.
D15 CONTRAST_KERNEL note Kernel and contrast stand beside every score; material maps are refused.
E01 REPORT_EMPTY note An empty report drops the text pair, not the image.
E02 REPORT_DUPLICATE note Equal reports are never each other's negatives.
E03 PATIENT_LEAK refuse A patient is in one split only.
E04 TEXT_ENCODING repair Text is normalised Unicode; what does not decode is refused.
E05 TEXT_TRUNCATED note A text that is cut is counted; the impression is kept first.
E06 TOKEN_IDS refuse Special tokens are those of the tokenizer.
E07 LABEL_UNKNOWN note An unknown label is masked from every loss and metric.
E08 COLUMN_MISSING refuse A table has the columns that the work needs.
E09 PATH_ESCAPE refuse A path stays below its root.
E10 CELL_FORMULA repair A cell that a spreadsheet would run is prefixed on export.
E11 TEXT_MARKUP repair Text is always escaped where it is shown.
E12 PRIOR_REFERENCE note Words about an earlier scan are never grounded in this one.
F01 WEIGHTS_PICKLE refuse Weights are safetensors.
F02 WEIGHTS_TRUNCATED refuse A weights file is whole.
F03 WEIGHTS_HEADER refuse A weights header is small, consistent and without overlap.
F04 WEIGHTS_KEYS refuse Weights fit the model, name by name and shape by shape.
F05 WEIGHTS_NONFINITE refuse Weights are finite.
F06 WEIGHTS_HASH refuse Weights are the pinned bytes.
F07 FORMAT_NEWER refuse A format is not newer than this version reads.
F08 CHECKPOINT_PARTIAL refuse A checkpoint verifies before it is resumed.
F09 RESUME_CHANGED refuse A run resumes with the same data, settings and code.
F10 CONFIG_CODE refuse A configuration is data.
F11 CONFIG_KEY refuse A configuration has known keys only.
F12 CACHE_STALE refuse A cache belongs to this model, preparation and input.
G01 MEMORY_PLAN refuse The memory a run needs is estimated first.
G02 DISK_FULL refuse A full disk leaves no half file under a final name.
G03 KILLED refuse A killed run leaves no half file under a final name.
G04 OUTPUT_EXISTS refuse Results never replace other files unasked.
G05 OUTPUT_LOCKED refuse One run writes to an output at a time.
G06 GRID_MISMATCH refuse A map lies on the grid of its input.
G07 OUTPUT_NONFINITE refuse Outputs are finite.
G08 PHI_OUT refuse No patient identifier reaches an output.
G09 INPUT_TOUCHED refuse Nothing is written below an input.
G10 SERVER_OPEN refuse A server listens to this machine only.
G11 PATH_ODD note Any file name works.
G12 NONDETERMINISM note Equal inputs and seeds give equal outputs.
+ NOT_FOUND refuse The input exists and can be read.
+ ARCHIVE_DAMAGED refuse A zip is whole, not encrypted, stored or deflated.
+ TRAILING_BYTES refuse A file ends where its header says.
+ ORIGIN_MISSING note A file says where its first voxel is; otherwise 0 mm is taken.
+ NRRD_HEADER refuse A NRRD header is one that Hilum reads.
+ NRRD_TRUNCATED refuse A NRRD holds every byte that its header announces.
+ NPZ_LAYOUT refuse An NPZ holds hu or ct, and affine or spacing_mm with orientation.
+ ANSWER_INVALID refuse An answer to a question is one of its choices.
+ OUTPUT_UNWRITABLE refuse The output folder exists and can be written.
+ OUTPUT_INSIDE_INPUT refuse Nothing is written below an input.
+ OPTION_UNKNOWN refuse An option has one of its known values.
+ SPACING_INVALID refuse A voxel size lies in a range that a chest CT has.
+ FETCH_FAILED refuse A public file arrives whole, with its pinned hash.
+ CODEC_FAILED refuse Slices can be encoded in the transfer syntax asked for.
+ PRESET_UNKNOWN refuse A preset is one that ships.
+ MODEL_UNKNOWN refuse A model is one that ships, or a folder that holds one.
+ MODEL_INPUT refuse A model is given the axes, channels and values that it reads.
+ PATCH_GRID refuse A picture is a whole number of patches along every axis.
+ MODEL_OUTPUT refuse A model gives what its contract says.
+ LABEL_NAMES refuse Label names are a table of number to name.
+ LABEL_VALUES refuse Labels are whole numbers; a finding is 1, 0 or not known.
+ LABEL_DUPLICATE refuse A label file says one thing about a scan.
+ REPORT_UNMATCHED refuse Reports and their truth name the same scans.
+ ORGANS_EMPTY refuse An organ file holds organs of the chest.
+ MASK_MISSING refuse A mask that the work needs is given.
+ NO_MATERIAL refuse Only a fresh reading can be saved.
+ CONFIG_FILE refuse A recipe is a file that can be read.
+ CONFIG_VALUE refuse A recipe's value has its type and range.
+ LOSS_NONFINITE refuse A loss is finite, or the run stops.
+ GRADIENT_NONFINITE refuse A gradient is finite, or the run stops.
+ RUN_STOPPED refuse A run that is asked to stop ends its step, saves and says so.
+ PHANTOM_REGION_UNKNOWN refuse A phantom mask is one of its regions or lesions.
+ PHANTOM_SCANNER_BAD refuse A phantom scanner has positive spacing, dose and field of view.
+ IMAGE_AMBIGUOUS refuse A series and image number name one stored image of one study.
+ IMAGE_UNKNOWN refuse A series and image number name an image that is there.
+ IMAGE_OUTSIDE refuse A slice that a report points at lies inside the volume it is looked for in.
+ SOURCE_UNKNOWN refuse A data set has one of the layouts that Hilum knows.
+ RECORD_DUPLICATE refuse Every scan of a cohort has a key and a file of its own.
+ SCAN_KNOWN_BROKEN refuse A scan that a data set's users found broken is left out by name.
+ WORKER_DIED refuse A scan whose reader dies is refused, and the others go on.
+ MANIFEST_DAMAGED refuse A manifest is a whole Parquet file in Hilum's schema.
+ XML_DANGEROUS refuse An XML file is small, shallow and declares no entities.
+ BANK_FILE refuse A question bank is a small, plain YAML file: no anchors, tags, merges or keys twice.
+ BANK_VALUE refuse A question bank's value has its type, and its parts fit together.
+ LLM_ENDPOINT refuse An endpoint is an https URL without a password, or http to this machine.
+ LLM_MODEL refuse A model has a printable name.
+ LLM_KEY refuse A key is printable ASCII, and never shown.
+ LLM_SEND ask Reports leave this machine only when that is said.
+ LLM_UNREACHABLE refuse An endpoint can be reached.
+ LLM_TIMEOUT refuse An endpoint answers in time.
+ LLM_STATUS refuse An endpoint answers with success, after a bounded number of attempts.
+ LLM_REFUSED refuse An endpoint knows the key, the model and the path.
+ LLM_REDIRECT refuse No redirect is followed with a key and a report.
+ LLM_TOO_LONG refuse A response stays within its bound.
+ LLM_REPLY refuse A reply is one JSON object with a list of answers.
+ REPORT_TOO_LONG refuse A report fits into one question to a model.
+ SAMPLES_DAMAGED refuse A file of samples holds one scan a line, each scan once.
+ STORE_DAMAGED refuse A store of prepared scans holds what was written into it.
+ KEY_DUPLICATE refuse Every scan of a store has a key of its own.
+ WORKER_LOST refuse A worker lives until its scan is done.
+ TOKENIZER_FILE refuse A tokenizer is a whole tokenizer.json.
+ EXTRA_MISSING refuse What a command needs is installed.
+ INTERNAL refuse Whatever happens, an error has a code; this one is a fault of Hilum.
"""


def _entry(line: str) -> Entry:
    row, code, policy, rule = line.split(" ", 3)
    if policy not in ("refuse", "repair", "note", "ask"):
        raise ValueError(f"policy is refuse, repair, note or ask; got {policy!r} in {line!r}")
    return Entry(code, row, policy, rule)  # type: ignore[arg-type]


CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {entry.code: entry for entry in map(_entry, _TABLE.strip().splitlines())}
)
"""Code -> entry, in the order of the rows."""
