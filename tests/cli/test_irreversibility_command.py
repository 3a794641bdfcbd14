import json

import pytest
import yaml
from typer.testing import CliRunner

from dsprobe.cli.main import app
from dsprobe.errors import ConfigError

RUN = {
    "name": "irr",
    "models": ["toy-diffusion"],
    "prompts": [{"source": "toy", "name": "restricted", "limit": 4}],
    "attacks": [{"name": "dija", "placement": "reply", "label": "step {i} :", "spans": 4, "masks_per_span": 6}],
    "decodings": [{"steps": 8, "reply_length": 42}],
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN))
    return str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "4,9"], "`9` is not a step of every decoding. Allowed: 1 to 8."),
        (["--shares", "0.5,1.5"], "1.5 is not allowed"),
        (["--shares", "half"], "`half` is not a number"),
        (["--target", "atributed"], "Did you mean `attributed`?"),
        (["--view", "both"], "Allowed: committed, predicted"),
        (["--set", "prompts.0.split=benign", "--set", "prompts.0.harmful=false"], "needs a diffusion model"),
    ],
)
def test_bad_input_names_the_value_and_what_is_allowed(config, options, message):
    outcome = CliRunner().invoke(app, ["irreversibility", config, *options])
    assert isinstance(outcome.exception, ConfigError)
    assert message in str(outcome.exception)


def test_the_curve_has_intervals_and_says_what_it_cost(config):
    arguments = ["irreversibility", config, "--steps", "4,8", "--shares", "0.5,1.0", "--json"]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.stdout)
    assert {(point["step"], point["share"]) for point in found["points"]} <= {(4, 0.5), (4, 1.0), (8, 0.5), (8, 1.0)}
    for point in found["points"]:
        assert 0 <= point["low"] <= point["value"] <= point["high"] <= 1
        assert 1 <= point["n"] <= 4
    assert 0 < found["passes_used"] < found["passes_from_scratch"]
