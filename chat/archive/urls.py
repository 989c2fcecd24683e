"""The addresses of export and import."""

from django.urls import path

from chat.archive import views

urlpatterns = [
    path("chat/<uuid:id>/export.md", views.export, {"kind": "md"}, name="export-markdown"),
    path("chat/<uuid:id>/export.json", views.export, {"kind": "json"}, name="export-json"),
    path("archive/", views.index, name="archive-index"),
    path("archive/export.json", views.export_account, {"kind": "json"}, name="export-account-json"),
    path("archive/export.zip", views.export_account, {"kind": "zip"}, name="export-account-zip"),
    path("archive/import", views.begin_import, name="import"),
    path("archive/import/<uuid:part_of>", views.add_part, name="import-part"),
    path("archive/imports", views.imports, name="imports"),
    path("archive/imports/<uuid:import_id>/cancel", views.cancel, name="import-cancel"),
]
