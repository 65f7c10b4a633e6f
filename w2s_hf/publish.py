"""Pushes finished students to the Hub, one repository for each, and their weak labels as datasets.

All students of a finished run, also after a push that failed:

    w2s publish outputs/boolq --hub_namespace ME

One student that a trainer saved, with the model card in its directory:

    w2s publish out --repo_id ME/my-student
"""

import json
import logging
import os
import shlex
import sys
from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass
from pathlib import Path, PurePath

from huggingface_hub import ModelCard, get_token

from .cards import BLOCK, FIGURE, StudentCard
from .command_line import CommandLine
from .hub import PushError, commit_files, is_repository_id, owner_of_token, repository_name
from .labels import label_files
from .results import ExperimentResult

__all__ = ["STUDENT_FILES", "push_again", "push_students", "student_files"]

logger = logging.getLogger("w2s_hf.publish")  # this name is used even if the file runs as `__main__`

# These files of a student are pushed. No other file of its directory is pushed. Optimizers are large,
# training_args.bin has paths and perhaps a token, and the file names of TensorBoard contain the name of the host.
STUDENT_FILES = (
    "adapter_config.json", "adapter_model*.safetensors", "config.json", "model*.safetensors",
    "model.safetensors.index.json", "generation_config.json", "tokenizer*.json", "tokenizer.model", "spiece.model",
    "sentencepiece*.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "additional_chat_templates/*.jinja", FIGURE, "README.md",
)  # fmt: skip


def student_files(
    directory: str | Path, card: str, library_name: str, base_model: str | None = None
) -> dict[str, Path | bytes]:
    """
    Returns the files of a student for the Hub, by path in the repository.

    Args:
        directory (`str` or `Path`): The directory of a saved student.
        card (`str`): Its model card.
        library_name (`str`):
            `"peft"` for adapters, `"transformers"` for a whole model. Files of the other kind, which an earlier
            training run may have left in the directory, are ignored.
        base_model (`str`, *optional*):
            The Hub id of the base model, which replaces the name in the adapter configuration. By default, only the
            last part of the path of a local model is kept, as a relative path. Paths of this machine are not
            published, and the value is not mistaken for a Hub id.

    Raises:
        FileNotFoundError: The student does not exist.
    """
    directory, is_peft = Path(directory), library_name == "peft"
    paths = [path for pattern in STUDENT_FILES for path in directory.glob(pattern) if path.is_file()]
    files: dict[str, Path | bytes] = {path.relative_to(directory).as_posix(): path for path in paths}
    others = ("config.json", "model") if is_peft else ("adapter_",)
    files = {name: file for name, file in files.items() if not name.startswith(others)}
    config_file = "adapter_config.json" if is_peft else "config.json"
    if config_file not in files or not any(name.endswith(".safetensors") for name in files):
        raise FileNotFoundError(
            f"{directory}: got a directory without a student, expected {config_file} and *.safetensors. "
            "Check the path."
        )
    if is_peft:
        config = json.loads((directory / config_file).read_text())
        if base_model is None and not is_repository_id(config["base_model_name_or_path"]):
            base_model = f"./{PurePath(config['base_model_name_or_path']).name}"
        if base_model is not None:
            config |= {"base_model_name_or_path": base_model, "revision": None}
            files[config_file] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return files | {"README.md": card.encode()}


def push_again(path: str | Path, options: dict[str, str | bool | None]) -> str:
    """Returns the last part of the error of a failed push, with the command that pushes again."""
    command = ["w2s", "publish", str(path)]
    for option, value in options.items():
        command += [f"--{option}", *([value] if isinstance(value, str) else [])] if value else []
    return (
        f"Nothing is lost: {path} has all files, and earlier pushes are on the Hub. Push again with\n    "
        f"{shlex.join(command)}"
    )


@dataclass(frozen=True)
class _Repository:
    """The files of one commit to one repository of the Hub."""

    repo_id: str
    repo_type: str
    files: dict[str, Path | bytes]
    message: str
    revision: str | None = None


def push_students(
    output_dir: str | Path,
    *,
    namespace: str | None = None,
    private: bool | None = None,
    base_model: str | None = None,
    dry_run: bool = False,
) -> list[str]:
    """
    Pushes the students and weak labels in the output directory of a finished run.

    Each student becomes a model repository with adapters or model, head, tokenizer and card, and each set of weak
    labels becomes a dataset. Each repository gets one commit. Unchanged files make no commit, so that an interrupted
    push can be repeated.

    Args:
        output_dir (`str` or `Path`): The directory with `results.json`, `students/` and `weak_labels/`.
        namespace (`str`, *optional*): User or organization; defaults to the owner of the token (`HF_TOKEN`).
        private (`bool`, *optional*): Whether new repositories are private; defaults to the namespace's default.
        base_model (`str`, *optional*): The Hub id of the base model, if students were trained on a local copy.
        dry_run (`bool`, *optional*, defaults to `False`): Log the files of each repository, and push nothing.
            Without a token, the namespace is shown as `ME`.

    Returns:
        `list[str]`: Repository ids. Ids of datasets begin with `datasets/`.

    Raises:
        FileNotFoundError: There are no results, or students of these results are missing.
        PushError: The Hub refused the push or was not reached. All files stay on disk, and the message has the command
            that pushes again.
    """
    output_dir, requested_namespace = Path(output_dir), namespace
    if not (output_dir / "results.json").is_file():
        raise FileNotFoundError(
            f"{output_dir}: got a directory without results.json, expected the --output_dir of a finished run. "
            + _finished_nearby(output_dir)
        )
    try:
        namespace = _namespace(dry_run) if namespace is None else namespace
        return _push(_repositories(output_dir, namespace, base_model), private, dry_run)
    except PushError as error:
        options = {"hub_namespace": requested_namespace, "base_model": base_model, "hub_private": private}
        raise PushError(f"{error}\n{push_again(output_dir, options)}") from error


def _finished_nearby(directory: Path) -> str:
    """Returns advice for a directory without results: nearby directories with results, or how to push one student."""
    if any((directory / name).is_file() for name in ("adapter_config.json", "config.json")):
        return "The directory has one student. Push the student with --repo_id ME/NAME."
    places = dict.fromkeys([directory, *list(directory.absolute().parents)[:2], Path("outputs")])
    finished = {path.parent.resolve() for place in places for path in sorted(place.glob("*/results.json"))}
    names = sorted(os.path.relpath(path) for path in finished)[:8]
    if names:
        return f"Name a directory that has results: {', '.join(names)}."
    return "Finish a run first, or push one student that a trainer saved with --repo_id ME/NAME."


def _repositories(output_dir: Path, namespace: str, base_model: str | None) -> list[_Repository]:
    results = ExperimentResult.read(output_dir / "results.json")
    students = [student for run in results.runs for student in run.students]
    known = {Path(student.output).name for student in students}
    known |= {Path(link.output).name for student in students for link in student.links}
    others = [path.name for path in sorted((output_dir / "students").glob("*/")) if path.name not in known]
    if others:
        logger.warning(
            f"Students in {output_dir / 'students'} are not pushed, because they are not in results.json: "
            f"{', '.join(others)}. Push each student with --repo_id."
        )
    repositories: dict[str, _Repository] = {}
    for run in results.runs:
        for student in run.students:
            labels = output_dir / student.weak_labels
            card = StudentCard.from_results(results, run, student)
            teacher = _end(card.taught_by or run.weak.model)
            labels_id = f"{namespace}/" + repository_name(results.task, "weak-labels", teacher, labels.name)
            files = label_files(labels, labels_id)
            repositories.setdefault(
                labels_id, _Repository(labels_id, "dataset", files, f"Weak labels for {card.subject} by {teacher}")
            )
            directory, weak = output_dir / student.output, _end(run.weak.model)
            name = repository_name(results.task, _end(student.model), "from", weak, directory.name)
            card.repo_id, card.weak_labels = f"{namespace}/{name}", labels_id
            card.weak_labels_fingerprint = json.loads((labels / "provenance.json").read_text())["fingerprint"]
            card.has_figure = (directory / FIGURE).is_file()
            if base_model is not None:
                card.base_model, card.base_is_on_hub, card.base_revision = base_model, True, None
            repositories[card.repo_id] = _Repository(
                card.repo_id,
                "model",
                student_files(directory, card.render(), card.library_name, base_model),
                f"Student of {card.subject}, trained on labels of {teacher}",
            )
    return list(repositories.values())


def _push_one(
    directory: Path, repo_id: str, private: bool | None, revision: str | None, base_model: str | None, dry_run: bool
) -> None:
    """Pushes one student that a trainer saved, with the card in its directory."""
    page = directory / "README.md"
    card = ModelCard.load(page) if page.is_file() else None
    # Without create_model_card(), save_model() leaves the card of PEFT, which has the local path of the base model.
    if card is None or BLOCK not in card.data:
        raise FileNotFoundError(
            f"{page}: got no model card of a student. Write the card with trainer.create_model_card()."
        )
    if "/" not in repo_id:
        repo_id = f"{_namespace(dry_run)}/{repo_id}"
    text, library_name = page.read_text(encoding="utf-8"), card.data["library_name"]
    files = student_files(directory, text, library_name, base_model)
    config = json.loads(_content(files["adapter_config.json"])) if library_name == "peft" else {}
    has_base = not config.get("base_model_name_or_path", "").startswith("./")
    files["README.md"] = _loads_from_hub(text, repo_id, has_base=has_base).encode()
    try:
        _push([_Repository(repo_id, "model", files, "Student", revision)], private, dry_run)
    except PushError as error:
        options = {"repo_id": repo_id, "base_model": base_model, "revision": revision, "hub_private": private}
        raise PushError(f"{error}\n{push_again(directory, options)}") from error


def _loads_from_hub(card: str, repo_id: str, *, has_base: bool) -> str:
    """
    Returns the card of a trainer with a snippet that loads the student from the Hub instead of from its directory.
    The function edits the text of the card, because the front matter has neither the text nor changes by the user.
    """
    source = json.dumps(repo_id)
    card = card.replace('load_student("."', f"load_student({source}" + ("" if has_base else ', base_model="PATH"'))
    return card.replace('from_pretrained(".")', f"from_pretrained({source})")


def _content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _end(model: str) -> str:
    return model.split("/")[-1]


def _namespace(dry_run: bool) -> str:
    """Returns the owner of the token. In a dry run without a token, returns `ME`."""
    return "ME" if dry_run and get_token() is None else owner_of_token()


def _push(repositories: list[_Repository], private: bool | None, dry_run: bool) -> list[str]:
    pushed = []
    for repository in repositories:
        name = ("datasets/" if repository.repo_type == "dataset" else "") + repository.repo_id
        if dry_run:
            logger.info(f"{name}: {', '.join(sorted(repository.files))}")
        else:
            commit = commit_files(
                repository.repo_id,
                repository.files,
                message=repository.message,
                repo_type=repository.repo_type,
                private=private,
                revision=repository.revision,
                replaces=STUDENT_FILES if repository.repo_type == "model" else (),
            )
            logger.info(f"Pushed {commit.repo_url}")
        pushed.append(name)
    return pushed


def main(argv: list[str] | None = None) -> None:
    """Runs the command `w2s publish`."""
    description, _, examples = __doc__.partition("\n\n")
    parser = CommandLine(
        "w2s publish",
        usage="w2s publish DIRECTORY [options]",
        description=f"{description}\n\n{examples.rstrip()}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "output_dir",
        metavar="DIRECTORY",
        help="directory of a finished run (its --output_dir), or with --repo_id the directory of one student",
    )
    parser.add_argument(
        "--hub_namespace", metavar="NAME", help="push to this user or organization (default: owner of the token)"
    )
    parser.add_argument("--hub_private", action="store_true", help="make new repositories private")
    parser.add_argument(
        "--base_model", metavar="ID", help="Hub id of the base model, if students were trained on a local copy"
    )
    parser.add_argument("--repo_id", metavar="ID", help="push one student to this repository")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to, with --repo_id (default: main)")
    parser.add_argument("--dry_run", action="store_true", help="print the files of each repository, and push nothing")
    args = parser.parse_args(argv)
    if args.repo_id and args.hub_namespace:
        parser.error("Got --repo_id and --hub_namespace, expected one of them. Write --repo_id NAMESPACE/NAME.")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("w2s_hf").setLevel(logging.INFO)
    private = True if args.hub_private else None
    try:
        if args.repo_id:
            _push_one(Path(args.output_dir), args.repo_id, private, args.revision, args.base_model, args.dry_run)
        else:
            options = {"base_model": args.base_model, "dry_run": args.dry_run}
            push_students(args.output_dir, namespace=args.hub_namespace, private=private, **options)
    except KeyboardInterrupt:
        sys.exit("\nThe push was stopped. Repeat the command to resume it.")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
