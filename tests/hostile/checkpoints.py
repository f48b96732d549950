"""Damaged and malicious checkpoints, each made from one that is whole, with what must happen to it.

`REFUSED` in one line; `SAME`, accepted with the effect of the whole checkpoint, because the damaged field is not used;
or `UNHARMED`, either of them. `fit` needs all parts of a checkpoint, an evaluation (`test`, `validate`, `predict`) the
weights and counters, and `load` the weights and the description of the policy.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Checkpoint = dict[str, Any]
REFUSED, SAME, UNHARMED = "refused", "same", "unharmed"
PATHS = ("fit", "test", "load")


@dataclass(frozen=True)
class Case:
    """A checkpoint and its right treatment.

    Attributes:
        name: of the damage.
        make: the damaged file, from that of a whole checkpoint and a folder that must survive.
        fit, test, load: what must happen there.
    """

    name: str
    make: Callable[[bytes, Path], bytes]
    fit: str = REFUSED
    test: str = REFUSED
    load: str = REFUSED


def edited(name: str, change: Callable[[Checkpoint, Path], None], **expected: str) -> Case:
    """A case with a change of the content."""

    def make(whole: bytes, victim: Path) -> bytes:
        checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
        change(checkpoint, victim)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        return buffer.getvalue()

    return Case(name, make, **expected)


def at(path: str, value: Any, **expected: str) -> Case:
    """A case with another value at a path such as `optimizer_states.0.state.0.step`; `...` deletes it."""

    def change(checkpoint: Checkpoint, victim: Path) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        x: Any = checkpoint
        for part in way:
            x = x[next((key for key in x if str(key).startswith(part[:-1])), part) if str(part).endswith("*") else part]
        if value is ...:
            del x[last]
        else:
            x[last] = value(x[last]) if callable(value) else value

    shown = "deleted" if value is ... else getattr(value, "__name__", repr(value)[:30])
    return edited(f"{path} {shown}", change, **expected)


def nan(x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, torch.nan)


def infinite(x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, torch.inf)


def negative(x: torch.Tensor) -> torch.Tensor:
    return -x.abs() - 1


def longer(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x])


def expanded(x: torch.Tensor) -> torch.Tensor:
    return x.flatten()[:1].expand(x.numel()).view(x.shape)


def listed(x: torch.Tensor) -> Any:
    return x.tolist()


def whole_numbers(x: torch.Tensor) -> torch.Tensor:
    return x.long()


def halved(x: torch.Tensor) -> torch.Tensor:
    return x.half()


def complex_numbers(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.complex64)


def meaningless(x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, 255)


FIT_ONLY = {"test": SAME, "load": SAME}
NOT_LOAD = {"load": SAME}
EVERYWHERE: dict[str, str] = {}
UNUSED = {"fit": SAME, "test": SAME, "load": SAME}
EMPTY = torch.zeros(0)


def parts() -> Iterator[Case]:
    """Whole parts that are gone, or of another type."""
    needed = {
        **dict.fromkeys(("state_dict", "pg_lightning"), EVERYWHERE),
        "pytorch-lightning_version": NOT_LOAD,
        **dict.fromkeys(("epoch", "global_step", "loops", "optimizer_states", "lr_schedulers"), FIT_ONLY),
        "callbacks": FIT_ONLY,
        "RolloutDataModule": FIT_ONLY,
    }
    for name, expected in needed.items():
        yield at(name, ..., **expected)
        optional = name in ("callbacks", "RolloutDataModule")  # the content is checked wherever it is used
        for value in (None, "text", [[]]):
            yield at(name, value, **(NOT_LOAD if optional else expected))
    yield at("hyper_parameters", [1], **NOT_LOAD)
    yield at("hyper_parameters", ..., **UNUSED)
    yield at("a part of another program", {"x": [1, 2]}, **UNUSED)
    for version in ("1.0.0", "abc", "", 3, "9" * 50 + ".0"):
        yield at("pytorch-lightning_version", version, **NOT_LOAD)


def weights() -> Iterator[Case]:
    """Weights and running statistics."""
    name = "state_dict/network.actor_head.linear.weight"
    for change in (nan, infinite, longer, listed, complex_numbers, whole_numbers, 0.5, None, "x"):
        yield at(name, change)
    yield at(name, ...)
    yield at("state_dict/network.more", torch.zeros(3))
    yield at("state_dict", {})
    for kind, load in (("network.normalizer.statistics", REFUSED), ("reward_scaler.statistics", SAME)):
        for part in ("var", "count"):
            yield at(f"state_dict/{kind}.{part}", negative, load=load)
            yield at(f"state_dict/{kind}.{part}", nan, load=load)
        yield at(f"state_dict/{kind}.mean", infinite, load=load)


def optimizers() -> Iterator[Case]:
    """Moments and options."""
    state, group = "optimizer_states/0/state/0", "optimizer_states/0/param_groups/0"
    yield at(f"{state}/exp_avg", expanded)  # for any use: the file itself is not as torch.save makes it from ours
    for change in (nan, infinite, longer, listed, whole_numbers, halved, torch.zeros(3), torch.zeros(0), 1):
        yield at(f"{state}/exp_avg", change, **FIT_ONLY)
    for change in (negative, nan, None):
        yield at(f"{state}/exp_avg_sq", change, **FIT_ONLY)
    for change in (negative, nan, torch.zeros(2), "1", None):
        yield at(f"{state}/step", change, **FIT_ONLY)
    yield at(f"{state}/exp_avg", ..., **FIT_ONLY)
    yield at(f"{state}/more", torch.zeros(3), **FIT_ONLY)
    yield at("optimizer_states/0/state", {}, **FIT_ONLY)
    yield at("optimizer_states/0/state/0", ..., **FIT_ONLY)
    yield at("optimizer_states/0/state", lambda x: {0: x[0], 7: x[1]}, **FIT_ONLY)
    yield at("optimizer_states/0/param_groups", ..., **FIT_ONLY)
    yield at("optimizer_states", [], **FIT_ONLY)
    yield at("optimizer_states", lambda x: [*x, *x], **FIT_ONLY)
    yield at("optimizer_states/0/param_groups", lambda x: x[:1], **FIT_ONLY)
    yield at("optimizer_states/0/param_groups", lambda x: x[::-1], **FIT_ONLY)
    for lr in (float("nan"), float("inf"), -1.0, "0.1", [0.1], True, None, torch.zeros(3)):
        yield at(f"{group}/lr", lr, **FIT_ONLY)
    yield at(f"{group}/lr", ..., **FIT_ONLY)
    yield at(f"{group}/params", [5], **FIT_ONLY)
    yield at(f"{group}/name", "critic", **FIT_ONLY)
    for betas in ((float("nan"), 0.9), ("a", "b"), 0.9):
        yield at(f"{group}/betas", betas, **FIT_ONLY)
    # Options of the config, not of the checkpoint.
    for option, value in (("maximize", True), ("fused", False), ("eps", "x"), ("weight_decay", 9.0), ("amsgrad", True)):
        yield at(f"{group}/{option}", value, **UNUSED)
    yield at(f"{group}/eps", ..., **UNUSED)


def schedulers() -> Iterator[Case]:
    """Of the class StepLR."""
    state = "lr_schedulers/0"
    for key, value in (("last_epoch", "x"), ("last_epoch", None), ("_last_lr", [float("nan")] * 2), ("_last_lr", 3)):
        yield at(f"{state}/{key}", value, **FIT_ONLY)
    for key, value in (("gamma", 2.0), ("gamma", "x"), ("step_size", 1), ("base_lrs", [0.1])):
        yield at(f"{state}/{key}", value, **FIT_ONLY)
    for key in ("step", "optimizer", "__class__", "get_lr"):
        yield at(f"{state}/{key}", "x", **FIT_ONLY)
    yield at(f"{state}/gamma", ..., **FIT_ONLY)
    yield at("lr_schedulers", [], **FIT_ONLY)
    yield at("lr_schedulers", [None], **FIT_ONLY)


def loops() -> Iterator[Case]:
    """Lightning's counters."""
    fit_loop = "loops/fit_loop"
    steps = f"{fit_loop}/epoch_loop.manual_optimization.optim_step_progress"
    yield at(fit_loop, ..., **FIT_ONLY)
    yield at(fit_loop, {}, **FIT_ONLY)
    yield at(steps, ..., **FIT_ONLY)
    for value in (-1, 1.5, "1", None, True, [1], 10**6, 2**70):
        yield at(f"{steps}/total/completed", value, **FIT_ONLY)
    yield at(f"{fit_loop}/epoch_progress/current", None, **FIT_ONLY)
    yield at(f"{fit_loop}/epoch_progress/current/completed", 5, **FIT_ONLY)
    yield at(f"{fit_loop}/epoch_loop.batch_progress/total", ..., **FIT_ONLY)
    yield at(f"{fit_loop}/epoch_loop.batch_progress/is_last_batch", "no", **FIT_ONLY)
    yield at(f"{fit_loop}/epoch_loop.batch_progress/current/ready", 0, **FIT_ONLY)
    yield at("global_step", 1, **FIT_ONLY)
    yield at("epoch", 3, **FIT_ONLY)
    yield at("loops/test_loop", "x", **UNUSED)


