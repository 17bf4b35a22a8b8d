"""Who may do what: owners and modes are enforced, and a user without rights can mount for himself."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Bench, bench_in, fill_sample, until

pytestmark = [pytest.mark.mount, pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")]

NOBODY = 65534
ROOT = Path(__file__).parents[2]


def as_nobody(bench: Bench, command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "bash", "-c", command]
    return bench.run(words, check=False, cwd=cwd or Path("/"))


def opened_up(path: Path) -> None:
    """Let everybody come through to *path*."""
    for each in [path, *path.parents]:
        if stat.S_IMODE(each.stat().st_mode) & 0o011 != 0o011:
            each.chmod(stat.S_IMODE(each.stat().st_mode) | 0o055)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A workspace in a directory of its own: nobody but its owner gets into those that pytest makes."""
    base = Path(tempfile.mkdtemp(prefix="clivefs-test-"))
    try:
        with bench_in(base) as made:
            yield made
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def public(bench: Bench) -> Bench:
    fill_sample(bench)
    (bench.root / "private").write_text("secret\n")
    (bench.root / "private").chmod(0o600)
    (bench.root / "drop").mkdir()
    (bench.root / "drop").chmod(0o1777)
    opened_up(bench.base)
    return bench


def test_mounted_for_its_owner_alone(public: Bench) -> None:
    public.mount()
    done = as_nobody(public, f"ls {public.live}")
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


def test_permissions_are_enforced_for_others(public: Bench) -> None:
    public.mount("--allow-other")
    live = public.live
    assert (
        as_nobody(public, f"cat {live}/plain.txt {live}/over/one.txt {live}/lib/thing/README").stdout
        == "plain\none\nhello\n"
    )
    for refused in (
        f"cat {live}/private",
        f"echo x > {live}/plain.txt",
        f"echo x > {live}/new",
        f"rm -f {live}/plain.txt",
        f"chmod 777 {live}/over/one.txt",
        f"chown nobody {live}/over/one.txt",
        f"mv {live}/lib/thing/README {live}/lib/thing/R",
        f"touch -d 2001-01-01 {live}/plain.txt",
        f"ln {live}/private {live}/drop/x",
        f"setfattr -n user.x -v y {live}/plain.txt || false",
        f"mkdir {live}/lib/thing/d",
        f"truncate -s 0 {live}/over/one.txt",
    ):
        done = as_nobody(public, refused)
        assert done.returncode != 0, refused
    assert (
        as_nobody(public, f"echo mine > {live}/drop/mine && mkdir {live}/drop/d && cat {live}/drop/mine").stdout
        == "mine\n"
    )
    made = (public.root / "drop/mine").stat()
    assert (made.st_uid, made.st_gid) == (NOBODY, NOBODY)
    assert (live / "drop/d").stat().st_uid == NOBODY
    (live / "drop/roots").write_text("x")
    assert as_nobody(public, f"rm -f {live}/drop/roots").returncode != 0  # sticky
    assert (live / "drop/roots").exists()
    (live / "over/shared").mkdir()
    (live / "over/shared").chmod(0o777)
    assert as_nobody(public, f"echo x > {live}/over/shared/f").returncode == 0
    assert (live / "over/shared/f").stat().st_uid == NOBODY


def test_set_user_id_bits_do_nothing(public: Bench) -> None:
    public.mount("--allow-other")
    shutil.copy2(shutil.which("id") or "/usr/bin/id", public.live / "id")
    (public.live / "id").chmod(0o4755)
    assert as_nobody(public, f"{public.live}/id -u").stdout == f"{NOBODY}\n"


def test_writing_takes_set_user_id_bits_away(public: Bench) -> None:
    public.mount("--allow-other")
    for where in ("drop", "over", "lib/thing"):
        path = public.live / where / "tool"
        path.write_text("x")
        path.chmod(0o6777)
        as_nobody(public, f"echo y >> {path}")
        assert stat.S_IMODE(path.stat().st_mode) == 0o777, where


PRIVATE_MOUNT = """
set -e
mount --make-rprivate /
mkdir -p {base}/dev
mount -t tmpfs -o mode=755 tmpfs {base}/dev
for each in null zero full random urandom tty; do
    mknod -m 666 {base}/dev/$each c $(stat -c '0x%t 0x%T' /dev/$each)
done
ln -s /proc/self/fd {base}/dev/fd
mkdir {base}/dev/shm {base}/dev/pts; chmod 1777 {base}/dev/shm
mknod -m 666 {base}/dev/fuse c 10 229
mount --bind {base}/dev /dev
{reach}
{etc}
exec setpriv --reuid={uid} --regid={uid} --clear-groups bash -e {base}/user.sh
"""

