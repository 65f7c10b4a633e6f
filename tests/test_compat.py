"""Tests that private APIs of other libraries exist in the installed versions, and are used in `_compat` only."""

import ast
import inspect
import re
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

import w2s_hf
from w2s_hf import _compat

PACKAGE = Path(w2s_hf.__file__).parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "_compat.py"]
LIBRARIES = {*_compat.CHECKED, "huggingface_hub"}

# Modules below the top of a library from which other files may import these names: their documentation lists them, or
# public methods return them.
DOCUMENTED = {
    "torch.nn": None,
    "torch.nn.functional": None,
    "torch.utils.data": None,
    "transformers.integrations": {"TensorBoardCallback"},
    "transformers.pytorch_utils": {"Conv1D"},
    "transformers.trainer_utils": {"EvalLoopOutput", "HubStrategy", "PredictionOutput", "TrainOutput"},
    "transformers.utils": {"logging"},
    "transformers.utils.logging": {"get_logger"},
    "trl.trainer.reward_trainer": {"DataCollatorForPreference"},
    "trl.trainer.sft_trainer": {"DataCollatorForLanguageModeling"},
    "peft.tuners.tuners_utils": {"BaseTunerLayer"},
    "bitsandbytes.nn": None,
    "accelerate.data_loader": {"BatchSamplerShard", "DataLoaderDispatcher"},
    "accelerate.utils": {"broadcast_object_list", "gather_object", "release_memory"},
    "datasets.exceptions": {"DatasetsError"},
    "datasets.utils": {"tqdm"},
    "huggingface_hub.errors": None,
    "huggingface_hub.utils": {"validate_repo_id"},
}

# Private names that other files may use, with the reason.
ALLOWED = {
    "_replace": "namedtuple, whose documentation lists it",
    "_actions": "argparse of the standard library, which the parsers of this package extend",
    "_check_value": "argparse of the standard library, which the parsers of this package extend",
    "active_adapters": "documented for PeftModel and BaseTunerLayer",
    "modules_to_save": "a documented field of LoraConfig",
    "original_module": "part of the names of weights",
    "remainder": "documented for accelerate's data loaders",
    "is_quantized": "read with a default, of models that transformers has quantized",
    "_untrained_head": "set by this package on models",
    "_untrained_entries": "set by this package on models",
    **{name: "documented in _compat.OVERRIDDEN" for names in _compat.OVERRIDDEN.values() for name in names},
}


def lookup(place: str):
    """The module, or the class of a module, that a key such as `"transformers.trainer:Trainer"` names."""
    module, _, name = place.partition(":")
    owner = import_module(module)
    return getattr(owner, name) if name else owner


def members(table: dict[str, tuple[str, ...]]):
    return [(place, name) for place, names in table.items() for name in names]


# ---- Every entry resolves ----


@pytest.mark.parametrize("name", _compat.IMPORTS)
def test_name_can_be_imported(name):
    assert getattr(_compat, name) is not None


def test_type_checkers_see_the_same_names():
    module = ast.parse(Path(_compat.__file__).read_text())
    (block,) = [node for node in module.body if isinstance(node, ast.If)]
    seen = [(alias.asname or alias.name, node.module) for node in block.body for alias in node.names]
    assert ast.unparse(block.test) == "TYPE_CHECKING" and sorted(seen) == sorted(_compat.IMPORTS.items())


@pytest.mark.parametrize(("place", "name"), members(_compat.OVERRIDDEN))
def test_overridden_member_is_there(place, name):
    owner = lookup(place)
    assert hasattr(owner, name) or uses(owner, name)


@pytest.mark.parametrize(("place", "name"), members(_compat.ATTRIBUTES))
def test_library_uses_attribute(place, name):
    since, library = _compat.SINCE.get(name, "0"), place.split(".")[0]
    if Version(version(library)) < Version(since):
        pytest.skip(f"{library} has {name} since {since}")
    assert uses(lookup(place), name)


def uses(owner, name: str) -> bool:
    """Whether the source of a module, or that of the module of a class, has a name."""
    module = owner if inspect.ismodule(owner) else inspect.getmodule(owner)
    return re.search(rf"\b{name}\b", inspect.getsource(module)) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'unknown'"):
        _compat.unknown  # noqa: B018


def functions():
    own = [value for value in vars(_compat).values() if getattr(value, "__module__", None) == _compat.__name__]
    return [function for function in own if not function.__name__.startswith("_")]


@pytest.mark.parametrize("function", functions(), ids=lambda function: function.__name__)
def test_function_says_what_replaces_it(function):
    assert re.search(r"There is no public replacement|[Pp]ublic replacements?(:| is| are) ", function.__doc__)


@pytest.mark.parametrize("table", ["IMPORTS", "OVERRIDDEN", "ATTRIBUTES"])
def test_library_of_every_entry_has_versions(table):
    places = vars(_compat)[table]
    modules = places.values() if table == "IMPORTS" else places
    assert {module.split(".")[0] for module in modules} <= set(_compat.CHECKED)


def test_every_entry_is_used():
    text = "\n".join(path.read_text() for path in FILES)
    names = [*_compat.IMPORTS, *(function.__name__ for function in functions())]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


# ---- Other modules use no private API ----


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_api_outside_compat(path):
    found = [*private_imports(ast.parse(path.read_text())), *private_names(ast.parse(path.read_text()))]
    assert not found, f"private APIs belong in _compat.py: {', '.join(found)}"


def private_imports(tree: ast.Module):
    """Imports from modules of the libraries that their documentation does not list."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in imported:
            if module.split(".")[0] not in LIBRARIES:
                continue
            is_top = "." not in module
            is_listed = module in DOCUMENTED and (DOCUMENTED[module] is None or name in DOCUMENTED[module])
            if not (is_top or is_listed) or (name or "").startswith("_"):
                yield f"line {node.lineno}: {module} {name or ''}"


def private_names(tree: ast.Module):
    """Attributes and arguments with an underscore that the package itself neither defines nor is allowed to use."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.keyword):
            name = node.arg or ""
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            name = getattr(node.args[1], "value", "")
        elif isinstance(node, ast.Constant) and node.value in (
            "_raise_exceptions_for_missing_entries",
            "_internal_call",
        ):
            name = node.value
        else:
            continue
        is_private = name in HIDDEN or re.match(r"_[a-z]|_VALID", str(name))
        if is_private and name not in OWN and name not in ALLOWED:
            yield f"line {node.lineno}: {name}"


# The names behind the functions of `_compat`, some of which have no underscore.
HIDDEN = {name for _, name in members(_compat.ATTRIBUTES)}


def own_names() -> set[str]:
    """
    The names with an underscore that classes and modules of the package define. Those that `_compat` names are left
    out: a class that assigned one would write into its base class.
    """
    names = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    names.add(node.attr)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names - HIDDEN


OWN = own_names()


@pytest.mark.parametrize(
    "line",
    [
        "from torch._subclasses.fake_tensor import FakeTensorMode",
        "from transformers.utils import cached_file",
        "from transformers import _private",
        "import torch._dynamo",
        "config._commit_hash = None",
        'getattr(config, "_commit_hash", None)',
        "self._metrics.clear()",
        "self._metrics = {}",
        "trainer.save_model(_internal_call=True)",
        'options = {"_raise_exceptions_for_missing_entries": False}',
        'options["_raise_exceptions_for_missing_entries"] = False',
        "module.support_avx512bf16_for_cpu = False",
    ],
)
def test_check_finds(line):
    assert [*private_imports(ast.parse(line)), *private_names(ast.parse(line))]
