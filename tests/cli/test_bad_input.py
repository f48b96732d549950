"""What a user can get wrong beyond the spelling ends in one line on stderr and exit status 2, never in a traceback."""

import pytest
import torch
from run_files import complaint, load, read_metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.env_id CartPol-v1", "data.env_id: cannot make 'CartPol-v1'"),
        ("--data.env_id nope:Nope-v0", "data.env_id: cannot make 'nope:Nope-v0': No module named 'nope'"),
        ('--data.env_kwargs {"size":5}', "data.env_kwargs: cannot make 'CartPole-v1'"),
        ("--data.wrappers [nope.Nope]", "data.wrappers: cannot import 'nope.Nope'"),
        ("--data.env_id odd_envs:TextObservation-v0", "data.env_id: observation space Text("),
        ("--data.env_id odd_envs:IntegerBoxAction-v0", "data.env_id: action space Box("),
        ("--data.total_steps 0", "data.total_steps: must be at least 1, got 0"),
        ("--data.total_steps -5", "data.total_steps: must be at least 1, got -5"),
        ("--data.eval_every_steps 0", "data.eval_every_steps: must be at least 1, got 0"),
        ("--data.eval_episodes 0", "data.eval_episodes: must be at least 1, got 0"),
        ("--data.num_envs 0", "data.num_envs: must be at least 1, got 0"),
        ("--model.num_minibatches 0", "model.num_minibatches: must be at least 1, got 0"),
        ("--model.gamma 1.5", "model.gamma: must be between 0 and 1, got 1.5"),
        ("--model.lr .inf", "model.lr: must be finite and at least 0, got inf"),
        ("--model.lr .nan", "model.lr: must be at least 0, got nan"),
        ("--model.critic_lr .inf", "model.critic_lr: must be finite and at least 0, got inf"),
        ("--model.vf_coef .inf", "model.vf_coef: must be finite and at least 0, got inf"),
        ("--model.ent_coef .inf", "model.ent_coef: must be finite and at least 0, got inf"),
        ("--model.clip_range .inf", "model.clip_range: must be finite and at least 0, got inf"),
        ("--model.clip_range_vf .inf", "model.clip_range_vf: must be finite and at least 0, got inf"),
        ("--model.target_kl .inf", "model.target_kl: must be finite and at least 0, got inf"),
        ("--model.kl_penalty .inf", "model.kl_penalty: must be finite and at least 0, got inf"),
        ("--model.max_grad_norm .nan", "model.max_grad_norm: must be at least 0, got nan"),
        ("--model.gae_lambda .inf", "model.gae_lambda: must be between 0 and 1, got inf"),
        ("--data.env_timeout .nan", "data.env_timeout: must be at least 0.1, got nan"),
        (
            "--model.num_minibatches 7",
            "model.num_minibatches: 7 does not divide a rollout of data.num_steps 16 x data.num_envs 4 = 64 rows",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_named(cli, tiny, tmp_path, arguments, message):
    assert complaint(cli(tmp_path, "fit", "--config", tiny, *arguments.split())).startswith(message)


def test_infinity_is_a_bound_where_it_means_none(train, tmp_path):
    none = ("--model.max_grad_norm", ".inf", "--data.env_timeout", ".inf", "--data.backend", "async")
    rows = read_metrics(train(tmp_path, *none, "--data.total_steps", 128, "--data.eval_episodes", 1))
    assert rows[-1]["step"] == 128


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_missing_checkpoint_is_named(cli, tiny, tmp_path, command):
    for config in ((), ("--config", tiny)):
        said = complaint(cli(tmp_path, command, *config, "--ckpt_path", "nope.ckpt"))
        assert said == "ckpt_path: no file 'nope.ckpt'"


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_checkpoint_is_named(cli, run, tiny, tmp_path, command, share):
    whole = (run / "checkpoints/last.ckpt").read_bytes()
    (tmp_path / "torn.ckpt").write_bytes(whole[: int(share * len(whole))])
    said = complaint(cli(tmp_path, command, "--config", tiny, "--ckpt_path", "torn.ckpt"))
    assert said.startswith("ckpt_path: cannot read 'torn.ckpt': ")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_a_file_that_is_no_checkpoint_of_ours_is_named(cli, tiny, tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    said = complaint(cli(tmp_path, "test", "--config", tiny, "--ckpt_path", "other.ckpt"))
    assert said.startswith("ckpt_path: ")
    assert "'other.ckpt'" in said


def test_a_checkpoint_away_from_its_run_wants_a_config(cli, run, tmp_path):
    (tmp_path / "lonely.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes())
    said = complaint(cli(tmp_path, "test", "--ckpt_path", "lonely.ckpt"))
    assert said == "ckpt_path: no config.yaml beside 'lonely.ckpt'; give --config"


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--data.env_id CartPole-v0",  # with the same spaces
            "data.env_id: the checkpoint was trained on 'CartPole-v1', not on 'CartPole-v0'",
        ),
        ("--data.env_id Acrobot-v1", "ckpt_path: the checkpoint was trained on observation_space Box("),
        (
            "--data.wrappers [gymnasium.wrappers.TimeAwareObservation]",
            "ckpt_path: the checkpoint was trained on observation_space Box(",
        ),
    ],
)
def test_the_checkpoint_of_another_environment_is_refused(cli, run, tmp_path, command, arguments, message):
    finished = cli(tmp_path, command, "--ckpt_path", run / "checkpoints/last.ckpt", *arguments.split())
    assert complaint(finished).startswith(message)


def test_the_module_that_registers_an_environment_makes_no_other_of_it(cli, run, tmp_path):
    trained = run / "checkpoints/last.ckpt"
    finished = cli(
        tmp_path,
        *("test", "--ckpt_path", trained, "--data.env_id", "gymnasium:CartPole-v1", "--data.eval_episodes", 1),
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_an_environment_that_breaks_down_leaves_what_was_learned_before(cli, tiny, tmp_path, what):
    """Each of 4 environments takes its 200th step in the 13th rollout, at 768 env steps."""
    broken = ("--data.env_id", "odd_envs:BreaksDown-v0", "--data.env_kwargs", f"{{what: {what}}}")
    finished = cli(tmp_path, "fit", "--config", tiny, *broken, "--data.total_steps", 2000)
    assert complaint(finished).startswith(f"data.env_id: the environment gave a non-finite {what} in env 0 at step ")
    run = tmp_path / "runs/tiny/version_0"
    rows = read_metrics(run)
    assert rows[-1]["step"] == 768
    assert [row["step"] for row in rows if "val/return_mean" in row] == [256, 448, 640]
    checkpoint = load(run / "checkpoints/last.ckpt")
    assert checkpoint["pg_lightning"]["env_steps"] == 640
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


@pytest.mark.parametrize("other", [("--model.hidden_sizes", "[8]"), ("--model.normalize_obs", "false")])
def test_the_checkpoint_of_another_network_is_refused(cli, run, tmp_path, other):
    said = complaint(cli(tmp_path, "test", "--ckpt_path", run / "checkpoints/last.ckpt", *other))
    assert said.startswith("ckpt_path: the checkpoint holds another network: network.")
