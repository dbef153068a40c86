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
    # Install again only when something that is built or declared has changed.
    stamp=$(cd "$root" && cat pyproject.toml CMakeLists.txt $(find native src -type f \( -name '*.py' -o -name '*.cpp' \
        -o -name '*.h' -o -name '*.inl' -o -name 'CMakeLists.txt' \) | sort) | sha256sum | cut -d' ' -f1)-$1
    if [ "$(cat "$venv/.cellmd-$1" 2>/dev/null)" != "$stamp" ]; then
        echo "installing cellmd${1:+ with $1} into $venv" >&2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$root${1:+[$1]}"
        echo "$stamp" > "$venv/.cellmd-$1"
    fi
}
