"""A scripted model for `cot_rag` that reads its prompts: it quotes what stands in them, and declines else."""

import json
import re
from typing import Any

from synth.rag_checks import INSUFFICIENT, holds
from tests.synth.conftest import completion

END = r"(?=\n\n\[\d+\] |\n\nAnswer this question|\n\n请只根据)"
PASSAGE = re.compile(rf"^\[(\d+)\] (.*?){END}", re.MULTILINE | re.DOTALL)
ASKED = re.compile(r"(?:from the passages alone: |回答问题：)(.*)")
MADE = re.compile(r"(?:Here is a passage\.|下面是一段材料。)\n\n(.*?)\n\n(?:Write one question|请就材料)", re.DOTALL)
FOUND = {"en": "One of them names it outright", "zh": "其中一段直接讲到了它"}
MISSING = {"en": "None of these speaks of it", "zh": "这里没有一段讲到它"}


class Reader:
    """Answers both stages.

    Args:
        answers: of known questions; those of questions that it makes are added.
    """

    def __init__(self, answers: dict[str, str] | None = None) -> None:
        self.answers = dict(answers or {})

    def __call__(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """As a server's `answer`."""
        prompt = body["messages"][0]["content"]
        made = MADE.search(prompt)
        reply = self.ask(made.group(1)) if made else self.reason(prompt)
        return completion(json.dumps(reply, ensure_ascii=False))

    def ask(self, passage: str) -> dict[str, Any]:
        """A question about the longest word of a passage, or about a few characters of it."""
        if chinese := re.findall(r"[\u4e00-\u9fff]{6,}", passage):
            words = max(chinese, key=len)
            question, answer = f"“{words[:3]}”后面说的是什么？", words[3:]
        else:
            words = re.findall(r"[A-Za-z]+", passage)
            at = max(range(2, len(words)), key=lambda n: len(words[n]))
            question, answer = f"What comes after {words[at - 2].lower()} {words[at - 1].lower()} there?", words[at]
        self.answers[question] = answer
        return {"question": question, "answer": answer}

    def reason(self, prompt: str) -> dict[str, Any]:
        """A chain that quotes the passage that holds the answer; it declines if none does."""
        asked = ASKED.search(prompt)
        assert asked is not None, prompt
        question = asked.group(1).strip()
        language = "zh" if INSUFFICIENT["zh"] in prompt else "en"
        answer = self.answers[question]
        passages = [(int(number), text) for number, text in PASSAGE.findall(prompt)]
        number, text = next(((n, text) for n, text in passages if holds(text, answer)), (0, ""))
        first = {"thought": question, "passage": 0, "quote": ""}
        if not number:
            return {"steps": [first, first | {"thought": MISSING[language]}], "answer": INSUFFICIENT[language]}
        sentences = re.split(r"(?<=[.!?。！？\n])\s*", text)
        quote = next((one for one in sentences if holds(one, answer) and len(one) > 12), text)
        return {"steps": [first, {"thought": FOUND[language], "passage": number, "quote": quote}], "answer": answer}
