"""A Hugging Face network as a language model: loading it, and what identifies it."""

from __future__ import annotations

import copy
import hashlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from llmkick.errors import ConfigError, ModelError, NumericalError
from llmkick.models.checkpoints.checkpoint import Checkpoint, locate, refuse_missing
from llmkick.models.checkpoints.packed import digest_of, unpack_folder
from llmkick.models.engine.batch_budget import Allowance
from llmkick.models.finite import all_finite
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    Message,
    ModelInfo,
    Prompt,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.plugin_models import load_from_plugin, plugin_of
from llmkick.models.precision import BALANCED, resolve_device, resolve_dtype


@dataclass(frozen=True, kw_only=True)
class TransformersModel:
    """A Hugging Face network and its tokenizer behind the LanguageModel protocol."""

    network: Any
    tokenizer: Any
    info: ModelInfo
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    # One for a model and all its compressed copies: they share the device.
    allowance: Allowance = field(default_factory=Allowance, repr=False, compare=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of this model's answers should know: every time memory ran short while it answered."""
        return tuple(self.allowance.notes)

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the device of the input embeddings."""
        device: torch.device = self.network.get_input_embeddings().weight.device
        return device

    @property
    def max_tokens(self) -> int:
        """The network's position limit; 2048 where its configuration names none."""
        config = self.network.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)

    @property
    def has_chat_template(self) -> bool:
        """True for instruct models."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def end_tokens(self) -> frozenset[int]:
        """Token ids that end an answer."""
        configured = getattr(self.network.generation_config, "eos_token_id", None)
        ids = set(configured) if isinstance(configured, list | tuple) else {configured}
        ids.add(self.tokenizer.eos_token_id)
        return frozenset(int(i) for i in ids if i is not None)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of raw text, with the special tokens that the tokenizer adds by default."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return ids

    def encode(self, prompt: Prompt, continuation: str = "") -> list[int]:
        """Token ids of a prompt with its continuation, tokenised as one text."""
        return self.encode_all([(prompt, continuation)])[0]

    def encode_all(self, texts: Sequence[tuple[Prompt, str]]) -> list[list[int]]:
        """`encode` of many prompts with their continuations, which tokenizers do on all processors."""
        found: dict[int, list[int]] = {}
        rendered: dict[tuple[Message, ...], str] = {}
        raw: dict[int, str] = {}
        chats: dict[int, str] = {}
        for index, (prompt, continuation) in enumerate(texts):
            if isinstance(prompt, str):
                raw[index] = prompt + continuation
                continue
            messages = tuple(prompt)
            if messages not in rendered:
                rendered[messages] = self.render_chat(messages)
            chats[index] = rendered[messages] + continuation
        # The template writes its own special tokens; adding the tokenizer's would double them.
        for some, special in ((raw, True), (chats, False)):
            if some:
                encoded = self.tokenizer(list(some.values()), add_special_tokens=special, verbose=False)["input_ids"]
                found.update(zip(some, encoded, strict=True))
        return [found[index] for index in range(len(texts))]

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The conversation as the model's chat template writes it, ready for the assistant to speak."""
        if not self.has_chat_template:
            raise ConfigError(f'{self.info.name} has no chat template: use prompting = "raw"')
        continues = messages[-1].role == "assistant"
        rendered: str = self.tokenizer.apply_chat_template(
            [message._asdict() for message in messages],
            tokenize=False,
            add_generation_prompt=not continues,
            continue_final_message=continues,
        )
        return rendered

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score a request, in order; see `llmkick.models.engine.scoring`."""
        from llmkick.models.engine.scoring import score_requests

        return score_requests(self, requests)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One generation a request, in order; see `llmkick.models.engine.generation`."""
        from llmkick.models.engine.generation import generate_requests

        return generate_requests(self, requests)

    def with_network(self, network: Any, *, digest: str) -> TransformersModel:
        """The same tokenizer and name around other weights."""
        return replace(self, network=network, info=replace(self.info, digest=digest))


# While transformers loads a network it replaces functions of its own, such as the tying of weights, for the whole
# process: two loads at once can leave them replaced for good, and every later model without its output head.
_LOADING = threading.Lock()


