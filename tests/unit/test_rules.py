"""Every section of the protocols between the parts has a test that names it.

A test names its rule at the beginning of its docstring: ``protocols §9: …``. Which tests show which rule stands in
docs/parity.md.
"""

from docs.generator.parity import named

SECTIONS = range(1, 21)


def test_every_section_of_the_protocols_is_named() -> None:
    assert [section for section in SECTIONS if f"protocols §{section}" not in named()] == []
