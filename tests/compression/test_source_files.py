"""Everything of a model's folder that is not weights travels with a compressed model, and nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path

import pytest
import yaml

from composites import save_composite
from compressing import compressed
from llmkick.compression.storage.compress_to_disk import Form
from llmkick.compression.storage.model_card import with_note
from llmkick.compression.storage.source_files import travelling_files
from llmkick.models.checkpoints.loading import load_model
from speeds import others_slow
from toy import CHAT_TEMPLATE, save_toy


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))


TRAVELS = {
    "generation_config.json": '{"eos_token_id": [1, 20]}',
    "special_tokens_map.json": "{}",
    "chat_template.jinja": CHAT_TEMPLATE,
    "chat_template.json": json.dumps({"chat_template": CHAT_TEMPLATE}),
    "additional_chat_templates/tool_use.jinja": "{{ messages }}",
    "preprocessor_config.json": '{"size": 28}',
    "processor_config.json": "{}",
    "video_preprocessor_config.json": "{}",
    "qformer_tokenizer/tokenizer_config.json": "{}",
    "added_tokens.json": "{}",
    "merges.txt": "a b\n",
    "tokenizer.model": b"\x0a\x00\x01\xff",
    "tokenizer.model.v3": b"\x0a\x00\x01\xff",
    "qwen.tiktoken": "IQ== 0\n",
    "params.json": "{}",
    "LICENSE": "words",
    "LICENSE-MODEL": b"\xa9 words",
    "NOTICE.txt": "words",
    "USE_POLICY.md": "words",
    "figure.png": b"\x89PNG\x00",
}
STAYS = {
    "pytorch_model.bin": b"\0",
    "pytorch_model.bin.index.json": "{}",
    "model.safetensors.index.fp32.json": "{}",
    "training_args.bin": b"\0",
    "optimizer.pt": b"\0",
    "consolidated.00.pth": b"\0",
    "tf_model.h5": b"\0",
    "flax_model.msgpack": b"\0",
    "rust_model.ot": b"\0",
    "MODEL.ONNX": b"\0",
    "model-q4.gguf": b"\0",
    "weights.npz": b"\0",
    "other-parts.tensors": b"\0",
    "onnx/config.json": "{}",
    "original/params.json": "{}",
    ".gitattributes": "*.bin",
    ".cache/huggingface/x.json": "{}",
    "__pycache__/modeling.cpython-311.pyc": b"\0",
    "hf_quant_config.json": "{}",
    "quantize_config.json": "{}",
    "adapter_config.json": "{}",
    "llmkick_compression.json": "{}",
}


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_the_other_parts_of_a_packed_model_are_in_what_is_made_of_it(tmp_path: Path):
    save_composite(tmp_path / "model", "qwen3_5")
    compressed(tmp_path / "model", tmp_path / "packed", "packed")
    assert (tmp_path / "packed" / "other-parts.tensors").is_file()
    forms: dict[str, Form] = {"out": "folder", "again": "packed"}
    for name, form in forms.items():
        report = compressed(tmp_path / "packed", tmp_path / name, form, "magnitude@0.75")
        assert not [line for line in report.warnings if line.startswith("not copied")]
    parts = [(tmp_path / name / "other-parts.tensors").read_bytes() for name in ("packed", "again")]
    assert parts[0] == parts[1]


# Streamed, and written from memory.
TRAVELLING = [(one, form) for one in ("llama", "mixtral") for form in ("folder", "packed", "compressed-tensors")]


@pytest.mark.parametrize(("architecture", "form"), others_slow(TRAVELLING, TRAVELLING[:4]))
def test_what_is_not_weights_travels(tmp_path: Path, architecture: str, form: Form):
    if form == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
        architecture = {"mixtral": "gpt_neox"}.get(architecture, architecture)
    save_toy(tmp_path / "model", architecture)
    own = {path.name for path in (tmp_path / "model").iterdir() if path.suffix != ".safetensors"}
    write(tmp_path / "model", {**TRAVELS, **STAYS})
    report = compressed(tmp_path / "model", tmp_path / "out", form, "rtn@8b")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    made = {name for name in written if name.endswith(".safetensors")} | {"model.safetensors.index.json"}
    ours = {"llmkick_compression.json", "llmkick_source.json", "llmkick_packed.json"}
    assert written - made - ours == own | TRAVELS.keys()
    for name in (own | TRAVELS.keys()) - {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert json.loads((tmp_path / "out" / "llmkick_compression.json").read_text())["recipe"] == "rtn@8b"
    assert not [line for line in report.warnings if line.startswith("not copied")]
    assert load_model(str(tmp_path / "out")).has_chat_template


def test_code_and_unknown_binary_files_stay_and_are_named(tmp_path: Path):
    save_toy(tmp_path / "model")
    write(tmp_path / "model", {"modeling_toy.py": "import os", "scores.dat": b"\0\1"})
    file = tmp_path / "model" / "config.json"
    code = {"AutoModelForCausalLM": "modeling_toy.Toy", "AutoConfig": "owner/code--configuration_toy.ToyConfig"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": code}))
    report = compressed(tmp_path / "model", tmp_path / "out")
    assert not {"modeling_toy.py", "scores.dat"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert [line for line in report.warnings if line.startswith("not copied")] == [
        "not copied: modeling_toy.py is code; a model is read and written without running any",
        "not copied: scores.dat is a binary file of no known kind",
        "not copied: auto_map of config.json, which names code in the folder (AutoModelForCausalLM)",
    ]
    assert json.loads((tmp_path / "out" / "llmkick_compression.json").read_text())["warnings"] == list(report.warnings)
    left = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    assert left == {"AutoConfig": "owner/code--configuration_toy.ToyConfig"}


def test_a_cache_of_the_hub_is_copied_and_not_linked(tmp_path: Path):
    save_toy(tmp_path / "plain")
    write(tmp_path / "plain", {"README.md": "---\nlicense: mit\n---\nA model.\n", "LICENSE": "words"})
    snapshot = tmp_path / "models--owner--toy" / "snapshots" / "abc"
    blobs = tmp_path / "models--owner--toy" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
        (blobs / str(number)).chmod(0o444)
    compressed(snapshot, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_symlink()]
    assert (tmp_path / "out" / "LICENSE").read_text() == "words"
    assert front_matter((tmp_path / "out" / "README.md").read_text()) == {"license": "mit", "base_model": "owner/toy"}


def test_links_and_pipes_are_not_followed_out_of_the_folder(tmp_path: Path):
    folder = tmp_path / "model"
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", {"private.txt": "words", "tokenizer/vocab.txt": "words"})
    write(folder, {"vocab.txt": "words"})
    (folder / "tokenizer").symlink_to(tmp_path / "elsewhere" / "tokenizer")
    (folder / "extra.json").symlink_to(tmp_path / "elsewhere")
    (folder / "lost.json").symlink_to(tmp_path / "nowhere.json")
    os.mkfifo(folder / "pipe.txt")
    files, notes = travelling_files(folder)
    assert [str(name) for name in files] == ["vocab.txt"]
    assert notes == ["not copied: lost.json is a link to a file that is not there"]


# The model card


def front_matter(card: str) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load(card.split("---")[1])
    return values


def test_the_model_card_says_what_was_done(tmp_path: Path):
    save_toy(tmp_path / "model")
    card = "---\nlicense: apache-2.0\ntags:\n- text\n---\n\n# A model\n\n--- words ---\n"
    write(tmp_path / "model", {"README.md": card})
    compressed(tmp_path / "model", tmp_path / "out", recipe="wanda@2:4")
    written = (tmp_path / "out" / "README.md").read_text()
    # A folder of one's own has no name on the hub.
    assert front_matter(written) == {"license": "apache-2.0", "tags": ["text"]}
    assert written.startswith(card)
    note = written.partition("## Compression")[2]
    for fact in (
        "- source: model\n",
        f"llmkick {importlib.metadata.version('llmkick')}",
        "`wanda@2:4`, calibrated on",
        "50.0%",
        "float32 weights",
    ):
        assert fact in note


NOTE = "## Compression\n\nwords\n"


@pytest.mark.parametrize(
    ("card", "written"),
    [
        ("", '---\nbase_model: "a/b"\n---\n\n\n' + NOTE),
        ("# A model", '---\nbase_model: "a/b"\n---\n\n# A model\n\n' + NOTE),
        ("---\n---\n# A model\n", '---\nbase_model: "a/b"\n---\n# A model\n\n' + NOTE),
        ("---\nx: 1\n---\ny", '---\nx: 1\nbase_model: "a/b"\n---\ny\n\n' + NOTE),
        ("---\nx: |\n  base_model: no\n---\n", '---\nx: |\n  base_model: no\nbase_model: "a/b"\n---\n\n' + NOTE),
        ("---\nbase_model: c/d\n---\ny\n", "---\nbase_model: c/d\n---\ny\n\n" + NOTE),
        ("---\nbase_model:\n- c/d\n---\ny\n", "---\nbase_model:\n- c/d\n---\ny\n\n" + NOTE),
        ("---\n{x: 1}\n---\ny\n", "---\n{x: 1}\n---\ny\n\n" + NOTE),  # nothing can be appended to it
        ("---\nx: [1\n---\ny\n", "---\nx: [1\n---\ny\n\n" + NOTE),  # not YAML
        (
            "---\r\nx: 1\r\n---\r\ny\r\n",
            ('---\nx: 1\nbase_model: "a/b"\n---\ny\n\n' + NOTE).replace("\n", "\r\n"),
        ),
        ("\ufeff---\nx: 1\n---\n", '\ufeff---\nx: 1\nbase_model: "a/b"\n---\n\n' + NOTE),
    ],
)  # fmt: skip
def test_a_card_keeps_what_it_says(card: str, written: str):
    assert with_note(card.encode(), NOTE, "a/b").decode() == written


def test_a_card_in_another_encoding_keeps_its_bytes():
    card = b"---\nx: 1\n---\n\xa9 words\n"
    assert with_note(card, NOTE, "a/b") == b'---\nx: 1\nbase_model: "a/b"\n---\n\xa9 words\n\n' + NOTE.encode()


@pytest.mark.parametrize("name", ["of two words", "a/b/c", "x: y", ""])
def test_a_name_that_no_model_can_have_is_not_stated(name: str):
    assert with_note(b"---\nx: 1\n---\n", NOTE, name) == b"---\nx: 1\n---\n\n" + NOTE.encode()
