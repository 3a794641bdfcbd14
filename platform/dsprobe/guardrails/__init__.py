"""Interventions in the denoising loop, found by name."""

from dsprobe.guardrails.base import ForkableGuardrail, Guardrail, Setting
from dsprobe.registry import Entry, Registry

GUARDRAILS: Registry[Guardrail] = Registry(
    "guardrail",
    {
        "renoise": Entry(
            "dsprobe.guardrails.renoise:RenoiseGuardrail", "re-mask spans whose λ-weighted risk exceeds τ"
        ),
        "refuse": Entry("dsprobe.guardrails.refuse:RefuseGuardrail", "stop and refuse where risk exceeds τ"),
        "gate": Entry("dsprobe.guardrails.gate:GateGuardrail", "veto commits whose short rollouts turn out risky"),
        "policy": Entry("dsprobe.guardrails.policy:PolicyGuardrail", "learned temporal policy head re-noises spans"),
        "self_reminder": Entry("dsprobe.guardrails.self_reminder:SelfReminder", "wrap the prompt in two reminders"),
        "diffuguard": Entry("dsprobe.guardrails.diffuguard:DiffuGuard", "annealed remasking, block audit and repair"),
        "eos_stop": Entry("dsprobe.guardrails.eos_stop:EosStop", "stop where end-of-text is probable at once (A2D)"),
    },
)

__all__ = ["GUARDRAILS", "ForkableGuardrail", "Guardrail", "Setting"]
