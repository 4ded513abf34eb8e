"""What can be known without a network: how much of each third of a scan has which density."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Float64

from hilum.cohort.pipeline import letters_axis
from hilum.cohort.store import Store
from hilum.errors import UsageError
from hilum.exam.features import field_of

EDGES_HU = (-950, -900, -850, -800, -700, -600, -500, -400, -300, -200, -100, -50, 0, 50, 100, 200, 400, 700)
"""Between the 19 bands; narrow where lung, fat, fluid and soft tissue lie."""
THIRDS = 3


def histogram_features(
    store: Store, keys: Sequence[str], on_scans: Callable[[int], None] | None = None
) -> Float32[np.ndarray, "N F"]:
    """Shares of 19 HU bands in each third of the field, from foot to head or back, as log(share + 1e-4).

    Args:
        store: keeps whole HU. keys: which scans, in which order. on_scans: called with scans just done.

    Raises:
        UsageError: `CONFIG_VALUE`, a store that does not keep HU.
    """
    if not keeps_hu(store):
        raise UsageError(
            "CONFIG_VALUE", "densities come from a store of HU", expected="int16, not clahe",
            got=f"{store.prep['dtype']}, {store.prep['values']}",
        )  # fmt: skip
    rows = []
    for key in keys:
        rows.append(_shares(store, key))
        if on_scans is not None:
            on_scans(1)
    return np.log(np.stack(rows) + 1e-4).astype(np.float32)


def keeps_hu(store: Store) -> bool:
    """Whether stored numbers are HU."""
    return store.prep["dtype"] == "int16" and store.prep["values"] != "clahe"


def _shares(store: Store, key: str) -> Float64[np.ndarray, "F"]:
    size, shape = field_of(store, key), store.row(key).shape
    x, y, z = (min(n, wanted) for n, wanted in zip(shape, size, strict=True))
    low = [(n - k) // 2 for n, k in zip(shape, (x, y, z), strict=True)]
    hu = store.read(key, (low[0], low[1], low[2]), (x, y, z))
    edges = np.array([-np.inf, *EDGES_HU, np.inf])
    thirds = np.array_split(hu, THIRDS, axis=letters_axis(store.prep["axes"], "S"))
    return np.concatenate([np.histogram(third, edges)[0] / third.size for third in thirds])
