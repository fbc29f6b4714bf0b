"""Import torchvision, also where its compiled operators cannot be loaded.

Reading data needs none of those operators, but a torchvision whose binary does not fit the
installed torch (a CPU torch beside a CUDA torchvision, say) describes them to torch while it is
being imported and fails because they do not exist. Declaring the missing names is enough.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_MAX_DECLARED = 16
# torch forgets a declaration when its Library object is freed.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import and return torchvision, declaring operators that its own binary failed to bring.

    A torchvision that imports is left as it is.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: the import fails for any other reason than a missing torchvision operator.
    """
    for _ in range(_MAX_DECLARED):
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = _MISSING.match(str(error))
            if missing is None:
                raise
        _forget_half_imported()
        import torch

        # The schema is a placeholder: the operator has no kernel and is never called.
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(f"{missing[1]}() -> ()")
        _libraries.append(library)
    return importlib.import_module("torchvision")


def _forget_half_imported() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