AS_USER = """
cd {base}/ours
{python} -m clivefs.cli mount . --at {base}/point --store {base}/own-store --allow
cd {base}/point/ours
grep -o 'fuse.clivefs [^ ]*' /proc/mounts
stat -c '%u' . f over/g
echo edit > over/g; echo through > f; cat over/g f
mkdir over/d; chmod 700 over/d
git -C lib status --porcelain; echo x >> lib/README; git -C lib commit -qam x; git -C lib log --format=%s
chown 0 f 2> /dev/null && echo 'gave it away'
cd /
{python} -m clivefs.cli status --json --at {base}/point --store {base}/own-store
{python} -m clivefs.cli unmount {base}/point --store {base}/own-store
grep -c {base}/point /proc/mounts || true
"""


CLOSED_DIRECTORIES = """
cd {base}
for each in under plain ours/through; do
    mkdir -p $each/ro/sub $each/unread $each/into
    echo f > $each/ro/f; echo g > $each/ro/sub/g; echo u > $each/unread/f
    chmod 555 $each/ro $each/ro/sub
done
export CLIVEFS_TRANSPORT={transport}
{python} -m clivefs.cli mount ours --at {base}/point --store {base}/own-store --allow
cat > tried.sh <<'END'
try() {{ out=$(eval "$1" 2>&1); echo "$1: $? $(echo "$out" | sed 's/.*: //' | tr '\\n' ' ')"; }}
try 'ln unread/f hard; chmod 400 unread; touch q; ls; cat hard; echo more >> hard; ln hard harder; stat -c %h harder'
try 'ls unread; cat unread/f'
try 'mv unread away; ls; cat hard; chmod 700 away; ls away'
for mode in 0 0111 0300 0500; do
    try "mkdir -m $mode empty; rmdir empty; ls -d empty"
    try "mkdir full; touch full/f; chmod $mode full; rmdir full; mv -T into full; chmod 700 full; rm -r full; ls"
    try "mkdir -m $mode target; mkdir source; mv -T source target; stat -c %a target; rmdir target; ls"
done
try 'mkdir late; touch late/f; chmod 300 late; touch late/g; sync -f late/g; chmod 700 late; ls late; rm -r late; ls'
try 'mkdir -m 300 wx; echo q > wx/q; mv wx wx2; cat wx2/q; rm wx2/q; rmdir wx2; ls'
try 'rmdir ro; mv ro into; mv ro ro2; chmod 755 ro2/sub; mv ro2/sub into; ls -R into; rm -rf ro2; ls -R'
END
for each in {base}/plain {base}/point/ours/through {base}/point/ours/over; do
    cd $each
    echo "in $each"
    bash {base}/tried.sh
done
cd {base}/point/ours/over
for mode in 0 0400 0500; do mkdir closed$mode; touch closed$mode/f; mkdir closed$mode/d; chmod $mode closed$mode; done
clivefs() {{ {python} -m clivefs.cli "$@" --store {base}/own-store; }}
clivefs overlay diff . 2>&1 || true
clivefs overlay reset .
ls -A . ro
ls -A {base}/own-store/uppers/*/*/work
cd /
clivefs fsck
clivefs unmount {base}/point
"""


