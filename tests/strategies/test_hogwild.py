"""The hogwild strategy: forked workers that share memory and nothing else; one of them reports."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from warm import WarmProcess, start_server

from pg_lightning.errors import UserError
from pg_lightning.strategies import HogwildStrategy, WorkerError

STEPS = 4
SEEN = (
    "steps",
    "pid",
    "rank",
    "global_zero",
    "world_size",
    "rank_zero_only",
    "threads",
    "validations",
    "saves",
    "ended",
)


class Numbers(IterableDataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __iter__(self):
        return map(torch.tensor, range(self.length))


class Tiny(LightningModule):
    """One shared weight for each worker, drawn to 1; what each worker saw is written into shared memory."""

    def __init__(self, workers=2, at_step=None, at_validation=None):
        super().__init__()
        self.automatic_optimization = False
        self.weights = nn.ParameterList(torch.zeros(1).share_memory_() for _ in range(workers))
        self.own = nn.Parameter(torch.zeros(1))
        self.seen = {name: torch.full((workers,), 0).share_memory_() for name in SEEN}
        self.at_step = at_step
        self.at_validation = at_validation

    def see(self, name, value):
        self.seen[name][self.trainer.global_rank] = int(value)

    def on_train_start(self):
        self.see("pid", os.getpid())
        self.see("rank", self.trainer.local_rank)
        self.see("global_zero", self.trainer.is_global_zero)
        self.see("world_size", self.trainer.world_size)
        self.see("rank_zero_only", rank_zero_only.rank)
        self.see("threads", torch.get_num_threads())

    def training_step(self, batch, batch_idx):
        rank = self.trainer.global_rank
        if self.at_step:
            self.at_step(self, rank, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward((self.weights[rank] - 1).square().sum() + self.own.sum())
        optimizer.step()
        self.seen["steps"][rank] += 1
        self.log_dict({"rank": float(rank), "step": float(batch_idx)})

    def validation_step(self, batch, batch_idx):
        self.seen["validations"][self.trainer.global_rank] += 1
        if self.at_validation:
            self.at_validation(self)
        self.log("score", self.weights[0].item())

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return self.trainer.global_rank, os.getpid()

    def on_train_end(self):
        self.see("ended", True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


def loader(length=STEPS):
    return DataLoader(Numbers(length), batch_size=None)


def make_trainer(folder, workers=2, **kwargs):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    plain = {"accelerator": "cpu", "enable_model_summary": False, "max_epochs": 1, "num_sanity_val_steps": 0}
    given = {**quiet, **plain, "strategy": "hogwild", "devices": workers, "log_every_n_steps": 1, **kwargs}
    return Trainer(default_root_dir=folder, **given)


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def status_of(process):
    try:
        return (Path("/proc") / process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def processes(field, value):
    """Those alive whose parent (field 1) or session (field 3) is this one."""
    found = {process: status_of(process) for process in os.listdir("/proc") if process.isdigit()}
    return {
        int(process) for process, status in found.items() if status and status[0] != "Z" and status[field] == str(value)
    }


@pytest.fixture(scope="module")
def _server():
    start_server()


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path, monkeypatch, _server):
    """No process, no temporary file, no change to this process's signals."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    children = processes(1, os.getpid())
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert processes(1, os.getpid()) <= children
    assert multiprocessing.active_children() == []
    assert list(temporary.iterdir()) == []
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert rank_zero_only.rank == 0


def meet(model, rank, batch_idx):
    """Holds every worker at its second step until all are there: none could get there if they ran in turn."""
    if batch_idx == 1:
        wait_until(lambda: bool((model.seen["steps"] >= 1).all()))


@pytest.mark.parametrize(("strategy", "workers"), [("hogwild", 3), (HogwildStrategy(), 2), ("hogwild", 1)])
def test_workers_run_at_once_on_shared_memory_each_with_a_rank_of_its_own(strategy, workers, tmp_path):
    model = Tiny(workers, meet)
    trainer = make_trainer(tmp_path, workers, strategy=strategy)
    assert trainer.strategy.num_workers == workers
    trainer.fit(model, loader())
    assert model.seen["steps"].tolist() == [STEPS] * workers
    assert [weight.item() for weight in model.weights] == [1 - 0.5**STEPS] * workers
    assert len({os.getpid(), *model.seen["pid"].tolist()}) == workers + 1
    assert model.seen["rank"].tolist() == model.seen["rank_zero_only"].tolist() == list(range(workers))
    assert model.seen["global_zero"].tolist() == [1] + [0] * (workers - 1)
    assert model.seen["world_size"].tolist() == [1] * workers


