"""Patches as layers of a mount entry."""

from __future__ import annotations

import os
import stat
import zipfile

import pytest
from harness import Bench, until

pytestmark = pytest.mark.mount

PATCH = """--- a/greet.py
+++ b/greet.py
@@ -1,2 +1,2 @@
 def greet():
-    return "hello"
+    return "{word}"
"""
SECOND = """diff --git a/run.sh b/run.sh
old mode 100644
new mode 100755
diff --git a/extra.txt b/extra.txt
new file mode 100644
--- /dev/null
+++ b/extra.txt
@@ -0,0 +1 @@
+extra
"""
FILES: dict[str, str | bytes] = {
    "greet.py": 'def greet():\n    return "hello"\n',
    "run.sh": "true\n",
    "pkg/other.py": "",
}


def layer(bench: Bench, path: str) -> str:
    return os.getxattr(bench.live / path, b"user.clive.layer").decode()


def entry(source: str) -> str:
    return f'[workspace]\nname = "shop"\n[mounts."lib"]\n{source}\npatches = ["patches/*.patch"]\n'


def fill(bench: Bench, word: str = "patched") -> None:
    (bench.root / "patches").mkdir()
    (bench.root / "patches" / "01-greet.patch").write_text(PATCH.format(word=word))
    (bench.root / "patches" / "02-extra.patch").write_text(SECOND)


def test_a_git_ref(bench: Bench) -> None:
    thing = bench.repository("thing", FILES)
    fill(bench)
    bench.write_toml(entry('git = "../thing"'))
    bench.mount()
    lib = bench.live / "lib"
    assert '"patched"' in (lib / "greet.py").read_text()
    assert (lib / "extra.txt").read_text() == "extra\n"
    assert stat.S_IMODE((lib / "run.sh").stat().st_mode) == 0o755
    assert layer(bench, "lib/greet.py") == "patch:patches/01-greet.patch"
    assert layer(bench, "lib/pkg/other.py").startswith("git:")
    assert '"hello"' in (thing / "greet.py").read_text()
    # To git they are modifications of the commit.
    assert sorted(bench.git("status", "--porcelain", cwd=lib).splitlines()) == [
        " M greet.py",
        " M run.sh",
        "?? extra.txt",
    ]
    assert bench.git("diff", "--stat", "--", "greet.py", cwd=lib)
    assert bench.cli("overlay", "diff", "lib").stdout == ""


def test_an_archive(bench: Bench) -> None:
    with zipfile.ZipFile(bench.base / "thing.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"thing-1/{name}", content)
    fill(bench)
    bench.write_toml(entry('archive = "../thing.zip"'))
    bench.mount()
    assert '"patched"' in (bench.live / "lib" / "greet.py").read_text()
    (bench.live / "lib" / "greet.py").write_text("mine\n")
    assert layer(bench, "lib/greet.py") == "upper"
    bench.cli("overlay", "reset", "lib")
    assert '"patched"' in (bench.live / "lib" / "greet.py").read_text()


def test_saving_adding_and_removing_a_patch_takes_effect(bench: Bench) -> None:
    bench.repository("thing", FILES)
    fill(bench)
    bench.write_toml(entry('git = "../thing"'))
    bench.mount()
    lib = bench.live / "lib"
    number = (lib / "pkg" / "other.py").stat().st_ino
    (bench.live / "patches" / "01-greet.patch").write_text(PATCH.format(word="again"))
    until(lambda: '"again"' in (lib / "greet.py").read_text(), "the saved patch")
    (bench.root / "patches" / "02-extra.patch").unlink()
    until(lambda: not (lib / "extra.txt").exists(), "the removed patch")
    (bench.root / "patches" / "00-new.patch").write_text(SECOND.replace("+extra", "+new"))
    until(lambda: (lib / "extra.txt").exists() and (lib / "extra.txt").read_text() == "new\n", "the new patch")
    assert (lib / "pkg" / "other.py").stat().st_ino == number


def test_a_patch_that_does_not_apply_is_left_out_and_named(bench: Bench) -> None:
    bench.repository("thing", FILES)
    fill(bench)
    (bench.root / "patches" / "01-greet.patch").write_text(PATCH.format(word="x").replace("hello", "good bye"))
    bench.write_toml(entry('git = "../thing"'))
    bench.mount()
    lib = bench.live / "lib"
    assert '"hello"' in (lib / "greet.py").read_text()
    assert not (lib / "extra.txt").exists()
    shown = bench.entry("lib")
    assert shown["state"] == "mounted"
    assert "01-greet.patch" in shown["error"]
    assert "greet.py" in shown["error"]
    (bench.root / "patches" / "01-greet.patch").write_text(PATCH.format(word="mended"))
    until(lambda: '"mended"' in (lib / "greet.py").read_text(), "the mended patch")
    until(lambda: bench.entry("lib")["error"] is None, "no error any more")
