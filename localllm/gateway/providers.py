"""The providers of this process. One embedded engine per process; its workers end with it."""

from __future__ import annotations

from django.conf import settings

from localllm.inference.providers.llamacpp import LlamaCpp

local = LlamaCpp(share=settings.MEMORY_SHARE)
