"""Is a repository on the Hub within reach? Asked before any work starts, so that a missing network costs seconds."""

from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError

__all__ = ["ensure_available"]


def ensure_available(name_or_path: str, *, repo_type: str, option: str) -> None:
    """Raises unless `name_or_path` is a local directory or a repository that the Hub answers for.

    With `HF_HUB_OFFLINE=1` nothing is asked: the libraries then read their own caches, and fail at once if they miss.

    Args:
        name_or_path (`str`): Local directory or Hub repository id.
        repo_type (`str`): `"model"` or `"dataset"`.
        option (`str`): The command line option to name in the advice, such as `--student_model`.

    Raises:
        FileNotFoundError: the repository does not exist, or it is gated or private and the token does not open it.
        ConnectionError: the Hub does not answer within 10 seconds.
    """
    if Path(name_or_path).is_dir() or constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().repo_info(name_or_path, repo_type=repo_type, timeout=10)
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
