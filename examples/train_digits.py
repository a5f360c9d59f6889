"""Train a small ViT on handwritten digits, as anybody might who knows nothing of vitslim.

python examples/train_digits.py      # needs scikit-learn, which ships the images; some two minutes on one core

Writes digits/train/0 .. digits/val/9 (PNG) and digits.pth (the state dict) into the present folder.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F


def main(epochs: int = 30) -> float:
    """Train, save, and give back the share of the held-out digits that are recognised."""
    write_images()
    torch.manual_seed(0)
    model = VisionTransformer(img_size=48, patch_size=8, embed_dim=96, depth=8, num_heads=3, num_classes=10)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.xavier_uniform_(weight)
    train(model, *read("train"), epochs)
    images, labels = read("val")
    with torch.no_grad():
        accuracy = float((model.eval()(images).argmax(1) == labels).float().mean())
    torch.save(model.state_dict(), "digits.pth")
    print(f"{100 * accuracy:.2f} % of {len(labels)} held-out digits")
    return accuracy


def write_images() -> None:
    """1,797 digits of 8 x 8 pixels, enlarged to 48 x 48; every fifth is held out."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = Path("digits", "val" if number % 5 == 0 else "train", str(label))
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels / 16 * 255).astype("uint8")).resize((48, 48), Image.Resampling.BICUBIC)
        image.convert("RGB").save(folder / f"{number:04d}.png")


def read(split: str) -> tuple[Tensor, Tensor]:
    """Pixels in -1 .. 1, and classes."""
    paths = sorted(Path("digits", split).glob("*/*.png"))
    pixels = [torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8) for path in paths]
    images = torch.stack(pixels).view(-1, 48, 48, 3).permute(0, 3, 1, 2).float() / 255
    return (images - 0.5) / 0.5, torch.tensor([int(path.parent.name) for path in paths])


def train(model: VisionTransformer, images: Tensor, labels: Tensor, epochs: int) -> None:
    """AdamW with one cycle of the learning rate; images move by up to two pixels and are never mirrored."""
    steps = epochs * (len(images) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,))
        shift = torch.randint(-2, 3, (2,)).tolist()
        loss = F.cross_entropy(model(images[chosen].roll(shift, (2, 3))), labels[chosen], label_smoothing=0.05)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
