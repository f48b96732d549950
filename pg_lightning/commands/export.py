"""`python -m pg_lightning export --ckpt_path P`: a policy as one file that needs nothing of this package to be run."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import math
import os
import platform
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
import yaml  # type: ignore[import-untyped]
from gymnasium import Space
from lightning.pytorch import Trainer
from torch import Tensor, nn

import pg_lightning
from pg_lightning.callbacks import read_checkpoint, run_folder
from pg_lightning.callbacks.evaluation import confidence_interval
from pg_lightning.callbacks.tracking import commit
from pg_lightning.data import RolloutCollector, RolloutDataModule
from pg_lightning.data.datamodule import PREDICT
from pg_lightning.envs import env_seed, make_env, make_vector_env
from pg_lightning.errors import UserError
from pg_lightning.policies import ActorCritic
from pg_lightning.policies.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
)

PolicyFormat = Literal["onnx", "torch"]
SUFFIXES: dict[PolicyFormat, str] = {"onnx": ".onnx", "torch": ".pt2"}
NEEDED: dict[PolicyFormat, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
# What a file is checked on: this many rows of this many environments.
NUM_STEPS, NUM_ENVS = 250, 4
TOLERANCE = 1e-5  # absolute, and relative to numbers above 1: float32 holds no more digits of those

Tensors = dict[str, Tensor]


class Policy(nn.Module):
    """What a policy is to those who play it: a function of `[B, *obs]` observations, of one step, in one graph.

    Args:
        network: of which a copy is made, without the critic and without gradients.
    """

    def __init__(self, network: ActorCritic) -> None:
        super().__init__()
        self.actor = deepcopy(network).requires_grad_(False)
        self.actor.critic_torso = self.actor.critic_memory = None
        self.actor.critic_head = self.actor.value_normalizer = None

    def forward(self, obs: Tensor, action_mask: Tensor | None = None, state: Tensor | None = None) -> Tensors:
        """The mode as the environment wants it, what to sample from, and the actor's memory after this step."""
        return outputs(self.actor, obs, action_mask, state)


def outputs(network: ActorCritic, obs: Tensor, action_mask: Tensor | None, state: Tensor | None) -> Tensors:
    """`action` `[B, *action]`, the parameters of π by name, and `next_state` `[B, S]` for a policy with memory."""
    pi, state = network.act(obs, action_mask, state)
    found = {"action": network.actor_head.env_actions(pi.mode)}
    found |= {name: parameter for name, (parameter, _) in parameters(pi).items()}
    if network.actor_memory is not None and state is not None:
        found["next_state"] = state[:, : network.actor_memory.state_size]
    return found


def parameters(pi: Distribution) -> dict[str, tuple[Tensor, str]]:
    """What one needs to sample from a distribution: tensors `[B, ...]`, and what they mean. Of one that is not known
    here: nothing.
    """
    match pi:
        case Categorical():
            return {"logits": (pi.logits, "softmax gives the probability of each choice, the space's first first")}
        case MultiCategorical():
            meaning = "softmax over the last dimension gives the probabilities of each choice; the lowest are padding"
            return {"logits": (pi.choices.logits, meaning)}
        case Bernoulli():
            return {"logits": (pi.logits, "the sigmoid gives the probability of 1 for each bit")}
        case DiagonalGaussian():
            meaning = "{} of a normal distribution; a sample of it is to be clipped to the bounds of the space"
            return _of_normal(pi, meaning)
        case SquashedGaussian():
            meaning = "{} of a normal distribution of u; the action is low + (high - low) (tanh u + 1) / 2"
            return _of_normal(pi.normal, meaning)
        case Beta():
            meaning = "{} of a beta distribution of x; the action is low + (high - low) x"
            return {name: (getattr(pi, name), meaning.format(name)) for name in ("alpha", "beta")}
    return {}


def _of_normal(normal: DiagonalGaussian, meaning: str) -> dict[str, tuple[Tensor, str]]:
    mean, log_std = normal.mean, normal.log_std.expand_as(normal.mean)
    return {
        "mean": (mean, meaning.format("mean")),
        "log_std": (log_std, meaning.format("logarithm of the standard deviation")),
    }


INPUTS = {
    "obs": "observations as the environment gives them, in this dtype; scaling is part of the graph",
    "action_mask": "info['action_mask'] of the environment: non-zero where an action is allowed",
    "state": "memory: zeros where an episode begins, after that next_state of the step before",
}
OUTPUTS = {
    "action": "the action of a policy that does not explore (its mode), as the environment wants it",
    "next_state": "memory after this step",
}


