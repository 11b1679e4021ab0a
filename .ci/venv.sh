# Virtual environments for the scripts of this repository: POSIX sh, to be sourced.

# make_venv DIRECTORY PYTHON: have a virtual environment of PYTHON there. One of the same Python is kept.
make_venv() {
    if ! "$2" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "$2 is not Python 3.10 or newer, which this needs. If you have one, say so:" >&2
        echo "    PYTHON=python3.12 sh $0" >&2
        return 1
    fi
    _venv_version=$("$2" -c 'import sys; print(sys.version)')
    if [ "$("$1/bin/python" -c 'import sys; print(sys.version)' 2>/dev/null)" = "$_venv_version" ] &&
        pip_in "$1" "$2" --version >/dev/null 2>&1; then
        return 0
    fi
    rm -rf "$1"
    # Some systems deliver Python without ensurepip; a pip outside can take its place.
    if "$2" -c 'import venv, ensurepip' 2>/dev/null && "$2" -m venv "$1"; then
        return 0
    fi
    if "$2" -m venv --without-pip "$1" && pip_in "$1" "$2" --version >/dev/null 2>&1; then
        return 0
    fi
    rm -rf "$1"
    echo "$2 can't make a virtual environment with pip in it. On Debian and Ubuntu, install the" >&2
    echo "package python3-venv; or name another Python: PYTHON=python3.12 sh $0" >&2
    return 1
}

# pip_in DIRECTORY PYTHON ARGUMENT...: run pip for the environment in DIRECTORY, with PYTHON's pip if it has none.
pip_in() {
    _pip_venv=$1
    _pip_python=$2
    shift 2
    if "$_pip_venv/bin/python" -c 'import pip' 2>/dev/null; then
        "$_pip_venv/bin/python" -m pip --disable-pip-version-check "$@"
    else
        "$_pip_python" -m pip --disable-pip-version-check --python "$_pip_venv/bin/python" "$@"
    fi
}

# install_in DIRECTORY PYTHON WHAT: install this package, such as '.' or '.[test]', from the current directory,
# editable. Nothing is done if that was done before and pyproject.toml hasn't changed since.
install_in() {
    if cmp -s pyproject.toml "$1/installed.toml"; then
        return 0
    fi
    pip_in "$1" "$2" install --quiet --editable "$3" || {
        echo "pip could not install what is needed; the reason is above" >&2
        return 1
    }
    cp pyproject.toml "$1/installed.toml"
}
