"""Patches as layers of a mount entry."""

from __future__ import annotations

import os
import stat
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def mounted(bench: Bench, patterns: str, files: dict[str, str | bytes] | None = None) -> Path:
    """The patched file of an entry with these patterns."""
    bench.repository("thing", {**FILES, **(files or {})})
    bench.write_toml(f'[workspace]\nname = "shop"\n[mounts."lib"]\ngit = "../thing"\npatches = {patterns}\n')
    bench.mount()
    return bench.live / "lib" / "greet.py"


def shows(path: Path, word: str) -> None:
    until(lambda: f'"{word}"' in path.read_text(), f"{word} in {path}")


def test_directories_that_come_and_go(bench: Bench) -> None:
    greet = mounted(bench, '["fixes/**/*.patch", "more/*/x.patch"]')
    assert '"hello"' in greet.read_text()
    for root in (bench.live, bench.root):
        (root / "fixes" / "deep" / "er").mkdir(parents=True)
        (root / "fixes" / "deep" / "er" / "1.patch").write_text(PATCH.format(word="deep"))
        shows(greet, "deep")
        os.rename(root / "fixes" / "deep", root / "elsewhere")
        shows(greet, "hello")
        os.rename(root / "elsewhere", root / "fixes" / "again")
        shows(greet, "deep")
        (root / "fixes" / "again" / "er" / "1.patch").write_text(PATCH.format(word="moved"))
        shows(greet, "moved")
        os.rename(root / "fixes", root / "more")
        shows(greet, "hello")
        os.rename(root / "more" / "again" / "er" / "1.patch", root / "more" / "again" / "x.patch")
        shows(greet, "moved")
        bench.run(["rm", "-r", root / "more"])
        shows(greet, "hello")
    bench.check_sound()


def test_saves_as_editors_do_them(bench: Bench) -> None:
    greet = mounted(bench, '["fix.patch"]')
    assert "fix.patch: there is no such patch file" in bench.entry("lib")["error"]
    for root in (bench.live, bench.root):
        (root / "fix.patch.new").write_text(PATCH.format(word="renamed"))
        os.rename(root / "fix.patch.new", root / "fix.patch")
        shows(greet, "renamed")
        with open(root / "fix.patch", "w") as file:  # as `tee` of a slow command
            text = PATCH.format(word="slowly")
            file.write(text[:40])
            file.flush()
            file.write(text[40:])
        shows(greet, "slowly")
        fd = os.open(root / "fix.patch", os.O_RDWR)
        os.pwrite(fd, text.replace("slowly", "placed").encode(), 0)
        shows(greet, "placed")  # though nobody has closed it
        os.close(fd)
        os.unlink(root / "fix.patch")
        shows(greet, "hello")
    bench.check_sound()


def test_links_to_patches(bench: Bench) -> None:
    greet = mounted(bench, '["fix.patch", "linked/*.patch"]')
    (bench.root / "store").mkdir()
    (bench.root / "store" / "a").write_text(PATCH.format(word="linked"))
    os.symlink("store/a", bench.root / "fix.patch")
    shows(greet, "linked")
    (bench.root / "store" / "a").write_text(PATCH.format(word="through"))
    shows(greet, "through")
    os.unlink(bench.root / "fix.patch")
    (bench.base / "secret.patch").write_text(PATCH.format(word="secret"))
    os.symlink(bench.base / "secret.patch", bench.root / "fix.patch")
    shows(greet, "hello")
    until(lambda: "must lie in the workspace" in (bench.entry("lib")["error"] or ""), "the refusal")
    os.unlink(bench.root / "fix.patch")
    (bench.root / "fix.patch").write_text("")
    os.symlink(bench.root / "store", bench.root / "linked")
    os.rename(bench.root / "store" / "a", bench.root / "store" / "a.patch")
    shows(greet, "through")
    assert bench.entry("lib")["error"] is None


