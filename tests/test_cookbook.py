"""The cookbook and the guides: every snippet and every command is run, and prints what the page says it prints."""

import importlib
import inspect
import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from pg_lightning import A2C, PPO, PolicyGradientModule, RolloutDataModule
from pg_lightning.cli.configs import find_config
from pg_lightning.policies import ActorCritic

ROOT = Path(__file__).parents[1]
COOKBOOK = ROOT / "docs/cookbook.md"
PAGES = [COOKBOOK, *sorted((ROOT / "docs/guides").glob("*.md"))]
SNIPPET = re.compile(
    r'^```python( title="my_package.py")?\n(.*?)^```\n(?:\n```text\n(.*?)^```)?', re.DOTALL | re.MULTILINE
)
QUESTIONS = (  # of the course, in its order
    *("install", "import", "GPU", "load an environment", "observations and actions", "reset", "the network"),
    *("become probabilities", "initialised", "sample", "log-probability of an action", "continuous", "reward-to-go"),
    *("become a gradient", "loss", "collect", "gradient of a whole episode", "backpropagate", "training loop"),
    *("track returns", "update at the end of an episode", "evaluate", "plot returns", "other methods"),
    *("learning rate", "discount", "architecture", "batch size", "normalise", "entropy bonus"),
)


def sections(page: Path) -> dict[str, str]:
    """The text below each heading."""
    texts: dict[str, str] = {}
    title, in_code = "", False
    for line in page.read_text().splitlines(keepends=True):
        in_code ^= line.startswith("```")
        if line.startswith("#") and not in_code:
            title = line.strip("# \n")
        texts[title] = texts.get(title, "") + line
    return texts


SECTIONS = [(page, title) for page in PAGES for title, text in sections(page).items() if SNIPPET.search(text)]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, in which a page's `my_package.py` is written and can be imported."""

    def begin(page: Path) -> Path:
        module = [code for is_file, code, _ in SNIPPET.findall(page.read_text()) if is_file]
        assert all(len(code.splitlines()) < 30 for code in module)
        (tmp_path / "my_package.py").write_text("\n".join(module))
        return tmp_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield begin
    sys.modules.pop("my_package", None)


def test_the_cookbook_answers_the_thirty_questions():
    headings = re.findall(r"^### (\d+)\. (.+\?)$", COOKBOOK.read_text(), flags=re.MULTILINE)
    assert [int(number) for number, _ in headings] == list(range(1, 31))
    for topic, (_, heading) in zip(QUESTIONS, headings, strict=True):
        assert topic in heading
    for answer in COOKBOOK.read_text().split("\n### ")[1:]:
        assert "```python\n" in answer or "```bash\n" in answer, answer
        assert "*Common mistake:*" in answer, answer


@pytest.mark.parametrize(("page", "title"), SECTIONS, ids=[f"{page.stem}: {title}" for page, title in SECTIONS])
def test_a_snippet_prints_what_the_page_says(work, page, title):
    work(page)
    names: dict[str, object] = {}
    for is_file, code, printed in SNIPPET.findall(sections(page)[title]):
        out = io.StringIO()
        with redirect_stdout(out):
            if is_file:
                names |= vars(importlib.import_module("my_package"))
            else:
                exec(compile(code, f"{page.name}: {title}", "exec"), names)
        assert out.getvalue() == printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work_one_after_the_other(cli, work, page):
    folder = work(page)
    shown = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for line in "".join(shown).splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["pip", "install"]:
            assert words[2] == "."
            continue
        assert words[:3] == ["python", "-m", "pg_lightning"], line
        finished = cli(folder, *small(words[3:]))
        assert finished.returncode == 0, f"{line}: {finished.stderr}"


def small(command: list[str]) -> list[str]:
    """The command with a budget that a test can afford."""
    budget = {"data.total_steps": 300, "data.eval_every_steps": 10_000, "data.eval_episodes": 1}
    few = ["--seeds", "[1]", "--overrides", yaml.safe_dump(budget, default_flow_style=True).strip()]
    if command[0] == "fit":
        return [*command, *(part for key, value in budget.items() for part in (f"--{key}", str(value)))]
    if command[0] in ("validate", "test"):
        return [*command, "--data.eval_episodes", "2"]
    if command[0] == "study":
        file = yaml.safe_load(find_config(command[1], "studies").read_text())
        last = {key: values[-1:] for key, values in file["vary"].items()}
        return [*command, *few, "--vary", yaml.safe_dump(last, default_flow_style=True, width=1000).strip()]
    if command[0] == "compare":
        file = yaml.safe_load(find_config(command[1], "studies").read_text())
        return [*command, *few, "--methods", f"[{file['methods'][-1]}]", "--references", "null"]
    return command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_and_heading_that_a_page_links_to_is_there(page):
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([\w-]+))?\)", page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w\s-]", "", h).strip().lower().replace(" ", "-") for h in headings}


def defaults(*functions: Any) -> dict[str, Any]:
    parameters = [p for function in functions for p in inspect.signature(function).parameters.values()]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.fixture(params=[PPO, A2C], ids=["PPO", "A2C"])
def table(request):
    """An algorithm, and the rows of its table: names and defaults here and there."""
    text = sections(ROOT / "docs/guides/coming_from.md")[request.param.__name__]
    rows = [
        [cell.strip(" `") for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if " | `" in line
    ]
    assert len(rows) > 5
    return request.param, [[yaml.safe_load(c) if i % 2 else c for i, c in enumerate(row[:4])] for row in rows]


def test_the_defaults_that_are_shown_are_ours(table):
    algorithm, rows = table
    data, model = defaults(RolloutDataModule), defaults(ActorCritic, PolicyGradientModule, algorithm)
    for name, default, *_ in rows:
        part, _, key = name.partition(".")
        assert {"data": data, "model": model}[part][key] == default, name


def test_the_defaults_that_are_shown_are_those_of_stable_baselines3(table):
    sb3 = pytest.importorskip("stable_baselines3", reason="pip install pg_lightning[bench]")
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.vec_env import VecNormalize

    algorithm, rows = table
    theirs = getattr(sb3, algorithm.__name__)
    known = defaults(ActorCriticPolicy, VecNormalize, EvalCallback, make_vec_env, theirs)
    compared = 0
    for _, _, name, default in rows:
        key = re.search(r"\w+(?=\)?$)", name)[0]
        if default != "–":
            assert known[key] == default, name
            compared += 1
    assert compared >= len(rows) - 2
    if algorithm is PPO:
        model = theirs("MlpPolicy", "CartPole-v1", device="cpu")
        assert model.policy.optimizer.defaults["eps"] == 1e-5
        assert known["n_steps"] * known["n_envs"] == 32 * known["batch_size"]  # as in the command on the page
