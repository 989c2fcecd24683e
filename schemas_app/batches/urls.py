"""The addresses of batches, below those of schemas."""

from django.urls import path

from schemas_app.batches import views

urlpatterns = [
    path("", views.batches, name="batches"),
    path("new/", views.new, name="batch-new"),
    path("preview/", views.preview, name="batch-preview"),
    path("create/", views.create, name="batch-create"),
    path("<uuid:batch_id>/", views.show, name="batch"),
    path("<uuid:batch_id>/progress/", views.progress, name="batch-progress"),
    path("<uuid:batch_id>/rows/", views.rows, name="batch-rows"),
    path("<uuid:batch_id>/pause/", views.pause, name="batch-pause"),
    path("<uuid:batch_id>/resume/", views.resume, name="batch-resume"),
    path("<uuid:batch_id>/cancel/", views.cancel, name="batch-cancel"),
    path("<uuid:batch_id>/retry/", views.retry, name="batch-retry"),
    path("<uuid:batch_id>/delete/", views.delete, name="batch-delete"),
    path("<uuid:batch_id>/batch.csv", views.download, {"format": "csv"}, name="batch-csv"),
    path("<uuid:batch_id>/batch.jsonl", views.download, {"format": "jsonl"}, name="batch-jsonl"),
]
