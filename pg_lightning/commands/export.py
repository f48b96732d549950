"""`python -m pg_lightning export --ckpt_path P`: exports a policy as one file that runs without this package."""

from __future__ import annotations

import importlib.util
import json
import math
import platform
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gymnasium import Space
from lightning.pytorch import Trainer
from torch import Tensor

from pg_lightning.analysis.intervals import confidence_interval
from pg_lightning.commands.policy_graph import (
    TOLERANCE,
    Policy,
    PolicyFormat,
    largest_difference,
    loaded,
    outputs,
    parameters,
    seen,
    to_onnx,
    to_torch,
)
from pg_lightning.commands.weights import load_weights
from pg_lightning.data import RolloutCollector, RolloutDataModule
from pg_lightning.data.datamodule import PREDICT
from pg_lightning.envs import BACKENDS, env_seed, make_vector_env
from pg_lightning.errors import UserError, one_line
from pg_lightning.policies import ActorCritic
from pg_lightning.policies.obs_groups import ObsGroups, seen_space
from pg_lightning.run.checkpoints import read_checkpoint
from pg_lightning.run.config_file import config_of, trained_from
from pg_lightning.run.files import write_file, write_json
from pg_lightning.run.folder import run_folder
from pg_lightning.run.provenance import commit
from pg_lightning.spaces import FlattenedBox
from pg_lightning.version import __version__

