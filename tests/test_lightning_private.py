"""The private names of Lightning, torch and Gymnasium that the package relies on: each test fails when one moves."""

import ast
import inspect
import re
import subprocess
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.vector_env import VectorEnv
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from packaging.specifiers import SpecifierSet
from torch import distributed, nn

import pg_lightning
from pg_lightning import lightning_private, torch_private
from pg_lightning.lightning_private import FallibleModelCheckpoint, LaunchingStrategy, OpenCLI, OpenWandbLogger

PACKAGE = Path(pg_lightning.__file__).parent


class Line(LightningModule):
    """Learns one number by manual optimisation; what it does between steps is a test's."""

    def __init__(self, step=lambda optimizer: optimizer.step()):
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.ones(()))
        self.step = step
        self.hooks = 0

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.weight.square().backward()
        self.step(optimizer)

    def on_before_optimizer_step(self, optimizer):
        self.hooks += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return [0, 0, 0]


@pytest.fixture
def trainer(tmp_path):
    def make(**kwargs):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        return Trainer(
            **{"max_epochs": 1, "default_root_dir": tmp_path, "enable_checkpointing": False, **quiet, **kwargs}
        )

    return make


def test_a_module_without_a_trainer_has_none_and_one_in_a_fit_has_its_own(trainer):
    module = Line()
    assert lightning_private.trainer_of(module) is None
    own = trainer()
    module.step = lambda _: found.append(lightning_private.trainer_of(module))
    found = []
    own.fit(module)
    assert found == [own] * 3


def test_a_step_without_hooks_is_a_step_that_is_counted_and_that_no_hook_sees(trainer):
    plain, past = Line(), Line(lightning_private.step_without_hooks)
    counts = []
    for module in (plain, past):
        own = trainer()
        own.fit(module)
        counts.append((own.global_step, module.hooks))
    assert counts == [(3, 3), (3, 0)]
    assert plain.weight.equal(past.weight)
    assert plain.weight < 1


def test_lightning_counts_steps_in_the_calls_around_them():
    optimizer = LightningOptimizer(torch.optim.SGD(Line().parameters(), lr=0.1))
    for name in ("_on_before_step", "_on_after_step"):
        assert callable(getattr(optimizer, name))


def test_the_timeout_of_a_process_group_can_be_read_and_set():
    strategy = DDPStrategy()
    assert lightning_private.process_group_timeout(strategy) == torch_private.DEFAULT_TIMEOUT
    lightning_private.set_process_group_timeout(strategy, timedelta(seconds=3))
    assert lightning_private.process_group_timeout(strategy) == timedelta(seconds=3)
    assert "self._timeout" in inspect.getsource(DDPStrategy.setup_distributed)


def test_the_trainer_asks_a_strategy_for_its_launcher_by_the_private_method(trainer):
    class Counting(LaunchingStrategy):
        def make_launcher(self):
            return Immediate(self)

    class Immediate(lightning_private.Launcher):
        def __init__(self, strategy):
            self.launched = []

        @property
        def is_interactive_compatible(self):
            return True

        def launch(self, function, *args, trainer=None, **kwargs):
            self.launched.append(function.__name__)
            return function(*args, **kwargs)

        def kill(self, signum):
            pass

    assert "_configure_launcher" in vars(Strategy)
    own = trainer(strategy=Counting("cpu"))
    own.fit(Line())
    assert own.strategy.launcher.launched == ["_fit_impl"]
    own.strategy.drop_launcher()
    assert own.strategy.launcher is None
    own.fit(Line())


def test_ddp_starts_ranks_with_a_launcher_that_keeps_their_processes():
    assert lightning_private.SubprocessLauncher is _SubprocessScriptLauncher
    assert "self.procs" in inspect.getsource(_SubprocessScriptLauncher.__init__)
    assert "_SubprocessScriptLauncher(" in inspect.getsource(DDPStrategy._configure_launcher)


def test_lightnings_watch_over_ranks_watches_the_launchers_list_and_ends_when_it_is_dismissed():
    assert "_launch_process_observer(self.procs)" in inspect.getsource(_SubprocessScriptLauncher.launch)
    main, rank = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
        launcher.procs = [rank]
        observer = _ChildProcessObserver(main.pid, launcher.procs, sleep_period=0.01)
        observer.start()
        lightning_private.dismiss_observer(launcher)
        assert launcher.procs == [rank]
        rank.kill()
        observer.join(10)
        assert not observer.is_alive()
        assert main.poll() is None
    finally:
        for process in (main, rank):
            process.kill()
            process.wait()


