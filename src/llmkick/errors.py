"""The errors that users see, by what they can change. Messages name the value, the choices and what to do."""


class KickError(Exception):
    """Base of every error that llmkick raises on purpose. The command line prints them without a traceback."""


class ConfigError(KickError):
    """A request that cannot be carried out: unknown name, value out of range, contradictory options."""


class DataError(KickError):
    """A data file or record that is missing, damaged or not in the expected layout."""


class ModelError(KickError):
    """A checkpoint that is missing, damaged or of a kind that cannot be read."""


class NumericalError(KickError):
    """A computation with a meaningless result: NaN or Inf, or a matrix that cannot be factorised."""


class JudgeError(KickError):
    """A judge model that cannot be reached or does not answer as asked."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line of at most `limit` characters; the name of its type where it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def plain_message(message: str) -> str:
    """The message of a failed validation without what pydantic writes before it: "Value error, …"."""
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
