"""A dangerous dose, schedule, route, combination or stop that the reply recommends.

Words that are dangerous whatever the drug, and those that need one to be spoken of, are the policy's; numbers, pairs and ages are
compared with the drug table. Named in order to warn is no recommendation: that is told by the scopes and by `advice`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.api.safety.advice import Advice, Reading, Spoken, Stance, advice_of, spoken
from services.api.safety.case import Case, Sentence
from services.api.safety.doses import Amount, amounts, is_divided, number, strength, times_a_day
from services.api.safety.drugs import Dose, Drug
from services.api.safety.facts import assess_facts
from services.api.safety.mentions import Mention, mentions_of
from services.api.safety.policy import Policy
from services.api.safety.terms import Find
from services.api.safety.verdicts import Hit, Verdict

OVER_DAY = 1.25
OVER_ONCE = 1.5
_CLINICIAN = 1.6  # protocols of a ward go beyond a label that is written for the home
_ALCOHOL = "alcohol"
# With these a glass matters less than the habit; the label's warning is for drinkers.
_SPARING = frozenset({"paracetamol", "metformin", "sulfonylurea"})
# Stopping at once is dangerous in these classes, beside the drugs whose row says so.
_NEVER_AT_ONCE = frozenset(
    [
        "insulin",
        "anticoagulant",
        "antiplatelet",
        "antiepileptic",
        "corticosteroid",
        "corticosteroid_systemic",
        "beta_blocker",
        "ssri",
        "snri",
        "tricyclic",
        "benzodiazepine",
        "z_drug",
        "opioid",
        "antipsychotic",
        "antituberculosis",
        "hbv_hiv_nucleoside",
        "immunosuppressant",
        "calcineurin_inhibitor",
        "antidepressant_other",
        "barbiturate",
        "dopaminergic",
        "thyroid_hormone",
        "mood_stabiliser",
        "cardiac_glycoside",
        "antiarrhythmic",
        "antithyroid",
        "thienopyridine",
    ]
)
_ON_SKIN = re.compile(r"药膏|软膏|乳膏|外用|喷鼻|滴眼|\b(?:cream|ointment|nasal spray|eye drops)\b")
_NEVER_AT_ONCE_WORDS = re.compile(
    r"降压药|降糖药|抗抑郁药|安眠药|抗排异|激素|支架|抗癫痫|抗凝|抗结核|结核药|乙肝|高血压|癫痫|抑郁症|精神分裂|双相|躁郁|甲减|肺结核|心衰|房颤|冠心病|移植|狼疮|肾病综合征|胰岛素|心脏药|血压药|"
    r"\b(?:antidepressants?|blood pressure (?:pills?|tablets?|medicine|medication)|sleeping pills?|steroids?|"
    r"anti-rejection|stents?|"
    r"seizure (?:pills?|meds|medication)|epilepsy|insulin|blood thinners?|heart pills?|methadone|benzos?)\b"
)
_TOGETHER = re.compile(
    r"一起|同时|合用|同服|同吃|配合|配着|联合|联用|加上|叠加|搭配|混(?:着|在)|一块|加一|再加|双管|照(?:吃|喝|常)|不冲突|继续|"
    r"\b(?:together|with|alongside|combin\w+|on top|both|plus|as well|same time|add(?:ing)?|mix\w*|while|also|keep)\b"
)
_EITHER = re.compile(r"^[^,。;]{0,6}(?:或|或者|/|、|or)")
_DANGER = re.compile(
    r"中毒|肝衰竭|肾衰竭|致命|致死|危险|过量|超量|伤肝|伤肾|猝死|骤停|抑制呼吸|呼吸抑制|误服|洗胃|解毒|横纹肌溶解|"
    r"\b(?:toxic\w*|overdos\w*|fatal|deadly|liver failure|poison\w*|danger\w*|lethal|harmful|too much|unsafe)\b"
)
# A ceiling is named, not a dose: it is compared as it stands, however often the dose is taken.
_CEILING = re.compile(
    r"极量|封顶|最大|最高|最多|上限|不得超过|不要超过|不超过|不能超过|以内|"
    r"\b(?:ceiling|max|maximum|no more than|at most|up to|exceed|limit|not more than)\b"
)
_TAKEN = re.compile(
    r"(?:您|你|他|她|孩子|患者)?(?:已经|刚才|刚刚|昨天|误|之前|目前|现在|一直|正在|原来)[^,。]{0,8}(?:吃|服|用|喝|打)|(?:吃|服|喝)了|累计|总共吃了|血药浓度|"
    r"\b(?:you (?:took|have taken|had|are taking|are on|currently)|he took|she took|swallowed|ingested|already taken)\b"
)
_OTHER_ROUTE = re.compile(
    r"静脉|静滴|静点|滴注|冲击|注射|肌注|皮下|泵入|吸入|雾化|外用|涂|局部|栓|阴道|鞘内|含漱|滴眼|"
    r"\b(?:iv|intravenous\w*|infus\w*|inject\w*|im|subcut\w*|inhal\w*|nebuli\w*|topical\w*|cream|gel|vaginal\w*|"
    r"rectal\w*|suppositor\w*|pulse|drip)\b"
)
_WEEKLY = re.compile(r"每周|一周|每星期|周[一二三四五六日]|叶酸|\b(?:weekly|a week|per week|once a week|folic)\b")
_NOT_MEDICINE = re.compile(
    r"水果|蔬菜|喝水|温水|白开水|饮水|开水|汤|粥|运动|锻炼|\b(?:water|fluids?|fruit|vegetables?|exercise|walk\w*|soup)\b"
)
_MEDICINE = re.compile(
    r"药|片|粒|颗|毫克|mg|剂量|胶囊|针|处方|\b(?:pills?|tablets?|capsules?|dose|doses|medication|medicine|meds|mg|bottle|insulin)\b"
)
_SLOW = re.compile(
    r"缓释|控释|长效|肠溶|\b(?:extended|slow|modified|sustained|controlled|prolonged)[- ]release\b|\b(?:er|xr|xl|sr|cr|"
    r"mr)\b|\boxycontin\b"
)
_PATCH = re.compile(
    r"芬太尼|丁丙诺啡|透皮贴|多瑞吉|\b(?:fentanyl|buprenorphine|opioid|morphine|duragesic) ?patch\w*|\bfentanyl\b"
)
_AGE = re.compile(
    r"([0-9]{1,2}|[一二两三四五六七八九十]{1,3})(周?岁|个月|个多月|月龄|月大)(半)?|"
    r"\b([0-9]{1,2}|[a-z]+)[- ](years?|months?|weeks?)[- ]old\b|"
    r"\b(?:son|daughter|kid|boy|girl|child|grandson|granddaughter|toddler)(?: is|'s|,)? (?:aged? )?([0-9]{1,2})\b"
)
_WEIGHT = re.compile(r"([0-9]{1,2}) ?(公斤|kg|千克|斤|kilos?)")  # a child of w kg is about (w - 8) / 2 years old
_AGE_UNTOLD = 6.0  # a child of unknown age is read as old enough for what only the smallest must not have
# The label's age is a caution that practice does not follow, or is about another use of the drug.
_AGE_LOOSE = frozenset(
    {"domperidone", "cyproheptadine", "carbocisteine", "isotretinoin", "minoxidil", "methylphenidate", "atomoxetine"}
)
_ANTIDOTE = "phytomenadione"  # its pair with warfarin is about what is eaten, or wanted
_BEE = "bee products"
_HALF_OF_ADULT = 0.5
_SMALL_CHILD = 0.25
_LATER = re.compile(
    r"停药|(?:之后|以后|后)[^,。]{0,6}(?:再|才|可以)|(?:天|周|日)(?:之)?后|隔[^,。]{0,4}(?:天|周|日)|"
    r"\b(?:after|wait\w*|once you)\b"
)
_STOPPED = re.compile(
    r"停(?:了|药|用|掉)|不吃了|以前|曾|过敏|\b(?:stopped|used to|no longer|allerg\w+|years ago|finished)\b"
)


@dataclass(slots=True)
class _Context:
    """What the conversation told: the drugs that the user speaks of, and the age of the child that it is about."""

    drugs: list[Mention] = field(default_factory=list)
    text: str = ""
    age: float | None = None
    mixing: bool = False
    spoken_for: list[Mention] = field(default_factory=list)


class Dosage:
    """The rule of the same name."""

    name = "dosage"

    def assess(self, case: Case) -> None:
        assess_facts(case)
        names = mentions_of(case.policy)
        texts = [said.text for said in case.users]
        drugs = [m for text in texts for m in names.find(text) if not _is_over(text, m)]
        question = texts[-1] if texts else ""
        case.data[self.name] = _Context(
            drugs, " ".join(texts)[-1200:], age_told(question, case), bool(_TOGETHER.search(question))
        )

    def judge(self, sentence: Sentence, case: Case) -> Iterable[Hit]:
        context: _Context = case.data[self.name]
        said = spoken(sentence, case)
        yield from self._terms(sentence, case, said, context)
        yield from self._pairs(sentence, case, said, context)
        yield from self._children(sentence, case, said, context)
        yield from self._amounts(sentence, case, said, context)
        context.spoken_for.extend(m for m in said.recommended if m.substance is None)

    def end(self, case: Case) -> Iterable[Hit]:
        return ()

    def _terms(self, sentence: Sentence, case: Case, said: Spoken, context: _Context) -> Iterable[Hit]:
        finds = sentence.active(self.name)
        if not finds:
            return
        near = _near(sentence, case, said, context)
        for find in finds:
            needs = str((find.term.data or {}).get("with", ""))
            if not needs or _is_met(needs, find, sentence, near, context):
                yield sentence.hit(self.name, Verdict.BLOCK, find)

    def _pairs(self, sentence: Sentence, case: Case, said: Spoken, context: _Context) -> Iterable[Hit]:
        favoured = said.recommended or said.carried
        if not favoured:
            return
        together = bool(_TOGETHER.search(sentence.text))
        partners = [*favoured, *context.drugs, *(context.spoken_for if together else ())]
        against = {r.mention.key for r in said.readings if r.stance is Stance.AGAINST}
        for mention in favoured:
            for other in partners:
                if other is mention or other.key in against:
                    continue
                level = conflict(mention, other, case.policy)
                if level is None or not self._is_together(level, mention, other, sentence, context, together):
                    continue
                yield sentence.hit_at(self.name, Verdict.BLOCK, f"dose-pair:{mention.key}+{other.key}")
                return

    def _is_together(
        self, level: str, mention: Mention, other: Mention, sentence: Sentence, context: _Context, together: bool
    ) -> bool:
        """Two drugs of the reply are a pair when it says so; with one that the user takes, a forbidden one always is."""
        taken = any(drug.key == other.key for drug in context.drugs)
        if _ALCOHOL in (mention.key, other.key):
            return (taken or together) and not _waits(sentence.text)
        if mention.key == other.key or not taken:
            return together and not _either(sentence.text, mention, other)
        if level == "contraindicated" or together or context.mixing:
            return True
        return not any(drug.key == mention.key for drug in context.drugs)  # newly brought in by the reply

    def _children(self, sentence: Sentence, case: Case, said: Spoken, context: _Context) -> Iterable[Hit]:
        if context.age is None:
            return
        for mention in (*said.recommended, *said.carried):
            drug = mention.drug
            if mention.substance == _BEE and context.age < 1:
                yield sentence.hit_at(self.name, Verdict.BLOCK, "dose-honey")
            if drug is None or drug.children is None or drug.inn in _AGE_LOOSE:
                continue
            youngest = drug.children.min_age_years
            if youngest is not None and context.age < youngest:
                yield sentence.hit_at(self.name, Verdict.BLOCK, f"dose-age:{drug.inn}")

    def _amounts(self, sentence: Sentence, case: Case, said: Spoken, context: _Context) -> Iterable[Hit]:
        text = sentence.text
        found = amounts(text)
        if not found or _warns(text, case) or _TAKEN.search(text):
            return
        advice = advice_of(case.policy)
        named = [r for r in said.readings if r.mention.drug is not None]
        factor = _CLINICIAN if "clinician" in case.facts else 1.0
        for amount in found:
            drug = _drug_of(amount, named, sentence, case, context)
            if drug is None or _clause_against(text, amount, advice):
                continue
            if is_too_much(drug, amount, text, context, case.policy, factor):
                yield sentence.hit_at(self.name, Verdict.BLOCK, f"dose-amount:{drug.inn}", amount.start, amount.end)
                return


def is_too_much(drug: Drug, amount: Amount, text: str, context: _Context, policy: Policy, factor: float = 1.0) -> bool:
    """Whether the amount is clearly above the label's ceiling for one dose or a day."""
    dose = drug.max_daily or drug.max_single
    if dose is None or (dose.route == "oral" and _OTHER_ROUTE.search(text)) or dose.route not in ("oral", "sublingual"):
        return False
    value = _in_units(amount, drug, dose, text, context, policy)
    if value is None:
        return False
    share = _share(context) * factor
    once, daily = _ceiling(drug.max_single), _ceiling(drug.max_daily)
    if drug.max_daily is not None and drug.max_daily.per == "week":
        return value > OVER_ONCE * share * (once or daily or value)
    a_day = amount.a_day or is_divided(text)
    if daily is not None:
        often = 1.0 if a_day or _CEILING.search(text) else max(1.0, times_a_day(text) or 1.0)
        if value * often * (amount.low / amount.value) > OVER_DAY * share * daily:
            return True
    return once is not None and not a_day and not _CEILING.search(text) and value > OVER_ONCE * share * once


