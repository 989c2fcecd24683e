"""The pages of schemas. The API's routes are in api.py, mounted by localllm/urls.py."""

from django.urls import include, path

from schemas_app import picker, try_it, views

app_name = "schemas"
urlpatterns = [
    path("", views.index, name="index"),
    path("new/", views.new, name="new"),
    path("check/", views.check, name="check"),
    path("draft/", views.draft, name="draft"),
    path("<uuid:schema_id>/", views.show, name="show"),
    path("<uuid:schema_id>/edit/", views.edit, name="edit"),
    path("<uuid:schema_id>/duplicate/", views.duplicate, name="duplicate"),
    path("<uuid:schema_id>/share/", views.share, name="share"),
    path("<uuid:schema_id>/delete/", views.delete, name="delete"),
    path("<uuid:schema_id>/compare/", views.compare, name="compare"),
    path("<uuid:schema_id>/roll-back/", views.roll_back, name="roll-back"),
    path("<uuid:schema_id>/try/", try_it.try_it, name="try-it"),
    path("<uuid:schema_id>/run/", try_it.run, name="run"),
    path("try-outs/<uuid:try_out_id>/", try_it.try_out, name="try-out"),
    path("try-outs/<uuid:try_out_id>/delete/", try_it.delete, name="try-out-delete"),
    path("batches/", include("schemas_app.batches.urls")),
    path("picker", picker.picker, name="picker"),
]
