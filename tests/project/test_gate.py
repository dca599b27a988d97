"""The rule on skips, tried on small test suites of its own."""

import shutil
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
pytest_plugins = ["pytester"]


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """An empty test suite under the project's conftest."""
    for name in ("conftest.py", "allowed_skips.txt"):
        shutil.copy(TESTS / name, pytester.path)
    pytester.makeini("[pytest]\nmarkers =\n    slow: minutes\n    gpu: CUDA\n")
    return pytester


def test_a_skip_for_an_unknown_reason_fails_the_run(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\ndef test_one(): pytest.skip('too lazy today')\ndef test_two(): pass")
    result = suite.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*NOT ALLOWED: too lazy today", "*test_one"])


def test_a_file_that_skips_itself_for_an_unknown_reason_fails_the_run(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\npytest.importorskip('a_package_that_nobody_has')")
    assert suite.runpytest_inprocess().ret != pytest.ExitCode.OK


def test_an_allowed_skip_is_listed_and_the_run_passes(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        "import pytest\n@pytest.mark.slow\ndef test_one(): assert False\ndef test_two(): pass",
    )
    result = suite.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*1  allowed: slow: runs with check.py --slow", "*1 passed, 1 skipped*"])


def test_slow_tests_run_when_asked_for(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\n@pytest.mark.slow\ndef test_one(): assert False\ndef test_two(): pass")
    result = suite.runpytest_inprocess("--slow", "-m", "slow")
    result.assert_outcomes(failed=1, deselected=1)
