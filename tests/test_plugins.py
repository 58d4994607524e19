"""Plug-ins through real entry points: what they add, what is refused, and that nothing broken is a traceback."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import Kick
from judges import KEY, Answer, answering
from llmkick import cli, plugins
from llmkick.compression.kernels.layer import Layer, WeightResult
from llmkick.compression.methods import Method, plugin_method
from llmkick.compression.registry import METHODS, all_methods, method_named, parse_recipe, plugin_origins
from llmkick.compression.walk.compression_key import artifact_key
from llmkick.compression.walk.weight import compress_alike, compress_weight, compress_with_statistics
from llmkick.errors import ConfigError, KickError, ModelError, NumericalError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.references import locate
from llmkick.models.plugin_models import plugin_of
from llmkick.study.judging.questions import estimate
from llmkick.study.plan import plan_study
from llmkick.study.run import run_study
from llmkick.study.running.environment import environment
from llmkick.study.spec.study import make_study
from llmkick.tasks import registry
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.judge.prompts import Contest, judge_prompt
from llmkick.tasks.registry import TASKS, all_tasks, full_key, get_task, task_names
from toy import save_toy, toy_model

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "plugins"
METHOD = (EXAMPLES / "llmkick-random-pruning" / "llmkick_random_pruning.py").read_text(encoding="utf-8")
TASK = (EXAMPLES / "llmkick-one-file-task" / "llmkick_one_file_task.py").read_text(encoding="utf-8")

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package beside the installed ones: its module's text, and its entry points as (group, name, reference)."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def put(package: str, *entries: tuple[str, str, str], version: str = "1.0", **sources: str) -> None:
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        groups = dict.fromkeys(group for group, _, _ in entries)
        text = "".join(f"[{g}]\n" + "".join(f"{n} = {r}\n" for h, n, r in entries if h == g) for g in groups)
        (info / "entry_points.txt").write_text(text)
        for module, source in sources.items():
            (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
            modules.append(module)
        importlib.invalidate_caches()
        forget()

    def forget() -> None:
        for cache in (plugins.installed, plugin_method, registry._plugin_entry):
            cache.cache_clear()

    forget()
    yield put
    forget()
    for module in modules:
        sys.modules.pop(module, None)


def install_random(install: Install, **options: str) -> None:
    install(
        "llmkick-random-pruning",
        (plugins.METHODS, "random", "llmkick_random_pruning:METHOD"),
        llmkick_random_pruning=METHOD,
        **options,
    )


# Methods


def test_a_plugged_in_method_is_used_like_any_other(install: Install):
    install_random(install)
    for text in ("random@0.5", "random@2:4", "random@0.5-seed7", "random@2:4+rtn@4b"):
        recipe = parse_recipe(text)
        assert str(recipe) == text
        assert parse_recipe(str(recipe)) == recipe
        assert plugin_origins(recipe) == {"random": "llmkick-random-pruning 1.0"}
        assert not recipe.needs_calibration
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    pruned = compress_weight(weight, None, "random@0.25")
    assert (pruned == 0).sum(dim=1).tolist() == [4] * 8
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])
    assert torch.equal(pruned, compress_weight(weight, None, "random@0.25"))
    assert not torch.equal(pruned, compress_weight(weight, None, "random@0.25-seed1"))
    groups = compress_weight(weight, None, "random@2:4").reshape(-1, 4)
    assert groups.count_nonzero(dim=1).tolist() == [2] * 32
    both = compress_weight(weight, None, "random@0.5+rtn@4b")
    assert torch.equal(both == 0, (both == 0) | (compress_weight(weight, None, "random@0.5") == 0))


def test_package_and_version_are_part_of_what_a_compressed_model_is_kept_under(install: Install):
    install_random(install)
    model = toy_model()
    key = artifact_key(model.info, model.device, parse_recipe("random@0.5"), None, propagate=True)
    assert key["plugins"] == {"random": "llmkick-random-pruning 1.0"}
    # Built-in recipes keep the key, and with it the cached models, that they had.
    assert "plugins" not in artifact_key(model.info, model.device, parse_recipe("magnitude@0.5"), None, propagate=True)
    assert environment()["packages"]["llmkick-random-pruning"] == "1.0"


def test_methods_lists_what_works_and_warns_of_the_rest(install: Install, kick: Kick):
    install_random(install)
    install("broken-one", (plugins.METHODS, "gone", "no_such_module_anywhere:METHOD"))
    install("clash-one", (plugins.METHODS, "wanda", "llmkick_random_pruning:METHOD"))
    code, out, err = kick("methods")
    assert code == 0
    assert "zero randomly chosen weights (from llmkick-random-pruning 1.0)" in out
    assert all(name in out for name in METHODS)
    assert "warning: plug-in 'gone' of broken-one 1.0 (entry point llmkick.methods: gone = no_such_module" in err
    assert "ModuleNotFoundError" in err
    assert "'wanda' of clash-one 1.0" in err
    assert "is built in, and a plug-in cannot replace it" in err
    assert method_named("wanda") is METHODS["wanda"]
    assert kick("--help")[2] == ""
    # A broken plug-in is in nobody's way until it is asked for.
    assert str(parse_recipe("wanda@0.5")) == "wanda@0.5"
    code, _, err = kick("compress", "nothing", "gone@0.5", "-o", "nowhere")
    assert code == 2
    assert "recipe 'gone@0.5': plug-in 'gone' of broken-one 1.0" in err


def test_an_unknown_method_names_the_plugged_in_ones_too(install: Install):
    install_random(install)
    with pytest.raises(ConfigError, match=r"unknown method 'rondom'; choose from: dense, .*gptq, random"):
        parse_recipe("rondom@0.5")


BROKEN_METHODS = {
    "raise SystemExit(3)": "cannot be loaded: SystemExit: 3",
    "METHOD = (": "cannot be loaded: SyntaxError",
    "OTHER = 1": "cannot be loaded: AttributeError",
    "METHOD = 3": "is int, not a llmkick.extend.Method",
    METHOD + "\nMETHOD = Method(summary='', examples=(), parse=parse, kernel=compress)": "needs examples that begin",
    METHOD + "\nMETHOD = Method(summary='', examples=('wanda@0.5',), parse=parse, kernel=compress)": "needs examples",
    METHOD.replace("def parse(level: str) -> Random:", "def parse(level):\n    return {}['x']\ndef other(level):"): (
        "failed to read the level '0.5': KeyError"
    ),
    METHOD.replace('name = "random"', 'name = "rendom"'): 'not a Recipe whose name is "random"',
    METHOD.replace("def parse(level: str) -> Random:", "def parse(level):\n    return 1\ndef other(level):"): "made 1",
    METHOD.replace('return super().__str__() + (f"-seed{self.seed}" if self.seed else "")', 'return "random@0.75"'): (
        "writes its recipe as 'random@0.75', which is not read back as the same recipe"
    ),
}


@pytest.mark.parametrize("source", BROKEN_METHODS, ids=BROKEN_METHODS.values())
def test_a_broken_method_is_named_with_its_package(install: Install, source: str):
    install("random-one", (plugins.METHODS, "random", "random_one:METHOD"), random_one=source)
    with pytest.raises(KickError) as raised:
        parse_recipe("random@0.5")
    assert "plug-in 'random' of random-one 1.0 (entry point llmkick.methods: random = random_one:METHOD)" in str(
        raised.value
    )
    assert BROKEN_METHODS[source] in str(raised.value)


KERNELS = {
    "return layer.weight[:1]": "made (1, 8) of torch.float32 of weight, a weight of (4, 8)",
    "return None": "made <class 'NoneType'> of weight",
    "return layer.weight": "left 4 weights in a group of weight; 2:4 keeps 2",
    "return layer.weight / [0]": "failed on weight: TypeError",
    "return layer.weight / 0": "made NaN or Inf of weight with random@2:4",
}


@pytest.mark.parametrize("body", KERNELS, ids=KERNELS.values())
def test_a_kernel_that_does_not_do_what_its_recipe_says(install: Install, body: str):
    source = METHOD.replace(
        "def compress(recipe: Random, layer: Layer) -> Tensor:", f"def compress(recipe, layer):\n    {body}\ndef no():"
    )
    install("random-one", (plugins.METHODS, "random", "random_one:METHOD"), random_one=source)
    with pytest.raises(KickError, match=r"random-one 1\.0") as raised:
        compress_weight(torch.ones(4, 8), None, "random@2:4")
    assert KERNELS[body] in str(raised.value)


ALIKE = "kernel=compress, kernel_alike=lambda recipe, layers: {}"


def test_a_kernel_of_several_layers_returns_what_a_kernel_of_one_does(install: Install):
    alike = ALIKE.format("[compress(recipe, layer) for layer in layers]")
    source = METHOD.replace("kernel=compress", alike)
    install("random-one", (plugins.METHODS, "random", "random_one:METHOD"), random_one=source)
    recipe, weights = parse_recipe("random@0.5"), [torch.ones(4, 8), 2 * torch.ones(4, 8)]
    results = compress_alike(weights, [None, None], recipe, ["a", "b"])
    for result, weight, name in zip(results, weights, "ab", strict=True):
        alone = compress_with_statistics(weight, None, recipe, name=name)
        assert torch.equal(result.weight, alone.weight)


@pytest.mark.parametrize("result", ["None", "3", "[None for _ in layers]", "[0.5] * 2"])
def test_a_kernel_of_several_layers_that_returns_no_weights(install: Install, result: str):
    source = METHOD.replace("kernel=compress", ALIKE.format(result))
    install("random-one", (plugins.METHODS, "random", "random_one:METHOD"), random_one=source)
    with pytest.raises(KickError, match=r"random-one 1\.0"):
        compress_alike([torch.ones(4, 8)] * 2, [None, None], parse_recipe("random@0.5"), ["a", "b"])


ROUNDING = """
from dataclasses import dataclass
from llmkick.extend import Grid, Method, Recipe, WeightResult, fit_grid, parse_grid, round_to_grid

