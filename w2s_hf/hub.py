"""Is a repository on the Hub within reach? Asked before any work starts, so that a missing network costs seconds."""

from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

__all__ = ["ensure_available"]


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
        FileNotFoundError: the repository or revision does not exist, or it is gated or private and the token does not
            open it, or it is not in the cache while offline.
        ConnectionError: the Hub does not answer within 10 seconds.
    """
    if Path(name_or_path).is_dir():
        return None
    if constants.HF_HUB_OFFLINE:
        if repo_type != "model":
            return None
        cached = try_to_load_from_cache(name_or_path, "config.json", revision=revision)
        if not isinstance(cached, str):
            raise FileNotFoundError(
                f"{option}: {name_or_path!r} is no local directory, and not in the local cache, and HF_HUB_OFFLINE "
                f"is set. Run `hf download {name_or_path}` where there is a network, or unset HF_HUB_OFFLINE."
            )
        return Path(cached).parent.name  # snapshots/COMMIT/config.json
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
