"""Repositories on the Hub: is one within reach, and files to one in a single commit."""

import hashlib
import logging
import os
import re
import time
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .command_line import did_you_mean_path

__all__ = [
    "FILE_OPTIONS",
    "PushError",
    "cached_commit",
    "commit_files",
    "ensure_available",
    "has_only_pickles",
    "is_repository_id",
    "owner_of_token",
    "refuse_missing_directory",
    "repository_name",
]

logger = logging.getLogger(__name__)

# What `from_pretrained` and its siblings are told of a file, besides the repository that it is in.
FILE_OPTIONS = ("revision", "cache_dir", "token", "subfolder", "local_files_only", "force_download")

_PAUSES = (1, 4)  # seconds before another try, where the Hub itself failed
_LONGEST_NAME = 96  # of a repository, without its namespace
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_ADVICE = {
    401: "The token is none that the Hub knows: set HF_TOKEN, or log in with `hf auth login`.",
    403: "The token may not write there: it needs write access, and you a membership in that namespace.",
    409: "Something else is changing that repository, or its name is taken: try again.",
}


def ensure_available(name_or_path: str, *, repo_type: str, option: str, revision: str | None = None) -> str | None:
    """
    The commit of a repository that can be read, found before anything else is done; `None` for a local directory.

    With `HF_HUB_OFFLINE=1` the Hub is not asked: a model must be in the local cache then. What is there of a dataset
    only `datasets` knows, and the answer is `None`.

    Args:
        name_or_path (`str`): Local directory or Hub repository id.
        repo_type (`str`): `"model"` or `"dataset"`.
        option (`str`): The command line option to name in the advice, such as `--student_model`.
        revision (`str`, *optional*): Branch, tag or commit.

    Raises:
        FileNotFoundError: the directory, repository or revision does not exist, or the repository is gated or private
            and the token does not open it, or it is not in the cache while offline.
        ConnectionError: the Hub does not answer within 10 seconds.
    """
    if Path(name_or_path).is_dir():
        return None
    refuse_missing_directory(name_or_path, repo_type, option)
    if constants.HF_HUB_OFFLINE:
        if repo_type != "model":
            return None
        commit = cached_commit(name_or_path, revision)
        if commit is None:
            raise FileNotFoundError(
                f"{option}: {name_or_path!r} is no local directory, and not in the local cache, and HF_HUB_OFFLINE "
                f"is set. Run `hf download {name_or_path}` where there is a network, or unset HF_HUB_OFFLINE."
            )
        return commit
    try:
        return HfApi().repo_info(name_or_path, repo_type=repo_type, revision=revision, timeout=10).sha
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{option}: the {repo_type} {name_or_path!r} has no revision {revision!r}; expected one of its branches, "
            "tags or commits."
        ) from error
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{option}: the {repo_type} {name_or_path!r} is gated. Accept its terms on the Hub and set HF_TOKEN, "
            f"or give {option} a local directory."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{option}: got {name_or_path!r}, expected a local directory or the id of a {repo_type} on the Hub that "
            "your HF_TOKEN may read. No such directory, and the Hub knows no such repository."
        ) from error
    except (HTTPError, OSError) as error:
        raise ConnectionError(
            f"{option}: the Hub ({constants.ENDPOINT}) does not answer, so the {repo_type} {name_or_path!r} cannot be "
            f"looked up ({type(error).__name__}). Either give {option} a local directory, or set HF_HUB_OFFLINE=1 to "
            "use what is in the local cache, or run the recipe with no model and no data named: the embedded demo "
            "needs no network."
        ) from error


def refuse_missing_directory(
    name_or_path: str | os.PathLike, repo_type: str = "model", option: str | None = None
) -> None:
    """
    Raises `FileNotFoundError` for the path of a directory that does not exist. An id on the Hub has at most one slash,
    which is not its first character.
    """
    name = os.fspath(name_or_path)
    is_path = os.path.isabs(name) or name.startswith(("./", "../", "~")) or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(
            f"{option or repo_type}: got {name!r}, expected a local directory; there is no such directory. "
            f"Give the path of the {repo_type}, or its id on the Hub."
            f"{did_you_mean_path(name, only_directories=True)}"
        )


