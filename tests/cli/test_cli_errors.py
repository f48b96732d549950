"""A mistake on the command line or in a YAML is one line on stderr and exit status 2."""

import pytest
import torch
from run_files import complaint

from pg_lightning.cli.errors import end_by_error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model.gama 0.9", "model.gama: unknown key; did you mean model.gamma?"),
        ("--model.init_args.gama 0.9", "model.gama: unknown key; did you mean model.gamma?"),
        ("--data.num_env 3", "data.num_env: unknown key; did you mean data.num_envs?"),
        ("--trainer.max_epoch=3", "trainer.max_epoch: unknown key; did you mean trainer.max_epochs?"),
        ("--qwertz 3", "qwertz: unknown key"),
        ("--data.num_envs x", "data.num_envs: expected int, got 'x'"),
        ("--data.num_envs 2.5", "data.num_envs: expected int, got '2.5'"),
        ("--model.lr x", "model.lr: expected float, got 'x'"),
        ("--model.critic_lr x", "model.critic_lr: expected float, got 'x'"),
        ("--model.hidden_sizes 64", "model.hidden_sizes: expected list, got '64'"),
        ("--model.clip_schedule foo", "model.clip_schedule: expected one of 'constant', 'linear', got 'foo'"),
        ("--seed_everything x", "seed_everything: expected bool or int, got 'x'"),
        ("--model nope.Nope", "model: No module named 'nope'"),
        (
            "--model pg_lightning.algorithms.Nope",
            "model: module 'pg_lightning.algorithms' has no attribute 'Nope'",
        ),
        ("--model torch.nn.Linear", "model: Import path does not correspond to a subclass of PolicyGradientModule"),
        (
            "--trainer.callbacks EarlyStopping --trainer.callbacks.monito val/return_mean",
            "trainer.callbacks.monito: unknown key; did you mean trainer.callbacks.monitor?",
        ),
        (
            "--trainer.logger pg_lightning.callbacks.FaultTolerantWandbLogger",
            "trainer.logger: module 'pg_lightning.callbacks' has no attribute 'FaultTolerantWandbLogger'; "
            "it is pg_lightning.run.FaultTolerantWandbLogger now",
        ),
        ("--trainer.logger TensorBoardLogger", "trainer.logger: the following arguments are required: save_dir"),
        ("--data.num_envs", "argument --data.num_envs: expected one argument"),
        ("more", "unrecognized arguments: more"),
    ],
)
def test_a_wrong_argument_is_named(cli, tiny, tmp_path, arguments, message):
    assert complaint(cli(tmp_path, "fit", "--config", tiny, *arguments.split())) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr: 1.0e-3", "learning: 1", "model.learning: unknown key"),
        ("lr: 1.0e-3", "lrr: 1", "model.lrr: unknown key; did you mean model.lr?"),
        ("lr: 1.0e-3", "lr: high", "model.lr: expected float, got 'high'"),
        ("num_envs: 4", "num_env: 4", "data.num_env: unknown key; did you mean data.num_envs?"),
        ("trainer:", "trainr:", "trainr.accelerator: unknown key; did you mean trainer.accelerator?"),
        ("class_path: pg", "class_path: gp", "model: No module named 'gp_lightning'"),
    ],
)
def test_a_wrong_key_in_a_yaml_is_named(cli, tiny, tmp_path, old, new, message):
    content = tiny.read_text()
    assert content.count(old) >= 1
    (tmp_path / "wrong.yaml").write_text(content.replace(old, new, 1))
    assert complaint(cli(tmp_path, "fit", "--config", "wrong.yaml")) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data:\n  num_envs: 4\n num_steps: 3\n", "config: 'wrong.yaml' is not YAML: "),
        ("data: [\n", "config: 'wrong.yaml' is not YAML: "),
        ("just words\n", "config: 'wrong.yaml' contains no keys"),
        ("", "config: 'wrong.yaml' contains no keys"),
    ],
)
def test_a_file_that_is_no_config_is_named(cli, tmp_path, content, message):
    (tmp_path / "wrong.yaml").write_text(content)
    said = complaint(cli(tmp_path, "fit", "--config", "wrong.yaml"))
    assert said.startswith(message)
    assert "is not YAML" not in said or "is not YAML: line " in said