def callbacks() -> Iterator[Case]:
    """Random generators, schedules, scores."""
    rank = "callbacks/RandomStates/ranks/0"
    used = NOT_LOAD  # whatever has a known callback's name is checked
    yield at("callbacks/RandomStates", ..., **FIT_ONLY)
    yield at("callbacks", {}, **FIT_ONLY)
    yield at("callbacks/RandomStates", None, **used)
    for value in ([], None, [None], {}):
        yield at("callbacks/RandomStates/ranks", value, **used)
    for value in (torch.zeros(3, dtype=torch.uint8), meaningless, lambda x: x.float(), None, "x", longer):
        yield at(f"{rank}/torch", value, **used)
    for i, value in ((0, "PCG64"), (1, torch.zeros(3)), (2, 10**6), (2, -1), (3, "x"), (4, "x")):
        yield at(f"{rank}/numpy", lambda x, i=i, value=value: (*x[:i], value, *x[i + 1 :]), **used)
    for value in (None, (3, (1, 2), None), lambda x: (x[0], (*x[1][:-1], 10**6), x[2]), lambda x: (9, *x[1:])):
        yield at(f"{rank}/python", value, **used)
    yield at(f"{rank}/seed", "x", **used)
    yield at(f"{rank}/cuda", torch.zeros(3), **used)
    yield at("callbacks/EvaluateEverySteps", ..., **FIT_ONLY)
    for value in ("yes", 1, None):
        yield at("callbacks/EvaluateEverySteps/due", value, **used)
    for value in (-1, "x", 10**30, 1.5, None):
        yield at("callbacks/ContinuedMetrics/rows", value, **used)
    for value in ([1], [{"a": 1}], "x"):
        yield at("callbacks/ContinuedMetrics/unwritten", value, **used)
    best = "callbacks/RunCheckpoint{'monitor': 'val*"
    yield at(f"{best}/best_model_score", torch.tensor(1e9), **used)
    for value in (torch.tensor(torch.nan), "x", torch.zeros(2), None):
        yield at(f"{best}/best_model_score", value, **used)
    yield at(f"{best}/kth_value", torch.tensor(-1e9), **used)
    yield at(f"{best}/best_k_models", {}, **used)
    yield at(f"{best}/best_k_models", [1], **used)
    yield at(f"{best}/best_model_path", 3, **used)
    yield at(f"{best}/failed", "x", **used)
    yield at("callbacks/Somebody's own", {"x": [1, "y", torch.zeros(2)]}, **UNUSED)


