import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.pipeline.tiny import MODEL
from tests.report.conftest import change
from tests.report.reading import read, words
from tests.variants import dense
from vitslim.bench import BenchReport
from vitslim.checkpoint import save
from vitslim.errors import CheckpointError
from vitslim.files import read_json
from vitslim.methods import convert
from vitslim.opening import open_model
from vitslim.pipeline import run
from vitslim.recipe import read_recipe
from vitslim.report import ReportParts, read_parts, render_report, write_plots, write_report
from vitslim.report.numbers import amount, fixed, percent, scientific
from vitslim.report.plan_figure import plan_picture
from vitslim.report.sections.origin import conversion_code
from vitslim.report.sections.speed import speed


def shown(folder: Path) -> str:
    return render_report(read_parts(folder))


def test_every_section_of_a_whole_run_has_its_figures(folder: Path) -> None:
    page = shown(folder)
    ids = {attributes.get("id") for tag, attributes in read(page).tags if tag == "section"}
    assert ids == {"redundancy", "change", "training", "accuracy", "speed", "parity", "environment", "reproduce"}
    assert "Not measured: run" not in words(page)
    # three heat maps, R², replacement, influence, widths, the plan, two losses, speed, work
    assert page.count("<svg") == 12


def test_numbers_on_the_page_are_those_of_the_files(folder: Path) -> None:
    text = words(shown(folder)).replace("\u202f", " ")
    metrics, cost = read_json(folder / "metrics.json"), read_json(folder / "cost.json")
    analysis, parity = read_json(folder / "analysis.json"), read_json(folder / "export" / "parity.json")
    (row,) = [one for one in read_json(folder / "bench.json")["rows"] if one["model"] == "student"]
    for number in (
        *(percent(metrics[name]["top1"]) for name in ("teacher", "student", "dense_finetuned")),
        *(amount(cost["params"]), amount(cost["dense_macs"], "MAC"), fixed(metrics["student"]["kl"], 4)),
        *(fixed(analysis["cka"]["z"][2][1], 3), fixed(analysis["linear_r2"][3], 3)),
        *(f"{row['speedup_vs_dense']:.2f}× {row['verdict']}", fixed(row["latency_ms_p99"])),
        *(scientific(parity["checks"][0]["max_abs"]), fixed(row["throughput_img_s"], 1)),
        *("reuse (expansion 0.5)", "kept 50 %", "4 steps over 4 blocks"),
        *("Layer-local imitation error", "skipat.layers: "),
    ):
        assert number.replace("\u202f", " ") in text, number


