import re
from pathlib import Path

import pytest

from pipelines.recipe import load_recipe
from synth.backward import Backward, Draft
from synth.prompt_files import FOLDER, Prompt, load_prompts, prompt_language, read_prompt
from synth.recipe import KINDS, SynthSettings, prompts_of
from synth.rephrase_settings import TASKS
from synth.token_counts import estimated_tokens
from synth.verification import Limits, Span
from synth.words import script_of_words

DRAFT = Draft("the text", (Span(0, 3), Span(4, 8)), ("one", "two"), ((1, "first"), (2, "second")), "Why so?")


REPHRASINGS = sorted(TASKS)
BACKWARD = ["cot_backward", *(name for name in KINDS if name.startswith("cot_synthesis_"))]


@pytest.mark.parametrize("recipe", BACKWARD)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_slot_is_filled(recipe, language):
    prompts = prompts_of(SynthSettings(recipe=recipe))
    for stage in Backward(recipe).stages:
        prompt = prompts.of(stage.name, language)
        assert prompt.slots == set(stage.slots(DRAFT, Limits()))
        assert "{{" not in prompt.fill(stage.slots(DRAFT, Limits()))


@pytest.mark.parametrize("recipe", [*BACKWARD, "cot_forward", *REPHRASINGS])
def test_every_stage_is_asked_in_english_and_chinese(recipe):
    prompts = prompts_of(SynthSettings(recipe=recipe))
    assert {stage for language, stage in prompts.files if language == "zh"} == {
        stage for language, stage in prompts.files if language == "en" and stage != "sample"
    }
    for (language, stage), prompt in prompts.files.items():
        assert (
            stage == "sample"
            or script_of_words(re.sub("{.*?}", "", prompt.body)) == {"en": "LATIN", "zh": "CJK"}[language]
        )


@pytest.mark.parametrize("recipe", REPHRASINGS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_rephrasings_leave_room_for_text(recipe, language):
    prompt = prompts_of(SynthSettings(recipe=recipe)).of(recipe, language)
    assert estimated_tokens([prompt.fill({"segment": ""})])[0] < TASKS[recipe].max_input // 3
    assert "{{" not in prompt.fill({"segment": "x"})


@pytest.mark.parametrize("recipe", [*BACKWARD[1:], *REPHRASINGS])
def test_recipes_ship_under_the_name_of_their_kind(recipe):
    settings = load_recipe(recipe, SynthSettings)
    assert settings.recipe == recipe
    assert settings.sample_domain == (recipe if recipe in BACKWARD else f"synth_{recipe}")


def test_a_kind_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="did you mean 'cot_forward'"):
        SynthSettings(recipe="cot_forwards")


def test_sample_is_question_chain_document():
    text = load_prompts("cot_backward").of("sample").fill(Backward().sample_slots(DRAFT))
    assert text == "Why so?\n\n1. first\n2. second\n\nthe text"


def test_slots_inside_values_stay_text():
    prompt = Prompt("x", 1, 9, "{{a}} {{b}}", "")
    assert prompt.fill({"a": "{{b}} {0} %s", "b": "B"}) == "{{b}} {0} %s B"


def test_ids_name_their_files():
    for file in FOLDER.rglob("*.md"):
        assert read_prompt(file).id == file.relative_to(FOLDER).with_suffix("").as_posix()


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("zho", "", "zh"), ("zh", "", "zh"), ("cmn_Hans", "", "zh"), ("zh-CN", "", "zh"), ("eng", "中文", "en"),
        (None, "洞穴中的水", "zh"), (None, "洞窟の中にはみずがながれている", "en"), (None, "Caves", "en"),
    ],
)  # fmt: skip
def test_a_document_is_asked_in_its_language(language, text, expected):
    assert prompt_language(language, text) == expected


def test_chinese_stands_beside_english_and_falls_back_to_it(tmp_path: Path):
    for name in ("a/one", "a/zh/one", "a/two", "b/two"):
        path = tmp_path / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"---\nid: {name}\nversion: 1\nmax_tokens: 9\n---\n{name}\n")
    prompts = load_prompts("a", "b", folder=tmp_path)
    asked = [prompts.of(stage, language).body for stage in ("one", "two") for language in ("en", "zh")]
    assert asked == ["a/one", "a/zh/one", "b/two", "b/two"]
    assert list(prompts.hashes()) == ["one", "two", "zh/one"]
