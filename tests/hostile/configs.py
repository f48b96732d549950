"""Configs as a stranger could send them beside a checkpoint; the module `stranger` is in the working folder."""

from collections.abc import Callable
from pathlib import Path

SECRET = "hunter2"  # in files that are not valid: no message may print it
MODEL = "model: {class_path: pg_lightning.algorithms.PPO}\n"
DATA = "data: {env_id: CartPole-v1}\n"


def _bomb(first: str, again: str) -> str:
    """Nine levels, each with nine aliases of the one before: 400 million nodes."""
    lines = [first]
    for name, before in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} {again.replace('?', ','.join([f'*{before}'] * 9))}")
    return "\n".join(lines)


BOMB = _bomb("a: &a [x, x]", "[?]")

PLAYER = "{class_path: pg_lightning.games.gtp.GTPOpponent, init_args: {command: touch CODE_RAN}}"

# Each names code that is not installed, in another place or another form.
CODE = {
    "model": "model: {class_path: stranger.Evil}\n" + DATA,
    "model_as_text": 'model: "{class_path: stranger.Evil}"\n' + DATA,
    "model_as_block": "model: |\n  class_path: stranger.Evil\n" + DATA,
    "model_as_nested_text": 'model: "\\"{class_path: stranger.Evil}\\""\n' + DATA,
    "model_by_name": "model: stranger.Evil\n" + DATA,
    "model_of_a_submodule": "model: {class_path: stranger.deep.Evil}\n" + DATA,
    "model_of_the_standard_library": "model: {class_path: subprocess.Popen, init_args: {args: id}}\n" + DATA,
    "model_of_builtins": "model: {class_path: builtins.eval}\n" + DATA,
    "model_of_os": "model: {class_path: os.system}\n" + DATA,
    "model_of_main": "model: {class_path: __main__.Evil}\n" + DATA,
    "model_of_runpy": "model: {class_path: runpy.run_path}\n" + DATA,
    "model_of_the_path": "model: {class_path: on_the_path.Evil}\n" + DATA,
    "model_of_a_namespace": "model: {class_path: some_folder.module.Evil}\n" + DATA,
    "model_of_a_fake_distribution": "model: {class_path: fake_distribution.Evil}\n" + DATA,
    "env_id": MODEL + 'data: {env_id: "stranger:CartPole-v1"}\n',
    "env_id_with_blanks": MODEL + 'data: {env_id: " stranger:CartPole-v1 "}\n',
    "env_id_of_a_submodule": MODEL + 'data: {env_id: "stranger.deep:CartPole-v1"}\n',
    "env_id_with_namespace": MODEL + 'data: {env_id: "stranger:ns/CartPole-v1"}\n',
    "env_id_of_a_simulator": MODEL + "data: {env_id: stranger.make, backend: simulator}\n",
    "env_id_of_this": MODEL + 'data: {env_id: "this:CartPole-v1"}\n',
    "env_id_in_an_argument": MODEL + 'data: {env_id: CartPole-v1, env_kwargs: {id: "stranger:CartPole-v1"}}\n',
    "data_as_text": MODEL + "data: '{env_id: \"stranger:CartPole-v1\"}'\n",
    "program": MODEL + f"data: {{env_id: TicTacToe-v1, self_play: {{eval_opponents: [{PLAYER}]}}}}\n",
    "program_in_training": MODEL + f"data: {{env_id: TicTacToe-v1, self_play: {{opponents: [{PLAYER}]}}}}\n",
    "program_as_text": MODEL + f"data: {{env_id: TicTacToe-v1, self_play: '{{opponents: [{PLAYER}]}}'}}\n",
    "program_as_list": MODEL + "data: {self_play: {opponents: [{init_args: {command: [touch, CODE_RAN]}}]}}\n",
    "wrapper": MODEL + "data: {env_id: CartPole-v1, wrappers: [stranger.Evil]}\n",
    "wrapper_class": MODEL + "data: {env_id: CartPole-v1, wrappers: [{class_path: stranger.Evil}]}\n",
    "wrapper_of_os": MODEL + "data: {env_id: CartPole-v1, wrappers: [os.system]}\n",
    "wrapper_function": MODEL
    + "data: {env_id: CartPole-v1, wrappers: [{class_path: gymnasium.wrappers.TransformReward, "
    "init_args: {func: stranger.evil}}]}\n",
    "prompts": MODEL + "data: {prompts: {class_path: torch.hub.load, init_args: {repo_or_dir: stranger/evil}}}\n",
    "prompts_of_a_stranger": MODEL + "data: {prompts: stranger.evil}\n",
    "prompts_by_a_function_of_ours": MODEL
    + "data: {eval_prompts: {class_path: pg_lightning.run.files.write_file, init_args: {path: CODE_RAN}}}\n",
    "reward": MODEL + "data: {reward: torch.hub.load}\n",
    "reward_in_a_list": MODEL + "data: {reward: [exact_match, {class_path: torch.load, weight: 2}]}\n",
    "reward_as_text": MODEL + "data: {reward: '{class_path: torch.load}'}\n",
    "torso": "model: {class_path: pg_lightning.algorithms.PPO, init_args: {torso: stranger.Evil}}\n" + DATA,
    "head": "model: {class_path: pg_lightning.algorithms.PPO, init_args: {head: stranger.Evil}}\n" + DATA,
    "policy": "model: {class_path: pg_lightning.algorithms.PPO, init_args: {policy: {class_path: stranger.Evil}}}\n"
    + DATA,
    "optimizer": "model: {class_path: pg_lightning.algorithms.PPO, init_args: {optimizer: stranger.Evil}}\n" + DATA,
    "schedule": "model: {class_path: pg_lightning.algorithms.PPO, init_args: {lr_schedule: stranger.Evil}}\n" + DATA,
    "callback": MODEL + DATA + "trainer: {callbacks: [{class_path: stranger.Evil}]}\n",
    "callbacks_as_text": MODEL + DATA + 'trainer: {callbacks: "[{class_path: stranger.Evil}]"}\n',
    "logger": MODEL + DATA + "trainer: {logger: {class_path: stranger.Evil}}\n",
    "strategy": MODEL + DATA + "trainer: {strategy: {class_path: stranger.Evil}}\n",
    "plugin": MODEL + DATA + "trainer: {plugins: [stranger.Evil]}\n",
    "profiler": MODEL + DATA + "trainer: {profiler: {class_path: stranger.Evil}}\n",
    "callback_argument": MODEL
    + DATA
    + "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LambdaCallback, "
    "init_args: {on_fit_start: stranger.evil}}]}\n",
    "by_alias": "x: &x {class_path: stranger.Evil}\nmodel: *x\n" + DATA,
    "by_merge": "x: &x {class_path: stranger.Evil}\nmodel: {<<: *x}\n" + DATA,
    "of_a_subcommand": "test:\n  model: {class_path: stranger.Evil}\n",
    "python_tag": "model: !!python/object/apply:stranger.evil []\n" + DATA,
    "python_name": "model: !!python/name:stranger.Evil\n" + DATA,
    "python_module": "model: !!python/module:stranger\n" + DATA,
    # A file that the parser would read in place of the value.
    "other_config": "config: other.yaml\n" + MODEL + DATA,
    "other_model": "model: other.yaml\n" + DATA,
    "other_data": MODEL + "data: other.yaml\n",
    "other_callbacks": MODEL + DATA + "trainer: {callbacks: other.yaml}\n",
    "other_logger": MODEL + DATA + "trainer: {logger: [other.yaml]}\n",
    "other_beside": "model: beside.yaml\n" + DATA,
    "other_is_a_fifo": "model: fifo\n" + DATA,
    "other_is_a_device": "model: /dev/zero\n" + DATA,
}

