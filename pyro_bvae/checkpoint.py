"""checkpoint.pt and history.jsonl: written while a run trains, read to show it or to go on with it."""

from __future__ import annotations

import json
import os
import pickletools
import shlex
import textwrap
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch

from .training import Record, TrainingState
from .writing import (
    check_inside,
    read_text,
    remove_leftovers,
    replacing,
    synchronise,
    unwritable,
)

FORMAT = 2  # of checkpoint.pt; 1 held too little to go on from
_KINDS = {
    1: {"vae": dict, "x_shape": list, "n_classes": int},
    2: {
        "vae": dict, "x_shape": list, "n_classes": int, "n_rows": int, "optim": dict, "svi": dict,
        "step": int, "epoch": int, "batch": int, "data_order": torch.Tensor, "seconds": float,
        "sums": dict, "counts": dict, "noise": dict, "numbers": dict, "config": str, "data": str,
    },
}  # fmt: skip
_RECORD_FORMAT = 1  # of a line of history.jsonl
_SECONDS = 10.0  # between two checkpoints, at least, ...
_SHARE = 50  # ... and so many times what one of them takes
_MOST_HISTORY = 1 << 31  # bytes


class Checkpoints:
    """Keeps checkpoint.pt and history.jsonl of a run up to date, as callbacks of `fit`.

    A checkpoint is written to a temporary name, synchronised and renamed: the last one stays until the
    next is complete. The history is synchronised first, so that it is never behind the checkpoint; what
    it is ahead is taken back by `read_history` when the run is resumed.

    Args:
        path: the run directory, which the caller has locked.
        about: what a checkpoint holds beside the training's state.
        every: steps between two checkpoints; by default they come by time.
        history: the records so far.
    """

    def __init__(
        self, path: Path, about: Mapping[str, Any], every: int | None, history: Sequence[Record]
    ) -> None:
        self.path, self.about, self.every = path, about, every
        self.past: list[Record] | None = list(history)  # until it is written
        self.pending: list[Record] = []  # records that are not on the disk
        self.step: int | None = None  # of the last checkpoint written here
        self.saved, self.cost = time.monotonic(), 0.0
        remove_leftovers(path)

    def on_record(self, record: Record, state: TrainingState) -> None:
        """After each record of the training."""
        self.pending.append(record)

    def on_step(self, state: TrainingState) -> None:
        """After a step: write a checkpoint where one is due."""
        if self.every is not None:
            due = state.step % self.every == 0
        else:
            waited = time.monotonic() - self.saved
            due = waited > max(_SECONDS, _SHARE * self.cost)
            due = due or (self.step is None and state.epoch == 1)
        if due:
            self.save(state)

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint of this step.

        Raises:
            FloatingPointError: a loss, a gradient or a trained weight is not finite: the last good
                checkpoint stays.
            OSError: it cannot be written.
        """
        if self.step == state.step:
            return
        begun = time.monotonic()
        values = state.state_dict()
        for name, weight in state.vae.named_parameters():
            # Frozen ones and buffers may hold infinity or NaN by right.
            if weight.requires_grad and not torch.isfinite(weight).all():
                raise FloatingPointError(
                    f"fit: weights must be finite; {name} is not after step {state.step}. Lower the "
                    "learning rate, or check the data's range."
                )
        self.write_history()
        content = BytesIO()  # torch's own writer hides the system's reason for a failure
        torch.save({"format": FORMAT, **self.about, **values}, content)
        with replacing(self.path / "checkpoint.pt") as temporary:
            temporary.write_bytes(content.getbuffer())
        self.step = state.step
        self.saved = time.monotonic()
        self.cost = self.saved - begun

    def write_history(self) -> None:
        """Append the records that are not on the disk; the first time, in the place of what is there."""
        path = self.path / "history.jsonl"
        if self.past is not None:
            with replacing(path) as temporary:
                temporary.write_text(
                    "".join(map(_line, self.past + self.pending)), encoding="utf-8"
                )
            self.past = None
            self.pending.clear()
            return
        whole, size = "".join(map(_line, self.pending)), path.stat().st_size
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(whole)
            synchronise(path)
        except OSError as error:
            with suppress(OSError):  # no half of it stays
                os.truncate(path, size)
            raise unwritable(path, error) from error
        self.pending.clear()

    def close(self) -> None:
        """The records of epochs since the last checkpoint: they tell what went wrong."""
        if self.pending:
            with suppress(OSError, ValueError):  # the reason why training stopped was said
                self.write_history()

    def kept(self) -> str:
        """What is left when a training stops, as a sentence."""
        if not (self.path / "checkpoint.pt").is_file():
            return f"{self.path} holds its configuration only: there was no checkpoint yet."
        return f"The last good checkpoint and the history are kept in {self.path}."


def check_every(steps: int | None) -> None:
    """Refuse a number of steps between checkpoints that is none."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"--checkpoint-every must be a whole number of at least 1; got {steps!r}.")


