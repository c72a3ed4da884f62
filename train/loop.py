"""The training loop that all experiments share."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.checkpoint import CheckpointError, Checkpoints
from train.data import stream
from train.evaluate import Evaluator
from train.images import RecordSplit
from train.models import is_convolutional
from train.settings import Settings
from train.state import Network, TrainState, initial_state, optimizer
from train.step import BatchOrder, Progress, Terms, make_call, make_step
from train.trackers import JsonLines, TensorBoard, read_jsonl


class RunError(Exception):
    """A run cannot start or go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run leaves."""

    folder: Path
    data: str
    """Name of the data, with a note on where they differ from the published ones."""
    records: list[dict[str, Any]]
    states: TrainState


def train(
    settings: Settings, data: Any, loss: Callable[..., tuple], *, quiet: bool = False
) -> Result:
    """Trains all seeds of the settings on `data` and evaluates them on the way.

    Args:
        settings: of the run; written to `settings.json` in its folder.
        data: from `train.data.load`.
        loss: `(logits, features, head, labels) -> (loss, Terms)`.
        quiet: no progress bar.

    Raises:
        RunError: the folder holds something else, settings changed since the checkpoint, or the loss
            became non-finite.
        CheckpointError: the checkpoint to resume from is unusable.
    """
    network, transform = Network.of(settings, data), optimizer(settings)
    folder = _claim(settings)
    _write_settings(folder, settings, data)
    checkpoints = Checkpoints(folder / "checkpoints")
    seeds = jnp.arange(settings.first_seed, settings.first_seed + settings.seeds)
    states = initial_state(network, transform, seeds)
    start = 0
    if settings.resume and (latest := checkpoints.latest()) is not None:
        states, saved = checkpoints.restore(latest, states)
        _same_settings(settings, saved)
        start = latest
    trackers = [
        JsonLines(folder / "metrics.jsonl", keep_to=start if start else -1),
        TensorBoard(folder / "events", keep_to=start if start else -1),
    ]
    step = make_step(network, transform, loss, augment=settings.augment)
    lanes = _Lanes(settings, data, states, step)
    splits = {"test": data.test} | ({"train": data.train} if settings.eval_train else {})
    evaluators = {
        name: Evaluator(network, split, data.num_classes, settings)
        for name, split in splits.items()
    }

    def record(step: int, terms: list[dict[str, float]]) -> None:
        for states_of_lane, rows in zip(lanes.states, lanes.rows, strict=True):
            logged = [dict(terms[row]) for row in rows]
            for name, evaluate in evaluators.items():
                for values, found in zip(logged, evaluate(states_of_lane), strict=True):
                    values |= {f"{name}_{k}": v for k, v in found.items()}
            for row, values in zip(rows, logged, strict=True):
                for tracker in trackers:
                    tracker.write(step, int(seeds[row]), values)

    every = settings.eval_every if settings.checkpoint_every is None else settings.checkpoint_every
    try:
        if start == 0:
            record(0, [{} for _ in seeds])
        events = list(range(start + settings.eval_every, settings.steps, settings.eval_every))
        events += [settings.steps] if start < settings.steps else []
        for event in _progress(events, settings.steps, start, quiet):
            record(event, lanes.advance(event))
            if event == settings.steps or (every and event % every == 0):
                checkpoints.save(event, lanes.all_states(), settings.as_json())
    finally:
        for tracker in trackers:
            tracker.close()
        checkpoints.close()
    label = f"{data.name} ({data.source_note})" if data.source_note else data.name
    return Result(folder, label, read_jsonl(folder / "metrics.jsonl"), lanes.all_states())


class _Lanes:
    """The seeds, in groups that go through one call together, and where their batches come from."""

    def __init__(self, settings: Settings, data: Any, states: TrainState, step: Callable):
        slow_loops = jax.default_backend() == "cpu" and is_convolutional(settings.model)
        mapping = settings.seed_mapping
        together = mapping == "vmap" or (mapping == "auto" and not slow_loops)
        streamed = isinstance(data.train, RecordSplit)
        chunk = 1 if streamed or slow_loops else 100
        self._chunk = 1 if streamed else settings.steps_per_call or chunk
        size = settings.seeds if together else 1
        self.rows = [range(i, i + size) for i in range(0, settings.seeds, size)]
        self.states = [jax.tree.map(lambda x, r=r: x[r.start : r.stop], states) for r in self.rows]
        self._step = int(states.step[0])
        self._call = make_call(step, looped=self._chunk > 1)
        seeds = np.asarray(states.seed)
        if streamed:
            self._feeds = [
                [self._stream(settings, data.train, int(seeds[i])) for i in rows]
                for rows in self.rows
            ]
            own = np.arange(size * settings.batch_size, dtype=np.int32)
            self._own = own.reshape(1, size, settings.batch_size)
        else:
            self._feeds = None
            self._images, self._labels = (
                jnp.asarray(data.train.images),
                jnp.asarray(data.train.labels),
            )
            self._orders = [
                BatchOrder(seeds[r.start : r.stop], len(data.train), settings.batch_size)
                for r in self.rows
            ]

    def _stream(self, settings: Settings, split: Any, seed: int) -> Iterator[dict[str, np.ndarray]]:
        options = {"batch_size": settings.batch_size, "seed": seed, "start_step": self._step}
        return iter(stream(split, **options))

    def _batches(self, lane: int, step: int, count: int) -> tuple[Any, Any, np.ndarray]:
        if self._feeds is None:
            indices = self._orders[lane](step, count)
            padding = np.zeros((self._chunk - count, *indices.shape[1:]), indices.dtype)
            return self._images, self._labels, np.concatenate([indices, padding])
        parts = [next(feed) for feed in self._feeds[lane]]
        images, labels = (np.concatenate([part[k] for part in parts]) for k in ("image", "label"))
        return images, labels, self._own

    def advance(self, to: int) -> list[dict[str, float]]:
        """Trains every lane up to step `to`; the mean terms of the steps taken, for each seed."""
        taken, totals = to - self._step, [np.zeros(1)] * len(self.states)
        while self._step < to:
            count = min(self._chunk, to - self._step)
            for lane in range(len(self.states)):
                batches = self._batches(lane, self._step, count)
                self.states[lane], progress = self._call(self.states[lane], *batches, count)
                progress = jax.device_get(progress)
                self._stop_if_not_finite(lane, progress)
                totals[lane] = totals[lane] + np.stack(progress.total, axis=1)
            self._step += count
        means = np.concatenate(totals) / taken
        return [
            {f"step_{name}": float(v) for name, v in zip(Terms._fields, row, strict=True)}
            for row in means
        ]

    def all_states(self) -> TrainState:
        """The states of all seeds, stacked."""
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *self.states)

    def _stop_if_not_finite(self, lane: int, progress: Progress) -> None:
        for place, step in enumerate(progress.bad_step):
            if step < 0:
                continue
            terms = {name: float(v[place]) for name, v in progress.bad_terms._asdict().items()}
            bad = [k for k, v in terms.items() if not np.isfinite(v) and k != "loss"] or ["loss"]
            seed = int(self.states[lane].seed[place])
            raise RunError(
                f"The loss became non-finite at step {step} (seed {seed}): {', '.join(bad)} is "
                f"{', '.join(str(terms[k]) for k in bad)}. Try a smaller --learning-rate or weight of "
                "that term. The metrics up to the last evaluation are kept."
            )


def _claim(settings: Settings) -> Path:
    """The folder of the run, which is new, empty, or asked to be resumed."""
    folder = Path(settings.out)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder. Name a folder with --out.")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "settings.json").exists():
            raise RunError(
                f"{folder} exists and holds something else than a run. It was left as it is; "
                "name another folder with --out."
            )
        if not settings.resume:
            raise RunError(
                f"{folder} holds a run already. Go on with it by --resume, or name another folder "
                "with --out."
            )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_settings(folder: Path, settings: Settings, data: Any) -> None:
    if (folder / "settings.json").exists():  # of the run that is resumed
        return
    about = {"settings": settings.as_json(), "data": data.name, "source": data.source_note}
    about["versions"] = {"jax": jax.__version__, "backend": jax.default_backend()}
    temporary = folder / "settings.json.part"
    temporary.write_text(json.dumps(about, indent=2) + "\n")
    os.replace(temporary, folder / "settings.json")


def _same_settings(settings: Settings, saved: dict[str, Any]) -> None:
    free = {"resume", "out", "data_dir", "checkpoint_every"}
    now = json.loads(json.dumps(settings.as_json()))
    changed = [k for k in now if k not in free and now[k] != saved.get(k)]
    if changed:
        listed = ", ".join(f"{k} was {saved.get(k)!r}, is {now[k]!r}" for k in changed)
        raise RunError(
            f"The run in {settings.out} was made with other settings ({listed}). Resume it with those, "
            "or name another folder with --out."
        )


def _progress(events: list[int], steps: int, start: int, quiet: bool) -> Iterator[int]:
    """The events, under a progress bar in steps unless `quiet`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    if quiet or shutil.get_terminal_size().columns < 20:
        yield from events
        return
    with Progress("steps", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=steps, completed=start)
        for event in events:
            yield event
            bar.update(task, completed=event)


__all__ = ["CheckpointError", "Result", "RunError", "train"]
