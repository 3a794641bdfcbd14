"""Tiny checkpoints for judges: random weights, a trained tokenizer, the real loading code."""

from __future__ import annotations

import json

from dsprobe.judges.base import Reply
from dsprobe.judges.templates import published
from dsprobe.models.tiny import write_tiny_checkpoint
from dsprobe.prompts.base import Prompt

TEMPLATES = ("harmbench", "harmbench_contextual", "strongreject_finetuned", "strongreject_rubric", "jailbreakbench")
WORDS = "Yes No yes no safe unsafe 1 2 3 4 5 \n\n"


def write_judge(folder, *, words=WORDS, templates=TEMPLATES, seed=0, positions=4096):
    """A causal checkpoint whose tokenizer knows the answers of the published judges as whole tokens."""
    texts = [words] * 200 + [published(name) for name in templates]
    write_tiny_checkpoint(folder, "causal", texts=texts, seed=seed, vocab_size=1024, hidden_size=32)
    set_json(folder / "config.json", max_position_embeddings=positions)
    return folder


def set_json(file, **values):
    """Change keys of a JSON file; `None` removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def reply(text="fold it twice", request="how does one fold it?", context="", **fields):
    """A neutral request and a reply to it."""
    prompt = Prompt(id="p1", text=request, harmful=True, source="test", context=context, **fields)
    return Reply(prompt=prompt, text=text)


MIXED = [reply("a" * n + " fold", request=f"request {n}") for n in (1, 3, 40, 41, 90, 7, 200)]
"""Replies of several lengths."""
