"""LLM-KICK: what has a compressed language model forgotten?

import llmkick

model = llmkick.load_model("smollm2-135m-instruct")
calibration = llmkick.calibrate(model, sequences=16, length=256)
pruned, report = llmkick.compress(model, "wanda@0.25", calibration=calibration)
task = llmkick.get_task("factoid_qa", limit=100)
dense, sparse = llmkick.evaluate(model, task), llmkick.evaluate(pruned, task)
print(llmkick.compare({r.item_id: r.score for r in dense}, {r.item_id: r.score for r in sparse}).verdict)
"""

from typing import TYPE_CHECKING

from llmkick.lazy_imports import lazy_names

if TYPE_CHECKING:
    from llmkick.compression.recipe import Recipe
    from llmkick.compression.registry import parse_recipe
    from llmkick.compression.walk.calibration import Calibration, calibrate
    from llmkick.compression.walk.compress import compress, compress_many
    from llmkick.compression.walk.report import CompressionReport
    from llmkick.compression.walk.weight import compress_weight
    from llmkick.errors import ConfigError, DataError, JudgeError, KickError, ModelError, NumericalError
    from llmkick.gate.policy import GatePolicy, load_policy
    from llmkick.gate.result import GateResult
    from llmkick.gate.run import run_gate
    from llmkick.models.checkpoints.loading import load_model
    from llmkick.models.language_model import GenerateRequest, LanguageModel, Message, ModelInfo, ScoreRequest
    from llmkick.report.page.page import write_report
    from llmkick.statistics import Comparison, compare
    from llmkick.study.results.results import StudyResult
    from llmkick.study.run import run_study
    from llmkick.study.spec.study import Study, load_study
    from llmkick.tasks.evaluate import evaluate
    from llmkick.tasks.registry import get_task
    from llmkick.tasks.suite.perplexity import perplexity
    from llmkick.tasks.task import Item, Record, Task

__version__ = "0.1.0"

# Where each public name lives. They are imported when first used: torch alone takes seconds, and
# `kick --help` needs none of it.
_HOME = {
    "llmkick.compression.walk.calibration": ("Calibration", "calibrate"),
    "llmkick.compression.walk.compress": ("compress", "compress_many"),
    "llmkick.compression.walk.report": ("CompressionReport",),
    "llmkick.compression.recipe": ("Recipe",),
    "llmkick.compression.registry": ("parse_recipe",),
    "llmkick.compression.walk.weight": ("compress_weight",),
    "llmkick.errors": ("ConfigError", "DataError", "JudgeError", "KickError", "ModelError", "NumericalError"),
    "llmkick.gate.policy": ("GatePolicy", "load_policy"),
    "llmkick.gate.result": ("GateResult",),
    "llmkick.gate.run": ("run_gate",),
    "llmkick.models.language_model": (
        "GenerateRequest",
        "LanguageModel",
        "Message",
        "ModelInfo",
        "ScoreRequest",
    ),
    "llmkick.models.checkpoints.loading": ("load_model",),
    "llmkick.report.page.page": ("write_report",),
    "llmkick.statistics": ("Comparison", "compare"),
    "llmkick.study.spec.study": ("Study", "load_study"),
    "llmkick.study.results.results": ("StudyResult",),
    "llmkick.study.run": ("run_study",),
    "llmkick.tasks.evaluate": ("evaluate",),
    "llmkick.tasks.suite.perplexity": ("perplexity",),
    "llmkick.tasks.registry": ("get_task",),
    "llmkick.tasks.task": ("Item", "Record", "Task"),
}

__all__ = [
    "Calibration",
    "Comparison",
    "CompressionReport",
    "ConfigError",
    "DataError",
    "GatePolicy",
    "GateResult",
    "GenerateRequest",
    "Item",
    "JudgeError",
    "KickError",
    "LanguageModel",
    "Message",
    "ModelError",
    "ModelInfo",
    "NumericalError",
    "Recipe",
    "Record",
    "ScoreRequest",
    "Study",
    "StudyResult",
    "Task",
    "calibrate",
    "compare",
    "compress",
    "compress_many",
    "compress_weight",
    "evaluate",
    "get_task",
    "load_model",
    "load_policy",
    "load_study",
    "parse_recipe",
    "perplexity",
    "run_gate",
    "run_study",
    "write_report",
]

__getattr__, __dir__ = lazy_names(globals(), _HOME)
