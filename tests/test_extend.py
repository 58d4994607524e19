"""`llmkick.extend`: the only module that plug-ins import from."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import UnionType

import pytest
import torch

from llmkick import extend

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = sorted((ROOT / "examples" / "plugins").rglob("*.py"))
PAGES = [ROOT / "docs" / "add-a-method.md", ROOT / "docs" / "add-a-task.md"]


def llmkick_imports(source: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {module for module in modules if module.split(".")[0] == "llmkick"}


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.name)
def test_an_example_imports_stable_modules_only(path: Path):
    assert llmkick_imports(path.read_text(encoding="utf-8")) <= {"llmkick", "llmkick.extend"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_imports_stable_modules_only(page: Path):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert llmkick_imports(block) <= {"llmkick", "llmkick.extend"}


def test_every_list_of_names_says_the_same():
    tree = ast.parse(Path(extend.__file__).read_text(encoding="utf-8"))
    typed = {
        (node.module, alias.name)
        for condition in tree.body
        if isinstance(condition, ast.If)  # TYPE_CHECKING
        for node in condition.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = [(module, name) for module, names in extend._HOME.items() for name in names]
    assert sorted(lazy) == sorted(typed)
    assert sorted(name for _, name in lazy) == sorted(extend.__all__)
    assert set(extend.__all__) <= set(dir(extend))


@pytest.mark.parametrize("name", extend.__all__)
def test_a_name_is_what_its_module_has_and_is_documented(name: str):
    module = next(module for module, names in extend._HOME.items() if name in names)
    value = getattr(extend, name)
    assert value is getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert len(value.__doc__ or "") > 15
        # A dataclass without a docstring gets its signature for one.
        assert not (value.__doc__ or "").startswith(f"{name}(")
        return
    assert f"`{name}`" in (extend.__doc__ or "")
    for member in typing.get_args(value) if isinstance(value, UnionType) else ():
        assert isinstance(member, str) or len(member.__doc__ or "") > 15


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'llmkick\.extend' has no attribute 'forget'"):
        extend.forget  # noqa: B018


def test_the_module_is_imported_without_torch():
    code = "import sys; from llmkick.extend import Layer, Method, Recipe, parse_grid; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == ["False"]


def test_the_example_of_the_docstring_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = (extend.__doc__ or "").splitlines()
    source = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)
    (tmp_path / "docstring_example.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    method = importlib.import_module("docstring_example").METHOD
    recipe = method.parse("0.5")
    assert str(recipe) == "small@0.5"
    layer = extend.Layer(weight=torch.tensor([[3.0, -1.0, 2.0, 0.5]]), inputs=extend.InputStatistics(4, hessian=False))
    assert method.run(recipe, layer).weight.tolist() == [[3.0, 0.0, 2.0, 0.0]]
