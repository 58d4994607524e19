"""One family of `architectures.py`: a tiny model compressed, written, read again and compared."""

from __future__ import annotations

import functools
import os
import random
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from architecture_weights import Fault, changed_beside, check_weights, files_lost, lost_tensors
from torch import Tensor
from transformers import CompressedTensorsConfig

import llmkick
from llmkick.compression.storage.compress_to_disk import CalibrationPlan, Form, compress_checkpoint
from llmkick.errors import KickError
from llmkick.models.checkpoints.meta_model import load_meta_model
from tiny import save_tiny
from tiny_overrides import UNTRIED

FORMS: tuple[Form, ...] = ("folder", "packed", "compressed-tensors")
PLAN = {"sequences": 8, "length": 64}
TOLERANCE = 1e-5  # of the largest logit; weights are compared bit for bit where the form allows it
ROUNDED_TOLERANCE = 1e-3  # compressed-tensors restores scale × code with its own arithmetic


@dataclass(kw_only=True)
class Row:
    """One recipe in one form. difference: of the logits, as a share of the largest one; lost: tensors that the model
    in the folder lacks or holds with other values than the model in memory; streamed: read block by block."""

    family: str
    architecture: str
    recipe: str = ""
    form: str = "build"
    outcome: str = "ok"
    reason: str = ""
    share: float | None = None
    stated_share: float | None = None
    zeros: float | None = None
    routers_changed: int | None = None
    difference_kick: float | None = None
    difference_plain: float | None = None
    lost: int | None = None
    files_lost: str = ""
    streamed: bool | None = None
    seconds: float = 0.0


class Stages:
    """Remembers whether a block had been compressed."""

    def __init__(self) -> None:
        self.working = self.compressing = False

    def stage(self, title: str, total: int) -> None:
        self.compressing = title.startswith("compressing")
        self.working = self.working or title.startswith("writing")

    def advance(self, done: int) -> None:
        self.working = self.working or (self.compressing and done > 0)


