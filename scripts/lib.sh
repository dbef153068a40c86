# Shared by the scripts of this folder: `prepare EXTRAS` makes the virtual environment and installs cellmd into it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${CELLMD_VENV:-$root/.venv}

prepare() {
    local python=${PYTHON:-python3} stamp
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "cellmd needs Python 3.11 or newer; set PYTHON to one" >&2
        exit 1
    }
    command -v c++ >/dev/null || {
        echo "cellmd needs a C++20 compiler (Debian: apt-get install g++)" >&2
        exit 1
    }
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    # Build when something that is built or declared has changed, install when the wheel or what is asked for has.
    stamp=$(cd "$root" && cat pyproject.toml CMakeLists.txt $(find native src -type f ! -name '*.pyc' | sort) |
        sha256sum | cut -c1-16)
    if [ ! -e "$venv/wheel-$stamp" ]; then
        echo "building cellmd" >&2
        rm -rf "$venv"/wheel-*
        "$venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$venv/wheel-new" "$root"
        mv "$venv/wheel-new" "$venv/wheel-$stamp"
        "$venv/bin/python" -m pip install --quiet --force-reinstall --no-deps "$venv/wheel-$stamp"/*.whl
        rm -f "$venv"/installed-*
    fi
    if [ ! -e "$venv/installed-$1" ]; then
        echo "installing cellmd${1:+ with $1} into $venv" >&2
        "$venv/bin/python" -m pip install --quiet "$(echo "$venv/wheel-$stamp"/*.whl)${1:+[$1]}"
        touch "$venv/installed-$1"
    fi
}
