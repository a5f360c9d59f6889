"""Two processes on one machine, as torchrun starts them."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.train.conftest import SIZE
from tests.train.killed import Death, train_together
from vitslim import checkpoint
from vitslim.cli.main import main
from vitslim.data import Loader
from vitslim.errors import CheckFailedError, ConfigError
from vitslim.files import read_json
from vitslim.opening import open_model
from vitslim.train import DistillConfig, distill
from vitslim.train.processes import ALONE, Processes, device_of_process, ending_together, started_processes
from vitslim.train.state import read_run_state

IMAGES = "fractals:classes=4,train_per_class=12,val_per_class=5,image_size=32"
SETTINGS = {
    "steps": 8, "accumulate": 2, "checkpoint_every": 2, "log_every": 1, "ema_decay": 0.9, "mixup": 0.8,
    "precision": "fp32", "tensorboard": False,
}  # fmt: skip
LOST = "another process of this run ended; see what that one said, then run the same command with --resume"

SCRIPT = """
import json, os, sys, torch
from timm.models.vision_transformer import VisionTransformer
from vitslim.data import AugmentConfig, FractalConfig, open_data
from vitslim.methods import convert
from vitslim.models import preprocessing
from vitslim.train import DistillConfig, WarmStartConfig, distill, warm_start

torch.set_num_threads(1)
torch.manual_seed(0)
teacher = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=4).eval()
student = convert(teacher, "skipat", layers=(1, 2)) if sys.argv[2] == "skipat" else convert(teacher, "evo_vit")
images, still = FractalConfig(classes=4, image_size=32, train_per_class=8, val_per_class=5), AugmentConfig(shift=0.0)
train, val = (
    open_data(images, split=split, preprocessing=preprocessing(teacher), batch_size=4, training=split == "train",
              augment=still)
    for split in ("train", "val")
)
plain = {"precision": "fp32", "tensorboard": False}
if sys.argv[2] == "skipat":
    warm_start(student, teacher, train, WarmStartConfig(steps=2, **plain))
early = 0.0 if sys.argv[2] == "skipat" else 0.5
# So little time that the clock leads the schedule: all must read the same one.
minutes = 0.05 if sys.argv[2] == "evo_vit" else None
config = DistillConfig(steps=4, max_minutes=minutes, ce_weight=1.0, token_weight=1.0, step_output_weight=1.0,
                       accumulate=2, early_tokens=early, **plain)
