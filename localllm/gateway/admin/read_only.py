"""What an admin may look at and not change. For admins of rows and for inlines."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


class ReadOnly:
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Kept(ReadOnly):
    """Not to be deleted either, but along with what it belongs to."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
