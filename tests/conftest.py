"""Fixtures for all tests. The data directory is a temporary one, made before the settings are read."""

import os
import tempfile

os.environ["LOCALLLM_HOME"] = tempfile.mkdtemp(prefix="localllm-test-")
for name in ("HOST", "PORT", "LOCALLLM_MODEL", "LOCALLLM_CONFIG", "LOCALLLM_ALLOWED_HOSTS"):
    os.environ.pop(name, None)