def own() -> Iterator[Case]:
    """The package's counters, names, episodes."""
    for name in ("env_steps", "policy_version"):
        for value in (-1, "64", 1.5, True, 2**70, None, [1]):
            yield at(f"pg_lightning/{name}", value)
        yield at(f"pg_lightning/{name}", ...)
    yield at("pg_lightning/policy_version", 10**9)
    yield at("pg_lightning/previous_version", 10**9)
    for name in ("optimizer", "observation_space", "action_space"):
        yield at(f"pg_lightning/{name}", None)
    yield at("pg_lightning/lr_schedule", [1])
    yield at("pg_lightning/obs_groups", 3, **NOT_LOAD)
    for value in (None, {}, [None], [[]], "x"):
        yield at("pg_lightning/ranks", value)
    for value in ([], ..., lambda x: [*x, *x]):
        yield at("pg_lightning/ranks", value, **FIT_ONLY)
    rank = "pg_lightning/ranks/0"
    for value in (EMPTY, nan, listed, whole_numbers):
        yield at(f"{rank}/discounted_returns", value, **(FIT_ONLY if value is EMPTY else EVERYWHERE))
    yield at(f"{rank}/episode_lengths", lambda x: torch.zeros(len(x) + 1))
    yield at(f"{rank}/episode_returns", "x")
    policy = "pg_lightning/policy"
    for value in (None, "x", {}, {"class_path": "os.system", "init_args": {}}, {"class_path": 3, "init_args": {}}):
        used = isinstance(value, dict) and isinstance(value.get("class_path"), str)
        yield at(policy, value, **({"fit": SAME, "test": SAME} if used else {}))
    here = {"fit": SAME, "test": SAME}
    for key, value in (("hidden_sizes", [10**6, 10**6]), ("hidden_sizes", "x"), ("hidden_sizes", [1] * 10**5)):
        yield at(f"{policy}/init_args/{key}", value, **here)
    for value in ({"space": "Box", "low": 0.0, "high": 1.0, "shape": [10**12], "dtype": "float32"}, {"space": "X"}, {}):
        yield at(f"{policy}/init_args/observation_space", value, **here)
    yield at(f"{policy}/init_args/action_space/n", 10**12, **here)
    yield at(f"{policy}/init_args/torso", {"class_path": "antigravity.fly", "init_args": {}}, **here)