def load_model(reference: str, *, dtype: str = "auto", device: str = "auto") -> TransformersModel:
    """Load a model by built-in name, local Hugging Face folder, hub id, `.gguf` file or a plug-in's `scheme:…`.

    `dtype` is "auto" (bfloat16 where the device is faster in it, else float32), "float32",
    "bfloat16" or "float16"; `device` is "auto" (CUDA when there is one), a torch device name, or "balanced" (over all
    CUDA devices, for a model that one does not hold).
    Raises ModelError for missing, damaged or unsupported files, NumericalError for NaN or Inf weights, ConfigError
    for a broken plug-in.
    """
    resolve_dtype(dtype, resolve_device(device))  # before anything is fetched or converted
    plugin = plugin_of(reference)
    if plugin is not None:
        # A plug-in's model may be any LanguageModel; what needs its weights asks for them.
        return load_from_plugin(plugin, reference, dtype=dtype, device=device)  # type: ignore[no-any-return]
    return load_located(locate(reference), dtype=dtype, device=device)


def load_located(checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "auto") -> TransformersModel:
    """As `load_model`, for files that have been located."""
    target = resolve_device(device)
    precision = resolve_dtype(dtype, target)
    spread = device == BALANCED
    with _LOADING:
        network, tokenizer = _read(checkpoint, precision, BALANCED if spread else None)
        network.eval().requires_grad_(False)
        check_finite(network)
        info = describe(network, checkpoint, precision)
    return TransformersModel(
        network=network if spread else network.to(target), tokenizer=tokenizer, info=info, checkpoint=checkpoint
    )


def describe(network: Any, checkpoint: Checkpoint, dtype: torch.dtype) -> ModelInfo:
    """What identifies a network that comes from a checkpoint."""
    return ModelInfo(
        name=checkpoint.name,
        revision=checkpoint.revision,
        digest=checkpoint.digest,
        architecture=(network.config.architectures or [type(network).__name__])[0],
        parameters=_parameters(network),
        dtype=str(dtype).removeprefix("torch."),
        source_precision=checkpoint.source_precision,
    )


def _parameters(network: Any) -> int:
    """Numbers that the architecture has: packed weights count as what they stand for."""
    if getattr(network.config, "quantization_config", None) is not None:
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(network.config)
        del config.quantization_config
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return sum(parameter.numel() for parameter in network.parameters())


def read_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer in a checkpoint's folder. Raises ModelError when there is none that can be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"cannot load {checkpoint.name} from {checkpoint.folder}: {error}") from error


def _read(checkpoint: Checkpoint, dtype: torch.dtype, device_map: str | None = None) -> tuple[Any, Any]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = read_tokenizer(checkpoint)
    given: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
    if device_map is not None:
        given["device_map"] = device_map
    try:
        if checkpoint.packed:
            config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
            kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            loaded = kind.from_pretrained(None, config=config, state_dict=unpack_folder(checkpoint.folder), **given)
        else:
            if checkpoint.quantization == "compressed-tensors":
                # As plain weights: packed ones with zero points do not load otherwise (compressed-tensors 0.20).
                given["quantization_config"] = CompressedTensorsConfig(dequantize=True)
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # it is told to dequantize
                loaded = AutoModelForCausalLM.from_pretrained(
                    checkpoint.folder, use_safetensors=True, trust_remote_code=False, **given
                )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"cannot load {checkpoint.name} from {checkpoint.folder}: {error}") from error
    network, loading = loaded
    refuse_missing(checkpoint.folder, network, loading)
    refuse_offloaded(checkpoint.name, network)
    return network, tokenizer


def refuse_offloaded(name: str, network: Any) -> None:
    """Raise ModelError when parts of a network that is spread over GPUs found no room there.

    accelerate would read them from memory or disk again for every token, and a changed weight would be lost.
    """
    places = getattr(network, "hf_device_map", {})
    outside = sorted(part for part, place in places.items() if str(place) in ("cpu", "disk", "meta"))
    if outside and len(set(map(str, places.values()))) > 1:
        raise ModelError(
            f"the GPUs that can be seen do not hold {name}: {len(outside)} of its {len(places)} parts found no room, "
            f"{outside[0]} first; use more of them, or a smaller dtype"
        )


def check_finite(network: nn.Module) -> None:
    """Raise NumericalError naming the first tensor with a NaN or an Inf."""
    for name, parameter in network.named_parameters():
        if type(parameter) is not nn.Parameter:
            continue  # packed by a library with classes of its own, which do not tell
        if not all_finite(parameter):
            raise NumericalError(f"the weights of {name} hold NaN or Inf values: the checkpoint is damaged")


def weights_digest(network: nn.Module) -> str:
    """sha256 over every parameter and buffer of the state dict, in name order."""
    return combined_digest({name: digest_of(tensor) for name, tensor in network.state_dict().items()})


def combined_digest(digests: Mapping[str, str]) -> str:
    """One digest from those of a network's tensors, by their name in its state dict."""
    return hashlib.sha256(
        "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items())).encode()
    ).hexdigest()
