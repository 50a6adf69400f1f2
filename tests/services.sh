#!/bin/sh
# Fetch what the tests' real parts need, as root on Debian. What can't be had is named; its tests are then skipped and
# counted in the last line of the test run.
set -u
want=
command -v promtool >/dev/null 2>&1 || want="$want prometheus"
command -v aarch64-linux-gnu-gcc >/dev/null 2>&1 || want="$want gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
command -v g++ >/dev/null 2>&1 || want="$want g++"
command -v systemd-analyze >/dev/null 2>&1 || want="$want systemd"
command -v chromium >/dev/null 2>&1 || want="$want chromium"
command -v redis-server >/dev/null 2>&1 || want="$want redis-server"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 || want="$want postgresql"
# Debian 13 has TimescaleDB, Debian 12 does not.
if ! ls /usr/lib/postgresql/*/lib/timescaledb.so >/dev/null 2>&1 && command -v apt-cache >/dev/null 2>&1; then
    want="$want $(apt-cache pkgnames postgresql- 2>/dev/null | grep -x 'postgresql-[0-9]*-timescaledb' | sort -V | tail -n 1)"
fi
want=${want% }
[ -n "$want" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "services: not installed here, their tests are skipped:$want"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -qq || true
for package in $want; do
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 || echo "services: could not install $package, its tests are skipped"
done
exit 0
