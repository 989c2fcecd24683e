"""Accounts in the browser: the first one, signing in, a new password. Knows nothing of chats."""

from __future__ import annotations

import math
from secrets import compare_digest
from typing import Any

from django import forms
from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.forms import AuthenticationForm, UserCreationForm
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse, reverse_lazy
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.generic import FormView

from localllm.gateway.security.first_run import account_exists, first_run_code, is_exposed
from localllm.gateway.security.throttle import LoginThrottle, client_address

login_throttle = LoginThrottle()
FIRST_RUN = "the first-run page"  # stands for an account in the throttle; no account may have blanks in its name


class FirstAccountForm(UserCreationForm):  # type: ignore[type-arg]
    """The first account. On a server that others can reach, only who sees its console may make it."""

    code = forms.CharField(
        required=False,
        help_text="The server printed it on its console when it started.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "none"}),
    )

    class Meta:
        model = get_user_model()
        fields = ("username",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].widget.attrs["autofocus"] = True
        if not is_exposed():
            del self.fields["code"]

    def clean_code(self) -> str:
        code: str = self.cleaned_data["code"].strip().lower()
        if not compare_digest(code.encode(), first_run_code().encode()):
            raise forms.ValidationError(
                "This is not the code. It stands on the console where the server was started, and is new "
                "after each start."
            )
        return code


@method_decorator([login_not_required, never_cache], name="dispatch")
class SetupView(FormView):  # type: ignore[type-arg]
    """Makes the first account, the admin's, and nothing after that."""

    template_name = "gateway/setup.html"
    form_class = FirstAccountForm

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return redirect("chat:new") if account_exists() else super().dispatch(request, *args, **kwargs)

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        wait_s = login_throttle.attempt(FIRST_RUN, client_address(request)) if is_exposed() else 0
        if wait_s:
            return _too_many(self, self.form_class(), wait_s)
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: FirstAccountForm) -> HttpResponse:
        user = form.save(commit=False)
        user.is_staff = user.is_superuser = True
        with transaction.atomic():  # IMMEDIATE: of two at once the second sees the first
            if account_exists():
                return redirect("login")
            user.save()
        login_throttle.succeed(FIRST_RUN, client_address(self.request))
        login(self.request, user)
        return redirect("chat:new")


@method_decorator(login_not_required, name="dispatch")
class LoginView(auth_views.LoginView):
    redirect_authenticated_user = True

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return super().dispatch(request, *args, **kwargs) if account_exists() else redirect("setup")

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        account = request.POST.get("username", "")
        if wait_s := login_throttle.attempt(account, client_address(request)):
            return _too_many(self, AuthenticationForm(request, initial={"username": account}), wait_s)
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        login_throttle.succeed(self.request.POST.get("username", ""), client_address(self.request))
        return super().form_valid(form)


class PasswordChangeView(auth_views.PasswordChangeView):
    success_url = reverse_lazy("chat:new")


@login_not_required
def admin_login(request: HttpRequest) -> HttpResponse:
    """The admin's own login page would know no throttle."""
    if request.user.is_authenticated:
        if request.user.is_staff:
            return redirect("admin:index")
        raise PermissionDenied("Your account may not use the admin pages. Ask an admin of this server.")
    return redirect(f"{reverse('login')}?{request.GET.urlencode()}")


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """What was sent cannot be read; with people that is mostly because they pasted too much."""
    is_too_large = isinstance(exception, RequestDataTooBig)
    limit = f"{settings.DATA_UPLOAD_MAX_MEMORY_SIZE >> 20} MB"
    template = "gateway/_too_large.html" if is_too_large and request.headers.get("HX-Request") else "400.html"
    return render(request, template, {"too_large": is_too_large, "limit": limit}, status=413 if is_too_large else 400)


def _too_many(view: SetupView | LoginView, blank: forms.BaseForm, wait_s: float) -> HttpResponse:
    """The page again, with an unread form and when to try next."""
    response = view.render_to_response(view.get_context_data(form=blank, wait=_in_words(wait_s)), status=429)
    response["Retry-After"] = str(math.ceil(wait_s))
    return response


def _in_words(wait_s: float) -> str:
    seconds = math.ceil(wait_s)
    if seconds < 90:
        return f"{seconds} second{'s' * (seconds != 1)}"
    return f"{math.ceil(seconds / 60)} minutes"