def test_what_is_missing_is_said_with_the_command_that_makes_it(folder: Path) -> None:
    for name in ("analysis.json", "plan.json", "metrics.json", "export/parity.json", "bench.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "train")
    (folder / "recipe.yaml").write_text("data: {source: my images}\n")
    page = shown(folder)
    for command in (
        "vitslim run out/recipe.yaml --out out --overwrite --set analyze={}",
        "vitslim convert builtin --method skipat --out out --overwrite",
        "vitslim eval out --teacher builtin --data &#39;my images&#39;",
        "vitslim train out --teacher builtin --data &#39;my images&#39; --out out-trained",
        "vitslim verify out",
        "vitslim bench out",
    ):
        assert f"<code>{command}</code>" in page, command
    assert "the weights may be untrained: run" in words(page)


def test_a_page_of_nothing_but_absences_is_whole_and_honest() -> None:
    page = render_report(ReportParts(name="empty"))
    for command in ("analyze", "convert", "train", "eval", "bench", "verify"):
        assert re.search(rf"<code>[^<]*vitslim {command} [^<]*empty[^<]*</code>", page), command
    assert words(page).count("not measured") == words(page).count("not counted") == 2


@pytest.mark.parametrize(("ratio", "verdict", "tone"), [(0.9, "slower", "bad"), (1.2, "too noisy", "even")])
def test_a_verdict_is_shown_in_words_and_colour(folder: Path, ratio: float, verdict: str, tone: str) -> None:
    def edit(bench: Any) -> None:
        for row in bench["rows"]:
            if row["model"] == "student":
                row |= {"speedup_vs_dense": ratio, "verdict": verdict}

    change(folder / "bench.json", edit)
    page = shown(folder)
    assert f'<span class="{tone}">{ratio:.2f}× {verdict}</span>' in page
    assert f'<span class="{tone}">{verdict}</span> in the one setting measured' in page
    drawn = page.split("Speed against dense</strong>")[1].split("</svg>")[0]
    assert f">{ratio:.2f}× {verdict}</text>" in drawn
    assert f"var(--{'bad' if tone == 'bad' else 'soft'})" in drawn


def test_a_plain_export_that_gains_more_than_the_conversion_is_said(folder: Path) -> None:
    bench = BenchReport(**read_json(folder / "bench.json"))
    own, student = bench.rows
    exported = own.model_copy(update={"backend": "ort", "speedup_vs_dense_torch": 2.0})
    slower = student.model_copy(update={"backend": "ort", "speedup_vs_dense": 0.9, "verdict": "slower"})
    elements = speed(
        replace(read_parts(folder), bench=bench.model_copy(update={"rows": [*bench.rows, exported, slower]}))
    )
    text = " ".join(
        getattr(element, "text", "") for element in elements if isinstance(getattr(element, "text", ""), str)
    )
    assert "the unchanged dense model in ort fp32 is 2.00 times as fast as in torch fp32, which is more" in text


def test_text_from_the_files_cannot_become_markup(folder: Path) -> None:
    hostile = "<script>alert('&\"')</script> $\\frac$ \x1b\ud800"
    for name, harmless in {
        "config.json": "builtin",
        "bench.json": "student",
        "analysis.json": "blocks.1",
        "export/parity.json": "model.onnx",
        "choices.json": "skipat",
        "env.json": "Linux",
    }.items():
        path = folder / name
        assert harmless in path.read_text(), name
        path.write_text(path.read_text().replace(harmless, json.dumps(hostile)[1:-1]))
    (folder / "recipe.yaml").write_text("<script>")
    page = write_report(folder).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
    read(page)


def test_a_page_fetches_nothing_and_runs_nothing(folder: Path) -> None:
    page = shown(folder)
    assert (
        re.search(r"(https?:)?//\w|@import|url\((?!#)", re.sub(r"data:image/png;base64,[\w+/=\s]*", "", page)) is None
    )
    for tag, attributes in read(page).tags:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert not any(name.startswith("on") for name in attributes)
        assert re.match("#|data:image/png;", attributes.get("href") or "#")


def test_figures_are_well_formed_and_described_and_ids_occur_once(folder: Path) -> None:
    page = shown(folder)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "nan" not in re.sub("base64.*", "", drawing).lower()
    ids = [attributes["id"] for _, attributes in read(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_table_row_has_as_many_cells_as_its_header(folder: Path) -> None:
    for table in re.findall(r"<table>.*?</table>", shown(folder), re.DOTALL):
        widths = {len(row) for row in (re.findall(r"<t[hd]", line) for line in table.split("<tr>")[1:])}
        assert len(widths) == 1


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    analysis = read_parts(folder).analysis
    assert analysis is not None
    once, again = (write_plots(analysis, tmp_path / name) for name in ("once", "again"))
    assert [path.name for path in once] == [
        *("cka_z.svg", "cka_cls_attention.svg", "cka_block.svg"),
        *("linear_r2.svg", "replacement.svg", "influence.svg", "widths.svg"),
    ]
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert all(ElementTree.fromstring(path.read_text()).tag.endswith("svg") for path in once)


def test_an_empty_folder_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds none of config\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_block_that_no_step_names_is_a_gap_in_the_plan(folder: Path) -> None:
    plan = read_parts(folder).plan
    assert plan is not None
    less = plan_picture(replace(plan, rows=[row for row in plan.rows if row.block != 2]))
    whole = plan_picture(plan)
    assert (whole.svg.count(">dropped<"), less.svg.count(">dropped<")) == (0, 2)
    assert "1 blocks dropped" in less.description
    assert ">reuse<" in less.svg


def test_a_model_without_classifier_is_judged_by_its_features(folder: Path) -> None:
    def edit(analysis: Any) -> None:
        analysis["output_measure"] = "feature_change"
        for one in (*analysis["replacement"], *analysis["recommended"]["measured"]):
            one |= {"kl": None, "top1_agreement": None, "feature_change": 0.234}

    change(folder / "analysis.json", edit)
    text = words(shown(folder)).split("What was changed")[0]
    assert "23.4 %" in text
    assert "same class" not in text


def test_images_without_labels_show_agreement_instead_of_accuracy(folder: Path) -> None:
    change(folder / "metrics.json", lambda found: [one.update(top1=None, top5=None) for one in found.values()])
    agreement = percent(read_json(folder / "metrics.json")["student"]["agreement"]).replace("\u202f", " ")
    text = words(shown(folder))
    assert f"Agreement with the teacher {agreement}" in text
    assert "The images have no labels" in text


def test_the_title_says_what_was_made_of_which_model(folder: Path) -> None:
    def title(base: dict, methods: list[str]) -> str:
        conversions = [{"method": name, "options": {}} for name in methods]
        change(folder / "config.json", lambda found: found.update(base=base, conversions=conversions))
        return read_parts(folder).title

    both = ["skipat", "evo_vit"]
    assert title({"architecture": "deit_small_patch16_224.fb_in1k"}, both) == "deit_small → skipat + evo_vit"
    own = {"architecture": ":VisionTransformer", "options": {"depth": 8, "embed_dim": 96}}
    assert title(own, both[:1]) == "VisionTransformer (8 blocks, 96 wide) → skipat"
    assert title(own, []) == "VisionTransformer (8 blocks, 96 wide), dense"


def test_what_was_recommended_and_what_was_used_is_one_sentence(folder: Path) -> None:
    for entry, sentence in (
        ({"recommended": [2, 3], "used": [1]}, "layers: recommended blocks 2–3, used block 1, because why."),
        ({"recommended": [2, 3], "used": [2, 3]}, "layers: used blocks 2–3 as recommended."),
        ({"recommended": None, "used": [2, 3]}, "layers: used blocks 2–3, because why."),
        # widths are no numbers of blocks: neither sorted nor drawn together
        ({"option": "widths", "used": [3, 2, 1]}, "widths: used widths 3, 2, 1, because why."),
        ({"used": [8, 8, 8, 8, 4]}, "widths: used widths 8 ×4, 4, because why."),
        ({"option": "groups", "used": [[1, 2], [3, 4]]}, "groups: used groups (1, 2), (3, 4), because why."),
    ):
        change(folder / "choices.json", lambda found, entry=entry: found[0].update(entry, reason="why"))
        assert f"skipat.{sentence}" in words(shown(folder))


def test_a_student_that_shares_weights_is_not_called_unchanged(tmp_path: Path) -> None:
    for name, method in (("sret", {"convert": [{"method": "sret", "groups": [[0, 1], [2, 3]]}]}), ("plain", {})):
        run(read_recipe({"model": MODEL, "report": True, **method}), tmp_path / name)
    text = words((tmp_path / "sret" / "report.html").read_text())
    assert "2 steps apply the weights of an earlier step again" in text
    assert "builtin → sret" in text
    assert "Nothing: this is a dense model." in words((tmp_path / "plain" / "report.html").read_text())


def test_assumed_preprocessing_and_unreadable_images_are_said(folder: Path) -> None:
    change(folder / "config.json", lambda found: found["input"].update(assumed=["mean"]))
    change(folder / "metrics.json", lambda found: found["student"].update(corrupt=3, examples=["a.png", "b.png"]))
    text = words(shown(folder))
    assert re.search(r"mean [\d., ]+ \(assumed\)", text)
    assert "Left out because unreadable: 3 images (a.png, b.png, …)." in text


def test_the_python_that_is_shown_makes_the_model(tmp_path: Path) -> None:
    by_hand = convert(dense("vit_plain"), "sret", groups=((0, 1), (2, 3)))
    named = convert(open_model("builtin", pretrained=False, img_size=32, **MODEL["options"]), "skipat", layers=(1,))
    for name, model in (("hand", by_hand), ("named", named)):
        save(model, tmp_path / name)
        parts = replace(read_parts(tmp_path / name), recipe="model: {pretrained: false}")
        assert parts.config is not None
        made: dict[str, Any] = {}
        exec(conversion_code(parts, parts.config), made)
        found = {name: value.shape for name, value in made["model"].state_dict().items()}
        assert found == {name: value.shape for name, value in model.state_dict().items()}
