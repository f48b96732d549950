"""The commit of a run: as git describes it, without running anything that the repository names."""

import os
import shutil
import subprocess

import pytest

from pg_lightning.run.provenance import commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "got"
    folder.mkdir()
    git(folder, "init", "-q", ".")
    (folder / "file.txt").write_text("text\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    monkeypatch.chdir(folder)
    return folder


def described(folder):
    return git(folder, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")


def test_a_clean_tree_is_its_commit_also_in_a_folder_of_it(repository, monkeypatch):
    assert commit() == git(repository, "rev-parse", "HEAD") == described(repository)
    (repository / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(repository / "deep/er")
    assert commit() == described(repository)


def test_a_change_is_marked_and_a_new_or_touched_file_is_not(repository):
    (repository / "new.txt").touch()
    os.utime(repository / "file.txt", (1, 1))
    assert commit() == described(repository)
    assert not commit().endswith("+")
    (repository / "file.txt").write_text("tExt\n")
    assert commit() == described(repository)
    assert commit().endswith("+")
    git(repository, "add", ".")
    assert commit().endswith("+")


@pytest.mark.parametrize("change", ["rm", "mode"])
def test_a_removed_file_and_another_mode_are_changes(repository, change):
    if change == "rm":
        (repository / "file.txt").unlink()
    else:
        (repository / "file.txt").chmod(0o755)
    assert commit().endswith("+")
    assert commit() == described(repository)
    if change == "mode":
        git(repository, "config", "core.fileMode", "false")
        assert commit() == described(repository)
        assert not commit().endswith("+")


def test_packed_detached_and_other_worktrees(repository, monkeypatch):
    git(repository, "gc", "-q")
    git(repository, "pack-refs", "--all")
    assert commit() == described(repository)
    git(repository, "worktree", "add", "-q", "../other", "-b", "other")
    monkeypatch.chdir(repository.parent / "other")
    (repository.parent / "other/more.txt").touch()
    git(".", "add", ".")
    assert commit() == described(".")
    assert commit().endswith("+")
    git(".", "commit", "-qm", "second")
    assert commit() == described(".")
    assert not commit().endswith("+")
    monkeypatch.chdir(repository)
    git(".", "checkout", "-q", "--detach", "other")
    assert commit() == described(".")


def test_where_there_is_no_commit_there_is_none(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commit() is None
    git(tmp_path, "init", "-q", "unborn")
    monkeypatch.chdir(tmp_path / "unborn")
    assert commit() is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("core.fsmonitor", "{program}"),
        ("core.hooksPath", "{hooks}"),
        ("core.pager", "{program}"),
        ("core.editor", "{program}"),
        ("core.sshCommand", "{program}"),
        ("core.alternateRefsCommand", "{program}"),
        ("diff.external", "{program}"),
        ("diff.evil.textconv", "{program}"),
        ("diff.evil.command", "{program}"),
        ("filter.evil.clean", "{program}"),
        ("filter.evil.smudge", "{program}"),
        ("filter.evil.process", "{program}"),
        ("alias.diff", "!{program}"),
        ("alias.describe", "!{program}"),
        ("include.path", "{included}"),
        ("includeIf.gitdir:/.path", "{included}"),
        ("remote.origin.promisor", "true"),
    ],
)
@pytest.mark.parametrize("place", ["repository", "submodule"])
def test_nothing_that_a_repository_names_is_run(repository, tmp_path, monkeypatch, key, value, place):
    ran = tmp_path / "CODE_RAN"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    program.chmod(0o755)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        shutil.copy(program, hooks / hook)
        shutil.copy(program, repository / ".git/hooks" / hook)
    included = tmp_path / "included"
    included.write_text(f'[core]\nfsmonitor = {program}\n[filter "evil"]\nclean = {program}\n')
    if place == "submodule":
        shutil.copytree(repository, tmp_path / "library")
        git(repository, "submodule", "add", "-q", str(tmp_path / "library"), "part")
        git(repository, "commit", "-qm", "with a submodule")
    part = repository / "part" if place == "submodule" else repository
    (part / ".gitattributes").write_text("* filter=evil diff=evil\n")
    git(part, "add", ".")
    git(part, "commit", "-qm", "second")
    os.utime(part / "file.txt", (1, 1))
    (part / "file.txt").write_text("tExt\n")
    git(part, "config", key, value.format(program=program, hooks=hooks, included=included))
    ran.unlink(missing_ok=True)
    assert commit() is not None
    assert not ran.exists()
    if key == "core.fsmonitor" and place == "repository":
        described(repository)
        assert ran.exists()  # what this test is about


@pytest.mark.parametrize("name", ["HEAD", "index", "config", "refs/heads/master", "packed-refs", "commondir"])
@pytest.mark.parametrize("kind", ["fifo", "garbage", "folder", "missing"])
def test_a_broken_repository_has_no_commit_and_hangs_nobody(repository, name, kind):
    git(repository, "branch", "-qM", "master")
    file = repository / ".git" / name
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "garbage":
        file.write_bytes(bytes(range(256)))
    found = commit()
    assert found is None or len(found) in (40, 41)
