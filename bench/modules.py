"""The case of published modules: a wheel in a mount, against installing it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from bench.measure import Row, seconds
from bench.workbench import Workbench

_NAME, _VERSION = "bigwheel", "1.0"


def make_wheel(directory: Path, count: int) -> Path:
    """A wheel of *count* modules, as build tools make them: deflated, with a RECORD. They are those of the standard
    library, as often as it takes; no two are the same."""
    info = f"{_NAME}-{_VERSION}.dist-info"
    path = directory / f"{_NAME}-{_VERSION}-py3-none-any.whl"
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = [each for each in sorted(library.rglob("*.py")) if "site-packages" not in each.parts]
    content = []
    for number in range(count):
        module = modules[number % len(modules)]
        copy = f"copy{number // len(modules)}"
        data = module.read_bytes() + f"\n# {copy}\n".encode()
        content.append((f"{_NAME}/{copy}/{module.relative_to(library)}", data))
    content.append((f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: {_VERSION}\n".encode()))
    content.append((f"{info}/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"))
    record = ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content:
            archive.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(data)}\n"
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path


def mounted_wheel(base: Path, files: int, repeats: int) -> list[Row]:
    """Mounting a release of *files* files whose download is cached, in a store that never saw it, and installing it."""
    directory = base / "index"
    directory.mkdir()
    with zipfile.ZipFile(make_wheel(directory, files)) as wheel:
        first = wheel.namelist()[0]
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(directory), "PIP_CONFIG_FILE": os.devnull}
    taken: dict[str, list[float]] = {}
    for turn in range(repeats):
        for kind, more in (("install", []), ("uncompiled", ["--no-compile"])):
            target = base / f"{kind}{turn}"
            seconds_taken = seconds(lambda m=more, t=target: _install(pip, *m, "--target", str(t)))
            taken.setdefault(kind, []).append(seconds_taken)
            shutil.rmtree(target)
        with contextlib.closing(_bench(base / f"mount{turn}", pip)) as bench:
            bench.table(lib=f'pypi = "{_NAME}=={_VERSION}"')
            for kind in ("mount", "again"):
                taken.setdefault(kind, []).append(seconds(lambda b=bench: _mount_and_read(b, first)))
                bench.unmount()
        with contextlib.closing(_bench(base / f"attach{turn}", pip)) as bench:
            bench.table()
            bench.mount()
            taken.setdefault("attach", []).append(seconds(lambda b=bench: _attach_and_read(b, first)))
            bench.unmount()
    medians = {kind: statistics.median(times) for kind, times in taken.items()}
    plain = medians["install"]
    scale = f"{files:,}-file wheel, download cached"
    rows = []
    for kind, what in (("mount", "mount from nothing, first byte"), ("attach", "attach, first byte")):
        ours = medians[kind]
        rows.append(
            Row(f"{scale}: {what}; `pip install --target`", ours, plain, "< 2 s, < 1x", ours < 2 and ours < plain)
        )
    what = f"{scale}: mount from nothing, first byte; `pip install --target --no-compile`"
    rows.append(Row(what, medians["mount"], medians["uncompiled"], "", None))
    what = f"{scale}: mount when the store has it, first byte; `pip install --target`"
    rows.append(Row(what, medians["again"], plain, "", None))
    return rows


def _bench(base: Path, pip: dict[str, str]) -> Workbench:
    made = Workbench(base)
    made.environment.update(pip)
    return made


def _install(pip: dict[str, str], *options: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*command, *options, f"{_NAME}=={_VERSION}"], env={**os.environ, **pip}, check=True)


def _read(bench: Workbench, path: str) -> None:
    subprocess.run(["head", "-c1", str(bench.live / "lib" / path)], stdout=subprocess.DEVNULL, check=True)


def _mount_and_read(bench: Workbench, path: str) -> None:
    bench.mount()
    _read(bench, path)


def _attach_and_read(bench: Workbench, path: str) -> None:
    bench.cli("attach", "lib", f"pypi:{_NAME}=={_VERSION}", "-w", "shop")
    _read(bench, path)