SUFFIXES: dict[PolicyFormat, str] = {"onnx": ".onnx", "torch": ".pt2"}
NEEDED: dict[PolicyFormat, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
# The file is checked on this number of rows of this number of environments.
NUM_STEPS, NUM_ENVS = 250, 4

INPUTS = {
    "obs": "observations of the environment (of a Dict, only the entries in obs_groups), in this dtype; normalisation "
    "is part of the graph",
    "action_mask": "info['action_mask'] of the environment: non-zero where an action is allowed",
    "state": "recurrent state: zeros at the start of an episode, then next_state of the previous step",
}
OUTPUTS = {
    "action": "the deterministic action (the mode of the policy), as the environment expects it",
    "next_state": "recurrent state after this step",
}


def export(
    trainer: Trainer, model: Any, data: RolloutDataModule, ckpt_path: str, format: PolicyFormat, folder: Path
) -> Path | None:
    """Writes the policy of a checkpoint as one file, with a card that describes it in JSON.

    Before the file is renamed to its final name, its outputs are compared with the checkpoint's on observations of the
    environment.

    Returns:
        The file, on rank 0.

    Raises:
        UserError: if a package is missing, if the policy cannot be exported, if the outputs of the file differ from the
            checkpoint's, or if it cannot be written.
    """
    _check(model.network, format)
    run = run_folder(Path(ckpt_path))
    env_steps = read_checkpoint(Path(ckpt_path), "meta", "evaluate")["pg_lightning"]["env_steps"]
    result = known_return(run, data, env_steps)
    if result is None:
        trainer.test(model, datamodule=data, ckpt_path=ckpt_path, verbose=False)
    else:
        load_weights(trainer, model, data, Path(ckpt_path))
    if not trainer.is_global_zero:
        return None
    if result is None:
        result = _return_of(model, data)
    model.cpu().float().eval()  # independent of the device and precision of training
    content, checked = _checked_graph(model, data, format)
    file = folder / f"{Path(ckpt_path).stem}{SUFFIXES[format]}"
    card = {
        "file": file.name,
        "format": format,
        "checkpoint": ckpt_path,
        "algorithm": f"{type(model).__module__}.{type(model).__qualname__}",
        **_described_data(data, model.network.groups),
        "env_steps": env_steps,
        "return": result,
        **checked,
        "versions": versions(format),
        "commit": trained_from(run),
        "exported_from_commit": commit(),
        "config": config_of(run),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(file, content)
        write_json(file.with_name(f"{file.name}.json"), _plain(card))
    except OSError as error:
        raise UserError(f"output: cannot write {str(folder)!r}: {error}; give another folder") from error
    (low, high), check = result["ci95"], checked["check"]
    print(
        f"export: return {result['mean']:.1f} (95% interval {low:.1f} to {high:.1f}, {result['source']}); differs from "
        f"the checkpoint by {check['max_abs_difference']:.1e} at most on {check['observations']} observations\n"
        f"written to {file}"
    )
    return file


def _check(network: object, format: PolicyFormat) -> None:
    if not isinstance(network, ActorCritic):
        raise UserError("model.policy: export supports only the built-in network")
    missing = [name for name in NEEDED[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'format: {format} needs {", ".join(missing)}; pip install "pg_lightning[export]"')


def _checked_graph(model: Any, data: RolloutDataModule, format: PolicyFormat) -> tuple[bytes, dict[str, Any]]:
    """The content of the file, and the card's entries `inputs`, `outputs` and `check`.

    Raises:
        UserError: if the policy cannot be exported, or the outputs of the file differ from the module's.
    """
    inputs = met_observations(model, data)
    with torch.no_grad():
        pi, _ = model.network.act(**inputs)
        expected = outputs(model.network, **inputs)
    policy = Policy(model.network).eval()
    inputs = {name: x for name, x in inputs.items() if x is not None}
    inputs["obs"] = seen(model.network, inputs["obs"])
    if "state" in inputs:  # only the recurrent state of the actor
        inputs["state"] = inputs["state"][:, : expected["next_state"].shape[1]]
    content = to_onnx(policy, inputs, list(expected)) if format == "onnx" else to_torch(policy, inputs)
    difference = largest_difference(loaded(content, format), inputs, expected)
    meanings = {**INPUTS, **OUTPUTS, **{name: meaning for name, (_, meaning) in parameters(pi).items()}}
    return content, {
        "inputs": {name: _described_tensor(x, meanings[name]) for name, x in inputs.items()},
        "outputs": {name: _described_tensor(x, meanings[name]) for name, x in expected.items()},
        "check": {
            "observations": len(inputs["obs"]),
            "tolerance": f"{TOLERANCE:g} x max(1, |value|)",
            "max_abs_difference": difference,
        },
    }


def _described_data(data: RolloutDataModule, groups: ObsGroups | None) -> dict[str, Any]:
    return {
        "env_id": data.env_id,
        "env_kwargs": data.env_kwargs or {},
        "wrappers": data.wrappers,
        "backend": data.backend,
        "observation_space": described(data.observation_space),
        "obs_groups": groups and groups["actor"],
        "flattened_from": flattened_from(data, groups),
        "action_space": described(data.action_space),
    }


def known_return(run: Path, data: RolloutDataModule, env_steps: int) -> dict[str, Any] | None:
    """The return in the run's `test.json`, else `validate.json`, if it belongs to this checkpoint."""
    for path in (run / "test.json", run / "validate.json"):
        report = json.loads(path.read_text()) if path.is_file() else {}
        if (report.get("env_id"), report.get("env_steps")) == (data.env_id, env_steps):
            kept = {name: report[name] for name in ("episodes", "deterministic", "seed")}
            return {"mean": report["return_mean"], "ci95": report["return_ci95"], **kept, "source": path.name}
    return None


def _return_of(model: Any, data: RolloutDataModule) -> dict[str, Any]:
    returns = model.evaluation[0].double().cpu().numpy()
    return {
        "mean": float(returns.mean()),
        "ci95": confidence_interval(returns),
        "episodes": len(returns),
        "deterministic": data.eval_deterministic,
        "seed": data.seed,
        "source": "played for this export",
    }


class _RecordingActor:
    """An `Actor` that records its inputs."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.shown: dict[str, list[Tensor | None]] = {"obs": [], "action_mask": [], "state": []}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.actor, name)

    def acting(self) -> AbstractContextManager[Any]:
        """Does not use the Trainer's precision, because the file has its own."""
        return torch.inference_mode()

    def act(self, obs: Tensor, generator: Any, deterministic: bool, action_mask: Any, state: Any) -> Any:
        for name, x in (("obs", obs), ("action_mask", action_mask), ("state", state)):
            self.shown[name].append(None if x is None else x.clone())
        return self.actor.act(obs, generator, deterministic, action_mask, state)


def met_observations(model: Any, data: RolloutDataModule) -> dict[str, Any]:
    """The policy's inputs when it samples actions in its environment: `obs` `[B, *obs]`, `action_mask` `[B, A]`
    and `state` `[B, S]`, None if it has none.
    """
    watched: Any = _RecordingActor(model.actor)
    collector = _few_steps(data)
    try:
        collector.collect(watched)
    finally:
        collector.close()
    return {name: None if xs[0] is None else torch.cat(xs) for name, xs in watched.shown.items()}


def _few_steps(data: RolloutDataModule) -> RolloutCollector:
    """Collects in a few environments of evaluation, or in the one instance if there can be no others."""
    noise = env_seed(data.seed, PREDICT, 0, 0)
    seeds = [env_seed(data.seed, PREDICT, n) for n in range(NUM_ENVS)]
    if data.instance is not None or data.self_play is not None:
        some = {} if data.instance is not None else {"num_envs": NUM_ENVS}
        return data.with_settings(num_steps=NUM_STEPS, whole_episodes=False, **some).make_collector(seeds, noise)
    backend = BACKENDS[data.backend].alone
    env = make_vector_env(data.env_id, NUM_ENVS, data.env_kwargs, data.wrappers, backend)
    return RolloutCollector(env, NUM_STEPS, seeds, noise)


def described(space: Space) -> dict[str, Any]:
    """A space in words, with its shape and dtype."""
    shape = None if space.shape is None else list(space.shape)
    return {"space": one_line(space), "shape": shape, "dtype": str(space.dtype)}


def flattened_from(data: RolloutDataModule, groups: ObsGroups | None) -> str | None:
    """The space of the actor's observations before `gymnasium.spaces.flatten`; None if they are not flattened."""
    space = data.observation_space
    return str(seen_space(space, groups, "actor")) if isinstance(space, FlattenedBox) else None


def _described_tensor(x: Tensor, meaning: str) -> dict[str, Any]:
    return {"shape": ["batch", *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch."), "meaning": meaning}


def versions(format: PolicyFormat) -> dict[str, str]:
    """Versions of the packages that made the file."""
    packages = ("torch", "lightning", "gymnasium", "numpy", *NEEDED[format])
    known = {name: version(name) for name in packages}
    return {"python": platform.python_version(), "pg_lightning": __version__, **known}


def _plain(x: Any) -> Any:
    """Converts to JSON types: infinities to words, other objects to their text."""
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    return x if x is None or isinstance(x, (str, int, float)) else str(x)