def _line(record: Record) -> str:
    plain: dict[str, float] = {}
    for name, value in record.items():
        try:
            plain[name] = value if isinstance(value, (int, float)) else float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"fit: a record must hold numbers; a callback put {name}={value!r:.60} there. Keep it "
                "elsewhere."
            ) from error
    return json.dumps({"format": _RECORD_FORMAT, **plain}) + "\n"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this format or an older one: tensors, numbers and text, nothing that runs.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, foreign, or of a newer format.
    """
    check_inside(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"load_run: {path.parent} has no {path.name}. Go on with: pyro-bvae train --resume "
            f"{shlex.quote(str(path.parent))}."
        )
    try:
        with path.open("rb") as file:
            _check_archive(file, os.fstat(file.fileno()).st_size)
            file.seek(0)
            checkpoint = dict(torch.load(file, map_location="cpu", weights_only=True))
        written = int(checkpoint["format"])
        kinds = _KINDS.get(written, {})
        wrong = [name for name, kind in kinds.items() if not isinstance(checkpoint[name], kind)]
        if wrong or written < 1:
            raise TypeError(f"wrong kind of {', '.join(wrong) or 'format'}")
        if not checkpoint.get("x_shape", [1]) or min(checkpoint.get("x_shape", [1])) < 1:
            raise ValueError("x_shape is none")
    except Exception as error:  # torch.load raises many kinds on damaged files
        reason = textwrap.shorten(str(error) or type(error).__name__, 80, placeholder=" ...")
        raise ValueError(
            f"load_run: {path} must be a checkpoint of pyro_bvae; it cannot be read ({reason}). "
            "Restore it, or train again."
        ) from error
    if written > FORMAT:
        raise ValueError(
            f"load_run: {path} has format {written}, newer than {FORMAT}. Upgrade pyro_bvae."
        )
    return cast("dict[str, Any]", checkpoint)


def _check_archive(file: Any, size: int) -> None:
    """torch.load reads tensors without looking at their checksums, and unpacks what it is given."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("it claims more than it holds")
        damaged = archive.testzip()
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                _check_globals(archive.read(entry))
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")


def _check_globals(code: bytes) -> None:
    """Tensors name functions of torch; torch.load also allows bytearray, whose size is a number."""
    for operation, argument, _ in pickletools.genops(code):
        name = operation.name
        if name == "STACK_GLOBAL" or (name == "GLOBAL" and "builtin" in str(argument)):
            raise ValueError("it holds more than tensors")


def read_history(path: Path, n: int | None = None) -> list[Record]:
    """The records of history.jsonl; a last line that was never finished is left out.

    Args:
        path: of the file.
        n: the first so many records, which must be there; all by default.

    Raises:
        ValueError: a line is no record, or there are too few.
    """
    check_inside(path)
    if not path.is_file():
        return _first([], n, path)
    whole = read_text(path, _MOST_HISTORY).rpartition("\n")[0].split("\n")
    lines = [line for line in whole if line][:n]
    return _first([_record(line, i, path) for i, line in enumerate(lines, 1)], n, path)


def _first(records: list[Record], n: int | None, path: Path) -> list[Record]:
    if n is not None and len(records) < n:
        raise ValueError(
            f"resume: {path} must hold the {n} records up to the checkpoint; got {len(records)}. "
            "Restore it, or train again."
        )
    return records


def _record(line: str, number: int, path: Path) -> Record:
    reason = "no record"
    try:
        record = json.loads(line)
        if isinstance(record, dict):
            written = record.pop("format", 1)
            numbers = all(isinstance(value, (int, float)) for value in record.values())
            if written == _RECORD_FORMAT and numbers:
                return cast(Record, record)
            reason = "not of numbers" if written == _RECORD_FORMAT else f"of format {written!r:.20}"
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deep")
    raise ValueError(
        f"load_run: {path} must hold one JSON record a line; line {number} is not ({reason}). "
        "Delete that line."
    )
