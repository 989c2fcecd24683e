"""The pages of schemas. The API's routes are in api.py, mounted by localllm/urls.py."""

from django.urls import URLPattern

app_name = "schemas"
urlpatterns: list[URLPattern] = []
