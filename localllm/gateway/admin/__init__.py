"""The admin's view of the rows that every app shares, a module for each topic. Importing them registers them."""

from django.contrib import admin
from django.contrib.auth.models import Group

from localllm.gateway.admin import downloads, keys, models, prompts, usage

__all__ = ["downloads", "keys", "models", "prompts", "usage"]

admin.site.site_header = "LocalLLM"
admin.site.site_title = "LocalLLM admin"
admin.site.index_title = "Administration"
admin.site.site_url = "/"
admin.site.unregister(Group)
