"""A pytest plugin (see `addopts`): the environment of the tests, set before anything reads the settings."""

import os
import sys
import tempfile

os.environ["LOCALLLM_HOME"] = tempfile.mkdtemp(prefix="localllm-test-")
for name in ("HOST", "PORT", "LOCALLLM_MODEL", "LOCALLLM_CONFIG", "LOCALLLM_ALLOWED_HOSTS", "HF_TOKEN", "HF_ENDPOINT"):
    os.environ.pop(name, None)

# Tests start some two hundred processes, and each would compile Django again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
