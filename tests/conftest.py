"""What every test shares: one thread, no model hub, the markers `gpu` and `slow`, and the rule on skips.

A skipped test is listed with its reason at the end of a run. A reason that tests/allowed_skips.txt does not
hold fails the run: a test that silently stops running is a test that is lost.
"""

import os
import re
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")
SLOW_REASON = "slow: runs with check.py --slow"

torch.set_num_threads(1)
# Without a GPU kernels run in Triton's interpreter, which must be chosen before anything imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The same cases in every run: whether the gate passes depends on the code alone.
settings.register_profile(
    "infinitevl", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("infinitevl")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason=SLOW_REASON))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def allowed_reasons() -> list[re.Pattern[str]]:
    lines = ALLOWED_SKIPS.read_text().splitlines()
    return [re.compile(line) for line in lines if line.strip() and not line.startswith("#")]


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test, or a whole file, was skipped, in the words of whoever skipped it."""
    assert isinstance(report.longrepr, tuple)
    return str(report.longrepr[2]).removeprefix("Skipped: ")


def skips_by_reason(config: pytest.Config) -> dict[str, list[str]]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reasons: dict[str, list[str]] = {}
    for report in reporter.stats.get("skipped", []) if reporter else []:
        reasons.setdefault(skip_reason(report), []).append(report.nodeid)
    return reasons


def forbidden(reasons: dict[str, list[str]]) -> list[str]:
    allowed = allowed_reasons()
    return [reason for reason in reasons if not any(pattern.fullmatch(reason) for pattern in allowed)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and forbidden(skips_by_reason(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reasons = skips_by_reason(config)
    not_allowed = forbidden(reasons)
    terminalreporter.section("skipped tests and why")
    if not reasons:
        terminalreporter.line("none")
    for reason, tests in sorted(reasons.items()):
        mark = "NOT ALLOWED" if reason in not_allowed else "allowed"
        terminalreporter.line(f"{len(tests):4d}  {mark}: {reason}")
        for test in tests if reason in not_allowed else []:
            terminalreporter.line(f"      {test}")
    if not_allowed:
        terminalreporter.line(f"The run fails: add the reason to {ALLOWED_SKIPS.name} or make the tests run.")
