"""Real input of real size: Python's own standard library as a git repository, large files, many files."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

import pytest
from harness import WAIT_S, Bench, bench_in

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """`ref`: the standard library at a commit; `over`: an overlay on a checkout of it; the root: a clone of it."""
    with bench_in(tmp_path_factory.mktemp("library")) as bench:
        source = bench.base / "stdlib"
        ignored = shutil.ignore_patterns("__pycache__", "site-packages", "config-*", "lib-dynload", "test", "idle_test")
        shutil.copytree(sysconfig.get_path("stdlib"), source, ignore=ignored, symlinks=True)
        bench.git("init", "-q", "-b", "main", cwd=source)
        bench.git("add", "-A", cwd=source)
        bench.git("commit", "-qm", "standard library", cwd=source)
        shutil.rmtree(bench.root)
        bench.git("clone", "-q", "--shared", str(source), str(bench.root), cwd=bench.base)
        bench.write_toml(
            '[workspace]\nname = "shop"\n\n[mounts.ref]\ngit = "../stdlib"\nref = "main"\n\n'
            '[mounts.over]\nlocal = "../stdlib"\nwrite = "overlay"\n'
        )
        (bench.root / ".git/info/exclude").write_text("/Clive.toml\n/ref\n/over\n")
        bench.mount()
        yield bench
        bench.check_sound()


PLACES = ["", "ref", "over"]


def test_same_tree(library: Bench) -> None:
    for name in ("ref", "over"):
        library.run(["diff", "-r", "-x", ".git", "--no-dereference", library.base / "stdlib", library.live / name])


@pytest.mark.parametrize("where", PLACES)
def test_git_sees_nothing_changed(library: Bench, where: str) -> None:
    cwd = library.live / where
    assert library.git("status", "--porcelain", cwd=cwd) == ""
    library.run(["touch", "-c", "os.py", "json/decoder.py"], cwd=cwd)
    assert library.git("status", "--porcelain", cwd=cwd) == ""
    assert library.git("grep", "-c", "def urlparse", "--", "urllib/parse.py", cwd=cwd) == "urllib/parse.py:1\n"


@pytest.mark.parametrize("where", PLACES)
def test_python_runs_and_compiles_from_it(library: Bench, where: str) -> None:
    cwd = library.live / where
    library.run([sys.executable, "-m", "compileall", "-q", "json", "email", "asyncio"], cwd=cwd)
    shown = library.run(
        [sys.executable, "-S", "-c", "import sys; sys.path.insert(0, '.'); import json.tool; print(json.__cached__)"],
        cwd=cwd,
    ).stdout
    assert shown.strip().startswith(str(cwd / "json/__pycache__"))
    library.run("find . -name __pycache__ -prune -exec rm -r {} +", cwd=cwd)


@pytest.mark.parametrize("where", ["ref", "over"])
def test_large_directories_are_moved_and_edited(library: Bench, where: str) -> None:
    cwd = library.live / where
    count = library.run("find email -type f | wc -l", cwd=cwd).stdout
    library.run(
        "mv email post; mv post/mime post/mimes; sed -i 1i# post/mimes/base.py; mkdir email; mv post email/post",
        cwd=cwd,
    )
    assert library.run("find email -type f | wc -l", cwd=cwd).stdout == count
    assert (cwd / "email/post/mimes/base.py").read_text().startswith("#\n# ")
    library.unmount()
    library.mount()
    assert library.run("find email -type f | wc -l", cwd=cwd).stdout == count
    assert (cwd / "email/post/mimes/base.py").read_text().startswith("#\n# ")
    library.run(
        "mv email/post/mimes email/post/mime; mv email/post post; rmdir email; mv post email\n"
        "sed -i 1d email/mime/base.py",
        cwd=cwd,
    )
    assert library.git("status", "--porcelain", cwd=cwd) == ""


def test_everything_is_removed_and_comes_back(library: Bench) -> None:
    cwd = library.live / "ref"
    library.run("rm -rf ./*", cwd=cwd)
    assert os.listdir(cwd) == [".git"]
    library.git("checkout", "-q", "--", ".", cwd=cwd)
    assert library.git("status", "--porcelain", cwd=cwd) == ""
    library.run(["diff", "-r", "-x", ".git", "--no-dereference", library.base / "stdlib", cwd])


def test_clone_inside(library: Bench) -> None:
    library.run(
        "git clone -q ../ref/ copy && git -C copy fsck && diff -r -x .git copy ../ref && rm -rf copy",
        cwd=library.live / "over",
    )


def test_copy_up_of_a_large_sparse_file_keeps_its_holes(library: Bench) -> None:
    path = library.base / "stdlib" / "disk.img"
    with path.open("wb") as file:
        file.truncate(6 << 30)
        file.seek(5 << 30)
        file.write(b"data")
    inside = library.live / "over" / "disk.img"
    try:
        with inside.open("r+b") as file:
            file.seek((5 << 30) + 4)
            file.write(b"more")
        with inside.open("rb") as file:
            file.seek(5 << 30)
            assert file.read(10) == b"datamore\0\0"
        assert inside.stat().st_size == 6 << 30
        assert inside.stat().st_blocks * 512 < 1 << 20
        with path.open("rb") as file:
            file.seek(5 << 30)
            assert file.read(10) == b"data" + bytes(6)
    finally:
        path.unlink()
        inside.unlink(missing_ok=True)


@pytest.mark.parametrize("where", PLACES)
def test_many_files_in_one_directory(library: Bench, where: str) -> None:
    cwd = library.live / where / "many"
    cwd.mkdir()
    script = "import os\nfor i in range(5000): open(f'{i:06}', 'w').close()\n"
    library.run([sys.executable, "-c", script], cwd=cwd)
    assert len(os.listdir(cwd)) == 5000
    assert library.run("ls | wc -l; find . -name '0000*' | wc -l", cwd=cwd).stdout.split() == ["5000", "100"]
    library.run("mv many lots; rm -rf lots", cwd=library.live / where)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("engine", ["psync", "mmap", "libaio --direct=1"], ids=["psync", "mmap", "direct"])
def test_random_writes_are_verified(library: Bench, where: str, engine: str) -> None:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    cwd = library.live / where / "fio"
    cwd.mkdir()
    with contextlib.closing(open(os.devnull)):
        command = (
            f"fio --name=v --rw=randrw --bsrange=512-64k --bs_unaligned=0 --size=8m --numjobs=2 --verify=crc32c "
            f"--verify_fatal=1 --do_verify=1 --fallocate=none --ioengine={engine} --output-format=terse"
        )
        library.run(command, cwd=cwd)
    library.run(["rm", "-rf", cwd])


def test_a_working_directory_deep_in_a_ref_that_is_reset(library: Bench) -> None:
    """`overlay reset` under a shell and an open file."""
    cwd = library.live / "ref"
    (cwd / "json/decoder.py").write_text("mine\n")
    (cwd / "json/extra").mkdir()
    with (
        (cwd / "json/decoder.py").open() as held,
        subprocess.Popen(["bash"], cwd=cwd / "json", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell,
    ):
        library.cli("overlay", "reset", "ref", cwd=library.live, check=False)
        assert held.read() == "mine\n"
        out, _ = shell.communicate("ls decoder.py; ls extra; head -c3 decoder.py\n", timeout=WAIT_S)
        assert out == 'decoder.py\n"""'
    assert library.git("status", "--porcelain", cwd=cwd) == ""
