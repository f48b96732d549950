"""Text by the command line: train, resume, evaluate, predict, export."""

import json

import pytest
import torch
import yaml
from interruptions import Interrupted, differences, interrupt_at
from run_files import load, read_metrics

pytest.importorskip("transformers")

BRACKETS = "pg_lightning.text.brackets"
CONFIG = {
    "seed_everything": 1,
    "trainer": {"accelerator": "cpu", "log_every_n_steps": 1},
    "model": {
        "class_path": "pg_lightning.algorithms.GRPO",
        "init_args": {
            "lr": 1e-3,
            "kl_coef": 0.1,
            "policy": {
                "class_path": "pg_lightning.text.LanguagePolicy",
                "init_args": {"model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "context": 24}},
            },
        },
    },
    "data": {
        "prompts": {"class_path": f"{BRACKETS}.prompts", "init_args": {"seed": 1, "count": 60}},
        "reward": f"{BRACKETS}.reward",
        "tokenizer": {"characters": "()[]{}|"},
        "num_prompts": 3,
        "num_completions": 4,
        "max_new_tokens": 6,
        "total_steps": 300,
        "eval_every_steps": 100,
        "eval_episodes": 5,
        "eval_deterministic": False,
    },
}


MORE_PROMPTS = json.dumps([f"{chr(40) * n}|" for n in range(1, 11)] * 6 + ["[|"] * 5)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tiny_text.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def train_text(cli, config):
    def run(folder, *arguments):
        finished = cli(folder, "fit", "--config", config, *arguments)
        assert finished.returncode == 0, finished.stderr
        return folder / "runs/tiny_text/version_0"

    return run


@pytest.fixture(scope="module")
def text_run(train_text, tmp_path_factory):
    return train_text(tmp_path_factory.mktemp("run"))


def complaint(cli, folder, config, *arguments):
    finished = cli(folder, "fit", "--config", config, *arguments)
    assert finished.returncode == 2, finished.stdout + finished.stderr
    return finished.stderr.strip().splitlines()[-1]


def test_a_run_logs_what_is_special_to_text(text_run):
    logged = {key for row in read_metrics(text_run) for key in row}
    assert {"train/kl_to_reference", "train/ratio_mean", "rollout/truncated", "rollout/return_mean"} <= logged
    rows = [row for row in read_metrics(text_run) if "train/kl_to_reference" in row]
    assert rows[0]["train/kl_to_reference"] == pytest.approx(0, abs=1e-6)
    assert abs(rows[-1]["train/kl_to_reference"]) > 1e-5


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO", "REINFORCE"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(algorithm, train_text, tmp_path):
    model = {"class_path": f"pg_lightning.algorithms.{algorithm}", "init_args": dict(CONFIG["model"]["init_args"])}
    if algorithm == "REINFORCE":
        del model["init_args"]["kl_coef"]
        model["init_args"] |= {"baseline": "group_mean", "gamma": 1.0}
    options = ("--model", json.dumps(model))
    whole = train_text(tmp_path / "whole", *options)
    updates = load(whole / "checkpoints/last.ckpt")["pg_lightning"]["policy_version"]
    with pytest.raises(Interrupted):
        train_text(tmp_path / "stopped", *options, *interrupt_at(updates - 1))
    resumed = train_text(tmp_path / "stopped", *options, "--ckpt_path", "last")
    assert differences(whole, resumed) == []


def test_training_uses_every_prompt_once_before_any_twice(train_text, tmp_path, monkeypatch):
    from pg_lightning.text.collector import CompletionCollector

    chosen = []
    original = CompletionCollector._next_prompts  # noqa: SLF001 - the order is the collector's own affair
    monkeypatch.setattr(CompletionCollector, "_next_prompts", lambda self: chosen.append(x := original(self)) or x)
    train_text(tmp_path, "--data.total_steps", 1200)
    order = [i for prompts in chosen for i in prompts]
    assert len(order) > 50
    assert sorted(order[:48]) == [*range(48)]  # 60 without the fifth for evaluations


def test_predict_writes_the_completions_of_prompts_that_no_validation_has_seen(cli, text_run):
    checkpoint = text_run / "checkpoints/best.ckpt"
    finished = cli(text_run, "predict", "--ckpt_path", checkpoint)
    assert finished.returncode == 0, finished.stderr
    rows = [json.loads(line) for line in (text_run / "predict/completions.jsonl").read_text().splitlines()]
    from pg_lightning.text.brackets import prompts, reward

    held_out = prompts(1, 60)[-12:]
    assert [row["prompt"] for row in rows] == held_out[1::2][:5]
    assert [row["reward"] for row in rows] == pytest.approx(
        reward([row["prompt"] for row in rows], [row["completion"] for row in rows])
    )


def test_test_reports_the_reward(cli, text_run):
    finished = cli(text_run, "test", "--ckpt_path", text_run / "checkpoints/best.ckpt")
    assert finished.returncode == 0, finished.stderr
    report = json.loads((text_run / "test.json").read_text())
    assert report["episodes"] == 5
    assert report["env_id"] == f"{BRACKETS}.prompts"


def test_an_exported_model_continues_a_prompt_as_the_policy_does(cli, text_run):
    import transformers

    finished = cli(text_run, "export", "--ckpt_path", text_run / "checkpoints/best.ckpt")
    assert finished.returncode == 0, finished.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(text_run / "export")
    weights = load(text_run / "checkpoints/best.ckpt")["state_dict"]
    for name, x in model.state_dict().items():
        assert torch.equal(x, weights[f"network.model.{name}"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_run / "export")
    end = tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == model.config.eos_token_id == end
    assert tokenizer("([|").input_ids == [1, 3, 7]
    assert tokenizer.eos_token_id == 0


@pytest.mark.parametrize("command", ["record", "play", "diagnose"])
def test_commands_that_need_an_environment_say_so(command, cli, text_run):
    finished = cli(text_run, command, "--ckpt_path", text_run / "checkpoints/best.ckpt")
    assert finished.returncode == 2
    assert f"error: {command}: needs an environment, and the data are prompts" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data.max_new_tokens", 23), "data.prompts: prompt 1 .* the model's context has room for 1"),
        (("--data.tokenizer", '{"characters": "([|"}'), "has characters that data.tokenizer does not know"),
        (("--data.tokenizer", '{"characters": "(("}'), "data.tokenizer: characters must be different"),
        (("--data.prompts", '["(|", "[|"]'), "data.eval_prompts: a fifth of data.prompts is for evaluations"),
        (("--data.num_completions", 1), "data.num_completions: GRPO compares completions of one prompt; set it to 2"),
        (("--trainer.precision", "bf16-true"), "trainer.precision: bf16-true would round rewards too"),
        (("--model.compile", "true"), "model.compile: a policy of your own with a memory is not compiled"),
        (("--data.tokenizer", '{"name": "x", "trust_remote_code": true}'), "data.tokenizer: trust_remote_code would"),
        (("--data.num_completions", 0), "data.num_completions: must be at least 1"),
        (("--data.reward", "no.such.function"), "data.reward: cannot import"),
        (("--data.prompts", "nothing.jsonl"), "data.prompts: "),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, tuple) else "",
)
def test_mistakes_are_one_line(arguments, message, cli, config, tmp_path):
    import re

    assert re.search(message, complaint(cli, tmp_path, config, *arguments))