def test_a_burst_of_saves_ends_with_the_last(bench: Bench) -> None:
    greet = mounted(bench, '["fix.patch"]')
    for number in range(300):
        root = (bench.live, bench.root)[number % 2]
        (root / "fix.patch").write_text(PATCH.format(word=f"{number:03}"))
    shows(greet, "299")
    for _ in range(50):  # and stays
        assert '"299"' in greet.read_text()
    assert bench.entry("lib")["error"] is None
    bench.check_sound()


def test_the_patched_file_is_edited_while_patches_change(bench: Bench) -> None:
    greet = mounted(bench, '["fix.patch"]')
    run = bench.live / "lib" / "run.sh"
    ended = threading.Event()

    def edit() -> None:
        number = 0
        while not ended.is_set():
            run.write_text(f"mine {number}\n")
            assert run.read_text() == f"mine {number}\n"
            os.unlink(run)
            with open(run, "w") as file:
                file.write("back\n")
            number += 1

    with ThreadPoolExecutor(1) as threads:
        editing = threads.submit(edit)
        try:
            for number in range(40):
                mode = (
                    f"diff --git a/run.sh b/run.sh\n--- a/run.sh\n+++ b/run.sh\n@@ -1 +1 @@\n-true\n+patched {number}\n"
                )
                (bench.root / "fix.patch").write_text(PATCH.format(word=f"{number:03}") + mode)
                shows(greet, f"{number:03}")
        finally:
            ended.set()
        editing.result()
    assert run.read_text() == "back\n"
    assert layer(bench, "lib/run.sh") == "upper"
    bench.cli("overlay", "reset", "lib")
    assert run.read_text() == "patched 39\n"
    bench.check_sound()


def test_patches_build_on_each_other_and_the_first_that_fails_ends_the_series(bench: Bench) -> None:
    greet = mounted(bench, '["p/*.patch"]')
    directory = bench.root / "p"
    directory.mkdir()
    (directory / "1.patch").write_text(SECOND)
    (directory / "2.patch").write_text("--- a/extra.txt\n+++ b/extra.txt\n@@ -1 +1,2 @@\n extra\n+more\n")
    (directory / "4.patch").write_text(PATCH.format(word="last"))
    shows(greet, "last")
    extra = bench.live / "lib" / "extra.txt"
    assert extra.read_text() == "extra\nmore\n"
    (directory / "3.patch").write_text("--- a/extra.txt\n+++ b/extra.txt\n@@ -1 +1 @@\n-other\n+x\n")
    shows(greet, "hello")
    assert extra.read_text() == "extra\nmore\n"
    shown = bench.entry("lib")
    assert shown["state"] == "mounted"
    for words in ("p/3.patch:3", "extra.txt", "hunk 1 of 1", "| other", "| extra"):
        assert words in shown["error"], words
    listed = bench.cli("status", "--at", bench.mountpoint, check=False).stdout
    assert "p/3.patch:3" in listed
    for broken, words in (
        (b"", None),
        (b"no patch at all\n", "there is no diff in it"),
        (b"--- a/greet.py\n+++ b/greet.py\n@@ -1 +1 @@\n-\xff\n+\xfe\n", "hunk 1 of 1"),
        (b"--- a/gone\n+++ b/gone\n@@ -1 +1 @@\n-a\n+b\n", "gone"),
    ):
        (directory / "3.patch").write_bytes(broken)
        until(lambda words=words: (words or "") in (bench.entry("lib")["error"] or ""), f"{words}")
    (directory / "3.patch").unlink()
    shows(greet, "last")
    assert bench.entry("lib")["error"] is None
    bench.check_sound()


def test_what_a_mount_entry_shows_is_no_place_for_patches(bench: Bench) -> None:
    bench.repository("other", {"fix.patch": PATCH.format(word="wrong")})
    bench.repository("thing", FILES)
    bench.write_toml(
        '[workspace]\nname = "shop"\n[mounts."lib"]\ngit = "../thing"\npatches = ["**/*.patch"]\n'
        '[mounts."other"]\ngit = "../other"\n'
    )
    bench.mount()
    assert (bench.live / "other" / "fix.patch").exists()
    assert '"hello"' in (bench.live / "lib" / "greet.py").read_text()
    assert bench.entry("lib")["error"] is None