# Each is broken, too large, or no config at all.
BROKEN: dict[str, str | bytes] = {
    "empty": "",
    "comment": "# nothing\n",
    "list": "- a\n- b\n",
    "number": "3\n",
    "text": "just words\n",
    "tab": f"data:\n\tpassword: {SECRET}\n",
    "open_quote": f'data: "{SECRET}',
    "open_bracket": f"data: [{SECRET}",
    "two_documents": f"{MODEL}---\npassword: {SECRET}\n",
    "undefined_alias": f"data: *{SECRET}\n",
    "unknown_tag": f"data: !{SECRET} x\n",
    "unhashable_key": f"? [{SECRET}]\n: 1\n",
    "date": "data: 2020-99-99\n",
    "nul": f"data: {SECRET}\0\n",
    "control": f"data: {SECRET}\x07\n",
    "bomb": BOMB,
    "merge_bomb": _bomb("a: &a {k: v}", "{<<: [?]}"),
    "bomb_as_text": f"model: '{BOMB}'\n{DATA}",
    "recursive": "a: &a [*a]\n",
    "recursive_merge": "a: &a {<<: *a}\n",
    "deep_list": "a: " + "[" * 50_000,
    "deep_map": "a: " + "{a: " * 50_000,
    "deep_blocks": "".join(" " * i + "a:\n" for i in range(400)),
    "many": "- x\n" * 60_000,
    "long_number": f"a: {'9' * 100_000}\n",
    "sexagesimal": f"a: {'1:' * 100_000}1\n",
    "large": "a: " + "x" * 2**20,
    "utf_16": (MODEL + DATA).encode("utf-16"),
    "utf_32": (MODEL + DATA).encode("utf-32"),
    "latin_1": "data: {env_id: Ü}\n".encode("latin-1"),
    "binary": bytes(range(256)) * 16,
    "zip": b"PK\x03\x04" + bytes(1000),
    "gzip": b"\x1f\x8b\x08" + bytes(1000),
    "torn": (MODEL + "data: {env_id: CartPole").encode(),
}


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 * 2**30)


