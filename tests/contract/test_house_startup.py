"""The command line starts fast and light."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np

LIMIT_S = 0.3
HEAVY = ("torch", "numpy", "scipy", "pydicom", "nibabel", "jinja2", "PIL")


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


HELP = "import sys; sys.argv = ['hilum', '--help']; from hilum.cli import main; main()"


def _seconds(code: str) -> float:
    start = time.perf_counter()
    done = _python(code)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


def test_help_is_fast() -> None:
    # Best of many, because other work on the machine only ever adds time.
    best = np.inf
    for attempt in range(15):
        best = min(best, _seconds(HELP))
        if attempt >= 4 and best < LIMIT_S:
            break
    assert best < LIMIT_S, f"`hilum --help` took {best:.2f} s at best"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['hilum', '--help']\nfrom hilum.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"sys.stderr.write(repr([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    done = _python(code)
    assert done.stderr.strip() == "[]"


def test_check_imports_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    values = np.random.default_rng(0).integers(-1000, 400, (12, 12, 12)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([3.0, 3.0, 3.0, 1.0])), path)
    code = (
        "import sys\nsys.argv = ['hilum', 'check', sys.argv[1], '--json']\nfrom hilum.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write('torch' if 'torch' in sys.modules else 'light')"
    )
    done = _python(code, str(path))
    assert done.stderr.strip().endswith("light"), done.stderr[-500:]
    json.loads(done.stdout)
