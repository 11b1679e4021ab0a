# A place for the files of tests: POSIX sh, to be sourced.

# Kilobytes that have to be free in memory. The tests write a few hundred megabytes.
_SCRATCH_ROOM=4000000

# make_scratch: make a directory for the files of tests, in memory if there is room, and print its name. The tests make
# hundreds of databases, and on a disk they wait for it most of the time.
make_scratch() {
    _scratch_free=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')
    if [ "${_scratch_free:-0}" -ge "$_SCRATCH_ROOM" ] && _scratch=$(mktemp -d /dev/shm/tests.XXXXXX 2>/dev/null); then
        # Some tests write programs and run them, which is forbidden there on some systems.
        printf '#!/bin/sh\n' >"$_scratch/program"
        chmod +x "$_scratch/program"
        if "$_scratch/program" 2>/dev/null; then
            rm "$_scratch/program"
            echo "$_scratch"
            return 0
        fi
        rm -rf "$_scratch"
    fi
    mktemp -d
}