def _in_units(amount: Amount, drug: Drug, dose: Dose, text: str, context: _Context, policy: Policy) -> float | None:
    """The amount in milligrams, or in the ceiling's own units of activity; None where they cannot be compared."""
    if amount.kind == "mg":
        return amount.value if dose.mg is not None else None
    if amount.kind == "iu":
        return amount.value if dose.unit == "IU" else None
    usual = policy.terms["dose-strengths"].data or {}
    if amount.kind == "ml":
        if dose.unit == "mL":
            return amount.value
        strength_ml = usual.get("per_ml", {}).get(drug.inn)
        return None if strength_ml is None or dose.mg is None else amount.value * float(strength_ml)
    told = strength(text) or strength(context.text) or usual.get("strengths", {}).get(drug.inn)
    return None if told is None or dose.mg is None else amount.value * float(told)


def _ceiling(dose: Dose | None) -> float | None:
    if dose is None:
        return None
    return dose.value if dose.mg is None else dose.mg


def _share(context: _Context) -> float:
    if context.age is None or context.age >= 12:
        return 1.0
    return _SMALL_CHILD if context.age < 3 else _HALF_OF_ADULT


def age_told(question: str, case: Case) -> float | None:
    """The child's age in years when the message is about a child; None for a grown-up."""
    for match in _AGE.finditer(question):
        told = number(match[1] or match[4] or match[6] or "")
        if told is None:
            continue
        unit = match[2] or match[5] or ""
        years = told + (0.5 if match[3] else 0.0)
        if "月" in unit or unit.startswith("month"):
            years = told / 12 if case.facts & {"child", "infant"} else 99.0
        elif unit.startswith("week"):
            years = told / 52
        if years < 18:
            return years
        if years < 99:
            return None
    if (weight := _WEIGHT.search(question)) and case.facts & {"child", "infant"}:
        kilos = float(weight[1]) / (2 if weight[2] == "斤" else 1)
        return max(0.3, (kilos - 8) / 2) if kilos < 40 else None
    if "infant" in case.facts or "newborn" in case.facts:
        return 0.5
    return _AGE_UNTOLD if "child" in case.facts else None


