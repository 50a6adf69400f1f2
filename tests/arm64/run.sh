#!/bin/sh
# Builds the native core on ARM64 and runs the unit tests there, in a Debian chroot under qemu-user emulation.
#
#   sudo tests/arm64/run.sh [--work DIR] [--suite NAME] [--all] [PYTEST ARGUMENTS...]
#
# Without arguments it builds and tests shm. With --all it installs every dependency, builds every native module and runs
# the tests named in the arguments, tests/unit by default; emulated, that takes 15 to 20 minutes. The native core is compiled
# outside where aarch64-linux-gnu-gcc and .venv are there (make build), under emulation elsewhere. Captured samples
# are used where they are found ($TICKENGINE_SAMPLES or ../shared/samples). Tests marked bare_kernel are skipped: qemu-user
# does not pass on what they need of the kernel.
#
# What it proves: the AArch64 build works, the vector copy and the layout are right, every promise of the unit tests
# holds. What it can not prove: memory ordering. qemu runs one guest instruction stream on an x86 host, which is stronger
# than AArch64; the fences are argued in shm/ring.h and need a model checker or a real machine.
#
# Needs root (chroot, mount), debootstrap and qemu-user-static. The mirror is the one that this machine's own apt uses.
# If the kernel does not know how to start ARM64 programs yet, the entry is registered and taken out again at the end.
# DIR (default: tickengine-arm64 in the temporary folder) is kept and used again: the first run takes 10 to 20 minutes,
# later ones a few. Remove it when done: rm -rf DIR.
set -eu

work="${TMPDIR:-/tmp}/tickengine-arm64"
all=
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
while [ $# -gt 0 ]; do
    case "$1" in
        --work) work=$2; shift 2 ;;
        --suite) suite=$2; shift 2 ;;
        --all) all=yes; shift ;;
        -h|--help) sed -n '2,21s/^# \{0,1\}//p' "$0"; exit 0 ;;
        --) shift; break ;;
        *) break ;;
    esac
done
fail() { echo "tests/arm64/run.sh: $*" >&2; exit 1; }
step() { echo "== $*"; }

project=$(cd "$(dirname "$0")/../.." && pwd)
root="$work/root"
if [ -n "$all" ]; then
    [ $# -gt 0 ] || set -- tests/unit
elif [ $# -eq 0 ]; then # by default: the tests of shm, which need nothing but shm's own dependencies
    cd "$project"
    for noun in layout header ring segment locks consumer import_time status instruments latest message; do
        for file in tests/unit/test_"$noun"*.py; do
            [ ! -e "$file" ] || set -- "$@" "$file"
        done
    done
fi
[ "$(id -u)" = 0 ] || fail "run as root: it makes a chroot and mounts into it"
for tool in debootstrap qemu-aarch64-static chroot; do
    command -v "$tool" > /dev/null || fail "$tool is not installed (apt install debootstrap qemu-user-static)"
done

# The first http mirror among apt's own sources, deb822 (URIs:) or one-line (deb URL ...), security mirrors left out.
mirror=$(cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list /etc/apt/sources.list 2> /dev/null |
    awk '$1 == "URIs:" { print $2 } $1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) { print $i; break } }' |
    grep '/debian/*$' | head -n 1) || true
[ -n "$mirror" ] || fail "no Debian mirror found in /etc/apt"

registered=
cleanup() {
    for folder in dev/shm proc samples; do
        ! mountpoint -q "$root/$folder" || umount "$root/$folder" || true
    done
    if [ -n "$registered" ]; then echo -1 > /proc/sys/fs/binfmt_misc/qemu-aarch64; fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
if [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
    step "registering qemu-aarch64-static for ARM64 programs until this script ends"
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M:0:$magic:$mask:$(command -v qemu-aarch64-static):F" \
        > /proc/sys/fs/binfmt_misc/register
    registered=yes
fi

if [ ! -e "$root/.ready" ]; then
    step "debootstrap $suite (arm64) from $mirror"
    mkdir -p "$root"
    debootstrap --arch=arm64 --variant=minbase \
        --include=python3,python3-dev,python3-venv,gcc,libc6-dev,ca-certificates "$suite" "$root" "$mirror"
    touch "$root/.ready"
fi

mkdir -p "$root/dev/shm" "$root/project" "$root/samples"
samples=${TICKENGINE_SAMPLES:-$project/../shared/samples}
[ -d "$samples" ] || samples=
if [ -n "$samples" ] && ! mountpoint -q "$root/samples"; then
    mount --bind "$samples" "$root/samples"
    mount -o remount,bind,ro "$root/samples"
fi
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
mountpoint -q "$root/dev/shm" || mount -t tmpfs -o size=2g tmpfs "$root/dev/shm"
cp /etc/resolv.conf "$root/etc/resolv.conf"
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"

step "copying the project"
(cd "$project" && git ls-files --cached --others --exclude-standard -z | tar -c --null --ignore-failed-read -T - ) |
    tar -x -C "$root/project"

# pip is told as little as possible: the index and certificates of the outer machine's environment stay in force.
inside() { chroot "$root" /usr/bin/env LANG=C.UTF-8 HOME=/root TICKENGINE_EMULATED=1 \
    ${samples:+TICKENGINE_SAMPLES=/samples} PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_DEFAULT_TIMEOUT=180 ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} \
    /bin/sh -euc "cd /project; $1"; }

if [ ! -e "$root/venv/.ready" ]; then
    step "installing numpy, posix_ipc and the test tools"
    inside "python3 -m venv /venv
        /venv/bin/pip install -q 'numpy>=1.26' 'posix_ipc>=1.1.1' 'setuptools>=77' 'cython>=3.1' pytest pytest-timeout hypothesis msgspec
        touch /venv/.ready"
fi

modules=$(cd "$project" && ls shm/_*.pyx workers/_cache.pyx) # the writer of the latest-value table lives with the cache
if [ -n "$all" ]; then
    step "installing every dependency"
    inside "TICKENGINE_EXT=none /venv/bin/pip install -q --no-build-isolation -e '.[test]'"
    modules=$(cd "$project" && git ls-files 'shm/_*.pyx' 'workers/**/_*.pyx' 'workers/_*.pyx')
fi
cross=aarch64-linux-gnu-gcc
if command -v "$cross" > /dev/null && [ -x "$project/.venv/bin/cython" ]; then # ten times as fast as under emulation
    step "building the native core with $cross"
    facts=$(inside "python3 -c 'import sysconfig as s; print(s.get_config_var(\"EXT_SUFFIX\"), s.get_path(\"include\"))'")
    (cd "$root/project" && for module in $modules; do echo "${module%.pyx}"; done | xargs -P "$(nproc)" -I{} sh -euc '
        "$1" -3 -X embedsignature=True -X binding=True -I . "{}.pyx" -o "{}.c"
        "$2" -shared -fPIC -O3 -std=c11 -Wno-unused-function -I . -idirafter "$3${4#* }" -idirafter "$3/usr/include" \
            "{}.c" -o "{}${4% *}"' build "$project/.venv/bin/cython" "$cross" "$root" "$facts")
else
    step "building the native core under emulation"
    inside "TICKENGINE_EXT=$(echo "$modules" | sed 's,/,.,g;s,\.pyx$,,' | paste -sd, -) \
        /venv/bin/python setup.py -q build_ext --inplace"
fi

step "testing: $*"
quoted=$(for argument in "$@"; do printf " '%s'" "$argument"; done)
inside "uname -m; /venv/bin/python -m pytest -p no:cacheprovider -m 'not slow' -o timeout=600 $quoted"
