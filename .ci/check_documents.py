"""Checks the types of the Python code in the documents and in examples/ with `mypy --strict`.

python .ci/check_documents.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.documents import EXAMPLES, blocks  # noqa: E402


def main() -> int:
    """Write each block to a file of its own, check all files at once, and return mypy's status."""
    with tempfile.TemporaryDirectory() as scratch:
        written = [Path(scratch, f"{block.document}_{block.number}.py") for block in blocks("python")]
        for path, block in zip(written, blocks("python"), strict=True):
            path.write_text(block.code)
        # The examples import their neighbours, as Python finds them when it runs one of them.
        folders = sorted({str(example.parent) for example in EXAMPLES})
        return subprocess.run(
            # Handlers' modules, decorators included, have no types: a worker makes them.
            [sys.executable, "-m", "mypy", "--allow-untyped-decorators", *written, *EXAMPLES],
            cwd=ROOT,
            env={**os.environ, "MYPYPATH": os.pathsep.join([scratch, *folders])},
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
