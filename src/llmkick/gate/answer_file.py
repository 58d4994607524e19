"""A file of a model's answers by content: JSON lines, to which a run appends, and which a later run reads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from llmkick.errors import DataError, plain_message
from llmkick.files import cache_folder, lock_of, locked, write_text
from llmkick.models.language_model import LanguageModel, ModelInfo

SCHEMA = 1
# The folder of these files in the cache.
PART = "answers"


class AnswerHeader(BaseModel):
    """The first line: the schema, whose answers these are, and what tasks need to know about that model.

    `identity` holds everything besides the question that can change an answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    llmkick_answers: int = SCHEMA
    identity: dict[str, JsonValue]
    info: ModelInfo
    max_tokens: int
    has_chat_template: bool
    answers_all_requests: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: LanguageModel, identity: Mapping[str, JsonValue]) -> Self:
        """Return the header for the answers of a model."""
        return cls(
            identity=dict(identity),
            info=model.info,
            max_tokens=model.max_tokens,
            has_chat_template=model.has_chat_template,
            answers_all_requests=model.answers_all_requests,
            notes=tuple(model.notes),
        )


@dataclass(kw_only=True)
class AnswerFile:
    """The answers in a file, by key. `header` is None while there is no file."""

    path: Path
    header: AnswerHeader | None = None
    answers: dict[str, JsonValue] = field(default_factory=dict)
    damaged: int = 0  # lines that were left out

    @classmethod
    def read(cls, path: Path, *, strict: bool) -> Self:
        """Read a file, or return one without answers if there is none.

        A damaged line, such as the last one of a run that was killed, is left out. If `strict`, it raises DataError, as
        does a missing header.
        """
        file = cls(path=path)
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            for number, line in enumerate(lines, start=1):
                file._take(line, number, strict=strict)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the stored answers {path}: {error}") from error
        if strict and file.header is None:
            raise DataError(f"{path} holds no stored answers; `kick gate --store-reference FILE` writes them")
        return file

    def _take(self, line: str, number: int, *, strict: bool) -> None:
        try:
            entry = json.loads(line)
            if number == 1:
                self.header = _header(entry, self.path)
            elif self.header is not None:
                self.answers[str(entry["key"])] = entry["answer"]
        except (ValueError, KeyError, TypeError) as error:
            if strict:
                raise DataError(
                    f"{self.path}, line {number}: not a stored answer ({type(error).__name__}); `kick gate "
                    "--store-reference` on this file keeps the sound lines and asks the rest"
                ) from error
            self.damaged += 1

    def begin(self, header: AnswerHeader) -> None:
        """Write the header of a new file, unless another process has begun the file meanwhile."""
        with self._writing():
            begun = type(self).read(self.path, strict=False)
            self.header, self.answers = begun.header or header, begun.answers
            if begun.header is None:
                write_text(self.path, _first_line(header))

    def mend(self) -> None:
        """Write the file anew without its damaged lines, so that it can be read strictly."""
        with self._writing():
            sound = type(self).read(self.path, strict=False)
            if sound.header is not None and sound.damaged:
                lines = [_first_line(sound.header), *map(_line, sound.answers.items())]
                write_text(self.path, "".join(lines))

    def add(self, answers: Sequence[tuple[str, JsonValue]]) -> None:
        """Append answers in one write, so that processes can share a file."""
        if not answers:
            return
        self.answers.update(answers)
        text = "".join(map(_line, answers))
        with self._writing(), self.path.open("ab+") as stream:
            if stream.seek(0, 2) == 0 and self.header is not None:  # the cache was cleared meanwhile
                text = _first_line(self.header) + text
            elif stream.tell() and not _ends_a_line(stream):
                text = "\n" + text
            stream.write(text.encode())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock of the file, if its file system has locks. Raises DataError when it cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(lock_of(self.path)):
                yield
        except OSError as error:
            hint = "; set LLMKICK_CACHE to another folder" if self.path.parent == cache_folder(PART) else ""
            raise DataError(f"cannot write the stored answers {self.path}: {error}{hint}") from error


def _first_line(header: AnswerHeader) -> str:
    return json.dumps({**header.model_dump(mode="json"), "info": asdict(header.info)}) + "\n"


def _line(answer: tuple[str, JsonValue]) -> str:
    return json.dumps({"key": answer[0], "answer": answer[1]}) + "\n"


def _ends_a_line(stream: BinaryIO) -> bool:
    """Return whether the last byte of a stream is a line break; a killed run may have left half a line."""
    stream.seek(-1, 2)
    return stream.read(1) == b"\n"


def _header(entry: object, path: Path) -> AnswerHeader:
    """Return the header in a first line. Raises DataError for another schema and ValueError for anything else."""
    schema = entry.get("llmkick_answers") if isinstance(entry, dict) else None
    if schema is not None and schema != SCHEMA:
        raise DataError(f"{path} has schema {schema}; this version reads {SCHEMA}: store the answers anew")
    try:
        return AnswerHeader.model_validate(entry)
    except ValidationError as error:
        raise ValueError(f"no header: {plain_message(error.errors()[0]['msg'])}") from error
