"""Published modules made here: wheels, sdists and archives, and an index of them for the real pip."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from harness import Bench

Files = Mapping[str, str | bytes]


def archive(path: Path, files: Files, top: str = "thing") -> str:
    """A tar archive with gz of *files* in the directory *top*; its SHA-256."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(data)
            info.mtime = 1_600_000_000
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def wheel(directory: Path, name: str, version: str, files: Files) -> str:
    """A wheel for any Python; its SHA-256."""
    info = f"{name}-{version}.dist-info"
    content: dict[str, str | bytes] = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:
        for each, data in content.items():
            made.writestr(each, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sdist(directory: Path, name: str, version: str, files: Files) -> str:
    """An sdist that needs nothing to be built; its SHA-256."""
    backend = (
        "def prepare_metadata_for_build_wheel(directory, settings=None):\n"
        f"    import os\n    name = '{name}-{version}.dist-info'\n    os.mkdir(os.path.join(directory, name))\n"
        "    with open(os.path.join(directory, name, 'METADATA'), 'w') as file:\n"
        f"        file.write('Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n')\n    return name\n"
    )
    content: dict[str, str | bytes] = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n",
        "backend.py": backend,
        **files,
    }
    return archive(directory / f"{name}-{version}.tar.gz", content, f"{name}-{version}")


def index(bench: Bench) -> Path:
    """The directory that is the only index for pip in *bench* from now on."""
    path = bench.base / "index"
    path.mkdir()
    bench.environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(path), "PIP_CONFIG_FILE": os.devnull}
    bench.environment.pop("PIP_EXTRA_INDEX_URL", None)
    return path