def test_a_checkpoint_given_as_config_is_not_read_as_text(cli, run, tmp_path):
    assert "is not text" in complaint(cli(tmp_path, "fit", "--config", run / "checkpoints/last.ckpt"))


def test_an_unknown_config_names_those_there_are(cli, tmp_path):
    said = complaint(cli(tmp_path, "fit", "--config", "nope"))
    assert said.startswith("config: no file 'nope'; shipped: ")
    assert "ppo_cartpole" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "train",
            "train: unknown command; there are fit, validate, test, predict, record, play, export, diagnose, plot",
        ),
        ("studdy", "studdy: unknown command; did you mean study?"),
        ("fit --config", "argument -c/--config: expected one argument"),
        ("fit", "the following arguments are required: fit.data.env_id, fit.model"),
        ("--config ppo_cartpole", 'expected "subcommand" to be one of {fit,validate,test,predict,record, ...}'),
        ("test", "ckpt_path: test needs a checkpoint, --ckpt_path RUN/checkpoints/best.ckpt"),
        ("predict --config ppo_cartpole", "ckpt_path: predict needs a checkpoint"),
        ("test --ckpt_path", "ckpt_path: test needs a checkpoint"),
    ],
)
def test_an_unfinished_command_says_what_is_missing(cli, tmp_path, arguments, message):
    assert complaint(cli(tmp_path, *arguments.split())).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--trainer.accelerator foo", "trainer: You selected an invalid accelerator name"),
        ("--trainer.max_time soon", "trainer: `Timer(duration='soon')` is not a valid duration"),
        ("--trainer.devices none", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        ("--trainer.gradient_clip_val 1", "Automatic gradient clipping is not supported for manual optimization"),
        (
            "--trainer.callbacks ModelCheckpoint --trainer.callbacks.monitor nope --data.total_steps 64",
            "`ModelCheckpoint(monitor='nope')` could not find the monitored key",
        ),
    ],
)
def test_what_the_trainer_refuses_is_one_line_too(cli, tiny, tmp_path, arguments, message):
    finished = cli(tmp_path, "fit", "--config", tiny, "--trainer.enable_progress_bar=false", *arguments.split())
    assert complaint(finished).startswith(message)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_without_arguments_or_with_help_it_explains_itself(cli, tmp_path, arguments):
    finished = cli(tmp_path, *arguments)
    assert finished.returncode == 0
    assert finished.stdout.startswith("usage: pg-lightning")
    assert all(command in finished.stdout for command in ("fit", "validate", "test", "predict"))
    assert finished.stderr == ""


def test_help_of_a_command_describes_every_key_of_the_data(cli, tmp_path):
    finished = cli(tmp_path, "fit", "--help")
    assert finished.returncode == 0
    assert "--data.eval_every_steps" in finished.stdout
    assert "--model.help" in finished.stdout


def test_a_printed_config_is_a_config(cli, tiny, tmp_path):
    printed = cli(tmp_path, "fit", "--config", tiny, "--model.gamma", 0.5, "--print_config")
    assert printed.returncode == 0
    (tmp_path / "again.yaml").write_text(printed.stdout)
    again = cli(tmp_path, "fit", "--config", "again.yaml", "--print_config")
    assert "gamma: 0.5\n" in again.stdout
    assert again.stdout == printed.stdout


def test_a_gpu_without_memory_is_one_line_with_the_largest_tensor_and_the_cure(capsys):
    text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB\nof it."
    with pytest.raises(SystemExit) as stopped:
        end_by_error(torch.OutOfMemoryError(text))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: CUDA out of memory. Tried to allocate 2.00 GiB; lower data.num_envs or data.num_steps, or set "
        "model.micro_batch_size\n"
    )
