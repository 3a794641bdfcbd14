"""Judge prompts as data, and how they are filled.

Each published template lies here as its source has it, with the names of the slots made uniform: ``{prompt}``,
``{reply}`` and ``{context}``.

* ``harmbench.txt``, ``harmbench_contextual.txt``: `LLAMA2_CLS_PROMPT` in eval_utils.py of centerforaisafety/HarmBench
  (Mazeika et al. 2402.04249), MIT.
* ``jailbreakbench.txt``, ``jailbreakbench_refusal.txt``: `Llama3JailbreakJudge` and `Llama3RefusalJudge` in
  src/jailbreakbench/classifier.py of JailbreakBench/jailbreakbench (Chao et al. 2404.01318), MIT.
* ``strongreject_rubric.txt``, ``strongreject_finetuned.txt``: strong_reject/eval_files/judge_templates.json of
  dsbowen/strong_reject (Souly et al. 2402.10260, second version of the rubric), MIT.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

SLOTS: Final = ("prompt", "reply", "context")
"""What a template may hold in braces."""
_SLOT: Final = re.compile(r"\{(" + "|".join(SLOTS) + r")\}")


def published(name: str) -> str:
    """The text of a template that is shipped here."""
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8")


def fill(template: str, *, prompt: str, reply: str, context: str = "") -> str:
    """Put texts into a template's slots.

    Slots are filled in one pass, so a slot's name inside a prompt or a reply stays text; other braces are left alone.
    """
    values = {"prompt": prompt, "reply": reply, "context": context}
    return _SLOT.sub(lambda found: values[found[1]], template)


def slots(template: str) -> set[str]:
    """Names of the slots that a template has."""
    return set(_SLOT.findall(template))
