"""Decode heads that take feature maps: what `HeadTester` asks of all of them, and what is special to each."""

from __future__ import annotations

from typing import ClassVar

from tests.head_tester import HeadTester


class TestLinear(HeadTester):
    name = "linear"
    counts: ClassVar = {(768, 16, 15): 52_239}
