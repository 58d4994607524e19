"""Any model reference as a model that answers: loaded into memory, of a plug-in, or behind a server."""

from __future__ import annotations

from llmkick.models.checkpoints.loading import load_model
from llmkick.models.language_model import LanguageModel
from llmkick.models.server.settings import ServerSettings
from llmkick.models.server_scheme import is_server
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.vllm.model import VllmModel


def open_model(
    reference: str, *, dtype: str = "auto", device: str = "auto", server: ServerSettings | None = None
) -> LanguageModel:
    """A model that answers requests: loaded as by `load_model`, or behind a server (`openai:URL#name`).

    `server.thinking` holds for both; the model of a plug-in decides for itself.
    """
    settings = server or ServerSettings()
    if is_server(reference):
        from llmkick.models.server.server import connect  # its libraries take a second to import

        return connect(reference, settings)
    model: LanguageModel = load_model(reference, dtype=dtype, device=device)
    return model.with_thinking(settings.thinking) if isinstance(model, TransformersModel | VllmModel) else model
