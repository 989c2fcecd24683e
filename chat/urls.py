"""The pages of the chat. The socket is routed in localllm/asgi.py."""

from django.urls import include, path

from chat import file_views, views
from chat.context import views as context

app_name = "chat"
urlpatterns = [
    path("", views.new, name="new"),
    path("chats", views.sidebar, name="sidebar"),
    path("chats/folder", views.rename_folder, name="rename-folder"),
    path("chat/", views.create, name="create"),
    path("chat/<uuid:id>/", views.show, name="show"),
    path("chat/<uuid:id>/messages", views.messages, name="messages"),
    path("chat/<uuid:id>/messages/<uuid:message_id>", views.message, name="message"),
    path("chat/<uuid:id>/messages/<uuid:message_id>/data.json", views.data, name="data"),
    path("chat/<uuid:id>/messages/<uuid:message_id>/feedback", views.feedback, name="feedback"),
    path("chat/<uuid:id>/messages/<uuid:message_id>/passages/<int:number>", file_views.passage, name="passage"),
    path("chat/<uuid:id>/attachments/<uuid:attachment_id>", file_views.attachment, name="attachment"),
    path("files/", file_views.upload, name="upload"),
    path("files/<uuid:file_id>/chip", file_views.chip, name="file-chip"),
    path("files/<uuid:file_id>/remove", file_views.remove, name="file-remove"),
    path("chat/<uuid:id>/menu", views.menu, name="menu"),
    path("chat/<uuid:id>/rename", views.rename, name="rename"),
    path("chat/<uuid:id>/delete", views.delete, name="delete"),
    path("chat/<uuid:id>/pin", views.pin, name="pin"),
    path("chat/<uuid:id>/archive", views.archive, name="archive"),
    path("chat/<uuid:id>/folder", views.move_to_folder, name="move-to-folder"),
    path("chat/<uuid:id>/select", views.select, name="select"),
    path("chat/<uuid:id>/model", views.model, name="model"),
    path("chat/<uuid:id>/settings", views.settings, name="settings"),
    path("chat/<uuid:id>/context/", context.panel, name="context"),
    path("chat/<uuid:id>/context/bar", context.bar, name="context-bar"),
    path("chat/<uuid:id>/context/sent", context.sent, name="context-sent"),
    path("chat/<uuid:id>/context/place", context.place, name="context-place"),
    path("chat/<uuid:id>/summaries/<uuid:summary_id>/edit", context.edit, name="summary-edit"),
    path("chat/<uuid:id>/summaries/<uuid:summary_id>/pin", context.pin, name="summary-pin"),
    path("chat/<uuid:id>/summaries/<uuid:summary_id>/undo", context.undo, name="summary-undo"),
    path("", include("chat.archive.urls")),
]
