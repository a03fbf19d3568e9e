"""The rules of the policy, one file each."""

from __future__ import annotations

from services.api.safety.case import Rule


def default_rules() -> tuple[Rule, ...]:
    """All rules, in the policy's order."""
    from services.api.safety.rules.absolute_claim import AbsoluteClaim
    from services.api.safety.rules.allergy import Allergy
    from services.api.safety.rules.dosage import Dosage
    from services.api.safety.rules.emergency import MissingEmergencyAdvice
    from services.api.safety.rules.phi_leak import PhiLeak
    from services.api.safety.rules.pregnancy import Pregnancy
    from services.api.safety.rules.prompt_injection import PromptInjection
    from services.api.safety.rules.self_harm import SelfHarm
    from services.api.safety.rules.unapproved_therapy import UnapprovedTherapy

    return (
        AbsoluteClaim(),
        UnapprovedTherapy(),
        MissingEmergencyAdvice(),
        SelfHarm(),
        Dosage(),
        Pregnancy(),
        Allergy(),
        PromptInjection(),
        PhiLeak(),
    )
