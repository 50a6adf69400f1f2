#!/bin/sh
# Make a virtual environment: setup.sh PYTHON FOLDER. Called by the Makefile.
# On a bare Debian the pieces python3 leaves out (venv, headers, a compiler) are fetched with apt-get when we are root.
set -eu
python=$1
folder=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup: $python is missing or older than 3.11 (choose another with: make PYTHON=/path/to/python)" >&2
    exit 1
fi

missing=
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
[ -e "$header" ] || missing="$missing python3-dev"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "setup: installing$missing"
        apt-get update -qq
        # shellcheck disable=SC2086  # a list of names
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
    else
        echo "setup: please install$missing, then run this again" >&2
        exit 1
    fi
fi
"$python" -m venv "$folder"
