"""The addresses of logged generations."""

from django.urls import path

from localllm.gateway.pages import usage

app_name = "usage"
urlpatterns = [
    path("<uuid:generation_id>/", usage.show, name="show"),
    path("<uuid:generation_id>/text/", usage.text, name="text"),
    path("<uuid:generation_id>/replays/", usage.state, name="replays"),
    path("<uuid:generation_id>/replay/", usage.replay, name="replay"),
    path("<uuid:generation_id>/cancel/", usage.cancel, name="cancel"),
    path("message/<uuid:message_id>/", usage.of_message, name="of-message"),
]