def try_family(family: str, architecture: str, recipes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a family, as they are made."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["LLMKICK_CACHE"] = f"{name}/cache"
        text = Path(name, "text.txt")
        text.write_text(calibration_text(), encoding="utf-8")
        row, started = Row(family=family, architecture=architecture), time.monotonic()
        try:
            if family in UNTRIED:
                raise Fault(UNTRIED[family])
            dense = save_tiny(Path(name, "dense"), family)
            trial = Trial(family, architecture, Path(name), dense)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a row
            row.outcome, row.reason = "unbuilt", one_line(error)
            yield asdict(row)
            return
        row.seconds, row.reason = round(time.monotonic() - started, 2), trial.needs_more_than_text
        yield asdict(row)
        for recipe in recipes:
            yield asdict(trial.row(recipe, "memory", trial.in_memory))
            for form in FORMS:
                if form != "compressed-tensors" or recipe.startswith("gptq"):
                    yield asdict(trial.row(recipe, form, trial.on_disk))


def calibration_text() -> str:
    """Text over all bytes of the toy tokenizer, so that the tokens reach every expert."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?()[]{}<>+-*/=%&$#@äöüßéèçñåøλπ中文"
    return "".join(random.Random(0).choices(letters, k=6000))


class Trial:
    """A dense folder, its network, and what each compression in memory made of it."""

    def __init__(self, family: str, architecture: str, folder: Path, dense: Any) -> None:
        self.family, self.architecture, self.folder = family, architecture, folder
        self.ids = torch.randint(4, 280, (2, 40), generator=torch.Generator().manual_seed(1))
        self.full_class = type(dense)
        # As it is read again: what the folder does not keep is no part of the model.
        self.dense = self.plain(folder / "dense", refuse=True)
        self.needs_more_than_text = ""
        try:
            logits = self.logits(self.dense)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a row
            self.needs_more_than_text = f"its forward needs more than text ({one_line(error)})"
        else:
            if not bool(torch.isfinite(logits).all()):
                raise Fault("the logits of the tiny model are not finite")
            if not torch.equal(logits, self.logits(self.dense)):
                self.needs_more_than_text = "two forwards of it differ"
        self.memory: dict[str, tuple[Any, Tensor]] = {}
        self.changed: dict[str, int] = {}

    @functools.cached_property
    def streamed(self) -> bool:
        """Whether the blocks are read one by one."""
        return load_meta_model(str(self.folder / "dense"), dtype="float32", device="cpu").obstacle is None

    def row(self, recipe: str, form: str, run: Callable[[Row], None]) -> Row:
        row, started = (
            Row(family=self.family, architecture=self.architecture, recipe=recipe, form=form),
            time.monotonic(),
        )
        try:
            run(row)
        except Fault as fault:
            row.outcome, row.reason = "fault", str(fault)
        except KickError as error:
            late = getattr(error, "late", False)
            row.outcome, row.reason = (
                ("fault" if late else "refused"),
                ("after the work: " if late else "") + one_line(error),
            )
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a row
            row.outcome, row.reason = "fault", f"{type(error).__name__}: {one_line(error)}"
        row.seconds = round(time.monotonic() - started, 2)
        return row

    def in_memory(self, row: Row) -> None:
        model = llmkick.load_model(str(self.folder / "dense"), dtype="float32", device="cpu")
        dense = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        calibration = llmkick.calibrate(model, source=str(self.folder / "text.txt"), **PLAN)
        compressed, report = llmkick.compress(model, row.recipe, calibration=calibration)
        row.stated_share = report.block_share
        if self.needs_more_than_text:
            raise Fault(f"compressed, although {self.needs_more_than_text}")
        logits = self.logits(compressed.network)
        self.memory[row.recipe] = compressed.network, logits
        self.changed[row.recipe] = sum(
            not torch.equal(dense.get(name, tensor), tensor) for name, tensor in compressed.network.state_dict().items()
        )
        check_weights(row, dense, compressed.network)
        if not bool(torch.isfinite(logits).all()):
            raise Fault("logits in memory are not finite")
        if self.difference(logits, self.logits(model.network)) == 0:
            raise Fault("the compressed model answers as the dense one")

    def on_disk(self, row: Row) -> None:
        out, stages = self.folder / f"{row.recipe}-{row.form}", Stages()
        form: Any = row.form
        try:
            row.streamed = self.streamed
            compress_checkpoint(
                str(self.folder / "dense"), row.recipe, out, form=form, dtype="float32", device="cpu", observer=stages,
                calibration=CalibrationPlan(source=str(self.folder / "text.txt"), **PLAN),
            )  # fmt: skip
        except KickError as error:
            error.late = stages.working  # type: ignore[attr-defined]
            raise
        if row.recipe not in self.memory:
            raise Fault("written, although it cannot be compressed in memory")
        network, expected = self.memory[row.recipe]
        exact = row.form != "compressed-tensors"
        faults: list[str] = []
        try:
            again = llmkick.load_model(str(out), dtype="float32", device="cpu").network
            row.difference_kick = self.difference(self.logits(again), expected)
            row.lost = lost_tensors(network, again, exact=exact)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a row
            faults.append(f"kick cannot open it: {one_line(error)}")
        if row.form != "packed":
            self.check_plain(row, out, network, expected, faults)
        row.files_lost = ", ".join(files_lost(self.folder / "dense", out))
        self.judge(row, faults, exact=exact)

    def check_plain(self, row: Row, out: Path, network: Any, expected: Tensor, faults: list[str]) -> None:
        try:
            plain = self.plain(out, refuse=False)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a row
            faults.append(f"transformers cannot open it: {one_line(error)}")
            return
        row.difference_plain = self.difference(self.logits(plain), expected)
        exact, missing = row.form != "compressed-tensors", plain._missing
        row.lost = max(row.lost or 0, len(missing) + changed_beside(self.dense, plain, self.changed[row.recipe]))
        if type(plain) is type(network):
            row.lost = max(row.lost, lost_tensors(network, plain, exact=exact))
        if missing:
            faults.append(f"transformers misses {len(missing)} tensors, {missing[0]} first")

    def judge(self, row: Row, faults: list[str], *, exact: bool) -> None:
        limit = TOLERANCE if exact else ROUNDED_TOLERANCE
        for reader, difference in (("kick", row.difference_kick), ("transformers", row.difference_plain)):
            if difference is not None and not difference <= limit:
                faults.append(f"logits read by {reader} are off by {difference:.2g}")
        if row.lost and not any("misses" in fault for fault in faults):
            faults.append(f"{row.lost} tensors lost or changed")
        if row.files_lost:
            faults.append(f"lost: {row.files_lost}")
        if faults:
            raise Fault("; ".join(faults))

    def plain(self, folder: Path, *, refuse: bool) -> Any:
        """The whole model of a folder by transformers alone."""
        config = transformers.AutoConfig.from_pretrained(folder)
        names = config.architectures or []
        if not refuse and names != [self.full_class.__name__]:
            raise Fault(f"config.json names {names}, not {self.full_class.__name__}")
        options: dict[str, Any] = {}
        if getattr(config, "quantization_config", None) is not None:
            options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        with warnings.catch_warnings(action="ignore"):
            network, info = self.full_class.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **options
            )
        if refuse and (info["missing_keys"] or info["mismatched_keys"]):
            raise Fault(f"transformers does not read its own folder: {sorted(info['missing_keys'])[:2]}")
        network._missing = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        return network.eval().requires_grad_(False)

    def logits(self, network: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = network(input_ids=self.ids, use_cache=False).logits.float()
        return logits

    def difference(self, logits: Tensor, expected: Tensor) -> float:
        """The largest difference, as a share of the largest expected logit; NaN and Inf count as 1e9."""
        change = torch.nan_to_num((logits - expected).abs(), 1e9, 1e9, 1e9).max()
        return float(change / expected.abs().max())


def one_line(error: BaseException) -> str:
    """A message on one line, without the folders of this run."""
    text = " ".join(str(error).split()) or type(error).__name__
    if packages := re.search(r"requires the (PIL|timm) library", text):
        return f"its vision tower needs the package {packages[1]}"
    temporary = re.escape(tempfile.gettempdir())
    return re.sub(rf"{temporary}/\S*?/(dense|text|magnitude|wanda|gptq)", r"\1", text)[:300]
