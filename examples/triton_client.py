"""Ask a Triton Inference Server for the classes of images.

It needs no vitslim: pip install 'tritonclient[http]' pillow numpy

python examples/triton_client.py MODEL IMAGE... [--url localhost:8000] [--top 5]

How images are prepared stands in the model's config.pbtxt, where `vitslim export --to triton-server` put it; the client
asks the server for it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_UINT8": np.uint8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--url", default="localhost:8000")
    parser.add_argument("--top", type=int, default=5)
    given = parser.parse_args()
    from tritonclient.http import InferenceServerClient

    client = InferenceServerClient(given.url, concurrency=8)
    for path, best in zip(given.images, classify(client, given.model, given.images, given.top), strict=True):
        print(path, *best, sep="  ")


def classify(client: Any, model: str, paths: list[Path], top: int) -> list[list[str]]:
    """The best classes of each image, `score label`, from one request per image; the server makes the batches."""
    from tritonclient.http import InferInput, InferRequestedOutput

    config = client.get_model_config(model)
    parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
    ours, theirs = config["input"][0], config["output"][0]
    pending = []
    for path in paths:
        image = prepare(path, parameters, DTYPES[ours["data_type"]])[None]
        wanted = InferInput(ours["name"], list(image.shape), ours["data_type"].removeprefix("TYPE_"))
        wanted.set_data_from_numpy(image)
        # The server sorts the scores and names the classes from labels.txt.
        answer = InferRequestedOutput(theirs["name"], class_count=top)
        pending.append(client.async_infer(model, [wanted], outputs=[answer]))
    return [[readable(one) for one in request.get_result().as_numpy(theirs["name"])[0]] for request in pending]


def readable(answer: bytes) -> str:
    """`12.5 tabby cat` from `12.5:281:tabby cat`; without labels the number of the class stands for its name."""
    score, index, *label = answer.decode().split(":", 2)
    return f"{float(score):.3g} {label[0] if label else index}"


def prepare(path: Path, parameters: dict[str, str], dtype: Any) -> Any:
    """An image file as the model's input, without the batch: resized, cropped to the middle, normalised."""
    from PIL import Image

    height, width = json.loads(parameters["image_size"])
    form = json.loads(parameters.get("input", "{}")).get("form", "normalized")
    filters = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
    image = Image.open(path).convert("RGB")
    scale = max(height / image.height, width / image.width) / float(parameters["crop_pct"])
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(size, filters.get(parameters["interpolation"], Image.Resampling.BICUBIC))
    left, upper = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, upper, left + width, upper + height)))
    if form == "uint8-nhwc":
        return pixels.astype(dtype)
    if form != "normalized":
        return pixels.transpose(2, 0, 1).astype(dtype)
    mean, std = (np.array(json.loads(parameters[name]), dtype=np.float32) for name in ("mean", "std"))
    return ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1).astype(dtype)


if __name__ == "__main__":
    main()
