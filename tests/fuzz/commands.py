"""The command line, in this process: commands that work, with one or two words changed."""

import random
from pathlib import Path

from tests.fuzz import values
from tests.fuzz.place import Case
from tests.pipeline.tiny import IMAGES

TINY = (
    "builtin --no-pretrained --img-size 32 --num-classes 4 --set model.options.depth=4 --set model.options.embed_dim=48"
)
COMMANDS = [
    "list methods --json",
    "list aliases --json",
    "inspect student --json",
    "inspect builtin --img-size 32",
    f"convert {TINY} --method skipat --method evo_vit -O skipat.layers=1-2 --out out --dry-run",
    f"convert {TINY} --method sret -O recursions=2 --out out",
    "convert student --method evo_vit --out out --seed 3",
    f"analyze dense --data {IMAGES} --images 8 --replacement-images 4 --out out",
    "run recipe.yaml --out out --set distill.steps=1 --dry-run",
    f"train student --teacher dense --data {IMAGES} --out out --set steps=1 --batch-size 4",
    f"eval student --data {IMAGES} --limit 4 --json",
    "eval student --data images --batch-size 3 --backend ort --teacher student",
    "export student --to onnx --opset 20 --out out.onnx --precision fp16 --input uint8-nhwc",
    "verify student --images 2 --batch 1 --json",
    "verify student student/export/model.onnx --data images --backend ort",
    "report student",
    "export student --to triton-server --out models --name vit --max-batch 4 --instances 1",
    "export student --to torch-export --precision fp32 --out out.pt2",
    f"quantize student --data {IMAGES} --images 2",
    "bench models student --batches 1 --rounds 5 --backends torch --out bench.json",
    "import student/model.safetensors --from skipat --base builtin --out out -O layers=1-2",
    "refit student/export/model.engine --from student",
    "doctor --json",
]


def case(rng: random.Random, folder: Path) -> Case:
    """A command with a word that should not be there."""
    words = rng.choice(COMMANDS).split(" ")
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2])):
        place = rng.randrange(1, len(words)) if len(words) > 1 else 0
        if words[place].startswith("--") and rng.random() < 0.8:
            place = (place + 1) % len(words)  # the value is worth more than its option
        how = rng.random()
        if how < 0.6:
            words[place] = _changed(words[place], rng)
        elif how < 0.75:
            del words[place]
        elif how < 0.85:
            words.insert(place, values.text(rng))
        elif how < 0.95:
            words.append(rng.choice(["--overwrite", "--json", "--help", "--jsn", "--device", "--seed", "--data", "--"]))
        else:
            words.insert(place, words[place])
        words = words or ["--help"]
    return Case(f"vitslim {words!r}", lambda: _command(words), is_command=True)


def _changed(word: str, rng: random.Random) -> str:
    key, equals, value = word.partition("=")
    if key.startswith("fractals:"):  # to draw the usual tens of thousands is long work, not a hang
        return f"{key}={values.text(rng, value)},train_per_class=1,val_per_class=1"
    return f"{key}={values.text(rng, value)}" if equals and rng.random() < 0.8 else values.text(rng, word)


def _command(words: list[str]) -> None:
    from vitslim.cli.main import main

    main(words)
