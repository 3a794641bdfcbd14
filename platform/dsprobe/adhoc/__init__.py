"""Ad-hoc attacks: a prompt or a hand-written canvas against a loaded model, without configuration file or storage.

`attack` runs one in this process; `dsprobe.actors.connect` runs the same code beside the models of a running cluster.
"""

from dsprobe.adhoc.figure import draw_risks, risk_lines
from dsprobe.adhoc.request import AttackRequest, HandwrittenCanvas, canvas, make_request
from dsprobe.adhoc.result import AttackResult
from dsprobe.adhoc.run import attack, attack_all, check_canvas, run_request

__all__ = [
    "AttackRequest",
    "AttackResult",
    "HandwrittenCanvas",
    "attack",
    "attack_all",
    "canvas",
    "check_canvas",
    "draw_risks",
    "make_request",
    "risk_lines",
    "run_request",
]