def test_collectives_return_what_they_are_given(tmp_path):
    strategy = make_trainer(tmp_path).strategy
    tensor = torch.ones(2)
    assert strategy.all_gather(tensor) is strategy.reduce(tensor) is strategy.broadcast(tensor) is tensor
    assert strategy.reduce_boolean_decision(True)
    assert not strategy.reduce_boolean_decision(False, all=False)
    strategy.barrier()


class CountingIO(TorchCheckpointIO):
    def __init__(self, model):
        self.model = model

    def save_checkpoint(self, *args, **kwargs):
        self.model.seen["saves"][self.model.trainer.global_rank] += 1
        super().save_checkpoint(*args, **kwargs)


def test_only_worker_0_evaluates_logs_prints_and_saves(tmp_path, capfd):
    model = Tiny(3)
    checkpoints = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
    loud = {"enable_progress_bar": True, "enable_model_summary": True, "profiler": "simple"}
    loggers = {"logger": CSVLogger(tmp_path, "runs"), "enable_checkpointing": True, "plugins": CountingIO(model)}
    trainer = make_trainer(tmp_path, 3, callbacks=[checkpoints], num_sanity_val_steps=1, **loud, **loggers)
    model.at_step = lambda model, rank, batch_idx: print(end="") or model.print(f"printed by {rank}")
    trainer.fit(model, loader(), loader(2))
    assert model.seen["steps"].tolist() == [STEPS] * 3
    assert model.seen["validations"].tolist() == [3, 0, 0]
    assert model.seen["saves"].tolist() == [STEPS, 0, 0]
    out, err = capfd.readouterr()
    assert out.count("printed by 0") == STEPS
    assert "printed by 1" not in out + err
    assert (out + err).count("Trainable params") == 1
    run = tmp_path / "runs/version_0"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"version_0"}
    assert Path(trainer.log_dir) == run
    assert len(list((run / "checkpoints").iterdir())) == STEPS
    lines = (run / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("rank")
    assert [line.split(",")[column] for line in lines[1:] if line.split(",")[column]] == ["0.0"] * STEPS


def wait_for_the_others(model):
    wait_until(lambda: model.seen["steps"][1] == STEPS)


def wait_for_the_evaluation(model, rank, batch_idx):
    if rank == 1:
        wait_until(lambda: model.seen["validations"][0] >= 2)


@pytest.mark.parametrize(
    "hooks",
    [{"at_validation": wait_for_the_others}, {"at_step": wait_for_the_evaluation}],
    ids=["worker 1", "worker 0"],
)
def test_no_worker_waits_for_an_evaluation_and_the_evaluation_for_no_worker(hooks, tmp_path):
    model = Tiny(2, **hooks)
    make_trainer(tmp_path, val_check_interval=1, limit_val_batches=2, num_sanity_val_steps=2).fit(
        model, loader(), loader(2)
    )
    assert model.seen["steps"].tolist() == [STEPS] * 2
    assert model.seen["validations"].tolist() == [2 + 2 * STEPS, 0]


def test_limits_hold_for_each_worker(tmp_path):
    def stop(model, rank, batch_idx):
        if rank == 1:
            model.trainer.should_stop = batch_idx == 1

    model = Tiny(2, stop)
    trainer = make_trainer(tmp_path, max_epochs=-1, max_steps=6)
    trainer.fit(model, loader(20))
    assert model.seen["steps"].tolist() == [6, 2]
    assert model.seen["ended"].tolist() == [1, 1]


def test_the_main_process_gets_worker_0s_results(tmp_path):
    model = Tiny(2)
    best = ModelCheckpoint(tmp_path / "best", monitor="score", mode="max", save_on_train_epoch_end=False)
    steps = ModelCheckpoint(monitor="step", mode="max", every_n_train_steps=1, filename="{step}")
    trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=[best, steps], val_check_interval=2)
    trainer.fit(model, loader(), loader(1))
    assert trainer.state.finished
    assert trainer.global_step == STEPS
    assert trainer.callback_metrics["score"] == best.best_model_score == 1 - 0.5**STEPS
    assert trainer.callback_metrics["rank"] == 0
    assert model.own.item() == -0.25 * STEPS
    assert Path(best.best_model_path).parent == tmp_path / "best"
    assert Path(steps.best_model_path).is_file()
    assert steps.best_model_score == STEPS - 1
    state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert {name: value.tolist() for name, value in state.items() if name != "weights.1"} == {
        name: value.tolist() for name, value in model.state_dict().items() if name != "weights.1"
    }
    assert best.best_k_models == {best.best_model_path: best.best_model_score}
    assert model.weights[0].is_shared()