@dataclass(frozen=True, kw_only=True)
class Nearest(Recipe):
    name = "nearest"
    grid: Grid

def compress(recipe, layer):
    fitted = fit_grid(layer.weight{shift}, recipe.grid)
    rounded = round_to_grid(layer.weight{shift}, fitted)
    return WeightResult(rounded{grid})

METHOD = Method(
    summary="", examples=("nearest@4b",), parse=lambda text: Nearest(grid=parse_grid("nearest", text)[0]),
    kernel=compress,
)
"""


def test_a_rounding_method_may_end_a_chain(install: Install):
    source = ROUNDING.format(shift="", grid=", grid=fitted")
    install("near", (plugins.METHODS, "nearest", "near_one:METHOD"), near_one=source)
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    for recipe in ("@4b", "@3b-g8-sym"):
        assert torch.equal(
            compress_weight(weight, None, f"nearest{recipe}"), compress_weight(weight, None, f"rtn{recipe}")
        )
    assert torch.equal(
        compress_weight(weight, None, "magnitude@0.5+nearest@4b"), compress_weight(weight, None, "magnitude@0.5+rtn@4b")
    )


@pytest.mark.parametrize(
    ("recipe", "shift", "grid", "message"),
    [
        ("nearest@4b", "", "", "rounded weight without saying its grid"),
        (
            "magnitude@0.5+nearest@4b",
            " + 1",
            ", grid=fitted",
            "filled in weights of weight that the step before pruned",
        ),
    ],
)
def test_a_rounding_method_that_breaks_a_promise(install: Install, recipe: str, shift: str, grid: str, message: str):
    install("near", (plugins.METHODS, "nearest", "near_two:METHOD"), near_two=ROUNDING.format(shift=shift, grid=grid))
    with pytest.raises(ConfigError, match=message):
        compress_weight(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), None, recipe)


def test_our_own_errors_pass_through_a_plugin_as_they_are(install: Install):
    source = METHOD.replace(
        "def compress(recipe: Random, layer: Layer) -> Tensor:",
        "from llmkick.errors import NumericalError\n"
        "def compress(recipe, layer):\n    raise NumericalError('NaN in it')\ndef no():",
    )
    install("random-one", (plugins.METHODS, "random", "random_own:METHOD"), random_own=source)
    with pytest.raises(NumericalError, match=r"^NaN in it$"):
        compress_weight(torch.ones(4, 8), None, "random@0.5")
    with pytest.raises(ConfigError, match=r"^recipe 'random@2': sparsity 2.0 is not the share of zeros"):
        parse_recipe("random@2")


def test_names_that_no_plugin_may_have(install: Install):
    install_random(install)
    install("other-random", (plugins.METHODS, "random", "llmkick_random_pruning:METHOD"))
    install("odd", (plugins.METHODS, "Half+Half", "llmkick_random_pruning:METHOD"))
    with pytest.raises(ConfigError, match=r"(other-random|llmkick-random-pruning) offers the same name"):
        parse_recipe("random@0.5")
    methods, problems = all_methods()
    assert set(methods) == set(METHODS)
    assert len(problems) == 3
    assert any("a name is lower-case letters" in problem for problem in problems)


def test_built_in_methods_go_through_the_same_registry(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    def spy(recipe: object, layer: Layer) -> WeightResult:
        seen.append(layer.name)
        return WeightResult(layer.weight)

    changed = {**METHODS, "magnitude": replace(METHODS["magnitude"], kernel=spy)}
    monkeypatch.setattr("llmkick.compression.registry.METHODS", changed)
    compress_weight(torch.ones(4, 8), None, "magnitude@0.5")
    assert seen == ["weight"]
    assert all(isinstance(method, Method) for method in METHODS.values())


# Tasks


def test_a_plugged_in_task_is_asked_like_any_other(install: Install, kick: Kick):
    install("one-file", (plugins.TASKS, "opposites", "llmkick_one_file_task:TASK"), llmkick_one_file_task=TASK)
    assert task_names()[-1] == "opposites"
    task = get_task("opposites", limit=8)
    assert full_key(task) == {**task.key, "plugin": "one-file 1.0"}
    assert "plugin" not in full_key(get_task("factoid_qa"))
    records = evaluate(toy_model(), task)
    assert len(records) == 8
    assert {record.cluster for record in records} == {"size", "sense", "place", "deed"}
    assert all(record.score in (0, 1) for record in records)
    code, out, err = kick("tasks")
    assert (code, err) == (0, "")
    assert "opposites of common words (from one-file 1.0)" in out
    with pytest.raises(ConfigError, match="opposites has its own words and one protocol"):
        get_task("opposites", protocol="paper")
    with pytest.raises(ConfigError, match="unknown task 'opposites:open'"):
        get_task("opposites:open")
    with pytest.raises(ConfigError, match="unknown option 'shots' of opposites"):
        get_task("opposites", shots=3)


JUDGED = TASK.replace(
    "    def score(self,",
    '    def judge_kind(self, item: Item) -> str:\n        return "general"\n\n    def score(self,',
).replace('module="llmkick_one_file_task"', 'module="judged_task"')


def test_the_answers_to_a_plugged_in_task_are_judged(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The most tokens of an answer, which the plan counts, are those that the task asks for."""
    install("one-file", (plugins.TASKS, "opposites", "judged_task:TASK"), judged_task=JUDGED)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    save_toy(tmp_path / "dense")
    save_toy(tmp_path / "other", seed=1)
    values = {"model": str(tmp_path / "dense"), "others": [str(tmp_path / "other")], "device": "cpu"}
    values |= {"dtype": "float32", "tasks": [{"name": "opposites", "limit": 3}]}
    reply = Answer(text='{"overall": {"assistant_1": 8, "assistant_2": 6}}')
    with answering(lambda request, number: reply) as endpoint:
        study = make_study({**values, "judge": {"model": endpoint.reference}})
        planned = estimate(study, models=2)
        result = run_study(study, out=tmp_path / "run")
    assert planned.requests == 2 * 3  # both orders
    bare = sum(
        len(message.content)
        for item in get_task("opposites", limit=3).items()
        for message in judge_prompt(
            Contest(kind="general", question=item.question, first="", second="", correct=item.references[0]), "strict"
        )
    )
    assert planned.prompt_tokens == pytest.approx(2 * (bare / 4 + 3 * 2 * 16), abs=6)  # two answers of 16 tokens
    assert any(line.startswith("judge: at most 6 requests") for line in plan_study(study).lines())
    (judged,) = [row for row in result.results if (row["recipe"], row["task"]) == ("other", "opposites:judge")]
    assert judged["n"] == 3


