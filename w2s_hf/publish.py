"""Finished students to the Hub: one repository and one commit each."""

import logging
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

__all__ = ["push_students"]

logger = logging.getLogger(__name__)


def push_students(
    results: dict, output_dir: str | Path, *, namespace: str | None = None, private: bool | None = None
) -> list[str]:
    """
    Uploads `students/*` of a finished experiment: adapters, head, tokenizer and page.

    Args:
        results (`dict`): Content of `results.json`.
        output_dir (`str` or `Path`): Where the experiment wrote to.
        namespace (`str`, *optional*): User or organization; defaults to the owner of the token (`HF_TOKEN`).
        private (`bool`, *optional*): Of new repositories; defaults to the namespace's own default.

    Returns:
        `list[str]`: Repository ids.

    Raises:
        ConnectionError: the Hub refused or was not reached. Everything stays on disk, and the message names the
            command that pushes this student again.
    """
    api = HfApi()
    pushed = []
    for run in results["runs"]:
        for student in run["students"]:
            directory = Path(output_dir) / student["output"]
            name = f"{results['task']}-{student['model'].split('/')[-1]}-{directory.name}"
            repo_id = f"{namespace or 'YOUR_NAMESPACE'}/{name}"
            try:
                if namespace is None:
                    repo_id = f"{api.whoami()['name']}/{name}"
                api.create_repo(repo_id, exist_ok=True, private=private)
                api.upload_folder(
                    repo_id=repo_id, folder_path=directory, commit_message=f"Student taught by {run['weak']['model']}"
                )
            except (HTTPError, OSError) as error:
                raise ConnectionError(
                    f"the Hub did not take {repo_id} ({type(error).__name__}: {error}). Nothing is lost: the student "
                    f"is in {directory}. Push it again with\n    hf upload {repo_id} {directory}"
                ) from error
            logger.info(f"Pushed {repo_id}")
            pushed.append(repo_id)
    return pushed