def test_a_second_fit_goes_on_where_the_first_ended(tmp_path):
    model = Tiny(2)
    trainer = make_trainer(tmp_path)
    trainer.fit(model, loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, loader())
    assert model.seen["steps"].tolist() == [2 * STEPS] * 2
    assert trainer.global_step == 2 * STEPS
    assert model.own.item() == -0.25 * 2 * STEPS


def test_only_fit_forks(tmp_path):
    model = Tiny(2)
    trainer = make_trainer(tmp_path)
    assert trainer.predict(model, loader(2)) == [(0, os.getpid())] * 2
    for evaluate in (trainer.validate, trainer.test):
        (metrics,) = evaluate(model, loader(3), verbose=False)
        assert metrics == {"score": 0.0}
    assert model.seen["validations"].tolist() == [6, 0]
    trainer.fit(model, loader(1), loader(1))
    assert trainer.validate(model, loader(1), verbose=False) == [{"score": 0.5}]


def boom(rank, error, model, worker, batch_idx):
    """At its third step; by then every worker trains, and the others would go on for ever."""
    if worker == rank and batch_idx == 2:
        wait_until(lambda: bool((model.seen["steps"] > 0).all()))
        error()


def raise_user_error():
    raise UserError("model.lr: must be at least 0, got -1")


def divide_by_zero():
    _ = 1 / 0


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (divide_by_zero, "failed:\n\nTraceback .*divide_by_zero.*ZeroDivisionError: division by zero\n$"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL$"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by SIGSEGV$"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "was stopped by SIGTERM$"),
        (lambda: os._exit(3), "exited with code 3 before training ended$"),
        (lambda: os._exit(0), "exited with code 0 before training ended$"),
        (lambda: sys.exit(4), "exited with code 4 before training ended$"),
    ],
    ids=["exception", "SIGKILL", "SIGSEGV", "SIGTERM", "_exit 3", "_exit 0", "sys.exit"],
)
def test_a_worker_that_dies_ends_the_run_and_is_named(rank, error, message, tmp_path, capfd):
    start = time.monotonic()
    with pytest.raises(WorkerError, match=f"(?s)^strategy hogwild: worker {rank} {message}"):
        make_trainer(tmp_path, 3).fit(Tiny(3, partial(boom, rank, error)), loader(10**9))
    assert time.monotonic() - start < 60
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_the_users_is_raised_as_what_it_is(rank, tmp_path, capfd):
    with pytest.raises(UserError) as caught:
        make_trainer(tmp_path).fit(Tiny(2, partial(boom, rank, raise_user_error)), loader(10**9))
    assert type(caught.value) is UserError
    assert str(caught.value) == "model.lr: must be at least 0, got -1"
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_worker_stuck_in_a_step_is_killed(tmp_path):
    def step(model, rank, batch_idx):
        if rank == 0:
            time.sleep(1000)
        os._exit(1)

    start = time.monotonic()
    with pytest.raises(WorkerError, match="worker 1 exited with code 1"):
        make_trainer(tmp_path).fit(Tiny(2, step), loader())
    assert time.monotonic() - start < 60


