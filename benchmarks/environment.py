"""What every result file says about where it was measured."""

import os
from typing import Any

from blockexport.core.hardware import HostFingerprint


def describe() -> dict[str, Any]:
    """Host, versions, and how busy the machine is right now."""
    return {"host": HostFingerprint.detect().to_json(), "load_average": os.getloadavg()}
