"""The locked versions: one, with hashes, for every dependency, within its range."""

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n +--hash=sha256:", (ROOT / "locked.txt").read_text(), re.MULTILINE))
TORCH = (ROOT / "constraints.txt").read_text().strip().removeprefix("torch==")


def test_every_dependency_has_a_version_within_its_range_and_a_hash():
    dependencies = [Requirement(text) for text in requires("pg_lightning") or [] if "extra ==" not in text]
    assert len(dependencies) >= 10
    for needed in dependencies:
        version = TORCH if needed.name == "torch" else LOCKED[needed.name]
        assert needed.specifier.contains(version), f"{needed}: {version}"
