"""Checks whether repositories on the Hub are available, and pushes files to them in a single commit."""

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

# These arguments of `from_pretrained` and similar functions select a file in a repository.
FILE_OPTIONS = ("revision", "cache_dir", "token", "subfolder", "local_files_only", "force_download")

_PAUSES = (1, 4)  # seconds before each retry after a server error of the Hub
_LONGEST_NAME = 96  # maximum number of characters of a repository name without its namespace
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_ADVICE = {
    401: "The Hub rejected the token. Set HF_TOKEN, or log in with `hf auth login`.",
    403: "The token has no write access to this namespace. Use a token with write access to it.",
    409: "Another process is changing the repository, or its name is taken. Try again, or choose another name.",
}


def ensure_available(name_or_path: str, *, repo_type: str, option: str, revision: str | None = None) -> str | None:
    """
    Checks that a repository can be read, and returns its commit; `None` for a local directory.

    With `HF_HUB_OFFLINE=1`, models must be in the local cache. Datasets are then not checked, because only the library
    `datasets` can read its cache, and the result is `None`.

    Args:
        name_or_path (`str`): Local directory or Hub repository id.
        repo_type (`str`): `"model"` or `"dataset"`.
        option (`str`): Command line option to name in errors, such as `--student_model`.
        revision (`str`, *optional*): Branch, tag or commit.

    Raises:
        FileNotFoundError: The directory, repository or revision does not exist. The repository is gated or private,
            and the token has no access. The model is not in the cache while offline.
        ConnectionError: The Hub does not answer within 10 seconds.
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
                f"{option}: got {name_or_path!r} with HF_HUB_OFFLINE=1, expected a local directory or a model in the "
                f"local cache. Run `hf download {name_or_path}` with a network, or unset HF_HUB_OFFLINE."
            )
        return commit
    try:
        return HfApi().repo_info(name_or_path, repo_type=repo_type, revision=revision, timeout=10).sha
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{option}: the {repo_type} {name_or_path!r} has no revision {revision!r}, expected one of its branches, "
            "tags or commits. Check the revision."
        ) from error
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{option}: the {repo_type} {name_or_path!r} is gated. Accept its terms on the Hub and set HF_TOKEN, "
            f"or set {option} to a local directory."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{option}: got {name_or_path!r}, expected a local directory or the id of a {repo_type} on the Hub that "
            "your HF_TOKEN can read. Neither exists. Check the spelling, or set HF_TOKEN for a private repository."
        ) from error
    except (HTTPError, OSError) as error:
        raise ConnectionError(
            f"{option}: the Hub ({constants.ENDPOINT}) does not answer ({type(error).__name__}), so the {repo_type} "
            f"{name_or_path!r} cannot be checked. Set {option} to a local directory, or set HF_HUB_OFFLINE=1 to use "
            "the local cache. Without options for models and data, the embedded demo runs, which needs no network."
        ) from error


def refuse_missing_directory(
    name_or_path: str | os.PathLike, repo_type: str = "model", option: str | None = None
) -> None:
    """
    Raises `FileNotFoundError` for a path of a directory that does not exist.

    A name with at most one slash, which is not the first character, may be an id on the Hub and is not refused.
    """
    name = os.fspath(name_or_path)
    is_path = os.path.isabs(name) or name.startswith(("./", "../", "~")) or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(
            f"{option or repo_type}: got {name!r}, expected an existing directory. "
            f"Pass the path of the {repo_type}, or its id on the Hub."
            f"{did_you_mean_path(name, only_directories=True)}"
        )


def cached_commit(name_or_path: str, revision: str | None = None, cache_dir: str | None = None) -> str | None:
    """Returns the commit of a model in the local cache; `None` for directories and models that are not cached."""
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
            return False  # the caller reports its own error
    has_pickles = any(fnmatch(Path(name).name, "pytorch_model*.bin") for name in names)
    return has_pickles and not any(name.endswith(".safetensors") for name in names)


class PushError(ConnectionError):
    """The error of a failed upload to the Hub."""


def repository_name(*parts: str) -> str:
    """
    Joins texts to a valid repository name, such as `"boolq-Qwen2.5-7B-naive-seed0"`.

    A name that is too long is truncated, and ends with a hash of the full name.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))
    name = re.sub(r"([-.])[-.]+", r"\1", name).strip("-.").removesuffix(".git") or "student"
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - 9].rstrip('-.')}-{digest}"
    return name


