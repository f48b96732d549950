import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_the_table_of_bugs_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", (TESTS / "BUGS.md").read_text()))
    defined = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert len(named) > 30
    assert named <= defined
