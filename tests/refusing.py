"""What somebody reads whose input is refused."""

from __future__ import annotations

from typing import Any

import pytest

from sim.findings import Refused


def refusal(call: Any, *arguments: Any) -> str:
    """The text of a refusal: one line per finding."""
    with pytest.raises(Refused) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == len(caught.value.findings)
    return str(caught.value)
