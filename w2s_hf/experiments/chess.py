"""Weak-to-strong generalization on chess puzzles, from puzzles to PGR: the answers are moves, written as text."""

import numpy as np
from datasets import Dataset, DatasetDict

from ..cards.markdown import markdown_table
from ..config import CompletionConfig, StudentConfig
from ..demo.forks import FORK_MODELS, FORK_WORDS, ForkWorld
from ..modeling import load_config
from ..tasks import TaskSplits
from ..tasks.chess import ChessTask, load_puzzles
from ..tasks.halves import LINK_ROWS
from .boards import draw_boards
from .config import ChessArguments
from .experiment import Experiment
from .finetuner import Workbench
from .moves import CHESS, answer_untrained, rate_where, trivial_baselines
from .report import interval
from .seed import Materials, SeedRun

__all__ = ["ChessExperiment", "run_chess"]

_DEMO_TEXT = """
## What this demo shows, and what it does not

White has king and knight, Black king and a queen or rook, and exactly one knight move gives check and attacks the
other piece at once: a fork. Every puzzle is proved with python-chess, and no two are mirror images of each other. The
pretrained models have read {documents}single moves with a word for what they do, `check`, `hits`, `takes` or `quiet`;
no position in which there is a fork is among them, nor is the word `fork`. Models called `scratch` have read nothing.

- Where a student is better than the supervisor that taught it, it shows the effect itself, measured live: it knew the
  parts, and the labels told it which of them is meant.
- It does not show chess skill. Whoever plays a random check is right in two of three puzzles; a student below that
  baseline has understood less than that rule.
- It does not show that size helps: pretraining drives the gain here, and a supervisor from scratch has none.
- Decoys are other knight moves that give check, and others that attack; they are where a student can be misled.
- More than one epoch on a supervisor's moves teaches a student its errors, too; how many there were is below.
- A chain (`--methods bootstrap`) is better than direct training in some seeds and worse in others; where there is one,
  both are in the tables. Take several seeds.
- Each seed has puzzles, corpus and models of its own, so numbers differ from seed to seed by more than their
  intervals.
"""

_ZERO_SHOT_TEXT = """
Look at zero-shot, too, which is the student before any finetuning. Asked for a `check` in place of a `fork`, it may
find forks: then the knowledge is there and has to be asked for by its name. Asked for a `fork`, a word it has never
read, it may play what fits every word it knows, which again is the fork (with the full stop of its corpus behind it,
so never exactly the target). Where that is better than the student, learning from this supervisor did harm, as the
paper's figure 15 has it for students of very weak supervisors.
"""

_SCORES_TEXT = """
## What the moves are worth

Accuracy is the share of puzzles in which the first word of the completion is the right move, whatever it says of check
and mate. Exact: the whole completion is the right text, check marks included. Mates accepted: any mate counts where
the right move is one. Legal: a move that the rules allow. Cut: completions that did not end within {max_new_tokens}
tokens.
"""


