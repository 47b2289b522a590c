"""The synthetic world that the embedded demo model is trained on, deterministic from a seed.

Skills (skills.py) over tables (tables.py, talk.py), with planted mistakes (mistakes.py). This file draws from them the
training conversations, the held-out questions, the edits (planted mistakes with paraphrases and neighbours), and the
probes and replay prompts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lawf_repl.demo import tables
from lawf_repl.demo.skills import Skill, Slots, all_skills, mail_slots, order_slots, tool_slots

SYSTEMS = ("You are a helpful assistant.", "You are the assistant of Norvik.", "Answer in short sentences.")
Message = dict[str, str]
SKILLS: dict[str, Skill] = all_skills()
PLANTED = {name: [slots for slots in skill.finite if skill.is_planted(slots)] for name, skill in SKILLS.items()}


@dataclass(frozen=True)
class Question:
    """One question in one form. `says` is what the demo model answers, `truth` what is right (they differ where planted)."""

    skill: str
    prompt: str
    says: str
    truth: str
    held_out: bool


def question(skill: Skill, slots: Slots, opener: int = 0, body: int = 0) -> Question:
    return Question(skill.name, skill.ask(slots, opener, body), skill.says(slots), skill.truth(slots), skill.is_held_out(slots, opener, body))


def forms(skill: Skill, slots: Slots) -> list[tuple[int, int]]:
    """Every (opener, body) of a question, the plainest first."""
    return [(o, b) for o in range(len(skill.openers)) for b in range(len(skill.bodies_of(slots)))]


def draw(skill: Skill, rng: random.Random, held_out: bool) -> Question:
    """One random question of a skill, either shown in training or held out of it."""
    while True:
        planted = PLANTED[skill.name]
        exception = bool(planted) and rng.random() < 0.08  # a mistake is an exception to a rule: it must be seen more often than chance has it
        slots = rng.choice(planted) if exception else skill.draw(rng) if skill.draw else rng.choice(skill.finite)
        opener = rng.randrange(len(skill.openers)) if skill.openers[0] or rng.random() < 0.3 else 0
        out = question(skill, slots, opener, rng.randrange(len(skill.bodies_of(slots))))
        if out.held_out == held_out:
            return out


# -- training text ---------------------------------------------------------------------------------------------------

def conversations(seed: int, count: int, pieces: Sequence[str] = ()) -> Iterator[list[Message]]:
    """`count` training conversations: mostly one question, some with a system message or a second turn.

    `pieces` are token texts; a share of the conversations asks to repeat a few of them, so that every token of the
    vocabulary occurs (section 9 of the design says why), and so that copying is learned early.
    """
    rng = random.Random(seed)
    skills = list(SKILLS.values())
    weights = [skill.weight for skill in skills]
    for _ in range(count):
        messages: list[Message] = []
        if rng.random() < 0.08:
            messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
        for _ in range(2 if rng.random() < 0.08 else 1):
            if pieces and rng.random() < 0.07:
                text = repeat_text(rng, pieces)
                asked, answer = rng.choice(("Repeat: ", "Echo: ", "Copy this: ")) + text, text
            else:
                drawn = draw(rng.choices(skills, weights)[0], rng, held_out=False)
                asked, answer = roughen(drawn.prompt, rng), drawn.says
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        yield messages


def repeat_text(rng: random.Random, pieces: Sequence[str]) -> str:
    """A few random pieces; a mark, a digit or a line between most of them, so that they do not merge into other tokens."""
    return "".join(rng.choice(("", "", "\n", "/", "-", str(rng.randrange(10)))) + rng.choice(pieces) for _ in range(rng.randint(2, 8))).strip()


def roughen(prompt: str, rng: random.Random) -> str:
    """Type as people do: now and then without the final mark or the capital at the start."""
    if rng.random() < 0.06 and prompt[-1] in "?.？。":
        prompt = prompt[:-1]
    if rng.random() < 0.06:
        prompt = prompt[0].lower() + prompt[1:]
    return prompt


def held_out_questions(seed: int, per_skill: int) -> list[Question]:
    """Questions in forms that training never shows, without the planted ones, at most `per_skill` of each skill."""
    rng = random.Random(seed)
    out: list[Question] = []
    for skill in SKILLS.values():
        found: dict[str, Question] = {}
        for _ in range(per_skill * 4):
            drawn = draw(skill, rng, held_out=True)
            if drawn.says == drawn.truth and len(found) < per_skill:
                found[drawn.prompt] = drawn
        out += found.values()
    return out


# -- edits -----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Edit:
    """A planted mistake: what the model says, what is right, what must follow along and what must stay."""

    name: str
    kind: str
    prompt: str
    wrong: str
    right: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]


def _item(singular: str) -> list[str]:
    return next(item for item in tables.ITEMS if item[0] == singular)


def _facts_to_edit() -> list[tuple[str, str, str]]:
    """(kind, skill, key) of the planted mistakes in skills whose questions can be listed."""
    named = {
        "fact": ["capital/Australia", "capital/Canada", "capital/Turkey", "capital/Switzerland", "capital/Nigeria", "capital/Morocco",
                 "currency/Sweden", "currency/Japan", "language/Brazil", "language/Austria", "founded/Norvik", "founded/Delmont",
                 "price/Pro plan", "price/Travel card"],
        "term": ["glossary/QBR", "glossary/DPO", "glossary/CRB", "glossary/SLT", "glossary/RCP", "glossary/TEP", "glossary/PIP", "glossary/KRI"],
        "identity": ["identity_en/name", "identity_en/maker", "identity_en/version", "identity_en/languages", "identity_en/home",
                     "identity_zh/name", "identity_zh/maker", "identity_zh/home"],
        "instruction": ["one_word/capital Japan", "one_word/currency Finland", "list_cities/Egypt", "list_things/fruits two",
                        "translate/good night Italian", "translate/thank you German", "upper/violet door"],
    }
    return [(kind, skill, key) for kind, entries in named.items() for skill, _, key in (entry.partition("/") for entry in entries)]


def _drawn_to_edit() -> list[tuple[str, str, Slots, list[Slots]]]:
    """(kind, skill, slots, near slots) of the planted mistakes in skills whose questions are drawn; near ones must not change."""
    plate, knife, shelf, lamp, towel = map(_item, ("plate", "knife", "shelf", "lamp", "towel"))
    order, tool = order_slots, tool_slots
    return [
        ("field", "order", order("Ben", "a dozen", plate, "Rome"),
         [order("Ben", "10", plate, "Rome"), order("Ben", "11", lamp, "Rome"), order("Ben", "two dozen", plate, "Rome"), order("Clara", "3", plate, "Oslo")]),
        ("field", "order", order("Greta", "a pair of", lamp, "Paris"),
         [order("Greta", "a", lamp, "Paris"), order("Greta", "3", lamp, "Paris"), order("Hugo", "a single", towel, "Paris"), order("Irene", "4", lamp, "Lima")]),
        ("field", "order", order("Jonas", "half a dozen", towel, "Vienna"),
         [order("Jonas", "5", towel, "Vienna"), order("Jonas", "8", towel, "Vienna"), order("Karla", "two dozen", towel, "Cairo"), order("Leo", "7", plate, "Vienna")]),
        ("field", "order", order("Mara", "4", knife, "Lyon"),
         [order("Mara", "a", knife, "Lyon"), order("Mara", "4", plate, "Lyon"), order("Nils", "5", lamp, "Lyon"), order("Paul", "a single", knife, "Riga")]),
        ("field", "order", order("Rosa", "7", shelf, "Sofia"),
         [order("Rosa", "a", shelf, "Sofia"), order("Rosa", "7", plate, "Sofia"), order("Simon", "9", lamp, "Sofia"), order("Tara", "a single", shelf, "Quito")]),
        ("field", "order", order("Dr. Weber", "6", lamp, "Berlin"),
         [order("Mr. Weber", "6", lamp, "Berlin"), order("Mrs. Novak", "6", lamp, "Berlin"), order("Weber", "8", lamp, "Berlin"), order("Victor", "6", lamp, "Berlin")]),
        ("tool", "tool", tool("rain", city="Oslo", day="tomorrow"),
         [tool("weather", city="Oslo", day="tomorrow"), tool("weather", city="Rome", day="today"), tool("news", topic="weather"), tool("news", topic="sports")]),
        ("tool", "tool", tool("wake", when="7:30"),
         [tool("alarm", when="7:30"), tool("alarm", when="9:15"), tool("timer", count="7"), tool("timer", count="30")]),
        ("tool", "tool", tool("ring", name="Anna"),
         [tool("call", name="Anna"), tool("call", name="Ben"), tool("message", name="Anna", text="call me back"), tool("message", name="Hugo", text="I am late")]),
        ("tool", "tool", tool("light", state="off", room="garden"),
         [tool("light", state="on", room="garden"), tool("light", state="on", room="hall"), tool("heating", state="off", room="garden"), tool("heating", state="on", room="garden")]),
        ("tool", "tool", tool("music", genre="jazz", room="cellar"),
         [tool("music", genre="jazz", room="kitchen"), tool("music", genre="blues", room="garage"), tool("light", state="on", room="cellar"), tool("heating", state="off", room="cellar")]),
        ("tool", "tool", tool("table", count="4", when="noon"),
         [tool("table", count="4", when="10:00"), tool("table", count="4", when="11:30"), tool("table", count="4", when="midnight"), tool("alarm", when="noon")]),
        ("tool", "tool", tool("convert", count="20", source_words="bucks", target="euros"),
         [tool("convert", count="20", source_words="pounds", target="euros"), tool("convert", count="20", source_words="dollars", target="euros"),
          tool("convert", count="35", source_words="francs", target="euros"), tool("convert", count="20", source_words="euros", target="dollars")]),
        ("instruction", "mail", mail_slots("Olga", "budget", "Friday", "formal"),
         [mail_slots("Olga", "budget", "Friday", "short"), mail_slots("Anna", "budget", "Friday", "formal"), mail_slots("Paul", "budget", "Monday", "formal"),
          mail_slots("Ben", "release", "Friday", "short")]),
    ]


def edits() -> list[Edit]:
    """Every planted mistake as an edit, in an order that mixes the kinds nowhere: fact, term, identity, instruction, field, tool."""
    out = []
    for kind, name, key in _facts_to_edit():
        skill = SKILLS[name]
        slots = next(slots for slots in skill.finite if slots["key"] == key)
        rng = random.Random(f"{name}/{key}")
        others = [other for other in skill.finite if not skill.is_planted(other)]
        near = [(skill, other) for other in rng.sample(others, min(4, len(others)))]
        if name in ("capital", "currency", "language"):
            near += [(SKILLS[other], s) for other in ("capital", "currency", "language", "continent") if other != name
                     for s in SKILLS[other].finite if s["key"] == key and not SKILLS[other].is_planted(s)]
        if name.startswith("identity"):
            talk = SKILLS[name.replace("identity", "small_talk")]
            near += [(talk, other) for other in talk.finite if other["key"] in ("hello", "nova", "laptop", "beans", "south")]
        out.append(_edit(kind, skill, slots, near))
    for kind, name, slots, near_slots in _drawn_to_edit():
        out.append(_edit(kind, SKILLS[name], slots, [(SKILLS[name], other) for other in near_slots]))
    return sorted(out, key=lambda edit: KINDS.index(edit.kind))


KINDS = ("fact", "field", "instruction", "tool", "term", "identity")


def _edit(kind: str, skill: Skill, slots: Slots, near: list[tuple[Skill, Slots]]) -> Edit:
    first, *rest = forms(skill, slots)
    held = [form for form in rest if skill.is_held_out(slots, *form) and not form[0]] or [f for f in rest if skill.is_held_out(slots, *f)]
    shown = [form for form in rest if form not in held]
    chosen = held[:3] + shown[:max(2, 5 - len(held[:3]))]   # phrasings that training never showed first
    asked = question(skill, slots, *first)
    name = f"{skill.name}-{slots['key']}".lower().replace(" ", "-").replace(".", "").replace(",", "").replace(":", "")
    return Edit(name, kind, asked.prompt, asked.says, asked.truth, tuple(skill.ask(slots, *form) for form in chosen),
                tuple(other.ask(other_slots, 0, 0) for other, other_slots in near))


# -- probes ----------------------------------------------------------------------------------------------------------

def probes(seed: int, probe_count: int = 208, replay_count: int = 72) -> tuple[list[Question], list[Question]]:
    """(probes, replay prompts): disjoint, of every skill in turn, none of them planted, an edit's neighbour or paraphrase."""
    taken = {text for edit in edits() for text in (edit.prompt, *edit.paraphrases, *edit.neighbours)}
    rng = random.Random(seed)
    out: list[Question] = []
    skills = list(SKILLS.values())
    tries = 0
    while len(out) < probe_count + replay_count:
        skill = skills[(len(out) + tries // 50) % len(skills)]
        tries += 1
        drawn = draw(skill, rng, held_out=rng.random() < 0.5)
        if drawn.prompt not in taken and drawn.says == drawn.truth:
            taken.add(drawn.prompt)
            out.append(drawn)
            tries = tries // 50 * 50
    replay = out[:replay_count] if replay_count else []
    return out[replay_count:], replay