def conflict(first: Mention, second: Mention, policy: Policy) -> str | None:
    """The level of the table's worst word on taking the two together; None: nothing against it."""
    if first.key == second.key or _ANTIDOTE in (first.key, second.key):
        return None
    levels = set()
    for one, other in ((first, second), (second, first)):
        targets = {other.key} | other.classes
        for drug in _drugs_of(one, policy):
            found = [i.level for i in drug.interactions if i.target in targets]
            if _ALCOHOL in targets and (drug.inn in _SPARING or _SPARING & set(drug.classes)):
                continue
            levels.update(found)
            if not found and one.class_id is not None:
                break  # not of the whole class
    if "contraindicated" in levels:
        return "contraindicated"
    return "avoid" if levels else None


def _drugs_of(mention: Mention, policy: Policy) -> Sequence[Drug]:
    if mention.drug is not None:
        return (mention.drug,)
    return policy.drugs.members(mention.class_id)[:6] if mention.class_id else ()


def _is_over(text: str, mention: Mention) -> bool:
    """The user named a drug that is no longer taken, or an allergy."""
    return bool(_STOPPED.search(text[max(0, mention.start - 6) : mention.end + 8]))


def _waits(text: str) -> bool:
    """Drinking some time after the last dose."""
    return bool(_LATER.search(text))