def data() -> Iterator[Case]:
    """Episodes under way."""
    part, rank = "RolloutDataModule", "RolloutDataModule/ranks/0"
    for value in (None, 3, "Pendulum-v1"):
        yield at(f"{part}/env_id", value, **NOT_LOAD)
    yield at(f"{part}/settings", [1], **NOT_LOAD)
    yield at(f"{part}/settings/num_envs", 2, **NOT_LOAD)
    yield at(f"{part}/settings/seed", ..., fit=UNHARMED, **FIT_ONLY)  # then new episodes start
    for value in ("x", [1], {}):
        yield at(f"{part}/ranks", value, **NOT_LOAD)
    for key in ("obs", "returns", "lengths", "in_reset_row", "generator", "envs"):
        yield at(f"{rank}/{key}", ..., **FIT_ONLY)
        yield at(f"{rank}/{key}", "x", **FIT_ONLY)
    for key in ("obs", "returns", "lengths", "in_reset_row"):
        yield at(f"{rank}/{key}", longer, **FIT_ONLY)
        yield at(f"{rank}/{key}", listed, **FIT_ONLY)
    yield at(f"{rank}/memory", torch.zeros(2, 3), **FIT_ONLY)
    yield at(f"{rank}/action_mask", torch.zeros(2, 9), **FIT_ONLY)
    yield at(f"{rank}/generator", ("cpu", torch.zeros(7, dtype=torch.uint8)), **FIT_ONLY)
    yield at(f"{rank}/lengths", negative, **FIT_ONLY)
    twister = {"bit_generator": "MT19937", "state": {"key": torch.zeros(624), "pos": 10**6}}
    yield at(f"{rank}/envs/beginnings/0/before", twister, **NOT_LOAD)


def names() -> Iterator[Case]:
    """Paths in the state of callbacks that save; nothing may happen to what they name."""
    forms = ("local://{}", "{}", "file://{}", "{}/weights.ckpt", "local://{}/weights.ckpt", "checkpoints/../../{}")
    for who in ("RunCheckpoint{'monitor': 'val", "RunCheckpoint{'monitor': None", *MODEL_CHECKPOINTS):
        for field in ("best_model_path", "kth_best_model_path", "last_model_path", "dirpath", "best_k_models"):
            for form in forms:
                yield _named(who, field, form)


MODEL_CHECKPOINTS = ("ModelCheckpoint{'monitor': 'val", "ModelCheckpoint{'monitor': None")


