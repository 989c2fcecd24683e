"""Keys of API clients. Only the hash is stored: a key is random, so a fast hash cannot be guessed."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from django.conf import settings
from django.contrib.auth.models import User
from django.db import models
from django.utils import timezone

LAST_USED_STEP = timedelta(minutes=1)  # how exact `last_used_at` is: a write per request would be waste


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def issue(self, user: User, name: str) -> tuple[ApiKey, str]:
        """Make a key; its text is returned this once and never stored."""
        text = f"sk-{secrets.token_urlsafe(32)}"
        return self.create(user=user, name=name, prefix=text[:8], digest=_digest(text)), text

    def authenticate(self, text: str) -> ApiKey | None:
        """The usable key of that text, its user active. Only reads: a database that is being written delays nobody."""
        return self.select_related("user").filter(digest=_digest(text), revoked_at=None, user__is_active=True).first()


class ApiKey(models.Model):
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=8, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def is_use_noted(self) -> bool:
        """Is `last_used_at` as exact as it has to be?"""
        return self.last_used_at is not None and timezone.now() - self.last_used_at < LAST_USED_STEP

    def note_use(self) -> None:
        ApiKey.objects.filter(pk=self.pk).update(last_used_at=timezone.now())  # it may have been deleted meanwhile

    def revoke(self) -> None:
        self.revoked_at = timezone.now()
        self.save(update_fields=["revoked_at"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
