"""The paths in the state of a `ModelCheckpoint`."""

import torch

from pg_lightning.checkpoint.paths import with_own_paths, without_paths

SCORE = torch.tensor(1.0)


def state(path, **more):
    paths = {"best_model_path": path, "kth_best_model_path": path, "last_model_path": path}
    return {**paths, "best_k_models": {path: SCORE}, "dirpath": "/elsewhere", "best_model_score": SCORE, **more}


def test_only_names_in_the_own_folder_are_restored(tmp_path):
    for path in ("/elsewhere/a.ckpt", "local:///x/y/a.ckpt", "../../a.ckpt", "a.ckpt"):
        found = with_own_paths(state(path), str(tmp_path))
        own = str(tmp_path / "a.ckpt")
        assert found == state(own, dirpath=str(tmp_path)), path
    for path in ("", "/", "..", ".", "/home", "thesis.txt", "a.ckpt/", 3, None):
        found = with_own_paths(state(path), str(tmp_path))
        assert found == {**state(""), "best_k_models": {}, "dirpath": str(tmp_path)}, path


def test_a_folder_is_no_checkpoint_though_it_is_named_like_one(tmp_path):
    (tmp_path / "a.ckpt").mkdir()
    (tmp_path / "b.ckpt").symlink_to(tmp_path)
    for name in ("a.ckpt", "b.ckpt"):
        assert with_own_paths(state(f"x/{name}"), str(tmp_path))["best_model_path"] == ""


def test_a_new_run_has_no_best_checkpoint():
    found = without_paths(state("/elsewhere/a.ckpt", monitor="x", more=3))
    assert found == {"dirpath": None, "best_model_path": "", "monitor": "x", "more": 3}
