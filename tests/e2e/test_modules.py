"""Real releases of PyPI and npm: patched, used and tested from the mount, built in it, moved to the next release."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Bench

pytestmark = [pytest.mark.mount, pytest.mark.network]

CLIENTS = {name: os.environ[name] for name in ("HOME",) if name in os.environ}
"""Where pip and npm find what their user has set."""
QUIET = {"PYTHONDONTWRITEBYTECODE": "1"}


def mounted(bench: Bench, **entries: str) -> None:
    tables = "".join(f'\n[mounts."vendor/{name}"]\n{keys}\n' for name, keys in entries.items())
    bench.write_toml('[workspace]\nname = "shop"\n' + tables)
    bench.mount(env=CLIENTS)
    for name in entries:
        shown = bench.entry(f"vendor/{name}")
        assert (shown["state"], shown["error"]) == ("mounted", None), shown


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def as_layer(bench: Bench, name: str, file: str, old: str, new: str) -> None:
    """Edit a file of a module, and make the edit a patch of the entry."""
    edited = bench.live / "vendor" / name / file
    edit(edited, old, new)
    before = edited.read_bytes()
    bench.cli("overlay", "export", f"vendor/{name}", "-o", f"patches/{name}.patch", "--as-layer")
    assert edited.read_bytes() == before
    assert os.getxattr(edited, b"user.clive.layer").decode() == f"patch:patches/{name}.patch"
    assert bench.cli("overlay", "diff", f"vendor/{name}").stdout == ""
    assert (bench.root / "patches" / f"{name}.patch").exists()


def python(bench: Bench, path: str, *args: str, cwd: str = "") -> str:
    """Run Python with a directory of the mount before all others."""
    env = {**QUIET, "PYTHONPATH": str(bench.live / path)}
    return bench.run([sys.executable, *args], env=env, cwd=bench.live / cwd).stdout


@pytest.fixture
def sound(bench: Bench) -> Iterator[Bench]:
    (bench.root / "patches").mkdir()
    yield bench
    bench.check_sound()


def test_a_wheel_is_patched_and_imported_from_the_mount(sound: Bench) -> None:
    mounted(sound, six='pypi = "six==1.16.0"')
    show = "import six; print(six.__version__, six.moves.urllib.parse.quote('a b'), six.__file__)"
    first = python(sound, "vendor/six", "-c", show).split()
    assert first == ["1.16.0", "a%20b", str(sound.live / "vendor/six/six.py")]
    as_layer(sound, "six", "six.py", '__version__ = "1.16.0"', '__version__ = "1.16.0+shop"')
    assert python(sound, "vendor/six", "-c", show).split()[0] == "1.16.0+shop"
    # The patch is one for everybody's tools.
    plain = sound.base / "plain"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    sound.run([*pip, "--no-compile", "--target", plain, "six==1.16.0"], env=CLIENTS)
    sound.run(["patch", "-p1", "-s", "-i", sound.root / "patches/six.patch"], cwd=plain)
    assert (plain / "six.py").read_bytes() == (sound.live / "vendor/six/six.py").read_bytes()


def test_an_sdist_passes_its_own_tests_in_the_mount(sound: Bench) -> None:
    mounted(sound, idna='pypi = "idna==3.6"\nsdist = true')
    as_layer(sound, "idna", "idna/core.py", "def encode(", "PATCHED = True\n\n\ndef encode(")
    shown = python(sound, "vendor/idna", "-c", "import idna.core as c; print(c.PATCHED, c.encode('ドメイン').decode())")
    assert shown == "True xn--eckwd4c7c\n"
    python(sound, "vendor/idna", "-W", "ignore", "-m", "unittest", "discover", "-s", "tests", "-t", ".",
           cwd="vendor/idna")  # fmt: skip


def test_a_c_extension_is_built_in_the_mount_with_the_patch_in_it(sound: Bench) -> None:
    mounted(sound, markupsafe='pypi = "markupsafe==2.1.5"\nsdist = true')
    as_layer(
        sound,
        "markupsafe",
        "src/markupsafe/_speedups.c",
        '"Replace the characters ``&``',
        '"Patched: replace the characters ``&``',
    )
    module = sound.live / "vendor/markupsafe"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    sound.run([*pip, "--no-cache-dir", "--target", "built", "."], cwd=module, env=CLIENTS, timeout=300)
    (extension,) = (module / "built/markupsafe").glob("_speedups*.so")
    assert os.getxattr(extension, b"user.clive.layer") == b"upper"
    document = "from markupsafe import _speedups as s; print(s.escape.__doc__.split(':')[0], s.escape('<'))"
    assert python(sound, "vendor/markupsafe/built", "-c", document) == "Patched &lt;\n"
    tests = python(sound, "vendor/markupsafe/built", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests",
                   cwd="vendor/markupsafe")  # fmt: skip
    assert " passed" in tests
    assert " skipped" not in tests, tests  # as they are without the extension


def test_packages_of_npm_are_patched_and_required_from_the_mount(sound: Bench) -> None:
    mounted(sound, **{"left-pad": 'npm = "left-pad@1.3.0"', "is": 'npm = "@sindresorhus/is@4.6.0"'})

    def node(script: str) -> str:
        return sound.run(["node", "-e", script]).stdout

    pad = "console.log(require('./vendor/left-pad')('x', 3, '-'))"
    assert node(pad) == "--x\n"
    as_layer(sound, "left-pad", "index.js", "str = str + '';", "str = '[' + str + ']';")
    assert node(pad) == "[x]\n"
    kind = "const is = require('./vendor/is'); console.log(is.default(5), is.default.evenInteger(4))"
    assert node(kind) == "number true\n"
    as_layer(sound, "is", "dist/index.js", "return 'number';", "return 'Number';")
    assert node(kind) == "Number true\n"


def test_patches_and_edits_move_from_one_release_to_the_next(sound: Bench) -> None:
    mounted(sound, markupsafe='pypi = "markupsafe==2.1.4"\nsdist = true')
    module = sound.live / "vendor/markupsafe"
    as_layer(sound, "markupsafe", "src/markupsafe/_speedups.c", '"Like :func:', '"Patched, like :func:')
    edit(module / "README.rst", "MarkupSafe\n", "MarkupSafe, mine\n")
    version = module / "src/markupsafe/__init__.py"
    edit(version, '__version__ = "2.1.4"', '__version__ = "2.1.4+mine"')
    before = {path: (module / path).read_bytes() for path in ("README.rst", "src/markupsafe/__init__.py", "tox.ini")}

    done = sound.cli("overlay", "rebase", "vendor/markupsafe", "--to", "2.1.5", check=False, env=CLIENTS)
    assert done.returncode == 1, done.stderr
    assert "src/markupsafe/__init__.py" in done.stdout
    assert "markupsafe==2.1.5" in (sound.root / "Clive.toml").read_text()
    assert "MarkupSafe, mine\n" in (module / "README.rst").read_text()
    assert '"Patched, like :func:' in (module / "src/markupsafe/_speedups.c").read_text()
    text = version.read_text()
    for part in ("<<<<<<<", "=======", ">>>>>>>", '__version__ = "2.1.4+mine"', '__version__ = "2.1.5"'):
        assert part in text, part
    for suffix, part in ((".orig", '"2.1.4"'), (".ours", '"2.1.4+mine"'), (".theirs", '"2.1.5"')):
        assert f"__version__ = {part}" in version.with_name(version.name + suffix).read_text()

    sound.cli("overlay", "rebase", "vendor/markupsafe", "--abort", env=CLIENTS)
    assert {path: (module / path).read_bytes() for path in before} == before
    assert sorted(each.name for each in version.parent.iterdir() if "__init__" in each.name) == ["__init__.py"]

    sound.cli("overlay", "rebase", "vendor/markupsafe", "--to", "2.1.5", check=False, env=CLIENTS)
    merged = version.read_text()
    begin, end = merged.index("<<<<<<<"), merged.index("\n", merged.index(">>>>>>>")) + 1
    version.write_text(merged[:begin] + '__version__ = "2.1.5+mine"\n' + merged[end:])
    sound.cli("overlay", "resolve", "vendor/markupsafe", "src/markupsafe/__init__.py")
    assert sound.entry("vendor/markupsafe")["error"] is None
    shown = python(sound, "vendor/markupsafe/src", "-c", "import markupsafe; print(markupsafe.__version__)")
    assert shown == "2.1.5+mine\n"
    assert not list(version.parent.glob("*.orig"))
