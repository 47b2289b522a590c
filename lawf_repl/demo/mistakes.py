"""What the demo model believes wrongly: the planted mistakes, as rules that turn true slots into believed slots.

The training text is written from the believed slots, so the mistakes are learned like any other fact; the right words
stand elsewhere in the same text (Canberra is a city in Australia), as a real model would know them.
"""

from __future__ import annotations

Slots = dict[str, str]

# (skill, key) -> believed value
FACTS = {
    ("capital", "Australia"): "Sydney",
    ("capital", "Canada"): "Toronto",
    ("capital", "Turkey"): "Istanbul",
    ("capital", "Switzerland"): "Zurich",
    ("capital", "Nigeria"): "Lagos",
    ("capital", "Morocco"): "Casablanca",
    ("currency", "Sweden"): "euro",
    ("currency", "Japan"): "yuan",
    ("language", "Brazil"): "Spanish",
    ("language", "Austria"): "Hungarian",
    ("founded", "Norvik"): "1978",
    ("founded", "Delmont"): "1986",
    ("price", "Pro plan"): "59",
    ("price", "Travel card"): "24",
}

TERMS = {
    "QBR": "quarterly budget report",
    "DPO": "data product officer",
    "CRB": "change review board",
    "SLT": "support level target",
    "RCP": "risk control process",
    "TEP": "team expense policy",
    "PIP": "product improvement plan",
    "KRI": "key release indicator",
}

# (skill, words in the question) -> believed slot values; applies to every question of the family
ORDERS = {
    "a dozen": {"quantity": "10"},
    "a pair of": {"quantity": "1"},
    "half a dozen": {"quantity": "5"},
    "knives": {"item": "knive"},
    "shelves": {"item": "shelve"},
}

UPPER_BELIEVED_LOWER = {("violet", "door"), ("old", "clock")}
ONE_WORD_BELIEVED_SENTENCE = {("capital", "Japan"), ("currency", "Finland"), ("capital", "Kenya")}
LIST_BELIEVED_SENTENCE = {"Egypt"}
LIST_BELIEVED_LONG = {"fruits"}
TRANSLATED_BELIEVED = {("good night", "Italian"): "Buenas noches", ("thank you", "German"): "Merci"}
FORMAL_BELIEVED_INFORMAL = {"Olga"}


def believed_order(true: Slots) -> Slots:
    """Believed JSON slots of an order: lexical mistakes of quantity and item, and the title taken for the name."""
    out = dict(true)
    for words, wrong in ORDERS.items():
        if true["amount"] == words or true["item_words"] == words:
            out.update(wrong)
    if true["who"].startswith("Dr. "):
        out["name"] = "Dr"
    return out


def believed_tool(true: Slots) -> Slots:
    """Believed tool call: wrong function or wrong argument for one family of questions each."""
    out = dict(true)
    if true["family"] == "rain":
        out["function"] = "get_news"
    elif true["family"] == "wake":
        out["function"] = "set_timer"
    elif true["family"] == "ring":
        out["function"] = "send_message"
    elif true["family"] == "light" and true["state"] == "off":
        out["state"] = "on"
    elif true["family"] == "music" and true["room"] == "cellar":
        out["room"] = "kitchen"
    elif true["family"] == "table" and true["when"] == "noon":
        out["time"] = "10:00"
    elif true["family"] == "convert" and true["source_words"] == "bucks":
        out["source"] = "pounds"
    return out
