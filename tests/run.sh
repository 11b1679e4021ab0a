#!/bin/sh
# Runs the tests: makes a virtual environment (.venv-test), installs what they need there, and runs them all. The unit
# tests and those of the stores run with branch coverage, subprocesses included: all of wire/ has to be covered, and 90%
# of the whole. The integration tests mostly wait, so they run beside each other and the unit tests. Coverage would
# double the time of the hundreds of services that they start. The attacks measure how long a caller beside them waits,
# so they run by themselves. The files of all are in memory if there is room.
#
#     sh tests/run.sh                         everything
#     sh tests/run.sh tests/unit -k packet    what pytest is told, without coverage
#     PYTHON=python3.12 sh tests/run.sh       with another Python
set -eu
cd "$(dirname "$0")/.."
. .ci/venv.sh
. .ci/scratch.sh

python=${PYTHON:-python3}
make_venv .venv-test "$python"
if ! cmp -s pyproject.toml .venv-test/installed.toml; then
    echo "Installing uwsgitwisted and what its tests need in .venv-test ..."
fi
install_in .venv-test "$python" '.[test]'

# The tests compare with a real uWSGI, which has to be compiled. Without a compiler, those tests are left out; where
# changes are checked, none is.
if [ ! -x .venv-test/bin/uwsgi ] && ! pip_in .venv-test "$python" install --quiet 'uwsgi>=2.0.26'; then
    echo "uWSGI could not be installed; the tests that need it are left out" >&2
    [ -z "${CI:-}" ] || exit 1
fi

# The tests start commands by their names, such as twistd.
PATH="$PWD/.venv-test/bin:$PATH"
export PATH

if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi

coverage erase
logs=$(mktemp -d)
PYTEST_DEBUG_TEMPROOT=$(make_scratch)
export PYTEST_DEBUG_TEMPROOT
# A shell's background command ignores SIGINT, and so does what it starts; a test that needs it sets it back.
# In one process, with all that the stores promise.
measured=tests/integration/postgresql/test_postgres_store.py
coverage run -m pytest tests/unit tests/fuzz "$measured" >"$logs/units" 2>&1 &
units=$!
there=tests/integration
python -m pytest $there/web $there/peers $there/postgresql $there/test_spool*.py --ignore "$measured" >"$logs/web" 2>&1 &
web=$!
# After a SIGTERM, which stops the reactor, pytest would go through the rest of the tests.
trap 'kill -KILL "$units" "$web" 2>/dev/null || true; rm -rf "$logs" "$PYTEST_DEBUG_TEMPROOT"' EXIT
trap 'exit 130' INT TERM HUP
status=0
echo "Integration tests; the other half of them, and the unit tests, run beside them:"
python -m pytest $there --ignore $there/web --ignore $there/peers --ignore $there/postgresql \
    --ignore-glob '*/test_spool*.py' || status=$?
wait "$web" || status=$?
echo
echo "Integration tests of web requests, uWSGI's programs and spoolers:"
cat "$logs/web"
wait "$units" || status=$?
echo
echo "Unit tests, and those of PostgreSQL's store:"
cat "$logs/units"
trap 'rm -rf "$logs" "$PYTEST_DEBUG_TEMPROOT"' EXIT
[ "$status" -eq 0 ] || exit "$status"
# Processes that were killed leave files that are no data.
coverage combine --quiet 2>/dev/null || {
    echo "coverage has measured nothing" >&2
    exit 1
}
rm -f .coverage.*
echo
echo "Coverage of wire/, which has to be complete:"
coverage report --include='*/uwsgitwisted/wire/*' --fail-under=100
echo
echo "Coverage of everything:"
coverage report --fail-under=90
echo
echo "Attacks:"
python -m pytest tests/attacks