def _fifo(path: Path) -> None:
    import os

    os.mkfifo(path)


def _socket(path: Path) -> None:
    import os
    import socket

    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is limited to 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


# What is no file with a text in it.
ODD: dict[str, Callable[[Path], None]] = {
    "gigabytes": _sparse,
    "fifo": _fifo,
    "socket": _socket,
    "folder": Path.mkdir,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "loop": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("missing"),
}

# What must go on working without a word.
HARMLESS = {
    "plain": MODEL + DATA,
    "wrapper": MODEL + "data: {env_id: CartPole-v1, wrappers: [gymnasium.wrappers.FlattenObservation]}\n",
    "own_task": MODEL + 'data: {env_id: "pg_lightning.envs.tasks.toy:Corridor-v0"}\n',
    "installed_env": MODEL + 'data: {env_id: "minigrid:MiniGrid-Empty-5x5-v0"}\n',
    "not_installed_env": MODEL + 'data: {env_id: "not_there_at_all:Env-v0"}\n',
    "env_file": MODEL + "data: {env_id: Ant-v5, env_kwargs: {xml_file: ant.xml}}\n",
    "prompts": MODEL + "data: {prompts: [What is torch.nn?, {prompt: a, answer: b.c}], reward: exact_match}\n",
    "prompts_of_ours": MODEL
    + "data: {prompts: {class_path: pg_lightning.text.brackets.prompts, init_args: {seed: 1}}}\n",
    "rewards": MODEL + "data: {prompts: 'reasoning_gym:leg_counting', reward: [{class_path: "
    "torchmetrics.text.CharErrorRate, weight: -1}, reasoning_gym]}\n",
    "alias": "x: &x CartPole-v1\n" + MODEL + "data: {env_id: *x}\n",
    "optimizer": "model: {class_path: pg_lightning.algorithms.PPO, init_args: {optimizer: torch.optim.AdamW}}\n" + DATA,
    "folder": MODEL + DATA + "trainer: {default_root_dir: some_folder}\n",
    "version_like": MODEL + DATA + "trainer: {logger: {class_path: lightning.pytorch.loggers.TensorBoardLogger, "
    "init_args: {save_dir: runs/x.y/version_0, name: v1.2}}}\n",
    "timeout": MODEL + DATA + "trainer: {strategy: {class_path: lightning.pytorch.strategies.DDPStrategy, "
    "init_args: {timeout: {class_path: datetime.timedelta, init_args: {seconds: 5}}}}}\n",
    "url": MODEL + DATA + "trainer: {logger: {class_path: pg_lightning.run.FaultTolerantWandbLogger, "
    'init_args: {save_dir: ., entity: "http://localhost:80/x"}}}\n',
}
