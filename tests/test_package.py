"""Tests of the structure of the package: imports between modules, public names and docstrings."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.running import WHOLE_RUNS

import w2s_hf

PACKAGE = Path(w2s_hf.__file__).parent

# A module imports only from lines above its own.
LAYERS = [
    {"_compat", "code_fingerprint", "command_line", "metrics"},
    {"user_code"},
    {"launch", "losses", "hub", "probabilities", "cards.markdown", "results.record"},
    {"results.predictions", "results.settings"},
    {"results.schema"},
    {"results"},
    {"cards.trained_with", "cards.score"},
    {"cards.from_results"},
    {"cards.student_card"},
    {"cards"},
    {"config", "labels", "results.table"},
    {"tokenization"},
    {"collators", "generation", "plots", "publish", "leaderboard", "training_settings"},
    {"modeling.heads", "modeling.original_qwen"},
    {"modeling.adapters"},
    {"modeling.students"},
    {"modeling.spec"},
    {"modeling"},
    {"memory.shapes", "memory.seed_models"},
    {"memory.estimate"},
    {"memory", "memory.__main__", "memory.check"},
    {"tasks.prompt"},
    {"tasks.task", "tasks.tokenizing", "analysis.figures", "analysis.batches", "analysis.arguments"},
    {"tasks.classification", "tasks.multiple_choice", "tasks.loading"},
    {"tasks.halves"},
    {"tasks.splits"},
    {"tasks.preferences", "tasks.generation", "tasks.texts"},
    {"tasks"},
    {"tasks.chess.moves"},
    {"tasks.chess.scores"},
    {"tasks.chess.boards", "tasks.chess.tables", "tasks.chess.positions"},
    {"tasks.chess.puzzles"},
    {"tasks.chess"},
    {"tasks.leak_probe"},
    {"analysis.agreement", "analysis.early_stopping", "analysis.probes", "analysis.prompting", "analysis.saliency"},
    {"analysis.weak_errors"},
    {"analysis"},
    {"transforms"},
    {"methods"},
    {"trainers.checks", "trainers.mixins", "trainers.row_loss"},
    {
        "trainers.agreement",
        "trainers.checkpoints",
        "trainers.epochs",
        "trainers.evaluation",
        "trainers.snapshots",
    },
    {"trainers.resuming", "trainers.student_card"},
    {"trainers.whole_step", "trainers.sft", "trainers.chain"},
    {"trainers.weak_to_strong", "trainers.reward_pair", "trainers.completion"},
    {"trainers.bootstrap"},
    {"trainers"},
    {"demo.worlds", "demo.models"},
    {"demo.rows", "demo.forks"},
    {"demo.loading"},
    {"demo"},
    {"experiments.console", "experiments.tracking"},
    {"experiments.cache", "experiments.config", "experiments.config_file"},
    {"experiments.settings.base", "experiments.report"},
    {"experiments.finetuner", "experiments.output_directory"},
    {"experiments.bootstrapping", "experiments.generative_finetuning"},
    {"experiments.prompts", "experiments.model_queries"},
    {"experiments.label_context"},
    {"experiments.seed"},
    {"experiments.scores"},
    {"experiments.analysis_context"},
    {"experiments.analyses", "experiments.self_baselines"},
    {"experiments.settings.classification", "experiments.settings.generation"},
    {"experiments.transfer"},
    {"experiments.settings.chess", "experiments.settings.reward"},
    {"experiments.settings"},
    {"experiments.experiment"},
    {"experiments.classification", "experiments.reward", "experiments.chess", "experiments.cli"},
    {"experiments"},
    {"sweep.grid", "sweep.plots"},
    {"sweep.live", "sweep.report"},
    {"sweep.cells"},
    {"sweep.cluster"},
    {"sweep.run"},
    {"sweep.cli"},
    {"sweep", "pgr_metric.pgr_metric", "pgr_metric.app"},
    {"cli"},
    {"__main__"},
]
# Exceptions: these are imported inside a function.
UPWARDS = {("results", "results.table"), ("tasks", "tasks.chess")}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


def import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yields all imports in the code below a node, except those for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from import_nodes(ast.Module(child.orelse))
        else:
            yield from import_nodes(child)


def imports(name: str, path: Path) -> set[str]:
    """Returns the modules of the package that a module imports, at its top or in a function."""
    package = ["w2s_hf", *name.split(".")][: None if path.name == "__init__.py" else -1]
    known = {f"w2s_hf.{module}" for module, _ in modules()}
    names: set[str] = set()
    for node in import_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            continue
        parents = package[: len(package) + 1 - node.level] if node.level else []
        module = ".".join([*parents, *filter(None, [node.module])])
        for imported in (f"{module}.{alias.name}" for alias in node.names):
            names.add(imported if imported in known else module)
    return {module.removeprefix("w2s_hf.") for module in names if module.split(".")[0] == "w2s_hf"}


def test_nobody_imports_upwards_or_in_a_circle():
    layer_of = {name: position for position, names in enumerate(LAYERS) for name in names}
    assert set(layer_of) == {name for name, _ in modules()}, "a module has no layer, or a layer has no module"
    upwards = {
        (name, used) for name, path in modules() for used in imports(name, path) if layer_of[used] >= layer_of[name]
    }
    assert upwards == UPWARDS


def test_trainers_know_nothing_of_experiments_and_tasks():
    for name, path in modules():
        if name.startswith(("trainers", "losses", "metrics", "labels", "collators", "modeling")):
            assert not any(used.startswith(("experiments", "tasks")) for used in imports(name, path)), name


@pytest.mark.parametrize(
    ("module", "absent"),
    [("w2s_hf.losses", "transformers"), ("w2s_hf.metrics", "torch"), ("w2s_hf", "torch"), ("w2s_hf.publish", "torch")],
)
def test_light_modules_import_light(module, absent):
    script = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_public_names_resolve_and_have_docstrings():
    for name in w2s_hf.__all__:
        value = getattr(w2s_hf, name)
        assert isinstance(value, dict) or value.__doc__
    assert set(w2s_hf.__all__) <= set(dir(w2s_hf))
    with pytest.raises(AttributeError, match="Public names: "):
        w2s_hf.WeakToStrong  # noqa: B018


def test_every_public_function_and_class_is_documented():
    for name, path in modules():
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                if decorators and name.startswith("pgr_metric") or "overload" in decorators:
                    continue  # evaluate adds the docstring; the last definition has the docstring of overloads
                assert ast.get_docstring(node), f"{name}.{node.name}"


def test_every_help_text_is_there():
    import dataclasses

    from trl import ModelConfig, RewardConfig, SFTConfig

    from w2s_hf import config
    from w2s_hf.experiments import config as options

    inherited = {field.name for kind in (ModelConfig, RewardConfig, SFTConfig) for field in dataclasses.fields(kind)}
    kinds = [
        options.AnyTaskArguments, options.ChessArguments, options.RewardArguments, config.BootstrapConfig,
        config.CompletionConfig, config.RewardPairConfig, config.StudentConfig, config.WeakToStrongConfig,
    ]  # fmt: skip
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert field.metadata.get("help") or field.name in inherited, f"{kind.__name__}.{field.name}"


def test_fixtures_of_whole_runs_exist():
    """Tests are marked as slow by the names of these fixtures."""
    nodes = [node for path in Path(__file__).parent.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    fixtures = {node.name for node in functions if "fixture" in " ".join(map(ast.unparse, node.decorator_list))}
    assert fixtures >= WHOLE_RUNS


def test_no_test_module_imports_another():
    """Shared code is in `helpers`."""
    tests = Path(__file__).parent
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules = [name for name in names if name.split(".")[0].startswith(("test_", "conftest"))]
            assert not modules, f"{path.name} imports {modules[0]}"
