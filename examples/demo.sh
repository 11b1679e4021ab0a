#!/bin/sh
# Shows the three examples at work: makes a virtual environment (.venv-demo), installs the package there, and
# runs demo.py. The second time it is reused. PYTHON=python3.12 sh examples/demo.sh takes another Python.
set -eu
cd "$(dirname "$0")/.."
. .ci/venv.sh

python=${PYTHON:-python3}
make_venv .venv-demo "$python"
if ! cmp -s pyproject.toml .venv-demo/installed.toml; then
    echo "Installing uwsgitwisted in .venv-demo ..."
fi
install_in .venv-demo "$python" .
exec .venv-demo/bin/python examples/demo.py "$@"
