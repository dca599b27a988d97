"""The gate: format, lint, types and tests, the same for people and for CI.

python check.py                 everything but the slow tests
python check.py --quick         format, lint, types and the fastest tests, in under a minute
python check.py --slow          the slow tests alone: kernels, wheel, thousands of splits, long streams
python check.py --only types    one step: format, lint, types or tests

Tests run on one thread and never ask a model hub. The run ends with the list of skipped tests and their
reasons, and fails if a reason is not in tests/allowed_skips.txt.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
QUIET_MACHINE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
}
STEPS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
    "tests": ["pytest"],
}
# Operations, states, the model against the published one, the project's own rules.
QUICK_TESTS = ["tests/ops", "tests/state", "tests/model/test_reference_vectors.py", "tests/project"]
STARTS_A_PROCESS = "new_process or imports_no or importing or programs or without_torch or needs_no_extra"
QUICK_STEPS = STEPS | {"tests": ["pytest", *QUICK_TESTS, "-k", f"not ({STARTS_A_PROCESS})"]}
SLOW_STEPS = {
    "kernels": ["pytest", "tests/ops/triton", "tests/ops/test_kernels_are_tested.py", "--timeout=1200"],
    "slow tests": ["pytest", "--slow", "-m", "slow", "--timeout=1800"],
    "many random splits": ["pytest", "tests/model/test_any_split.py", "--timeout=1800"],
}
MANY_CASES = {"INFINITEVL_SPLIT_CASES": "10000"}


def run_step(name: str, module_call: list[str], settings: dict[str, str]) -> bool:
    """Run `python -m ...` in the project's root; print how long it took; True if it passed."""
    print(f"== {name}: {' '.join(module_call)}", flush=True)
    started = time.monotonic()
    finished = subprocess.run(
        [sys.executable, "-m", *module_call], cwd=ROOT, env=os.environ | settings, check=False
    )
    passed = finished.returncode == 0
    verdict = "passed" if passed else f"FAILED (exit status {finished.returncode})"
    print(f"== {name}: {verdict} after {time.monotonic() - started:.0f} s\n", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run the checks that take seconds")
    parser.add_argument("--slow", action="store_true", help="run the slow tests and nothing else")
    parser.add_argument("--only", choices=STEPS, help="run one step and nothing else")
    arguments = parser.parse_args()
    settings = QUIET_MACHINE | (MANY_CASES if arguments.slow else {})
    steps = SLOW_STEPS if arguments.slow else QUICK_STEPS if arguments.quick else STEPS
    if arguments.only:
        steps = {arguments.only: STEPS[arguments.only]}
    failed = [name for name, call in steps.items() if not run_step(name, call, settings)]
    print(f"gate: {'FAILED: ' + ', '.join(failed) if failed else 'passed: ' + ', '.join(steps)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
