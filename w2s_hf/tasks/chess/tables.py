"""Builds the chess tables of the report: scores of moves, accuracy by rating, and training on easy puzzles alone."""

from ...cards.markdown import markdown_table, render
from ...cards.score import interval
from ...config import CompletionConfig
from ...metrics import rounded
from ...results import AnyScore, ExperimentResult, SeedResult

__all__ = ["table_sections"]


def table_sections(results: ExperimentResult) -> list[str]:
    """Returns the sections of the report with tables, in Markdown."""
    max_new_tokens = results.settings.training.arguments.get("max_new_tokens", CompletionConfig.max_new_tokens)
    sections = [render("chess_scores.md", max_new_tokens=max_new_tokens), scores_table(results)]
    if list(results.runs[0].ceiling.scores["by_band"]) != ["unrated"]:
        is_demo = results.is_demo
        sections.append("## Accuracy by kind of puzzle" if is_demo else "## Accuracy by rating")
        sections.append(bands_table(results))
    if results.runs[0].easy_to_hard:
        sections += ["## Easy to hard", easy_to_hard_table(results)]
    return sections


def _models(run: SeedResult) -> dict[str, AnyScore]:
    """Returns the scores of all models of a seed, by role."""
    models: dict[str, AnyScore] = {"weak supervisor": run.weak}
    models |= {baseline.name: baseline for baseline in run.baselines if baseline.model}
    models |= {f"control, {control.method}, not pretrained": control for control in run.controls}
    models |= {f"student, {student.method}": student for student in run.students}
    return models | {"strong ceiling": run.ceiling}


def scores_table(results: ExperimentResult) -> str:
    """Returns accuracy, exact, mating and legal rates of all models as a Markdown table."""
    lines = []
    for run in results.runs:
        for role, model in _models(run).items():
            line = [str(run.seed), role, f"{rounded(model.accuracy)}{interval(model.ci95, 3)}"]
            line += [
                f"{rounded(model.scores[name])}{interval(model.scores[f'{name}_ci95'], 3)}"
                for name in ("exact_match", "mate_accepted", "legal_rate")
            ]
            lines.append([*line, str(model.scores["n_cut"])])
    return markdown_table(["seed", "role", "accuracy [95 %]", "exact", "mates accepted", "legal", "cut"], lines)


def bands_table(results: ExperimentResult) -> str:
    """Returns the accuracy by band as a Markdown table."""
    bands = list(dict.fromkeys(band for run in results.runs for band in run.ceiling.scores["by_band"]))
    lines = []
    for run in results.runs:
        counts = [run.ceiling.scores["by_band"].get(band, {"n": 0})["n"] for band in bands]
        lines.append([str(run.seed), "test puzzles", *map(str, counts)])
        for role, model in _models(run).items():
            scores = [model.scores["by_band"].get(band) for band in bands]
            cells = [
                "-" if score is None else f"{rounded(score['accuracy'])}{interval(score['ci95'], 3)}"
                for score in scores
            ]
            lines.append([str(run.seed), role, *cells])
    return markdown_table(["seed", "role", *bands], lines)


def easy_to_hard_table(results: ExperimentResult) -> str:
    """Returns a Markdown table of the accuracy on all and on hard puzzles, with a line per set of training puzzles."""
    lines = []
    for run in results.runs:
        scores = run.easy_to_hard
        names = {"easy": f"rated at most {scores['max_train_rating']}", "any rating": "as many of any rating"}
        for name, entry in scores["trained_on"].items():
            line = [str(run.seed), names.get(name, "all (the ceiling)"), str(entry["n_train"])]
            line += [
                f"{rounded(entry[on]['accuracy'])}{interval(entry[on]['ci95'], 3)}" for on in ("on_all", "on_hard")
            ]
            lines.append(line)
    first = results.runs[0].easy_to_hard
    n_hard = first["trained_on"]["all"]["on_hard"]["n"]
    hard = f"accuracy on the {n_hard} rated {first['min_hard_rating']} or more"
    return markdown_table(["seed", "trained on puzzles", "number", "accuracy on all test puzzles", hard], lines)