def _named(who: str, field: str, form: str) -> Case:
    """The state is consistent, and its scores are so low that the next save removes what is named."""

    def change(checkpoint: Checkpoint, victim: Path) -> None:
        states = checkpoint["callbacks"]
        state = next(state for key, state in states.items() if key.startswith(who))
        target, low = form.format(victim), torch.tensor(-1e9)
        models = dict.fromkeys(state["best_k_models"], low)
        if field == "best_k_models":
            models = dict.fromkeys([target, *list(models)[1:]], low)
            state |= {"best_model_path": target, "kth_best_model_path": target}
        else:
            old, state[field] = state[field], target
            models = {(target if path == old else path): score for path, score in models.items()}
            for other in ("best_model_path", "kth_best_model_path"):
                if old and state[other] == old:
                    state[other] = target
        state["best_k_models"] = models
        if models:
            state |= {"best_model_score": low, "kth_value": low}

    return edited(f"{who} {field} names {form}", change, fit=UNHARMED, test=UNHARMED, load=SAME)


# Files.


def files() -> Iterator[Case]:
    """Archives and pickles that torch.save did not write."""
    yield Case("empty", lambda whole, _: b"")
    yield Case("text", lambda whole, _: b"state_dict: {}\n" * 100)
    for share in (0.1, 0.5, 0.9, 0.999):
        yield Case(f"truncated to {share}", lambda whole, _, share=share: whole[: int(len(whole) * share)])
    yield Case("a flipped bit", _flipped)
    yield Case("without zip", _legacy)
    yield Case("compressed", lambda whole, _: _zipped(_records(whole), zipfile.ZIP_DEFLATED))
    yield Case("compressed zeros", _bomb)
    yield Case("a storage that is shorter than declared", lambda whole, _: _resized(whole, 0.5))
    yield Case("a storage that is longer than declared", lambda whole, _: _resized(whole, 2))
    yield Case("a storage that is not there", lambda whole, _: _resized(whole, None))
    yield Case("a tensor that goes beyond its storage", _beyond)
    yield Case("overlapping entries", _overlapping)
    yield Case(
        "without data.pkl", lambda whole, _: _zipped({k: v for k, v in _records(whole).items() if "pkl" not in k})
    )
    yield Case("an entry twice", _twice)
    for name, content in PICKLES.items():
        yield Case(f"pickle: {name}", lambda whole, _, content=content: _with_pickle(whole, content))
    for name, value in (("depth", _deep()), ("a loop", _loop()), ("many references to one list", _shared())):
        yield edited(name, lambda checkpoint, _, value=value: checkpoint.update(more=value))
    yield edited("stride 0", lambda c, _: c.update(more=torch.zeros(1).expand(10**12)))
    yield edited("overlapping strides", lambda c, _: c.update(more=torch.zeros(100).as_strided((50, 50), (1, 1))))


def _call(function: str, *arguments: object) -> bytes:
    """A pickle that calls a function, as an attacker would write it."""
    module, _, name = function.rpartition(".")
    made = io.BytesIO()
    made.write(pickle.PROTO + b"\x02" + pickle.GLOBAL + f"{module}\n{name}\n".encode() + pickle.MARK)
    for argument in arguments:
        body = pickle.dumps(argument, 2)[2:-1]
        made.write(body)
    made.write(pickle.TUPLE + pickle.REDUCE + pickle.STOP)
    return made.getvalue()


PWNED = "touch PWNED"
PICKLES = {
    "os.system": _call("os.system", PWNED),
    "posix.system": _call("posix.system", PWNED),
    "eval": _call("builtins.eval", "open('PWNED', 'w')"),
    "exec": _call("builtins.exec", "open('PWNED', 'w')"),
    "subprocess": _call("subprocess.getoutput", PWNED),
    "an import": _call("antigravity.geohash", 1.0, 2.0, b"3"),
    "a bytearray of 100 GB": _call("builtins.bytearray", 10**11),
    "a tensor of 100 GB": _call("torch.Tensor", 10**11),
    "a storage of 100 GB": _call("torch.FloatStorage", 10**11),
    "a file": _call("io.open", "PWNED", "w"),
    "torch.load": _call("torch.load", "PWNED"),
    "an index of 2**31": pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + b"r" + struct.pack("<I", 2**31 - 1) + pickle.STOP,
    "lists in lists": pickle.PROTO + b"\x02" + pickle.EMPTY_LIST * 6_000_000 + pickle.STOP,
    "nothing": b"",
    "no end": pickle.PROTO + b"\x02" + pickle.EMPTY_DICT,
    "text": b"hello",
    "a number": pickle.dumps(3, 2),
}