def cached_commit(name_or_path: str, revision: str | None = None, cache_dir: str | None = None) -> str | None:
    """The commit of a model that is in the local cache; `None` for one that is not, and for a directory."""
    if not is_repository_id(name_or_path):
        return None
    cached = try_to_load_from_cache(name_or_path, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None  # snapshots/COMMIT/config.json


def has_only_pickles(name_or_path: str, revision: str | None = None) -> bool:
    """Returns whether a local directory or a repository has weights in .bin files, and none in safetensors."""
    if Path(name_or_path).is_dir():
        names = [file.name for file in Path(name_or_path).iterdir()]
    elif not is_repository_id(name_or_path) or constants.HF_HUB_OFFLINE:
        return False
    else:
        try:
            names = HfApi().list_repo_files(name_or_path, revision=revision)
        except (HTTPError, OSError):
            return False  # whoever asks has an error of its own to report
    has_pickles = any(fnmatch(Path(name).name, "pytorch_model*.bin") for name in names)
    return has_pickles and not any(name.endswith(".safetensors") for name in names)


class PushError(ConnectionError):
    """The Hub did not take what was pushed, or was not reached."""


def repository_name(*parts: str) -> str:
    """
    A valid repository name of parts that may be anything: `"boolq-Qwen2.5-7B-naive-seed0"`. What is too long is cut,
    and ends with a hash of the whole.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))
    name = re.sub(r"([-.])[-.]+", r"\1", name).strip("-.").removesuffix(".git") or "student"
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - 9].rstrip('-.')}-{digest}"
    return name


def owner_of_token(token: str | None = None) -> str:
    """
    The user that a token, by default `HF_TOKEN`, belongs to.

    Raises:
        PushError: the Hub does not know the token, or does not answer.
    """
    try:
        return HfApi(token=token).whoami()["name"]
    except (HTTPError, OSError, ValueError, KeyError) as error:  # the last two: an answer that is none of the Hub's
        raise PushError(_reason("did not say whose token this is", error)) from error


def commit_files(
    repo_id: str,
    files: dict[str, Path | bytes],
    *,
    message: str,
    repo_type: str = "model",
    private: bool | None = None,
    replaces: tuple[str, ...] = (),
    revision: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """
    Files to a repository, which is made if it is not there, in one commit. Where nothing has changed there is none.

    Args:
        repo_id (`str`): `NAMESPACE/NAME`.
        files (`dict[str, Path | bytes]`): Content by path in the repository.
        message (`str`): Of the commit.
        repo_type (`str`, *optional*, defaults to `"model"`): Or `"dataset"`.
        private (`bool`, *optional*): Of a new repository; `None` is what the namespace says.
        replaces (`tuple[str]`, *optional*):
            Patterns of files that go, where the repository has some that are not among `files`: an adapter of last
            time beside the whole model of this time would be loaded in its place. `*` is no `/`.
        revision (`str`, *optional*): Branch; the main one by default.
        token (`str`, *optional*): In place of `HF_TOKEN`.

    Raises:
        ValueError: a file that is text has a token of the Hub in it; nothing was sent.
        PushError: the Hub did not take them, or was not reached. What to do about it is in the message.
    """
    _refuse_tokens(files, token)
    api = HfApi(token=token)

    def push() -> CommitInfo:
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        there = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision) if replaces else []
        gone = [path for path in there if path not in files and _matches(path, replaces)]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(path) for path in gone]
        operations += [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        # Not upload_folder, which may make several commits of one folder.
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision)

    pauses = iter(_PAUSES)
    while True:
        try:
            return push()
        # RuntimeError: a file that did not get through; ValueError: metadata that the Hub does not accept.
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            reason, pause = _reason(f"did not take {repo_id}", error), next(pauses, None)
            # The client tries uploads again itself, and the two requests around them not.
            if pause is None or (_status(error) or 0) < 500:
                raise PushError(reason) from error
            logger.warning(f"{reason} Trying again in {pause} seconds")
            time.sleep(pause)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)


def is_repository_id(name: str) -> bool:
    """Returns whether the name of a model may be an id on the Hub: a valid id that is no local directory."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an answer of the Hub; `None` for other errors."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _reason(what: str, error: Exception) -> str:
    status = _status(error)
    if isinstance(error, HfHubHTTPError):
        said = f"HTTP {status}: {error.server_message or error.response.reason_phrase}"
    else:
        # Of a file that did not get through the client says which, and its cause says why.
        said = "; ".join(f"{type(part).__name__}: {part}" for part in (error, error.__cause__) if part is not None)
    advice = f" {_ADVICE[status]}" if status in _ADVICE else ""
    return f"the Hub ({constants.ENDPOINT}) {what} ({' '.join(said.split())}).{advice}"


def _refuse_tokens(files: dict[str, Path | bytes], token: str | None) -> None:
    known = [secret.encode() for secret in (token, get_token()) if secret and len(secret) >= 8]
    for path, content in files.items():
        if path.endswith(".safetensors"):
            continue
        content = content if isinstance(content, bytes) else content.read_bytes()
        if _TOKEN.search(content) or any(secret in content for secret in known):
            raise ValueError(f"{path} holds a token of the Hub, which everybody could read there; take it out.")
