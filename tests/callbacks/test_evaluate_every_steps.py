"""What other callbacks and the command line ask the callback that evaluates."""

from lightning.pytorch import Callback
from run_files import load

from pg_lightning.callbacks import EvaluateEverySteps


class Asks(Callback):
    """Notes at the end of every rollout whether an evaluation is due; the evaluations note themselves."""

    def __init__(self, evaluations):
        self.evaluations = evaluations
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(("rollout", self.evaluations.is_due))
        trainer.save_checkpoint(f"{trainer.default_root_dir}/{pl_module.env_steps}.ckpt")

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(("evaluation", self.evaluations.is_due))


def test_an_evaluation_is_due_from_the_end_of_a_rollout_until_it_is_done_in_checkpoints_too(fit, tmp_path):
    evaluations = EvaluateEverySteps()
    asks = Asks(evaluations)
    data = {"eval_every_steps": 128, "eval_episodes": 1, "total_steps": 256}
    fit("CartPole-v1", data, trainer={"callbacks": [evaluations, asks], "default_root_dir": tmp_path})
    assert asks.seen == [("rollout", False), ("rollout", True), ("evaluation", False)] * 2
    due = {steps: EvaluateEverySteps.was_due(load(tmp_path / f"{steps}.ckpt")) for steps in (64, 128, 192, 256)}
    assert due == {64: False, 128: True, 192: False, 256: True}
    assert not EvaluateEverySteps.was_due({})
