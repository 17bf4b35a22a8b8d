# Sourced by scripts/clivefs and scripts/test (POSIX sh): makes this clone ready to run and remembers that it did.
#
# `setup` leaves $root/.venv with everything of requirements.lock and this clone installed in it. When nothing has
# changed since, it compares one file and returns: no network, no package manager. Runs in parallel wait for each other.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
venv=$root/.venv
apt_packages='fuse3 libfuse3-dev pkg-config gcc libc6-dev make python3-dev python3-venv git ca-certificates'

say() {
    printf 'clivefs: %s\n' "$*" >&2
}

die() {
    say "$@"
    exit 1
}

# What the installed environment was made from: another lock, project file, place or Python (as after an upgrade of
# the distribution) means doing it again.
wanted_stamp() {
    stamp_of_place
    cat "$root/requirements.lock" "$root/pyproject.toml"
}

stamp_of_place() {
    printf '%s\n' "$root"
    readlink -f "$venv/bin/python" || echo 'no Python'
}

is_set_up() {
    [ -x "$venv/bin/python" ] && [ -f "$venv/.clivefs-setup" ] && wanted_stamp | cmp -s - "$venv/.clivefs-setup"
}

# 3.11 or newer, with venv, pip for it, TLS and the headers that pyfuse3 is compiled against.
python_is_complete() {
    "$1" -I - 2>/dev/null <<'PYTHON'
import ctypes, ensurepip, os, ssl, sys, sysconfig, venv
headers = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 14) and os.path.exists(headers)))
PYTHON
}