def test_an_entry_point_is_called_with_its_arguments_and_exceptions_are_raised_again(trainer):
    def entry(a, b):
        raise RuntimeError(f"{a} {b}")

    with pytest.raises(RuntimeError, match="1 2"):
        lightning_private.call_and_handle_interrupt(trainer(), entry, 1, b=2)


def test_lightnings_signal_handlers_are_not_registered_and_no_sigterm_is_broadcast(trainer):
    assert callable(_SignalConnector.register_signal_handlers)
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)
    own, called = trainer(), []
    own._signal_connector.register_signal_handlers = lambda: called.append("register")
    own.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: called.append("broadcast")
    own.fit(Line())
    assert called[0] == "register"  # both are asked for in a fit, by these names
    lightning_private.disable_signal_handlers(own)
    del called[:]
    own.fit(Line())
    assert called == []


class Failing(FallibleModelCheckpoint):
    succeeds = True

    def save_succeeded(self, trainer):
        return self.succeeds


def test_a_save_that_failed_is_neither_the_last_nor_the_best(trainer, tmp_path):
    checkpoint = Failing(tmp_path, filename="best", monitor="score")
    own = trainer(callbacks=[checkpoint], enable_checkpointing=True, max_steps=1)
    own.fit(Line())
    for score, succeeds in ((2.0, True), (1.0, False)):  # the lower the better
        own.callback_metrics["score"] = torch.tensor(score)
        own.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed += 1
        checkpoint.succeeds = succeeds
        checkpoint.save_now(own)
        assert Path(checkpoint.last_saved_path).is_file()
        assert (checkpoint.best_model_score, checkpoint._last_global_step_saved) == (2.0, 2), score
    checkpoint.succeeds = True
    checkpoint.save_now(own)
    assert (checkpoint.best_model_score, checkpoint._last_global_step_saved) == (1.0, 3)


@pytest.mark.parametrize(
    "name",
    [
        "_save_checkpoint",
        "_update_best_and_save",
        "_should_skip_saving_checkpoint",
        "_save_topk_checkpoint",
        "_monitor_candidates",
    ],
)
def test_model_checkpoint_saves_by_these_methods(name):
    assert callable(vars(ModelCheckpoint)[name])


def test_the_state_of_a_datamodule_is_under_the_name_of_its_class(trainer, tmp_path):
    from lightning.pytorch import LightningDataModule

    class Data(LightningDataModule):
        def train_dataloader(self):
            return [0]

        def state_dict(self):
            return {"kept": 1}

    own = trainer()
    data = Data()
    own.fit(Line(), datamodule=data)
    own.save_checkpoint(tmp_path / "a.ckpt")
    assert lightning_private.datamodule_state(torch.load(tmp_path / "a.ckpt"), data) == {"kept": 1}


def test_a_wandb_logger_begins_with_arguments_that_can_be_changed_and_keeps_its_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    logger = OpenWandbLogger(name="a", save_dir=str(tmp_path), offline=True)
    assert logger.is_offline
    assert logger.run is None
    logger.init_arguments["name"] = "b"
    monkeypatch.setattr(wandb, "init", lambda **arguments: arguments)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert logger.experiment["name"] == "b"
    assert logger.run is logger.experiment
    logger.run = None
    assert logger.run is None


def test_the_command_line_asks_for_its_checkpoint_before_it_makes_anything():
    source = inspect.getsource(LightningCLI.__init__)
    assert -1 < source.index("self._parse_ckpt_path()") < source.index("self.instantiate_classes()")
    assert all(name in vars(LightningCLI) for name in ("_parse_ckpt_path", "_parser", "_get"))
    assert vars(OpenCLI)["_parse_ckpt_path"]


def test_exact_buffers_move_but_are_not_converted():
    class Exact(torch_private.ExactBuffers):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.tensor(257.0, dtype=torch.float64))

    module = nn.Sequential(Exact(), nn.Linear(1, 1))
    module.to(torch.bfloat16)
    assert (module[0].count.dtype, module[0].count.item()) == (torch.float64, 257.0)
    assert module[1].weight.dtype == torch.bfloat16
    assert module.to("meta")[0].count.device.type == "meta"


