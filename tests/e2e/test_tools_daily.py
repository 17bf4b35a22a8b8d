"""What a developer's tools do every day, in each of the three places: shells, copiers, editors, builds."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Bench, sample_workspace, until, write_files

pytestmark = pytest.mark.mount

PLACES = {"through": "", "overlay": "over", "git": "lib/thing"}


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with sample_workspace(tmp_path_factory.mktemp("tools")) as made:
        yield made


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, mounted: Bench) -> Path:
    """An empty directory of this test's own."""
    path = mounted.live / PLACES[request.param] / request.node.name.translate({ord("["): "-", ord("]"): None})
    path.mkdir()
    return path


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def facts(root: Path) -> list[tuple[object, ...]]:
    """All that a faithful copy keeps, of every file below *root*."""
    found: list[tuple[object, ...]] = []
    for directory, names, files in os.walk(root):
        for name in sorted([*names, *files]):
            path = Path(directory) / name
            st = path.lstat()
            content: object = None
            if stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(st.st_mode):
                content = path.read_bytes()
            time_ns = None if stat.S_ISDIR(st.st_mode) else st.st_mtime_ns
            found.append((str(path.relative_to(root)), st.st_mode, st.st_uid, st.st_gid, time_ns, content))
    return sorted(found, key=lambda each: str(each[0]))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A directory outside with one of everything."""
    root = tmp_path / "sample"
    write_files(
        root, {"a": "a\n", "d/b": b"\0" * 5000, "d/e/c": "c", "odd \n name": "x", "run": "#!/bin/sh\necho ran\n"}
    )
    (root / "run").chmod(0o755)
    (root / "secret").write_text("s")
    (root / "secret").chmod(0o400)
    (root / "link").symlink_to("d/b")
    (root / "broken").symlink_to("../none")
    (root / "empty").mkdir()
    os.link(root / "a", root / "d" / "also-a")
    for path in sorted(root.rglob("*"), reverse=True):  # old enough for rsync, which compares seconds
        os.utime(path, ns=(1_234_567_890_123_456_789,) * 2, follow_symlinks=False)
    return root


@pytest.mark.parametrize(
    "command",
    [
        "cp -a {0} {1}",
        "rsync -aH {0}/ {1}",
        "mkdir {1} && tar -C {0} --format=posix -c . | tar -C {1} -xp",
    ],
    ids=["cp", "rsync", "tar"],
)
def test_copies_are_faithful(mounted: Bench, place: Path, sample: Path, command: str) -> None:
    needs("rsync")
    mounted.run(command.format(sample, place / "in"))
    assert facts(place / "in") == facts(sample)
    mounted.run(command.format(place / "in", sample.parent / "back"))
    assert facts(sample.parent / "back") == facts(sample)
    assert (place / "in/a").stat().st_nlink == 2
    mounted.run(["rm", "-rf", place / "in"])


def test_rsync_twice_copies_nothing(mounted: Bench, place: Path, sample: Path) -> None:
    needs("rsync")
    mounted.run(["rsync", "-aH", f"{sample}/", place])
    again = mounted.run(["rsync", "-aHi", f"{sample}/", place]).stdout
    assert again == ""
    (sample / "a").write_text("other\n")
    assert ">f" in mounted.run(["rsync", "-aHi", "--delete", "--inplace", f"{sample}/", place]).stdout
    assert facts(place) == facts(sample)


def test_copying_a_source_out(mounted: Bench, tmp_path: Path) -> None:
    for name in ("over/tests", "lib/thing/tests"):
        mounted.run(["cp", "-a", name, tmp_path / "out"])
        mounted.run(["diff", "-r", "--no-dereference", name, tmp_path / "out"])
        mounted.run(["rm", "-rf", tmp_path / "out"])


def test_shell_and_coreutils(mounted: Bench, place: Path) -> None:
    script = """
    mkdir -p a/b/c; cd a/b; echo one > c/f; echo two >> c/f; cat c/f | sort -r > g; tee h < g > /dev/null
    [ "$(cat h)" = "$(printf 'two\\none')" ]
    mv c d; ln -s d/f l; ln d/f hard; [ "$(readlink l)" = d/f ]; [ "$(stat -c %h hard)" = 2 ]
    sed -i s/one/ONE/ l g; grep -q ONE g; [ -L l ] || true
    touch -d '2001-02-03 04:05:06.789' t; [ "$(stat -c %y t | cut -c1-23)" = '2001-02-03 04:05:06.789' ]
    chmod u=rwx,go= t; [ -x t ]; install -m 640 g i; [ "$(stat -c %a i)" = 640 ]
    dd if=/dev/zero of=z bs=64k count=3 conv=fsync status=none; truncate -s +1 z; [ "$(stat -c %s z)" = 196609 ]
    split -b 50000 z part.; cat part.* | cmp - z; rm part.*
    mktemp -p . x.XXXX > /dev/null; mkfifo p; (echo hi > p &) ; [ "$(cat p)" = hi ]
    find . -type f | xargs ls -l > /dev/null; find . -newer t -name g | grep -q g
    du -sk . > /dev/null; df . > /dev/null
    set -o noclobber; ! (echo x > g) 2> /dev/null; rm p; cd ../..; mv a z; cp -r z y; diff -r z y; rm -r z y
    """
    mounted.run(script, cwd=place)
    assert os.listdir(place) == []


def test_programs_run_from_the_mount(mounted: Bench, place: Path) -> None:
    (place / "s").write_text("#!/bin/sh\necho script $0\n")
    (place / "s").chmod(0o755)
    assert mounted.run("./s", cwd=place).stdout == "script ./s\n"
    shutil.copy2("/bin/true", place / "true")
    mounted.run("./true", cwd=place)
    (place / "n").write_text("#!/bin/sh\n")
    with pytest.raises(PermissionError):
        subprocess.run([place / "n"], check=True)
    sleeper = place / "sleeper"
    shutil.copy2(shutil.which("sleep") or "/bin/sleep", sleeper)
    with subprocess.Popen([sleeper, "30"]) as running:
        try:
            until(lambda: os.readlink(f"/proc/{running.pid}/exe") == str(sleeper), "the program running")
            sleeper.unlink()  # as an upgrade does
            shutil.copy2("/bin/true", sleeper)
            subprocess.run([sleeper], check=True)
        finally:
            running.kill()


def test_make_and_gcc(mounted: Bench, place: Path) -> None:
    needs("gcc")
    needs("make")
    write_files(
        place,
        {
            "main.c": '#include "lib.h"\n#include <stdio.h>\nint main(void) { printf("%d\\n", answer()); return 0; }\n',
            "lib.c": "int answer(void) { return 42; }\n",
            "lib.h": "int answer(void);\n",
            "Makefile": "prog: main.o lib.o\n\t$(CC) -o $@ $^\nmain.o: lib.h\nclean:\n\trm -f prog *.o\n",
        },
    )
    mounted.run("make -j2 -s", cwd=place)
    assert mounted.run("./prog", cwd=place).stdout == "42\n"
    assert "up to date" in mounted.run("make", cwd=place).stdout
    (place / "lib.c").write_text("int answer(void) { return 43; }\n")
    made = mounted.run("make", cwd=place).stdout
    assert "lib.o" in made
    assert "-c -o main.o" not in made
    assert mounted.run("./prog", cwd=place).stdout == "43\n"
    mounted.run("make -s clean", cwd=place)


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_sqlite(mounted: Bench, place: Path, mode: str) -> None:
    path = place / "data.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode
        database.execute("create table t(who, n)")
        database.commit()
    script = (
        "import sqlite3, sys\n"
        "d = sqlite3.connect(sys.argv[1], timeout=60)\n"
        "for i in range(50):\n"
        "    with d: d.execute('insert into t values (?, ?)', (sys.argv[2], i))\n"
        "d.close()\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), who]) for who in "ab"]
    assert [writer.wait(600) for writer in writers] == [0, 0]
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("select count(*) from t").fetchone()[0] == 100
        assert database.execute("pragma integrity_check").fetchone()[0] == "ok"
    with contextlib.closing(sqlite3.connect(path)) as one, contextlib.closing(sqlite3.connect(path, timeout=0)) as two:
        one.execute("begin immediate")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            two.execute("begin immediate")


# Editors


class Terminal:
    """A program in a tmux session of its own."""

    def __init__(self, bench: Bench, name: str, cwd: Path, command: str) -> None:
        self._bench = bench
        self._socket = str(bench.base / f"tmux-{name}")
        self._name = name
        self._tmux("-f", "/dev/null", "new-session", "-d", "-s", name, "-x", "80", "-y", "24", "-c", str(cwd), command)

    def _tmux(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = {"TERM": "xterm", "SHELL": "/bin/sh"}
        return self._bench.run(["tmux", "-S", self._socket, *words], check=check, env=env, cwd=self._bench.base)

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-t", self._name, check=False).stdout

    def shows(self, text: str) -> None:
        until(lambda: text in self.screen(), f"{text!r} on the screen")

    def type(self, *keys: str) -> None:
        self._tmux("send-keys", "-t", self._name, *keys)

    def ended(self) -> None:
        until(
            lambda: self._tmux("has-session", "-t", self._name, check=False).returncode != 0, "the end of the program"
        )

    def close(self) -> None:
        self._tmux("kill-server", check=False)


@pytest.mark.parametrize("backupcopy", ["no", "yes", "auto"])
def test_vim(mounted: Bench, place: Path, backupcopy: str) -> None:
    needs("tmux")
    needs("vim")
    path = place / "file.txt"
    path.write_text("first line\n")
    path.chmod(0o640)
    terminal = Terminal(
        mounted, "vim", place, f"vim -u NONE -n --cmd 'set backup writebackup backupcopy={backupcopy}' file.txt"
    )
    try:
        terminal.shows("first line")
        terminal.type("ggOhello from vim", "Escape", ":w", "Enter")
        until(lambda: path.read_text() == "hello from vim\nfirst line\n", "the first save")
        terminal.type("Go", "last", "Escape", ":wq", "Enter")
        terminal.ended()
    finally:
        terminal.close()
    assert path.read_text() == "hello from vim\nfirst line\nlast\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("path", ["lib/thing/README", "over/one.txt"])
def test_vim_with_swap_file_edits_a_source_file(mounted: Bench, path: str) -> None:
    needs("tmux")
    needs("vim")
    file = mounted.live / path
    swap = file.with_name(f".{file.name}.swp")
    terminal = Terminal(mounted, "swap", file.parent, f"vim -u NONE --cmd 'set nocp ruler' {file.name}")
    try:
        terminal.shows("1,1")
        until(swap.exists, "the swap file")
        terminal.type("ggO", "vim was here", "Escape", ":wq", "Enter")
        terminal.ended()
    finally:
        terminal.close()
    assert file.read_text().startswith("vim was here\n")
    assert not swap.exists()
    if path == "lib/thing/README":
        assert mounted.git("status", "--porcelain", "README", cwd=file.parent) == " M README\n"
    assert (mounted.base / "data/one.txt").read_text() == "one\n"


def test_nano(mounted: Bench, place: Path) -> None:
    needs("tmux")
    needs("nano")
    path = place / "file.txt"
    path.write_text("first line\n")
    terminal = Terminal(mounted, "nano", place, "nano -I -B file.txt")
    try:
        terminal.shows("first line")
        terminal.type("nano ", "C-o", "Enter")
        until(lambda: path.read_text().startswith("nano first"), "the save")
        terminal.type("C-x")
        terminal.ended()
    finally:
        terminal.close()
    assert (place / "file.txt~").read_text() == "first line\n"


def test_atomic_save_keeps_watchers_and_readers_right(mounted: Bench, place: Path) -> None:
    """As VS Code and many more save: a temporary file, fsync, rename over the old one; many times."""
    path = place / "settings.json"
    for i in range(50):
        temporary = place / f".settings.json.{i}"
        with temporary.open("w") as file:
            file.write(f'{{"n": {i}}}')
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        assert path.read_text() == f'{{"n": {i}}}'
        assert os.listdir(place) == ["settings.json"]


# Programs that install


def test_git_init_and_commits_inside(mounted: Bench, place: Path) -> None:
    mounted.run("git init -q -b main . && echo a > a && git add a && git commit -qm one", cwd=place)
    for i in range(5):
        mounted.run(f"echo {i} > f{i} && git add -A && git commit -qm {i}", cwd=place)
    mounted.run(
        "git switch -qc topic HEAD~2 && echo t > t && git add t && git commit -qm t && git rebase -q main", cwd=place
    )
    mounted.run("echo dirty >> a && git stash -q && git stash pop -q && git checkout -q a", cwd=place)
    mounted.run("git repack -adq && git gc -q --prune=now && git fsck --strict", cwd=place)
    assert mounted.git("status", "--porcelain", cwd=place) == ""
    assert len(mounted.git("log", "--oneline", cwd=place).splitlines()) == 7
    mounted.run(
        "git clone -q . sub && cd sub && git log -1 && cd .. && rm -rf sub .git && git -C . status",
        cwd=place,
        check=False,
    )
    assert not (place / ".git").exists()


def test_venv(mounted: Bench, place: Path) -> None:
    mounted.run([sys.executable, "-m", "venv", "--without-pip", "env"], cwd=place)
    shown = mounted.run("env/bin/python -c 'import sys; print(sys.prefix)'", cwd=place).stdout
    assert shown.strip() == str(place / "env")


@pytest.mark.network
@pytest.mark.parametrize("where", ["over", "lib/thing"])
def test_pip_install(mounted: Bench, where: str) -> None:
    cwd = mounted.live / where
    env = {name: os.environ[name] for name in ("PIP_CONFIG_FILE", "PIP_INDEX_URL", "HOME") if name in os.environ}
    mounted.run([sys.executable, "-m", "venv", "env"], cwd=cwd, timeout=300)
    mounted.run(
        "env/bin/python -m pip install -q --disable-pip-version-check six==1.16.0", cwd=cwd, env=env, timeout=300
    )
    assert mounted.run("env/bin/python -c 'import six; print(six.__version__)'", cwd=cwd).stdout == "1.16.0\n"
    mounted.run("env/bin/python -m pip uninstall -qy six", cwd=cwd, timeout=300)
    mounted.run("rm -rf env", cwd=cwd)


@pytest.mark.network
def test_npm_install(mounted: Bench) -> None:
    needs("npm")
    cwd = mounted.live / "over" / "js"
    cwd.mkdir()
    (cwd / "package.json").write_text('{"name": "x", "version": "1.0.0"}')
    env = {"HOME": os.environ.get("HOME", "/")}
    mounted.run("npm install --no-audit --no-fund --loglevel=error left-pad@1.3.0", cwd=cwd, env=env, timeout=300)
    shown = mounted.run("node -e 'console.log(require(\"left-pad\")(1, 3, 0))'", cwd=cwd).stdout
    assert shown == "001\n"


def test_find_and_du_agree_with_the_source(mounted: Bench) -> None:
    for name, outside in (("over", "data"), ("lib/thing", "thing")):
        inside = mounted.run(f"cd {name} && find tests -printf '%y %m %s %p\\n' | grep -v ^d | sort").stdout
        assert inside
        real = mounted.run("find tests -printf '%y %m %s %p\\n' | grep -v ^d | sort", cwd=mounted.base / outside).stdout
        assert inside == real
        sizes = mounted.run(f"du -sb --apparent-size {name}/tests/test_user_xattrs/one").stdout.split()[0]
        assert sizes == "4"


def test_many_processes_at_once(mounted: Bench, place: Path) -> None:
    script = "for i in $(seq 60); do echo $i > f$1-$i; mv f$1-$i g$1-$i; cat g$1-$i > /dev/null; rm g$1-$i; done"
    workers = [subprocess.Popen(["bash", "-c", script, "x", str(i)], cwd=place) for i in range(4)]
    assert [worker.wait(600) for worker in workers] == [0] * 4
    assert os.listdir(place) == []