def export(
    trainer: Trainer, model: Any, data: RolloutDataModule, ckpt_path: str, format: PolicyFormat, folder: Path
) -> Path | None:
    """Writes the policy of a checkpoint as one file, and beside it a card: what it is, in JSON.

    Before it gets its name, the file is played on observations that its environment gives, and must say what the
    checkpoint says.

    Returns:
        The file, on rank 0.

    Raises:
        UserError: if a package is missing, if the policy cannot be expressed, if the file would not say what the
            checkpoint says, or cannot be written.
    """
    missing = [name for name in NEEDED[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'format: {format} needs {", ".join(missing)}; pip install "pg_lightning[export]"')
    run = run_folder(Path(ckpt_path))
    env_steps = read_checkpoint(Path(ckpt_path), "meta")["pg_lightning"]["env_steps"]
    result = known_return(run, data, env_steps)
    trainer.limit_test_batches = 1.0 if result is None else 0  # the weights are loaded in any case
    trainer.test(model, datamodule=data, ckpt_path=ckpt_path, verbose=False)
    if not trainer.is_global_zero:
        return None
    if result is None:
        result = _return_of(model, data)
    model.cpu().float().eval()  # whatever it was trained on, and in
    inputs = met_observations(model, data)
    with torch.no_grad():
        pi, _ = model.network.act(**inputs)
        expected = outputs(model.network, **inputs)
    policy = Policy(model.network).eval()
    inputs = {name: x for name, x in inputs.items() if x is not None}
    if "state" in inputs:  # of the actor's memory alone
        inputs["state"] = inputs["state"][:, : expected["next_state"].shape[1]]
    content = to_onnx(policy, inputs, list(expected)) if format == "onnx" else to_torch(policy, inputs)
    difference = largest_difference(loaded(content, format), inputs, expected)
    file = folder / f"{Path(ckpt_path).stem}{SUFFIXES[format]}"
    meanings = {**INPUTS, **OUTPUTS, **{name: meaning for name, (_, meaning) in parameters(pi).items()}}
    card = {
        "file": file.name,
        "format": format,
        "checkpoint": ckpt_path,
        "algorithm": f"{type(model).__module__}.{type(model).__qualname__}",
        "env_id": data.env_id,
        "env_kwargs": data.env_kwargs or {},
        "wrappers": data.wrappers,
        "backend": data.backend,
        "observation_space": described(data.observation_space),
        "flattened_from": flattened_from(data),
        "action_space": described(data.action_space),
        "env_steps": env_steps,
        "return": result,
        "inputs": {name: _described_tensor(x, meanings[name]) for name, x in inputs.items()},
        "outputs": {name: _described_tensor(x, meanings[name]) for name, x in expected.items()},
        "check": {
            "observations": len(inputs["obs"]),
            "tolerance": f"{TOLERANCE:g} x max(1, |value|)",
            "max_abs_difference": difference,
        },
        "versions": versions(format),
        "commit": trained_from(run),
        "exported_from_commit": commit(),
        "config": config_of(run),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, content)
        _write(file.with_name(f"{file.name}.json"), (json.dumps(_plain(card), indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"output: cannot write {str(folder)!r}: {error}; give another folder") from error
    low, high = result["ci95"]
    print(
        f"export: return {result['mean']:.1f} (95% interval {low:.1f} to {high:.1f}, {result['source']}); differs from "
        f"the checkpoint by {difference:.1e} at most on {len(inputs['obs'])} observations\nwritten to {file}"
    )
    return file


def known_return(run: Path, data: RolloutDataModule, env_steps: int) -> dict[str, Any] | None:
    """The return in the run's `test.json`, else `validate.json`, if that is of this checkpoint."""
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


class _Watched:
    """An `Actor` that keeps what it is shown."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.shown: dict[str, list[Tensor | None]] = {"obs": [], "action_mask": [], "state": []}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.actor, name)

    def acting(self) -> AbstractContextManager[Any]:
        """Not in the Trainer's precision: the file has none but its own."""
        return torch.inference_mode()

    def act(self, obs: Tensor, generator: Any, deterministic: bool, action_mask: Any, state: Any) -> Any:
        for name, x in (("obs", obs), ("action_mask", action_mask), ("state", state)):
            self.shown[name].append(None if x is None else x.clone())
        return self.actor.act(obs, generator, deterministic, action_mask, state)


def met_observations(model: Any, data: RolloutDataModule) -> dict[str, Any]:
    """What the policy sees of its environment when it samples actions there: `obs` `[B, *obs]`, `action_mask` `[B, A]`
    and `state` `[B, S]`, None where it has none.
    """
    backend: Literal["envpool", "sync"] = "envpool" if data.backend == "envpool" else "sync"
    env = make_vector_env(data.env_id, NUM_ENVS, data.env_kwargs, data.wrappers, backend)
    watched: Any = _Watched(model.actor)
    try:
        seeds = [env_seed(data.seed, PREDICT, n) for n in range(NUM_ENVS)]
        RolloutCollector(env, NUM_STEPS, seeds, env_seed(data.seed, PREDICT, 0, 0)).collect(watched)
    finally:
        env.close()
    return {name: None if xs[0] is None else torch.cat(xs) for name, xs in watched.shown.items()}


def to_torch(policy: Policy, inputs: Tensors) -> bytes:
    """A program that `torch.export.load` reads."""
    file = io.BytesIO()
    torch.export.save(_program(policy, inputs), file)
    return file.getvalue()


def to_onnx(policy: Policy, inputs: Tensors, names: list[str]) -> bytes:
    """An ONNX model whose outputs have these names."""
    program = _program(policy, inputs)
    logger = logging.getLogger("torch.onnx")
    level, logger.level = logger.level, logging.ERROR  # it speaks of torchvision, which nobody has asked for
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that several axes have one name
            model = torch.onnx.export(
                program,
                kwargs=inputs,
                input_names=list(inputs),
                output_names=names,
                dynamic_shapes={name: {0: "batch"} for name in inputs},
                verbose=False,
            )
    except Exception as error:
        raise _not_expressed("ONNX", error) from error
    finally:
        logger.level = level
    assert model is not None
    return model.model_proto.SerializeToString()


def _program(policy: Policy, inputs: Tensors) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")  # the same of all
    dynamic = {name: {0: batch} for name in inputs}
    try:
        # Of more than one row: what has one is taken to have no other number.
        return torch.export.export(policy, (), {name: x[:2] for name, x in inputs.items()}, dynamic_shapes=dynamic)
    except Exception as error:
        raise _not_expressed("torch.export", error) from error


def _not_expressed(form: str, error: Exception) -> UserError:
    cause = error.__cause__ or error  # torch.onnx wraps it in advice
    reason = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
    return UserError(f"model: {form} cannot express this policy, with its torso or head: {reason}")


def loaded(content: bytes, format: PolicyFormat) -> Callable[[Tensors], Tensors]:
    """The policy in a file, as a function of its inputs."""
    if format == "torch":
        module = torch.export.load(io.BytesIO(content)).module()
        return lambda inputs: module(**inputs)
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> Tensors:
        values = session.run(names, {name: x.numpy() for name, x in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


def largest_difference(policy: Callable[[Tensors], Tensors], inputs: Tensors, expected: Tensors) -> float:
    """The largest absolute difference of any output, of all rows at once and of the first row alone.

    Raises:
        UserError: if one is beyond the tolerance.
    """
    largest = 0.0
    for rows in (slice(None), slice(1)):
        with torch.no_grad():
            found = policy({name: x[rows] for name, x in inputs.items()})
        for name, value in expected.items():
            wanted, got = value[rows].double(), found[name].double()
            if found[name].dtype != value.dtype or got.shape != wanted.shape:
                raise UserError(
                    f"model: {name} of the export is not what it is of the checkpoint: {_kind(found[name])}"
                )
            difference = (got - wanted).abs()
            within = difference <= TOLERANCE * wanted.abs().clamp(min=1.0)
            if value.is_floating_point():
                largest = max(largest, difference.max().item())
            else:
                within = difference == 0
            if not within.all():
                apart = int((~within).flatten(1).any(1).sum()) if within.dim() > 1 else int((~within).sum())
                raise UserError(
                    f"model: {name} of the export differs from that of the checkpoint in {apart} of {len(within)} "
                    f"observations, by up to {difference.max().item():.1e}; nothing is written"
                )
    return largest


def described(space: Space) -> dict[str, Any]:
    """A space in words, with its shape and dtype."""
    shape = None if space.shape is None else list(space.shape)
    return {"space": " ".join(str(space).split()), "shape": shape, "dtype": str(space.dtype)}


def flattened_from(data: RolloutDataModule) -> str | None:
    """The space of observations that `gymnasium.spaces.flatten` is to be applied to; None where nothing is."""
    env = make_env(data.env_id, data.env_kwargs, data.wrappers, data.backend)
    env.close()
    return str(env.env.observation_space) if isinstance(env, gym.wrappers.FlattenObservation) else None


def _described_tensor(x: Tensor, meaning: str) -> dict[str, Any]:
    return {"shape": ["batch", *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch."), "meaning": meaning}


def _kind(x: Tensor) -> str:
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def versions(format: PolicyFormat) -> dict[str, str]:
    """Of what the file was made with."""
    packages = ("torch", "lightning", "gymnasium", "numpy", *NEEDED[format])
    known = {name: version(name) for name in packages}
    return {"python": platform.python_version(), "pg_lightning": pg_lightning.__version__, **known}


def trained_from(run: Path) -> str | None:
    """The commit that a run's `config.yaml` names in its first line."""
    path = run / "config.yaml"
    named = re.match(r"# .*commit ([0-9a-f]+\+?)", path.read_text()) if path.is_file() else None
    return named[1] if named else None


def config_of(run: Path) -> Any:
    """The `config.yaml` of a run; None if there is none."""
    path = run / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else None


def _plain(x: Any) -> Any:
    """What JSON can hold: infinities as words, objects as what they say of themselves."""
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    return x if x is None or isinstance(x, (str, int, float)) else str(x)


def _write(path: Path, content: bytes) -> None:
    """Whole, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
