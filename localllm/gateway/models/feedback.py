"""What somebody thinks of an answer: a thumb up or down, and a note. Read by the usage log and by experiments."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from django.conf import settings
from django.contrib.auth.models import User
from django.db import models, transaction

MAX_NOTE = 1000


class FeedbackQuerySet(models.QuerySet["Feedback"]):
    def on(self, message_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Feedback]:
        """By message."""
        return {each.message_id: each for each in self.filter(message_id__in=message_ids)}

    def toggle(self, user: User, conversation_id: uuid.UUID, message_id: uuid.UUID, value: int) -> None:
        """Give a thumb, turn it round, or take it back where it is given already."""
        with transaction.atomic():
            before = self.filter(user=user, message_id=message_id).first()
            if before is not None:
                before.delete()
            if before is None or before.value != value:
                self.create(user=user, conversation_id=conversation_id, message_id=message_id, value=value)


class Feedback(models.Model):
    """One per user and message. The ids are no foreign keys: the rows of chats lie above."""

    UP, DOWN = 1, -1

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    conversation_id = models.UUIDField(db_index=True)
    message_id = models.UUIDField(db_index=True)
    value = models.SmallIntegerField(choices=[(UP, "good"), (DOWN, "bad")])
    note = models.CharField(max_length=MAX_NOTE, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = FeedbackQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        verbose_name_plural = "feedback"
        constraints = (models.UniqueConstraint(fields=["user", "message_id"], name="one_thumb_per_message"),)

    def __str__(self) -> str:
        return f"{self.get_value_display()}: {self.note[:60]}" if self.note else self.get_value_display()
