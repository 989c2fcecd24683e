"""The addresses of prompt templates, their experiments, and their trials on logged prompts."""

from django.urls import path

from localllm.gateway.pages.prompts import experiments, insertion, trials, views

app_name = "prompts"
urlpatterns = [
    path("", views.index, name="index"),
    path("new/", views.new, name="new"),
    path("preview/", views.preview, name="preview"),
    path("picker", insertion.picker, name="picker"),
    path("<uuid:template_id>/", views.show, name="show"),
    path("<uuid:template_id>/edit/", views.edit, name="edit"),
    path("<uuid:template_id>/compare/", views.compare, name="compare"),
    path("<uuid:template_id>/make-current/", views.make_current, name="make-current"),
    path("<uuid:template_id>/delete/", views.delete, name="delete"),
    path("<uuid:template_id>/restore/", views.restore, name="restore"),
    path("<uuid:template_id>/insert/", insertion.insert, name="insert"),
    path("<uuid:template_id>/experiment/", experiments.new, name="experiment-new"),
    path("<uuid:template_id>/trial/", trials.new, name="trial-new"),
    path("experiments/<uuid:experiment_id>/", experiments.show, name="experiment"),
    path("experiments/<uuid:experiment_id>/end/", experiments.end, name="experiment-end"),
    path("trials/<uuid:trial_id>/", trials.show, name="trial"),
    path("trials/<uuid:trial_id>/cancel/", trials.cancel, name="trial-cancel"),
    path("trials/<uuid:trial_id>/resume/", trials.resume, name="trial-resume"),
]
