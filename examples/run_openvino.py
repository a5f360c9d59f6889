"""The best classes of a picture by an exported OpenVINO model, with OpenVINO, NumPy and Pillow alone.

python examples/run_openvino.py model.xml picture.png
"""

import json
import sys

import numpy as np


def main(model: str, picture: str) -> None:
    import openvino
    from PIL import Image, ImageOps

    core = openvino.Core()
    network = core.read_model(model)
    about = json.loads(network.get_rt_info(["vitslim", "metadata"]).astype(str))
    # OpenVINO would compute in bfloat16 by itself where the processor has it. Of INT8 files it is what is not in INT8.
    there = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    needs, hint = {"fp32": ("FP32", "f32"), "fp16": ("FP16", "f16")}.get(about["precision"], ("BF16", "bf16"))
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": hint if needs in there else "f32"})
    height, width = json.loads(about["image_size"])
    border = (1 - json.loads(about["crop_pct"])) / 2
    image = ImageOps.fit(Image.open(picture).convert("RGB"), (width, height), Image.Resampling.BICUBIC, border)
    pixels = (np.asarray(image, np.float32) / 255 - json.loads(about["mean"])) / json.loads(about["std"])
    logits = compiled(pixels.transpose(2, 0, 1)[None].astype(np.float32))[0]
    labels = json.loads(about.get("labels", "null")) or [f"class {index}" for index in range(logits.shape[1])]
    for index in np.argsort(-logits[0])[:5]:
        print(f"{logits[0, index]:8.3f}  {labels[index]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
