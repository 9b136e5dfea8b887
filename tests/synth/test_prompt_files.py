import pytest

from synth.backward import STAGES, Backward, Draft
from synth.prompt_files import FOLDER, Prompt, load_prompts
from synth.verification import Limits, Span

DRAFT = Draft("the text", (Span(0, 3), Span(4, 8)), ("one", "two"), ((1, "first"), (2, "second")), "Why so?")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_slot_is_filled(stage):
    prompt = load_prompts("cot_backward")[stage.name]
    assert prompt.slots == set(stage.slots(DRAFT, Limits()))
    assert "{{" not in prompt.fill(stage.slots(DRAFT, Limits()))


def test_sample_is_question_chain_document():
    text = load_prompts("cot_backward")["sample"].fill(Backward().sample_slots(DRAFT))
    assert text == "Why so?\n\n1. first\n2. second\n\nthe text"


def test_slots_inside_values_stay_text():
    prompt = Prompt("x", 1, 9, "{{a}} {{b}}", "")
    assert prompt.fill({"a": "{{b}} {0} %s", "b": "B"}) == "{{b}} {0} %s B"


def test_ids_name_their_files():
    files = sorted(FOLDER.rglob("*.md"))
    assert [f"{file.parent.name}/{file.stem}" for file in files] == [
        prompt.id
        for recipe in sorted({f.parent.name for f in files})
        for _, prompt in sorted(load_prompts(recipe).items())
    ]
