"""Every tensor that one room hands to another. The torch half of `types.py`; importing it imports torch.

B batch, C input windows, X Y Z voxels of the model grid (RAS+), O organ channels, D findings. Of a backbone:
N patches, T tokens (CLS, registers, patches), W its width, H heads.
Of losses: V views, K prototypes or sentences, E numbers of an embedding.
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Bool, Float, Float64, Int, Int64, Shaped
from torch import Tensor

ScanBatch: TypeAlias = Float[Tensor, "B 1 X Y Z"]
"""HU scaled by `cohort.prep` (value / 1000, clipped to [-1.024, 3.071])."""

OrganLogits: TypeAlias = Float[Tensor, "B O *voxels"]
"""One sigmoid channel per organ of `text.vocabulary.ORGAN_CHANNELS`."""

AnomalyLogits: TypeAlias = Float[Tensor, "B D U V W"]
"""One sigmoid map per finding, at full or half resolution."""

FineAnomalyLogits: TypeAlias = Float[Tensor, "B D X Y Z"]
"""The same at the full resolution of the scan."""

HalfFeatures: TypeAlias = Float[Tensor, "B C U V W"]
"""Features at half the resolution of the scan."""

OrganShares: TypeAlias = Float[Tensor, "B O U V W"]
"""How much of each half-resolution voxel is in each organ, 0..1."""

FoldedLogits: TypeAlias = Float[Tensor, "B O8 U V W"]
"""Logits at half resolution, eight voxels of the full grid per channel group (`model.ynet.fold`)."""

OrganRows: TypeAlias = Float[Tensor, "B N O 8"]
"""Organ probabilities or logits of the eight full-grid voxels in each half-resolution voxel."""

GateRows: TypeAlias = Bool[Tensor, "B N O 8"]
"""Which of those voxels each organ lets evidence through."""

GridLogits: TypeAlias = Float[Tensor, "B O X Y Z"]
"""Organ logits on the model's grid."""

FineScan: TypeAlias = Float[Tensor, "B I X2 Y2 Z2"]
"""Windows of the scan at half the voxel of the model's grid: twice as many voxels along each axis."""

FineLogits: TypeAlias = Float[Tensor, "B O X2 Y2 Z2"]
"""Organ logits there."""

Labels: TypeAlias = Float[Tensor, "B D"]
"""Tri-state: 1 present, 0 absent, NaN unknown."""

ScanProbabilities: TypeAlias = Float[Tensor, "B D"]
"""Scan-level probability per finding."""

ScanScores: TypeAlias = Float[Tensor, "B D"]
"""Any number per scan and finding that is higher where the finding is."""

OrganTruth: TypeAlias = Float[Tensor, "B O *voxels"]
"""How much of each voxel really is in each organ, 0..1. A mask is the case of nothing but 0 and 1."""

ChannelLosses: TypeAlias = Float[Tensor, "B O"]
"""A loss per scan and organ channel."""

KnownChannels: TypeAlias = Bool[Tensor, "B O"]
"""Which organ channels somebody has outlined."""

OrganProbabilities: TypeAlias = Float[Tensor, "B O X Y Z"]
"""How sure a network is of each organ in each voxel."""

OrganGates: TypeAlias = Float[Tensor, "B O X Y Z"]
"""How far each organ lets evidence through, 0..1."""

FindingGates: TypeAlias = Float[Tensor, "B D U V W"]
"""The same per finding, at either resolution."""

FindingMapsTensor: TypeAlias = Float[Tensor, "B D U V W"]
"""Anomaly probabilities per finding."""

VoxelCounts: TypeAlias = Int64[Tensor, "B D"]
"""Voxels that are averaged into each scan probability."""

OrganCounts: TypeAlias = Int64[Tensor, "B O"]
"""Voxels per scan and organ."""

ScanVolumes: TypeAlias = Float[Tensor, "B"]
"""Volume of a voxel of each scan, ml."""

PackedOrgans: TypeAlias = Shaped[Tensor, "B X Y Z"]
"""Organ masks as bits (`cohort.organ_bits`)."""

MapFeatures: TypeAlias = Float[Tensor, "B D C P Q R"]
"""What an encoder says of the map of each finding."""

ScanLogits: TypeAlias = Float[Tensor, "B D"]
"""A logit per scan and finding."""

MaskLogits: TypeAlias = Float[Tensor, "B 1 X Y Z"]
"""A logit per voxel."""

Scalar: TypeAlias = Float[Tensor, ""]
"""A loss, a scale: one number."""

AnyRows: TypeAlias = Shaped[Tensor, "N *rest"]
"""Rows of a batch of whatever dtype and shape."""

RowWeights: TypeAlias = Float[Tensor, "N"]
"""A number per row."""

RowIds: TypeAlias = Int64[Tensor, "N"]
"""A name per row; equal rows have equal ones."""

PrototypeLogits: TypeAlias = Float[Tensor, "N K"]
"""What a head says of N tokens about each of K prototypes."""

PrototypeShares: TypeAlias = Float[Tensor, "N K"]
"""Shares of prototypes per token, 0..1."""