def test_rlhf_algorithms_need_prompts(cli, tiny, tmp_path):
    model = {"class_path": "pg_lightning.algorithms.GRPO", "init_args": {}}
    arguments = ("--model", json.dumps(model), "--data.whole_episodes", "true")
    assert "GRPO compares completions of one prompt; set data.prompts" in complaint(cli, tmp_path, tiny, *arguments)


def test_examples_come_first_and_are_the_reference(cli, config, tmp_path, caplog):
    """The first update is at the policy that has learned from them, and its divergence from the reference is 0."""
    corpus = {"class_path": f"{BRACKETS}.corpus", "init_args": {"seed": 1, "count": 100}}
    start = {
        "class_path": "pg_lightning.text.SupervisedStart",
        "init_args": {"corpus": corpus, "steps": 20, "lr": 0.01},
    }
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        finished = cli(tmp_path, "fit", "--config", config, "--trainer.callbacks+", json.dumps(start))
    assert finished.returncode == 0, finished.stderr
    assert "learned from 100 examples" in caplog.text
    rows = [row for row in read_metrics(tmp_path / "runs/tiny_text/version_0") if "train/kl_to_reference" in row]
    assert rows[0]["train/kl_to_reference"] == pytest.approx(0, abs=1e-6)


def test_the_table_of_completions_appears_with_every_evaluation(cli, config, tmp_path):
    table = {"class_path": "pg_lightning.callbacks.CompletionTable", "init_args": {"rows": 2}}
    finished = cli(tmp_path, "fit", "--config", config, "--trainer.callbacks+", json.dumps(table))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count(" → ") >= 2 * 3