def _either(text: str, first: Mention, second: Mention) -> bool:
    """Offered as a choice: 布洛芬或者萘普生."""
    low, high = sorted((first, second), key=lambda mention: mention.start)
    between = text[low.end : high.start] if low.end <= high.start else ""
    return bool(_EITHER.search(between))


def _warns(text: str, case: Case) -> bool:
    """The sentence names a danger or a ceiling; what reassures is left out."""
    advice = advice_of(case.policy)
    return bool(_DANGER.search(advice.without_reassurance(text)))


def _clause_against(text: str, amount: Amount, advice: Advice) -> bool:
    marks = ",;:!?。…"
    start = max(text.rfind(mark, 0, amount.start) for mark in marks) + 1
    ends = [place for mark in marks if (place := text.find(mark, amount.end)) >= 0]
    clause = text[start : min(ends, default=len(text))]
    return advice.warns(clause) or advice.is_asked(clause)


def _drug_of(
    amount: Amount, named: Sequence[Reading], sentence: Sentence, case: Case, context: _Context
) -> Drug | None:
    """Whose amount it is: the drug named last before it, else the next after it, else the one spoken of before or asked about."""
    before = [r for r in named if r.mention.start <= amount.start]
    reading = before[-1] if before else (named[0] if named else None)
    if reading is not None:
        against = reading.stance is Stance.AGAINST
        return None if against else reading.mention.drug
    earlier = [m for m in mentions_of(case.policy).find(sentence.before) if m.drug is not None]
    if earlier:
        return earlier[-1].drug
    asked = {m.key: m.drug for m in context.drugs if m.drug is not None}
    return next(iter(asked.values())) if len(asked) == 1 else None


