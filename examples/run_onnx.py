"""The best classes of a picture by an exported ONNX file, with ONNX Runtime, NumPy and Pillow alone.

python examples/run_onnx.py model.onnx picture.png
"""

import json
import sys

import numpy as np


def main(model: str, picture: str) -> None:
    import onnxruntime
    from PIL import Image, ImageOps

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    height, width = json.loads(about["image_size"])
    border = (1 - json.loads(about["crop_pct"])) / 2
    image = ImageOps.fit(Image.open(picture).convert("RGB"), (width, height), Image.Resampling.BICUBIC, border)
    pixels = (np.asarray(image, np.float32) / 255 - json.loads(about["mean"])) / json.loads(about["std"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None].astype(np.float32)})
    labels = json.loads(about.get("labels", "null")) or [f"class {index}" for index in range(logits.shape[1])]
    for index in np.argsort(-logits[0])[:5]:
        print(f"{logits[0, index]:8.3f}  {labels[index]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
