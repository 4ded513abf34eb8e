"""The record of a run: `log.jsonl` always, TensorBoard or MLflow where a recipe asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from hilum.errors import UsageError
from hilum.train.recipe import RunRecipe
from hilum.train.schedule import Rates


class Tracker:
    """Writes one line per step; on other ranks than the first, nothing.

    Raises:
        UsageError: `EXTRA_MISSING` for a tracker that is not installed.
    """

    def __init__(self, out: Path, recipe: RunRecipe, *, writes: bool) -> None:
        self.path, self.others = out / "log.jsonl", []
        self.writes = writes
        if writes:
            out.mkdir(parents=True, exist_ok=True)
            self.others = [OTHERS[name](out, recipe) for name in recipe.track]

    def log(self, step: int, seconds: float, losses: dict[str, float], rates: Rates) -> None:
        """One step. A step that ran twice, before and after a stop, has two lines."""
        if not self.writes:
            return
        line = {"step": step, "seconds": round(seconds, 3), "lr": rates.lr, **losses}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for other in self.others:
            other.log(step, {**losses, "lr": rates.lr, "seconds": seconds})

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for other in self.others:
            other.close()


class TensorBoard:
    """Event files in `out/tensorboard`."""

    def __init__(self, out: Path, recipe: RunRecipe) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from None
        self.writer = SummaryWriter(str(out / "tensorboard"))

    def log(self, step: int, values: dict[str, float]) -> None:
        """One step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes."""
        self.writer.close()


class MLflow:
    """A run of the experiment `hilum`, where MLflow's own environment variables say."""

    def __init__(self, out: Path, recipe: RunRecipe) -> None:
        try:
            import mlflow  # type: ignore[import-not-found]
        except ImportError as error:
            raise _missing("mlflow", error) from None
        self.client = mlflow
        mlflow.set_experiment("hilum")
        mlflow.start_run(run_name=recipe.name)
        mlflow.log_dict(recipe.model_dump(mode="json"), "recipe.json")

    def log(self, step: int, values: dict[str, float]) -> None:
        """One step."""
        self.client.log_metrics(values, step=step)

    def close(self) -> None:
        """Ends the run."""
        self.client.end_run()


OTHERS: dict[str, Any] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def _missing(name: str, error: ImportError) -> UsageError:
    return UsageError(
        "EXTRA_MISSING",
        f"tracking with {name} needs it installed",
        got=error,
        hint=f"uv pip install {name}, or leave it out of `track`.",
    )
