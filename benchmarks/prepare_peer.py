"""One side of `prepare_speed.py`: prepares scans one after the other and says how long each took.

    python benchmarks/prepare_peer.py hilum|sitk|monai

Reads one JSON job per line: {"path", "spacing_mm", "size" or null, "out" or null}; answers with one JSON line
of wall and CPU seconds for reading and for preparing. All three give the same array [X, Y, Z]: RAS+, linear
interpolation from the first voxel on, -1000..1000 HU to 0..1, cropped or padded about the centre. Imports the
library that is asked for and nothing of the others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402  after the thread counts


class Hilum:
    """`io.open` and a `Pipeline`."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)

    def read(self, job: dict[str, Any]) -> Any:
        """Every check of the reader included."""
        from hilum.io.open import open_volume

        return open_volume(job["path"])

    def prepare(self, volume: Any, job: dict[str, Any]) -> np.ndarray:
        """The pipeline."""
        from hilum.cohort.prep_presets import Pipeline

        size = job["size"]
        fit = {"fit": "shape", "fit_vox": tuple(size)} if size else {}
        prep = Pipeline("speed", spacing_mm=tuple(job["spacing_mm"]), values="unit", **fit)
        return prep.apply(volume)[0][0, 0].numpy()


class Sitk:
    """One `ResampleImageFilter` straight onto the final grid, then clamp and scale."""

    def __init__(self) -> None:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        self.sitk = sitk

    def read(self, job: dict[str, Any]) -> Any:
        """As the pixel type of the file."""
        return self.sitk.ReadImage(job["path"])

    def prepare(self, image: Any, job: dict[str, Any]) -> np.ndarray:
        """The grid is worked out by hand: SimpleITK turns, crops and interpolates in one pass."""
        sitk = self.sitk
        shape, own = np.array(image.GetSize()), np.array(image.GetSpacing())
        direction = np.array(image.GetDirection()).reshape(3, 3)
        # RAS+ axes in ITK's LPS frame: which image axis runs along each, and whether it runs the other way
        ras = np.diag([-1.0, -1.0, 1.0]) @ direction
        order = [int(np.abs(ras[axis]).argmax()) for axis in range(3)]
        signs = [float(np.sign(ras[axis, order[axis]])) for axis in range(3)]
        first = np.array([0.0 if s > 0 else shape[o] - 1 for o, s in zip(order, signs, strict=True)])
        index = np.zeros(3)
        index[order] = first
        origin = np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))
        columns = np.stack([direction[:, o] * s for o, s in zip(order, signs, strict=True)], axis=1)
        wanted = np.array(job["spacing_mm"])
        size = np.round((shape[order] - 1) * own[order] / wanted + 1).astype(int)
        if job["size"]:
            low = (size - np.array(job["size"])) // 2
            origin, size = origin + columns @ (low * wanted), np.array(job["size"])
        like = sitk.ResampleImageFilter()
        like.SetInterpolator(sitk.sitkLinear)
        like.SetOutputOrigin(origin.tolist())
        like.SetOutputDirection(columns.ravel().tolist())
        like.SetOutputSpacing(wanted.tolist())
        like.SetSize(size.tolist())
        like.SetOutputPixelType(sitk.sitkFloat32)
        like.SetDefaultPixelValue(-1000.0)
        like.SetUseNearestNeighborExtrapolator(not job["size"])
        values = sitk.GetArrayFromImage(like.Execute(image))
        np.clip(values, -1000.0, 1000.0, out=values)
        values += 1000.0
        values *= 1 / 2000.0
        return values.transpose(2, 1, 0)


class Monai:
    """The chain that MONAI's tutorials use for CT."""

    def __init__(self) -> None:
        import torch
        from monai import transforms

        torch.set_num_threads(1)
        self.t = transforms
        self.chains: dict[str, Any] = {}

    def read(self, job: dict[str, Any]) -> Any:
        """LoadImaged, EnsureChannelFirstd."""
        if "read" not in self.chains:
            self.chains["read"] = self.t.Compose(
                [self.t.LoadImaged("image"), self.t.EnsureChannelFirstd("image")]
            )
        return self.chains["read"]({"image": job["path"]})

    def prepare(self, data: Any, job: dict[str, Any]) -> np.ndarray:
        """Orientationd, Spacingd, ScaleIntensityRanged, ResizeWithPadOrCropd."""
        name = json.dumps([job["spacing_mm"], job["size"]])
        if name not in self.chains:
            t = self.t
            steps = [
                t.Orientationd("image", axcodes="RAS"),
                t.Spacingd("image", pixdim=job["spacing_mm"], mode="bilinear"),
                t.ScaleIntensityRanged("image", -1000.0, 1000.0, 0.0, 1.0, clip=True),
            ]
            if job["size"]:
                steps.append(t.ResizeWithPadOrCropd("image", job["size"]))
            self.chains[name] = t.Compose(steps)
        return self.chains[name](dict(data))["image"][0].numpy()


SIDES = {"hilum": Hilum, "sitk": Sitk, "monai": Monai}


def main() -> int:
    """Serve until the input ends."""
    side = SIDES[sys.argv[1]]()
    print(json.dumps({"ready": sys.argv[1]}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        clock, cpu = [time.perf_counter()], [time.process_time()]
        scan = side.read(job)
        clock.append(time.perf_counter())
        cpu.append(time.process_time())
        array = side.prepare(scan, job)
        clock.append(time.perf_counter())
        cpu.append(time.process_time())
        del scan
        if job.get("out"):
            np.save(job["out"], np.ascontiguousarray(array, dtype=np.float32))
        took = {}
        for name, at in (("wall", clock), ("cpu", cpu)):
            took |= {f"read_{name}_s": at[1] - at[0], f"prepare_{name}_s": at[2] - at[1]}
        print(json.dumps(took), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