def test_a_failed_run_leaves_worker_0s_checkpoint_and_the_main_process_does_not_overwrite_it(tmp_path):
    model = Tiny(2, partial(boom, 1, divide_by_zero))
    trainer = make_trainer(tmp_path, callbacks=[OnExceptionCheckpoint(tmp_path)], enable_checkpointing=True)
    with pytest.raises(WorkerError):
        trainer.fit(model, loader(10**9))
    assert torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["global_step"] > 0
    trainer.validate(model, loader(1), verbose=False)
    assert trainer.is_global_zero


def start_script(folder, body):
    (folder / "script.py").write_text(f"from test_hogwild import *\n{body}\n")
    (folder / "tmp").mkdir()
    return WarmProcess(["script.py"], folder, {"TMPDIR": str(folder / "tmp")})


ENDLESS = """
def step(model, rank, batch_idx):
    if model.seen["steps"].min() >= 2:
        Path(f"ready_{rank}").touch()
        time.sleep(1000 if STUCK else 0)

make_trainer(".", 3, enable_progress_bar=True).fit(Tiny(3, step), loader(10**9))
"""


@pytest.mark.parametrize("stuck", [False, True], ids=["", "stuck"])
@pytest.mark.parametrize(
    ("number", "send", "status"),
    [
        (signal.SIGINT, os.kill, 1),
        (signal.SIGINT, os.killpg, 1),
        (signal.SIGTERM, os.kill, 143),
        (signal.SIGTERM, os.killpg, 143),
        (signal.SIGKILL, os.kill, -9),
    ],
    ids=["SIGINT", "SIGINT to the group", "SIGTERM", "SIGTERM to the group", "SIGKILL"],
)
def test_a_signal_to_the_main_process_ends_all(number, send, status, stuck, tmp_path):
    process = start_script(tmp_path, ENDLESS.replace("STUCK", str(stuck)))
    log = tmp_path / "log.txt"
    try:
        wait_until(lambda: len(list(tmp_path.glob("ready_*"))) == 3 or process.poll() is not None, 120)
        session = processes(3, process.pid)
        assert len(session) == 4, log.read_text()
        send(process.pid, number)
        process.wait(60)
        wait_until(lambda: not processes(3, process.pid), 30)
    finally:
        if processes(3, process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    output = log.read_text()
    assert process.returncode == status
    assert "Traceback" not in output
    assert output.count("Detected KeyboardInterrupt") == (number == signal.SIGINT)
    assert [name for name in os.listdir("/dev/shm") if any(str(pid) in name for pid in session)] == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_worker_has_one_thread_whatever_the_main_process_has(tmp_path):
    """OpenMP's threads are gone after the fork: a worker that counted on them would wait for ever."""
    process = start_script(
        tmp_path,
        """
def work(*_):
    torch.sin(torch.ones(2_000_000)).sum()

torch.set_num_threads(2)
work()
model = Tiny(2, work)
make_trainer(".").fit(model, loader())
print("threads:", model.seen["threads"].tolist(), torch.get_num_threads())
""",
    )
    try:
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "threads: [1, 1] 2" in (tmp_path / "log.txt").read_text()


def test_it_refuses_a_gpu(monkeypatch):
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(CUDAAccelerator, "parse_devices", staticmethod(lambda devices: [0]))
    monkeypatch.setattr(
        "lightning.pytorch.trainer.connectors.accelerator_connector._select_auto_accelerator", lambda: "cuda"
    )
    for accelerator in ("cuda", "auto"):
        with pytest.raises(UserError, match=r"^trainer\.accelerator: .*hogwild.*; set trainer\.accelerator to cpu$"):
            Trainer(accelerator=accelerator, devices=1, strategy="hogwild")


def test_it_refuses_a_second_node():
    with pytest.raises(UserError, match=r"^trainer\.num_nodes: .*hogwild.*; set trainer\.num_nodes to 1 \(it is 2\)$"):
        Trainer(accelerator="cpu", devices=2, strategy="hogwild", num_nodes=2)


def test_it_refuses_a_system_without_fork(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(UserError, match=r"^trainer\.strategy: hogwild forks .*; choose ddp or auto$"):
        Trainer(accelerator="cpu", devices=2, strategy="hogwild")