PrototypeValues: TypeAlias = Float[Tensor, "K"]
"""A number per prototype."""

ViewLogits: TypeAlias = Float[Tensor, "S B K"]
"""The same of S views of each scan, the student's."""

TeacherViews: TypeAlias = Float[Tensor, "T B K"]
"""Logits or shares of T views of each scan, the teacher's."""

TokenRows: TypeAlias = Float[Tensor, "N E"]
"""N masked tokens of all views of a batch, one after the other."""

ViewMasks: TypeAlias = Bool[Tensor, "V *grid"]
"""The same on the grid of patches."""

GridMask: TypeAlias = Bool[Tensor, "*grid"]
"""The same of one view."""

TeacherFeatures: TypeAlias = Float[Tensor, "B M W"]
"""The same on another grid."""

Embeddings: TypeAlias = Float[Tensor, "N E"]
"""One embedding per scan or text."""

AllEmbeddings: TypeAlias = Float[Tensor, "A E"]
"""Embeddings of all ranks, or of another kind: as many as there are."""

TokenTargets: TypeAlias = Float[Tensor, "M K"]
"""Shares of prototypes of M masked tokens."""

TokenWeights: TypeAlias = Float[Tensor, "L"]
"""A number per masked token."""

AnchorFeatures: TypeAlias = Float[Tensor, "A M V"]
"""Patch features of another model than the student."""

AnchorSummary: TypeAlias = Float[Tensor, "A V"]
"""Its feature of the whole picture."""

AdaptedFeatures: TypeAlias = Float[Tensor, "*rows D"]
"""A student's features, as an adaptor makes them a teacher's."""

AstraMap: TypeAlias = Float[Tensor, "B W U V T"]
"""Features of a convolutional encoder, where they lie."""

FeatureRows: TypeAlias = Float[Tensor, "N D"]
"""Features of patches, one per row."""

DoubleVector: TypeAlias = Float64[Tensor, "D"]
"""A number per axis of a feature, in double precision."""

DoubleScalar: TypeAlias = Float64[Tensor, ""]
"""One number in double precision."""

DoubleMatrix: TypeAlias = Float64[Tensor, "D D"]
"""Axes of features by axes."""

PairEmbeddings: TypeAlias = Float[Tensor, "N K E"]
"""K embeddings of sentences per scan."""

PairLabels: TypeAlias = Int[Tensor, "N K"]
"""1 the sentence is true, 0 its opposite is, -1 there is none."""

HeadInputs: TypeAlias = Float[Tensor, "*rows W"]
"""Tokens of a backbone."""

HeadDirections: TypeAlias = Float[Tensor, "*rows E"]
"""Vectors of length 1."""

HeadLogits: TypeAlias = Float[Tensor, "*rows K"]
"""A logit per prototype."""

VoxelTensor: TypeAlias = Float[Tensor, "X Y Z"]
"""One scalar per voxel of a working grid."""

MaskTensor: TypeAlias = Bool[Tensor, "X Y Z"]
"""One bit per voxel of a working grid."""

GridTensor: TypeAlias = Float[Tensor, "U V W"]
"""One scalar per voxel of another grid than `X Y Z` (after resampling)."""

ScanCrop: TypeAlias = Float[Tensor, "1 *voxels"]
"""A crop or slice of a prepared scan, scaled as its preset says."""

ScanView: TypeAlias = Float[Tensor, "1 *view"]
"""A part of it, resized or padded."""

ViewStack: TypeAlias = Float[Tensor, "_ 1 ..."]
"""Views of one slice or scan, all of one size."""

ViewBatch: TypeAlias = Float[Tensor, "_ _ 1 ..."]
"""The same of several scans, views first."""

PatchTokens: TypeAlias = Float[Tensor, "B N W"]
"""One token per patch of a slice or volume, in the order of its axes (the last one fastest)."""

AllTokens: TypeAlias = Float[Tensor, "B T W"]
"""CLS, registers, then patches."""

ClsToken: TypeAlias = Float[Tensor, "B W"]
"""One token for the whole picture."""

RegisterTokens: TypeAlias = Float[Tensor, "B R W"]
"""Tokens that belong to no place."""

PatchMap: TypeAlias = Float[Tensor, "B W *grid"]
"""Patch tokens where they lie: `W` channels on the grid of patches."""

PatchMask: TypeAlias = Bool[Tensor, "B N"]
"""Which patches are hidden."""

HeadTokens: TypeAlias = Float[Tensor, "B H T E"]
"""Queries, keys or values of every head."""

Coordinates: TypeAlias = Float[Tensor, "N A"]
"""A place per patch, one number per axis (`model.rope`)."""

RotaryTable: TypeAlias = Float[Tensor, "*batch N F"]
"""Cosines or sines of a patch's angles."""

KeptRows: TypeAlias = Int64[Tensor, "L 2 K"]
"""Which scans of a batch each residual branch of each block works on."""

PatchWeight: TypeAlias = Float[Tensor, "W C *patch"]
"""The kernel that makes a token of a patch."""