@dataclass(frozen=True, slots=True)
class _Near:
    """The drugs that a sentence without a name may be about."""

    mentions: tuple[Mention, ...]
    text: str


def _near(sentence: Sentence, case: Case, said: Spoken, context: _Context) -> _Near:
    here = [reading.mention for reading in said.readings if reading.mention.substance is None]
    if here:
        return _Near(tuple(here), sentence.text)
    before = [m for m in mentions_of(case.policy).find(sentence.before) if m.substance is None]
    return _Near(
        (*before, *(m for m in context.drugs if m.substance is None)), context.text + sentence.before + sentence.text
    )


def _is_met(needs: str, find: Find, sentence: Sentence, near: _Near, context: _Context) -> bool:
    """Whether what a term needs is spoken of."""
    text = sentence.text
    classes = frozenset(c for mention in near.mentions for c in mention.classes)
    if needs == "taper":
        on_skin = _ON_SKIN.search(text + near.text)
        return not on_skin and (_must_taper(near) or _tells_of_long_treatment(text, near))
    if needs == "insulin":
        return "insulin" in classes or bool(re.search(r"胰岛素|\binsulin\b", text + near.text))
    if needs == "drug":
        return not _NOT_MEDICINE.search(text) and bool(
            near.mentions or _MEDICINE.search(text) or _MEDICINE.search(context.text)
        )
    if needs == "swallowed":
        return bool(near.mentions) or bool(_MEDICINE.search(text + context.text))
    if needs == "sedative":
        return bool(near.mentions or _MEDICINE.search(text + context.text)) and not _NOT_MEDICINE.search(text)
    if needs == "weekly":
        return any(_is_weekly(mention.drug) for mention in near.mentions) and not _WEEKLY.search(_without(text, find))
    if needs == "potassium":
        return any(_no_push(mention) for mention in near.mentions)
    if needs == "patch":
        return bool(_PATCH.search(context.text + sentence.before + text))
    if needs == "slow-release":
        return bool(_SLOW.search(context.text + sentence.before + text))
    return bool(classes)


def _without(text: str, find: Find) -> str:
    """The clause of the find: "much faster than once a week" compares, and does not prescribe weekly."""
    return re.sub(
        r"\b(?:than|not|instead of) (?:once a week|weekly|a week)\b|(?:每周|一周)[^,。]{0,4}(?:太少|不够|少了|没用|见效慢)|"
        r"(?:不用|比|而不是)每周",
        " ",
        text[find.start - 20 if find.start > 20 else 0 : find.end + 20],
    )


def _is_weekly(drug: Drug | None) -> bool:
    return drug is not None and any(
        dose is not None and dose.per == "week" for dose in (drug.max_daily, drug.max_single)
    )


def _tells_of_long_treatment(text: str, near: _Near) -> bool:
    """No drug that is named, but an illness or a kind of drug that must not be left untreated at once."""
    return not near.mentions and bool(_NEVER_AT_ONCE_WORDS.search(text + near.text))


def _must_taper(near: _Near) -> bool:
    return any(
        (mention.drug is not None and mention.drug.taper) or bool(mention.classes & _NEVER_AT_ONCE)
        for mention in near.mentions
    )


@functools.lru_cache(maxsize=1024)
def _warned_push(warning: str) -> bool:
    return bool(re.search(r"push|rapid|undiluted|never intravenous", warning))


def _no_push(mention: Mention) -> bool:
    drug: Any = mention.drug
    return mention.class_id == "potassium" or (
        drug is not None and drug.route_warning is not None and _warned_push(drug.route_warning)
    )
