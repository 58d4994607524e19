"""Check that every token a prompt can contain has a row in the network's embeddings."""

from __future__ import annotations

from collections.abc import Iterator

from llmkick.errors import ModelError
from llmkick.models.language_model import Message
from llmkick.models.transformers_model import TransformersModel

CONVERSATIONS = (
    (("user", "a"),),
    (("user", "a"), ("assistant", "b"), ("user", "c")),
    (("user", "a"), ("assistant", "b")),
    (("system", "a"), ("user", "b")),
)


def check_vocabulary(model: TransformersModel) -> None:
    """Raise ModelError when a prompt can contain a token beyond the rows of the embeddings.

    Such tokens were added to the tokenizer without resizing the network. Added tokens that neither the tokenizer nor
    the chat template writes by itself may be there: a prompt in which such a token occurs is not answered.
    """
    rows = model.network.get_input_embeddings().weight.shape[0]
    for token, where in _tokens_of_prompts(model):
        if token >= rows:
            text = model.tokenizer.convert_ids_to_tokens(token)
            raise ModelError(
                f"{model.info.name}: {where} the token {text!r} with id {token}, but the network has embeddings for "
                f"the ids 0 to {rows - 1}: the token was added without resizing them. Give the tokenizer and chat "
                "template that belong to these weights, or resize the embeddings (resize_token_embeddings) and train "
                "them"
            )


def _tokens_of_prompts(model: TransformersModel) -> Iterator[tuple[int, str]]:
    """Ids that a prompt can contain, each with where it comes from."""
    for token in model.tokenize("a"):
        yield token, "the tokenizer puts into every text"
    if model.has_chat_template:
        for conversation in CONVERSATIONS:
            for token in _rendered(model, tuple(Message(role, content) for role, content in conversation)):
                yield token, "the chat template writes"
    added = getattr(model.tokenizer, "added_tokens_decoder", None)  # not every kind of tokenizer tells
    if added is not None:
        words = (token for token in model.tokenizer.get_vocab().values() if token not in added)
        yield max(words, default=0), "the vocabulary of the tokenizer has"


def _rendered(model: TransformersModel, conversation: tuple[Message, ...]) -> list[int]:
    """The tokens of a conversation; none of one that the template refuses, which no task can ask then either."""
    try:
        return model.encode(conversation)
    except Exception:  # noqa: BLE001 - templates raise what they like: errors of jinja2, TypeError, ValueError
        return []