ResizedWeight: TypeAlias = Float[Tensor, "W C *size"]
"""The same for patches of another size."""

SliceKernel: TypeAlias = Float[Tensor, "W C P Q"]
"""A kernel for slices."""

VolumeKernel: TypeAlias = Float[Tensor, "W C P Q R"]
"""A kernel for volumes."""

TextIds: TypeAlias = Int64[Tensor, "B L"]
"""`types.TokenIds` as a tensor: L tokens per text."""

TextMask: TypeAlias = Bool[Tensor, "B L"]
"""True where a token is seen, False where it pads."""

TextStates: TypeAlias = Float[Tensor, "B L W"]
"""What a text tower says of every token."""

TextWeights: TypeAlias = Float[Tensor, "B L"]
"""How much each token counts in the pooled embedding of its text."""

TextQuery: TypeAlias = Float[Tensor, "W"]
"""The learned query of attention pooling."""

PooledText: TypeAlias = Float[Tensor, "B W"]
"""One vector per text, not normalised."""

Tokens: TypeAlias = Float[Tensor, "B T E"]
"""Channels of every token of a sequence."""

StateTokens: TypeAlias = Float[Tensor, "B T N"]
"""What every token writes to, or reads from, N states (`model.selective_scan`)."""

StateDecays: TypeAlias = Float[Tensor, "E N"]
"""How fast each state of each channel is forgotten: negative numbers."""

ChannelValues: TypeAlias = Float[Tensor, "E"]
"""A number per channel."""

FeatureGrid: TypeAlias = Float[Tensor, "B C U V W"]
"""Features of a scan on a grid of any size."""

ImageTokens: TypeAlias = Float[Tensor, "B Q E"]
"""What a language model sees of a scan."""

BankTexts: TypeAlias = Float[Tensor, "A P W"]
"""Frozen embeddings of a bank's reports, per place (`text.prompts.PLACES`), or one for the whole."""

BankPlaceIds: TypeAlias = Int64[Tensor, "A P"]
"""Equal for texts of a place that say the same."""

TextPrompts: TypeAlias = Float[Tensor, "2 D W"]
"""Embeddings of each finding's two prompts, there and not there."""

FrozenTexts: TypeAlias = Float[Tensor, "*texts W"]
"""Texts as a frozen encoder gives them."""

JointTexts: TypeAlias = Float[Tensor, "*texts E"]
"""The same in the space of scans, length 1."""

CellEmbeddings: TypeAlias = Float[Tensor, "N *places E"]
"""Cells of one scan in that space."""

PlaceEmbeddings: TypeAlias = Float[Tensor, "P E"]
"""Places of one scan there."""

CellShares: TypeAlias = Float[Tensor, "N O"]
"""How much of each cell is in each organ."""

PlaceShares: TypeAlias = Float[Tensor, "N P"]
"""How much of each cell is in each place, or counts there."""

PromptDirections: TypeAlias = Float[Tensor, "D E"]
"""From a finding's absence to its presence in that space."""

BankIds: TypeAlias = Int64[Tensor, "A"]
"""A name per text of a bank; equal texts have equal ones."""

PromptEmbeddings: TypeAlias = Float[Tensor, "M Q E"]
"""A sentence per question, of each scan or of all (M = 1), length 1."""

ScanAnswers: TypeAlias = Float[Tensor, "N Q"]
"""1 yes, 0 no, NaN unknown, per scan and question."""

DepthLogits: TypeAlias = Float[Tensor, "S D"]
"""How well each of S snippets fits each depth of its own scan."""

DepthMask: TypeAlias = Bool[Tensor, "S D"]
"""Which depths of its scan exist; batches are padded."""

DepthMm: TypeAlias = Float[Tensor, "S D"]
"""Where they lie along the scan's axis, mm."""

SnippetMm: TypeAlias = Float[Tensor, "S"]
"""Where each snippet's slice lies, mm."""

SeenTokens: TypeAlias = Bool[Tensor, "B T"]
"""Which tokens of a padded batch exist."""

VoxelFeatures: TypeAlias = Float[Tensor, "C X Y Z"]
"""What is known of each voxel of one scan."""

WindowFeatures: TypeAlias = Float[Tensor, "B U V W K"]
"""What a window encoder says of each window of a padded grid of windows."""

WindowDepths: TypeAlias = Float[Tensor, "B U V W P K"]
"""The same at each of P depths of a window, mean over its plane."""

WindowMask: TypeAlias = Bool[Tensor, "B U V W"]
"""Which windows of the grid a scan has: a box from the first corner."""

DepthTokens: TypeAlias = Float[Tensor, "B D E"]
"""One row per depth of a scan, or its embedding."""

ScanDepthMask: TypeAlias = Bool[Tensor, "B D"]
"""Which of them a scan has."""

TowerRows: TypeAlias = Float[Tensor, "*rows W"]
"""Features of a tower: one row per scan, depth or text."""

JointRows: TypeAlias = Float[Tensor, "*rows E"]
"""The same in the space that scans and texts share, length 1."""
