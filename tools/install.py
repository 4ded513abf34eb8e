"""Make a virtual environment and install Hilum into it. Needs only Python 3.11 or newer with pip.

    python3 tools/install.py              to use Hilum (CPU build of torch)
    python3 tools/install.py --dev        and to test and change it
    python3 tools/install.py --extra text  and to ask in words (docs/dependencies.md has every extra)
    python3 tools/install.py --gpu        the build of torch for this machine's GPU: several gigabytes

Exact versions stand in constraints.txt. The CPU build is the default, so that a machine without a GPU does
not load gigabytes of GPU libraries by accident.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = "uv>=0.8"
OLDEST = (3, 11)

REPORT = """
import importlib.util, json, sys, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
                  "torchvision": importlib.util.find_spec("torchvision") is not None}))
"""


def main() -> int:
    """Install, verify, say what to do next."""
    if sys.version_info < OLDEST:
        return _complain(
            f"Hilum needs Python {OLDEST[0]}.{OLDEST[1]} or newer; this is {sys.version.split()[0]}."
        )
    options = _options()
    folder = Path(options.venv).expanduser().absolute()
    try:
        python = make_environment(folder)
        install(python, folder, extras=options.extra + ["dev"] * options.dev, gpu=options.gpu)
        problem = verify(python, gpu=options.gpu)
    except subprocess.CalledProcessError as error:
        return _complain(f"This step failed, its own words are above: {_shown(error.cmd)}")
    except (OSError, SystemExit) as error:
        return _complain(f"The environment {folder} could not be made: {error}")
    if problem:
        return _complain(problem)
    bin_folder = _relative(python.parent)
    _say(f"Done. Try: {bin_folder / 'hilum'} demo")
    if options.dev:
        _say(f"Tests:     {bin_folder / 'python'} -m pytest")
    return 0


def make_environment(folder: Path) -> Path:
    """A virtual environment with pip in `folder` (an existing one is used again); its Python.

    Raises:
        OSError: the folder is something else, or cannot be written.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.is_file() and _has_pip(python):
        _say(f"Using the environment {_relative(folder)}")
        return python
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise OSError("the folder exists and is no virtual environment; choose another with --venv")
    _say(f"Making the environment {_relative(folder)}")
    try:
        venv.EnvBuilder(with_pip=True, clear=folder.exists()).create(folder)
    except subprocess.CalledProcessError as error:
        hint = "Python's venv module has no pip here; on Debian or Ubuntu install the package python3-venv"
        raise OSError(hint) from error
    return python


def install(python: Path, folder: Path, *, extras: list[str], gpu: bool) -> None:
    """Hilum and what it needs, through uv, at the versions of constraints.txt.

    Args:
        extras: of pyproject.toml.

    Raises:
        subprocess.CalledProcessError: pip or uv failed.
    """
    _say("Installing uv (a fast installer) into it")
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV])
    environment = uv_environment(os.environ, pip_settings(python))
    environment["VIRTUAL_ENV"] = str(folder)
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    command = [str(python), "-m", "uv", "pip", "install", "--python", str(python)]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--editable", target]
    local = local_wheel_folder(environment.get("UV_FIND_LINKS", ""), pinned_torch())
    if gpu:
        _say("Installing Hilum with the build of torch for this machine's GPU (several gigabytes)")
        command += ["--torch-backend", "auto"]
        environment.pop("UV_FIND_LINKS", None)
    elif local:
        _say("Installing Hilum with the CPU build of torch that lies on this machine")
    else:
        _say("Installing Hilum with the CPU build of torch (about 200 MB)")
        command += ["--torch-backend", "cpu"]
    _run(command, environment)


def verify(python: Path, *, gpu: bool) -> str:
    """What is wrong with the environment, or an empty string.

    Raises:
        subprocess.CalledProcessError: torch cannot be imported.
    """
    said = subprocess.run([str(python), "-c", REPORT], check=True, capture_output=True, text=True).stdout
    found = json.loads(said.strip().splitlines()[-1])
    _say(f"torch {found['torch']}, " + (f"CUDA {found['cuda']}" if found["cuda"] else "CPU only"))
    if found["torch"].split("+")[0] != pinned_torch():
        return f"torch {pinned_torch()} is pinned in constraints.txt, but {found['torch']} was installed."
    if not gpu and (found["cuda"] or found["hip"]):
        return "A GPU build of torch was installed. Remove the environment and run again, or say --gpu."
    if found["torchvision"]:
        return "torchvision is in the environment; Hilum does not use it and a wrong build breaks torch."
    return ""


def pinned_torch() -> str:
    """The version of torch in constraints.txt."""
    found = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("constraints.txt does not pin torch")
    return found.group(1)


def pip_settings(python: Path) -> dict[str, str]:
    """pip's own configuration of indexes, links and certificates: uv does not read it."""
    command = [str(python), "-m", "pip", "config", "list"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", said, re.MULTILINE)
    return {name: value for name, value in found if value}


def uv_environment(environment: dict[str, str] | os._Environ[str], pip: dict[str, str]) -> dict[str, str]:
    """The environment for uv: what pip is told, said in uv's words, where uv was not told already."""
    result = dict(environment)
    # Folders that pip passes over in silence stop uv: only those that are there go on.
    links = [link for link in pip.get("find-links", "").split() if "://" in link or Path(link).is_dir()]
    indexes = pip.get("extra-index-url", "").split()
    told = {
        "UV_DEFAULT_INDEX": pip.get("index-url", ""),
        "UV_INDEX": " ".join(url for url in indexes if not url.startswith("file:")),
        "UV_FIND_LINKS": ",".join(links),
        "SSL_CERT_FILE": pip.get("cert", ""),
    }
    for name, value in told.items():
        if value:
            result.setdefault(name, value)
    result.setdefault("UV_LINK_MODE", "copy")
    return result


def local_wheel_folder(links: str, version: str) -> str:
    """The first local folder of `links` that holds a torch wheel of `version`, or an empty string."""
    for link in re.split(r"[\s,]+", links):
        folder = Path(link.removeprefix("file://"))
        if link and folder.is_dir() and any(folder.glob(f"torch-{version}[+-]*.whl")):
            return str(folder)
    return ""


def _has_pip(python: Path) -> bool:
    return (
        subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, check=False).returncode
        == 0
    )


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=environment, cwd=ROOT)


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _shown(command: object) -> str:
    return " ".join(str(part) for part in command) if isinstance(command, list) else str(command)


def _say(text: str) -> None:
    print(f"hilum: {text}", flush=True)


def _complain(text: str) -> int:
    print(f"hilum: {text}", file=sys.stderr)
    return 1


def _options() -> argparse.Namespace:
    import tomllib  # not there in a Python that is too old, which is said first

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dev", action="store_true", help="also what the tests and checks need")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    parser.add_argument(
        "--extra", action="append", default=[], choices=sorted(known), metavar="NAME",
        help="also what a part needs: " + ", ".join(name for name in known if name != "dev"),
    )  # fmt: skip
    parser.add_argument("--gpu", action="store_true", help="the GPU build of torch instead of the CPU build")
    parser.add_argument(
        "--venv", default=str(ROOT / ".venv"), help="folder of the environment (default: .venv)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
