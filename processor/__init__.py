"""The stream application: the pure core, the log, the state behind it, and the Faust app that ties them together."""

import os
import sys
from typing import Any, cast

if os.environ.get("SPENDSTREAM_PURE") == "1":  # here, before anything of the core, which knows no environment
    cast(dict[str, Any], sys.modules)["processor.core.kernel.compiled"] = None  # so that an import of it fails