def _records(whole: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _with_pickle(whole: bytes, content: bytes) -> bytes:
    records = _records(whole)
    return _zipped({name: content if name.endswith("/data.pkl") else x for name, x in records.items()})


def _largest(records: dict[str, bytes]) -> str:
    return max((name for name in records if "/data/" in name), key=lambda name: len(records[name]))


def _resized(whole: bytes, factor: float | None) -> bytes:
    records = _records(whole)
    name = _largest(records)
    content = records.pop(name)
    if factor is not None:
        records[name] = (content * 2)[: int(len(content) * factor)]
    return _zipped(records)


def _beyond(whole: bytes, _: Path) -> bytes:
    """Of 54,321 elements, in a storage of 20,000; a checkpoint of 1,234 of them is what torch has written."""
    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    buffer = io.BytesIO()
    torch.save({**checkpoint, "more": torch.zeros(20_000)[:1234]}, buffer)
    content = next(x for name, x in _records(buffer.getvalue()).items() if name.endswith("/data.pkl"))
    before, after = (b"M" + struct.pack("<H", size) + pickle.TUPLE1 for size in (1234, 54321))
    assert content.count(before) == 1
    return _with_pickle(buffer.getvalue(), content.replace(before, after))


def _bomb(whole: bytes, _: Path) -> bytes:
    records = _records(whole)
    records[_largest(records)] = bytes(50 * 2**20)
    return _zipped(records, zipfile.ZIP_DEFLATED)


def _without_pickle(whole: bytes, _: Path) -> bytes:
    return _zipped({name: content for name, content in _records(whole).items() if "pkl" not in name})


def _flipped(whole: bytes, _: Path) -> bytes:
    content = bytearray(whole)
    content[whole.index(_records(whole)[_largest(_records(whole))]) + 5] ^= 1
    return bytes(content)


def _legacy(whole: bytes, _: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.load(io.BytesIO(whole), weights_only=True), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _overlapping(whole: bytes, _: Path) -> bytes:
    """Fifty entries of the directory for the same bytes of the file."""
    end = whole.rindex(b"PK\x05\x06")
    _, _, _, count, _, size, start, _ = struct.unpack("<4s4H2LH", whole[end : end + 22])
    directory = whole[start : start + size]
    records = _records(whole)
    large = _largest(records).encode()
    entry = directory[: directory.index(large)].rindex(b"PK\x01\x02")
    length = 46 + sum(struct.unpack("<3H", directory[entry + 28 : entry + 34]))
    copies = b""
    for i in range(50):
        name = large[:-2] + f"{i + 50}".encode()
        copies += directory[entry : entry + 28] + struct.pack("<H", len(name)) + directory[entry + 30 : entry + 46]
        copies += name + directory[entry + 46 + len(large) : entry + length]
    more = directory + copies
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count + 50, count + 50, len(more), start, 0)
    return whole[:start] + more + tail


def _twice(whole: bytes, _: Path) -> bytes:
    buffer = io.BytesIO(whole)
    with zipfile.ZipFile(buffer, "a") as archive:
        name = _largest(_records(whole))
        archive.writestr(f"{name}x", b"")
        archive.infolist()[-1].filename = name  # written to the directory when the archive is closed
    return buffer.getvalue()


def _deep() -> list[Any]:
    made: list[Any] = []
    for _ in range(300):
        made = [made]
    return made


def _loop() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def _shared() -> list[Any]:
    made: list[Any] = [0] * 10
    for _ in range(30):
        made = [made, made, made]
    return made


CASES = [
    *parts(),
    *weights(),
    *optimizers(),
    *schedulers(),
    *loops(),
    *callbacks(),
    *own(),
    *data(),
    *names(),
    *files(),
]