def owner_of_token(token: str | None = None) -> str:
    """
    Returns the user of a token, by default of `HF_TOKEN`.

    Raises:
        PushError: There is no token. The Hub rejected the token, or does not answer.
    """
    if token is None and get_token() is None:
        raise PushError("Got no token, expected the token of a user. Set HF_TOKEN, or log in with `hf auth login`.")
    try:
        return HfApi(token=token).whoami()["name"]
    except (HTTPError, OSError, ValueError, KeyError) as error:  # ValueError, KeyError: the answer is not from the Hub
        raise PushError(_reason("did not return the owner of the token", error)) from error


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
    Pushes files to a repository in one commit. Creates the repository if needed. Without changes, there is no commit.

    Args:
        repo_id (`str`): `NAMESPACE/NAME`.
        files (`dict[str, Path | bytes]`): Content by path in the repository.
        message (`str`): Message of the commit.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): Whether a new repository is private. Defaults to the setting of the
            namespace.
        replaces (`tuple[str]`, *optional*):
            Patterns of files to delete from the repository if they are not among `files`. For example, an old adapter
            would be loaded instead of a new full model. `*` does not match `/`.
        revision (`str`, *optional*): Branch. Defaults to the main branch.
        token (`str`, *optional*): Token to use instead of `HF_TOKEN`.

    Raises:
        ValueError: A text file contains a token of the Hub. Nothing is uploaded.
        PushError: The upload failed. The message says what to do.
    """
    _refuse_tokens(files, token)
    api = HfApi(token=token)

    def push() -> CommitInfo:
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        present = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision) if replaces else []
        old = [path for path in present if path not in files and _matches(path, replaces)]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(path) for path in old]
        operations += [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        # `upload_folder` is not used, since it may push several commits for one folder.
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision)

    pauses = iter(_PAUSES)
    while True:
        try:
            return push()
        # A RuntimeError means that the upload of a file failed. A ValueError means that the Hub rejected the metadata
        # of a card.
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            reason, pause = _reason(f"did not accept {repo_id}", error), next(pauses, None)
            # The client retries uploads itself, but not the requests before and after them.
            if pause is None or (_status(error) or 0) < 500:
                raise PushError(reason) from error
            logger.warning(f"{reason} Retrying in {pause} seconds.")
            time.sleep(pause)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)


def is_repository_id(name: str) -> bool:
    """Returns whether a name may be an id on the Hub: a valid id, and not a local directory."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an error of the Hub; `None` for other errors."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _reason(problem: str, error: Exception) -> str:
    """Returns a message with the answer of the Hub and advice."""
    status = _status(error)
    if isinstance(error, HfHubHTTPError):
        details = f"HTTP {status}: {error.server_message or error.response.reason_phrase}"
    else:
        # For a failed upload, the error of the client names the file and its cause has the reason.
        details = "; ".join(f"{type(part).__name__}: {part}" for part in (error, error.__cause__) if part is not None)
    advice = f" {_ADVICE[status]}" if status in _ADVICE else ""
    return f"the Hub ({constants.ENDPOINT}) {problem} ({' '.join(details.split())}).{advice}"


def _refuse_tokens(files: dict[str, Path | bytes], token: str | None) -> None:
    secrets = [secret.encode() for secret in (token, get_token()) if secret and len(secret) >= 8]
    for path, content in files.items():
        if path.endswith(".safetensors"):
            continue
        content = content if isinstance(content, bytes) else content.read_bytes()
        if _TOKEN.search(content) or any(secret in content for secret in secrets):
            raise ValueError(
                f"Got {path} with a token of the Hub, expected no secrets in files to push. Remove the token from it."
            )