BAD_TASK = TASK.replace('module="llmkick_one_file_task"', 'module="one_file"')
BROKEN_TASKS = {
    "TASK = 3": "is int, not a llmkick.tasks.task.TaskEntry",
    BAD_TASK.replace('factory="Opposites"', 'factory="Nothing"'): "names one_file.Nothing: AttributeError",
    BAD_TASK.replace('factory="Opposites"', 'factory="score_answer"'): "score_answer has no field limit, protocol",
    BAD_TASK.replace('    setting = "knowledge"\n', ""): "without setting; see the Task protocol",
    BAD_TASK.replace('name = "opposites"', 'name = "antonyms"'): "a task named 'antonyms'",
    BAD_TASK.replace('setting = "knowledge"', 'setting = "wisdom"'): "of setting 'wisdom'",
    BAD_TASK.replace(
        "    def __post_init__(self) -> None:\n", "    def __post_init__(self) -> None:\n        1 / 0\n"
    ): ("failed to make the task: ZeroDivisionError"),
    "import no_such_module_anywhere": "cannot be loaded: ModuleNotFoundError",
}


@pytest.mark.parametrize("source", BROKEN_TASKS, ids=BROKEN_TASKS.values())
def test_a_broken_task_is_named_with_its_package(install: Install, kick: Kick, source: str):
    install("one-file", (plugins.TASKS, "opposites", "one_file:TASK"), one_file=source)
    with pytest.raises(KickError, match=r"plug-in 'opposites' of one-file 1.0 \(entry point") as raised:
        get_task("opposites")
    assert BROKEN_TASKS[source] in str(raised.value)
    code, out, err = kick("tasks")
    assert code == 0
    assert "factoid_qa" in out
    assert "warning: plug-in 'opposites' of one-file 1.0" in err
    assert get_task("factoid_qa").name == "factoid_qa"


