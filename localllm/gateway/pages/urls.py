"""The addresses of models. Those of one model begin with `installed/`, so that no name hides another page."""

from django.urls import path

from localllm.gateway.pages import catalogue, downloads, hub, models, quantising, uploads

app_name = "models"
urlpatterns = [
    path("", models.index, name="index"),
    path("catalogue/", catalogue.index, name="catalogue"),
    path("catalogue/first/", catalogue.first, name="catalogue-first"),
    path("catalogue/<slug:slug>/", catalogue.entry, name="catalogue-entry"),
    path("catalogue/<slug:slug>/get/", catalogue.get, name="catalogue-get"),
    path("hub/", hub.index, name="hub"),
    path("hub/account/", hub.account, name="hub-account"),
    path("downloads/", downloads.index, name="downloads"),
    path("downloads/start/", downloads.start, name="download-start"),
    path("downloads/<uuid:job_id>/pause/", downloads.pause, name="download-pause"),
    path("downloads/<uuid:job_id>/resume/", downloads.resume, name="download-resume"),
    path("downloads/<uuid:job_id>/cancel/", downloads.cancel, name="download-cancel"),
    path("own/", uploads.index, name="uploads"),
    path("own/register/", uploads.register, name="register"),
    path("own/uploads/", uploads.begin, name="upload-begin"),
    path("own/uploads/<uuid:upload_id>/", uploads.status, name="upload-status"),
    path("own/uploads/<uuid:upload_id>/chunk/", uploads.chunk, name="upload-chunk"),
    path("own/uploads/<uuid:upload_id>/cancel/", uploads.cancel, name="upload-cancel"),
    path("installed/<str:name>/", models.show, name="show"),
    path("installed/<str:name>/load/", models.load, name="load"),
    path("installed/<str:name>/unload/", models.unload, name="unload"),
    path("installed/<str:name>/cancel/", models.cancel_load, name="cancel-load"),
    path("installed/<str:name>/default/", models.make_default, name="make-default"),
    path("installed/<str:name>/measure/", models.measure, name="measure"),
    path("installed/<str:name>/check/", models.check, name="check"),
    path("installed/<str:name>/settings/", models.edit, name="settings"),
    path("installed/<str:name>/settings/fit/", models.fit, name="settings-fit"),
    path("installed/<str:name>/replace/", models.replace, name="replace"),
    path("installed/<str:name>/roll-back/", models.roll_back, name="roll-back"),
    path("installed/<str:name>/remove-version/", models.remove_version, name="remove-version"),
    path("installed/<str:name>/delete/", models.delete, name="delete"),
    path("installed/<str:name>/quantise/", quantising.show, name="quantise"),
    path("installed/<str:name>/quantise/start/", quantising.start, name="quantise-start"),
    path("installed/<str:name>/quantise/<uuid:job_id>/cancel/", quantising.cancel, name="quantise-cancel"),
]
