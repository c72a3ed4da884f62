"""A FreeMatch step in PyTorch with its images augmented by Pillow in worker processes.

Written from the papers (FreeMatch, arXiv 2205.07246; WideResNet, arXiv 1605.07146; RandAugment), as such
trainers are usually built: a data set returns a weak and a strong view of one image. Workers are spawned, since
JAX's threads do not survive a fork; they import the main module again, which takes them a while at the start.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tests.reference.pillow import pillow, pillow_cutout

LEAK = 0.1


class Block(nn.Module):
    """Two pre-activated convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = (
            None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False)
        )
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Activates before the shortcut in the first block."""
        active = functional.leaky_relu(self.norm1(x), LEAK)
        x = active if self.first else x
        y = self.conv2(functional.leaky_relu(self.norm2(self.conv1(active)), LEAK))
        if self.shortcut is not None:
            x = self.shortcut(x if self.first else active)
        return x + y


class WideResNet(nn.Module):
    """WideResNet-`depth`-`width`."""

    def __init__(self, num_classes: int, depth: int, width: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        blocks, inputs = [], 16
        for stage, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            for index in range((depth - 4) // 6):
                stride = 2 if stage and not index else 1
                blocks.append(Block(inputs, outputs, stride, not blocks))
                inputs = outputs
        self.blocks, self.norm = nn.Sequential(*blocks), nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images `[n, 3, h, w]`."""
        x = functional.leaky_relu(self.norm(self.blocks(self.stem(images))), LEAK)
        return self.head(x.mean((2, 3)))


class Views(Dataset):
    """Weak and, if asked for, strong views of uint8 images `[n, h, w, 3]`."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, ranges: dict[str, Any] | None = None
    ):
        self.images, self.labels, self.ranges = images, labels, ranges

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Label last."""
        rng = np.random.default_rng()
        image, label = self.images[index], int(self.labels[index])
        weak = self._tensor(self._weak(image, rng))
        if self.ranges is None:
            return weak, label
        return weak, self._tensor(self._weak(self._strong(image, rng), rng)), label

    def _weak(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width, _ = image.shape
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        row, column = rng.integers(0, 9, 2)
        image = padded[row : row + height, column : column + width]
        return image[:, ::-1] if rng.random() < 0.5 else image

    def _strong(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        assert self.ranges is not None
        for name in rng.choice(list(self.ranges), 3):
            image = np.asarray(pillow(image, name, rng.uniform(*self.ranges[name])))
        centre = rng.random(2) * image.shape[1::-1]
        return np.asarray(pillow_cutout(image, 0.5 * rng.random(), centre))

    @staticmethod
    def _tensor(image: np.ndarray) -> torch.Tensor:
        scaled = torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255
        return (scaled - 0.5) / 0.25


class FreeMatch:
    """The trainer: `step()` takes the next batches and updates the network."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        ranges: dict[str, Any],
        *,
        labelled: int,
        unlabelled: int,
        depth: int,
        width: int,
        workers: int,
        device: str,
        half: bool = False,
    ):
        self.half = half
        self.device, self.classes = device, int(labels.max()) + 1
        # As one would on a GPU: convolutions are tuned, with the channels last.
        torch.backends.cudnn.benchmark = True
        network: Any = WideResNet(self.classes, depth, width)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        self.average = [value.detach().clone() for value in self.network.parameters()]
        share = torch.full((self.classes,), 1 / self.classes, device=device)
        self.confidence, self.mean, self.histogram = share[0].clone(), share.clone(), share.clone()
        chosen = np.arange(40)

        def loader(data: Views, size: int, workers: int) -> DataLoader:
            sampler = RandomSampler(data, replacement=True, num_samples=size * 1_000_000)
            options: dict[str, Any] = {"num_workers": workers, "pin_memory": device == "cuda"}
            if workers:
                options |= {"multiprocessing_context": "spawn", "persistent_workers": True}
            return DataLoader(data, size, sampler=sampler, **options)

        few = Views(images[chosen], labels[chosen])
        self.batches: Iterator | None = zip(
            loader(few, labelled, min(workers, 1)),
            loader(Views(images, labels, ranges), unlabelled, workers),
            strict=False,
        )

    def close(self) -> None:
        """Ends the workers."""
        self.batches = None

    def step(self) -> float:
        """The loss of one step, images included."""
        (images, labels), (weak, strong, _) = (
            [x.to(self.device, non_blocking=True) for x in part]
            for part in next(self.batches or iter(()))
        )
        together = torch.cat([images, weak, strong])
        together = together.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            logits = self.network(together).float()
        known, of_weak, of_strong = logits.split([len(images), len(weak), len(strong)])
        loss = functional.cross_entropy(known, labels) + self._unlabelled(of_weak, of_strong)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.network.parameters()), 0.001)
        return float(loss.detach())

    def _unlabelled(self, of_weak: torch.Tensor, of_strong: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            q = of_weak.softmax(-1)
            confidence, targets = q.max(-1)
            shares = torch.bincount(targets, minlength=self.classes) / len(targets)
            self.confidence.lerp_(confidence.mean(), 0.001)
            self.mean.lerp_(q.mean(0), 0.001)
            self.histogram.lerp_(shares, 0.001)
            thresholds = (self.mean / self.mean.max() * self.confidence)[targets]
            passed = (confidence >= thresholds).float()
        loss = (functional.cross_entropy(of_strong, targets, reduction="none") * passed).mean()
        return loss + 0.01 * self._fairness(of_strong.softmax(-1), passed)

    def _fairness(self, q: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
        count = passed.sum().clamp(min=1)
        mean = (passed[:, None] * q).sum(0) / count
        hits = functional.one_hot(q.argmax(-1), self.classes) * passed[:, None]
        histogram = hits.sum(0) / count

        def normalised(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
            x = x * torch.where(by > 0, 1 / by.clamp(min=1e-12), 0.0)
            return x / x.sum().clamp(min=1e-12)

        reference = normalised(self.mean, self.histogram)
        return (reference * (normalised(mean, histogram) + 1e-12).log()).sum()
