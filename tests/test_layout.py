"""What keeps the house in order: import directions, the public face, nothing that runs code from data."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import typing
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import resources
from pathlib import Path
from types import UnionType

import pytest

import llmkick

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "llmkick"
# The table of the design: who may import whom. Everybody may import `errors`. A row is a folder, its modules without
# those of the folders inside, which have rows of their own.
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "lazy_imports": set(),
    "output_folder": {"files"},
    "paper": set(),
    "plugins": set(),
    "statistics": set(),
    "models": {"files", "plugins"},
    "models.engine": {"models"},
    "models.checkpoints": {"models", "files"},
    "models.server": {"models", "models.engine", "models.checkpoints", "models.vllm"},
    "models.vllm": {"models", "models.engine", "models.checkpoints"},
    "compression": {"compression.kernels", "plugins"},
    "compression.kernels": {"models"},
    "compression.walk": {
        "compression",
        "compression.kernels",
        "compression.training",
        "models",
        "models.engine",
        "models.checkpoints",
        "tasks.pocket",  # texts, no code
        "files",
    },
    # The walk's public function trains what a recipe asks for; the training sees blocks and layers of the walk.
    "compression.training": {
        *("compression", "compression.kernels", "compression.walk", "models", "models.engine", "models.checkpoints"),
    },
    "compression.storage": {
        *("compression", "compression.training", "compression.walk", "models", "models.checkpoints", "files"),
        "output_folder",
    },
    # What a task is. Only the registry names the modules of `tasks.suite`; it loads them by name, as it does plug-ins.
    "tasks": {"tasks.suite", "models", "paper", "plugins"},
    "tasks.data": {"tasks", "tasks.pocket", "files"},
    "tasks.data.readers": {"tasks", "tasks.data"},
    "tasks.judge": {"tasks", "models", "models.checkpoints", "models.server"},
    "tasks.suite": {"tasks", "tasks.data", "tasks.data.readers", "tasks.judge", "models", "files"},
    "tasks.pocket": set(),
    "lm_eval": {"tasks", "tasks.data.readers", "models", "models.engine", "statistics", "files", "output_folder"},
    "study": {
        *("study.spec", "study.judging", "study.results", "study.running", "study.cluster"),
        *("models", "models.engine", "models.checkpoints", "compression", "compression.walk", "tasks", "statistics"),
    },
    "study.spec": {
        "models",
        "models.checkpoints",
        "models.server",
        "compression",
        "tasks",
        "tasks.judge",
        "files",
    },
    "study.journal": {"models", "compression.walk", "tasks"},
    "study.results": {
        *("study", "study.journal", "study.spec", "models", "compression", "compression.walk", "tasks", "statistics"),
        "files",
    },
    "claims": {"paper", "study.results", "compression", "statistics"},
    "study.judging": {
        *("study", "study.journal", "study.results", "study.spec", "tasks", "tasks.data", "tasks.judge"),
        *("models", "models.server", "files"),
    },
    "study.running": {
        *("study", "study.journal", "study.judging", "study.results", "study.spec"),
        *("models", "models.checkpoints", "models.server", "models.vllm"),
        *("compression", "compression.training", "compression.walk", "compression.storage"),
        *("tasks", "statistics", "claims", "files", "plugins"),
    },
    "study.cluster": {
        *("study", "study.running", "study.results", "study.spec"),
        *("models", "models.checkpoints", "compression.walk", "files"),
    },
    "study.frontier": {
        *(
            "study",
            "study.running",
            "study.results",
            "study.spec",
            "models",
            "compression",
            "tasks",
            "statistics",
            "files",
        ),
    },
    "report": {
        *("claims", "study.journal", "study.results", "study.frontier", "compression", "statistics", "paper"),
        "files",
    },
    "report.figures": {"report", "study.results", "study.frontier", "compression", "statistics", "files"},
    "report.page": {"report", "report.figures", "study.journal", "study.results", "statistics", "files"},
    "report.several": {"claims", "report", "report.figures", "report.page", "study.results", "statistics", "files"},
    "gate": {
        *("study", "study.spec", "study.journal", "study.running", "study.results", "report", "statistics", "tasks"),
        *("models", "models.engine", "models.checkpoints", "models.server", "files"),
    },
}
# A module that stands above folders beside it, which may not import it in turn.
ABOVE = {"llmkick.models.transformers_model": {"models.engine"}}
# These see everything, and nothing below may see them.
TOP = {"cli", "exit_codes", "extend", "__init__", "__main__"}
# Folders with modules of their own, inside the packages.
FOLDERS = {
    ".".join(path.parent.relative_to(SOURCE).parts) for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE
}


@functools.cache
def parsed(source: str) -> ast.Module:
    """The tree of a source, which several tests look at."""
    return ast.parse(source)


def sources() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """`llmkick.models.engine.scoring` → models.engine, `llmkick.files` → files; the top module is `__init__`."""
    parts = module.split(".")[1:]
    if not parts:
        return "__init__"
    inside = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in inside if name in FOLDERS), parts[0])


def imported_modules(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Our modules that a source names, wherever it does: in functions, relatively, or as text to import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                around = module.split(".")[: len(module.split(".")) - node.level + is_package]
                origin = ".".join([*around, *([node.module] if node.module else [])])
            # `from llmkick import study` names a package too.
            found = [origin, *(f"{origin}.{alias.name}" for alias in node.names if origin == "llmkick")]
            inside = [f"{origin}.{alias.name}" for alias in node.names if is_a_module(f"{origin}.{alias.name}")]
            found = inside if origin != "llmkick" and len(inside) == len(node.names) else found
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [node.value] if re.fullmatch(r"llmkick(\.\w+)+", node.value) else []
        else:
            continue
        yield from (name for name in found if name.split(".")[0] == "llmkick")


def is_a_module(name: str) -> bool:
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def forbidden_imports(source: str, module: str, *, is_package: bool = False) -> list[str]:
    package = package_of(module)
    if package in TOP:
        return []
    allowed = MAY_IMPORT[package] | ABOVE.get(module, set()) | {package, "errors"}
    modules = imported_modules(parsed(source), module, is_package=is_package)
    return [name for name in modules if package_of(name) not in allowed or package in ABOVE.get(name, set())]


def test_imports_follow_the_flow_of_data():
    """One test for all files, here and below: hundreds of cases take longer than what they look at."""
    packages = {package_of(module_of(path)) for path in sources()}
    assert packages <= TOP | set(MAY_IMPORT), "no line in the design's table"
    forbidden = {
        name_of(path): forbidden_imports(
            path.read_text(encoding="utf-8"), module_of(path), is_package=path.name == "__init__.py"
        )
        for path in sources()
    }
    assert not any(forbidden.values()), {name: modules for name, modules in forbidden.items() if modules}


@pytest.mark.parametrize(
    ("module", "source", "forbidden"),
    [
        ("llmkick.models.precision", "import llmkick.tasks.task", ["llmkick.tasks.task"]),
        ("llmkick.models.precision", "def f():\n    from llmkick.study import run", ["llmkick.study.run"]),
        ("llmkick.models.precision", "from llmkick import study", ["llmkick", "llmkick.study"]),
        ("llmkick.models.precision", "from ..tasks import task", ["llmkick.tasks.task"]),
        ("llmkick.models.precision", "from .. import cli", ["llmkick", "llmkick.cli"]),
        ("llmkick.models.precision", "from . import checkpoint", []),
        ("llmkick.models.precision", "from llmkick.errors import ModelError\nimport torch.nn", []),
        ("llmkick.models.precision", "import llmkick.models.engine.engine", ["llmkick.models.engine.engine"]),
        ("llmkick.models.transformers_model", "import llmkick.models.engine.engine", []),
        ("llmkick.models.engine.runner", "import llmkick.models.precision", []),
        (
            "llmkick.models.engine.runner",
            "from llmkick.models.transformers_model import TransformersModel",
            ["llmkick.models.transformers_model"],
        ),
        ("llmkick.tasks.task", 'import_module("llmkick.study.run")', ["llmkick.study.run"]),
        ("llmkick.tasks.task", "from llmkick.compression import recipe", ["llmkick.compression.recipe"]),
        ("llmkick.statistics.power", "import llmkick.models", ["llmkick.models"]),
        ("llmkick.report.page.page", "import llmkick.tasks.task", ["llmkick.tasks.task"]),
        ("llmkick.report.page.page", "from llmkick.study.results.results import StudyResult", []),
        ("llmkick.study.run", "import llmkick.cli.progress", ["llmkick.cli.progress"]),
        ("llmkick.cli", "import llmkick.report.page.page", []),
        ("llmkick", "import llmkick.report.page.page", []),
    ],
)
def test_the_check_sees_what_it_should(module: str, source: str, forbidden: list[str]):
    assert forbidden_imports(source, module) == forbidden


# The public face


def test_every_list_of_public_names_says_the_same():
    tree = parsed((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        (node.module, alias.name)
        for condition in tree.body
        if isinstance(condition, ast.If)  # TYPE_CHECKING
        for node in condition.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = [(module, name) for module, names in llmkick._HOME.items() for name in names]
    assert sorted(lazy) == sorted(typed)
    assert sorted(name for _, name in lazy) == llmkick.__all__
    assert set(llmkick.__all__) <= set(dir(llmkick))


def test_public_names_are_what_their_module_has():
    for module, names in llmkick._HOME.items():
        for name in names:
            assert getattr(llmkick, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="module 'llmkick' has no attribute 'forget'"):
        llmkick.forget  # noqa: B018


def test_the_package_itself_is_imported_without_torch():
    code = "import sys, llmkick, llmkick.cli; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", llmkick.__all__)
def test_every_public_name_is_documented(name: str):
    value = getattr(llmkick, name)
    for one in typing.get_args(value) if isinstance(value, UnionType) else [value]:
        text = one.__doc__ or ""
        # A dataclass without a docstring gets its signature for one.
        assert len(text) > 15, one
        assert not text.startswith(f"{one.__name__}("), one
        if inspect.isclass(one):
            for member, function in vars(one).items():
                if not member.startswith("_") and (inspect.isfunction(function) or isinstance(function, property)):
                    assert function.__doc__, f"{one.__name__}.{member}"


PUBLIC_SURFACE = {
    "load_model": "reference, *, dtype='auto', device='auto'",
    "parse_recipe": "text",
    "compress_weight": "weight, inputs, recipe",
    "compress": "model, recipe, *, calibration, seed=0, propagate=True",
    "perplexity": "model, text_or_ids, *, window",
    "get_task": "name, *, source='pocket', protocol='strict', limit=None, seed=0",
    "evaluate": "model, task",
    "compare": "dense_scores, compressed_scores, *, margin=0.05, clusters=None, chance=0.0, alpha=0.05",
    "run_study": "study, *, out",
}


@pytest.mark.parametrize("name", PUBLIC_SURFACE)
def test_the_stable_signatures_still_hold(name: str):
    promised = parsed(f"def f({PUBLIC_SURFACE[name]}): ...").body[0].args  # type: ignore[attr-defined]
    actual = inspect.signature(getattr(llmkick, name)).parameters
    positional = [argument.arg for argument in promised.args]
    assert list(actual)[: len(positional)] == positional
    for argument, default in zip(promised.kwonlyargs, promised.kw_defaults, strict=True):
        assert actual[argument.arg].kind is inspect.Parameter.KEYWORD_ONLY, argument.arg
        if default is not None:
            assert actual[argument.arg].default == ast.literal_eval(default), argument.arg
    # Whatever was added since must be optional.
    known = {argument.arg for argument in (*promised.args, *promised.kwonlyargs)}
    added = [p for p in actual.values() if p.name not in known and p.kind is not inspect.Parameter.VAR_KEYWORD]
    assert [p.name for p in added if p.default is inspect.Parameter.empty] == []


# Data never becomes code

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "os.system"}
UNSAFE_KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}


def unsafe_code(source: str) -> list[str]:
    found = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            names = [f"{origin}.{alias.name}" for alias in node.names]
            found += [origin] if origin.split(".")[0] in UNSAFE_MODULES else []
            found += [name for name in names if name in UNSAFE_CALLS]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += [called] if called in UNSAFE_CALLS else []
            found += [
                keyword.arg
                for keyword in node.keywords
                if keyword.arg in UNSAFE_KEYWORDS
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
    return found


def test_no_data_is_ever_run_as_code():
    found = {name_of(path): unsafe_code(path.read_text(encoding="utf-8")) for path in sources()}
    assert not any(found.values()), {name: code for name, code in found.items() if code}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import cloudpickle.compat",
        "torch.load(path)",
        "from torch import load",
        "eval('1')",
        "exec(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=trust)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "pd.read_pickle(path)",
    ],
)
def test_the_check_for_unsafe_code_sees_it(source: str):
    assert unsafe_code(source)


def test_what_only_looks_unsafe_passes():
    assert unsafe_code("network.eval()\nload(x, trust_remote_code=False)\nnp.load(p, allow_pickle=False)") == []


# What is installed


def test_every_data_file_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["llmkick"]
    packaged = {path for pattern in patterns for path in SOURCE.glob(pattern)}
    files = {path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {name_of(path) for path in files if path.suffix != ".py"} == {name_of(path) for path in packaged}
    assert {path.suffix for path in packaged} >= {".jsonl", ".jinja"}
    assert SOURCE / "py.typed" in packaged
    # Setuptools finds a folder's data only when the folder is a package.
    assert [name_of(path) for path in packaged if not (path.parent / "__init__.py").is_file()] == []


def test_the_pocket_data_can_be_read_from_where_it_is_installed():
    folder = resources.files("llmkick.tasks.pocket")
    names = {entry.name for entry in folder.iterdir() if entry.name.endswith(".jsonl")}
    assert names == {
        "context_qa.jsonl",
        "factoid_qa.jsonl",
        "instruction.jsonl",
        "multiple_choice.jsonl",
        "summarization.jsonl",
    }


def test_the_version_is_said_once():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["version"] == llmkick.__version__


# Structure


def import_graph() -> dict[str, set[str]]:
    """The modules that each module names, in functions and for type checking too; without the top module's face."""
    graph: dict[str, set[str]] = {}
    for path in sources():
        module = module_of(path)
        tree = parsed(path.read_text(encoding="utf-8"))
        names = imported_modules(tree, module, is_package=path.name == "__init__.py")
        # `llmkick` imports its public names only when they are used.
        graph[module] = set() if module == "llmkick" else {name for name in names if is_a_module(name)} - {module}
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of an import circle, first and last the same; empty if there is none."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other():
    assert circle_in(import_graph()) == []


