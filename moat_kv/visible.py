"""Texts for terminals: of what a script has printed or stored, nothing that a terminal would obey.

Used where values, log lines and messages are shown to people. Changes nothing that is stored.
"""

from __future__ import annotations

#: C0 and C1 controls but tab and newline: they would move the cursor or worse.
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if code not in (9, 10)
}


def made(text: str) -> str:
    """The text with each such character spelled out, as ``\\x1b``."""
    return text.translate(_CONTROLS)
