"""The JSON file of a result in its run folder: atomic writing, and reading that names the first damaged entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmkick.errors import DataError, plain_message
from llmkick.files import write_text_atomically


class ResultFile(BaseModel):
    """A result, and the folder of its file.

    `file_name` is the name of the file, `schema_version` the version of its content, and `command` the command that
    writes the file.
    """

    # Serialization keeps NaN, so that writing the file refuses NaN. NaN must not become null.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    file_name: ClassVar[str]
    schema_version: ClassVar[int]
    command: ClassVar[str]

    folder: Path = Field(exclude=True)

    def write(self) -> Path:
        """Write the file atomically. Raises DataError if it cannot be written."""
        content = {"schema": self.schema_version, **self.model_dump()}
        path = self.folder / self.file_name
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            write_text_atomically(path, text)
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error}. Every record is safe in the journal: "
                "mend the cause (disk space, permissions) and run the same command again"
            ) from error
        return path

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file in a folder.

        Raises DataError if the file is missing, is damaged or has another schema. For a damaged file the message names
        the first entry that is missing or has the wrong type.
        """
        path = folder / cls.file_name
        if not path.is_file():
            raise DataError(f"{folder} holds no {cls.file_name}: run `{cls.command}` to its end first")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            schema = content.pop("schema")
            if schema != cls.schema_version:
                raise DataError(f"{path} has schema {schema}; this version reads {cls.schema_version}")
            return cls(folder=folder, **content)
        except ValidationError as error:
            raise DataError(
                f"{path} is damaged: {first_problem(error)}. Run the same command again on this folder to write it anew"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged: {error}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first entry that is missing or has the wrong type, and the problem: "results.0.value: …"."""
    problem = error.errors()[0]
    entry = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("_"))
    return f"{entry}: {plain_message(problem['msg'])}"
