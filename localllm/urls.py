"""Every address of the site. What is not marked public in its view needs a login."""

from django.contrib import admin
from django.contrib.auth.views import LogoutView
from django.urls import include, path
from django.views.generic import RedirectView

from localllm.gateway import views
from localllm.gateway.api import openai
from localllm.gateway.api.health import health
from schemas_app import api as native

handler400 = "localllm.gateway.views.bad_request"
urlpatterns = [
    path("", include("chat.urls")),
    path("models/", include("localllm.gateway.pages.urls")),
    path("schemas/", include("schemas_app.urls")),
    path("usage/", include("localllm.gateway.pages.usage_urls")),
    path("prompts/", include("localllm.gateway.pages.prompts.urls")),
    path("setup/", views.SetupView.as_view(), name="setup"),
    path("login/", views.LoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("account/password/", views.PasswordChangeView.as_view(), name="password_change"),
    path("admin/login/", views.admin_login, name="admin_login"),
    path("admin/password_change/", RedirectView.as_view(pattern_name="password_change"), name="admin_password"),
    path("admin/", admin.site.urls),
    path("health", health, name="health"),
    path("v1/", include((openai.urlpatterns, "v1"))),
    path("api/local-llm/", include((native.urlpatterns, "native"))),
]
