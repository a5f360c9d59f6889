"""Convert a timm model that you built yourself; nothing but the model is needed.

python examples/own_model.py
"""

import torch
from timm.models.vision_transformer import VisionTransformer

import vitslim


def main() -> None:
    model = VisionTransformer(img_size=(96, 64), patch_size=8, embed_dim=96, depth=6, num_heads=3, num_classes=7).eval()
    student = vitslim.convert(model, vitslim.DepthConfig(keep=4))
    dense, slim = (vitslim.cost(vitslim.plan_of(one)).macs for one in (model, student))
    print(f"{dense / 1e6:.1f} -> {slim / 1e6:.1f} million multiply-accumulates")
    images = torch.randn(2, 3, 96, 64)
    print("features", tuple(student.forward_features(images).shape), "logits", tuple(student(images).shape))


if __name__ == "__main__":
    main()
