"""A small classifier of digits, trained once and kept: it names what generators draw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from _kept import kept
from _resume import GradientSteps
from torch import Tensor, nn

from pyro_sig.infer import train

NUM_STEPS = 3000
BATCH_SIZE = 100
NUM_FEATURES = 64


class DigitClassifier(nn.Module):
    """Two convolutions and two linear layers; pixels in [-1, 1] to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 49, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(NUM_FEATURES, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, shape ``[N, 10]``, of digits of shape ``[N, 1, 28, 28]``."""
        return self.head(self.hidden(x))

    @torch.no_grad()
    def features(self, x: Tensor, batch_size: int = 1000) -> Tensor:
        """Returns the last hidden layer, shape ``[N, 64]``."""
        return torch.cat([self.hidden(part) for part in x.split(batch_size)])

    @torch.no_grad()
    def probabilities(self, x: Tensor, batch_size: int = 1000) -> Tensor:
        """Returns class probabilities, shape ``[N, 10]``."""
        return torch.cat([self(part).softmax(-1) for part in x.split(batch_size)])


def to_pixels(images: Tensor) -> Tensor:
    """Returns uint8 digits of shape ``[N, 28, 28]`` as ``[N, 1, 28, 28]`` in [-1, 1]."""
    return images.unsqueeze(1).to(torch.get_default_dtype()) / 127.5 - 1


def digit_classifier(
    path: Path,
    splits: dict[str, tuple[Tensor, Tensor]],
    num_steps: int = NUM_STEPS,
    progress: bool | None = None,
) -> tuple[DigitClassifier, float]:
    """Trains the classifier or reads it from a file.

    :param path: the file.
    :param splits: images and labels of "train" and "test".
    :param num_steps: steps of training.
    :param progress: as `train` has it.
    :return: the classifier, and its share of right answers on the test digits.
    """
    images, labels = splits["train"]
    device = images.device

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            rows = torch.randint(len(images), (BATCH_SIZE,), device=device)
            yield to_pixels(images[rows]), labels[rows]

    def fit() -> dict[str, object]:
        # Seeded, and without a trace in the run that asks for it.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            net = DigitClassifier().to(device)
            optim = torch.optim.Adam(net.parameters(), lr=1e-3)
            steps = GradientSteps(
                lambda x, y: nn.functional.cross_entropy(net(x), y), {"net": net}, optim
            )
            train(steps, batches(), num_steps, progress=progress, description="classifier")
        return {"net": net.cpu().state_dict()}

    net = DigitClassifier()
    settings = {"num_steps": num_steps, "num_images": len(images)}
    net.load_state_dict(kept(path, settings, fit)["net"])
    net = net.to(device).eval()
    test, named = splits["test"]
    right = (net.probabilities(to_pixels(test)).argmax(-1) == named).double().mean()
    return net, right.item()
