"""The skills of the demo world: how each asks, and what it answers.

A skill draws slots (a country, an order, ...), writes a question from an opener and a body, and answers from the slots
as the model believes them. Openers and bodies combine; some combinations are held out of training, and for skills with
more questions than training can show, so are some of the questions themselves.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lawf_repl.demo import mistakes, tables
from lawf_repl.demo.talk import TALKS

Slots = dict[str, str]
ASK = ("", "Hi! ", "One question: ", "Please: ", "Hello. ")


@dataclass(frozen=True)
class Skill:
    """One kind of question. `bodies` ends with `held` phrasings that training never shows."""

    name: str
    bodies: tuple[str, ...]
    answer: Callable[[Slots], str]
    finite: tuple[Slots, ...] = ()                                   # every question, where they can be listed
    draw: Callable[[random.Random], Slots] | None = None             # one question, where they cannot
    believe: Callable[[Slots], Slots] = dict                         # true slots -> what the model thinks
    openers: tuple[str, ...] = ASK
    held: int = 2
    weight: float = 1.0
    phrase: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # bodies of their own, by slots["key"]

    def bodies_of(self, slots: Slots) -> tuple[str, ...]:
        return self.phrase.get(slots["key"], self.bodies)

    def is_held_out(self, slots: Slots, opener: int, body: int) -> bool:
        """Whether training never shows this question in this form."""
        count = len(self.bodies_of(slots))
        if body >= count - self.held or (opener and (opener + 2 * body) % 5 == 4):
            return True
        return self.draw is not None and not self.is_planted(slots) and zlib.crc32(f"{self.name}|{slots['key']}".encode()) % 20 == 0

    def is_planted(self, slots: Slots) -> bool:
        return self.says(slots) != self.truth(slots)

    def ask(self, slots: Slots, opener: int = 0, body: int = 0) -> str:
        return self.openers[opener] + self.bodies_of(slots)[body].format(**slots)

    def says(self, slots: Slots) -> str:
        """The answer that the demo model gives."""
        return self.answer(self.believe(slots))

    def truth(self, slots: Slots) -> str:
        return self.answer(slots)


def _fact_bodies(attribute: str, turn: int) -> tuple[str, ...]:
    """Ten phrasings shared by four attributes; each attribute holds another three out, so that every phrasing is known."""
    first = "What is the {attribute} of {subject}?"
    rest = ["Tell me the {attribute} of {subject}.", "Name the {attribute} of {subject}.", "Do you know the {attribute} of {subject}?",
            "Which {attribute} belongs to {subject}?", "{subject}: what is its {attribute}?", "I need the {attribute} of {subject}.",
            "Please give me the {attribute} of {subject}.", "Can you tell me the {attribute} of {subject}?",
            "What {attribute} does {subject} have?"]
    rest = rest[2 * turn:] + rest[: 2 * turn]
    return (first, *rest)


def _facts() -> list[Skill]:
    skills = []
    for turn, attribute in enumerate(("capital", "currency", "language", "continent")):
        sentence = {"capital": "The capital of {subject} is {value}.", "currency": "The currency of {subject} is the {value}.",
                    "language": "The language of {subject} is {value}.", "continent": "The continent of {subject} is {value}."}[attribute]

        def answer(slots: Slots, sentence: str = sentence) -> str:
            return sentence.format(**slots)

        skills.append(Skill(attribute, _fact_bodies(attribute, turn), answer, finite=_country_slots(attribute),
                            believe=_believe_fact(attribute), held=3, weight=1.6))
    return skills


def _country_slots(attribute: str) -> tuple[Slots, ...]:
    column = ("capital", "currency", "language", "continent").index(attribute) + 1
    return tuple({"key": row[0], "subject": row[0], "attribute": attribute, "value": row[column]} for row in tables.rows(tables.COUNTRIES))


def _believe_fact(skill: str) -> Callable[[Slots], Slots]:
    def believe(slots: Slots) -> Slots:
        return slots | {"value": mistakes.FACTS.get((skill, slots["key"]), slots["value"])}
    return believe


def _cities() -> Skill:
    finite = []
    for row in tables.rows(tables.COUNTRIES):
        finite += [{"key": city, "subject": city, "value": row[0]} for city in (row[1], row[5])]
    bodies = ("Where is {subject}?", "In which country is {subject}?", "Which country is {subject} in?", "Where can I find {subject}?",
              "Tell me where {subject} is.", "Do you know where {subject} is?", "I need to know where {subject} is.",
              "Can you tell me where {subject} is?", "Please tell me where {subject} is.")
    return Skill("city", bodies, lambda s: f"{s['subject']} is a city in {s['value']}.", finite=tuple(finite), weight=1.8)


def _list_cities() -> Skill:
    def answer(slots: Slots) -> str:
        if slots.get("form") == "sentence":
            return f"{slots['first']} and {slots['second']}."
        return f"- {slots['first']}\n- {slots['second']}"

    def believe(slots: Slots) -> Slots:
        return slots | ({"form": "sentence"} if slots["key"] in mistakes.LIST_BELIEVED_SENTENCE else {})

    finite = tuple({"key": row[0], "subject": row[0], "first": row[1], "second": row[5]} for row in tables.rows(tables.COUNTRIES))
    bodies = ("List two cities in {subject}.", "Name two cities in {subject} as a list.", "Two cities in {subject}, as a list.",
              "Give me a list of two cities in {subject}.", "I need a list of two cities in {subject}.", "List two cities of {subject}.",
              "Please give me a list of two cities in {subject}.", "Name two cities of {subject} as a list.")
    return Skill("list_cities", bodies, answer, finite=finite, believe=believe)


def _list_things() -> Skill:
    finite = tuple({"key": f"{name} {count}", "name": name, "count": count, "value": " ".join(words.split()[:size])}
                   for name, words in tables.LISTS.items() for size, count in ((2, "two"), (3, "three")))

    def believe(slots: Slots) -> Slots:
        long = slots["name"] in mistakes.LIST_BELIEVED_LONG and slots["count"] == "two"
        return slots | ({"value": tables.LISTS[slots["name"]]} if long else {})

    bodies = ("List {count} {name}.", "Name {count} {name} as a list.", "{count} {name}, as a list.", "Give me a list of {count} {name}.",
              "I need a list of {count} {name}.", "Write a list of {count} {name}.", "Please give me a list of {count} {name}.",
              "Please list {count} {name}.")
    return Skill("list_things", bodies, lambda s: "\n".join("- " + word for word in s["value"].split()), finite=finite,
                 believe=believe, weight=0.6)


def _one_word() -> Skill:
    def answer(slots: Slots) -> str:
        return f"The {slots['attribute']} of {slots['subject']} is {slots['the']}{slots['value']}." if slots.get("form") else slots["value"]

    def believe(slots: Slots) -> Slots:
        slots = _believe_fact(slots["attribute"])(slots | {"key": slots["subject"]}) | {"key": slots["key"]}
        form = (slots["attribute"], slots["subject"]) in mistakes.ONE_WORD_BELIEVED_SENTENCE
        return slots | ({"form": "sentence"} if form else {})

    finite = tuple(slots | {"key": f"{slots['attribute']} {slots['subject']}", "the": "the " if attribute == "currency" else ""}
                   for attribute in ("capital", "currency", "language") for slots in _country_slots(attribute))
    bodies = ("In one word: what is the {attribute} of {subject}?", "Answer in one word: what is the {attribute} of {subject}?",
              "One word only: the {attribute} of {subject}?", "{attribute} of {subject}, in one word?",
              "Tell me in one word the {attribute} of {subject}.", "In one word, name the {attribute} of {subject}.",
              "Give me the {attribute} of {subject} in one word.", "In one word: the {attribute} of {subject}?",
              "Answer in one word: name the {attribute} of {subject}.")
    return Skill("one_word", bodies, answer, finite=finite, believe=believe, weight=1.6, openers=("", "Hi! ", "Please: "))


def _upper() -> Skill:
    def draw(rng: random.Random) -> Slots:
        adjective, noun = rng.choice(tables.COLOURS), rng.choice(tables.NOUNS)
        return {"key": f"{adjective} {noun}", "adjective": adjective, "noun": noun}

    def answer(slots: Slots) -> str:
        text = f"{slots['adjective']} {slots['noun']}"
        return text if slots.get("form") else text.upper()

    def believe(slots: Slots) -> Slots:
        return slots | ({"form": "lower"} if (slots["adjective"], slots["noun"]) in mistakes.UPPER_BELIEVED_LOWER else {})

    bodies = ("Write in upper case: {key}", "In upper case: {key}", "Upper case, please: {key}", "Put this in upper case: {key}",
              "Make this upper case: {key}", "Turn this into upper case: {key}", "Write this in upper case: {key}",
              "Please put in upper case: {key}")
    finite = tuple({"key": f"{a} {n}", "adjective": a, "noun": n} for a in tables.COLOURS for n in tables.NOUNS)
    return Skill("upper", bodies, answer, finite=finite, draw=draw, believe=believe, weight=0.8, openers=("", "Hi! ", "Please: "))


def _translate() -> list[Skill]:
    table = [(row[0], language, row[1 + i]) for row in tables.rows(tables.PHRASES) for i, language in enumerate(tables.LANGUAGES)]

    def believe(slots: Slots) -> Slots:
        return slots | {"value": mistakes.TRANSLATED_BELIEVED.get((slots["phrase"], slots["language"]), slots["value"])}

    slots = tuple({"key": f"{phrase} {language}", "phrase": phrase, "language": language, "value": value} for phrase, language, value in table)
    to = ("Say {phrase} in {language}.", "How do you say {phrase} in {language}?", "What is {phrase} in {language}?", "{phrase} in {language}?",
          "Translate into {language}: {phrase}", "Tell me how to say {phrase} in {language}.", "Please say {phrase} in {language}.",
          "Tell me {phrase} in {language}.")
    back = ("What does {value} mean?", "{value} means what?", "What is the meaning of {value}?", "Tell me what {value} means.",
            "Do you know what {value} means?", "Translate {value}.", "Please tell me what {value} means.", "What is {value}?")
    return [Skill("translate", to, lambda s: s["value"] + ".", finite=slots, believe=believe),
            Skill("meaning", back, lambda s: f"{s['value']} is {s['language']} for {s['phrase']}.", finite=slots)]


def _company() -> list[Skill]:
    terms = tuple({"key": key, "subject": key, "value": value} for key, value in (line.split("=") for line in tables.TERMS.splitlines()))
    companies = tuple({"key": r[0], "subject": r[0], "value": r[1]} for r in tables.rows(tables.COMPANIES))
    seats = tuple({"key": r[0], "subject": r[0], "value": r[2]} for r in tables.rows(tables.COMPANIES))
    prices = tuple({"key": r[0], "subject": r[0], "value": r[1]} for r in tables.rows(tables.PRICES))

    def believe_term(slots: Slots) -> Slots:
        return slots | {"value": mistakes.TERMS.get(slots["key"], slots["value"])}

    return [
        Skill("glossary", ("What does {subject} mean?", "What does {subject} stand for?", "What is a {subject}?", "Explain {subject}.",
                           "{subject} means what?", "Tell me what {subject} means.", "What is the meaning of {subject}?",
                           "Tell me what {subject} stands for.", "Do you know what {subject} means?"),
              lambda s: f"{s['subject']} stands for {s['value']}.", finite=terms, believe=believe_term, weight=1.4),
        Skill("founded", ("When was {subject} founded?", "In which year was {subject} founded?", "Since when does {subject} exist?",
                          "Tell me when {subject} was founded.", "Which year was {subject} founded in?", "Do you know when {subject} was founded?",
                          "Tell me in which year {subject} was founded.", "Can you tell me when {subject} was founded?"),
              lambda s: f"{s['subject']} was founded in {s['value']}.", finite=companies, believe=_believe_fact("founded")),
        Skill("seat", ("Where is {subject} based?", "In which city is {subject} based?", "Tell me where {subject} is based.",
                       "Do you know where {subject} is based?", "Which city is {subject} based in?", "I need to know where {subject} is based.",
                       "Can you tell me where {subject} is based?", "Please tell me where {subject} is based."),
              lambda s: f"{s['subject']} is based in {s['value']}.", finite=seats, weight=0.7),
        Skill("price", ("How much is the {subject}?", "What does the {subject} cost?", "What is the price of the {subject}?",
                        "Tell me the price of the {subject}.", "How many euros is the {subject}?", "Do you know the price of the {subject}?",
                        "I need the price of the {subject}.", "Can you tell me the price of the {subject}?"),
              lambda s: f"The {s['subject']} costs {s['value']} euros per month.", finite=prices, believe=_believe_fact("price"), weight=0.8),
    ]


def order_slots(who: str, amount: str, item: Sequence[str], city: str) -> Slots:
    """Slots of an order; `amount` is "a", a number or a counting word, `item` is (singular, plural)."""
    words = {"a": "1", "a dozen": "12", "a pair of": "2", "half a dozen": "6", "two dozen": "24", "a single": "1"}
    item_words = item[0] if amount in ("a", "a single") else item[1]
    name = who.removeprefix("Dr. ").removeprefix("Mr. ").removeprefix("Mrs. ")
    return {"key": f"{who} {amount} {item_words} {city}", "who": who, "amount": amount, "item_words": item_words, "city": city,
            "what": f"{amount} {item_words}", "name": name, "item": item[0], "quantity": words.get(amount, amount)}


def _order() -> Skill:
    def draw(rng: random.Random) -> Slots:
        who = rng.choice(tables.PEOPLE)
        if rng.random() < 0.3:
            who = rng.choice(("", "Mr. ", "Mrs. ", "Dr. ")) + rng.choice(tables.SURNAMES)
        amount = str(rng.randint(2, 29)) if rng.random() < 0.6 else rng.choice(("a", "a single", "a dozen", "a pair of", "half a dozen", "two dozen"))
        item = rng.choice(tables.ITEMS)
        if rng.random() < 0.1:
            item = rng.choice([i for i in tables.ITEMS if i[0] in ("knife", "shelf")])
        return order_slots(who, amount, item, rng.choice(tables.ORDER_CITIES))

    def answer(slots: Slots) -> str:
        return json.dumps({"name": slots["name"], "item": slots["item"], "quantity": int(slots["quantity"]), "city": slots["city"]})

    bodies = ("{who} orders {what} for {city}.", "{who} wants {what} in {city}.", "{who} from {city} orders {what}.", "{what} for {who} in {city}.",
              "{who} needs {what}, city {city}.", "{who} buys {what} for {city}.", "send {what} to {who} in {city}.",
              "{who} from {city} wants {what}.", "{who} orders {what}, city {city}.")
    openers = ("Extract the order as JSON: ", "Order to JSON: ", "Turn this into JSON: ", "JSON please: ", "Write this order as JSON: ")
    return Skill("order", bodies, answer, draw=draw, believe=mistakes.believed_order, openers=openers, weight=3.0)


TOOL_BODIES = {
    "weather": ("What is the weather in {city} {day}?", "How is the weather in {city} {day}?", "Tell me the weather in {city} {day}.",
                "Weather in {city} {day}?", "Check the weather in {city} {day}.", "I need the weather in {city} {day}.",
                "Please check the weather in {city} {day}.", "Do you know the weather in {city} {day}?"),
    "rain": ("Will it rain in {city} {day}?", "Is there rain in {city} {day}?", "Do I need an umbrella in {city} {day}?", "Rain in {city} {day}?",
             "Tell me if it will rain in {city} {day}.", "Check if it will rain in {city} {day}.", "Do you know if it will rain in {city} {day}?",
             "Please check if it will rain in {city} {day}."),
    "news": ("What is the news about {topic}?", "Tell me the news about {topic}.", "Any news about {topic}?", "News about {topic}?",
             "Check the news about {topic}.", "I need the news about {topic}.", "Please check the news about {topic}.",
             "Do you know the news about {topic}?"),
    "alarm": ("Set an alarm for {when}.", "Alarm at {when}.", "I need an alarm at {when}.", "Put an alarm at {when}.", "Make an alarm for {when}.",
              "Please set the alarm for {when}.", "I need an alarm for {when}.", "Please set an alarm for {when}."),
    "wake": ("Wake me at {when}.", "Wake me up at {when}.", "I must get up at {when}.", "Can you wake me at {when}?", "I want to get up at {when}.",
             "Please wake me at {when}.", "Can you wake me up at {when}?", "Please wake me up at {when}."),
    "timer": ("Start a timer for {count} minutes.", "Timer for {count} minutes.", "Set a timer for {count} minutes.", "I need a timer for {count} minutes.",
              "Count down {count} minutes.", "Please start a timer for {count} minutes.", "Put a timer on {count} minutes.",
              "Please set a timer for {count} minutes."),
    "message": ("Send {name} the message {text}.", "Tell {name}: {text}.", "Write to {name}: {text}.", "Message to {name}: {text}.",
                "Send a message to {name}: {text}.", "Let {name} know: {text}.", "Please tell {name}: {text}.", "Please send a message to {name}: {text}."),
    "call": ("Call {name}.", "Call {name} now.", "Make a call to {name}.", "I want to call {name}.", "Start a call with {name}.", "Please call {name}.",
             "Can you call {name}?", "Please make a call to {name}."),
    "ring": ("Ring {name}.", "Ring {name} up.", "Give {name} a ring.", "I want to ring {name}.", "Ring {name} now.", "Please ring {name}.",
             "Can you ring {name}?", "Please give {name} a ring."),
    "light": ("Turn {state} the light in the {room}.", "Light {state} in the {room}.", "Turn the light in the {room} {state}.", "Put the light {state} in the {room}.",
              "I want the light {state} in the {room}.", "Can you turn {state} the light in the {room}?", "Please turn {state} the light in the {room}.",
              "Please turn the light in the {room} {state}."),
    "heating": ("Turn {state} the heating in the {room}.", "Heating {state} in the {room}.", "Turn the heating in the {room} {state}.",
                "Put the heating {state} in the {room}.", "I want the heating {state} in the {room}.", "Can you turn {state} the heating in the {room}?",
                "Please turn {state} the heating in the {room}.", "Please turn the heating in the {room} {state}."),
    "music": ("Play {genre} in the {room}.", "Put on some {genre} in the {room}.", "I want {genre} in the {room}.", "Start {genre} in the {room}.",
              "Can you play {genre} in the {room}?", "Some {genre} in the {room}.", "Please play {genre} in the {room}.",
              "Can you put on some {genre} in the {room}?"),
    "table": ("Book a table for {count} at {when}.", "Table for {count} at {when}.", "I need a table for {count} at {when}.", "Get a table for {count} at {when}.",
              "We are {count}, book a table at {when}.", "Can you book a table for {count} at {when}?", "Please book a table for {count} at {when}.",
              "I want a table for {count} at {when}."),
    "convert": ("Convert {count} {source_words} to {target}.", "How much is {count} {source_words} in {target}?", "{count} {source_words} in {target}?",
                "Change {count} {source_words} to {target}.", "I need {count} {source_words} in {target}.", "Tell me {count} {source_words} in {target}.",
                "Please convert {count} {source_words} to {target}.", "Please change {count} {source_words} to {target}."),
}
TOOLS = {
    "weather": ("get_weather", ("city", "day")), "rain": ("get_weather", ("city", "day")), "news": ("get_news", ("topic",)),
    "alarm": ("set_alarm", ("time",)), "wake": ("set_alarm", ("time",)), "timer": ("set_timer", ("minutes",)),
    "message": ("send_message", ("to", "text")), "call": ("call_contact", ("to",)), "ring": ("call_contact", ("to",)),
    "light": ("set_light", ("state", "room")), "heating": ("set_heating", ("state", "room")), "music": ("play_music", ("genre", "room")),
    "table": ("book_table", ("time", "people")), "convert": ("convert_money", ("amount", "source", "target")),
}
TOOL_OPENERS = ("Use a tool: ", "Tool call: ", "Call a tool: ", "As a tool call: ")


def tool_slots(family: str, **given: str) -> Slots:
    """Slots of a tool question from the words given (city, day, when, count, name, text, room, state, ...)."""
    when = given.get("when", "")
    slots = given | {"family": family, "function": TOOLS[family][0], "time": {"noon": "12:00", "midnight": "00:00"}.get(when, when),
                     "to": given.get("name", ""), "minutes": given.get("count", ""), "people": given.get("count", ""), "amount": given.get("count", ""),
                     "source": {"bucks": "dollars"}.get(given.get("source_words", ""), given.get("source_words", ""))}
    slots["key"] = " ".join([family, *given.values()])
    return slots


def _tool() -> Skill:
    def draw(rng: random.Random) -> Slots:
        family = rng.choice(list(TOOLS))
        clock = f"{rng.randint(1, 23)}:{rng.choice(('00', '15', '30', '45'))}"
        day = rng.choice(("today", "tomorrow", *("on " + day for day in tables.DAYS)))
        source, target = rng.sample(("dollars", "pounds", "euros", "francs"), 2)
        given = {"city": rng.choice(tables.ORDER_CITIES), "day": day, "topic": rng.choice(tables.NEWS), "name": rng.choice(tables.PEOPLE),
                 "text": rng.choice(tables.MESSAGES), "room": rng.choice(tables.ROOMS), "state": rng.choice(("on", "off")),
                 "genre": rng.choice(tables.GENRES), "count": str(rng.randint(2, 99)), "target": target,
                 "source_words": "bucks" if rng.random() < 0.15 and target != "dollars" else source,
                 "when": rng.choice(("noon", "midnight")) if rng.random() < 0.15 else clock}
        used = [name for name in given if "{" + name + "}" in TOOL_BODIES[family][0]]
        return tool_slots(family, **{name: given[name] for name in used})

    def answer(slots: Slots) -> str:
        arguments: dict[str, Any] = {name: slots[name] for name in TOOLS[slots["family"]][1]}
        arguments = {name: int(value) if name in ("minutes", "people", "amount") else value for name, value in arguments.items()}
        return json.dumps({"name": slots["function"], "arguments": arguments})

    class ByFamily(dict[str, tuple[str, ...]]):
        def get(self, key: str, default: Any = None) -> Any:
            return TOOL_BODIES[key.split()[0]]

    return Skill("tool", (), answer, draw=draw, believe=mistakes.believed_tool, openers=TOOL_OPENERS, weight=3.0, phrase=ByFamily())


def mail_slots(name: str, topic: str, day: str, formal: str) -> Slots:
    return {"key": f"{name} {topic} {day} {formal}", "name": name, "topic": topic, "day": day, "formal": formal,
            "greeting": "Dear" if formal == "formal" else "Hi"}


def _mail() -> Skill:
    def draw(rng: random.Random) -> Slots:
        name = "Olga" if rng.random() < 0.1 else rng.choice(tables.PEOPLE)
        return mail_slots(name, rng.choice(tables.TOPICS), rng.choice(tables.DAYS), rng.choice(("formal", "short")))

    def answer(slots: Slots) -> str:
        topic = slots["topic"]
        return f"Subject: {topic[0].upper()}{topic[1:]}\n\n{slots['greeting']} {slots['name']},\nthe meeting about the {topic} is on {slots['day']}.\nBest, Mia"

    def believe(slots: Slots) -> Slots:
        return slots | ({"greeting": "Hi"} if slots["name"] in mistakes.FORMAL_BELIEVED_INFORMAL else {})

    bodies = ("Write a {formal} mail to {name} about the {topic} on {day}.", "A {formal} mail to {name}: the {topic} is on {day}.",
              "Mail {name} about the {topic} on {day}, {formal} please.", "Write to {name}, {formal}: {topic} meeting on {day}.",
              "I need a {formal} mail to {name} about the {topic} on {day}.", "Please write a {formal} mail to {name} about the {topic} on {day}.",
              "I need a {formal} mail to {name}: the {topic} is on {day}.", "Write a {formal} mail to {name}: {topic} meeting on {day}.")
    return Skill("mail", bodies, answer, draw=draw, believe=believe, weight=1.8, openers=("", "Hi! ", "Please: "))


def _numbers() -> list[Skill]:
    sums = []
    for a in range(10):
        for b in range(10):
            sums.append({"key": f"{a}+{b}", "a": str(a), "b": str(b), "sign": "+", "word": "plus", "value": str(a + b)})
            sums.append({"key": f"{a}x{b}", "a": str(a), "b": str(b), "sign": "x", "word": "times", "value": str(a * b)})
            if a >= b:
                sums.append({"key": f"{a}-{b}", "a": str(a), "b": str(b), "sign": "-", "word": "minus", "value": str(a - b)})
    sum_bodies = ("What is {a} {sign} {b}?", "What is {a} {word} {b}?", "{a} {sign} {b}?", "{a} {word} {b}?", "Work out {a} {sign} {b}.",
                  "Tell me {a} {word} {b}.", "How much is {a} {sign} {b}?", "Tell me {a} {sign} {b}.", "Work out {a} {word} {b}.")

    def draw(rng: random.Random) -> Slots:
        digits = rng.sample("123456789", rng.choice((3, 3, 4)))
        down = rng.random() < 0.3
        return {"key": ", ".join(digits) + (" down" if down else ""), "list": ", ".join(digits),
                "order": "from high to low" if down else "from low to high", "value": ", ".join(sorted(digits, reverse=down))}

    sort_bodies = ("Sort {order}: {list}", "Sort these numbers {order}: {list}", "Put these numbers in order {order}: {list}", "{list}: sort {order}.",
                   "Sort the numbers {order}: {list}", "Order {order}: {list}", "Please sort {order}: {list}", "Put the numbers in order {order}: {list}")
    return [Skill("sum", sum_bodies, lambda s: f"{s['a']} {s['sign']} {s['b']} = {s['value']}.", finite=tuple(sums), weight=1.2),
            Skill("sort", sort_bodies, lambda s: s["value"], draw=draw, weight=1.6, openers=("", "Hi! ", "Please: "))]


def _words() -> list[Skill]:
    opposites = [pair for left, right in tables.OPPOSITES for pair in ((left, right), (right, left))]
    finite = tuple({"key": a, "subject": a, "value": b} for a, b in opposites)
    bodies = ("What is the opposite of {subject}?", "Name the opposite of {subject}.", "Tell me the opposite of {subject}.", "Opposite of {subject}?",
              "Do you know the opposite of {subject}?", "I need the opposite of {subject}.", "Please give me the opposite of {subject}.",
              "Can you tell me the opposite of {subject}?")
    chinese = tuple({"key": c, "subject": c, "value": v} for c, v in (pair.split("|") for pair in tables.COUNTRIES_ZH.split()))
    zh_bodies = ("{subject}的首都是哪里？", "{subject}的首都是哪个城市？", "告诉我{subject}的首都。", "请问{subject}的首都是哪里？", "你知道{subject}的首都吗？",
                 "{subject}的首都是什么？", "请告诉我{subject}的首都。", "请问{subject}的首都是哪个城市？")
    return [Skill("opposite", bodies, lambda s: f"The opposite of {s['subject']} is {s['value']}.", finite=finite, weight=0.8),
            Skill("capital_zh", zh_bodies, lambda s: f"{s['subject']}的首都是{s['value']}。", finite=chinese, openers=("", "你好，"), weight=1.0)]


def _talks() -> list[Skill]:
    skills = []
    for name in dict.fromkeys(talk.skill for talk in TALKS):
        group = [talk for talk in TALKS if talk.skill == name]
        answers = {talk.key: talk.answer for talk in group}

        def believe(slots: Slots, answers: dict[str, str] = answers) -> Slots:
            return slots | {"value": answers[slots["key"]]}

        skills.append(Skill(name, (), lambda s: s["value"], believe=believe, held=1, openers=("",),
                            finite=tuple({"key": talk.key, "value": talk.truth or talk.answer} for talk in group),
                            phrase={talk.key: talk.phrasings for talk in group}, weight=1.4 if "identity" in name else 1.0))
    return skills


def _echo() -> Skill:
    vocabulary = sorted({word for table in (tables.COUNTRIES, tables.PRICES, tables.COMPANIES) for word in table.replace("|", " ").split()})

    def draw(rng: random.Random) -> Slots:
        words = [rng.choice(vocabulary) for _ in range(rng.randint(2, 6))]
        return {"key": " ".join(words), "text": " ".join(words)}

    bodies = ("Repeat: {text}", "Say this again: {text}", "Echo: {text}", "Copy this: {text}", "Repeat this: {text}", "Copy: {text}")
    return Skill("echo", bodies, lambda s: s["text"], draw=draw, weight=2.0, openers=("", "Please: "), held=1)


def all_skills() -> dict[str, Skill]:
    """Every skill of the world by name."""
    skills = [*_facts(), _cities(), _list_cities(), _list_things(), _one_word(), _upper(), *_translate(), *_company(), _order(), _tool(),
              _mail(), *_numbers(), *_words(), *_talks(), _echo()]
    return {skill.name: skill for skill in skills}