def test_a_task_with_a_built_in_name_is_refused(install: Install):
    install("one-file", (plugins.TASKS, "factoid_qa", "one_file:TASK"), one_file="TASK = 3")
    tasks, problems = all_tasks()
    assert tasks == dict(TASKS)
    assert "'factoid_qa' is built in" in problems[0]
    assert type(get_task("factoid_qa")).__name__ == "FactoidQA"


# Models

LOADER = """
from dataclasses import replace
from llmkick.models.checkpoints.loading import load_model

def load(rest, *, dtype, device):
    model = load_model(rest, dtype=dtype, device=device)
    return replace(model, info=replace(model.info, name="ours:" + model.info.name))
"""


def test_a_scheme_loads_a_model(install: Install, tmp_path: Path, kick: Kick, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    install("schemes", (plugins.MODELS, "ours", "our_scheme:load"), our_scheme=LOADER)
    save_toy(tmp_path / "toy", max_position_embeddings=512)
    model = load_model(f"ours:{tmp_path / 'toy'}", dtype="float32")
    assert model.info.name == "ours:toy"
    code, out, err = kick("models")
    assert (code, err) == (0, "")
    assert "ours:…, from schemes 1.0" in out
    code, out, _ = kick("eval", f"ours:{tmp_path / 'toy'}", "-t", "factoid_qa", "--limit", "2", "-q")
    assert code == 0
    assert "factoid_qa" in out
    with pytest.raises(ModelError, match="comes from a plug-in and has no files to work on"):
        locate(f"ours:{tmp_path / 'toy'}")
    # A path that exists is a path, whatever stands before its colon.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours:folder").mkdir()
    assert plugin_of("ours:folder") is None


def test_a_model_without_weights_is_asked_but_not_compressed(install: Install, tmp_path: Path):
    source = "from scripted import ScriptedModel\ndef load(rest, **_):\n    return ScriptedModel()"
    install("schemes", (plugins.MODELS, "said", "said_scheme:load"), said_scheme=source)
    assert len(evaluate(load_model("said:x", dtype="float32"), get_task("factoid_qa", limit=3))) == 3
    study = {"model": "said:x", "recipes": ["magnitude@0.5"], "tasks": ["factoid_qa"], "dtype": "float32"}
    with pytest.raises(ConfigError, match="scripted is a ScriptedModel, whose weights cannot be compressed"):
        run_study(study, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("load = 3", "is int, not a function load"),
        ("def load(rest, *, dtype, device):\n    return object()", "made a object without info, max_tokens"),
        ("def load(rest, *, dtype, device):\n    raise OSError('no route to\\nhost')", "OSError: no route to host"),
        ("def load(rest):\n    return 1", "TypeError"),
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
    ],
)
def test_a_broken_scheme_is_named_with_its_package(install: Install, source: str, message: str):
    install("schemes", (plugins.MODELS, "ours", "bad_scheme:load"), bad_scheme=source)
    with pytest.raises(KickError, match=r"plug-in 'ours' of schemes 1.0") as raised:
        load_model("ours:anything", dtype="float32")
    assert message in str(raised.value)


