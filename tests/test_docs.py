"""What the pages show is run: classes of one's own, as a user's package would hold them; the files they name exist."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    """The Python of the pages on algorithms and networks as one importable module."""
    pages = "\n".join((ROOT / "docs" / name).read_text() for name in ("algorithms.md", "networks.md"))
    blocks = re.findall(r"```python\n(.*?)```", pages, flags=re.DOTALL)
    assert all(len(block.splitlines()) <= 20 for block in blocks)
    (tmp_path / "my_package.py").write_text("\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_package", None)


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "my_package.SelfImitation"],
        ["--model.torso", "{class_path: my_package.Fourier, init_args: {features: 32}}"],
        ["--model.head", "my_package.Tempered"],
    ],
    ids=["algorithm", "torso", "head"],
)
def test_a_class_of_ones_own_trains_as_shown(cli, my_package, options):
    finished = cli(
        my_package,
        *("fit", "--config", "a2c_cartpole", *options),
        *("--data.total_steps", 200, "--data.eval_episodes", 1),
    )
    assert finished.returncode == 0, finished.stderr
    assert "best:" in finished.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_config_that_a_page_names_is_there(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    for config in re.findall(r"configs/(\w+)\.yaml|--config (\w+)$", text, flags=re.MULTILINE):
        assert (ROOT / "configs" / f"{''.join(config)}.yaml").exists(), config