result = distill(student, teacher, train, config, val_loader=val, out_dir=sys.argv[1])
total = sum(float(parameter.detach().double().abs().sum()) for parameter in student.parameters())
found = {"images": result.images, "held_out": result.evaluations[-1]["images"], "weights": total}
with open(f"{sys.argv[1]}.{os.environ['RANK']}", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["skipat", "evo_vit"])
def test_processes_share_the_images_and_end_with_the_same_weights(tmp_path: Path, method: str) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "VITSLIM_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "run.py"), str(tmp_path / "out"), method],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [read_json(tmp_path / f"out.{rank}") for rank in (0, 1)]
    assert found[0] == found[1]
    if method == "skipat":
        assert found[0]["images"] == 4 * 2 * 2 * 4  # steps, accumulated batches, processes, images of a batch
    assert found[0]["held_out"] == 20
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) >= 3


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved dense model. Shared between tests: never change it."""
    folder = tmp_path_factory.mktemp("dense")
    options = {name: SIZE[name] for name in ("depth", "embed_dim", "num_heads")}
    model = open_model("builtin", pretrained=False, img_size=32, num_classes=4, **options)
    return checkpoint.save(model, folder, overwrite=True)


def command(model: Path, out: Path, *words: object, data: object = IMAGES) -> list[object]:
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={str(value).lower()}")]
    return ["train", model, "--data", data, "--out", out, "--batch-size", 4, *settings, *words]


def is_same_model(first: Path, second: Path) -> bool:
    found, expected = (load_file(folder / checkpoint.WEIGHTS_FILE) for folder in (first, second))
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def refused_to_one_process(words: list[object], state: Path) -> None:
    """A run of two processes is not continued by one."""
    assert read_run_state(state).processes == 2
    before, printed = state.read_bytes(), io.StringIO()
    with pytest.raises(SystemExit) as leaving, contextlib.redirect_stderr(printed):
        main([str(word) for word in words])
    assert leaving.value.code == 2
    assert "belongs to a run of 2 processes, now there are 1" in printed.getvalue()
    assert state.read_bytes() == before


def survive(dense: Path, folder: Path, deaths: list[Death]) -> None:
    """Kill a run in these ways, one after the other, and see that it ends as a run does that nobody killed."""
    assert [ended.code for ended in train_together(command(dense, folder / "whole"), folder / "logs")] == [0, 0]
    resume: list[str] = []
    for death in deaths:
        left = train_together(command(dense, folder / "killed", *resume), folder / "logs", death=death)
        for rank, ended in enumerate(left):
            assert ended.code == (-signal.SIGKILL if rank in death.ranks else 1), (death, ended.err)
            assert rank in death.ranks or LOST in ended.err
            assert "Traceback" not in ended.err
        resume = ["--resume"]
    refused_to_one_process(
        command(dense, folder / "killed", "--resume"), folder / "killed" / "train" / "state.safetensors"
    )
    left = train_together(command(dense, folder / "killed", *resume), folder / "logs")
    assert [ended.code for ended in left] == [0, 0], left[0].err
    assert is_same_model(folder / "killed", folder / "whole")
    assert read_json(folder / "killed" / "metrics.json") == read_json(folder / "whole" / "metrics.json")
    lines = [json.loads(line) for line in (folder / "killed" / "train" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "train"] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_run_that_is_killed_while_it_writes_its_state_ends_with_the_very_same_weights(
    dense: Path, tmp_path: Path
) -> None:
    survive(dense, tmp_path, [Death((0,), 4, "state")])


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_ends_with_the_very_same_weights(dense: Path, tmp_path: Path) -> None:
    """At every kind of place, in either process and in both; passes end after steps 3 and 6."""
    deaths = [
        *(Death((0,), 0), Death((1,), 1, "log"), Death((1,), 2, "state"), Death((0,), 2, "state")),
        *(Death((0, 1), 3, "evaluation"), Death((0,), 4, "state"), Death((1,), 5, "log")),
        *(Death((0, 1), 6, "evaluation"), Death((0,), 7), Death((1,), 8, "evaluation")),
    ]
    survive(dense, tmp_path, deaths)


def test_one_folder_and_one_voice_come_out_of_several_processes(dense: Path, tmp_path: Path) -> None:
    """One image of each split cannot be read; only one of the processes meets the held-out one."""
    for number in range(240):
        path = tmp_path / "images" / ("train" if number < 120 else "val") / f"class{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 255 - number, 7 * number % 256)).save(path)
        if number in (10, 140):
            path.write_bytes(b"no image")
    words = command(dense, tmp_path / "out", "--json", data=tmp_path / "images")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    words += ["--set", "accumulate=1", "--set", "steps=15", "--set", "mixup=0"]
    main_process, other = train_together([*words, "--overwrite"], tmp_path / "logs")
    assert (main_process.code, other.code) == (0, 0), main_process.err
    assert (other.out, other.err) == ("", "")
    document = json.loads(main_process.out)
    assert document["metrics"] == read_json(tmp_path / "out" / "metrics.json")
    assert document["result"] == read_json(tmp_path / "out" / "train" / "result.json")
    student = document["metrics"]["student"]
    assert (student["images"], student["corrupt"]) == (119, 1)
    assert student["examples"] == ["class0/140.png"]
    assert (document["result"]["corrupt"], document["result"]["examples"]) == (1, ["class2/10.png"])
    refused = train_together(words, tmp_path / "logs")
    assert "is not empty; pass --overwrite" in refused[0].err
    assert LOST in refused[1].err
    assert [ended.code for ended in refused] == [2, 1]


@pytest.mark.parametrize("command", ["convert", "run", "pretrain"])
def test_what_one_process_does_is_refused_to_several_before_anything_is_written(
    command: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.yaml").write_text("model: {name: builtin}" if command == "run" else "{}")
    words = [command, tmp_path / "file.yaml"] if command != "convert" else [command, dense, "--method", "skipat"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in [*words, "--out", tmp_path / "out"]])
    assert leaving.value.code == 2
    assert "works in one process, but 2 were started" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_processes_that_do_not_know_of_each_other_do_not_train(
    build: Callable[..., nn.Module],
    open_loader: Callable[..., Loader],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Accelerator()  # the user's own, for one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were started to train a model on cpu, but .* torchrun"):
        distill(
            build(), None, open_loader(), DistillConfig(ce_weight=1.0, kd_weight=0.0, steps=1), out_dir=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_the_launcher_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_processes() == ALONE
    assert device_of_process("cuda") == "cuda"
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert started_processes() == Processes(rank=3, count=4)
    assert (device_of_process("cuda"), device_of_process("cuda:0"), device_of_process("cpu")) == (
        "cuda:1", "cuda:0", "cpu",
    )  # fmt: skip


def test_only_the_end_of_another_process_is_reported_as_one() -> None:
    together = Processes(0, 2)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(CheckFailedError, match=LOST), ending_together(together):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3241")
    with pytest.raises(CheckFailedError, match="the launcher ended this process"), ending_together(together):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), ending_together(together):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="gloo"), ending_together(ALONE):
        raise RuntimeError("gloo")
    assert signal.getsignal(signal.SIGTERM) is handler
