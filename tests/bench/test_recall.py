"""The planted facts are where they are said to be."""

import msgspec
import yaml

from tests.bench.recall import DATA, Planted


def test_every_planted_fact_is_said_in_its_conversation():
    conversations = msgspec.convert(yaml.safe_load(DATA.read_text()), list[Planted])
    assert len(conversations) >= 3
    assert [each.title for each in conversations if each.recall("\n".join(each.turns)) < 1] == []
