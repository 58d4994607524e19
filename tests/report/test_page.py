import base64
import json
import re
import zlib
from html.parser import HTMLParser

import pytest

from llmkick.report import formatting
from llmkick.report.page import answers as answers_module
from llmkick.report.page import page as page_module
from llmkick.report.page.answers import answers_payload
from llmkick.report.page.embedding import PLAIN_LIMIT, embedded, packed
from llmkick.report.page.page import write_report
from llmkick.report.run_folder import opened_run
from report.synthetic import HOSTILE, RECIPES, build_run


class Elements(HTMLParser):
    """Elements in order with their attributes and text, as a browser would find them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))

    def handle_data(self, data):
        if self.found:
            self.found[-1][2].append(data)

    def all(self, tag, **wanted):
        return [
            (attrs, "".join(text))
            for name, attrs, text in self.found
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page)


def data(elements, name):
    ((_, text),) = elements.all("script", id=f"data-{name}")
    return json.loads(text)


def test_the_page_asks_nothing_of_a_network(page, elements):
    loading = ("src", "href", "action", "poster", "data", "srcset", "xlink:href", "formaction", "ping")
    for _, attrs, _ in elements.found:
        for key in loading:
            assert attrs.get(key, "#").startswith(("#", "data:"))
    for tag in ("iframe", "object", "embed", "base", "img", "audio", "video"):
        assert not elements.all(tag)
    style = elements.all("style")[0][1]
    assert "url(" not in style
    assert "@import" not in style
    policy = elements.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def test_scripts_are_the_four_of_data_and_the_two_of_the_page(elements):
    scripts = elements.all("script")
    names = ["data-figures", "data-tables", "data-layers", "data-answers", None, None]
    assert [attrs.get("id") for attrs, _ in scripts] == names
    assert "vegaEmbed" in scripts[4][1]
    assert scripts[5][1].startswith('"use strict";')
    assert "innerHTML" not in scripts[5][1]
    assert not any(key.startswith("on") for _, attrs, _ in elements.found for key in attrs)


def test_data_come_back_exactly(result, elements):
    found = data(elements, "answers")
    with opened_run(result.folder) as run:
        assert found["start"]["recipe"] in RECIPES
        assert {key: found[key] for key in ("variants", "tasks", "texts")} == answers_payload(run)
    assert [variant["label"] for variant in found["variants"]][:4] == [
        "dense", "magnitude@0.25", "wanda@0.1, seed 0", "wanda@0.1, seed 1",
    ]  # fmt: skip


def test_answers_are_those_of_the_journal(result, elements):
    found = data(elements, "answers")
    with opened_run(result.folder) as run:
        records = run.records
    for task in found["tasks"]:
        ids = [item[0] for item in task["items"]]
        for variant, answers in zip(found["variants"], task["answers"], strict=True):
            texts, scores, reasons, cut = answers
            chosen = records[(records["task"] == task["name"]) & (records["recipe"] == variant["recipe"])]
            if "seed" in variant["label"]:
                chosen = chosen[chosen["seed"] == int(variant["label"][-1])]
            chosen = chosen.set_index("item_id").loc[ids]
            assert [found["texts"][place] for place in texts] == list(chosen["response"])
            assert scores == [None if score != score else score for score in chosen["score"]]
            assert [place >= 0 for place in reasons] == list(chosen["score"].isna())
            assert cut == [i for i, truncated in enumerate(chosen["truncated"]) if truncated]
    assert len(found["texts"]) == len(set(found["texts"]))


def test_hostile_text_is_text(page, elements):
    texts = data(elements, "answers")["texts"]
    for hostile in HOSTILE:
        assert any(hostile in text for text in texts)
        assert hostile not in page.replace("{{7*7}} {% raw %} ${7*7}", "")
    assert "{{7*7}}" in page
    assert not any("attacked" in value for _, attrs, _ in elements.found for value in attrs.values() if value)
    assert not elements.all("b")


def test_a_perplexity_that_cannot_be_compared_says_so(folder):
    build_run(folder, recipes=["wanda@0.25", "rtn@8b"], items=12)
    path = folder / "results.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["comparisons"] = [
        entry for entry in content["comparisons"] if (entry["recipe"], entry["task"]) != ("rtn@8b", "perplexity")
    ]
    path.write_text(json.dumps(content), encoding="utf-8")
    text = write_report(folder).read_text(encoding="utf-8")
    assert text.count('<span class="hidden"> not comparable</span>') == 1


def test_names_and_warnings_are_escaped_too(folder):
    build_run(folder, recipes=["rtn@8b"], tasks=("factoid_qa", "perplexity"), items=8)
    path = folder / "results.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["name"] = content["study"]["name"] = HOSTILE[1]
    content["warnings"] = list(HOSTILE)
    content["compression"][0]["warnings"] = [HOSTILE[0]]
    content["environment"]["processor"] = HOSTILE[0]
    path.write_text(json.dumps(content), encoding="utf-8")
    found = Elements(write_report(folder).read_text(encoding="utf-8"))
    assert len(found.all("script")) == 6
    assert not found.all("img")
    assert HOSTILE[1] in found.all("span")[0][1]


@pytest.mark.parametrize("text", [*HOSTILE, "<!--<script>", "]]>", "\ud800 alone", "a\x00b", "\u2029", "&lt;"])
def test_embedded_json_is_harmless_and_exact(text):
    out = embedded({"text": text})
    assert not re.search("[<>&\u2028\u2029\x00]", out)
    assert json.loads(out) == {"text": text}
    out.encode("utf-8")


def test_large_data_are_deflated_and_come_back_exactly():
    small, large = {"texts": ["é<"]}, {"texts": ["<answer " + str(i) for i in range(PLAIN_LIMIT // 10)]}
    assert packed(small) == embedded(small)
    out = json.loads(packed(large))
    assert list(out) == ["deflated"]
    assert json.loads(zlib.decompress(base64.b64decode(out["deflated"]))) == large


def test_a_long_passage_is_cut_and_says_so(folder):
    result = build_run(folder, recipes=["rtn@8b"], tasks=("context_qa:open",), items=4)
    with opened_run(result.folder) as run:
        run.items.loc[0, "context"] = "x" * 5000
        texts = answers_payload(run)["texts"]
    assert max(len(text) for text in texts) < 4100
    assert any(text.endswith("[1,000 more characters]") for text in texts)


def test_the_matrix_says_verdicts_in_words(result, elements):
    matrix = next(i for i, (tag, attrs, _) in enumerate(elements.found) if attrs.get("class") == "matrix")
    entries = {(e.recipe, e.task): e for e in result.comparisons if e.kind == "task"}
    cells = [
        i for i, (tag, attrs, _) in enumerate(elements.found) if i > matrix and tag == "td" and "data-task" in attrs
    ]
    assert {(elements.found[i][1]["data-recipe"], elements.found[i][1]["data-task"]) for i in cells} == set(entries)
    for i in cells:
        attrs = elements.found[i][1]
        entry = entries[attrs["data-recipe"], attrs["data-task"]]
        said = "".join("".join(text) for _, _, text in elements.found[i : i + 4])
        assert f"{entry.verdict}, " in said
        details = attrs["title"].split("\n")
        assert details[0] == f"{entry.recipe} on {entry.task}"
        assert entry.verdict in details[1]
        assert f"The paper's rule, without bounds: {entry.paper_verdict}" in details
        if entry.verdict != "no signal":
            assert formatting.loss_number(entry.relative_drop) in said
            assert f"95 % bounds: {formatting.loss_range(entry.interval)}" in details
        else:
            assert not [text for text in details if text.startswith(("Loss of", "Gain of", "95 % bounds"))]
    for tag, attrs, _ in elements.found[matrix:]:
        if tag == "th":
            assert "scope" in attrs


def test_controls_are_labelled_and_ids_are_unique(page, elements):
    ids = [attrs["id"] for _, attrs, _ in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs, _ in elements.all("a"):
        assert attrs["href"].removeprefix("#") in ids
    for control in ("answers-task", "answers-variant", "answers-cluster", "answers-search", "layers-model"):
        assert re.search(rf"<label[^>]*>[^<]+<(select|input)[^>]*id=\"{control}\"", page)


def test_rounding_of_what_was_rounded_is_noted(page, plain):
    assert "had already been rounded to Q4_1" in page
    assert "see the note on rounding" in page
    write_report(plain.folder)
    assert "already been rounded" not in (plain.folder / "report.html").read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_page(result, page):
    write_report(result.folder)
    assert (result.folder / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    "options",
    [
        {"tasks": ("perplexity",)},
        {"tasks": ("factoid_qa",)},
        {"recipes": []},
        {"items": 1},
        {"unscored": {"factoid_qa": 12, "context_qa:open": 12}},
    ],
    ids=lambda options: str(next(iter(options.items()))),
)
def test_sparse_studies_have_a_page(folder, options):
    result = build_run(folder, **{"recipes": ["wanda@0.25", "rtn@8b"], "items": 12, **options})
    text = write_report(result.folder).read_text(encoding="utf-8")
    found = Elements(text)
    assert len(found.all("h2")) == 6
    assert "None" not in "".join(value for _, value in found.all("td"))


def test_a_task_whose_items_are_all_unscored_is_incomplete(folder):
    result = build_run(folder, recipes=["wanda@0.25"], items=12, unscored={"factoid_qa": 12})
    text = write_report(result.folder).read_text(encoding="utf-8")
    assert "factoid_qa could change with the items that have no score" in text
    assert "the prompt is too long" in text


def test_models_from_elsewhere_count_as_recipes(folder):
    """`kick compare` and a gate have no recipes of their own: their models are the rows of the page."""
    result = build_run(folder, recipes=["wanda@0.25", "rtn@8b"], items=12)
    study = result.study.model_copy(update={"recipes": (), "others": ("wanda@0.25=./a", "rtn@8b=./b")})
    compared = result.model_copy(update={"study": study, "recipes": ()})
    compared.write()
    text = write_report(folder).read_text(encoding="utf-8")
    assert "LLM-KICK, study synthetic:\n    2 recipes, 4 tasks" in text


def test_the_footer_names_files_only_where_there_are_some(folder, monkeypatch):
    result = build_run(folder, recipes=["rtn@8b"], tasks=("factoid_qa",), items=12)
    said = "all answers are in <code>report-items/</code> beside it"
    assert said not in write_report(result.folder).read_text(encoding="utf-8")
    monkeypatch.setattr(answers_module, "MOST_RECORDS", 5)
    assert said in write_report(result.folder).read_text(encoding="utf-8")
    assert (folder / "report-items").is_dir()


@pytest.mark.slow
def test_a_large_study_stays_below_six_megabytes(folder):
    recipes = [f"{m}@0.{i:02}" for m in ("magnitude", "wanda", "sparsegpt", "other") for i in range(5, 55, 5)]
    tasks = ("factoid_qa", "multiple_choice:letter", "multiple_choice:cloze", "context_qa:closed", "context_qa:open")
    result = build_run(folder, recipes=recipes, tasks=(*tasks, "perplexity"), items=500, blocks=30)
    assert write_report(result.folder).stat().st_size < 6_000_000


@pytest.mark.parametrize("is_there", [True, False])
def test_the_script_needs_no_cache(tmp_path, monkeypatch, is_there):
    """A report is not lost to a cache that cannot be written."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "file"))
    if is_there:
        monkeypatch.setattr(page_module, "cache_folder", lambda part: tmp_path / "file")
    monkeypatch.setattr(page_module.vl_convert, "javascript_bundle", lambda **_: "a</script>")
    assert page_module._library.__wrapped__() == r"a<\/script>"