@pytest.mark.parametrize("source", ["load = 3", "1 / 0", "raise SystemExit", "other = 1"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_list_of_models_names_a_scheme_that_cannot_be_loaded(
    install: Install, kick: Kick, source: str, options: list[str]
):
    install("schemes", (plugins.MODELS, "ours", "bad_scheme:load"), bad_scheme=source)
    code, out, err = kick("models", *options)
    assert code == 0
    assert "ours" not in out
    assert "warning: plug-in 'ours' of schemes 1.0" in err


def test_a_scheme_of_our_own_cannot_be_taken(install: Install):
    install("schemes", (plugins.MODELS, "openai", "bad_scheme:load"), bad_scheme="raise SystemExit")
    assert plugin_of("openai:http://127.0.0.1/v1") is None


# Nothing runs unasked


def test_help_and_import_run_no_plugin(install: Install, tmp_path: Path):
    install(
        "loud",
        (plugins.METHODS, "loud", "loud_module:METHOD"),
        (plugins.TASKS, "louder", "loud_module:TASK"),
        (plugins.MODELS, "loudest", "loud_module:load"),
        loud_module="import pathlib, sys\npathlib.Path(__file__).with_name('ran').touch()\nraise SystemExit(3)",
    )
    paths = [str(tmp_path), str(Path(cli.__file__).resolve().parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for arguments in (["--help"], ["run", "--help"], ["doctor", "--help"]):
        command = [sys.executable, "-m", "llmkick.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()
    code = "from llmkick import plugins, parse_recipe; import json; parse_recipe('wanda@2:4'); " + (
        "print(json.dumps([p.name for g in plugins.GROUPS for p in plugins.installed(g)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == ["loud", "louder", "loudest"]
    assert not (tmp_path / "ran").exists()
