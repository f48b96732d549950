"""What importing the package costs and gives."""

import subprocess
import sys

import pytest

import pg_lightning


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


def test_the_package_imports_without_lightning():
    """So that an environment in a process of its own need not pay for it."""
    assert python("-c", "import sys, pg_lightning; print('lightning' in sys.modules)") == "False\n"


@pytest.mark.parametrize("name", pg_lightning.__all__)
def test_public_names_can_be_had(name):
    assert getattr(pg_lightning, name).__name__ == name


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        pg_lightning.nonsense  # noqa: B018


def test_the_module_can_be_run():
    assert python("-m", "pg_lightning", "--help").startswith("usage: pg-lightning")
