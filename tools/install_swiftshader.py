"""Install SwiftShader, a Vulkan driver that runs on the processor: WebGPU can then be tested without a GPU.

Debian ships it inside its package chromium-common, of which three files are needed: the driver, its description, and
a Vulkan loader. apt fetches the package and checks its signature; it is unpacked without being installed, and no root
is needed where apt's lists are there. On other systems, give the package by --package.

    python tools/install_swiftshader.py            # into the environment of this python, where the tests look
    python tools/install_swiftshader.py --env      # ... and print what programs need in their environment to use it
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "chromium-common"
DRIVER = "libvk_swiftshader.so"
DESCRIPTION = "vk_swiftshader_icd.json"
LOADER = "libvulkan.so.1"
FILES = (DRIVER, DESCRIPTION, LOADER)
_FOLDER_IN_PACKAGE = "./usr/lib/chromium/"


def default_folder() -> Path:
    """Where the tests look: $PARALLAX_SWIFTSHADER, else a folder of this Python's environment."""
    chosen = os.environ.get("PARALLAX_SWIFTSHADER")
    return Path(chosen) if chosen else Path(sys.prefix) / "share" / "swiftshader"


def environment(folder: Path) -> dict[str, str]:
    """What must be set when a process starts. One that runs already opens the loader by its path instead."""
    return {
        "LD_LIBRARY_PATH": str(folder),
        "VK_ICD_FILENAMES": str(folder / DESCRIPTION),
        "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1",
    }


def is_installed(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def install(folder: Path, package: Path | None) -> None:
    """Unpack the files into ``folder``. They appear there one by one, each whole."""
    with tempfile.TemporaryDirectory(prefix="swiftshader-") as scratch:
        source = download(Path(scratch)) if package is None else package
        archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(source)], stdout=subprocess.PIPE, check=True).stdout
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for name in FILES:
            member = tar.extractfile(_FOLDER_IN_PACKAGE + name)
            if member is None:
                raise SystemExit(f"{source.name} has no {name}: Debian has moved it, look where")
            part = folder / f".{name}.{os.getpid()}"
            with open(part, "wb") as file:
                shutil.copyfileobj(member, file)
            part.chmod(0o644)
            part.replace(folder / name)


def download(folder: Path) -> Path:
    """Have apt fetch the package; refresh its lists where they lack it and we may."""
    for attempt in ("with the lists there are", "with fresh lists"):
        done = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
        found = list(folder.glob("*.deb"))
        if done.returncode == 0 and found:
            return found[0]
        print(f"apt-get download, {attempt}: {done.stderr.strip()}", file=sys.stderr)
        if os.geteuid() != 0 or attempt == "with fresh lists":
            break
        subprocess.run(["apt-get", "update"], stdout=subprocess.DEVNULL, check=False)
    raise SystemExit(
        f"apt has no {PACKAGE}: run `apt-get update` as root, or fetch the package and give it by --package"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where to (default: %(default)s)")
    parser.add_argument("--package", type=Path, help=f"Debian's {PACKAGE}, fetched before")
    parser.add_argument("--env", action="store_true", help="print the environment as shell commands")
    arguments = parser.parse_args()
    if shutil.which("dpkg-deb") is None:
        raise SystemExit("this needs dpkg-deb, which Debian and its relatives have")
    if not is_installed(arguments.folder):
        install(arguments.folder, arguments.package)
    if arguments.env:
        for name, value in environment(arguments.folder).items():
            print(f"export {name}='{value}'")
    else:
        print(f"SwiftShader is in {arguments.folder}")


if __name__ == "__main__":
    main()