def changed(run, field, value, folder):
    """A copy of the last checkpoint of a run, with a value at a path of keys."""
    checkpoint = load(run / "checkpoints/last.ckpt")
    *path, last = field
    part = checkpoint
    for key in path:
        part = part[key]
    part[last] = value
    torch.save(checkpoint, folder / "changed.ckpt")
    return folder / "changed.ckpt"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ((), 3, "TextDataModule is 3, not a dict"),
        (("ranks",), {}, "TextDataModule.ranks is a dict, not a list"),
        (("ranks",), [], "TextDataModule.ranks has 0 entries, pg_lightning.ranks 1"),
        (("ranks",), [{"rollouts": 1}] * 2, "TextDataModule.ranks has 2 entries, pg_lightning.ranks 1"),
        (("ranks", 0), None, "TextDataModule.ranks[0] is None, not a dict"),
        (("ranks", 0, "rollouts"), -1, "TextDataModule.ranks[0].rollouts is -1, not a count"),
        (("ranks", 0, "rollouts"), 2**70, "TextDataModule.ranks[0].rollouts is a int, not a count"),
        (("ranks", 0, "rollouts"), 1.5, "TextDataModule.ranks[0].rollouts is 1.5, not a count"),
        (("settings",), [], "TextDataModule.settings is a list, not a dict"),
        (("settings", "seed_everything"), 3, "TextDataModule.settings.seed_everything is 3, not a text"),
    ],
    ids=str,
)
def test_a_damaged_place_in_the_prompts_is_one_line(field, value, message, cli, config, text_run, tmp_path):
    checkpoint = changed(text_run, ("TextDataModule", *field), value, tmp_path)
    line = complaint(cli, tmp_path, config, "--ckpt_path", checkpoint)
    assert str(checkpoint) in line
    assert f"cannot be used: {message}; give another checkpoint" in line


def test_ranks_at_different_places_are_damage(text_run):
    from pg_lightning.checkpoint.schema import check
    from pg_lightning.checkpoint.values import Damage

    checkpoint = load(text_run / "checkpoints/last.ckpt")
    checkpoint["pg_lightning"]["ranks"] *= 2
    checkpoint["TextDataModule"]["ranks"] = [{"rollouts": 3}, {"rollouts": 4}]
    with pytest.raises(Damage, match=r"TextDataModule.ranks\[1\].rollouts is 4, of rank 0 3"):
        check(checkpoint, "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data.num_prompts", 2), "data.num_prompts was 3 and is 2"),
        (("--data.prompts", MORE_PROMPTS), "number of data.prompts was 48 and is 52"),
        (("--seed_everything", 2), "seed_everything was 1 and is 2"),
        (("--data.num_completions", 3), None),
    ],
    ids=str,
)
def test_another_order_of_prompts_starts_in_one_line(arguments, message, cli, config, text_run, tmp_path, caplog):
    last = text_run / "checkpoints/last.ckpt"
    more = ("--ckpt_path", last, "--data.total_steps", 400)
    finished = cli(tmp_path, "fit", "--config", config, *more, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert caplog.text.count("a new order of prompts starts") == (message is not None)
    assert message is None or f"ckpt_path: {message}; a new order of prompts starts" in caplog.text
    before = 0 if message else load(last)["TextDataModule"]["ranks"][0]["rollouts"]
    after = load(tmp_path / "runs/tiny_text/version_0/checkpoints/last.ckpt")
    assert 0 < after["TextDataModule"]["ranks"][0]["rollouts"] - before < after["pg_lightning"]["policy_version"]


def test_a_checkpoint_of_the_other_kind_is_one_line(cli, config, tiny, train, text_run, tmp_path):
    played = train(tmp_path / "played") / "checkpoints/last.ckpt"
    message = "TextDataModule is missing: it was trained on an environment, not on prompts; give another checkpoint"
    assert message in complaint(cli, tmp_path, config, "--ckpt_path", played)
    message = "RolloutDataModule is missing: it was trained on prompts, not on an environment; give another checkpoint"
    written = text_run / "checkpoints/last.ckpt"
    assert message in complaint(cli, tmp_path, tiny, "--ckpt_path", written)
    for command in ("validate", "test"):
        finished = cli(tmp_path, command, "--config", tiny, "--ckpt_path", written)
        assert finished.returncode == 2
        assert message in finished.stderr
