"""Checkpoints of a run: the newest few, each whole or not there at all, whatever kills the process.

A checkpoint is written beside, flushed, hashed and renamed. It is verified before it is resumed, and a
damaged one is passed over for the one before. Model, average and the optimiser's moments are all that a run
carries: its random numbers and its place in the data are functions of seed and step.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from hilum.errors import OutputError, UsageError, WeightsError
from hilum.io.atomic import atomic_folder
from hilum.objective.gather import rank, world
from hilum.train import checkpoint_files as files
from hilum.train import checkpoint_state as state
from hilum.train.ema import Average
from hilum.train.ranks import each_does, first_does
from hilum.volume import Finding, Level


class Checkpoints:
    """The checkpoints of one run, in one process, under DDP or under FSDP2.

    Every rank calls `save` and `load`, on a file system that all of them see. A run may go on with another
    number of ranks, or sharded otherwise. One run at a time writes to a folder (`io.lock`).

    Args:
        folder: of nothing but checkpoints; made when it is first written. keep: how many stand; two let a run
            go on when the newest is damaged.

    Attributes:
        findings: what `load` passed over, for people and receipts.

    Raises:
        UsageError: `CONFIG_VALUE`, `keep` is less than 1.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise UsageError("CONFIG_VALUE", "a run keeps a checkpoint", expected="1 or more", got=keep)
        self.folder, self.keep = folder, keep
        self.findings: list[Finding] = []

    def save(
        self,
        step: int,
        model: nn.Module,
        average: Average,
        optim: torch.optim.Optimizer,
        identity: str,
    ) -> Path:
        """A checkpoint that stands under its name only when all of it is on disk. Older ones than the newest
        `keep` go after that, and damaged ones that `load` found.

        Args:
            step: the next one. identity: JSON of the recipe, without what may change between two runs.

        Returns:
            Its folder.

        Raises:
            OutputError: `OUTPUT_UNWRITABLE`, on every rank; what stood before still stands.
            UsageError: `CONFIG_VALUE` for an optimiser that is not the model's.
        """
        tensors = state.run_tensors(model, average, optim)
        try:
            final = self._save(step, tensors, identity)
            first_does(self._remove_old)
        except OSError as error:
            raise OutputError(
                "OUTPUT_UNWRITABLE",
                "a checkpoint can be written",
                got=error.strerror or error,
                path=self.folder,
            ) from error
        return final

    def latest(self) -> int | None:
        """Step of the newest checkpoint whose manifest is sound and whose files have their sizes; None when
        there is none. `load` looks at every byte."""
        for path in files.standing(self.folder):
            try:
                return files.read_manifest(path).step
            except WeightsError:
                continue
        return None

    def load(self, model: nn.Module, average: Average, optim: torch.optim.Optimizer, identity: str) -> int:
        """Restores a run from the newest checkpoint that is whole, bit for bit; 0 when there never was one.

        A damaged one is passed over and stands in `findings`. A refusal leaves the run as it was.

        Returns:
            The next step.

        Raises:
            WeightsError: `RESUME_CHANGED` for another recipe, with the keys that differ; `WEIGHTS_KEYS` for
                another model; `CHECKPOINT_PARTIAL` when none is whole; `FORMAT_NEWER`.
        """
        self.findings = []
        standing = first_does(lambda: files.standing(self.folder))
        for path in standing:
            try:
                manifest = self._verified(path, identity)
            except WeightsError as error:
                if error.code != "CHECKPOINT_PARTIAL":
                    raise
                self.findings.append(_passed_over(path, error))
                continue
            state.read(path, manifest, model, average, optim)
            return manifest.step
        if standing:
            raise WeightsError(
                "CHECKPOINT_PARTIAL",
                "a run goes on from a checkpoint that is whole",
                expected="one at least",
                got=[finding.got for finding in self.findings],
                path=self.folder,
                hint="Remove the folder to begin again.",
            )
        return 0

    def _save(self, step: int, tensors: state.Tensors, identity: str) -> Path:
        # only the first rank holds anything; an error anywhere removes what was begun
        with ExitStack() as stack:
            final, beside = first_does(lambda: self._begin(stack, step))
            state.write(tensors, beside)
            facts = _file_facts_of_all(beside)
            manifest = files.Manifest(step, identity, world(), state.table(tensors), facts)
            first_does(lambda: files.write_manifest(beside, manifest))
            first_does(stack.close)
        return final

    def _begin(self, stack: ExitStack, step: int) -> tuple[Path, Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(self.folder)
        final = self.folder / files.next_name(self.folder, step)
        return final, stack.enter_context(atomic_folder(final))

    def _remove_old(self) -> None:
        damaged = {Path(finding.where) for finding in self.findings}
        standing = files.standing(self.folder)
        sound = [path for path in standing if path not in damaged]
        files.remove(path for path in standing if path not in sound[: self.keep])

    def _verified(self, path: Path, identity: str) -> files.Manifest:
        manifest = first_does(lambda: files.read_manifest(path))
        files.check_identity(path, manifest, identity)
        try:
            found = _file_facts_of_all(path)
        except OSError as error:
            raise files.partial(path, error.strerror or str(error)) from error
        files.check_files(path, manifest, found)
        return manifest


def _passed_over(path: Path, error: WeightsError) -> Finding:
    where = Path(error.path or "")
    return Finding(
        error.code,
        Level.REPAIR,
        error.rule,
        expected=error.expected or "",
        got=f"{where.name}: {error.got}",
        hint="The run goes on from the checkpoint before.",
        where=str(path),
    )


def _file_facts_of_all(folder: Path) -> dict[str, list]:
    """Bytes and sha256 of a checkpoint's files; each rank hashes its share."""
    share = slice(rank(), None, world())
    found = each_does(lambda: files.file_facts(folder, share))
    return {name: facts for part in found for name, facts in part.items()}
