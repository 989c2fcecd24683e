"""The addresses of models. Those of one model begin with `installed/`, so that no name hides another page."""

from django.urls import path

from localllm.gateway.pages import models

app_name = "models"
urlpatterns = [
    path("", models.index, name="index"),
]
