"""TensorBoard and Weights & Biases: in the run's folder, against env steps, without network or account."""

import json
import struct

import pytest
from run_files import read_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_tensorboard_has_every_metric_at_its_env_step(train, tmp_path):
    run = train(tmp_path, "--trainer.logger", "tensorboard")
    events = EventAccumulator(str(run)).Reload()
    rows = read_metrics(run)
    names = {name for row in rows for name in row} - {"step"}
    assert names <= set(events.Tags()["scalars"])
    for name in names:
        expected = [(row["step"], pytest.approx(row[name], rel=1e-5)) for row in rows if name in row]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected


@pytest.mark.filterwarnings("ignore")
def test_wandb_works_offline_and_draws_against_env_steps(train, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "HOME": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = train(tmp_path, "--trainer.logger", "wandb")
    wandb.finish()
    wandb.teardown()

    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert not (tmp_path / "wandb").exists()
    records = list(wandb_records(file.read_bytes()))
    axes = [r.metric.step_metric for r in records if r.HasField("metric") and r.metric.glob_name == "*"]
    assert axes[-1] == "time/env_steps"
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    drawn = [(row["time/env_steps"], row["val/return_mean"]) for row in rows if "val/return_mean" in row]
    expected = [(row["step"], row["val/return_mean"]) for row in read_metrics(run) if "val/return_mean" in row]
    assert drawn == [(step, pytest.approx(value)) for step, value in expected]


def wandb_records(data: bytes):
    """The records of a `.wandb` file, a LevelDB log: blocks of 32 KiB, a record's parts behind 7 bytes each."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # in one part, or the last
            yield Record.FromString(whole)
            whole = b""
