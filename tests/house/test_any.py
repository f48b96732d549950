"""How often each file says `Any`, by which mypy takes everything to be right: the table can only shrink.

Most are what a framework's own signature says: options and infos of Gymnasium, hooks of Lightning that are overridden,
modules without types. The modules of private names and the command line, whose arguments are of any type, are free.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pg_lightning"
FREE = ("cli/", "lightning_private.py", "torch_private.py")
MOST = {
    "__init__.py": 1,
    "algorithms/a2c.py": 1,
    "algorithms/a3c.py": 3,
    "algorithms/actor_critic.py": 1,
    "algorithms/grpo.py": 1,
    "algorithms/ppo.py": 1,
    "algorithms/reinforce.py": 1,
    "algorithms/reinforce_baseline.py": 1,
    "algorithms/rloo.py": 1,
    "algorithms/trpo.py": 1,
    "algorithms/vtrace.py": 1,
    "analysis/curves.py": 3,
    "analysis/gradient_noise.py": 1,
    "analysis/intervals.py": 1,
    "callbacks/checkpoints.py": 7,
    "callbacks/completions.py": 3,
    "callbacks/config.py": 1,
    "callbacks/evaluation.py": 9,
    "callbacks/progress.py": 4,
    "callbacks/randomness.py": 2,
    "callbacks/video.py": 1,
    "checkpoint/values.py": 1,
    "class_path.py": 5,
    "commands/compare.py": 7,
    "commands/diagnose.py": 1,
    "commands/diagnosis_report.py": 4,
    "commands/estimators.py": 2,
    "commands/export.py": 21,
    "commands/export_text.py": 1,
    "commands/record.py": 2,
    "commands/references/evaluations.py": 1,
    "commands/results.py": 1,
    "commands/runs.py": 2,
    "commands/search.py": 9,
    "commands/study.py": 3,
    "commands/weights.py": 1,
    "data/collector.py": 5,
    "data/datamodule.py": 13,
    "data/dataset.py": 1,
    "data/device_rows.py": 1,
    "data/episodes.py": 2,
    "data/evaluation.py": 3,
    "data/host_rows.py": 1,
    "data/overlap.py": 8,
    "data/resume.py": 4,
    "envs/autoreset.py": 6,
    "envs/backends/jax_programs.py": 1,
    "envs/backends/pool.py": 2,
    "envs/backends/pool_ids.py": 2,
    "envs/backends/serial.py": 3,
    "envs/backends/tensor.py": 3,
    "envs/backends/workers.py": 13,
    "envs/contract.py": 18,
    "envs/filming.py": 1,
    "envs/make.py": 3,
    "envs/replay.py": 17,
    "envs/spaces.py": 2,
    "envs/tasks/gridworld.py": 2,
    "envs/tasks/toy.py": 13,
    "envs/wrappers/atari.py": 6,
    "games/arena.py": 3,
    "games/envpool.py": 4,
    "games/league.py": 3,
    "games/make.py": 2,
    "games/pettingzoo.py": 3,
    "learning/checkpoint_state.py": 3,
    "learning/checks.py": 1,
    "learning/connecting.py": 1,
    "learning/formulas.py": 1,
    "learning/module.py": 4,
    "learning/optimizers.py": 8,
    "learning/progress.py": 1,
    "policies/description.py": 15,
    "policies/heads/make.py": 4,
    "policies/make.py": 1,
    "policies/numpy_actor.py": 2,
    "policies/torsos.py": 1,
    "policies/trained.py": 10,
    "processes/forked.py": 5,
    "processes/signals.py": 6,
    "rollout.py": 3,
    "run/checkpoints.py": 11,
    "run/files.py": 1,
    "run/metrics_file.py": 6,
    "run/trackers.py": 11,
    "spaces.py": 1,
    "strategies/hogwild.py": 14,
    "text/collector.py": 4,
    "text/datamodule.py": 16,
    "text/models.py": 7,
    "text/policy.py": 2,
    "text/supervised.py": 2,
    "text/tokenizer.py": 5,
}


def uses(path: Path) -> int:
    """Annotations, aliases and casts of a file that name `Any`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def test_any_is_said_no_more_often_than_it_was():
    names = {path: path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))}
    counts = {name: uses(path) for path, name in names.items() if not name.startswith(FREE)}
    more = {name: count for name, count in counts.items() if count > MOST.get(name, 0)}
    assert more == {}, "say what the type is: `object` for what is only handed on, a Protocol for what is asked of it"
    fewer = {name: counts.get(name, 0) for name, most in MOST.items() if counts.get(name, 0) < most}
    assert fewer == {}, "better: store the lower figures"
