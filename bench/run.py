"""Runs the benchmarks that need no other argument: `make bench`."""

import runpy
import sys
from pathlib import Path

CASES = ("lossless.py", "agreement.py")

if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        sys.argv = [case]
        runpy.run_path(str(Path(__file__).parent / case), run_name="__main__")