class ChessExperiment(Experiment):
    """On puzzles."""

    setting = CHESS
    demo_models = FORK_MODELS

    def world(self, seed: int) -> ForkWorld:
        return ForkWorld(seed=seed)

    def load_real(self) -> TaskSplits:
        for model in self.readers():
            config = load_config(model.path, model.revision).get_text_config()
            self._check_length(model.name, getattr(config, "max_position_embeddings", None))
        splits = self._load_puzzles(None, dataset_path=self.args.dataset_path)
        if self.args.max_train_rating is not None:
            check_ratings(splits, self.args)
        return splits

    def load_demo(self, world: ForkWorld) -> TaskSplits:
        args = self.args
        self._check_length("the demo's models", world.tokenizer().model_max_length)
        n_train, n_test = args.n_weak + args.n_train + args.n_validation, args.n_test
        n_of_links = args.n_links * (args.n_train + args.n_validation)
        puzzles = world.puzzles(n_test + n_train + n_of_links)
        raw = {"test": puzzles[:n_test], "train": puzzles[n_test : n_test + n_train]}
        if n_of_links:
            raw[LINK_ROWS] = puzzles[n_test + n_train :]
        raw = DatasetDict({name: Dataset.from_list(rows) for name, rows in raw.items()})
        return self._load_puzzles(world, raw=raw)

    def _check_length(self, name: str, n_positions: int | None) -> None:
        max_length = self.training_args.max_length
        if n_positions is not None and (max_length or n_positions + 1) > n_positions:
            raise ValueError(
                f"--max_length: got {max_length}, expected at most {n_positions}, which is what {name} reads."
            )

    def _load_puzzles(self, world: ForkWorld | None, **source) -> TaskSplits:
        return load_puzzles(
            self.task,
            tokenizers=self.tokenizers(world),
            max_length=self.training_args.max_length,
            max_new_tokens=self.training_args.max_new_tokens,
            **source,
            **self.split_options(),
        )

    def more_of(self, run: SeedRun, materials: Materials, seed: int) -> dict:
        baselines = [*zero_shot(self.bench, materials, self.args), *trivial_baselines(materials.splits.test)]
        if self.args.max_train_rating is None:
            return {"baselines": baselines}
        return {"baselines": baselines, "easy_to_hard": easy_to_hard(self.bench, materials, self.args, seed, run)}

    def describe(self, results: dict, runs: list[SeedRun]) -> tuple[str, list[str]]:
        args = self.args
        notes = [_SCORES_TEXT.strip().format(max_new_tokens=self.training_args.max_new_tokens), scores_table(results)]
        if list(results["runs"][0]["ceiling"]["by_band"]) != ["unrated"]:
            notes.append("## Accuracy by kind of puzzle" if args.demo else "## Accuracy by rating")
            notes.append(bands_table(results))
        if args.max_train_rating is not None:
            notes += ["## Easy to hard", easy_to_hard_table(results)]
        answers, method, test = runs[0].answers, args.methods[-1], self.materials(args.seeds[0]).splits.test
        title = f"student ({method}, seed {args.seeds[0]})"
        notes.append(draw_boards(answers[method], answers["weak"], test, self.output_dir, title))
        if args.demo:
            n_documents = args.demo_documents or FORK_MODELS[args.student_model].n_documents
            text = _DEMO_TEXT.strip().format(documents=f"{n_documents:,} " if n_documents else "")
            notes.insert(0, text + ("\n\n" + _ZERO_SHOT_TEXT.strip() if args.zero_shot else ""))
        results["example_prompt"] = test["prompt"][0]
        return self.task.description, notes


def run_chess(
    task: ChessTask, args: ChessArguments, training_args: CompletionConfig, student_config: StudentConfig
) -> dict:
    """[`Experiment.run`] on puzzles."""
    return ChessExperiment(task, args, training_args, student_config).run()


def zero_shot(bench: Workbench, materials: Materials, args: ChessArguments) -> list[dict]:
    """The student before any finetuning, on the test puzzles; in the demo also asked for a check."""
    if not args.zero_shot:
        return []
    test, student = materials.splits.test, materials.student
    source = {"task": materials.splits.task.name, "dataset": materials.splits.source}
    asked = {"zero-shot": test}
    if args.demo:
        fork, check = FORK_WORDS[:2]
        asked[f"zero-shot, asked for a {check}"] = test.map(
            lambda row: {"prompt": row["prompt"].replace(fork, check)}, desc="Asking"
        )
    entries = []
    for name, rows in asked.items():
        answers = answer_untrained(bench, "zero-shot", student, rows, source)
        entries.append({"name": name, "model": student.name, **CHESS.scores(answers, rows)})
    return entries


def check_ratings(splits: TaskSplits, args: ChessArguments) -> None:
    """Raises `ValueError` where there is nothing easy to train on, or nothing hard to test on."""
    for name in ("student_half", "student_validation"):
        if not _is_easy(getattr(splits, name), args).any():
            raise ValueError(
                f"--max_train_rating {args.max_train_rating}: no puzzle of `{name}` is rated at most that; ratings "
                "come from a column `Rating`."
            )
    if not _is_hard(splits.test, args).any():
        raise ValueError(f"--min_hard_rating {args.min_hard_rating}: no test puzzle is rated at least that.")


def _is_easy(rows: Dataset, args: ChessArguments) -> np.ndarray:
    ratings = np.array(rows["rating"])
    return (ratings >= 0) & (ratings <= args.max_train_rating)


def _is_hard(rows: Dataset, args: ChessArguments) -> np.ndarray:
    return np.array(rows["rating"]) >= args.min_hard_rating