def test_the_check_for_circles_sees_them():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 300, 60


def test_files_and_functions_are_short():
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in sources()}
    assert {name: text.count("\n") for name, text in texts.items() if text.count("\n") > MOST_LINES_OF_A_FILE} == {}
    lengths = {
        f"{name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, text in texts.items()
        for node in ast.walk(parsed(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}


MOST_ANYS = 40


def test_studies_and_reports_are_typed():
    """Every mention counts, imports and prose included."""
    count = {
        name_of(path): len(re.findall(r"\bAny\b", path.read_text("utf-8")))
        for path in sources()
        if name_of(path).split("/")[0] in ("study", "claims", "report")
    }
    worst = sorted(((number, name) for name, number in count.items() if number), reverse=True)
    assert sum(count.values()) < MOST_ANYS, worst[:20]


# Public functions that nothing here calls: the page that tells users of each.
FOR_USERS_ONLY = {"noise_floor": "engine.md", "parse_scores": "judge.md"}


def used_names(tree: ast.AST) -> Counter[str]:
    """How often each name is read: a variable, an attribute, text as in `factory="Class"`, or "module:Class"."""
    listed = {
        id(entry)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for entry in ast.walk(node.value)
    }
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names[node.id] += 1
        elif isinstance(node, ast.Attribute):
            names[node.attr] += 1
        elif isinstance(node, ast.keyword) and node.arg == "factory" and isinstance(node.value, ast.Constant):
            names[str(node.value.value)] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in listed:
            names.update(re.split(r"[.:]", node.value) if re.fullmatch(r"\w+([.:]\w+)+", node.value) else ())
    return names


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, except the commands of the command line."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if not any(decorator.startswith("app.") for decorator in decorators):
                yield node


def test_every_public_name_has_a_caller():
    trees = {path: parsed(path.read_text(encoding="utf-8")) for path in sources()}
    examples = [path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    used: Counter[str] = Counter()
    for tree in (*trees.values(), *(parsed(path.read_text(encoding="utf-8")) for path in examples)):
        used += used_names(tree)
    offered = set(llmkick.__all__) | set(FOR_USERS_ONLY)
    if (SOURCE / "extend.py").is_file():
        offered |= set(importlib.import_module("llmkick.extend").__all__)
    without = [
        f"{name_of(path)}: {node.name}"
        for path, tree in trees.items()
        for node in public_definitions(tree)
        if node.name not in offered and used[node.name] <= used_names(node)[node.name]
    ]
    assert without == []


def test_names_for_users_are_in_the_documentation():
    for name, page in FOR_USERS_ONLY.items():
        assert name in (ROOT / "docs" / page).read_text(encoding="utf-8")
