import json
import os
import re
import shutil
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.pipeline.tiny import MODEL
from tests.variants import dense
from vitslim.checkpoint import save
from vitslim.errors import CheckpointError
from vitslim.methods import convert
from vitslim.opening import open_model
from vitslim.pipeline import run
from vitslim.recipe import read_recipe
from vitslim.report import ReportParts, read_parts, render_report, write_report
from vitslim.report.markup import VOID_ELEMENTS
from vitslim.report.sections.origin import conversion_code

COMMANDS = {
    "analysis.json": "vitslim run out/recipe.yaml --out out --overwrite --set analyze={} --set data.source=IMAGES",
    "plan.json": "vitslim convert vit_toy --method skipat --out out --overwrite",
    "metrics.json": "vitslim run out/recipe.yaml --out out --overwrite --set data.source=IMAGES",
    "export/parity.json": "vitslim export out &amp;&amp; vitslim verify out",
    "bench.json": "vitslim bench out",
}


class Reader(HTMLParser):
    """Checks that every element is closed in order, and collects what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def words(page: str) -> str:
    """What a reader sees, with ordinary spaces."""
    return " ".join(" ".join(read(page).text).replace("\u202f", " ").split())


def test_every_section_stands_on_the_page_of_a_whole_folder(folder: Path) -> None:
    page = render_report(read_parts(folder))
    ids = {attributes.get("id") for tag, attributes in read(page).tags if tag == "section"}
    assert ids == {"redundancy", "change", "training", "accuracy", "speed", "parity", "environment", "reproduce"}
    assert 'class="absent">Not measured: run' not in page
    # three heat maps, two bar charts, the strip for wide and for narrow pages, two losses, speed, work
    assert page.count("<svg") == 11


def test_numbers_on_the_page_are_those_of_the_files(folder: Path) -> None:
    text = words(render_report(read_parts(folder)))
    for number in (
        *("78.75 %", "81.25 %", "−2.50 points", "90.25 %", "0.0321"),  # metrics
        *("1.25× faster", "0.90× slower", "10.00", "125.0", "1.500 M", "30.00 MMAC", "75.0 %"),  # bench
        *("0.871", "0.512", "0.123", "91.7 %", "76.5 %"),  # analysis
        *("3.1e−06", "2.0e−02", "out of tolerance", "1 of 2 checks"),  # parity
        *("reuse (expansion 0.5)", "kept 8 of 16, chosen by class attention, others frozen"),  # plan
        *("0.66", "0.022", "0.6667", "100.0"),  # training
        *("Toy CPU", "tensorrt fp16: no GPU.", "1.00", "3.11"),  # environment, files
    ):
        assert number in text, number


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_part_is_said_with_the_command_that_makes_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    page = render_report(read_parts(folder))
    assert page.count(f"<code>{COMMANDS[name]}</code>") == 1
    read(page)


def test_the_images_of_the_recipe_stand_in_the_commands(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("data: {source: my images}\n")
    (folder / "metrics.json").unlink()
    command = "vitslim eval out --teacher vit_toy --data 'my images'"
    assert f"<code>{escape(command)}</code>" in render_report(read_parts(folder))


def test_a_page_of_nothing_but_absences_is_whole_and_honest() -> None:
    page = render_report(ReportParts(name="empty"))
    for verb in ("analyze", "convert", "train", "eval", "bench", "verify"):
        assert re.search(rf"<code>[^<]*vitslim {verb} [^<]*empty[^<]*</code>", page), verb
    assert "…</code>" not in page
    assert words(page).count("not measured") == 2
    assert words(page).count("not counted") == 2


def test_training_that_left_no_trace_is_said(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "metrics.json").unlink()
    assert "the weights may be untrained: run" in words(render_report(read_parts(folder)))


def test_a_slower_student_is_called_slower_in_its_own_colour(folder: Path) -> None:
    page = render_report(read_parts(folder))
    assert '<span class="bad">slower in 1</span>' in page
    assert '<span class="bad">0.90× slower</span>' in page
    assert 'class="speed-slower"' in page


def test_a_missing_dense_control_is_said(folder: Path, parts: dict) -> None:
    (folder / "metrics.json").write_text(json.dumps(parts["metrics.json"] | {"dense_control": None}))
    assert "There is no dense control" in words(render_report(read_parts(folder)))


def test_text_from_the_files_cannot_become_markup(folder: Path, parts: dict) -> None:
    hostile = "<script>alert('&\"')</script>"
    text = json.dumps(parts)
    for harmless in ("vit_toy", "Toy CPU", "own", "They are", "blocks.1", "model.onnx", "no GPU", "skipat"):
        text = text.replace(harmless, json.dumps(hostile)[1:-1])
    for name, document in json.loads(text).items():
        (folder / name).write_text(json.dumps(document))
    (folder / "recipe.yaml").write_text(hostile)
    page = render_report(read_parts(folder))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6
    read(page)


def test_the_page_fetches_nothing_and_runs_nothing(folder: Path) -> None:
    page = render_report(read_parts(folder))
    assert re.search(r"(https?:)?//\w|@import|url\(", page) is None
    for tag, attributes in read(page).tags:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")


def test_drawings_are_well_formed_and_described_and_tables_scoped(folder: Path) -> None:
    page = render_report(read_parts(folder))
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "nan" not in drawing.lower()
    tags = read(page).tags
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in tags if tag == "th")
    assert sum(tag == "caption" for tag, _ in tags) == sum(tag == "table" for tag, _ in tags)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_table_row_has_as_many_cells_as_its_header(folder: Path) -> None:
    page = render_report(read_parts(folder))
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        widths = {len(row) for row in (re.findall(r"<t[hd]", line) for line in table.split("<tr>")[1:])}
        assert len(widths) == 1


def test_the_same_parts_make_the_same_page(folder: Path) -> None:
    assert render_report(read_parts(folder)) == render_report(read_parts(folder))


def test_writing_puts_the_page_into_the_folder(folder: Path) -> None:
    path = write_report(folder)
    assert path == folder / "report.html"
    assert path.read_text() == render_report(read_parts(folder))


def test_a_failed_write_leaves_the_old_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(folder)
    before = path.read_text()
    (folder / "env.json").write_text('{"python": "3.13"}')

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CheckpointError, match="disk full"):
        write_report(folder)
    assert path.read_text() == before
    assert not list(folder.glob(".report*"))


def test_an_empty_folder_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds none of config\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_without_classifier_is_judged_by_its_features(folder: Path, parts: dict) -> None:
    analysis = parts["analysis.json"]
    for one in (*analysis["replacement"], *analysis["recommended"]["measured"]):
        one |= {"kl": None, "top1_agreement": None, "feature_change": 0.234}
    (folder / "analysis.json").write_text(json.dumps(analysis))
    text = words(render_report(read_parts(folder)))
    assert "23.4 %" in text
    assert "same class" not in text.split("What was changed")[0]


def test_images_without_labels_show_agreement_instead_of_accuracy(folder: Path, parts: dict) -> None:
    metrics = parts["metrics.json"]
    for one in ("teacher", "student", "dense_control"):
        metrics[one] |= {"top1": None, "top5": None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    text = words(render_report(read_parts(folder)))
    assert "Agreement with the teacher 90.25 %" in text
    assert "The images have no labels" in text


def test_the_title_says_what_was_made_of_which_model(folder: Path, parts: dict) -> None:
    def title(base: dict, conversions: list) -> str:
        document = parts["config.json"] | {"base": base, "conversions": conversions}
        (folder / "config.json").write_text(json.dumps(document))
        return read_parts(folder).title

    both = [{"method": "skipat", "options": {}}, {"method": "evo_vit", "options": {}}]
    assert title({"architecture": "deit_small_patch16_224.fb_in1k"}, both) == "deit_small → skipat + evo_vit"
    shape = {"depth": 8, "embed_dim": 96}
    own = {"architecture": ":VisionTransformer", "options": shape}
    assert title(own, both[:1]) == "VisionTransformer (8 blocks, 96 wide) → skipat"
    assert title(own, []) == "VisionTransformer (8 blocks, 96 wide), dense"


def test_size_is_known_without_a_benchmark(folder: Path) -> None:
    (folder / "bench.json").unlink()
    text = words(render_report(read_parts(folder)))
    assert "Parameters 1.500 M 75.0 % of dense (2.000 M)" in text
    assert "Multiply-accumulates 30.00 MMAC 75.0 % of dense (40.00 MMAC)" in text


def test_ratios_of_ten_and_more_are_sorted_as_numbers(folder: Path, parts: dict) -> None:
    for row, ratio in zip(parts["bench.json"]["rows"][1::2], (12.5, 9.5), strict=True):
        row |= {"speedup_vs_dense": ratio, "speedup_p10": ratio, "speedup_p90": ratio}
    (folder / "bench.json").write_text(json.dumps(parts["bench.json"]))
    assert "9.50–12.50×" in words(render_report(read_parts(folder)))


def test_what_was_recommended_and_what_was_used_is_one_sentence(folder: Path, parts: dict) -> None:
    text = words(render_report(read_parts(folder)))
    assert "skipat.layers: recommended blocks 2–3, used block 1: given." in text
    parts["choices.json"][0] |= {"used": [2, 3], "reason": ""}
    (folder / "choices.json").write_text(json.dumps(parts["choices.json"]))
    assert "skipat.layers: used blocks 2–3 as recommended." in words(render_report(read_parts(folder)))
    parts["choices.json"][0] |= {"recommended": None, "reason": "the paper's"}
    (folder / "choices.json").write_text(json.dumps(parts["choices.json"]))
    assert "skipat.layers: used blocks 2–3: the paper's." in words(render_report(read_parts(folder)))


def test_a_student_that_shares_weights_is_not_called_unchanged(tmp_path: Path) -> None:
    for name, method in (("sret", {"convert": [{"method": "sret", "groups": [[0, 1], [2, 3]]}]}), ("plain", {})):
        run(read_recipe({"model": MODEL, "report": True, **method}), tmp_path / name)
    text = words((tmp_path / "sret" / "report.html").read_text())
    assert "2 of them apply the weights of an earlier step again." in text
    assert "nothing was changed" not in text
    assert "builtin → sret" in text
    assert "Nothing: this is a dense model." in words((tmp_path / "plain" / "report.html").read_text())


def test_assumed_preprocessing_is_marked(folder: Path, parts: dict) -> None:
    made = parts["config.json"]["input"] | {"mean": [0.5], "std": [0.25], "assumed": ["mean"]}
    (folder / "config.json").write_text(json.dumps(parts["config.json"] | {"input": made}))
    text = words(render_report(read_parts(folder)))
    assert "mean 0.5 (assumed) standard deviation 0.25 Assumed: nobody stated it" in text


def test_images_that_could_not_be_read_are_counted(folder: Path, parts: dict) -> None:
    parts["metrics.json"]["student"] |= {"corrupt": 3, "examples": ["a.png", "b.png"]}
    (folder / "metrics.json").write_text(json.dumps(parts["metrics.json"]))
    text = words(render_report(read_parts(folder)))
    assert "Left out because unreadable: 3 images (a.png, b.png, …)." in text


def test_the_python_that_is_shown_makes_the_model(tmp_path: Path) -> None:
    by_hand = convert(dense("vit_plain"), "sret", groups=((0, 1), (2, 3)))
    named = convert(open_model("builtin", pretrained=False, img_size=32, **MODEL["options"]), "skipat", layers=(1,))
    for name, model in (("hand", by_hand), ("named", named)):
        save(model, tmp_path / name)
        parts = replace(read_parts(tmp_path / name), recipe="model: {pretrained: false}")
        assert parts.config is not None
        made: dict[str, Any] = {}
        exec(conversion_code(parts, parts.config, str(parts.config.base_name)), made)
        found = {name: value.shape for name, value in made["model"].state_dict().items()}
        assert found == {name: value.shape for name, value in model.state_dict().items()}


def test_a_plain_export_that_gains_more_than_the_conversion_is_said(folder: Path, parts: dict) -> None:
    parts["bench.json"]["rows"][2]["latency_ms_p50"] = 5.0
    (folder / "bench.json").write_text(json.dumps(parts["bench.json"]))
    text = words(render_report(read_parts(folder)))
    assert "the unchanged dense model in ort fp32 is 2.00 times as fast as in torch fp32, which is more" in text
    assert "Backends are timed one after the other" in text
