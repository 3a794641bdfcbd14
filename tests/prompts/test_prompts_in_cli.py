"""What the command line says about prompt sets."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from dsprobe.cli.main import app
from dsprobe.prompts.load import SOURCES

CONFIG = """
models: [toy-diffusion]
prompts:
  - {{source: csv, name: mine, path: {path}, columns: {{label: bad}}, labels: {{"no": false, "yes": true}}}}
"""


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_validate_counts_each_set_without_its_texts(tmp_path):
    (tmp_path / "own.csv").write_text("prompt,category,bad\nopen sesame,x,yes\nclose sesame,y,no\nhello,y,no\n")
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG.format(path=tmp_path / "own.csv"))
    facts = json.loads(shown("validate", str(config), "--json"))["prompt_sets"]["mine"]
    assert (facts["count"], facts["harmful"], facts["benign"]) == (3, 1, 2)
    assert facts["categories"] == {"x": 1, "y": 2}
    page = shown("validate", str(config))
    assert facts["digest"][:12] in page
    assert "sesame" not in page


def test_list_shows_every_source_and_who_publishes_it():
    rows = {row["name"]: row["summary"] for row in json.loads(shown("list", "prompts", "--json"))["prompts"]}
    assert set(rows) == set(SOURCES)
    assert "centerforaisafety/HarmBench" in rows["harmbench"]
    assert "oversensitive" in rows["toy"]