def test_gamma_samples_come_from_a_generator_and_have_the_right_moments():
    alpha = torch.full((100_000,), 3.0)
    first, again = (torch_private.standard_gamma(alpha, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.equal(again)
    assert first.mean() == pytest.approx(3.0, abs=0.03)
    assert first.var() == pytest.approx(3.0, abs=0.1)


def test_the_store_of_the_default_process_group_can_be_written_to(tmp_path):
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        torch_private.default_store().set("word", "said")
        assert torch_private.default_store().get("word") == b"said"
    finally:
        distributed.destroy_process_group()


def test_gymnasiums_vector_env_gathers_infos_and_keeps_its_arrays_by_these_names():
    """What `envs/backends/serial.py` and `workers.py` override and write to, as subclasses may."""
    assert callable(vars(VectorEnv)["_add_info"])
    source = inspect.getsource(SyncVectorEnv.__init__)
    for name in ("_observations", "_rewards", "_terminations", "_truncations"):
        assert f"self.{name} = " in source, name


def test_a_single_device_strategy_keeps_its_launcher_where_the_property_looks():
    strategy = SingleDeviceStrategy("cpu")
    strategy._launcher = "anything"
    assert strategy.launcher == "anything"


def test_compiled_code_may_add_products_in_one_instruction():
    (option,) = torch_private.fused_multiply_add()
    assert option in torch._inductor.list_options()


def test_the_call_of_a_compiled_graph_can_be_recorded_and_repeated():
    double = torch.compile(lambda x: (x * 2, x.sum()))
    with torch_private.graph_calls() as calls:
        double(torch.ones(3))
    double(torch.ones(3))  # not recorded
    ((graph, inputs, outputs),) = calls
    assert [x.tolist() for x in (*inputs, *outputs)] == [[1.0] * 3, [2.0] * 3, 3.0]
    assert [x.tolist() for x in graph([torch.full((3,), 2.0)])] == [[4.0] * 3, 6.0]


def test_tensors_are_copied_in_one_call():
    targets = [torch.zeros(3), torch.zeros(2, 2)]
    views = [x.view(-1) for x in targets]
    torch_private.copy_all(targets, [torch.arange(3.0), torch.ones(2, 2)])
    assert [x.tolist() for x in views] == [[0.0, 1.0, 2.0], [1.0] * 4]


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_a_hook_on_the_steps_of_an_optimizer_is_found(register):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    assert not torch_private.has_step_hooks(optimizer)
    handle = getattr(optimizer, register)(lambda *_: None)
    assert torch_private.has_step_hooks(optimizer)
    handle.remove()
    assert not torch_private.has_step_hooks(optimizer)


def test_torch_is_seeded_and_its_initial_seed_stays():
    torch.manual_seed(5)
    torch_private.seed_keeping_initial(2**31)
    drawn = torch.rand(3)
    assert torch.initial_seed() == 5
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(2**31)))


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_gradient_is_found(register):
    parameter = nn.Parameter(torch.zeros(1))
    assert not torch_private.has_gradient_hooks(parameter)
    handle = getattr(parameter, register)(lambda *_: None)
    assert torch_private.has_gradient_hooks(parameter)
    handle.remove()
    assert not torch_private.has_gradient_hooks(parameter)


@pytest.mark.parametrize("name", ["lightning", "torch"])
def test_versions_are_bounded_from_above_and_these_tests_run_within_the_bounds(name):
    declared = re.search(rf'^  "{name}([^"]+)",$', (PACKAGE.parent / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    bounds = SpecifierSet(declared[1])
    assert {bound.operator for bound in bounds} == {">=", "<"}
    assert bounds.contains(version(name))


def test_no_other_module_imports_a_private_name_of_lightning_or_torch():
    allowed = {PACKAGE / "lightning_private.py", PACKAGE / "torch_private.py"}
    found = []
    for file in sorted({*PACKAGE.rglob("*.py")} - allowed):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("lightning", "torch"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found += [f"{file.name}: {name}" for name in names if name.startswith("_") and name[:2] != "__"]
            if isinstance(node, ast.Attribute) and node.attr in PRIVATE and ast.unparse(node.value) != "self":
                found.append(f"{file.name}: {ast.unparse(node)}")
    assert found == []


# Attributes of objects of Lightning and torch that the two modules reach for.
PRIVATE = {
    "_backward_hooks",
    "_broadcast_sigterm_tensor",
    "_call_and_handle_interrupt",
    "_configure_launcher",
    "_foreach_copy_",
    "_get_default_store",
    "_launcher",
    "_on_after_step",
    "_on_before_step",
    "_optimizer_step_post_hooks",
    "_optimizer_step_pre_hooks",
    "_post_accumulate_grad_hooks",
    "_signal_connector",
    "_standard_gamma",
    "_timeout",
    "_trainer",
}
