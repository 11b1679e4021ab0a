"""Runs the fuzzer: ``python -m tests.fuzz [--seconds 600] [--target NAME ...]``.

The targets share the time, one process after the other. Each is driven by atheris, which looks at what code an
input reaches; where that isn't installed, by Hypothesis. An input that makes a target fail is cut down and
written to ``cases/TARGET/``, and the status at the end is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CASES = Path(__file__).with_name("cases")
HAVE_ATHERIS = importlib.util.find_spec("atheris") is not None
#: The longest input, in bytes. Those that have to be long are stretched or repeated by their targets.
_LONGEST = 1_024
#: How many inputs a find is cut down with at most, and for how many seconds.
_CUTS, _CUTTING = 3_000, 60.0
#: How long one input may take, in seconds, before the process is ended. Its memory is limited too, in MB.
_HANG, _MEMORY = 20, 1_024


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz what reads strangers' bytes."
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="for all targets together (default: 600)")
    parser.add_argument("--target", action="append", help="only this one; may be given again")
    parser.add_argument("--one", nargs=2, metavar=("TARGET", "CORPUS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run each target in a process of its own; return the status."""
    options = _parse()
    if options.one:
        return _fuzz(options.one[0], options.one[1], options.seconds)
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import TARGETS

    names = options.target or list(TARGETS)
    failed = []
    for name in names:
        with tempfile.TemporaryDirectory() as corpus:
            for number, data in enumerate([*seeds(name), *(path.read_bytes() for path in _cases(name))]):
                Path(corpus, f"{number}").write_bytes(data)
            command = [sys.executable, "-m", "tests.fuzz", "--one", name, corpus]
            command += ["--seconds", str(options.seconds / len(names))]
            print(f"=== {name}, {options.seconds / len(names):g} s", flush=True)
            if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
                failed.append(name)
            # An input that hangs or takes all memory ends the process, which can't cut it down.
            for path in (*Path(corpus).glob("find-timeout-*"), *Path(corpus).glob("find-oom-*")):
                print(f"kept as {keep(name, path.read_bytes())}")
    for name in failed:
        print(f"{name} fails; its cases are in {CASES / name}")
    return bool(failed)


def _cases(name: str) -> list[Path]:
    return sorted(CASES.glob(f"{name}/*"))


def _fuzz(name: str, corpus: str, seconds: float) -> int:
    """Fuzz one target in this process."""
    drive = _with_atheris if HAVE_ATHERIS else _with_hypothesis
    return drive(name, corpus, seconds)


def _run(name: str) -> Callable[[bytes], None]:
    """Return what runs a target, and keeps the input that makes it fail."""
    from tests.fuzz.targets import INSTRUMENTED, check

    def run(data: bytes) -> None:
        try:
            check(name, data, slower=INSTRUMENTED)
        except Exception as error:
            print(f"kept as {keep(name, cut_down(name, data, error))}", flush=True)
            raise

    return run


def _with_atheris(name: str, corpus: str, seconds: float) -> int:
    import atheris

    with atheris.instrument_imports(include=["uwsgitwisted"]):
        run = _run(name)
    arguments = [sys.argv[0], corpus, f"-max_total_time={max(1, round(seconds))}", f"-max_len={_LONGEST}"]
    arguments += [f"-timeout={_HANG}", f"-rss_limit_mb={_MEMORY}", "-use_value_profile=1", "-verbosity=0"]
    atheris.Setup([*arguments, f"-artifact_prefix={corpus}/find-", "-print_final_stats=1"], run)
    atheris.Fuzz()
    return 0  # it isn't reached: the fuzzer ends the process


def _with_hypothesis(name: str, corpus: str, seconds: float) -> int:
    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis import strategies as st

    run = _run(name)
    known = [path.read_bytes() for path in Path(corpus).iterdir()]
    ends = time.monotonic() + seconds
    number = 0
    while time.monotonic() < ends:
        number += 1
        inputs = st.binary(max_size=_LONGEST) | st.sampled_from(known).flatmap(_mutated)
        batch = settings(
            max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )(given(inputs)(run))
        seed(number)(batch)()
    print(f"{number * 200} inputs by Hypothesis", flush=True)
    return 0


def _mutated(data: bytes) -> object:
    """Return a strategy for *data* with a part of it replaced."""
    from hypothesis import strategies as st

    places = st.integers(0, len(data))
    return st.builds(
        lambda start, size, part: data[:start] + part + data[start + size :],
        places,
        st.integers(0, 16),
        st.binary(max_size=32),
    )


def cut_down(name: str, data: bytes, error: Exception) -> bytes:
    """Return a short input that makes the target fail with the same class of error."""
    from tests.fuzz.targets import INSTRUMENTED, check

    def fails(candidate: bytes) -> bool:
        try:
            check(name, candidate, slower=INSTRUMENTED)
        except type(error):
            return True
        except Exception:
            return False
        return False

    tries, ends = 0, time.monotonic() + _CUTTING
    size = len(data) // 2
    while size and tries < _CUTS and time.monotonic() < ends:
        start = 0
        while start < len(data) and time.monotonic() < ends:
            tries += 1
            candidate = data[:start] + data[start + size :]
            if fails(candidate):
                data = candidate
            else:
                start += size
        size //= 2
    return data


def keep(name: str, data: bytes) -> Path:
    """Write a find to where the tests replay it, and return the file."""
    path = CASES / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
