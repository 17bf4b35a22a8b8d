"""What the processes of a soak do: `python -m bench.soakers KIND DIRECTORY SECONDS SEED [OUTSIDE]`.

Each works until its time is up and checks what it sees; the first thing that is wrong ends it with an exit code other
than 0 and a line that says what it was.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

_NAMES = 60
_COUNTER = struct.Struct("<Q")
_SEEN_S = 5.0


class Wrong(Exception):
    """Something was not as it has to be."""


def check(condition: bool, what: object) -> None:
    if not condition:
        raise Wrong(str(what))


class Soaker:
    """One process: its directory, its randomness, its time."""

    def __init__(self, place: Path, seconds: float, seed: int, outside: Path | None) -> None:
        self.place = place
        self.outside = outside
        self.random = random.Random(seed)
        self.seed = seed
        self._end = time.monotonic() + seconds

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self._end

    # Names and contents, against a model

    def names(self) -> None:
        """Random changes of names in a directory of our own: what is there is what the model says."""
        top = self.place / f"names{self.seed}"
        top.mkdir()
        model: dict[str, bytes | None] = {}
        rounds = 0
        while self.goes_on:
            self._change(top, model)
            rounds += 1
            if rounds % 25 == 0:
                self._compare(top, model)
        shutil.rmtree(top)

    def _change(self, top: Path, model: dict[str, bytes | None]) -> None:
        name, other = (f"n{self.random.randrange(_NAMES)}" for _ in range(2))
        here, there = top / name, top / other
        files = model.get(name, False), model.get(other, False)
        action = self.random.randrange(8)
        if action == 0 and files[0] is False:
            here.mkdir()
            model[name] = None
        elif action <= 2 and files[0] is not None:
            content = self.random.randbytes(self.random.choice((0, 10, 5000, 70_000)))
            here.write_bytes(content)
            model[name] = content
        elif action == 3 and isinstance(files[0], bytes):
            here.unlink()
            del model[name]
        elif action == 3 and files[0] is None:
            here.rmdir()
            del model[name]
        elif action == 4 and isinstance(files[0], bytes) and files[1] is not None:
            here.rename(there)
            model[other] = model.pop(name)
        elif action == 5 and isinstance(files[0], bytes) and files[1] is False:
            os.link(here, there)
            model[other] = files[0]
            there.unlink()
            del model[other]
        elif action == 6 and isinstance(files[0], bytes):
            cut = self.random.randrange(len(files[0]) + 1)
            os.truncate(here, cut)
            model[name] = files[0][:cut]
        elif action == 7 and isinstance(files[0], bytes):
            with open(here, "ab") as file:
                file.write(b"more")
            model[name] = files[0] + b"more"

    @staticmethod
    def _compare(top: Path, model: dict[str, bytes | None]) -> None:
        check(sorted(os.listdir(top)) == sorted(model), f"{top}: another listing than the model's")
        for name, content in model.items():
            if content is not None:
                check((top / name).read_bytes() == content, f"{top / name}: another content")
                check((top / name).stat().st_size == len(content), f"{top / name}: another size")

    # Listings

    def churn(self) -> None:
        """Make and remove names in a shared directory, beside those that stay."""
        while self.goes_on:
            path = self.place / f"c{self.seed}-{self.random.randrange(3000)}"
            if path.exists():
                path.unlink()
            else:
                path.touch()

    def listings(self) -> None:
        """What stays in a directory is in each listing, once."""
        wanted = {f"stays{number}" for number in range(2000)}
        while self.goes_on:
            found: list[str] = []
            with os.scandir(self.place) as listing:
                for entry in listing:
                    found.append(entry.name)
                    if len(found) % 700 == 0:
                        time.sleep(0.01)
            stays = [name for name in found if name.startswith("stays")]
            check(len(stays) == len(set(stays)), f"{self.place}: a name was listed twice")
            missing = wanted.difference(stays)
            check(not missing, f"{self.place}: not listed: {sorted(missing)[:5]}")

    # Memory and locks

    def maps(self) -> None:
        """Change a file through a shared mapping; read(2) sees it, and the file outside after msync."""
        path = self.place / f"map{self.seed}"
        size = 1 << 20
        while self.goes_on:
            path.write_bytes(bytes(size))
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
                model = bytearray(size)
                for _ in range(40):
                    data = self.random.randbytes(self.random.randrange(1, 9000))
                    at = self.random.randrange(size - len(data))
                    mapped[at : at + len(data)] = data
                    model[at : at + len(data)] = data
                    check(os.pread(file.fileno(), len(data), at) == data, f"{path}: read(2) is behind the mapping")
                mapped.flush()
            check(path.read_bytes() == model, f"{path}: another content than the mapping's")
            if self.outside is not None:
                check((self.outside / path.name).read_bytes() == model, f"{path}: another content outside")
        path.unlink()

    def records(self) -> None:
        """Count under a POSIX lock."""
        self._count(fcntl.lockf)

    def flocks(self) -> None:
        """Count under a lock of the open file."""
        self._count(fcntl.flock)

    def _count(self, lock: Callable[[int, int], object]) -> None:
        """Count in a file that others count in too; how often we did is printed."""
        mine = 0
        fd = os.open(self.place / "counter", os.O_RDWR | os.O_CREAT, 0o644)
        while self.goes_on:
            lock(fd, fcntl.LOCK_EX)
            (count,) = _COUNTER.unpack(os.pread(fd, _COUNTER.size, 0).ljust(_COUNTER.size, b"\0"))
            os.pwrite(fd, _COUNTER.pack(count + 1), 0)
            lock(fd, fcntl.LOCK_UN)
            mine += 1
            time.sleep(0.001)
        os.close(fd)
        print(mine)

    # Programs

    def git(self) -> None:
        """Clone, commit, collect, check, remove."""
        top = self.place / f"clone{self.seed}"
        assert self.outside is not None

        def git(*args: object) -> None:
            command = ["git", "-c", "user.name=soak", "-c", "user.email=soak@example.org", *map(str, args)]
            done = subprocess.run(command, cwd=self.place, capture_output=True, text=True, check=False)
            check(done.returncode == 0, f"{' '.join(command)}: {done.stderr[-500:]}")
            check("-C" not in args or "status" not in args or not done.stdout, f"git status: {done.stdout[:500]}")

        while self.goes_on:
            git("clone", "-q", self.outside, top)
            for number in range(3):
                (top / f"new{number}").write_bytes(self.random.randbytes(3000))
                git("-C", top, "add", "-A")
                git("-C", top, "commit", "-q", "-m", f"number {number}")
            git("-C", top, "status", "--short")
            git("-C", top, "gc", "-q", "--prune=now")
            git("-C", top, "fsck", "--no-progress")
            git("-C", top, "status", "--short")
            shutil.rmtree(top)

    def compile(self) -> None:
        """Copy a part of the standard library, compile it, and count."""
        source = Path(sysconfig.get_paths()["stdlib"])
        top = self.place / f"library{self.seed}"
        while self.goes_on:
            for package in ("json", "email", "asyncio", "unittest"):
                shutil.copytree(source / package, top / package, ignore=shutil.ignore_patterns("__pycache__"))
            done = subprocess.run([sys.executable, "-m", "compileall", "-q", top], capture_output=True, check=False)
            check(done.returncode == 0, f"compileall: {done.stdout[-500:]!r}")
            modules, compiled = len(list(top.rglob("*.py"))), len(list(top.rglob("*.pyc")))
            check(modules == compiled, f"{modules} modules, {compiled} compiled")
            shutil.rmtree(top)

    def outsider(self) -> None:
        """Save a counter outside, in place or as editors do; what the mount shows never goes back and follows."""
        assert self.outside is not None
        count = 0
        while self.goes_on:
            count += 1
            target = self.outside / f"edited{self.seed}"
            text = f"{count:>{1 + self.random.randrange(3000)}}"
            if self.random.random() < 0.5:
                (self.outside / f".new{self.seed}").write_text(text)
                os.replace(self.outside / f".new{self.seed}", target)
            else:
                with open(target, "w") as file:
                    file.write(text)
            deadline = time.monotonic() + _SEEN_S
            while (
                shown := (self.place / target.name).read_text() if (self.place / target.name).exists() else ""
            ) != text:
                check(time.monotonic() < deadline, f"{self.place / target.name}: shows {shown.strip()!r}, not {count}")
                time.sleep(0.002)
            if self.random.random() < 0.1:
                target.unlink()
                deadline = time.monotonic() + _SEEN_S
                while (self.place / target.name).exists():
                    check(time.monotonic() < deadline, f"{self.place / target.name}: still shown")
                    time.sleep(0.002)


def main() -> None:
    kind, place, seconds, seed, *outside = sys.argv[1:]
    soaker = Soaker(Path(place), float(seconds), int(seed), Path(outside[0]) if outside else None)
    work: Callable[[], None] = getattr(soaker, kind)
    try:
        work()
    except Wrong as error:
        raise SystemExit(f"{kind} {seed}: {error}") from None


if __name__ == "__main__":
    main()
