"""What the pages show is run, what they name exists, and the site is built from them."""

import inspect
import re
import shlex
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from run_files import read_metrics

from pg_lightning import returns
from pg_lightning.cli.configs import find_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
COURSE = sorted((DOCS / "course").glob("*.md"))
INSTALLING = {"make train", "pip install .", 'pip install ".[video]"'}  # what a test does not do


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    """The Python of the pages on algorithms and networks as one importable module."""
    shown = [block for name in ("algorithms.md", "networks.md") for block in blocks(DOCS / name, "python")]
    assert all(len(block.splitlines()) <= 20 for block in shown)
    (tmp_path / "my_package.py").write_text("\n".join(shown))
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
    for link in re.findall(r"\]\(([^)#:\s]+)[)#\s]", text):
        assert (page.parent / link).exists(), link
    for config in re.findall(r"configs/(\w+)\.yaml|--config (\w+)$", text, flags=re.MULTILINE):
        assert (ROOT / "configs" / f"{''.join(config)}.yaml").exists(), config


@pytest.mark.parametrize("page", COURSE, ids=lambda page: page.stem)
def test_what_a_page_of_the_course_claims_in_python_holds(page):
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(block, names)


SHORT = '{"data.total_steps": 500, "data.eval_every_steps": 500, "data.eval_episodes": 2}'


def with_a_hundredth_of_the_budget(command: list[str]) -> list[str]:
    """The arguments of `fit`, so that training takes a moment; everything else as the page has it."""
    given = dict(pairwise(command))
    budget = given.get("--data.total_steps")
    if budget is None:
        budget = yaml.safe_load(find_config(given["--config"]).read_text())["data"]["total_steps"]
    return [*command, "--data.total_steps", str(int(budget) // 100), "--data.eval_episodes", "2"]


def test_the_first_page_can_be_followed_line_by_line(cli, tmp_path):
    lines = "".join(blocks(DOCS / "start.md", "bash")).splitlines()
    assert set(lines) >= INSTALLING
    for line in lines:
        if line in INSTALLING:
            continue
        python, m, package, *command = shlex.split(line)
        assert (python, m, package) == ("python", "-m", "pg_lightning"), line
        if command[0] == "fit":
            command = with_a_hundredth_of_the_budget(command)
        if command[0] == "study":
            command += ["--seeds", "[1]", "--overrides", SHORT]
        finished = cli(tmp_path, *command)
        assert finished.returncode == 0, f"{line}: {finished.stderr}"
    runs = tmp_path / "runs"
    budgets = [read_metrics(runs / "ppo_cartpole" / name)[-1]["step"] for name in ("version_0", "version_1")]
    assert 1000 <= budgets[0] < 2000 <= budgets[1]  # the second went on where the first had ended
    assert len(list((runs / "ppo_cartpole/version_0/record").glob("*.mp4"))) == 3
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["algorithms.png", "entropy.png", "lr.png"]
    assert len(list(runs.glob("lr/ppo_cartpole/version_*/metrics.csv"))) == 4
    assert (tmp_path / "my_studies/lr_cartpole/study.png").is_file()


def test_every_metric_has_what_it_is_what_it_should_be_and_what_to_do():
    metrics = re.split(r"^### ", (DOCS / "metrics.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(metrics) > 20
    for metric in metrics:
        assert re.findall(r"^- \*\*(Is|Should|If not)\*\*", metric, flags=re.MULTILINE) == ["Is", "Should", "If not"]


class Page(HTMLParser):
    """Text of the code on a page, number of equations, and what the page would fetch."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.code: list[str] = []
        self.equations = 0
        self.fetched: list[str] = []
        self._in_code = False
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.equations += tag == "math"
        if tag == "code":
            self._in_code = True
            self.code.append("")
        if tag in ("script", "img", "iframe"):
            self.fetched.append(values.get("src") or "")
        if tag == "link" and values.get("rel") not in ("prev", "next", "canonical"):
            self.fetched.append(values.get("href") or "")

    def handle_endtag(self, tag):
        self._in_code &= tag != "code"

    def handle_data(self, data):
        if self._in_code:
            self.code[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: a link into nothing, or a page that the navigation lacks, is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]  # --quiet would forgive
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return folder


def test_the_site_has_every_page_and_fetches_nothing_from_elsewhere(site):
    for page in DOCS.rglob("*.md"):
        fetched = Page(site / page.relative_to(DOCS).with_suffix(".html")).fetched
        assert fetched
        assert not [address for address in fetched if "//" in address]


def test_equations_reach_the_browser_as_such(site):
    for page in COURSE:
        file = site / "course" / f"{page.stem}.html"
        assert Page(file).equations == len(re.findall(r"\$\$.+?\$\$|\$.+?\$", without_code(page.read_text())))
        assert not re.search(
            r"<m\w+>(&(?![#\w]+;)|&amp;|\\)", file.read_text()
        )  # what the converter does not know it copies


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


def test_a_page_shows_a_function_as_its_source_has_it(site):
    shown = [code.strip() for code in Page(site / "course/actor_critic.html").code]
    assert inspect.getsource(returns.gae).strip() in shown


@pytest.mark.parametrize("page", [page for page in COURSE if page.stem != "theorem"], ids=lambda page: page.stem)
def test_a_page_of_the_course_shows_its_update_and_what_changes(site, page):
    code = Page(site / "course" / f"{page.stem}.html").code
    assert any(block.startswith("def update(self, rollout: Rollout)") for block in code)
    changes = [block for block in code if block.startswith("--- ")]
    assert len(changes) == (0 if page.stem == "reinforce" else 2)
    assert not any('"""' in block for block in changes)


@pytest.mark.parametrize(("rung", "before"), [("ppo", "a2c"), ("actor_critic", "reinforce_baseline")])
def test_what_changes_is_what_one_file_has_and_the_other_has_not(site, rung, before):
    change = next(code for code in Page(site / f"course/{rung}.html").code if code.startswith("--- configs/"))
    lines = Counter((ROOT / f"configs/{rung}_cartpole.yaml").read_text().splitlines())
    lines.subtract((ROOT / f"configs/{before}_cartpole.yaml").read_text().splitlines())
    changed = Counter(line[1:] for line in change.splitlines()[2:] if line[0] == "+")
    changed.subtract(line[1:] for line in change.splitlines()[2:] if line[0] == "-")
    assert +changed == +lines
    assert -changed == -lines


def test_a_file_of_the_repository_has_a_page_of_its_own(site):
    shown = Page(site / "repository/pg_lightning/algorithms/ppo.py.html").code[0]
    assert shown.strip() == (ROOT / "pg_lightning/algorithms/ppo.py").read_text().strip()
    assert 'href="../pg_lightning/' not in (site / "algorithms.html").read_text()