def easy_to_hard(bench: Workbench, materials: Materials, args: ChessArguments, seed: int, run: SeedRun) -> dict:
    """
    Trained on easy puzzles, tested on all and on hard ones (paper, appendix C): true moves of the easy puzzles of the
    student half, and of as many puzzles of any rating, so that only the difficulty differs.
    """
    splits, test = materials.splits, materials.splits.test
    source = {"task": splits.task.name, "dataset": splits.source, "split_fingerprint": splits.fingerprint}
    easy, easy_validation = (
        rows.select(np.flatnonzero(_is_easy(rows, args))) for rows in (splits.student_half, splits.student_validation)
    )
    parts = {
        "easy": (easy, easy_validation),
        # The student half is in random order.
        "any rating": tuple(
            rows.select(range(len(few)))
            for rows, few in ((splits.student_half, easy), (splits.student_validation, easy_validation))
        ),
    }
    everything, hard = np.ones(len(test), dtype=bool), _is_hard(test, args)
    answers = {"all": run.answers["ceiling"]}
    for name, (train, validation) in parts.items():
        stage = bench.finetune(
            f"easy-to-hard-{name.replace(' ', '-')}",
            materials.student,
            CHESS.with_ground_truth(train),
            CHESS.with_ground_truth(validation),
            [test],
            seed=seed,
            provenance=source,
        )
        answers[name] = CHESS.labels.load(stage / "predictions").of(list(test["id"]))
    trained_on = {"easy": len(easy), "any rating": len(easy), "all": len(splits.student_half)}
    return {
        "max_train_rating": args.max_train_rating,
        "min_hard_rating": args.min_hard_rating,
        "trained_on": {
            name: {
                "n_train": n,
                "on_all": rate_where(answers[name], test, everything),
                "on_hard": rate_where(answers[name], test, hard),
            }
            for name, n in trained_on.items()
        },
    }


def _models(run: dict) -> dict[str, dict]:
    """Everything in a run that wrote moves, by role."""
    models = {"weak supervisor": run["weak"]}
    models |= {entry["name"]: entry for entry in run["baselines"] if entry["model"]}
    models |= {f"control, {entry['method']}, not pretrained": entry for entry in run["controls"]}
    models |= {f"student, {entry['method']}": entry for entry in run["students"]}
    return models | {"strong ceiling": run["ceiling"]}


def scores_table(results: dict) -> str:
    """What else is known of every model's moves, in Markdown."""
    lines = []
    for run in results["runs"]:
        for role, entry in _models(run).items():
            line = [str(run["seed"]), role, f"{entry['accuracy']:.3f}{interval(entry['ci95'])}"]
            line += [
                f"{entry[name]:.3f}{interval(entry[f'{name}_ci95'])}"
                for name in ("exact_match", "mate_accepted", "legal_rate")
            ]
            lines.append([*line, str(entry["n_cut"])])
    return markdown_table(["seed", "role", "accuracy [95 %]", "exact", "mates accepted", "legal", "cut"], lines)


def bands_table(results: dict) -> str:
    """Accuracy by band, in Markdown."""
    bands = list(dict.fromkeys(band for run in results["runs"] for band in run["ceiling"]["by_band"]))
    lines = []
    for run in results["runs"]:
        counts = [run["ceiling"]["by_band"].get(band, {"n": 0})["n"] for band in bands]
        lines.append([str(run["seed"]), "test puzzles", *map(str, counts)])
        for role, entry in _models(run).items():
            cells = [entry["by_band"].get(band) for band in bands]
            shown = ["-" if cell is None else f"{cell['accuracy']:.3f}{interval(cell['ci95'])}" for cell in cells]
            lines.append([str(run["seed"]), role, *shown])
    return markdown_table(["seed", "", *bands], lines)


def easy_to_hard_table(results: dict) -> str:
    """Who was trained on what and how it does on hard puzzles, in Markdown."""
    lines = []
    for run in results["runs"]:
        found = run["easy_to_hard"]
        names = {"easy": f"rated at most {found['max_train_rating']}", "any rating": "as many of any rating"}
        for name, entry in found["trained_on"].items():
            line = [str(run["seed"]), names.get(name, "all (the ceiling)"), str(entry["n_train"])]
            line += [f"{entry[on]['accuracy']:.3f}{interval(entry[on]['ci95'])}" for on in ("on_all", "on_hard")]
            lines.append(line)
    first = results["runs"][0]["easy_to_hard"]
    n_hard = first["trained_on"]["all"]["on_hard"]["n"]
    hard = f"on the {n_hard} rated {first['min_hard_rating']} or more"
    return markdown_table(["seed", "true moves of puzzles", "puzzles", "on all test puzzles", hard], lines)
