"""Convert a timm model that you built yourself; nothing but the model is needed.

python examples/own_model.py
"""

import torch
from timm.models.vision_transformer import VisionTransformer

import vitslim
from vitslim.bench import count_macs
from vitslim.trunk import plan_summary


def main() -> None:
    model = VisionTransformer(img_size=(96, 64), patch_size=8, embed_dim=96, depth=6, num_heads=3, num_classes=7).eval()
    student = vitslim.convert(model, "skipat", layers=[2, 4], expansion=0.5)
    for row in plan_summary(student):
        print(row["step"], row["mixing"], row["parameters"])
    print(f"{count_macs(model) / 1e6:.1f} -> {count_macs(student) / 1e6:.1f} MMAC")
    images = torch.randn(2, 3, 96, 64)
    print("features", tuple(student.forward_features(images).shape), "logits", tuple(student(images).shape))


if __name__ == "__main__":
    main()
