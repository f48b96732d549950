"""TensorBoard: in the run's folder, against env steps."""

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