@pytest.mark.parametrize("transport", ["native", "pyfuse3"])
def test_directories_that_are_closed_to_their_owner(bench: Bench, transport: str) -> None:
    """Everything as in a plain directory, for a daemon that is not root either; and edits can be forgotten."""
    base = bench.base
    for name in ("ours", "under", "plain", "nobody"):
        (base / name).mkdir()
        os.chown(base / name, NOBODY, NOBODY)
    (base / "ours/Clive.toml").write_text('[mounts.over]\nlocal = "../under"\nwrite = "overlay"\n')
    opened_up(base)
    os.chmod(base, 0o777)
    script = CLOSED_DIRECTORIES.format(base=base, python=sys.executable, transport=transport)
    (base / "user.sh").write_text("set +e\n" + script)
    private = PRIVATE_MOUNT.format(base=base, uid=NOBODY, reach=reach(base), etc="")
    env = {"HOME": str(base / "nobody"), "PYTHONPATH": str(ROOT), "CLIVEFS_STORE": ""}
    done = bench.run(["unshare", "-m", "--fork", "bash", "-c", private], check=False, cwd=base, env=env)
    assert done.returncode == 0, (done.stdout, done.stderr)
    _, plain, through, over = re.split(r"^in .*\n", done.stdout, flags=re.MULTILINE)
    over, _, after = over.partition("clivefs: ")
    assert "ro2; ls -R: 0" in plain
    assert through.splitlines() == plain.splitlines()
    assert over.splitlines() == plain.splitlines()
    assert "does not let you read it" in after
    assert re.search(r"^closed0/f: |^closed0400/f: ", after, flags=re.MULTILINE)
    shown = after[after.rindex("undid ") :].split("\n", 1)[1]
    assert shown.startswith(".:\ninto\nro\nunread\n\nro:\nf\nsub\n"), shown
    assert "no problems" in shown
    until(lambda: not bench.is_mounted(), "no mount left")


def reach(base: Path) -> str:
    """Commands that let the user run this Python and this clone where they lie in somebody's private home."""
    commands: list[str] = []
    homes: list[Path] = []
    for where in sorted({Path(sys.base_prefix), Path(sys.prefix), ROOT}):
        private = [each for each in where.parents if not each.stat().st_mode & stat.S_IXOTH]
        if not private:
            continue
        home = private[-1]
        if home not in homes:
            homes.append(home)
            real = f"{base}/home{homes.index(home)}"
            commands += [f"mkdir {real}", f"mount --bind {home} {real}", f"mount -t tmpfs -o mode=755 tmpfs {home}"]
        real = f"{base}/home{homes.index(home)}"
        commands += [f"mkdir -p {where}", f"mount --bind {real}/{where.relative_to(home)} {where}"]
    return "; ".join(commands)


WITHOUT_MTAB = "cp -a /etc {base}/etc; rm -f {base}/etc/mtab; mount --bind {base}/etc /etc"


@pytest.mark.parametrize("etc", ["", WITHOUT_MTAB], ids=["with mtab", "without mtab"])
def test_an_unprivileged_user_mounts_for_himself(bench: Bench, etc: str) -> None:
    """Also on a machine so bare that fusermount3 cannot unmount: it wants an /etc/mtab."""
    fusermount = shutil.which("fusermount3")
    if fusermount is None or not os.stat(fusermount).st_mode & stat.S_ISUID:
        pytest.skip("fusermount3 is not there with the set-user-id bit")
    base = bench.base
    thing = bench.repository("thing", {"README": "hello\n"})
    ours = base / "ours"
    for path in (ours, base / "under", base / "nobody"):
        path.mkdir()
    (ours / "f").write_text("f\n")
    (base / "under/g").write_text("g\n")
    (ours / "Clive.toml").write_text(
        '[mounts.over]\nlocal = "../under"\nwrite = "overlay"\n[mounts.lib]\ngit = "../thing"\n'
    )
    opened_up(base)
    for path in (
        base / "point",
        *[each for root in (ours, base / "under", thing, base / "nobody") for each in (root, *root.rglob("*"))],
    ):
        if path.exists():
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.chmod(base, 0o777)
    python = sys.executable
    (base / "user.sh").write_text(AS_USER.format(base=base, python=python))
    script = PRIVATE_MOUNT.format(base=base, uid=NOBODY, reach=reach(base), etc=etc.format(base=base))
    env = {"HOME": str(base / "nobody"), "PYTHONPATH": str(ROOT), "CLIVEFS_STORE": ""}
    done = bench.run(["unshare", "-m", "--fork", "bash", "-c", script], check=False, cwd=base, env=env)
    assert done.returncode == 0, (done.stdout, done.stderr)
    lines = done.stdout
    assert "rw,nosuid,nodev" in lines
    assert f"\n{NOBODY}\n{NOBODY}\n{NOBODY}\n" in lines
    assert "edit\nthrough\n" in lines
    assert "\nx\nfirst\n" in lines
    assert "gave it away" not in lines
    assert (base / "under/g").read_text() == "g\n"
    assert lines.rstrip().endswith("0")
    status = json.loads(lines[lines.index("{\n") : lines.rindex("}") + 1])
    assert [each["state"] for each in status["workspaces"][0]["mounts"]] == ["mounted", "mounted"]
    until(lambda: not bench.is_mounted(), "no mount left")
