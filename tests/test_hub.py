"""Tests the check, before any training, that repositories can be read, and at which commit."""

from unittest.mock import Mock

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RevisionNotFoundError

from w2s_hf import StudentConfig, load_student
from w2s_hf.hub import ensure_available
from w2s_hf.modeling import load_config
from w2s_hf.modeling.spec import ModelSpec

MODEL = {"repo_type": "model", "option": "--student_model"}


def test_offline_a_model_must_be_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="--student_model: got 'a/b' .*`hf download a/b`"):
        ensure_available("a/b", **MODEL)
    repository, commit = tmp_path / "models--a--b", "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    # The key of each cached step contains the commit, not the branch, which may be updated.
    found = ModelSpec.find("a/b", "--student_model")
    assert found.version == found.revision == commit


@pytest.mark.parametrize("is_offline", [True, False])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("{root}/minilm", " Did you mean 'minilm-l6'?"),
        ("./minilm", " Did you mean 'minilm-l6'?"),
        ("../models/minilm", " Did you mean 'minilm-l6'?"),
        ("~/minilm-l6", " Did you mean '{root}/minilm-l6'?"),
        ("{root}/other", ""),
        ("a/b/c", ""),
    ],
)
def test_a_path_without_a_directory_is_no_id_on_the_hub(name, hint, is_offline, tmp_path, monkeypatch):
    root = tmp_path / "models"
    (root / "minilm-l6").mkdir(parents=True)
    (root / "minilm.txt").touch()
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    name, hint = name.format(root=root), hint.format(root=root)
    message = f"got {name!r}, expected an existing directory"
    for read in (lambda: ensure_available(name, **MODEL), lambda: load_config(name), lambda: load_student(name)):
        with pytest.raises(FileNotFoundError) as caught:
            read()
        assert message in str(caught.value) and str(caught.value).endswith(f"its id on the Hub.{hint}")


def test_an_unknown_revision_is_named(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refuse(self, name, *, repo_type, revision, timeout):
        raise RevisionNotFoundError("no such revision", response=Mock())

    monkeypatch.setattr(HfApi, "repo_info", refuse)
    with pytest.raises(FileNotFoundError, match="'a/b' has no revision 'v9'"):
        ensure_available("a/b", revision="v9", **MODEL)


def test_a_directory_has_no_revision(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    assert ModelSpec.find(str(tmp_path), "--student_model", StudentConfig()).revision is None
    with pytest.raises(ValueError, match="got the revision 'v9' of the directory"):
        ModelSpec.find(str(tmp_path), "--student_model", StudentConfig(model_revision="v9"))