# Prints the Python to use: the system's own if it will do, else the newest one found.
find_python() {
    for candidate in "${CLIVEFS_PYTHON:-}" /usr/bin/python3 \
        "$(command -v python3.14)" "$(command -v python3.13)" "$(command -v python3.12)" "$(command -v python3.11)" \
        "${HOME:-/}"/.pyenv/versions/3.14*/bin/python3 "${HOME:-/}"/.pyenv/versions/3.13*/bin/python3 \
        "${HOME:-/}"/.pyenv/versions/3.12*/bin/python3 "${HOME:-/}"/.pyenv/versions/3.11*/bin/python3 \
        "$(command -v python3)"; do
        if [ -x "$candidate" ] && python_is_complete "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

# Prints what the machine lacks, one thing a line, in words that hold for any distribution.
missing_from_system() {
    command -v fusermount3 >/dev/null || echo 'fusermount3 (Debian: fuse3)'
    command -v pkg-config >/dev/null || echo 'pkg-config'
    { command -v pkg-config >/dev/null && pkg-config --exists fuse3; } || echo 'the headers of libfuse 3 (Debian: libfuse3-dev)'
    { command -v gcc >/dev/null && echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1; } ||
        echo 'a C compiler (Debian: gcc libc6-dev)'
    command -v make >/dev/null || echo 'make'
    command -v git >/dev/null || echo 'git'
    find_python >/dev/null || echo 'Python 3.11 to 3.14 with venv and its headers (Debian: python3-venv python3-dev)'
}

install_system_packages() {
    missing=$(missing_from_system)
    [ -n "$missing" ] || return 0
    say 'this machine lacks:'
    printf '%s\n' "$missing" | sed 's/^/  - /' >&2
    command -v apt-get >/dev/null || die 'there is no apt-get here: install the above, then run this again'
    by_hand="run this as root, then try again: apt-get update && apt-get install $apt_packages"
    as_root=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "there is no sudo here: $by_hand"
        as_root=sudo
    fi
    say "installing: $apt_packages"
    # Package lists are old or absent on a fresh machine; asking for them again costs seconds, so only then.
    apt_install "$as_root" >/dev/null 2>&1 || {
        $as_root apt-get update -qq >&2 || die "apt-get update failed (above); $by_hand"
        apt_install "$as_root" >&2 || die "apt-get install failed (above); $by_hand"
    }
    missing=$(missing_from_system)
    [ -z "$missing" ] || die "still missing after apt-get install: $(printf '%s' "$missing" | tr '\n' ',' | sed 's/,/, /g')"
}

apt_install() {
    # shellcheck disable=SC2086 # both are lists of words
    $1 env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends ${2:-$apt_packages}
}

# The programs that the tests run in a mount, each with the Debian package that has it. Without one its tests are
# skipped, and with CI=true a skipped mount test is a failure.
install_test_programs() {
    wanted=
    for pair in make:make rsync:rsync tmux:tmux vim:vim nano:nano fio:fio strace:strace sqlite3:sqlite3 npm:npm \
        patch:patch setfattr:attr zsh:zsh fish:fish setpriv:util-linux inotifywait:inotify-tools entr:entr; do
        command -v "${pair%%:*}" >/dev/null || wanted="$wanted ${pair#*:}"
    done
    for pair in /usr/lib/python3/dist-packages/watchdog:python3-watchdog /usr/share/nodejs/chokidar:node-chokidar; do
        [ -e "${pair%%:*}" ] || wanted="$wanted ${pair#*:}"
    done
    [ -n "$wanted" ] || return 0
    as_root=
    [ "$(id -u)" = 0 ] || as_root=sudo
    if ! command -v apt-get >/dev/null || { [ -n "$as_root" ] && ! command -v sudo >/dev/null; }; then
        say "tests will be skipped for want of:$wanted"
        return 0
    fi
    say "installing for the tests:$wanted"
    apt_install "$as_root" "$wanted" >/dev/null 2>&1 || {
        $as_root apt-get update -qq >&2 || true
        apt_install "$as_root" "$wanted" >&2 || say "could not be installed:$wanted"
    }
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-deps "$@" >&2 ||
        die "pip could not install (above); run this again when that is mended, or remove $venv to start over"
}

# Everything has wheels but pyfuse3, which is compiled here with what the first step installed: no build step
# asks the network for anything that the lock does not hold.
install_python_packages() {
    python=$(find_python)
    if ! [ -x "$venv/bin/python" ] || ! [ -f "$venv/.clivefs-setup" ] ||
        [ "$(head -n 2 "$venv/.clivefs-setup")" != "$(stamp_of_place)" ]; then
        say "making $venv with $python"
        "$python" -m venv --clear "$venv" >&2 || die "cannot make $venv"
    fi
    : > "$venv/.clivefs-setup.new" || die "cannot write to $venv"
    # Until all is installed, what is there counts for nothing, even if the lock becomes what it was.
    rm -f "$venv/.clivefs-setup"
    say 'installing the Python packages of requirements.lock'
    split_lock '$1 !~ /^pyfuse3==/' > "$venv/wheels.txt"
    split_lock '$1 ~ /^pyfuse3==/' > "$venv/compiled.txt"
    pip_install --require-hashes --only-binary :all: -r "$venv/wheels.txt"
    pip_install --require-hashes --no-build-isolation -r "$venv/compiled.txt"
    pip_install --no-build-isolation --editable "$root"
    # Where Python is told to keep no bytecode, each call would compile clivefs anew: 0.5 s for a mount.
    "$venv/bin/python" -m compileall -q "$root/clivefs" >&2 || say "could not compile $root/clivefs: calls take longer"
    "$venv/bin/python" -I -c 'import asyncssh, clivefs, lmdb, msgspec, pyfuse3, pygit2, trio' ||
        die "the packages in $venv do not load (above); remove $venv and run this again"
    # The stamp comes last and at once: an interrupted set-up is done again from the start.
    wanted_stamp > "$venv/.clivefs-setup.new"
    mv "$venv/.clivefs-setup.new" "$venv/.clivefs-setup"
}

split_lock() {
    awk "/^[^ #]/ { keep = ($1) } keep && !/^#/" "$root/requirements.lock"
}

setup() {
    is_set_up && return
    install_system_packages
    command -v flock >/dev/null || die 'flock is missing (Debian: util-linux)'
    # A directory can be locked as well as a file, and leaves nothing behind.
    exec 9< "$root/scripts"
    flock 9
    is_set_up || install_python_packages
    exec 9<&-
}
